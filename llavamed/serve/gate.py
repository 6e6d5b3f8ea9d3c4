"""The gate: the host, the key and the size of a request, checked before a byte of its body is read.

Without a key the server listens on the loopback address alone, and that keeps strangers out but not their pages: a
page may give its own name the address 127.0.0.1 once it is loaded, and is then of the same origin as this server
(DNS rebinding). The browser still sends the page's name as `Host`, so without a key only loopback names are answered.

A web framework reads and parses a body before it runs a route's own checks, so a check of the key there would let
strangers fill the memory first. This is plain ASGI around the whole application, API and chat page alike.
"""

from __future__ import annotations

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llavamed.serve.wire import ApiError

NOTICE = "research use only, not for clinical use"
MAX_BODY_BYTES = 32 * 2**20

# On every response. The policy makes the browser refuse any other host: no fonts, no scripts, no beacons from outside.
HEADERS = {
    "X-Llavamed-Notice": NOTICE,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
}


class Gate:
    """ASGI middleware: 401 without the key below /v1, or, if there is no key, 421 for a host that is not loopback;
    413 for a body over the limit."""

    def __init__(self, app: ASGIApp, api_key: str | None = None, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.app, self._api_key, self._max_body_bytes = app, api_key, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        if (refusal := self._refusal(scope["path"], headers)) is not None:
            await refusal.response()(scope, receive, send_with_headers)
            return

        seen = 0

        async def receive_within_limit() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body_bytes:  # sent in chunks, without a Content-Length
                raise HTTPException(413, self._too_large())
            return message

        await self.app(scope, receive_within_limit, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._api_key is None and not is_loopback(headers.get("host", "")):
            return ApiError(
                421,
                "without an API key this server answers only as localhost, 127.0.0.1 or [::1]: use one of these as the "
                "host, or start it with --api-key",
                code="host_not_allowed",
                headers={"Connection": "close"},
            )
        if self._api_key is not None and (path == "/v1" or path.startswith("/v1/")):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not same_secret(key.strip(), self._api_key):
                return ApiError(
                    401,
                    "a valid API key is needed: send it as 'Authorization: Bearer KEY'",
                    type="authentication_error",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
                )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return ApiError(413, self._too_large(), code="body_too_large", headers={"Connection": "close"})
        return None

    def _too_large(self) -> str:
        return f"the request is larger than {self._max_body_bytes / 2**20:.0f} MiB; send fewer or smaller images"


def is_loopback(host: str) -> bool:
    """True for a `Host` header that names this machine: localhost or a loopback address, with any port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def same_secret(given: str, expected: str) -> bool:
    """Equality that takes the same time wherever the first difference is."""
    return secrets.compare_digest(given.encode(), expected.encode())
