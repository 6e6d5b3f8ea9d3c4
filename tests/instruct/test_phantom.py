"""Phantom articles of several seeds through the whole path, against the truth that was written beside them.

What a conversation says is read with the world's own words (`demo.wording`) and not with the teacher's lexicon: a word
that the lexicon takes for another would mislead both in the same way.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from llavamed.corpus.build import build
from llavamed.corpus.store import Corpus
from llavamed.demo import wording as w
from llavamed.demo.articles import write_articles
from llavamed.demo.truth import DOMAIN_NAMES, SCENES, SIDES, SIZES, Truth
from llavamed.instruct.facts import of_pair
from llavamed.instruct.generate import generate
from llavamed.instruct.template import Census, TemplateTeacher
from llavamed.recipe import InstructSection
from llavamed.records import Message, Pair, read_conversations

Pairs = list[tuple[Truth, tuple[str, ...], Pair]]

SEEDS, ARTICLES, DRAWS = (11, 12, 13), 20, 25
WORDS: dict[str, dict[str, str]] = {  # kind -> word -> what it stands for
    "finding": {
        **{form.lower(): name for name, forms in w.FINDING_FORMS.items() for pair in forms for form in pair},
        **{name: name for name in w.FINDING_FORMS},
    },
    "modality": {name.lower(): name for name in DOMAIN_NAMES.values()},
    "organ": {organ: organ for _, organ in SCENES},
    "side": {side: side for side in SIDES},
    "size": {size: size for size in SIZES},
    "count": {word: word for word in w.COUNT_WORDS.values()},
}


@pytest.fixture(scope="module", params=SEEDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles and their corpus."""
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    write_articles(folder / "articles", ARTICLES, seed=request.param, image_size=40)
    build(folder / "articles", folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def pairs(world: Path) -> Pairs:
    """(truth, facts that stand in the mentions alone, pair) of every single picture."""
    told = {}
    for line in (world / "articles" / "truth.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "single":
            told[row["article"], row["figure"][1:]] = Truth(**row["truths"][0]), tuple(row["withheld"])
    found = [(pair, told.get((pair.article, pair.key[-1]))) for pair in Corpus(world / "corpus").pairs()]
    return [(*truth, pair) for pair, truth in found if truth is not None]


def turns(messages: tuple[Message, ...]) -> Iterator[tuple[str, str]]:
    texts = [message.text for message in messages]
    yield from zip(texts[::2], texts[1::2], strict=True)


PATTERNS = {
    kind: re.compile(rf"\b(no )?({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})\b", re.IGNORECASE)
    for kind, words in WORDS.items()
}


@cache
def said(text: str) -> tuple[tuple[str, str, bool], ...]:
    """(kind, value, whether it is denied) of every word of the world in a text."""
    text = text.replace("Am I right", "Is it so")
    return tuple(
        (kind, WORDS[kind][found[2].lower()], bool(found[1]))
        for kind, pattern in PATTERNS.items()
        for found in pattern.finditer(text)
    )


def contradiction(truth: Truth, question: str, answer: str) -> str:
    """What in a turn is not so; "" if all is."""
    judgement, told = re.fullmatch(r"(?:(Yes|No), )?(.*)", answer, re.DOTALL).groups()  # type: ignore[union-attr]
    for kind, value, denied in said(told):
        if denied == (value == w.fact(truth, kind)):
            return f"{kind} {value}"
    looks_normal = re.search(r"\bno abnormality|(?<!not look )\bnormal\b", told, re.IGNORECASE) is not None
    if looks_normal != truth.normal and re.search(r"normal", told):
        return "normality"
    asked = [(kind, value) for kind, value, _ in said(question)]
    wrong = [value for kind, value in asked if value != w.fact(truth, kind)]
    if judgement == "Yes" and any(value != "one" for value in wrong):  # "which one"
        return f"yes to {wrong}"
    if judgement == "No" and not wrong and "normal" not in told:
        return f"no to {asked}"
    return ""


@pytest.mark.parametrize("mentions", [True, False])
def test_what_is_written_from_phantom_articles_never_contradicts_the_truth(
    mentions: bool, world: Path, pairs: Pairs, tmp_path: Path
) -> None:
    generate(world / "corpus", tmp_path / "out", InstructSection(mentions=mentions), seed=0)
    talks = {talk.images[0]: talk.messages for talk in read_conversations(tmp_path / "out" / "instruct.jsonl")}
    assert set(talks) == {pair.key for _, _, pair in pairs}
    teacher = TemplateTeacher(Census.of(of_pair(pair, mentions) for _, _, pair in pairs))
    for truth, _, pair in pairs:
        drawn = [teacher.converse(pair, mentions, 4, random.Random(draw)) for draw in range(DRAWS // 4)]
        for question, answer in (turn for messages in (talks[pair.key], *drawn) for turn in turns(messages)):
            assert not contradiction(truth, question, answer), (truth, question, answer)


def test_facts_of_the_mentions_alone_come_with_mentions_and_not_without(pairs: Pairs) -> None:
    facts = {mentions: [of_pair(pair, mentions) for _, _, pair in pairs] for mentions in (True, False)}
    teachers = {mentions: TemplateTeacher(Census.of(found)) for mentions, found in facts.items()}
    withheld = 0
    for truth, names, pair in pairs:
        told = {
            mentions: {
                (kind, value)
                for draw in range(DRAWS)
                for _, answer in turns(teacher.converse(pair, mentions, 4, random.Random(draw)))
                for kind, value, _ in said(answer)
            }
            for mentions, teacher in teachers.items()
        }
        for name in names:
            withheld += 1
            assert (name, w.fact(truth, name)) in told[True], (truth, name)
            assert not [value for kind, value in told[False] if kind == name], (truth, name)
    assert withheld >= 5


def test_the_check_finds_what_is_wrong() -> None:
    truth = Truth("ct_scan", "kidney", "stone", "left", "", 2)
    for question, answer in (
        ("What is it?", "It is an MRI."),
        ("What is seen?", "There is a cyst."),
        ("Where?", "It is on the right side."),
        ("Is there a stone?", "No, there is no stone."),
        ("Is there a stone?", "No, no abnormality is visible."),
        ("Is it on the left side?", "No, it is on the left side."),
        ("Is it on the right side?", "Yes, it is on the left side."),
        ("How many?", "There is one calculus."),
    ):
        assert contradiction(truth, question, answer), answer
    assert not contradiction(truth, "Is there a cyst?", "No, there is no cyst.")
    assert not contradiction(truth, "Is it normal?", "No, there is an abnormality.")
    assert not contradiction(Truth("mri", "brain"), "Is it normal?", "Yes, no abnormality is seen.")
