"""Controls: the same questions with what should decide the answer taken away or turned.

A model that answers from the question alone scores well on many medical benchmarks; one reported LLaVA-Med
checkpoint answered the same on random noise. The only proof that a model looks is that its score falls when the
picture is

    blank      one mid-grey of the same size
    shuffled   another image of the same benchmark: a real picture, the wrong one
    noise      uniform random pixels of the same size
    text-only  not there at all

The one hard thing is the shuffle. Several questions share one image, so permuting the *questions'* images would
leave some question with its own picture. Here whole images are exchanged, identified by content: all images stand
in one seeded ring and each gives way to the next, so nothing keeps its own. Everything is a pure function of the
image and the seed: order and batching change nothing.

Multiple choice has a control of its own: `rotated` asks each question again with its options moved on by one, by
two ..., until every option has stood at every letter. A model that prefers a letter is right by luck in one order
and wrong in the others. Questions whose options speak of one another ("all of the above", "A and B") mean something
else when they are moved, and are not asked again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from PIL import Image

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.imaging.decode import decode
from llavamed.recipe import Control
from llavamed.records import Question

CONTROLS: tuple[Control, ...] = get_args(Control)
OF_THE_IMAGE = ("blank", "shuffled", "noise", "text-only")  # those that say whether the model looks

_MID_GREY = (128, 128, 128)
_EACH_OTHER = re.compile(
    r"\b(above|below|preceding|following)\b|\b[A-J]\s*(,|and|or|&|\+|/)\s*[A-J]\b|\b(both|option|choice)s?\s+[a-j]\b",
    re.IGNORECASE,
)


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
    if control in ("real", "text-only", "rotated"):
        return lambda name: decode(read(name), name)
    if control == "blank":
        return lambda name: blank(decode(read(name), name))
    if control == "noise":
        return lambda name: noise(decode(read(name), name), name, seed)
    if control == "shuffled":
        shown = exchange({name: hashlib.sha256(read(name)).hexdigest() for name in names}, seed)
        return lambda name: decode(read(shown[name]), shown[name])
    raise InputError(f"control {control!r}: unknown; give one of {', '.join(CONTROLS)}")


def asked(benchmark: Benchmark, control: str) -> Benchmark:
    """What is asked under `control`: without images, with rotated options, or the benchmark as it is."""
    if control == "text-only":
        return replace(benchmark, questions=tuple(replace(q, image="", more_images=()) for q in benchmark.questions))
    if control == "rotated":
        return replace(
            benchmark,
            questions=tuple(turned for question in benchmark.questions for turned in rotations(question)),
            aliases={},
        )
    return benchmark


def left_out(benchmark: Benchmark, controls: Iterable[str]) -> dict[str, str]:
    """control -> why it cannot be asked of this benchmark. Nothing is said where only its answers are there."""
    reasons: dict[str, str] = {}
    if not benchmark.has_questions:
        return reasons
    if not benchmark.image_names:
        reasons = dict.fromkeys(OF_THE_IMAGE, "the questions have no images")
    elif len(benchmark.image_names) == 1:
        reasons["shuffled"] = "there is only one image"
    if not any(rotations(question) for question in benchmark.questions):
        reasons["rotated"] = "no question has lettered options that can be moved"
    return {control: reasons[control] for control in controls if control in reasons}


def rotations(question: Question) -> list[Question]:
    """The question with its options moved on by 1, 2, ... letters; none if it has no options that can be moved.

    The id is the question's, `@` and by how many letters.
    """
    letters, texts = list(question.lettered), list(question.lettered.values())
    if question.letter not in letters or len(letters) < 2 or any(map(_EACH_OTHER.search, texts)):
        return []
    right = letters.index(question.letter)
    turned = []
    for shift in range(1, len(letters)):
        moved = {letter: texts[(place + shift) % len(texts)] for place, letter in enumerate(letters)}
        turned.append(
            replace(
                question,
                id=f"{question.id}@{shift}",
                options=tuple(moved.get(chr(ord("A") + place), "") for place in range(len(question.options))),
                letter=letters[(right - shift) % len(letters)],
            )
        )
    return turned


def unturned(question: Question, shift: int, letter: str | None) -> str | None:
    """Where the option stood in `question` that has `letter` after moving on by `shift`."""
    letters = list(question.lettered)
    return letters[(letters.index(letter) + shift) % len(letters)] if letter in letters else None
