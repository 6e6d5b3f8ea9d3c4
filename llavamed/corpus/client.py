"""A polite, stubborn HTTP client: every object arrives whole and verified, or there is a reason why not.

A download of millions of files meets everything: connections cut, servers that are busy, bodies cut short or
changed. The rules:

- at most `concurrency` requests at once over kept connections; a server's Retry-After is heeded;
- what may pass is tried again (no connection, 429, 5xx, a body cut short, a wrong MD5), after a pause that doubles
  each time and is drawn at random, so that many requests do not come back together (Brooker, "Exponential backoff and
  jitter", 2015); what will not pass (404, 403, a redirect) is not;
- 404 says that there is no such object. 403 does not, nor does a redirect: a proxy or a login page gives them for all;
- an answer that comes slower than a kilobyte a second is given up, or one of a byte a minute would never end;
- a file appears under its name only once all of its bytes have the right MD5: it is written beside and renamed. So a
  killed run leaves no half file, and the next one needs no record of what is whole;
- when many requests in a row have failed the server is gone, and the run ends instead of trying a million more.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx2

from llavamed import __version__
from llavamed.errors import InputError

T = TypeVar("T")
_Attempt = Callable[[httpx2.Response], Awaitable[T]]

ATTEMPTS = 8
_LONGEST_PAUSE = 60.0  # seconds
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NEVER = {301: "redirected", 302: "redirected", 303: "redirected", 307: "redirected", 308: "redirected"}
_NEVER |= {401: "forbidden", 403: "forbidden", 407: "forbidden", 511: "forbidden"}  # status -> why; others: "refused"
_SLOWEST = 1024  # bytes a second, of an answer that takes longer than the timeout
_FAILURES_IN_A_ROW = 100  # attempts without a success between, over all requests
_IN_MEMORY = 8 * 2**20  # bytes; of what is read, not written
_MD5_LENGTH = 32


class Missing(Exception):
    """The server says that there is no such object (404, 410)."""


class Failed(Exception):
    """All attempts failed, or none is worth making. `reason`: "unreachable", "busy", "cut_short", "too_slow",
    "wrong_md5", "too_large", "forbidden", "redirected", "refused"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Saved(NamedTuple):
    """A file as it was written. What has no MD5 was not verified; what has no length either may have been cut."""

    bytes: int
    has_md5: bool
    has_length: bool


@dataclass
class _Passing(Exception):
    """One attempt failed in a way that may pass; the server may have said when to come back."""

    reason: str
    message: str
    after: float = 0.0  # seconds


