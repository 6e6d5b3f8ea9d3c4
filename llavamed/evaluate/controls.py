"""Controls: the same questions with the picture taken away, in three ways.

A model that answers from the question alone scores well on many medical benchmarks; one reported
LLaVA-Med checkpoint answered the same on random noise. The only proof that a model looks is that its
score falls when the picture is

    blank      one mid-grey of the same size
    shuffled   another image of the same benchmark: a real picture, the wrong one
    noise      uniform random pixels of the same size

The one hard thing is the shuffle. Several questions share one image, so permuting the *questions'*
images would leave some question with its own picture. Here whole images are exchanged, identified by
content: all images stand in one seeded ring and each gives way to the next, so nothing keeps its own.
Everything is a pure function of the image and the seed: order and batching change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from llavamed.errors import InputError
from llavamed.imaging.decode import decode

Control = Literal["real", "blank", "shuffled", "noise"]
CONTROLS: tuple[Control, ...] = ("real", "blank", "shuffled", "noise")

_MID_GREY = (128, 128, 128)


def blank(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size, _MID_GREY)


def noise(image: Image.Image, name: str, seed: int) -> Image.Image:
    """Uniform noise of the image's size; the same for the same name and seed."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    return Image.fromarray(random.integers(0, 256, size=(image.height, image.width, 3), dtype=np.uint8))


def exchange(contents: Mapping[str, str], seed: int) -> dict[str, str]:
    """For each image name the name of the image shown instead, never one with the same content.

    `contents` maps a name to what identifies its content (a hash of the bytes). Raises InputError if
    there is only one content, because then there is no other picture to show.
    """
    name_of: dict[str, str] = {}
    for name in sorted(contents):
        name_of.setdefault(contents[name], name)
    if len(name_of) < 2:
        raise InputError("control 'shuffled': needs at least two different images; leave it out for this benchmark")
    ring = sorted(name_of)
    np.random.default_rng(seed).shuffle(ring)
    following = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    return {name: name_of[following[content]] for name, content in contents.items()}


def pictures(
    control: str, names: Sequence[str], read: Callable[[str], bytes], seed: int
) -> Callable[[str], Image.Image]:
    """The picture that a question on image `name` is asked with, under `control`.

    `names` are the benchmark's distinct images and `read` gives the bytes of one; all are read once
    for `shuffled`, which must know their contents. Raises InputError for an unknown control.
    """
    if control == "real":
        return lambda name: decode(read(name), name)
    if control == "blank":
        return lambda name: blank(decode(read(name), name))
    if control == "noise":
        return lambda name: noise(decode(read(name), name), name, seed)
    if control == "shuffled":
        shown = exchange({name: hashlib.sha256(read(name)).hexdigest() for name in names}, seed)
        return lambda name: decode(read(shown[name]), shown[name])
    raise InputError(f"control {control!r}: unknown; give one of {', '.join(CONTROLS)}")
