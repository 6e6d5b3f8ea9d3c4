"""A small copy of an image for a report, as a data URL.

A report is one file that opens anywhere; images go into it small, and in a format that browsers show
(a corpus may hold TIFF and 16-bit images, which they do not).
"""

from __future__ import annotations

import io

from PIL import Image

from llavamed.imaging.decode import ImageError, decode
from llavamed.report import image_url

SIDE = 320  # pixels, the longer side at most


def thumbnail(data: bytes, where: str = "image") -> str:
    """The data URL of the image in `data`, or "" if it cannot be decoded: a report is written all the same."""
    try:
        return of_image(decode(data, where, side=SIDE))
    except ImageError:
        return ""


def of_image(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, format="JPEG", quality=85)
    return image_url(out.getvalue())
