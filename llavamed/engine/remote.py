"""A model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama-server, `llavamed serve`, a hosted one.

In: requests. Out: their texts. Images travel inside the request as PNG data URLs, so the endpoint fetches
nothing.

The hard thing is to keep an endpoint busy without knowing it. Requests go in threads of their own, as many at a time
as `pace.py` finds that the endpoint takes; whoever reads the answers is the one who sends the next request. One that
was refused or got lost is sent again later, and gives up its place while it waits. What still fails is an error that
names the endpoint and the reason and concerns its request alone; an endpoint that refuses everyone, or is gone,
ends the run.

Secrets stay where they belong: OpenAI's key goes to OpenAI alone, and a password in the URL is used but not shown.
"""

from __future__ import annotations

import base64
import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import openai
from PIL.Image import Image

from llavamed.engine.dispatch import LONGEST_WAIT_SECONDS, Trouble, dispatch
from llavamed.engine.pace import CEILING, START, Pace, retry_after
from llavamed.engine.request import Request, Unanswered, public_name
from llavamed.errors import InputError

KEY, OPENAI_KEY = "LLAVAMED_API_KEY", "OPENAI_API_KEY"  # the second is for OPENAI_HOST alone
OPENAI_HOST = "api.openai.com"
_REFUSALS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)

# what a status says about trying again; one that is not here will not change its mind
_TROUBLES: dict[int, Literal["busy", "late", "lost"]] = {
    408: "late",
    409: "lost",
    429: "busy",
    500: "lost",
    502: "lost",
    503: "busy",
    504: "late",
    529: "busy",  # Anthropic's for overloaded
}
_SPENT = "insufficient_quota"  # OpenAI's code for a 429 that time does not heal
_CONNECT_SECONDS = 10.0
_UNREACHABLE = 32  # requests in a row that found nobody, and the endpoint is taken for gone
_IMAGES_KEPT = 32  # as data URLs


