"""The image as a sighted teacher gets it: inside the request, as a JPEG no larger than it can use.

A request is known by its hash, and the hash must not change with a JPEG encoder. So a request names its image by
the hash of the published bytes; the pixels are put in when it is sent and are not kept.
"""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

from llavamed.imaging.decode import decode

SIDE = 1024  # pixels, the longer side at most: what vision models see at full detail without being cut up further
_MARK = "sha256:"


def placeholder(data_sha256: str) -> dict[str, Any]:
    """The image part of a message, before the image is in it."""
    return {"type": "image_url", "image_url": {"url": f"{_MARK}{data_sha256}/{SIDE}"}}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def filled(body: dict[str, Any], data: bytes, where: str) -> dict[str, Any]:
    """The body with the image of these bytes in the place that waits for it. Raises InputError if they are no image."""
    image = decode(data, where).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=90)
    url = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
    return {**body, "messages": [{**m, "content": _filled(m["content"], url)} for m in body["messages"]]}


def _filled(content: Any, url: str) -> Any:
    if isinstance(content, str):
        return content
    return [{**part, "image_url": {"url": url}} if part["type"] == "image_url" else part for part in content]
