from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL.Image import Image, new
from transformers import AutoModelForImageTextToText, AutoProcessor

from llavamed.engine import connect
from llavamed.engine.decode import Batch
from llavamed.engine.local import LocalEngine, _tidy
from llavamed.engine.request import Request
from llavamed.errors import InputError
from llavamed.model.chat import prompt
from llavamed.records import assistant, user

Asked = Callable[..., Request]


def test_greedy_answers_are_those_of_the_folder_loaded_by_anyone(
    engine: LocalEngine, run_folder: Path, asked: Asked
) -> None:
    path = run_folder / "instruct" / "model"
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(path)
    request = asked(2)
    rows = [{"role": m.role, "content": list(m.content)} for m in request.messages]
    text = processor.apply_chat_template(rows, add_generation_prompt=True)
    inputs = processor(images=list(request.images), text=text, add_special_tokens=False, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert engine.generate([request]) == [processor.decode(tokens, skip_special_tokens=True).strip()]


def test_an_answer_is_the_same_alone_in_any_batch_and_streamed(
    engine: LocalEngine, asked: Asked, picture: Callable[[int], Image]
) -> None:
    text_only = Request((user("Describe the liver."),), (), max_new_tokens=12)
    long = Request((user("One?", images=1), assistant("Two."), user("Three?")), (picture(9),), max_new_tokens=5)
    requests = [asked(0), asked(3), text_only, asked(1), long]
    together = engine.generate(requests)
    assert len(set(together)) > 2, "the test needs a model whose answers differ"
    assert together == [engine.generate([request])[0] for request in requests]
    assert together == engine.generate(requests[::-1])[::-1]
    assert together == ["".join(engine.stream(request)) for request in requests]


def test_sampling_follows_its_seed_in_any_company(engine: LocalEngine, asked: Asked) -> None:
    request = asked(1, temperature=1.5, seed=3)
    state = torch.get_rng_state()
    first = engine.generate([request])
    assert torch.equal(torch.get_rng_state(), state), "a seeded answer leaves the global random state alone"
    assert engine.generate([asked(2, temperature=2.0, seed=4), request, asked(0)])[1:2] == first
    assert "".join(engine.stream(request)) == first[0]
    assert engine.generate([asked(1, temperature=1.5, seed=5)]) != first
    assert engine.generate([asked(1, temperature=1.5)] * 2)[0] != engine.generate([asked(1, temperature=1.5)])[0]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_sampling_is_that_of_transformers(engine: LocalEngine, asked: Asked, top_p: float) -> None:
    request = asked(1, temperature=1.3, top_p=top_p, seed=11)
    inputs = engine.processor(
        images=list(request.images),
        text=prompt(engine.processor, request.messages),
        add_special_tokens=False,
        return_tensors="pt",
    )
    torch.manual_seed(11)
    tokens = engine.model.generate(**inputs, max_new_tokens=12, do_sample=True, temperature=1.3, top_p=top_p, top_k=0)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert engine.generate([request]) == [engine.processor.decode(tokens, skip_special_tokens=True).strip()]


def test_a_stop_string_ends_the_answer_before_itself(engine: LocalEngine, asked: Asked) -> None:
    whole = engine.generate([asked(0, tokens=24)])[0]
    word = whole[len(whole) // 2 :][:3]
    stopped = asked(0, tokens=24, stop=(word, "never said"))
    expected = whole[: whole.index(word)].strip()
    assert engine.generate([stopped]) == [expected]
    assert "".join(engine.stream(stopped)) == expected


def test_a_stream_works_only_when_it_is_read_and_lets_others_work_meanwhile(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    steps: list[int] = []
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda batch: steps.append(1) or step(batch))  # type: ignore[func-returns-value]
    threads = threading.active_count()
    request = asked(0, tokens=30)
    pieces = engine.stream(request)
    first = next(pieces)
    done = len(steps)
    assert done < 29
    alone = engine.generate([asked(1)])  # between two pieces
    done += 11
    assert len(steps) == done
    second = next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert len(steps) < done + 18
    assert threading.active_count() == threads
    assert engine.generate([request])[0].startswith(first + second)
    assert engine.generate([asked(1)]) == alone


def test_what_fails_in_the_model_is_raised_to_the_reader(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(engine.model.lm_head, "forward", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        list(engine.stream(asked(0)))
    with pytest.raises(RuntimeError, match="out of order"):
        engine.generate([asked(0), asked(1)])


def test_prompts_and_pixels_are_those_of_the_processor(
    engine: LocalEngine, asked: Asked, picture: Callable[[int], Image]
) -> None:
    two = Request((user("Compare.", images=2),), (picture(5), picture(6)))
    requests = [asked(2), Request((user("Hello <image> there"),)), asked(1), two]
    theirs = engine.processor(
        images=[image for request in requests for image in request.images],
        text=[prompt(engine.processor, request.messages) for request in requests],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    rows = list(engine._rows(requests))
    for row, ids, mask in zip(rows, theirs["input_ids"], theirs["attention_mask"], strict=True):
        assert row.prompt.tolist() == ids[mask.bool()].tolist()
    ours = torch.stack([image.pixels for row in rows for image in row.images])
    assert torch.equal(ours, theirs["pixel_values"])
    assert [engine.count_tokens(request) for request in requests] == theirs["attention_mask"].sum(1).tolist()


def test_each_takes_requests_as_it_needs_them_and_says_what_failed(engine: LocalEngine, asked: Asked) -> None:
    taken = []

    def requests() -> Iterator[Request]:
        for number in range(30):
            taken.append(number)
            yield asked(number % 3, tokens=100_000 if number == 1 else 3)

    outcomes = engine.each(requests(), batch_size=2)
    place, answer = next(outcomes)
    assert len(taken) <= 2 + 2 * 2 + 2
    found = {place: answer, **dict(outcomes)}
    alone = [engine.generate([asked(number, tokens=3)])[0] for number in range(3)]
    assert isinstance(found.pop(1), InputError)
    assert found == {number: alone[number % 3] for number in range(30) if number != 1}


def test_what_a_folder_wants_of_generation_and_does_not_get_is_said(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_folder / "instruct" / "model", tmp_path / "model")
    settings = tmp_path / "model" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"repetition_penalty": 1.3, "num_beams": 1}))
    LocalEngine(tmp_path / "model")
    told = [line for line in capsys.readouterr().err.splitlines() if "not followed" in line]
    assert len(told) == 1
    assert told[0].endswith("generation_config.json says repetition_penalty=1.3, which is not followed")


def test_a_prompt_beyond_the_models_reach_is_refused_before_it_runs(engine: LocalEngine, asked: Asked) -> None:
    with pytest.raises(InputError, match="tokens that the model takes"):
        engine.stream(asked(0, tokens=100_000))


def test_a_name_is_the_runs_not_the_machines_path(run_folder: Path, engine: LocalEngine) -> None:
    assert engine.name == "wild"
    assert LocalEngine(run_folder / "instruct").name == "wild/instruct"
    assert LocalEngine(run_folder / "instruct" / "model").name == "wild/instruct"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"messages": (user("?", images=2),), "images": (new("RGB", (8, 8)),)}, "1 images for 2 image parts"),
        ({"messages": (user("?"), assistant("!"))}, "last message"),
        ({"messages": ()}, "last message"),
        ({"messages": (user("?"),), "temperature": -1.0}, "temperature=-1.0"),
        ({"messages": (user("?"),), "top_p": 0.0}, "top_p=0.0"),
        ({"messages": (user("?"),), "max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Request(**arguments)  # type: ignore[arg-type]


def test_connect_wants_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        connect(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no config\.json"):
        connect(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("  a b  ", (), "a b"),
        ("yes. END no", ("END",), "yes."),
        ("yes. EN no", ("END",), "yes. EN no"),
        ("\nUSER: x", ("\nUSER",), ""),
        ("a\n\nUSER: x", ("\nUSER", "zz"), "a"),
        ("aab", ("ab",), "a"),
    ],
)
def test_pieces_of_any_size_join_to_the_same_text(text: str, stop: tuple[str, ...], expected: str) -> None:
    def cut(size: int) -> Iterator[str]:
        return (text[i : i + size] for i in range(0, len(text), size))

    assert {"".join(_tidy(cut(size), stop)) for size in range(1, len(text) + 1)} == {expected}
