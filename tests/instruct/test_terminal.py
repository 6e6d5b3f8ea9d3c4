"""Pictures for a terminal, read back: kitty's PNG by Pillow, sixels by a reader written from DEC's description."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from llavamed.instruct.terminal import SIDE, Protocol, encode, protocol


def _picture(width: int, height: int) -> Image.Image:
    """Few colours, so that none is lost: bands, a diagonal and a spot."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[::3] = (255, 0, 0)
    pixels[:, width // 2 :] = (0, 255, 255)
    for n in range(min(width, height)):
        pixels[n, n] = (255, 255, 255)
    return Image.fromarray(pixels)


def _unsixel(text: str) -> np.ndarray:
    match = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert match, text[:40]
    width, height = int(match[1]), int(match[2])
    pixels = np.full((height, width, 3), -1)
    colours: dict[int, tuple[int, ...]] = {}
    colour, x, top = 0, 0, 0
    for part in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|(\$)|(-)", match[3]):
        if part[1]:
            colour = int(part[1])
            if part[2]:
                colours[colour] = tuple(round(int(share) * 255 / 100) for share in part.group(2, 3, 4))
        elif part[8]:
            x = 0
        elif part[9]:
            x, top = 0, top + 6
        else:
            letter, times = (part[6], int(part[5])) if part[5] else (part[7], 1)
            for bit in range(6):
                if (ord(letter) - 63) >> bit & 1:
                    pixels[top + bit, x : x + times] = colours[colour]
            x += times
    return pixels


@pytest.mark.parametrize("size", [(30, 20), (7, 6), (6, 13), (1, 1)])
def test_sixels_show_every_pixel_in_its_colour(size: tuple[int, int]) -> None:
    image = _picture(*size)
    shown = _unsixel(encode(image, "sixel"))
    assert shown.min() >= 0
    assert np.abs(shown - np.asarray(image)).max() <= 3  # a hundredth of 255


@pytest.mark.parametrize("size", [(30, 20), (390, 380)])
def test_kittys_pieces_are_a_png_of_the_image(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    text = encode(Image.fromarray(pixels), "kitty")
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{control};{data}\x1b\\" for control, data in pieces) == text
    assert all(len(data) <= 4096 for _, data in pieces)
    assert [control[-1] for control, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    assert pieces[0][0].startswith("f=100,a=T")
    shown = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces))))
    assert np.array_equal(np.asarray(shown), pixels)


def test_a_large_picture_is_made_small() -> None:
    match = re.match(r'\x1bPq"1;1;(\d+);(\d+)', encode(_picture(1600, 800), "sixel"))
    assert match
    assert (int(match[1]), int(match[2])) == (SIDE, SIDE // 2)
    assert encode(_picture(10, 10), "none") == ""


@pytest.mark.parametrize(
    ("environment", "how"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "xterm-256color"}, "none"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "none"),
        ({}, "none"),
    ],
)
def test_the_terminal_is_known_by_its_environment_and_never_guessed(environment: dict[str, str], how: Protocol) -> None:
    assert protocol(environment) == how
    assert protocol(environment, is_terminal=False) == "none"
