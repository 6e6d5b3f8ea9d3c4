"""Our engine as a model of lmms-eval (the class that `harness.lmms_eval_models` names; read: lmms-eval 0.7.3).

lmms-eval hands over requests, each with a function from a data set's row to chat messages; here they become the
engine's requests, asked in batches of equal decoding settings, longest first. What the task does not say is greedy.

A request that fails does not end the run: its answer is the mark that lmms-eval's own API models write, which
`llavamed eval import` reads as a failure and not as an answer. Video, audio and likelihoods are refused, not imitated.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image

from llavamed.engine import Request, Unanswered, connect
from llavamed.errors import InputError
from llavamed.imaging.decode import decode
from llavamed.progress import Progress
from llavamed.records import Message

FAILED = "[LMMS_EVAL_REQUEST_FAILED] "


class LlavaMed(lmms):
    """`pretrained` is a run, stage or model folder, or URL#model; the other arguments are lmms-eval's."""

    is_simple = False

    def __init__(self, pretrained: str, batch_size: int | str = 1, max_new_tokens: int = 256, **more: Any) -> None:
        super().__init__()
        unknown = more.keys() - {"device", "max_batch_size"}  # lmms-eval always gives these two
        if unknown:
            raise InputError(f"model_args {', '.join(sorted(unknown))}: unknown; give pretrained and max_new_tokens")
        if not str(batch_size).isdecimal():
            raise InputError(f"batch_size {batch_size!r}: give a number")
        self.engine = connect(pretrained)
        self.batch_size = int(batch_size)
        self._max_new_tokens = int(max_new_tokens)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        asked = [self._request(instance) for instance in requests]
        order = sorted(range(len(asked)), key=lambda i: (_settings(asked[i]), -len(asked[i].messages[-1].text)))
        answers = [""] * len(asked)
        with Progress("llavamed", len(asked), "answers") as progress:
            for batch in _batches(order, asked, self.batch_size):
                for index, answer in zip(batch, self._answers([asked[i] for i in batch]), strict=True):
                    answers[index] = answer
                progress.advance(len(batch))
        for instance, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (instance.args[0], instance.args[2]), answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise InputError("llavamed generates answers; likelihood tasks of lmms-eval are not supported")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise InputError("llavamed answers one round; multi-round tasks of lmms-eval are not supported")

    def _request(self, instance: Any) -> Request:
        _, doc_to_messages, settings, doc_id, task, split = instance.args
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        images: list[Image.Image] = []
        messages = []
        for message in chat.messages:
            parts: list[dict[str, str]] = []
            for part in message.content:
                if part.type == "text":
                    parts.append({"type": "text", "text": part.text})
                elif part.type == "image":
                    parts.append({"type": "image"})
                    images.append(_image(part.url))
                else:
                    raise InputError(f"task {task}: it shows {part.type}; llavamed looks at images only")
            messages.append(Message(message.role, tuple(parts)))
        until = settings.get("until") or []
        sampled = settings.get("do_sample", True) and (settings.get("temperature") or 0.0) > 0
        return Request(
            tuple(messages),
            tuple(images),
            max_new_tokens=int(settings.get("max_new_tokens") or self._max_new_tokens),
            temperature=float(settings["temperature"]) if sampled else 0.0,
            top_p=float(settings.get("top_p") or 1.0) if sampled else 1.0,
            stop=tuple([until] if isinstance(until, str) else until),
        )

    def _answers(self, batch: list[Request]) -> list[str]:
        try:
            return self.engine.generate(batch)
        except Unanswered as error:
            outcomes = error.answers or [error] * len(batch)
            return [text if isinstance(text, str) else f"{FAILED}{text}" for text in outcomes]


def _image(value: Any) -> Image.Image:
    """A row holds a decoded image, a path, or the bytes of a file."""
    if isinstance(value, Image.Image):
        out = io.BytesIO()
        value.save(out, format="PNG")
        return decode(out.getvalue(), "image")  # as we decode every image: transparency, 16 bits
    if isinstance(value, bytes):
        return decode(value, "image")
    with open(value, "rb") as file:
        return decode(file.read(), str(value))


def _settings(request: Request) -> tuple[Any, ...]:
    return request.max_new_tokens, request.temperature, request.top_p, request.stop


def _batches(order: Sequence[int], asked: Sequence[Request], size: int) -> list[list[int]]:
    """Runs of `order` with the same settings, `size` at most."""
    batches: list[list[int]] = []
    for index in order:
        last = batches[-1] if batches else []
        if last and len(last) < size and _settings(asked[last[0]]) == _settings(asked[index]):
            last.append(index)
        else:
            batches.append([index])
    return batches
