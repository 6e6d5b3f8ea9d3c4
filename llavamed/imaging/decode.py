"""Bytes of a picture from anywhere -> an RGB image of 8 bits, or a reason why not.

Figures of the literature come as they are: truncated uploads, CMYK from the printer, 16-bit
microscopy, transparent PNGs, a web page under the name `.jpg`. The hard thing is to refuse what is
hostile or broken *with a reason that can be counted*, and to show the rest as its author saw it:

- only the raster formats that journals use are tried at all (no PostScript, no fonts, no PDF), and not if
  the file is something else as well (`polyglot`);
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from llavamed.errors import InputError
from llavamed.imaging import polyglot

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 40_000_000
_MOST_SCANS = 500  # a progressive JPEG has about ten; each more costs a pass over all pixels
_STRIP = 256  # rows

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
    """An image that cannot be used. `reason` is a short code to count by: "empty", "not_an_image", "polyglot",
    "too_many_pixels", "too_many_scans", "truncated", "damaged"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Glance:
    """What can be said of a picture without all of its pixels. `grey` is a small copy ("L"), its sides at least `side`
    where the picture's are; `full` is the RGB picture where it had to be decoded all the same."""

    width: int
    height: int
    grey: Image.Image
    full: Image.Image | None


def decode(data: bytes, where: str = "image", max_pixels: int = MAX_PIXELS, side: int = 0) -> Image.Image:
    """The picture in `data` as RGB, 8 bits; the first frame where there are several.

    `where` names the picture in errors. With `side` a JPEG may come at a half, a quarter or an eighth of its size, its
    sides still as long as that. Raises ImageError with `.reason`.
    """
    with _open(data, where, max_pixels) as image:
        if side and image.format == "JPEG":
            image.draft(image.mode, (side, side))
        return _rgb(_loaded(image, where, max_pixels), where)


def glance(data: bytes, where: str = "image", max_pixels: int = MAX_PIXELS, side: int = 64) -> Glance:
    """Check a picture as strictly as `decode` does, and give its size and a small grey copy.

    A JPEG is decoded at an eighth of its size or the next that leaves `side` pixels: libjpeg still reads every byte, so
    a file that is cut short is found, but computes a sixty-fourth of the pixels.
    """
    with _open(data, where, max_pixels) as image:
        if image.format == "JPEG":
            size = image.size
            image.draft("L", (side, side))
            small = _upright(_loaded(image, where, max_pixels))
            width, height = reversed(size) if _lies_on_its_side(image) else size
            return Glance(width, height, _grey(small, where), None)
        full = _rgb(_loaded(image, where, max_pixels), where)
        factor = max(1, min(full.size) // side)
        return Glance(full.width, full.height, full.reduce(factor).convert("L"), full)


def _open(data: bytes, where: str, max_pixels: int) -> Image.Image:
    """The picture with its header read and its size allowed; not one pixel is unpacked yet."""
    if not data:
        raise ImageError(f"{where}: an empty file; fetch the image again", "empty")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise ImageError(f"{where}: a JPEG of more than {_MOST_SCANS} scans; leave it out", "too_many_scans")
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
    if kind := polyglot.other_kind(data):
        raise ImageError(f"{where}: an image that is {kind} as well; leave it out", "polyglot")
    if image.width * image.height > max_pixels:
        raise _too_large(where, max_pixels, image.size)
    return image


def _loaded(image: Image.Image, where: str, max_pixels: int) -> Image.Image:
    try:
        image.load()
    except Image.DecompressionBombError:  # a GIF frame or TIFF tile larger than the header said
        raise _too_large(where, max_pixels) from None
    except _DAMAGE as error:
        raise _damaged(where, error) from None
    return image


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


def _lies_on_its_side(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in {5, 6, 7, 8}
    except _DAMAGE:
        return False


def _rgb(image: Image.Image, where: str) -> Image.Image:
    try:
        return _to_rgb(_upright(image))
    except _DAMAGE as error:
        raise _damaged(where, error) from None


def _grey(image: Image.Image, where: str) -> Image.Image:
    return image.copy() if image.mode == "L" else _rgb(image, where).convert("L")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _windowed(image).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        paper = Image.new("RGB", rgba.size, "white")
        paper.paste(rgba, mask=rgba.getchannel("A"))
        return paper
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _windowed(image: Image.Image) -> Image.Image:
    """Smallest value black, largest white; not-a-number and infinities black. In strips: the whole picture in 64 bits,
    several times over, is more than a gigabyte."""
    values_HW = np.asarray(image)
    shown_HW = np.zeros(values_HW.shape, np.uint8)
    strips = [slice(top, top + _STRIP) for top in range(0, len(values_HW), _STRIP)]
    finite = (values_HW[strip][np.isfinite(values_HW[strip])] for strip in strips)
    ends = [(float(part.min()), float(part.max())) for part in finite if part.size]
    low, high = (min(a for a, _ in ends), max(b for _, b in ends)) if ends else (0.0, 0.0)
    for strip in strips if high > low else ():
        part_HW = values_HW[strip].astype(np.float64)
        scaled_HW = np.where(np.isfinite(part_HW), part_HW - low, 0.0) * (255.0 / (high - low))
        shown_HW[strip] = np.clip(np.rint(scaled_HW), 0, 255)
    return Image.fromarray(shown_HW)


def _too_large(where: str, max_pixels: int, size: tuple[int, int] | None = None) -> ImageError:
    found = f"{size[0]} x {size[1]} pixels" if size else "more pixels"
    return ImageError(f"{where}: {found}, but at most {max_pixels:,} are read; scale it down", "too_many_pixels")


def _damaged(where: str, error: BaseException) -> ImageError:
    message = " ".join(str(error).split())
    reason = "truncated" if any(word in message.lower() for word in _TRUNCATED) else "damaged"
    return ImageError(f"{where}: {reason} image ({message}); fetch the file again", reason)
