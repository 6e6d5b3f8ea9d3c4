"""The OpenAI-compatible API: `POST /v1/chat/completions` with images, `GET /v1/models`, `/health`, `/ready`.

In goes what the `openai` client sends; out comes what it expects: a whole answer, or server-sent events that end in
`data: [DONE]`, and errors in OpenAI's shape. `wire.py` says what is accepted, `gate.py` who may come in, `desk.py`
whose turn it is.

The hard thing is the asker who leaves. Nobody tells a route that its client hung up, so while an answer is awaited
the connection is looked at several times a second, and a closed one cancels the generation. A stream begins with its
first piece: until then a full line or an over-long prompt can still be a proper 429 or 400; after that an error is
one more event. Prompts, images and answers are never logged.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from llavamed.errors import InputError
from llavamed.serve.desk import Busy, Desk, Job
from llavamed.serve.wire import ApiError, ChatRequest, as_api_error, bad_body, to_request

_LOOK_EVERY_SECONDS = 0.25

T = TypeVar("T")


class Gone(Exception):
    """The client closed the connection before its answer began."""


def routes(desk: Desk) -> APIRouter:
    """The routes that answer from `desk`."""
    router = APIRouter()
    started = int(time.time())
    name = desk.engine.name

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> Response:
        """Readiness: the model's thread lives and the line has room."""
        if desk.is_ready:
            return JSONResponse({"status": "ready", "model": name})
        return JSONResponse({"status": "not ready", "model": name}, 503)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": started, "owned_by": "llavamed"}]}

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, http: HttpRequest) -> Response:
        if body.model != name:
            raise ApiError(
                404, f"no model {body.model!r} here; this server has {name!r}", param="model", code="model_not_found"
            )
        desk.check_room()
        request = await asyncio.to_thread(to_request, body)
        job = desk.submit(request)
        reply = Reply(body, desk, job)
        try:
            if not body.stream:
                return JSONResponse(reply.whole(await _unless_gone(http, _all_pieces(job))))
            first = await _unless_gone(http, _first_piece(job))
        except Gone:
            desk.cancel(job)
            return Response(status_code=499)  # nginx's code for a client that left; nobody reads it
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(reply.events(first), media_type="text/event-stream", headers=headers)

    @router.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def unknown(rest: str, http: HttpRequest) -> Response:
        raise ApiError(
            404,
            f"there is no {http.method} /v1/{rest[:80]}; there are POST /v1/chat/completions and GET /v1/models",
            code="unknown_url",
        )

    return router


async def _all_pieces(job: Job) -> list[str]:
    return [piece async for piece in job]


async def _first_piece(job: Job) -> str | None:
    return await anext(job, None)


async def _unless_gone(http: HttpRequest, wanted: Coroutine[Any, Any, T]) -> T:
    """The result of `wanted`, or Gone as soon as the client has closed its connection."""
    task = asyncio.create_task(wanted)
    while True:
        done, _ = await asyncio.wait({task}, timeout=_LOOK_EVERY_SECONDS)
        if done:
            return task.result()
        if await http.is_disconnected():
            task.cancel()
            raise Gone


class Reply:
    """One answer in OpenAI's words: `whole` for a JSON body, `events` for a stream with the same text."""

    def __init__(self, body: ChatRequest, desk: Desk, job: Job) -> None:
        self._body, self._desk, self._job = body, desk, job
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}

    def whole(self, pieces: list[str]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(pieces), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason()}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    async def events(self, first: str | None) -> AsyncIterator[str]:
        """Server-sent events. Closing this iterator, as the framework does when the client leaves, cancels the job."""
        try:
            yield self._event({"role": "assistant", "content": ""})
            if first is not None:
                yield self._event({"content": first})
                async for piece in self._job:
                    yield self._event({"content": piece})
            yield self._event({}, self._finish_reason())
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                yield _sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        except Exception as error:  # noqa: BLE001 - the 200 is sent already, so every error must travel as an event
            yield _sse(as_api_error(error).body)
        finally:
            self._desk.cancel(self._job)
        yield "data: [DONE]\n\n"

    def _event(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def _finish_reason(self) -> str:
        usage = self._job.usage
        return "length" if usage is not None and usage.answer >= self._job.request.max_new_tokens else "stop"

    def _usage(self) -> dict[str, int] | None:
        """None for an engine that cannot count: no number is better than an invented one."""
        if (usage := self._job.usage) is None:
            return None
        return {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.answer,
            "total_tokens": usage.prompt + usage.answer,
        }


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def add_error_handlers(app: FastAPI) -> None:
    """Every error of the API's routes leaves in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

    async def on_error(_: HttpRequest, error: Exception) -> Response:
        return as_api_error(error).response()

    async def on_bad_body(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return bad_body(error).response()

    async def on_http(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()

    for kind in (ApiError, InputError, Busy, Exception):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(RequestValidationError, on_bad_body)
    app.add_exception_handler(HTTPException, on_http)
