"""A picture in a terminal: kitty's graphics protocol, sixel, or none.

Terminals do not say alike what they can do; the environment says it for those that are common. Where nothing is known
the answer is "none", for a terminal that knows neither protocol would print pages of letters.

Sixel (DEC, 1983) sends an image in bands of six rows: for each colour of the palette a line of characters, one a
column, whose six bits are the rows that have the colour. Kitty's protocol sends a PNG in base64, 4,096 characters at
a time.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Literal

import numpy as np
from PIL import Image

Protocol = Literal["kitty", "sixel", "none"]
SIDE = 400  # pixels, the longer side at most
_COLOURS = 64
_CHUNK = 4096


def protocol(environment: Mapping[str, str] = os.environ, is_terminal: bool = True) -> Protocol:
    """What the terminal understands, as far as the environment tells."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "").lower()
    if not is_terminal or "TMUX" in environment or term.startswith("screen"):  # these keep images to themselves
        return "none"
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or program in ("ghostty", "wezterm"):
        return "kitty"
    if "sixel" in term or term.startswith(("foot", "mlterm", "yaft")) or program in ("mintty", "iterm.app", "contour"):
        return "sixel"
    return "none"


def encode(image: Image.Image, how: Protocol) -> str:
    """The escape sequence that shows the image, made small; "" for "none"."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return {"kitty": _kitty, "sixel": _sixel, "none": lambda _: ""}[how](small)


def _kitty(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG")
    data = base64.b64encode(out.getvalue()).decode()
    pieces = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    sent = []
    for number, piece in enumerate(pieces):
        control = ("f=100,a=T," if number == 0 else "") + f"m={int(number < len(pieces) - 1)}"
        sent.append(f"\x1b_G{control};{piece}\x1b\\")
    return "".join(sent)


def _sixel(image: Image.Image) -> str:
    indexed = image.quantize(_COLOURS)
    palette = np.array(indexed.getpalette() or [], dtype=int).reshape(-1, 3)
    pixels_YX = np.asarray(indexed)
    height, width = pixels_YX.shape
    head = f'\x1bPq"1;1;{width};{height}'
    colours = "".join(
        f"#{number};2;{red};{green};{blue}" for number, (red, green, blue) in enumerate(palette * 100 // 255)
    )
    bands = "-".join(_band(pixels_YX[top : top + 6]) for top in range(0, height, 6))
    return f"{head}{colours}{bands}\x1b\\"


def _band(rows_YX: np.ndarray) -> str:
    """Up to six rows: the columns of each colour, one colour over the other."""
    weights_Y1 = (1 << np.arange(len(rows_YX)))[:, None]
    lines = []
    for colour in np.unique(rows_YX):
        bits_X = ((rows_YX == colour) * weights_Y1).sum(axis=0)
        lines.append(f"#{colour}" + "".join(_runs(bits_X)))
    return "$".join(lines)


def _runs(bits_X: np.ndarray) -> Iterator[str]:
    for bits, run in groupby(bits_X.tolist()):
        length, letter = sum(1 for _ in run), chr(63 + bits)
        yield f"!{length}{letter}" if length > 3 else letter * length
