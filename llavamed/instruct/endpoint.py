"""One call to an OpenAI-compatible endpoint, and what its failure means.

In: the body of a chat completion. Out: a `Reply`, or one of three failures that say what helps:

    Busy       refused for now (429): the same again, after as long as the endpoint says
    Faltered   broke on the way (5xx, no connection, silence, a stream that was cut): the same again, a little later
    Declined   this request will not be answered, however often it is sent: the record is lost, its neighbours are not

and `InputError` for what would fail every record (a wrong key, no such model, no credit, a web page).

Answers are streamed. Not for their words, which are read when all have come, but because a stream shows that it is
alive: a call that hangs is known by its silence in seconds, where a whole answer may honestly take minutes; and a
stream that ends without saying so was cut.

Endpoints differ in what they understand. What a model is known not to take is left out from the start (`without`).
Until the first answer has come, an error 400 or 422 is read for the name of a
parameter, and that one is given up (`CONCESSIONS`): a JSON schema for "some JSON object", then for none; the seed; the
count of tokens; streaming. After it the same error concerns its own record.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2  # what the openai client is made of: its errors come through while a stream is read
import openai

from llavamed.engine.pace import retry_after
from llavamed.engine.request import public_name
from llavamed.errors import InputError
from llavamed.instruct.pace import Allowance, Patience

# What is given up, in this order, when the endpoint does not understand it, and the words by which an error means it.
CONCESSIONS = (
    ("schema", "response_format|json_schema|schema|guided"),
    ("object", "response_format|json_object|grammar"),
    ("usage", "stream_options|include_usage"),
    ("seed", "seed"),
    ("max_tokens", "max_tokens|max_completion_tokens"),
    ("temperature", "temperature"),
    ("stream", "stream|streaming"),
)
LENGTH = "length"  # how an answer ends that reached max_tokens
_TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum context|too (long|large|many tokens)", re.I)
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
_CHARACTERS_PER_TOKEN = 4.0  # of English; where the endpoint does not count


TEACHER_KEY, JUDGE_KEY = "LLAVAMED_TEACHER_KEY", "LLAVAMED_JUDGE_KEY"  # for whatever endpoint the recipe names
OPENAI_KEY = "OPENAI_API_KEY"  # for OpenAI alone: a key is not shown to another host than the one it is for
_OPENAI_HOST = "api.openai.com"


def connect(
    url: str, model: str, what: str, key_name: str, timeout_seconds: float, without: Sequence[str] = ()
) -> Endpoint:
    """The endpoint at `url`, which `what` (a key of the recipe) names; `without` are the `CONCESSIONS` to begin with.
    Raises InputError for what is no URL, or without a model's name; the endpoint itself is not asked yet."""
    try:
        parts = urlsplit(url)
        readable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        readable = False
    if not readable:  # not shown: what cannot be read as a URL may hold a password anywhere
        raise InputError(f"{what}: not a URL that can be read; give a URL such as http://localhost:8000/v1")
    url = parts._replace(path=parts.path.rstrip("/") or "/v1").geturl()  # one address, however it is written
    if not model:
        option = f"--{what.rpartition('.')[2]}-model"
        raise InputError(f"{what} {public_name(url)}: name its model with {option} ({what}_model in a recipe)")
    is_openai = (parts.scheme, parts.hostname) == ("https", _OPENAI_HOST)
    names = (key_name, OPENAI_KEY) if is_openai else (key_name,)
    return Endpoint(url, model, _key(names), " or ".join(names), timeout_seconds, without)


def _key(names: tuple[str, ...]) -> str:
    """The first of these variables that is set; a key read from a file may end in a newline."""
    for name in names:
        key = os.environ.get(name, "").strip()
        if not (key.isascii() and key.isprintable()):  # the client would show it in its error
            raise InputError(f"{name}: holds a character that no key has; set it to the key alone")
        if key:
            return key
    return ""


class Busy(RuntimeError):
    """Refused for now; `wait` is how long, in seconds, if the endpoint said so."""

    def __init__(self, why: str, wait: float | None) -> None:
        super().__init__(why)
        self.wait = wait


class Faltered(RuntimeError):
    """Broke on the way; `tokens` (in, out) may be on the bill all the same."""

    def __init__(self, why: str, tokens: tuple[int, int] = (0, 0)) -> None:
        super().__init__(why)
        self.tokens = tokens


class Declined(RuntimeError):
    """This request will not be answered."""


@dataclass(frozen=True)
class Reply:
    text: str
    tokens: tuple[int, int]  # in and out
    counted: bool  # by the endpoint; otherwise by the length of the text
    finish: str  # "stop", "length", ...


