"""A model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama-server, `llavamed serve`, a hosted one.

In: requests. Out: their texts. Images travel inside the request as PNG data URLs, so the endpoint fetches
nothing; several requests are under way at once; the client waits and tries again where the endpoint says
it is busy or does not answer. What still fails is an error that names the endpoint and the reason.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
from PIL.Image import Image

from llavamed.engine.request import Request
from llavamed.errors import InputError

KEY_VARIABLES = ("LLAVAMED_API_KEY", "OPENAI_API_KEY")


class RemoteError(RuntimeError):
    """The endpoint gave no answer to one request."""


class RemoteEngine:
    """Asks `model` at `base_url` (with or without /v1). An empty model name means the endpoint's first.

    The key is that given, or of the first variable set in KEY_VARIABLES.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "",
        api_key: str | None = None,
        *,
        concurrency: int = 8,
        timeout_seconds: float = 120.0,
        max_retries: int = 4,
    ) -> None:
        url = base_url.rstrip("/")
        if not url.endswith("/v1"):
            url += "/v1"
        if api_key is None:
            api_key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "none")
        self.url, self._concurrency = url, concurrency
        self._client = openai.OpenAI(base_url=url, api_key=api_key, timeout=timeout_seconds, max_retries=max_retries)
        self.model = model or self._first_model()
        self.name = f"{url}#{self.model}"

    def generate(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in order. Raises RemoteError for the first request that failed, after all have ended."""
        with ThreadPoolExecutor(min(self._concurrency, max(1, len(requests)))) as pool:
            futures = [pool.submit(self._answer, request) for request in requests]
        return [future.result() for future in futures]

    def stream(self, request: Request) -> Iterator[str]:
        """The answer as it arrives. Closing the iterator closes the connection, which stops a good endpoint."""
        try:
            with self._client.chat.completions.create(**self._body(request), stream=True) as events:
                for event in events:
                    if event.choices and event.choices[0].delta.content:
                        yield event.choices[0].delta.content
        except openai.OpenAIError as error:
            raise self._explain(error) from None

    def close(self) -> None:
        self._client.close()

    def _first_model(self) -> str:
        try:
            models = self._client.models.list().data
        except openai.OpenAIError as error:
            raise InputError(
                f"{self.url}: no list of models ({_reason(error)}); is it an OpenAI-compatible endpoint, is it up, "
                f"and is its key in {KEY_VARIABLES[0]}?"
            ) from None
        if not models:
            raise InputError(f"{self.url}: serves no model; start it with one, or name the model")
        return models[0].id

    def _answer(self, request: Request) -> str:
        try:
            completion = self._client.chat.completions.create(**self._body(request))
        except openai.OpenAIError as error:
            raise self._explain(error) from None
        return (completion.choices[0].message.content or "").strip() if completion.choices else ""

    def _body(self, request: Request) -> dict[str, Any]:
        images = iter(request.images)
        messages = []
        for message in request.messages:
            content: list[dict[str, Any]] = []
            for part in message.content:
                if part["type"] == "image":
                    content.append({"type": "image_url", "image_url": {"url": data_url(next(images))}})
                else:
                    content.append({"type": "text", "text": part["text"]})
            # endpoints without vision want a string
            plain = message.text if message.num_images == 0 else content
            messages.append({"role": message.role, "content": plain})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        return body

    def _explain(self, error: openai.OpenAIError) -> RemoteError:
        return RemoteError(f"{self.url}, model {self.model!r}: {_reason(error)}")


def data_url(image: Image) -> str:
    """The image as a PNG inside a URL: lossless, so that the endpoint sees the same pixels."""
    out = io.BytesIO()
    image.convert("RGB").save(out, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _reason(error: openai.OpenAIError) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
