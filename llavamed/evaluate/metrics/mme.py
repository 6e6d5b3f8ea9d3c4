"""MME (Fu et al., 2023): two yes/no questions an image, one with the answer yes and one with no.

*Official* is `eval_tool/calculation.py`: the answer in lower case is "yes" if its first four characters
contain "yes", else "no" if they contain "no", else wrong. So "Not sure" is a no, "I think yes" is
neither. A subtask's score is its accuracy in percent plus its accuracy+ in percent, the share of images
with both questions right; perception adds ten subtasks (at most 2000), cognition four (at most 800):
`families/yes_no.py` adds them.

*Strict* takes the first whole word yes or no.
"""

from __future__ import annotations

from llavamed.evaluate.metrics.strict import parse_yes_no

OFFICIAL = "mme_official/1"
STRICT = "mme_strict/2"
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

parse_strict = parse_yes_no


def parse_official(prediction: str) -> str | None:
    """'yes', 'no', or None ("other" in the script)."""
    start = prediction[:_READ].lower()[:_READ]
    return next((word for word in ("yes", "no") if word in start), None)


def official_accuracy(prediction: str, reference: str) -> float:
    return float(parse_official(prediction) == reference.strip().lower())


def strict_accuracy(prediction: str, reference: str) -> float:
    return float(parse_strict(prediction) == reference.strip().lower())
