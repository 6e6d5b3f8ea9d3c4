"""A model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama-server, `llavamed serve`, a hosted one.

In: requests. Out: their texts. Images travel inside the request as PNG data URLs, so the endpoint fetches
nothing; several requests are under way at once; the client waits and tries again where the endpoint says
it is busy or does not answer. What still fails is an error that names the endpoint and the reason, and brings
along the answers to the rest of the batch.

Secrets stay where they belong: OpenAI's key goes to OpenAI alone, and a password in the URL is used but not shown.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai
from PIL.Image import Image

from llavamed.engine.request import Request, Unanswered, public_name
from llavamed.errors import InputError

KEY, OPENAI_KEY = "LLAVAMED_API_KEY", "OPENAI_API_KEY"  # the second is for OPENAI_HOST alone
OPENAI_HOST = "api.openai.com"
_REFUSALS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class RemoteError(Unanswered):
    """The endpoint gave no answer. `refused`: it would refuse every request (a wrong key, an unknown model)."""

    refused = False


@dataclass(frozen=True)
class Reply:
    """One answer, and what the endpoint said about it; 0 tokens where it did not say."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class RemoteEngine:
    """Asks `model` at `base_url` (with or without /v1). An empty model name means the endpoint's first.

    The key is that given, else LLAVAMED_API_KEY, else, for api.openai.com over https, OPENAI_API_KEY.
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
            parts = urlsplit(url)
            variables = (KEY, OPENAI_KEY) if (parts.scheme, parts.hostname) == ("https", OPENAI_HOST) else (KEY,)
            api_key = next((os.environ[name] for name in variables if os.environ.get(name)), "none")
        self.url, self._concurrency = public_name(url), concurrency
        self._key = "" if api_key == "none" else api_key
        self._client = openai.OpenAI(base_url=url, api_key=api_key, timeout=timeout_seconds, max_retries=max_retries)
        self.model = model or self._first_model()
        self.name = f"{self.url}#{self.model}"

    def generate(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in order. Raises RemoteError, with the whole batch's outcome, if there is one that failed."""
        with ThreadPoolExecutor(min(self._concurrency, max(1, len(requests)))) as pool:
            outcomes = list(pool.map(self._outcome, requests))
        failed = next((outcome for outcome in outcomes if isinstance(outcome, RemoteError)), None)
        if failed is not None:
            raise RemoteError(str(failed), outcomes)
        return [str(outcome) for outcome in outcomes]

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
                f"and is its key in {KEY}?"
            ) from None
        if not models:
            raise InputError(f"{self.url}: serves no model; start it with one, or name the model")
        return models[0].id

    def complete(self, request: Request, more: Mapping[str, Any] | None = None) -> Reply:
        """One answer. `more` are further fields of the body, such as `response_format`; None takes a field out.

        Raises RemoteError if there is no answer.
        """
        body = {**self._body(request), **(more or {})}
        try:
            completion = self._client.chat.completions.create(**{k: v for k, v in body.items() if v is not None})
        except openai.OpenAIError as error:
            raise self._explain(error) from None
        except ValueError as error:  # the client hands on what its JSON parser raises
            raise RemoteError(f"{self.url}, model {self.model!r}: a reply that is not JSON ({error})") from None
        choices = getattr(completion, "choices", None)  # an endpoint of another kind may send anything
        text = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
        finish_reason = getattr(choices[0], "finish_reason", None) if choices else None
        if text is None:
            why = f" (finish_reason {finish_reason!r})" if choices else ""
            raise RemoteError(f"{self.url}, model {self.model!r}: a reply without a text{why}")
        usage = getattr(completion, "usage", None)
        return Reply(
            str(text).strip(),
            str(finish_reason or ""),
            getattr(usage, "prompt_tokens", 0) or 0,
            getattr(usage, "completion_tokens", 0) or 0,
        )

    def _outcome(self, request: Request) -> str | RemoteError:
        try:
            return self.complete(request).text
        except RemoteError as error:
            return error

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
        reason = _reason(error)
        if self._key:
            reason = reason.replace(self._key, "[key]")  # some endpoints quote what they were sent
        told = RemoteError(f"{self.url}, model {self.model!r}: {reason}")
        told.refused = isinstance(error, _REFUSALS)
        return told


def data_url(image: Image) -> str:
    """The image as a PNG inside a URL: lossless, so that the endpoint sees the same pixels."""
    out = io.BytesIO()
    image.convert("RGB").save(out, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _reason(error: openai.OpenAIError) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
