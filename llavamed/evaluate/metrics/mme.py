"""MME (Fu et al., 2023): two yes/no questions an image, one with the answer yes and one with no.

*Official* is `eval_tool/calculation.py`: the answer in lower case is "yes" if its first four characters
contain "yes", else "no" if they contain "no", else wrong. So "Not sure" is a no, "I think yes" is
neither. A subtask's score is its accuracy in percent plus its accuracy+ in percent, the share of images
with both questions right; perception adds ten subtasks (at most 2000), cognition four (at most 800).

*Strict* takes the first whole word yes or no.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from llavamed.evaluate.metrics.strict import parse_yes_no

OFFICIAL = "mme_official/1"
STRICT = "mme_strict/1"
WHY_THEY_DIFFER = (
    "The official script looks for the letters yes or no in the first four characters only, so that 'Not sure' is a "
    "no and 'I think yes' is wrong; the strict score takes the first whole word yes or no anywhere in the answer."
)

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_READ = 4  # characters of the answer that the script looks at
_QUESTIONS_PER_IMAGE = 2

parse_strict = parse_yes_no


def parse_official(prediction: str) -> str | None:
    """'yes', 'no', or None ("other" in the script)."""
    start = prediction[:_READ].lower()[:_READ]
    return next((word for word in ("yes", "no") if word in start), None)


def official_accuracy(prediction: str, reference: str) -> float:
    return float(parse_official(prediction) == reference.strip().lower())


def strict_accuracy(prediction: str, reference: str) -> float:
    return float(parse_strict(prediction) == reference.strip().lower())


def summary(rows: Iterable[tuple[str, str, float]]) -> dict[str, Any]:
    """{"subtasks": {name: {"accuracy", "accuracy_plus" (0-1), "score" (0-200)}}, "perception", "cognition"}.

    Rows are (image, subtask, credit), in any order. "perception" (0-2000) is None unless all its ten subtasks
    are there, "cognition" (0-800) unless all its four are. Raises ValueError unless each image has two questions.
    """
    images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for image, subtask, credit in rows:
        images[subtask][image].append(credit)
    subtasks = {subtask: _subtask(subtask, by_image) for subtask, by_image in images.items()}
    totals = {"perception": PERCEPTION, "cognition": COGNITION}
    return {"subtasks": subtasks} | {kind: _total(subtasks, names) for kind, names in totals.items()}


def _subtask(name: str, by_image: dict[str, list[float]]) -> dict[str, float]:
    for image, credits in by_image.items():
        if len(credits) != _QUESTIONS_PER_IMAGE:
            raise ValueError(f"MME {name}: image {image!r} has {len(credits)} questions; it must have two")
    questions = _QUESTIONS_PER_IMAGE * len(by_image)
    accuracy = sum(sum(credits) for credits in by_image.values()) / questions
    plus = sum(sum(credits) == _QUESTIONS_PER_IMAGE for credits in by_image.values()) / len(by_image)
    return {"accuracy": accuracy, "accuracy_plus": plus, "score": 100 * (accuracy + plus)}


def _total(subtasks: dict[str, dict[str, float]], names: tuple[str, ...]) -> float | None:
    return sum(subtasks[name]["score"] for name in names) if set(names) <= subtasks.keys() else None
