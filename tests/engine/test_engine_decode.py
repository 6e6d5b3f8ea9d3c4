"""Answers together against answers alone, by transformers' own `generate`; and that nothing is worked out in vain."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from transformers.generation import StopStringCriteria

from llavamed.engine.decode import Batch
from llavamed.engine.features import Features
from llavamed.engine.local import LocalEngine
from llavamed.engine.request import Request
from llavamed.evaluate import benchmarks
from llavamed.imaging.decode import read
from llavamed.model.chat import prompt
from llavamed.model.folder import Assembled
from llavamed.records import assistant, user

Asked = Callable[..., Request]

LIMITS = (1, 3, 12, 7, 2, 20)  # tokens
# Stop strings that come soon; none stands in a special token's name, see the test of those.
WORDS = ("o", "the ", "in", " ", ".")


@pytest.fixture
def own(engine: LocalEngine) -> LocalEngine:
    """An engine with a copy of the model, to be changed; many tokens end an answer, so lengths differ."""
    model = copy.deepcopy(engine.model)
    model.generation_config.eos_token_id = list(range(0, 1024, 12))
    return LocalEngine.around(Assembled(model, engine.processor), "own")


def alone(engine: LocalEngine, request: Request) -> tuple[dict[str, Any], torch.Tensor]:
    """Inputs and new tokens of a request, by transformers."""
    inputs = engine.processor(
        images=list(request.images) or None,
        text=prompt(engine.processor, request.messages),
        add_special_tokens=False,
        return_tensors="pt",
    )
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(engine.model.dtype)
    tokenizer = engine.processor.tokenizer
    stop = {"stop_strings": list(request.stop), "tokenizer": tokenizer} if request.stop else {}
    tokens = engine.model.generate(
        **inputs, max_new_tokens=request.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **stop
    )
    return dict(inputs), tokens[0, inputs["input_ids"].shape[1] :]


def text_alone(engine: LocalEngine, request: Request) -> str:
    text = engine.processor.decode(alone(engine, request)[1], skip_special_tokens=True)
    return text[: min((text.find(word) for word in request.stop if word in text), default=len(text))].strip()


def vqa_rad(shared_data: Path, every: int) -> list[Request]:
    """Questions of VQA-RAD with their pictures, grouped as `predict` asks them; lengths and stop strings vary."""
    benchmark = benchmarks.load("vqa-rad", shared_data / "vqa_rad")
    questions = sorted(benchmark.questions, key=lambda question: question.image)[::every]
    pictures = {name: read(benchmark.images / name) for name in {question.image for question in questions}}
    limits, words = itertools.cycle(LIMITS), itertools.cycle([(), (), WORDS[:1], WORDS[1:3], WORDS[3:]])
    return [
        Request((user(question.question, images=1),), (pictures[question.image],), next(limits), stop=next(words))
        for question in questions
    ]


@pytest.mark.parametrize(
    ("every", "sizes"),
    [(30, (4,)), pytest.param(1, (1, 5, 32), marks=pytest.mark.slow, id="every question")],
)
def test_a_real_benchmarks_answers_are_the_same_in_any_batch_and_alone(
    own: LocalEngine, shared_data: Path, every: int, sizes: tuple[int, ...]
) -> None:
    requests = vqa_rad(shared_data, every)
    expected = [text_alone(own, request) for request in requests]
    assert len(set(expected)) > len(expected) // 4, "the test needs a model whose answers differ"
    for size in sizes:
        assert dict(own.each(requests, batch_size=size)) == dict(enumerate(expected)), size
    assert own.generate(requests[::-1]) == expected[::-1]


def test_a_stop_string_is_looked_for_in_the_text_and_not_in_the_name_of_a_special_token(
    own: LocalEngine, asked: Asked
) -> None:
    """transformers' StopStringCriteria finds the ">" of `<pad>`, which no one who reads the answer sees, and `generate`
    ends there. This is where our answers are meant to be other than its own."""
    tokenizer = own.processor.tokenizer
    pad = tokenizer.pad_token_id
    assert tokenizer.decode([pad], skip_special_tokens=True) == ""
    assert StopStringCriteria(tokenizer, [">"])(torch.tensor([[pad]]), None).tolist() == [True]

    request = asked(3, tokens=8)
    second = int(alone(own, request)[1][1])
    with torch.no_grad():  # the model says <pad> in place of this token
        own.model.lm_head.weight[pad] = 1.1 * own.model.lm_head.weight[second]
    stopped = replace(request, stop=(">",))
    tokens = alone(own, request)[1].tolist()
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    end = tokens.index(pad) + 1
    assert tokenizer.decode(tokens[end:], skip_special_tokens=True)
    assert ">" not in whole
    assert alone(own, stopped)[1].tolist() == tokens[:end]
    assert own.generate([stopped]) == [whole.strip()]
    assert "".join(own.stream(stopped)) == whole.strip()


def test_in_bfloat16_an_answer_leaves_the_lonely_one_only_where_two_tokens_are_level(
    own: LocalEngine, asked: Asked
) -> None:
    """Sums in another order round otherwise. Where the batch's token is another, the lonely model itself must hold both
    to be equal within the rounding of its logits (a few times 2^-8 of the largest)."""
    own.model.to(torch.bfloat16)
    requests = [asked(number % 5, tokens=10, stop=()) for number in range(5)]
    rows = list(own._rows(requests))
    batch = own._batch()
    batch.enter(rows)
    while batch.alive:
        batch.step()
    apart = 0
    for row, request in zip(rows, requests, strict=True):
        inputs, tokens = alone(own, request)
        both = list(zip(row.tokens, tokens.tolist(), strict=False))
        at = next((place for place, (ours, theirs) in enumerate(both) if ours != theirs), None)
        if at is None:
            assert len(row.tokens) == len(tokens)
            continue
        apart += 1
        ids = torch.cat([inputs["input_ids"], tokens[None, :at]], dim=1)
        logits = own.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1].float()
        ours, theirs = both[at]
        assert logits[theirs] - logits[ours] <= 4 * 2**-8 * logits.abs().max()
    assert apart < len(rows), "the test needs answers that are the same"


def test_several_images_none_and_a_conversation_go_together(
    own: LocalEngine, asked: Asked, picture: Callable[[int], Image]
) -> None:
    requests = [
        Request((user("Compare.", images=2),), (picture(1), picture(2)), 12),
        Request((user("Compare.", images=2),), (picture(2), picture(1)), 12),
        Request((user("Compare them well.", images=2),), (picture(1), picture(2)), 12),
        Request((user("Describe the liver."),), (), 12),
        Request((user("Describe the spleen."),), (), 12),
        Request((user("One?", images=1), assistant("Two."), user("And?", images=1)), (picture(1), picture(3)), 12),
        Request((user("One?", images=1), assistant("Two."), user("And now?", images=1)), (picture(1), picture(3)), 12),
        asked(4),
    ]
    expected = [text_alone(own, request) for request in requests]
    assert len(set(expected)) > 4
    assert own.generate(requests) == expected
    assert dict(own.each(requests, batch_size=3)) == dict(enumerate(expected))


def test_a_sliding_window_is_kept(own: LocalEngine, asked: Asked) -> None:
    full = own.generate([asked(3), asked(5)])
    own.model.config.text_config.sliding_window = 16
    requests = [asked(3), asked(0), asked(3, tokens=30), asked(5)]
    expected = [text_alone(own, request) for request in requests]
    assert [expected[0], expected[3]] != full
    assert own.generate(requests) == expected


class Spy:
    """What goes through the language model: (rows, tokens each) of every call; and the images encoded."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int]] = []
        self.widths: list[int] = []  # of the cache
        self.encoded = 0
        forward, encode = Batch._forward, engine._encode

        def through(batch: Batch, ids: Any, *more: Any) -> Any:
            mask, hidden = forward(batch, ids, *more)
            self.calls.append((len(ids), max(map(len, ids))))
            self.widths.append(mask.shape[1])
            return mask, hidden

        def tower(pixels: torch.Tensor) -> Any:
            self.encoded += len(pixels)
            return encode(pixels)

        monkeypatch.setattr(Batch, "_forward", through)
        monkeypatch.setattr(engine._features, "_encode", tower)

    @property
    def steps(self) -> list[int]:
        """Rows of every call that was not a prefill."""
        return [rows for rows, tokens in self.calls if tokens == 1]


