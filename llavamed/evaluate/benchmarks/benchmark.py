"""What a benchmark is: questions, where their images are, how they are asked, what others got.

A benchmark's files are whatever its authors published; the reader of each (`vqa_rad.py`, `mmmu.py`,
`pope.py` ...) turns them into this one shape. Questions keep the authors' own ids, so that
predictions made elsewhere can be matched, and the sha256 of the files says which version was read.

Every reader is a module with the same six names: NAME; SPLITS and SPLIT, the one that is meant where
none is named; ORIGIN, where the files come from and how they must lie; SIGNS, by which a folder of this
benchmark is known (`recognise.py`); and `read(data, split)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from llavamed.corpus.store import open_images
from llavamed.errors import InputError
from llavamed.manifest import files_fingerprint, fingerprint
from llavamed.records import Question

SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."  # LLaVA-1.5, docs/Evaluation.md
LETTER_ANSWER = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
LLAVA_15 = "Liu et al. 2024, LLaVA-1.5, docs/MODEL_ZOO.md"

_FIELD = re.compile(r"\{(question|options)\}")


@dataclass(frozen=True)
class Published:
    """One row that others reported, in per cent; `scores` uses our names for their metrics."""

    model: str
    scores: Mapping[str, float]
    how: str  # "zero-shot", "fine-tuned, 9 epochs"...
    source: str


class Embedded(Protocol):
    """Images inside the benchmark's own file, by name (`stored.py`)."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class Benchmark:
    """`images` is the folder below which each question's images lie, unless they are `embedded`.

    `prompt` wraps a question's text, and `choice_prompt` that of a question with lettered options, each on a line of
    the form `option_line`. `family` names its metrics (`evaluate/families`).
    """

    name: str
    split: str
    questions: tuple[Question, ...]
    images: Path
    sha256: Mapping[str, str]  # data file's name -> hash of its bytes
    prompt: str = "{question}"
    choice_prompt: str = LETTER_ANSWER
    option_line: str = "{letter}. {option}"
    family: str = "llava_med"
    max_new_tokens: int = 64  # of an answer, where the user names no other
    by_likelihood: bool = False  # the answer is the likeliest of the letters, and nothing is generated
    published: tuple[Published, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> questions left out
    noted: Mapping[str, int] = field(default_factory=dict)  # oddity of the data -> questions that have it and stay
    embedded: Embedded | None = None
    beside: frozenset[str] = frozenset()  # ids of the same files that are not asked: answers to them are passed over
    # how others' files name a question -> its id: their id, or their id, a line end and the question in lower case
    aliases: Mapping[str, str] = field(default_factory=dict)

    parts: tuple[str, ...] = ()  # files that count their questions alike, in order: an id is PART/NUMBER

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for question in self.questions:
            if question.id in seen:
                raise InputError(f"{self.name} {self.split}: the id {question.id!r} occurs twice; ids must be unique")
            seen.add(question.id)
            for image in question.images:
                if Path(image).is_absolute() or ".." in Path(image).parts:
                    raise InputError(
                        f"{self.name} {self.split}: the image {image!r} of {question.id!r} leads out of "
                        f"{self.images}; give a path below it"
                    )
        if not self.questions:
            raise InputError(f"{self.name} {self.split}: no questions in {', '.join(self.sha256) or 'its files'}")

    @property
    def image_names(self) -> list[str]:
        """The distinct images, in the order of their first question."""
        return list(dict.fromkeys(image for question in self.questions for image in question.images))

    @property
    def prompt_hash(self) -> str:
        """Changes when any text that the model is asked changes."""
        return fingerprint([self.ask(question) for question in self.questions])

    def ask(self, question: Question) -> str:
        """The text of the user's turn."""
        lines = (
            self.option_line.replace("{letter}", letter).replace("{option}", option)
            for letter, option in question.lettered.items()
        )
        filled = {"question": question.question, "options": "\n".join(lines) if question.letter else ""}
        return _FIELD.sub(lambda found: filled[found[1]], self.choice_prompt if question.letter else self.prompt)

    @property
    def prompts(self) -> str:
        """The form, or the two forms, in which the questions are asked, for a person to read."""
        choice = self.choice_prompt.replace("{options}", f"{self.option_line} ...")
        used = [choice if question.letter else self.prompt for question in self.questions]
        return " | ".join(dict.fromkeys(used))

    @property
    def images_fingerprint(self) -> str:
        """Changes when images are exchanged: over their names and sizes. Of embedded ones `sha256` says it."""
        if self.embedded is not None:
            return ""
        return files_fingerprint((self.images / name for name in self.image_names), self.images)

    def missing_images(self) -> list[str]:
        if self.embedded is not None:
            return [name for name in self.image_names if name not in self.embedded]
        return [name for name in self.image_names if not (self.images / name).is_file()]

    def require_questions(self) -> None:
        """Raises InputError where only the answer key is there."""
        if not self.has_questions:
            raise InputError(
                f"{self.images}: holds the answers of {self.name} and not its questions, so there is nothing to ask; "
                "get the whole benchmark, or score predictions made elsewhere"
            )

    def require_images(self) -> None:
        """Raises InputError if images are missing, or the questions themselves."""
        self.require_questions()
        missing = self.missing_images()
        if missing:
            raise InputError(
                f"{self.images}: {len(missing)} of the {len(self.image_names)} images of {self.name} are absent "
                f"(first: {', '.join(missing[:3])}); put them there, or score predictions made elsewhere"
            )

    @property
    def has_questions(self) -> bool:
        """False where only the answer key is there: answers can be scored and nothing asked."""
        return any(question.question for question in self.questions)

    @property
    def has_images(self) -> bool:
        """Whether any image could be on this disk."""
        return bool(self.image_names) and (self.embedded is not None or self.images.is_dir())

    @cached_property
    def read_image(self) -> Callable[[str], bytes]:
        """How to get an image's bytes by its name. Raises InputError if there are none."""
        return self.embedded.read if self.embedded is not None else open_images(self.images)