class RemoteError(Unanswered):
    """The endpoint gave no answer. `refused`: it would refuse every request (a wrong key, an unknown model); `billed`:
    it replied, without a text, and counted its tokens."""

    refused = False
    billed: Reply | None = None


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
        concurrency: int = CEILING,
        timeout_seconds: float = 300.0,
        max_retries: int = 4,
    ) -> None:
        url = base_url.rstrip("/")
        if not url.endswith("/v1"):
            url += "/v1"
        if api_key is None:
            parts = urlsplit(url)
            variables = (KEY, OPENAI_KEY) if (parts.scheme, parts.hostname) == ("https", OPENAI_HOST) else (KEY,)
            api_key = next((os.environ[name] for name in variables if os.environ.get(name)), "none")
        self.url, self._retries = public_name(url), max_retries
        self._concurrency, self._limit = concurrency, float(START)
        self._key = "" if api_key == "none" else api_key
        self._client = openai.OpenAI(
            base_url=url,
            api_key=api_key,
            timeout=openai.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
            max_retries=max_retries,
        )
        self.model = model or self._first_model()
        self.name = f"{self.url}#{self.model}"

    def generate(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in order. Raises RemoteError, with the whole batch's outcome, if there is one that failed."""
        replies = dict(self.replies(requests))
        outcomes = [_text(replies[place]) for place in range(len(requests))]
        failed = next((outcome for outcome in outcomes if isinstance(outcome, RemoteError)), None)
        if failed is not None:
            raise RemoteError(str(failed), outcomes)
        return [str(outcome) for outcome in outcomes]

    def each(self, requests: Iterable[Request], batch_size: int = 0) -> Iterator[tuple[int, str | RemoteError]]:
        """(place, answer or the reason why there is none) of every request, as they come; requests are taken as they
        are needed, in a thread of their own. `batch_size` is for engines that have one.

        Raises InputError if the endpoint refuses whatever it is asked.
        """
        answered = False
        for place, reply in self.replies(requests):
            answered = answered or isinstance(reply, Reply)
            if isinstance(reply, RemoteError) and reply.refused and not answered:
                raise InputError(f"{reply}; check the key in {KEY} and the name of the model")
            yield place, _text(reply)

    def replies(
        self, requests: Iterable[Request], more: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[int, Reply | RemoteError]]:
        """(place, reply or the reason why there is none) of every request, as they come, as many under way as the
        endpoint takes. `more` as for `complete`.

        Raises InputError if the endpoint is gone, or asks to be left alone for long.
        """
        pace = Pace(self._concurrency, self._limit)
        once, encode = self._client.with_options(max_retries=0), _DataUrls()
        unreachable = 0  # requests in a row

        def send(request: Request) -> Reply:
            return self._reply(once, {**self._body(request, encode), **(more or {})})

        try:
            for place, outcome in dispatch(requests, send, _trouble, pace, self._retries):
                unreachable = unreachable + 1 if type(outcome) is openai.APIConnectionError else 0
                if isinstance(outcome, Reply | RemoteError):
                    yield place, outcome
                elif not isinstance(outcome, openai.OpenAIError):
                    raise outcome  # a defect of ours
                elif unreachable >= _UNREACHABLE:
                    told = f"{self._explain(outcome)} {unreachable} requests in a row"
                    raise InputError(f"{told}; start it again and run this again")
                elif (seconds := _trouble(outcome).seconds or 0) > LONGEST_WAIT_SECONDS:
                    raise InputError(f"{self._explain(outcome)}; it asks to be left alone for {seconds:.0f} seconds")
                else:
                    yield place, self._explain(outcome)
        finally:
            self._limit = pace.limit

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
                f"{self.url}: no list of models ({self._reason(error)}); is it an OpenAI-compatible endpoint, is it "
                f"up, and is its key in {KEY}?"
            ) from None
        if not models:
            raise InputError(f"{self.url}: serves no model; start it with one, or name the model")
        return models[0].id

    def complete(self, request: Request, more: Mapping[str, Any] | None = None) -> Reply:
        """One answer. `more` are further fields of the body, such as `response_format`; None takes a field out.

        Raises RemoteError if there is no answer.
        """
        try:
            return self._reply(self._client, {**self._body(request), **(more or {})})
        except openai.OpenAIError as error:
            raise self._explain(error) from None

    def _reply(self, client: openai.OpenAI, body: Mapping[str, Any]) -> Reply:
        """Raises the client's errors as they are, RemoteError for a reply that is none."""
        try:
            completion = client.chat.completions.create(**{k: v for k, v in body.items() if v is not None})
        except ValueError as error:  # the client hands on what its JSON parser raises
            raise RemoteError(f"{self.url}, model {self.model!r}: a reply that is not JSON ({error})") from None
        choices = getattr(completion, "choices", None)  # an endpoint of another kind may send anything
        message = getattr(choices[0], "message", None) if choices else None
        text = getattr(message, "content", None)
        finish_reason = getattr(choices[0], "finish_reason", None) if choices else None
        usage = getattr(completion, "usage", None)
        reply = Reply(
            str(text or "").strip(),
            str(finish_reason or ""),
            getattr(usage, "prompt_tokens", 0) or 0,
            getattr(usage, "completion_tokens", 0) or 0,
        )
        if text is None:
            why = f" (finish_reason {finish_reason!r})" if choices else ""
            empty = RemoteError(f"{self.url}, model {self.model!r}: a reply without a text{why}")
            empty.billed = reply if message is not None else None
            raise empty
        return reply

    def _body(self, request: Request, encode: Callable[[Image], str] | None = None) -> dict[str, Any]:
        encode = encode or data_url
        images = iter(request.images)
        messages = []
        for message in request.messages:
            content: list[dict[str, Any]] = []
            for part in message.content:
                if part["type"] == "image":
                    content.append({"type": "image_url", "image_url": {"url": encode(next(images))}})
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
        told = RemoteError(f"{self.url}, model {self.model!r}: {self._reason(error)}")
        told.refused = isinstance(error, _REFUSALS)
        return told

    def _reason(self, error: openai.OpenAIError) -> str:
        """What an error says, without the key: some endpoints quote what they were sent."""
        text = " ".join(str(error).split())
        if self._key:
            text = text.replace(self._key, "[key]")  # before the cut, which may leave half of it
        return text[:300] or type(error).__name__


def data_url(image: Image) -> str:
    """The image as a PNG inside a URL: lossless, so that the endpoint sees the same pixels."""
    out = io.BytesIO()
    image.convert("RGB").save(out, format="PNG", compress_level=1)  # a third of the time, a fifth larger
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


class _DataUrls:
    """`data_url` that does not encode the same image object again for the next question about it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, tuple[Image, Future[str]]] = OrderedDict()  # holds the image: its id stays its own

    def __call__(self, image: Image) -> str:
        with self._lock:
            known = self._kept.get(id(image))
            if known is None:
                known = self._kept[id(image)] = (image, Future())
                if len(self._kept) > _IMAGES_KEPT:
                    self._kept.popitem(last=False)
                mine = True
            else:
                mine = False
        if mine:
            try:
                known[1].set_result(data_url(image))
            except BaseException as error:  # noqa: BLE001 - for all who wait for it
                known[1].set_exception(error)
        return known[1].result()


def _trouble(error: Exception) -> Trouble:
    """What an error of the client means for the next attempt."""
    if isinstance(error, openai.APITimeoutError):
        return Trouble("late")
    if isinstance(error, openai.APIConnectionError):
        return Trouble("lost")
    if isinstance(error, openai.APIStatusError) and error.code != _SPENT and error.status_code in _TROUBLES:
        return Trouble(_TROUBLES[error.status_code], retry_after(error.response.headers, time.time()))
    return Trouble("final")


def _text(reply: Reply | RemoteError) -> str | RemoteError:
    return reply.text if isinstance(reply, Reply) else reply
