"""The questions of LLaVA-Med's visual chat: what a judge must know to grade an answer.

193 questions on 50 figures that no model was trained on, each with the figure's caption, the article's sentences that
mention it, and the answer of a GPT-4 that had read both and seen nothing. The file,
`llava_med_eval_qa50_qa.jsonl`, has one object a line:

    question_id, image, type (conversation | detailed_description), text, gpt4_answer,
    fig_label, fig_caption, in_text_mention, domain {chest_xray, mri, ct_scan, histology, gross: bool}

Three things in it surprise: the question ends in "\\n<image>" or does not (which LLaVA-Med's two scripts treat
differently); a figure may be of two domains, and the original then takes the first of a fixed order; the
mentions are a list of objects, a list of texts, one text or null, and the original prints them as Python would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.records import read_jsonl

ORIGIN = "llava_med_eval_qa50_qa.jsonl of LLaVA-Med (data/eval of its repository)"
DOMAINS = ("chest_xray", "mri", "histology", "gross", "ct_scan")  # of several the first counts, as in the original
IMAGE_MARK = "<image>"
_TEXTS = ("type", "text", "gpt4_answer", "fig_label", "fig_caption")


@dataclass(frozen=True)
class ChatQuestion:
    """One row of the file. `text` is the question as it stands there, perhaps with the image's mark."""

    id: str
    image: str
    kind: str
    domain: str
    text: str
    reference: str
    label: str
    caption: str
    mentions: Any

    @property
    def question(self) -> str:
        """The question without the mark of the image, which stands at its end or its beginning."""
        return self.text.strip().removesuffix(IMAGE_MARK).removeprefix(IMAGE_MARK).strip()

    @property
    def mentions_as_sentences(self) -> str:
        """One sentence a line."""
        rows = self.mentions if isinstance(self.mentions, list) else [self.mentions]
        texts = [row.get("tokens", "") if isinstance(row, dict) else row or "" for row in rows]
        return "\n".join(f"- {text}" for text in texts if text) or "(none)"


def read(path: Path) -> list[ChatQuestion]:
    """All questions in the file's order. Raises InputError that names the row for what is missing or repeated."""
    questions: dict[str, ChatQuestion] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        question = _question(row, f"{path}: row {number}")
        if question.id in questions:
            raise InputError(f"{path}: row {number} repeats the question_id {question.id!r}; ids must be unique")
        questions[question.id] = question
    if not questions:
        raise InputError(f"{path}: no questions; give {ORIGIN}")
    return list(questions.values())


def _question(row: Mapping[str, Any], where: str) -> ChatQuestion:
    missing = [name for name in _TEXTS if not isinstance(row.get(name), str)]
    missing += [name for name in ("question_id", "in_text_mention") if name not in row]
    domain = row.get("domain")
    if not isinstance(domain, Mapping):
        missing.append("domain")
    if missing:
        raise InputError(f"{where} has no {', '.join(missing)}; give {ORIGIN}, or a file with the same fields")
    assert isinstance(domain, Mapping)
    return ChatQuestion(
        id=str(row["question_id"]),
        image=str(row.get("image") or ""),
        kind=row["type"],
        domain=next((name for name in DOMAINS if domain.get(name)), "other"),
        text=row["text"],
        reference=row["gpt4_answer"],
        label=row["fig_label"],
        caption=row["fig_caption"],
        mentions=row["in_text_mention"],
    )
