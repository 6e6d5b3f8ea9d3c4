"""A folder's model in this process.

In: requests. Out: their texts. Answers come from Hugging Face's own `generate`, so that they are those of
the folder loaded by anyone else, token for token.

The hard things are three. A batch must not change an answer: prompts are padded at the left, so that every
answer begins in the same column, and the padding is masked. A stream must end when its reader has enough:
generation runs in a thread, looks at a flag at every token, and the flag is set when the generator is
closed. And a stop string may arrive in pieces: the tail that could still become one is held back.

One generation runs at a time; others wait at a lock, so a stream must be read to its end or closed before
the same thread asks again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llavamed.engine.request import Request
from llavamed.errors import InputError
from llavamed.model import chat, folder


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

    def generate(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in order. Requests that ask alike (length, sampling) go through the model together;
        those that sample go alone, so that a seed means the same in any company."""
        answers: dict[int, str] = {}
        together: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            if request.temperature > 0:
                answers[i] = self._answers([request])[0]
            else:
                together.setdefault((request.max_new_tokens, request.stop), []).append(i)
        for group in together.values():
            answers.update(zip(group, self._answers([requests[i] for i in group]), strict=True))
        return [answers[i] for i in range(len(requests))]

    def stream(self, request: Request) -> Iterator[str]:
        """The answer as it is made: the pieces joined are what `generate` gives. Closing the iterator ends it."""
        inputs = self._inputs([request])  # here, so that a bad request fails before the first piece
        return self._pieces(request, inputs)

    def count_tokens(self, request: Request) -> int:
        """Tokens of the prompt, image tokens included."""
        return len(chat.prompt_ids(self.processor, request.messages))

    def close(self) -> None:
        """Wait for the answer in the making and let the model go."""
        with self._lock:
            if hasattr(self, "model"):
                del self.model

    def _inputs(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (requests, tokens), padded at the left; `pixel_values` of all images."""
        prompts = [chat.prompt_ids(self.processor, request.messages) for request in requests]
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        for ids, request in zip(prompts, requests, strict=True):
            if limit is not None and len(ids) + request.max_new_tokens > limit:
                raise InputError(
                    f"the prompt's {len(ids)} tokens and max_new_tokens={request.max_new_tokens} are more than the "
                    f"{limit} tokens that the model takes: ask for less, or leave earlier turns out"
                )
        longest = max(map(len, prompts))
        padded = np.full((len(prompts), longest), self.processor.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, ids in enumerate(prompts):
            padded[row, longest - len(ids) :] = ids
            mask[row, longest - len(ids) :] = 1
        inputs = {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask)}
        images = [image.convert("RGB") for request in requests for image in request.images]
        if images:
            pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
            inputs["pixel_values"] = pixels.to(self.model.dtype)
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def _answers(self, requests: Sequence[Request]) -> list[str]:
        inputs = self._inputs(requests)
        with self._lock:
            tokens = self._run(requests[0], inputs)
        texts = self.processor.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [_before_stop(text, request.stop).strip() for text, request in zip(texts, requests, strict=True)]

    def _run(self, request: Request, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
        """`generate` with the request's sampling, under the lock. The seed is this call's alone."""
        tokenizer = self.processor.tokenizer
        settings: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            settings = {
                "do_sample": True,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": 0,
            }
        if request.stop:
            settings |= {"stop_strings": list(request.stop), "tokenizer": tokenizer}
        devices = [inputs["input_ids"].device] if inputs["input_ids"].is_cuda else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices, enabled=request.seed is not None):
            if request.seed is not None:
                torch.manual_seed(request.seed)
            tokens: torch.Tensor = self.model.generate(
                **inputs,
                max_new_tokens=request.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                **settings,
                **more,
            )
        return tokens

    def _pieces(self, request: Request, inputs: dict[str, torch.Tensor]) -> Iterator[str]:
        streamer, cancel = _Streamer(self.processor.tokenizer), threading.Event()
        stopping = StoppingCriteriaList([_Cancelled(cancel)])
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self._run(request, inputs, streamer=streamer, stopping_criteria=stopping)
            except BaseException as error:  # noqa: BLE001 - raised again in the reader's thread
                failed.append(error)
            finally:
                streamer.finish()

        with self._lock:
            worker = threading.Thread(target=work, name="answer", daemon=True)
            worker.start()
            try:
                yield from _tidy(iter(streamer.pieces.get, None), request.stop)
            finally:
                cancel.set()
                worker.join()
        if failed:
            raise failed[0]


def _name(path: Path) -> str:
    """The run's name, with the stage's if one is meant: not the whole path, which is shown to others."""
    names = [part for part in path.resolve().parts if part != "model"]
    return "/".join(names[-2:] if names[-1] in folder.STAGES_LAST_FIRST else names[-1:])


class _Streamer(BaseStreamer):
    """Receives tokens from `generate`; `pieces` receives their text, and None at the end.

    All tokens so far are decoded each time: alone, a token may be half a character, or lose its space.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._tokenizer = tokenizer
        self._tokens: list[int] | None = None  # None until the prompt has gone by
        self._sent = 0  # characters

    def put(self, value: torch.Tensor) -> None:
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += value.flatten().tolist()
        text = self._text()
        if not text.endswith("\ufffd"):  # else a character whose other bytes are to come
            self._send(text)

    def end(self) -> None:
        """Called by `generate`; the worker calls `finish`, also after an error."""

    def finish(self) -> None:
        self._send(self._text())
        self.pieces.put(None)

    def _text(self) -> str:
        text: str = self._tokenizer.decode(
            self._tokens or [], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _send(self, text: str) -> None:
        if len(text) > self._sent:
            self.pieces.put(text[self._sent :])
            self._sent = len(text)


class _Cancelled(StoppingCriteria):
    """True for every row once the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)


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