class Endpoint:
    """Calls `model` at `url`. The key goes into the request and nowhere else; `where` is the URL as it may be shown."""

    def __init__(
        self, url: str, model: str, key: str, key_name: str, timeout_seconds: float, without: Sequence[str] = ()
    ) -> None:
        self.where, self.model = public_name(url), model
        self._key, self._key_name = key, key_name
        self.requests, self.tokens = Allowance(), Allowance()
        self.patience = Patience(timeout_seconds, least=min(5.0, timeout_seconds))
        self._without = tuple(without)
        self.given_up: list[str] = list(without)
        self.proven = False
        self._streams = True  # until an answer has come in one piece
        self._flights: set[_Flight] = set()
        self._client = openai.AsyncOpenAI(  # the client insists on some key; silence and retries are seen to here
            base_url=url, api_key=key or "none", max_retries=0, timeout=httpx2.Timeout(None, connect=20.0)
        )

    def summary(self) -> dict[str, Any]:
        return {"given_up": self.given_up} if self.given_up else {}

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The answer to a chat completion. `body` may hold more than the endpoint understands."""
        while True:
            asked = list(self.given_up)
            try:
                reply = await self._ask(_streamed(reworded(body, self.given_up), self.given_up))
            except _NotUnderstood as error:
                if asked != self.given_up:  # a neighbour has learned it in the meantime
                    continue
                if self.proven or _TOO_LONG.search(str(error)) or not self._give_up(str(error)):
                    raise Declined(str(error)) from None
                continue
            self.proven = True
            return reply

    def end_silent(self) -> None:
        """Give up the calls that have been silent for too long; to be called now and then."""
        now = time.monotonic()
        for flight in self._flights:
            if now - flight.heard > self.patience.limit:
                flight.end()

    def forgive(self, seconds: float) -> None:
        """So long nobody listened: it does not count as the endpoint's silence."""
        for flight in self._flights:
            flight.heard += seconds

    def _give_up(self, why: str) -> bool:
        left = [name for name, _ in CONCESSIONS if name not in self.given_up]
        self.given_up += meant(why, left) or left[:1]
        if not left:
            self.given_up[:] = self._without  # it was the record's own fault
        return bool(left)

    async def _ask(self, body: dict[str, Any]) -> Reply:
        flight = _Flight()
        answer = _Answer(estimate(json.dumps(body["messages"], ensure_ascii=False)))
        try:
            async with asyncio.timeout(None) as flight.watch:
                self._flights.add(flight)
                create = self._client.chat.completions.with_streaming_response.create
                # the body as it is, not as an argument: the client walks through arguments for half of a call's time
                async with create(model=self.model, messages=[], stream=body["stream"], extra_body=body) as response:
                    self._hear(response.headers)
                    kind = response.headers.get("content-type", "")
                    if "event-stream" in kind:
                        await _read_events(response.iter_lines(), answer, flight.hear)
                    else:
                        data = await response.read()
                        self._streams = False
                        _read_whole(data, kind, answer)
                    flight.hear()
        except TimeoutError:
            limit = self.patience.limit
            self.patience.cut()
            tokens = answer.tokens
            if not self._streams:  # it may have been nearly whole
                tokens = (
                    tokens[0],
                    max(tokens[1], int(body.get("max_tokens") or body.get("max_completion_tokens") or 0)),
                )
            raise Faltered(f"silent for {limit:.0f} seconds", tokens) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise Faltered(self._told(error.__cause__ or error), answer.paid) from None
        except openai.APIStatusError as error:
            raise self._meaning(error) from None
        except _WebPage as error:
            if not self.proven:
                raise InputError(f"{self.where}: {error}; give the base URL of an OpenAI-compatible endpoint") from None
            raise Faltered(str(error)) from None
        except openai.OpenAIError as error:
            raise Faltered(self._told(error), answer.paid) from None
        finally:
            self._flights.discard(flight)
        if answer.refusal:
            raise Declined(f"refused: {self._told(answer.refusal)}")
        if answer.error or not answer.finish:
            raise Faltered(self._told(answer.error or "the stream was cut"), answer.paid)
        if answer.finish == "content_filter":
            raise Declined("stopped by the endpoint's content filter")
        self.patience.ended(flight.silence)
        return Reply(answer.text, answer.tokens, answer.counted, answer.finish)

    def _hear(self, headers: Mapping[str, str]) -> None:
        now = time.monotonic()
        self.requests.heard(headers, "requests", now)
        self.tokens.heard(headers, "tokens", now)

    def _meaning(self, error: openai.APIStatusError) -> Exception:
        status, said, headers = error.status_code, self._told(error), error.response.headers
        if status == 401 or (status == 403 and not self.proven):
            return InputError(f"{self.where}: the key was refused; set {self._key_name} to one that is valid")
        if status == 404 and not self.proven:
            return InputError(f"{self.where}: no model {self.model!r} there (404); mend the URL or the model's name")
        if status == 402 or (status == 429 and any(code in said for code in _NO_CREDIT)):
            return InputError(f"{self.where}: the account has no credit left ({said}); what was answered is kept")
        if status == 429:
            self._hear(headers)
            return Busy(said, retry_after(headers, time.time()))
        if status in (400, 422):
            return _NotUnderstood(said)
        if status in (404, 408, 409, 425) or status >= 500:
            wait = retry_after(headers, time.time())  # an overloaded endpoint (503, 529) may say when to come back
            return Faltered(said) if wait is None else Busy(said, wait)
        return Declined(said)

    def _told(self, said: object) -> str:
        text = " ".join(str(said).split()) or type(said).__name__
        return (text.replace(self._key, "[key]") if self._key else text)[:300]