@pytest.fixture
def spy(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> Spy:
    engine._features = Features(engine._encode)
    return Spy(engine, monkeypatch)


def test_who_has_ended_leaves_and_no_step_is_spent_on_him(engine: LocalEngine, spy: Spy, asked: Asked) -> None:
    engine.generate([asked(0, tokens=40), *(asked(0, tokens=2) for _ in range(15))])
    assert spy.steps == [16, *[1] * 38]  # a batch that waits for the longest makes 39 steps of 16


def test_the_cache_is_cut_when_the_longest_prompt_leaves(engine: LocalEngine, spy: Spy, asked: Asked) -> None:
    engine.generate([asked(40, tokens=2), asked(0, tokens=12)])
    longest, short = (engine.count_tokens(asked(number)) for number in (40, 0))
    assert max(spy.widths) == longest + 1
    assert spy.widths[-1] == short + 11


def test_places_are_filled_again_and_the_batch_never_grows_over_its_size(
    engine: LocalEngine, spy: Spy, asked: Asked
) -> None:
    tokens = [30, 2, 9, 4] * 8
    answers = dict(engine.each([asked(0, tokens=count) for count in tokens], batch_size=8))
    assert len(answers) == 32
    assert max(spy.steps) == 8
    needed = sum(tokens) - len(tokens)  # the first token of each comes from the prefill
    assert sum(spy.steps) <= 1.25 * needed
    waiting_for_the_longest = 4 * 29 * 8
    assert sum(spy.steps) < waiting_for_the_longest / 2


def test_questions_about_one_image_share_their_beginning(
    engine: LocalEngine, spy: Spy, picture: Callable[[int], Image]
) -> None:
    images = [picture(1), picture(2)]
    requests = [
        Request((user(f"Is the {word} seen?", images=1),), (image,), 1)
        for image in images
        for word in ("lung", "liver", "left kidney")
    ]
    answers = engine.generate(requests)
    assert spy.encoded == 2
    lengths = [engine.count_tokens(request) for request in requests]
    (beginnings, beginning), (rows, rest) = spy.calls
    assert (beginnings, rows) == (2, 6)
    assert beginning + rest == max(lengths)
    assert beginning > 36  # the image's tokens and what is before them
    assert 2 * beginning + 6 * rest < sum(lengths) / 1.5
    assert answers == [text_alone(engine, request) for request in requests]
