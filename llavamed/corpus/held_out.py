"""What must not be trained on: a benchmark's images and questions, to be recognised wherever they turn up.

An image is recognised by its bytes (sha256); by its decoded picture (a TIFF that became a PNG has other bytes); and, as
what is published again was scaled, compressed, cut, framed, inverted and brightened on the way, by how it looks
(`imaging.lookalike`).

A question is recognised by its words: letter case, spacing and punctuation aside. Said as a whole (a turn of a
conversation) it is looked up as it is. Inside a text (a caption) only questions of at least `LEAST_WORDS` words count:
"what is this" stands in many captions that know nothing of the benchmark.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image

from llavamed.errors import InputError
from llavamed.imaging.decode import MAX_PIXELS, Glance, glance
from llavamed.imaging.lookalike import SIDE, Gallery

VERSION = 2  # of how images and questions are recognised; what was looked up by another is looked up again
LEAST_WORDS = 6
_FIRST = 4  # words by which a question's place in a text is found
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")  # each Chinese sign is a word

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Sighting:
    """`names` of the benchmark's images (it may have one under several names) that an image is a copy of; `how` it was
    recognised: "bytes", "pixels" or "looks", and how surely, 0-1."""

    names: tuple[str, ...]
    how: str
    score: float = 1.0


def words(text: str) -> str:
    """The words of a question alone: "Is there a  Nodule?" -> "is there a nodule"."""
    return " ".join(_WORDS.findall(text.casefold()))


class HeldOut:
    """`images` to be read by `read`, and `questions`; without `looks` images are known by their bytes alone."""

    def __init__(self, images: Iterable[str], read: Read | None, questions: Iterable[str], looks: bool = True) -> None:
        self.looks = looks
        self.unreadable = 0  # images that are not there, or no images
        self._same: list[list[str]] = []  # names of one picture; with `looks` the gallery's, in its order
        self._by_bytes: dict[str, int] = {}  # sha256 -> which of them
        self._by_pixels: dict[str, int] = {}
        pictures: list[Image.Image] = []
        for name in images:
            try:
                data = _read(read, name)
                digest = hashlib.sha256(data).hexdigest()
                at = self._by_bytes.get(digest)
                if at is None and looks:
                    seen = glance(data, name, side=SIDE)
                    at = self._by_pixels.setdefault(_pixels(seen), len(self._same))
                    if at == len(self._same):
                        pictures.append(seen.grey)
            except (InputError, OSError):
                self.unreadable += 1
                continue
            at = len(self._same) if at is None else at
            if at == len(self._same):
                self._same.append([])
            self._same[at].append(name)
            self._by_bytes[digest] = at
        self._gallery = Gallery(pictures)
        self.questions: dict[str, str] = {}  # words -> as it is asked
        self._begin_with: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
        for question in questions:
            said = words(question)
            if said and said not in self.questions:
                self.questions[said] = question
                parts = tuple(said.split())
                if len(parts) >= LEAST_WORDS:
                    self._begin_with[parts[:_FIRST]].append(parts)

    def __len__(self) -> int:
        """How many images it knows."""
        return sum(map(len, self._same))

    @property
    def nbytes(self) -> int:
        """What its pictures take in memory."""
        return self._gallery.nbytes

    def image(self, sha256: str, read: Callable[[], bytes], max_pixels: int = MAX_PIXELS) -> Sighting | None:
        """The held-out image that the one with these bytes is a copy of. Raises InputError if it cannot be read."""
        if (at := self._by_bytes.get(sha256)) is not None:
            return Sighting(tuple(self._same[at]), "bytes")
        if not self.looks or not self._same:
            return None
        seen = glance(read(), max_pixels=max_pixels, side=SIDE)
        if (at := self._by_pixels.get(_pixels(seen))) is not None:
            return Sighting(tuple(self._same[at]), "pixels")
        found = self._gallery.find(seen.grey)
        return found and Sighting(tuple(self._same[found[0]]), "looks", round(found[1], 3))

    def inside(self, text: str) -> list[str]:
        """The questions that stand in a text, as the benchmark asks them."""
        said = words(text).split()
        found: dict[str, None] = {}
        for at in range(len(said) - LEAST_WORDS + 1):
            for parts in self._begin_with.get(tuple(said[at : at + _FIRST]), ()):
                if tuple(said[at : at + len(parts)]) == parts:
                    found[self.questions[" ".join(parts)]] = None
        return list(found)


def _read(read: Read | None, name: str) -> bytes:
    if read is None:
        raise InputError(f"{name}: the benchmark's images are not here")
    return read(name)


def _pixels(seen: Glance) -> str:
    return hashlib.sha256(f"{seen.width}x{seen.height}".encode() + seen.grey.tobytes()).hexdigest()
