"""Cleaning what a teacher wrote, and captions that must stand as answers: rules as data, every loss counted.

A teacher that saw only text now and then says so ("based on the caption"), refuses, or repeats the
question. Each rule of `clean.yaml` removes a phrase or a whole turn and counts itself in the funnel.

Two properties that LLaVA-Med's post-processing lacks are kept here. An answer's own capitals survive:
only the first letter is raised after a lead-in was cut ("the CT shows a GIST" -> "The CT shows a
GIST"). And the image belongs to the conversation, not to its first turn: when that turn goes, the
image moves to the turn that is now first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from llavamed.instruct import tables
from llavamed.records import Message


def clean(messages: Sequence[Message], num_images: int = 1) -> tuple[tuple[Message, ...], Counter[str]]:
    """The turns that may stay, with exactly `num_images` images in the first of them, and the counts of what
    was mended or dropped, by rule. () if no turn is left. Images among the turns stay on their side of the text."""
    dropped: Counter[str] = Counter()
    front = not (messages and messages[0].content and messages[0].content[-1]["type"] == "image")
    turns: list[tuple[str, str]] = []
    for question, answer in _turns(messages, dropped):
        cut_answer = _strip(answer)
        cut_question = _strip(question)
        dropped["lead_in_cut"] += (cut_answer != answer) + (cut_question != question)
        reason = next((name for name, rule in _RULES if rule(cut_question, cut_answer)), None)
        if reason:
            dropped[f"turn_{reason}"] += 1
        else:
            turns.append((cut_question, cut_answer))
    if turns and sum(m.num_images for m in messages) != num_images:
        dropped["image_token_restored"] += 1
    kept: list[Message] = []
    images: tuple[dict[str, str], ...] = tuple({"type": "image"} for _ in range(num_images))
    for number, (question, answer) in enumerate(turns):
        text = ({"type": "text", "text": question},)
        first = () if number else images
        kept.append(Message("user", (*first, *text) if front else (*text, *first)))
        kept.append(Message("assistant", ({"type": "text", "text": answer},)))
    return tuple(kept), +dropped


def clean_caption(caption: str) -> str:
    """A caption that can be an answer about the picture: without "Figure 1.", panel letters, references, notes on
    arrows, scale bars and sources. May be empty."""
    text = " ".join(caption.split())
    for pattern in _patterns("caption"):
        text = pattern.sub(" ", text)
    text = re.sub(r"\(\s*[,;]*\s*\)", " ", text)
    text = re.sub(r"\s+([.,;:)])", r"\1", " ".join(text.split()))
    text = re.sub(r"([.,;:])[.,;:]+", r"\1", text).lstrip(".,;:-–— ")
    return text[:1].upper() + text[1:] if text else ""


def _turns(messages: Sequence[Message], dropped: Counter[str]) -> list[tuple[str, str]]:
    """Question and answer by turns; a speaker out of order loses what cannot be paired."""
    turns: list[tuple[str, str]] = []
    question: str | None = None
    for message in messages:
        text = message.text.replace("<image>", " ").strip()
        if message.role == "user":
            dropped["speaker_order"] += question is not None
            question = text
        elif message.role == "assistant":
            if question is None:
                dropped["speaker_order"] += 1
            else:
                turns.append((question, text))
            question = None
    dropped["speaker_order"] += question is not None
    return turns


def _strip(text: str) -> str:
    cut = text
    for pattern in _patterns("strip"):
        cut = pattern.sub("", cut)
    return cut[:1].upper() + cut[1:] if cut != text else text


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _said(name: str, text: str) -> bool:
    return any(pattern.search(text) for pattern in _patterns(name))


_RULES: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    ("empty", lambda question, answer: not question.strip() or not answer.strip()),
    ("refusal", lambda question, answer: _said("refusals", answer)),
    ("leak", lambda question, answer: _said("leaks", question) or _said("leaks", answer)),
    ("repeats_question", lambda question, answer: _words(question) == _words(answer)),
)


@cache
def _patterns(name: str) -> tuple[re.Pattern[str], ...]:
    # caption rules for panel letters and headings need capitals as they are: only those with letters A-H are exact
    return tuple(re.compile(p, 0 if "[A-H]" in p else re.IGNORECASE) for p in tables.load("clean.yaml")[name])
