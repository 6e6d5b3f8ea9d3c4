"""Is this the same picture? Two answers: a hash for pictures that were only saved again, a search for altered ones.

`phash` is the perceptual hash of the literature (Zauner 2010; the `imagehash` package): 32 x 32 grey values, the
lowest 8 x 8 terms of their cosine transform, each above or below the median: 64 bits. Scaling and recompression
change a few of them, another picture half. A crop of five per cent or other grey levels change a third, and two chest
X-rays of different people differ by less than that; so a hash cannot find altered copies of medical pictures.

`Gallery` can. It looks a picture up among a set of pictures (a benchmark's) in two steps:

1. correlate it with each, 16 x 16 values, under 25 crops; all at once, as one matrix product. That finds what is
   laid out alike, so every chest X-ray finds other chest X-rays;
2. for the few best, move the edges of the crop until the pictures lie on each other, then correlate only what is finer
   than a thirtieth of the picture, the strongest edges clipped: a black margin says nothing. Ribs and vessels of one
   patient do not lie on those of another: on VQA-RAD altered copies have 0.74 and more, other pictures at most 0.64
   (`benchmarks/lookalike.py`).

Correlation does not see brightness and contrast, and hardly a gamma; of a negative all its signs are turned, so that is
tried as well. A white or black border moves everything, more than any crop that is tried: each picture is also taken
without the borders of one grey that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from llavamed.imaging.decode import Glance

SIDE = 192  # pixels: the shorter side of the grey picture that the search wants at least
SAME = 0.69  # correlation of the fine detail from which two pictures are one
_ALIKE = 0.75  # of 16 x 16 values: below it nothing is looked at closely
_CLOSELY = 5  # pictures of the gallery that are
MINIATURE = 16  # pixels a side
_HASHED, _COARSE, _ALIGNED, _FINE = 32, 16, 64, 96  # pixels a side
_BLUR = 3.0  # pixels of _FINE: what is coarser says only that both are chest X-rays
_EDGES = ((0.0, 0.0), (0.025, 0.025), (0.05, 0.05), (0.0, 0.05), (0.05, 0.0))  # cut off on either side
_CROPS = tuple((left, top, right, bottom) for (left, right), (top, bottom) in product(_EDGES, _EDGES))
_MOST_CUT = 0.12
_STEPS = (0.0125, 0.006, 0.003)
_ONE_GREY = 12  # levels around the border's, for what JPEG and scanners make of it
_OF_ONE_GREY = 0.99  # share of a line's pixels
_INSET = 0.02  # what JPEG has mixed of a border and a copy; that a copy is cut is seen through
_LEAST_LEFT = 0.4  # of a side, or it was no border

_k = np.arange(_HASHED)
_COSINES = np.cos(np.pi * (2 * _k[None] + 1) * _k[:8, None] / (2 * _HASHED))  # (8, 32)

Crop = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the picture


def phash(grey: Image.Image) -> int:
    """64 bits of an "L" picture, the first row's first bit the highest."""
    small_HW = np.asarray(grey.resize((_HASHED, _HASHED), Image.Resampling.LANCZOS), np.float64)
    low_88 = _COSINES @ small_HW @ _COSINES.T
    bits = (low_88 > np.median(low_88)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def miniature(seen: Glance) -> np.ndarray:
    """(256,) uint8: `MINIATURE` x `MINIATURE` grey values. A glance is reduced by a whole number, so its last row and
    column may stand for less than the others; that is taken into account, or copies of other sizes would not agree."""
    grey, whole = seen.grey, (seen.width, seen.height)
    factors = (max(1, round(side / small)) for side, small in zip(whole, grey.size, strict=True))
    sides = (s / f if -(-s // f) == g else g for s, f, g in zip(whole, factors, grey.size, strict=True))
    right, bottom = sides
    small = grey.resize((MINIATURE, MINIATURE), Image.Resampling.HAMMING, box=(0, 0, right, bottom))
    return np.asarray(small, np.uint8).ravel()


class Gallery:
    """Pictures ("L", their shorter side best at least `SIDE`) in which others are looked up."""

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        views = [(n, view) for n, picture in enumerate(pictures) for view in _views(_reduced(picture))]
        self._views = [view for _, view in views]
        self._of = np.array([n for n, _ in views], np.int64)  # which picture a view is of
        coarse = [_values(view, _COARSE, crop) for view in self._views for crop in _CROPS]
        self._coarse = np.array(coarse, np.float32).reshape(len(views), len(_CROPS), _COARSE * _COARSE)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self._coarse.nbytes + sum(view.width * view.height for view in self._views)

    def find(self, picture: Image.Image, without: int | None = None) -> tuple[int, float] | None:
        """The position of the picture (`without` one) that this is a copy of, and how surely (0.69-1), or None."""
        for view in _views(_reduced(picture), _INSET):
            coarse = self._coarse @ _values(view, _COARSE).astype(np.float32)  # (views, crops)
            for seen, alike in ((view, coarse), (ImageOps.invert(view), -coarse)):
                if (found := self._closely(seen, alike, without)) is not None:
                    return found
        return None

    def _closely(self, picture: Image.Image, coarse: np.ndarray, without: int | None) -> tuple[int, float] | None:
        best = coarse.max(axis=1) if len(coarse) else np.zeros(0)
        best = np.where(self._of == without, 0.0, best)
        close = [int(i) for i in np.argsort(-best, kind="stable")[:_CLOSELY] if best[i] >= _ALIKE]
        found = [(int(self._of[i]), _sameness(picture, self._views[i], _CROPS[int(coarse[i].argmax())])) for i in close]
        return max((one for one in found if one[1] >= SAME), key=lambda one: one[1], default=None)


def _views(picture: Image.Image, inset: float = 0.0) -> list[Image.Image]:
    """The picture, and without its borders if it has any; then `inset`, a share of the sides, goes with them."""
    grey_HW = np.asarray(picture, np.int16)
    top, bottom = _inside(grey_HW)
    left, right = _inside(grey_HW[top:bottom].T)
    width, height = picture.size
    if (right - left, bottom - top) == (width, height):
        return [picture]
    if right - left < _LEAST_LEFT * width or bottom - top < _LEAST_LEFT * height:
        return [picture]
    x, y = round(inset * (right - left)), round(inset * (bottom - top))
    return [picture, picture.crop((left + x, top + y, right - x, bottom - y))]


def _inside(grey_HW: np.ndarray) -> tuple[int, int]:
    """From which row to which row there is more than the grey of the first, or of the last."""
    ends = []
    for lines in (grey_HW, grey_HW[::-1]):
        border = np.median(lines[0])
        of_one_grey = (np.abs(lines - border) <= _ONE_GREY).mean(axis=1) >= _OF_ONE_GREY
        ends.append(int(of_one_grey.argmin()) if not of_one_grey.all() else 0)
    return ends[0], len(grey_HW) - ends[1]


def _sameness(copy: Image.Image, original: Image.Image, crop: Crop) -> float:
    """Correlation of the fine detail after the edges of `original` were moved to where `copy` was cut."""
    target = _values(copy, _ALIGNED)
    best = float(target @ _values(original, _ALIGNED, crop))
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for edge, by in product(range(4), (step, -step)):
                tried = list(crop)
                tried[edge] = min(_MOST_CUT, max(0.0, tried[edge] + by))
                score = float(target @ _values(original, _ALIGNED, (tried[0], tried[1], tried[2], tried[3])))
                if score > best + 1e-6:
                    best, crop, moved = score, (tried[0], tried[1], tried[2], tried[3]), True
    return float(_detail(copy) @ _detail(original, crop))


def _reduced(picture: Image.Image) -> Image.Image:
    factor = min(picture.size) // SIDE
    return picture.reduce(factor) if factor > 1 else picture


def _scaled(picture: Image.Image, side: int, crop: Crop = (0.0, 0.0, 0.0, 0.0)) -> Image.Image:
    left, top, right, bottom = crop
    width, height = picture.size
    box = (width * left, height * top, width * (1 - right), height * (1 - bottom))
    how = Image.Resampling.BOX if min(picture.size) > side else Image.Resampling.BILINEAR
    return picture.resize((side, side), how, box=box)


def _values(picture: Image.Image, side: int, crop: Crop = (0.0, 0.0, 0.0, 0.0)) -> np.ndarray:
    return _unit(np.asarray(_scaled(picture, side, crop), np.float64))


def _detail(picture: Image.Image, crop: Crop = (0.0, 0.0, 0.0, 0.0)) -> np.ndarray:
    scaled = _scaled(picture, _FINE, crop)
    blurred = scaled.filter(ImageFilter.GaussianBlur(_BLUR))
    detail = np.asarray(scaled, np.float64) - np.asarray(blurred, np.float64)
    return _unit(np.clip(detail, -detail.std(), detail.std()))


def _unit(values: np.ndarray) -> np.ndarray:
    """Of mean 0 and length 1, so that a product is a correlation; all zero where there is nothing to see."""
    flat = values.ravel() - values.mean()
    length = np.linalg.norm(flat)
    return flat / length if length > 1e-9 else flat
