"""Cleaning what a teacher wrote, and captions that must stand as answers: rules as data, every loss counted.

A teacher that saw only text now and then says so ("based on the caption"), refuses, repeats the question, or tells what
no image shows ("a 61-year-old man", a number or a name as it stands in the caption). Each rule of `clean.yaml` removes
a phrase or a whole turn and counts itself in the funnel.

Two properties that LLaVA-Med's post-processing lacks are kept here. An answer's own capitals survive:
only the first letter is raised after a lead-in was cut ("the CT shows a GIST" -> "The CT shows a
GIST"). And the image belongs to the conversation, not to its first turn: when that turn goes, the
image moves to the turn that is now first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial

from llavamed.instruct import tables
from llavamed.records import Message


def clean(
    messages: Sequence[Message],
    num_images: int = 1,
    *,
    written: bool = False,
    closed: bool = False,
    source: Sequence[str] = (),
) -> tuple[tuple[Message, ...], Counter[str]]:
    """The turns that may stay, with exactly `num_images` images in the first of them, and the counts of what
    was mended or dropped, by rule. () if no turn is left. Images among the turns stay on their side of the text.

    What a language model has `written` may not tell what no image shows, nor repeat names and numbers of its `source`
    (caption and mentions) that none can; a `closed` question must have a closed answer.
    """
    copied: _Rules = (("copied", partial(_copied, "\n".join(source))),)
    rules = (*_RULES, *((*_WRITTEN, *copied) if written else ()), *(_CLOSED if closed else ()))
    dropped: Counter[str] = Counter()
    front = not (messages and messages[0].content and messages[0].content[-1]["type"] == "image")
    turns: list[tuple[str, str]] = []
    for question, answer in _turns(messages, dropped):
        cut_answer = _strip(answer)
        cut_question = _strip(question)
        dropped["lead_in_cut"] += (cut_answer != answer) + (cut_question != question)
        reason = next((name for name, rule in rules if rule(cut_question, cut_answer)), None)
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


def _said(name: str, *texts: str) -> bool:
    return any(pattern.search(text) for text in texts for pattern in _patterns(name))


def _repeats(question: str, answer: str) -> bool:
    """Whether the answer says nothing that the question does not say. "Is it large?" - "It is large." says yes, and of
    "left or right" one is the answer: only an open question can be repeated so."""
    asked, told = _words(question), _words(answer)
    if asked == told:
        return True
    if not re.match(r"(?:what|which|where|who|why)\b", asked) or " or " in asked or _has_options(question):
        return False
    empty = set(tables.load("clean.yaml")["empty_words"])
    return set(told.split()) - empty <= set(asked.split())


def _has_options(question: str) -> bool:
    return re.search(r"\bA[).:]", question) is not None


def _not_closed(question: str, answer: str) -> bool:
    (pattern,) = _patterns("closed")
    match = pattern.match(answer.strip())
    if match is None:
        return True
    if match["letter"] is None:  # yes or no
        return _has_options(question)
    return f"{match['letter'].upper()}) {match['option']}".lower() not in " ".join(question.split()).lower()


def _copied(source: str, question: str, answer: str) -> bool:
    """Whether a name or a number stands in the turn as it stands in the source, and cannot come from the image."""
    words = tables.load("clean.yaml")
    for text in (question, answer):
        for match in _NUMBER.finditer(text):
            before = text[: match.start()].lower().split()[-1:]
            is_label = bool(before) and before[0] in words["numbered_things"]
            if not is_label and float(match[0]) > words["counted_up_to"] and _stands(match[0], source):
                return True
        for match in _NAME.finditer(text):
            name, follows = match["name"], match["follows"]
            called = {*name.split()[1:], follows} & set(words["named_things"])
            common = set(name.replace("-", " ").split()) & set(words["common_capitals"])
            if not called and not common and _stands(name, source):
                return True
    return False


def _stands(word: str, source: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-]|\.\d)", source) is not None


def _has_person(*texts: str) -> bool:
    """Whether somebody is called by given and family name."""
    words = tables.load("clean.yaml")
    names, things = set(words["given_names"]), set(words["named_things"])
    return any(
        match["given"] in names and not {match["family"], match["follows"]} & things
        for text in texts
        for match in _PERSON.finditer(text)
    )


# a number on its own: not C6, T2, Ki-67, 18F or 4/5
_NUMBER = re.compile(r"(?<![\w./-])\d+(?![\w/]|[.-]\w)")
# two words with capitals, or one after a word of place; a sentence's first word has its capital for another reason
_NAME = re.compile(
    r"(?<=[a-z,;] )"
    r"(?P<name>[A-Z][a-z]{2,}(?:[ -][A-Z][a-z]+)+|(?:(?<=\bin )|(?<=\bat )|(?<=\bby )|(?<=\bfrom ))[A-Z][a-z]{3,})"
    r"(?![\w'’-])(?= ?(?P<follows>\w*))"
)
_PERSON = re.compile(r"\b(?P<given>[A-Z][a-z]+) (?:[A-Z]\. )?(?P<family>[A-Z][a-z]+)\b(?= ?(?P<follows>\w*))")

_Rules = tuple[tuple[str, Callable[[str, str], bool]], ...]
_RULES: _Rules = (
    ("empty", lambda question, answer: not question.strip() or not answer.strip()),
    ("refusal", lambda question, answer: _said("refusals", answer)),
    ("leak", lambda question, answer: _said("leaks", question, answer)),
    ("two_in_one", lambda question, answer: _said("speakers", question, answer)),
    ("repeats_question", _repeats),
)
_WRITTEN: _Rules = (
    ("leak", lambda question, answer: _said("pointers", question, answer)),
    ("unseeable", lambda question, answer: _said("unseeable", question, answer)),
    ("name", lambda question, answer: _said("names", question, answer) or _has_person(question, answer)),
)
_CLOSED: _Rules = (("not_closed", _not_closed),)
_WITH_CAPITALS = ("speakers", "names")


@cache
def _patterns(name: str) -> tuple[re.Pattern[str], ...]:
    # caption rules for panel letters and headings need capitals as they are: only those with letters A-H are exact
    exact = name in _WITH_CAPITALS
    rules = tables.load("clean.yaml")[name]
    return tuple(
        re.compile(p, 0 if exact or "[A-H]" in p else re.IGNORECASE)
        for p in ([rules] if isinstance(rules, str) else rules)
    )
