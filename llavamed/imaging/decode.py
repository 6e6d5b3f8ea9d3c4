"""Bytes of a picture from anywhere -> an RGB image of 8 bits, or a reason why not.

Figures of the literature come as they are: truncated uploads, CMYK from the printer, 16-bit
microscopy, transparent PNGs, a web page under the name `.jpg`. The hard thing is to refuse what is
hostile or broken *with a reason that can be counted*, and to show the rest as its author saw it:

- only the raster formats that journals use are tried at all (no PostScript, no fonts, no PDF);
- the size is read from the header and checked before a single pixel is unpacked;
- transparent pixels become white, as on paper;
- more than 8 bits are windowed from the smallest to the largest value;
- a photograph that its EXIF tag says is turned is turned back.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llavamed.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 40_000_000

# What Pillow's readers raise on damaged data; there is no common base class.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
_TRUNCATED = ("truncated", "unexpected end", "not enough", "eof")  # in their messages

# `decode` checks the size itself, with the caller's limit; Pillow's warning at its own limit would say it twice.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(InputError):
    """An image that cannot be used. `reason` is a short code to count by: "empty", "not_an_image",
    "too_many_pixels", "truncated", "damaged"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode(data: bytes, where: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in `data` as RGB, 8 bits; the first frame where there are several.

    `where` names the picture in errors. Raises ImageError with `.reason`.
    """
    if not data:
        raise ImageError(f"{where}: an empty file; fetch the image again", "empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(where, max_pixels) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{where}: not an image that can be read; give one of {', '.join(FORMATS)}", "not_an_image"
        ) from None
    except _DAMAGE as error:
        raise _damaged(where, error) from None
    with image:
        if image.width * image.height > max_pixels:
            raise _too_large(where, max_pixels, image.size)
        try:
            image.load()
        except Image.DecompressionBombError:  # a GIF frame or TIFF tile larger than the header said
            raise _too_large(where, max_pixels) from None
        except _DAMAGE as error:
            raise _damaged(where, error) from None
        return _to_rgb(_upright(image))


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode` for a file. Raises InputError if there is none, ImageError if it cannot be used."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file; give the path of a {', '.join(FORMATS)} file")
    return decode(path.read_bytes(), str(path), max_pixels)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # a damaged EXIF block says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _windowed(image).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGB", rgba.size, "white")
        paper.paste(rgba, mask=rgba.getchannel("A"))
        return paper
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _windowed(image: Image.Image) -> Image.Image:
    """Smallest value black, largest white; not-a-number and infinities black."""
    values_HW = np.asarray(image, dtype=np.float64)
    finite_HW = np.isfinite(values_HW)
    low, high = (values_HW[finite_HW].min(), values_HW[finite_HW].max()) if finite_HW.any() else (0.0, 0.0)
    scaled_HW = np.where(finite_HW, values_HW - low, 0.0) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.clip(np.rint(scaled_HW), 0, 255).astype(np.uint8))


def _too_large(where: str, max_pixels: int, size: tuple[int, int] | None = None) -> ImageError:
    found = f"{size[0]} x {size[1]} pixels" if size else "more pixels"
    return ImageError(f"{where}: {found}, but at most {max_pixels:,} are read; scale it down", "too_many_pixels")


def _damaged(where: str, error: BaseException) -> ImageError:
    message = " ".join(str(error).split())
    reason = "truncated" if any(word in message.lower() for word in _TRUNCATED) else "damaged"
    return ImageError(f"{where}: {reason} image ({message}); fetch the file again", reason)
