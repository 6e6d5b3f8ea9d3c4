"""What a benchmark is: questions, where their images are, how they are asked, what others got.

A benchmark file on disk is whatever its authors published; the reader of each (`vqa_rad.py`,
`slake.py`, `phantom.py`) turns it into this one shape. Questions keep the authors' own ids, so that
predictions made elsewhere can be matched, and the sha256 of the file says which version was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.manifest import file_sha256, files_fingerprint, fingerprint
from llavamed.records import Question


@dataclass(frozen=True)
class Published:
    """One row that others reported, in per cent; `scores` uses our names for their metrics."""

    model: str
    scores: Mapping[str, float]
    how: str  # "zero-shot", "fine-tuned, 9 epochs"...
    source: str


PAPER = "Li et al. 2023, fine-tuning table"
NOTEBOOK = "LLaVA-Med v1.0.0, run_eval_metrics.ipynb"


def llava_med_rows(rows: Iterable[tuple[str, float, float, str, str]]) -> tuple[Published, ...]:
    """Rows of (model, open recall, closed accuracy, how, source), both by the official scorer, run_eval_batch.py."""
    return tuple(
        Published(model, {"open_recall_official": recall, "closed_accuracy_official": closed}, how, source)
        for model, recall, closed, how, source in rows
    )


@dataclass(frozen=True)
class Benchmark:
    """`images` is the folder below which each question's image lies; `prompt` wraps the question's text."""

    name: str
    split: str
    questions: tuple[Question, ...]
    images: Path
    sha256: Mapping[str, str]  # data file's name -> hash of its bytes
    prompt: str = "{question}"
    published: tuple[Published, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> questions left out

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for question in self.questions:
            if question.id in seen:
                raise InputError(f"{self.name} {self.split}: the id {question.id!r} occurs twice; ids must be unique")
            seen.add(question.id)
            if Path(question.image).is_absolute() or ".." in Path(question.image).parts:
                raise InputError(
                    f"{self.name} {self.split}: the image {question.image!r} of {question.id!r} leads out of "
                    f"{self.images}; give a path below it"
                )
        if not self.questions:
            raise InputError(f"{self.name} {self.split}: no questions in {', '.join(self.sha256) or 'its files'}")

    @property
    def image_names(self) -> list[str]:
        """The distinct images, in the order of their first question."""
        return list(dict.fromkeys(question.image for question in self.questions))

    @property
    def prompt_hash(self) -> str:
        """Changes when any text that the model is asked changes."""
        return fingerprint([self.ask(question) for question in self.questions])

    def ask(self, question: Question) -> str:
        return self.prompt.replace("{question}", question.question)

    @property
    def images_fingerprint(self) -> str:
        """Changes when images are exchanged: over their names and sizes."""
        return files_fingerprint((self.images / name for name in self.image_names), self.images)

    def missing_images(self) -> list[str]:
        return [name for name in self.image_names if not (self.images / name).is_file()]

    def require_images(self) -> None:
        """Raises InputError if images are missing."""
        missing = self.missing_images()
        if missing:
            raise InputError(
                f"{self.images}: {len(missing)} of the {len(self.image_names)} images of {self.name} are absent "
                f"(first: {', '.join(missing[:3])}); put them there, or score predictions made elsewhere"
            )


def data_file(data: Path, names: Iterable[str], benchmark: str, origin: str) -> Path:
    """The first of `names` that exists in `data`; an InputError saying what belongs there and where it comes from."""
    names = list(names)
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; {benchmark} needs {' or '.join(names)} in it, {origin}")
    for name in names:
        if (data / name).is_file():
            return data / name
    raise InputError(f"{data}: holds no {' or '.join(names)}; {benchmark} needs it, {origin}")


def read_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of a JSON list of objects, and {file name: sha256}."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); fetch the file again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: must be a JSON list of objects")
    return rows, {path.name: file_sha256(path)}


def text_of(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """The value as stripped text (numbers occur as answers); an InputError that names file, row and key."""
    value = row.get(key)
    if value is None:
        raise InputError(f"{path}: row {number} has no {key!r}; is this the benchmark's own file?")
    return str(value).strip()


def is_closed(row: Mapping[str, Any], path: Path, number: int) -> bool:
    """LLaVA-Med's split of the questions; VQA-RAD has "CLOSED " with a space in two rows."""
    kind = text_of(row, "answer_type", path, number).upper()
    if kind not in {"OPEN", "CLOSED"}:
        raise InputError(f"{path}: row {number} has answer_type {kind!r}; it must be OPEN or CLOSED")
    return kind == "CLOSED"


def yes_no_options(answer: str, closed: bool) -> tuple[str, ...]:
    """These files do not list the options; a closed question answered by yes or no has those two."""
    return ("yes", "no") if closed and answer.casefold().rstrip(".") in {"yes", "no"} else ()