@dataclass
class Client:
    """An async context manager over one server. `partial` is a folder on the file system of all that is written."""

    base_url: str
    partial: Path
    concurrency: int = 16
    pause: float = 0.5  # seconds, of the first retry at most
    timeout: float = 60.0  # seconds without a byte
    requests: int = 0
    retries: int = 0
    received: int = 0  # bytes
    unverified: int = 0  # files without an MD5
    _in_a_row: int = 0
    _names: itertools.count[int] = field(default_factory=itertools.count)

    async def __aenter__(self) -> Self:
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"{self.base_url!r}: no web address; give --base-url http://HOST/PATH or leave it out")
        self.partial.mkdir(parents=True, exist_ok=True)
        for left in self.partial.iterdir():  # by a run that was killed
            left.unlink()
        limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        self._http = httpx2.AsyncClient(
            limits=limits,
            timeout=httpx2.Timeout(self.timeout, pool=None),
            headers={"User-Agent": f"llavamed/{__version__}", "Accept-Encoding": "identity"},
        )
        self._slots = asyncio.Semaphore(self.concurrency)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def read(self, key: str, query: str = "", md5: str = "") -> tuple[bytes, str]:
        """(bytes, ETag) of an object. Where the ETag is an MD5, as it is for S3's small objects, it is checked."""
        body = bytearray()

        async def attempt(response: httpx2.Response) -> str:
            body.clear()
            async for chunk in self._chunks(response):
                body.extend(chunk)
                if len(body) > _IN_MEMORY:
                    raise Failed(f"{key}: more than {_IN_MEMORY // 2**20} MiB", "too_large")
            etag = _etag(response)
            _check(key, md5 or etag, hashlib.md5(body, usedforsecurity=False).hexdigest())
            return etag

        etag = await self._stubbornly(key, query, attempt)
        self.received += len(body)
        return bytes(body), etag

    async def save(self, key: str, path: Path, md5: str, limit: int) -> Saved:
        """Write an object to `path` once it is whole and, where the bucket or the ETag gives an MD5, verified."""
        part = self.partial / f"{os.getpid()}-{next(self._names)}"

        async def attempt(response: httpx2.Response) -> Saved:
            size, found = 0, hashlib.md5(usedforsecurity=False)
            with part.open("wb") as out:
                async for chunk in self._chunks(response):
                    size += len(chunk)
                    if size > limit:
                        raise Failed(f"{key}: more than {limit // 2**20} MiB", "too_large")
                    found.update(chunk)
                    out.write(chunk)
            expected = md5 or _etag(response)
            _check(key, expected, found.hexdigest())
            return Saved(size, bool(expected), _has_length(response))

        try:
            saved = await self._stubbornly(key, "", attempt)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self.received += saved.bytes
        self.unverified += not saved.has_md5
        return saved

    async def _chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """The body, without the gzip that a server may put on it though it was asked not to."""
        began, size = time.monotonic(), 0
        async for chunk in response.aiter_bytes():
            size += len(chunk)
            seconds = time.monotonic() - began
            if seconds > self.timeout and size < seconds * _SLOWEST:
                raise _Passing("too_slow", f"{size:,} bytes in {seconds:.0f} seconds")
            yield chunk

    async def _stubbornly(self, key: str, query: str, attempt: _Attempt[T]) -> T:
        url = f"{self.base_url.rstrip('/')}/{quote(key)}{query}"
        for number in range(ATTEMPTS):
            try:
                async with self._slots:
                    result = await self._once(url, key, attempt)
                self._in_a_row = 0
                return result
            except _Passing as error:
                self._in_a_row += 1
                if self._in_a_row > _FAILURES_IN_A_ROW + self.concurrency:
                    raise InputError(
                        f"{self.base_url}: {self._in_a_row} requests in a row failed ({error.message}); "
                        "run the command again when the server answers"
                    ) from None
                if number == ATTEMPTS - 1:
                    raise Failed(f"{url}: {error.message}, {ATTEMPTS} times", error.reason) from None
                self.retries += 1
                pause = random.uniform(0, min(_LONGEST_PAUSE, self.pause * 2**number))
                await asyncio.sleep(max(pause, min(error.after, _LONGEST_PAUSE)))
        raise AssertionError("unreachable")

    async def _once(self, url: str, key: str, attempt: _Attempt[T]) -> T:
        self.requests += 1
        try:
            async with asyncio.timeout(2 * self.timeout) as limit, self._http.stream("GET", url) as response:
                limit.reschedule(None)  # it was for the head of the answer
                status = response.status_code
                if status in (404, 410):
                    raise Missing(f"{key}: HTTP {status}")
                if status in _AGAIN:
                    after = response.headers.get("Retry-After", "")
                    raise _Passing("busy", f"HTTP {status}", float(after) if after.isdigit() else 0.0)
                if status != 200:
                    to = response.headers.get("Location", "")
                    said = f"HTTP {status}{f' to {to[:200]}' if to else ''}"
                    raise Failed(f"{url}: {said}", _NEVER.get(status, "refused"))
                return await attempt(response)
        except TimeoutError:
            raise _Passing("too_slow", f"no answer in {2 * self.timeout:.0f} seconds") from None
        except httpx2.DecodingError as error:
            raise _Passing("cut_short", str(error)) from None
        except httpx2.RemoteProtocolError as error:
            raise _Passing("cut_short", str(error) or "cut short") from None
        except httpx2.TransportError as error:
            raise _Passing("unreachable", f"{type(error).__name__} {error}".strip()) from None


def _etag(response: httpx2.Response) -> str:
    """The MD5 that an ETag is; "" for that of an object uploaded in parts, or none."""
    etag: str = response.headers.get("ETag", "").removeprefix("W/").strip('"').lower()
    return etag if len(etag) == _MD5_LENGTH and all(c in "0123456789abcdef" for c in etag) else ""


def _has_length(response: httpx2.Response) -> bool:
    """Whether a body that was cut would have been noticed; the end of a connection may be the end of anything."""
    framed = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
    return framed or response.http_version not in ("HTTP/1.0", "HTTP/1.1")


def _check(key: str, expected: str, found: str) -> None:
    if expected and expected != found:
        raise _Passing("wrong_md5", f"{key}: MD5 {found}, not {expected}")
