"""A folder's model in this process.

In: requests. Out: their texts, which are those that anyone gets who loads the folder with transformers and calls
`generate`, one request at a time. Getting them sooner is what the floor's other files are for: `decode.py` makes many
answers together, `line.py` keeps it full, `features.py` keeps what was made of an image. Here requests become
rows of token ids and pixels, and tokens become text.

Two things are hard. Work must not wait for other work: `each` prepares images and prompts in a thread of their own
while the model computes. And in a stream a stop string may arrive in pieces: the tail that could still become one is
held back.

The model is locked for one step at a time, so a stream and a batch may be under way together.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from llavamed.engine.ahead import ahead
from llavamed.engine.decode import Batch, Row
from llavamed.engine.features import Features, Picture
from llavamed.engine.line import run
from llavamed.engine.request import Request
from llavamed.errors import InputError
from llavamed.model import chat, folder
from llavamed.model.pixels import pixels

_PROMPTS_KEPT = 8192  # an evaluation asks the same ones under each control

# Settings of a generation_config.json that would make a greedy answer another one, and their neutral values.
_NOT_FOLLOWED = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_new_tokens": (None, 0),
    "min_length": (None, 0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
}


class LocalEngine:
    """Answers with the model at `path`: a run, stage or model folder. Device: CUDA where there is one."""

    def __init__(
        self, path: Path | str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None and device.type == "cpu":
            dtype = torch.float32  # half precision on a CPU is slower, and rarely what was wanted
        assembled = folder.load(Path(path), dtype)
        assembled.model.to(device)
        self._hold(assembled, _name(Path(path)))

    @classmethod
    def around(cls, assembled: folder.Assembled, name: str) -> LocalEngine:
        """An engine of a model in memory, which stays where and as it is."""
        engine = cls.__new__(cls)
        engine._hold(assembled, name)
        return engine

    def _hold(self, assembled: folder.Assembled, name: str) -> None:
        self.name, self.processor, self.model = name, assembled.processor, assembled.model
        self._lock = threading.Lock()
        self._features = Features(self._encode)
        self._prompts: OrderedDict[tuple[object, ...], NDArray[np.int64]] = OrderedDict()
        _say_what_is_not_followed(name, self.model.generation_config)

    def generate(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in order; all go through the model together, and each is what it would be alone.

        Raises InputError for a prompt that is too long, and what the model raises when it is asked that request alone.
        """
        rows = list(self._rows(requests))
        for row in rows:
            if row.error is not None:
                raise row.error
        rows.sort(key=lambda row: -len(row.prompt))
        answers = {}
        for place, answer in self._answers(iter(rows), max(1, len(rows))):
            if isinstance(answer, Exception):
                raise answer
            answers[place] = answer
        return [answers[place] for place in range(len(requests))]

    def each(self, requests: Iterable[Request], batch_size: int = 32) -> Iterator[tuple[int, str | Exception]]:
        """(place, answer or the reason why there is none) of every request, as they end; at most `batch_size` at once.

        Requests are taken as they are needed, in a thread of their own; sorted by length they waste little. Those
        that follow one another with the same image object share its pixels, so it must not be changed meanwhile.
        """
        yield from self._answers(ahead(self._rows(requests), 2 * batch_size), batch_size)

    def stream(self, request: Request) -> Iterator[str]:
        """The answer as it is made: the pieces joined are what `generate` gives. Closing the iterator ends it."""
        row = next(self._rows([request]))
        if row.error is not None:  # here, so that a bad request fails before the first piece
            raise row.error
        return _tidy(self._pieces(row), request.stop)

    def count_tokens(self, request: Request) -> int:
        """Tokens of the prompt, image tokens included."""
        return len(self._prompt(request))

    def close(self) -> None:
        """Let the model go, once the answers in the making have ended."""
        if hasattr(self, "model"):
            del self.model

    def _rows(self, requests: Iterable[Request]) -> Iterator[Row]:
        """What the model is given, request by request; with an error if it cannot be."""
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        last: list[tuple[Image, Picture]] = []  # of the request before
        for place, request in enumerate(requests):
            prompt = self._prompt(request)
            row = Row(
                place,
                prompt,
                max_new_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                stop=request.stop,
            )
            if limit is not None and len(prompt) + request.max_new_tokens > limit:
                row.error = InputError(
                    f"the prompt's {len(prompt)} tokens and max_new_tokens={request.max_new_tokens} are more than the "
                    f"{limit} tokens that the model takes: ask for less, or leave earlier turns out"
                )
            elif any(len(self._tokens(choice)) != 1 for choice in request.choices):
                row.error = InputError(
                    f"choices {', '.join(map(repr, request.choices))}: each must be one token of this model's; "
                    "give letters"
                )
            else:
                last = [
                    (image, next((picture for other, picture in last if other is image), None) or self._picture(image))
                    for image in request.images
                ]
                row.images = [picture for _, picture in last]
                row.choices = tuple(self._tokens(choice)[0] for choice in request.choices)
            yield row

    def _prompt(self, request: Request) -> NDArray[np.int64]:
        """The prompt's token ids; kept, as a template and a tokenizer cost more than a tiny model's step."""
        key = tuple((message.role, message.num_images, message.text) for message in request.messages)
        ids = self._prompts.get(key)
        if ids is None:
            ids = self._prompts[key] = chat.prompt_ids(self.processor, request.messages)
            if len(self._prompts) > _PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        return ids

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _picture(self, image: Image) -> Picture:
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies
        return Picture.of(pixels(self.processor.image_processor, [rgb])[0])

    def _encode(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        """The features (tokens, dim) of each of the pixels (images, 3, height, width)."""
        given = pixels.to(self.model.device, self.model.dtype)
        features: Sequence[torch.Tensor] = self.model.get_image_features(given, return_dict=True).pooler_output
        return features

    def _answers(self, rows: Iterator[Row], size: int) -> Iterator[tuple[int, str | Exception]]:
        for row in run(rows, size, self._batch, self._lock, self.name):
            yield row.place, row.error or _before_stop(self._text(row.tokens), row.stop).strip()

    def _pieces(self, row: Row) -> Iterator[str]:
        """All tokens so far are decoded each time: alone, a token may be half a character, or lose its space."""
        batch, sent = self._batch(), 0
        while not row.ended:
            with self._lock:
                batch.step() if batch.rows else batch.enter([row])
            text = self._text(row.tokens)
            if row.ended or not text.endswith("\ufffd"):  # else a character whose other bytes are to come
                yield text[sent:]
                sent = max(sent, len(text))

    def _batch(self) -> Batch:
        return Batch(self.model, self._features, self._text)

    def _text(self, tokens: list[int]) -> str:
        text: str = self.processor.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _name(path: Path) -> str:
    """The run's name, with the stage's if one is meant: not the whole path, which is shown to others."""
    names = [part for part in path.resolve().parts if part != "model"]
    return "/".join(names[-2:] if names[-1] in folder.STAGES_LAST_FIRST else names[-1:])


def _say_what_is_not_followed(name: str, settings: Any) -> None:
    """Answers are the most likely token each time, or drawn as the request says; a folder may want otherwise."""
    other = {
        key: value for key, neutral in _NOT_FOLLOWED.items() if (value := getattr(settings, key, None)) not in neutral
    }
    if other:
        told = ", ".join(f"{key}={value}" for key, value in other.items())
        print(f"{name}: generation_config.json says {told}, which is not followed", file=sys.stderr)


def _before_stop(text: str, stop: tuple[str, ...]) -> str:
    ends = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(ends, default=len(text))]


def _tidy(pieces: Iterator[str], stop: tuple[str, ...]) -> Iterator[str]:
    """The pieces of the text up to a stop string, stripped: what may yet turn out to be either is held back."""
    held, begun = "", False
    for piece in pieces:
        held += piece
        whole = _before_stop(held, stop)
        if len(whole) < len(held):
            held = whole
            break
        keep = max((n for word in stop for n in range(1, len(word)) if held.endswith(word[:n])), default=0)
        ready = held[: len(held) - keep].rstrip()
        shown = ready if begun else ready.lstrip()
        if shown:
            begun = True
            held = held[len(ready) :]
            yield shown
    rest = held.rstrip() if begun else held.strip()
    if rest:
        yield rest