class _NotUnderstood(RuntimeError):
    """400 or 422: a parameter, or this record."""


class _WebPage(RuntimeError):
    """What came is no chat completion."""


class _Flight:
    """A call under way: when it was last heard of, and its longest silence."""

    def __init__(self) -> None:
        self.heard, self.silence = time.monotonic(), 0.0
        self.watch: asyncio.Timeout | None = None

    def hear(self) -> None:
        now = time.monotonic()
        self.silence, self.heard = max(self.silence, now - self.heard), now

    def end(self) -> None:
        if self.watch is not None and not self.watch.expired():
            self.watch.reschedule(asyncio.get_running_loop().time())


class _Answer:
    """What has come so far."""

    def __init__(self, sent: int) -> None:
        self._pieces: list[str] = []
        self._sent, self._usage = sent, (0, 0)
        self.finish = self.error = self.refusal = ""
        self.counted = False

    @property
    def text(self) -> str:
        # a lone surrogate, as a tokenizer may cut one, can be written to no file
        return "".join(self._pieces).encode("utf-8", "replace").decode()

    @property
    def tokens(self) -> tuple[int, int]:
        return self._usage if self.counted else (self._sent, estimate("".join(self._pieces)))

    @property
    def paid(self) -> tuple[int, int]:
        """The tokens if anything has come; a call that broke before is on no bill."""
        return self.tokens if self.tokens[1] else (0, 0)

    def add(self, body: dict[str, Any]) -> None:
        """A whole completion, or a piece of one."""
        try:
            self._add(body)
        except (AttributeError, TypeError, ValueError):
            raise _WebPage("sent JSON that is no chat completion") from None

    def _add(self, body: dict[str, Any]) -> None:
        if body.get("error"):
            error = body["error"]
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)
        for choice in body.get("choices") or ():
            message = choice.get("delta") or choice.get("message") or {}
            self._pieces.append(text_of(message.get("content")))
            self.refusal += text_of(message.get("refusal"))
            self.finish = choice.get("finish_reason") or self.finish
        usage = body.get("usage")
        if usage and usage.get("prompt_tokens") is not None:
            self._usage = (int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0))
            self.counted = True


def text_of(content: Any) -> str:
    """A message's content: a text, or a list of parts of which some are texts. Raises TypeError for anything else."""
    if isinstance(content, list):
        return "".join(text_of(part["text"]) for part in content if "text" in part)
    if content is not None and not isinstance(content, str):
        raise TypeError("neither a text nor a list of parts")
    return content or ""


async def _read_events(lines: AsyncIterator[str], answer: _Answer, hear: Callable[[], None]) -> None:
    """Server-sent events; comments, which some endpoints send to keep a line open, are no sign of life."""
    async for line in lines:
        if not line.startswith("data:"):
            continue
        hear()
        data = line[5:].strip()
        if data == "[DONE]":
            answer.finish = answer.finish or "stop"
            return
        answer.add(_object(data, "text/event-stream"))


def _read_whole(data: bytes, kind: str, answer: _Answer) -> None:
    answer.add(_object(data.decode("utf-8", "replace"), kind))
    if not (answer.text or answer.finish or answer.error):
        raise _WebPage("sent JSON that is no chat completion")
    answer.finish = answer.finish or "stop"


def _object(text: str, kind: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        what = "a web page" if "<html" in text[:500].lower() else f"no JSON ({kind or 'of no content type'})"
        raise _WebPage(f"sent {what}, not a chat completion") from None
    if not isinstance(body, dict):
        raise _WebPage("sent JSON that is no chat completion")
    return body


def meant(why: str, names: Sequence[str]) -> list[str]:
    """Which of these concessions an error asks for: those whose parameter it names."""
    found = [name for name, words in CONCESSIONS if name in names and re.search(rf"\b({words})\b", why, re.I)]
    if _TOO_LONG.search(why):
        return []
    if "schema" in found and "object" in found:
        found.remove("object")  # the weaker form may be understood
    return found


def reworded(body: Mapping[str, Any], given_up: Sequence[str]) -> dict[str, Any]:
    """The body in words that the endpoint understands."""
    body = dict(body)
    if "schema" in given_up and "response_format" in body:
        body["response_format"] = {"type": "json_object"}
    if "max_tokens" in given_up and "max_tokens" in body:  # the newer name, which OpenAI's reasoning models insist on
        body["max_completion_tokens"] = body.pop("max_tokens")
    leave = {"object": "response_format", "seed": "seed", "temperature": "temperature"}
    for name in given_up:
        body.pop(leave.get(name, ""), None)
    return body


def _streamed(body: dict[str, Any], given_up: Sequence[str]) -> dict[str, Any]:
    if "stream" in given_up:
        return {**body, "stream": False}
    counted = {} if "usage" in given_up else {"stream_options": {"include_usage": True}}
    return {**body, "stream": True, **counted}


def estimate(text: str) -> int:
    """About how many tokens a text has; of an image's data URL only its mark counts."""
    return round(len(re.sub(r"data:image/[^\"]*", "", text).encode()) / _CHARACTERS_PER_TOKEN)
