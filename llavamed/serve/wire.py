"""What comes in: the body of a chat request, checked and turned into the engine's `Request`.

In goes what the `openai` client sends; out comes an `engine.request.Request` with decoded images, or an `ApiError`
in OpenAI's shape that names the field.

The hard thing is what must *not* get in. Public LLaVA servers were broken by fetching whatever `image_url` named
(CVE-2024-12068, CVE-2024-12065, CVE-2025-6242: internal hosts, local files). Here an image is a data URL or it is
refused; there is no code that fetches. Images share one budget of pixels per request, checked from their headers.
Whatever a client asks for that this server cannot do is a 400 that names the field: nothing is silently ignored.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llavamed.engine.request import Request
from llavamed.errors import InputError
from llavamed.imaging.decode import decode
from llavamed.records import Message
from llavamed.serve.desk import Busy

MAX_IMAGES = 8  # a request
MAX_PIXELS = 40_000_000  # of all images of a request together
MAX_NEW_TOKENS = 2048  # a request that asks for more gets this many, and finish_reason "length"
DEFAULT_NEW_TOKENS = 512

# Fields of the OpenAI API that this server does not have: field -> the values that ask for nothing special.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
_ABOUT_THE_CALLER = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # say nothing about the answer
_PART_TYPES = ("text", "image_url")


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @field_validator("content", mode="before")
    @classmethod
    def _plain_text_is_one_part(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`. The default temperature is 0: the same question, the same answer."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: list[str] | None = Field(default=None, max_length=4)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nothing_is_silently_ignored(self) -> ChatRequest:
        for field, value in (self.model_extra or {}).items():
            if value is None or field in _ABOUT_THE_CALLER or value in _ONLY.get(field, ()):
                continue
            if field in _ONLY:
                raise ApiError(400, f"this server supports only {field} = {_ONLY[field][0]!r}", param=field)
            raise ApiError(400, f"this server does not know the field {field!r}; leave it out", param=field)
        return self


class ApiError(Exception):
    """An answer other than 200, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


# A path of this machine, but no URL: what a library's error may quote, and the one who asked need not know.
_PATH = re.compile(r"""(?<![\w:/])(?:[A-Za-z]:)?(?:[\\/][^\s\\/'"<>:]+){2,}""")


def as_api_error(error: Exception) -> ApiError:
    """What the one who asked is told about an error: its real text without paths, because a hidden one helps nobody."""
    match error:
        case ApiError():
            return error
        case InputError():
            return ApiError(400, str(error))
        case Busy():
            retry = {"Retry-After": str(error.retry_after)}
            return ApiError(429, str(error), type="rate_limit_error", code="queue_full", headers=retry)
        case TemplateError():  # a template may want, say, users and assistants by turns
            return ApiError(400, f"the model's chat template refuses these messages: {error}")
        case _:
            text = _PATH.sub("[path]", f"the model failed: {type(error).__name__}: {error}")[:500]
            return ApiError(500, text, type="server_error", code="model_failed")


def read_image(url: str, where: str, max_pixels: int) -> Image.Image:
    """The image of a `data:` URL as RGB. Raises ApiError for any other URL, InputError for a damaged image."""
    if url[:5].lower() != "data:":
        scheme = url.split(":", 1)[0][:16] if ":" in url[:16] else "a bare path"
        raise ApiError(
            400,
            f"images must be data URLs (data:image/png;base64,...), not {scheme}: this server fetches nothing "
            "and opens no files for its clients",
            param=where,
            code="invalid_image_url",
        )
    head, comma, payload = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ApiError(400, "a data URL must read data:image/png;base64,...", param=where, code="invalid_image_url")
    try:
        data = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ApiError(400, f"the data URL is not base64 ({error})", param=where, code="invalid_image_url") from None
    return decode(data, where, max_pixels)


def to_request(body: ChatRequest) -> Request:
    """The engine's request: images in the order of their places. Raises ApiError or InputError, naming the part."""
    messages: list[Message] = []
    images: list[Image.Image] = []
    pixels_left = MAX_PIXELS
    for i, message in enumerate(body.messages):
        parts: list[dict[str, str]] = []
        for j, part in enumerate(message.content):
            where = f"messages[{i}].content[{j}]"
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
                continue
            if message.role != "user":
                raise ApiError(400, f"only user messages may hold images, not {message.role}", param=where)
            if len(images) == MAX_IMAGES:
                raise ApiError(
                    400, f"more than {MAX_IMAGES} images in one request", param=where, code="too_many_images"
                )
            if pixels_left <= 0:
                raise ApiError(400, f"the images of one request may have {MAX_PIXELS:,} pixels together", param=where)
            images.append(read_image(part.image_url.url, where, pixels_left))
            pixels_left -= images[-1].width * images[-1].height
            parts.append({"type": "image"})
        if not parts:
            raise ApiError(400, "the message is empty", param=f"messages[{i}].content")
        role: Any = "system" if message.role == "developer" else message.role
        messages.append(Message(role, tuple(parts)))
    if messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", param=f"messages[{len(messages) - 1}].role")
    wanted = body.max_completion_tokens or body.max_tokens or DEFAULT_NEW_TOKENS
    return Request(
        messages=tuple(messages),
        images=tuple(images),
        max_new_tokens=min(wanted, MAX_NEW_TOKENS),
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=tuple(body.stop or ()),
    )


def bad_body(error: RequestValidationError) -> ApiError:
    """The first thing wrong with a body: which field, and what it should be. Never quotes the body."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON ({first['ctx']['error']} at character {first['loc'][-1]})")
    param = ""
    for before, step in itertools.pairwise(("", *first["loc"][1:])):  # loc[0] is "body"
        if isinstance(step, int):
            param += f"[{step}]"
        elif not (isinstance(before, int) and step in _PART_TYPES):  # pydantic names the union's branch too
            param += f".{step}" if param else step
    return ApiError(400, f"{param or 'the body'}: {first['msg']}", param=param or None)
