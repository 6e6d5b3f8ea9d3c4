"""The offline teacher on the phantom world, whose truth is written down."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from llavamed.corpus.jats import parse_article
from llavamed.demo.truth import DOMAIN_NAMES, Truth
from llavamed.instruct import tables
from llavamed.instruct.clean import clean
from llavamed.instruct.facts import GENERIC, extract, of_pair
from llavamed.instruct.formats import problems
from llavamed.instruct.template import Census, TemplateTeacher
from llavamed.records import Conversation, Mention, Message, Pair

Turn = tuple[Truth, str, str]
NUMBERS = {"one": 1, "two": 2, "three": 3}


@pytest.fixture(scope="module")
def teacher(world: list[tuple[Truth, Pair]]) -> TemplateTeacher:
    return TemplateTeacher(Census.of(of_pair(pair, mentions=True) for _, pair in world))


@pytest.fixture(scope="module")
def told(world: list[tuple[Truth, Pair]], teacher: TemplateTeacher) -> list[tuple[Truth, tuple[Message, ...]]]:
    return [(truth, teacher.converse(pair, True, 4, random.Random(pair.key))) for truth, pair in world]


@pytest.fixture(scope="module")
def turns(told: list[tuple[Truth, tuple[Message, ...]]]) -> list[Turn]:
    return [(truth, q, a) for truth, messages in told for q, a in _turns(messages)]


def _turns(messages: tuple[Message, ...]) -> Iterator[tuple[str, str]]:
    texts = [message.text for message in messages]
    yield from zip(texts[::2], texts[1::2], strict=True)


def _kind(question: str) -> str:
    return _read(question)[0]


def _read(question: str) -> tuple[str, str]:
    """The kind whose wording the question has, of those that fit the one with the most words of its own, and the
    value it puts up ("" for an open question)."""
    fitting = [(own, kind, found) for pattern, own, kind in _wordings() if (found := pattern.fullmatch(question))]
    _, kind, found = max(fitting, key=lambda row: row[:2])
    values = {name: value for name, value in found.groupdict().items() if name.startswith("asked_")}
    values.pop("asked_is", None)
    return kind, _canonical(next(iter(values.values()), ""))


def _canonical(value: str) -> str:
    """ "a CT image" -> "CT", "an area of necrosis" -> "necrosis", "two nodules" -> "two"."""
    for table in ("modality", "finding"):
        terms = tables.load("lexicon.yaml")[table]["terms"]
        value = next((name for name, term in terms.items() if term["one"] == value), value)
    first = value.split(" ")[0]
    return first if first in NUMBERS else value


@cache
def _wordings() -> list[tuple[re.Pattern[str], int, str]]:
    rows = []
    for kind, entry in tables.load("questions.yaml")["kinds"].items():
        for wording in entry["questions"]:
            pieces = re.split(r"\{(\w+)\}", wording)  # own words and slots by turns
            pattern, seen = "", set[str]()
            for i, piece in enumerate(pieces):
                pattern += (f"(?P={piece})" if piece in seen else _filling(piece)) if i % 2 else re.escape(piece)
                seen |= {piece} if i % 2 else set()
            rows.append((re.compile(pattern), sum(map(len, pieces[::2])), kind))
    return rows


def _filling(slot: str) -> str:
    """What may stand in a slot: "Are we dealing with ...?" is asked of modalities and of findings."""
    if "modality" not in slot:
        return f"(?P<{slot}>.+)"
    terms = tables.load("lexicon.yaml")["modality"]["terms"]
    return f"(?P<{slot}>{'|'.join(re.escape(name) for term in terms for name in (term, terms[term]['one']))})"


def test_every_kind_has_the_wordings_that_were_asked_for() -> None:
    table = tables.load("questions.yaml")
    for kind, entry in table["kinds"].items():
        assert len(set(entry["questions"])) >= 6, kind
        lists = (
            list(entry["parts"].values())
            if "parts" in entry
            else [v for k, v in entry.items() if k in ("yes", "no", "answers")]
        )
        assert lists, kind
        assert all(len(set(wordings)) >= 3 for wordings in lists), kind
        for answer, start in (("yes", "Yes,"), ("no", "No,")):
            assert all(wording.startswith(start) for wording in entry.get(answer, ())), kind
    assert {k for g in table["groups"].values() for k in g["kinds"]} | {"normality"} == set(table["kinds"])


def test_answers_never_contradict_the_truth(turns: list[Turn]) -> None:
    for truth, question, answer in turns:
        said = extract(answer.removeprefix("Yes, ").removeprefix("No, "))
        assert said.modality in (None, DOMAIN_NAMES[truth.domain]), answer
        assert said.organ in (None, truth.organ), answer
        assert said.finding in (None, truth.finding, *([] if truth.normal else [GENERIC])), (question, answer)
        assert truth.finding not in said.absent, answer
        assert said.side in (None, truth.side), answer
        assert said.size in (None, truth.size), answer
        numbers = [NUMBERS[word] for word in re.findall(r"\w+", answer) if word in NUMBERS]
        assert all(number == truth.count for number in numbers), answer


def test_closed_answers_are_right(turns: list[Turn]) -> None:
    closed = [turn for turn in turns if turn[2].startswith(("Yes,", "No,"))]
    assert len(closed) > 1000
    for truth, question, answer in closed:
        kind, value = _read(question)
        right = {
            "is_modality": value == DOMAIN_NAMES[truth.domain],
            "is_organ": value == truth.organ,
            "abnormality": not truth.normal,
            "normality": truth.normal,
            "has_finding": value == truth.finding,
            "side_closed": value == truth.side,
            "size_closed": value == truth.size,
            "count_closed": NUMBERS.get(value) == truth.count,
        }[kind]
        assert answer.startswith("Yes,") == right, (question, answer, truth)


def test_open_answers_hold_the_canonical_word(turns: list[Turn]) -> None:
    for truth, question, answer in turns:
        kind = _kind(question)
        if answer.startswith(("Yes,", "No,")) or kind == "describe":
            continue
        number = {number: word for word, number in NUMBERS.items()}.get(truth.count, "")
        word = {"modality": DOMAIN_NAMES[truth.domain], "organ": truth.organ, "side": truth.side, "size": truth.size,
                "count": number, "finding": "no abnormality" if truth.normal else truth.finding}[kind]  # fmt: skip
        assert word.lower() in answer.lower(), (question, answer)


def test_nothing_is_asked_that_the_text_does_not_say() -> None:
    pair = Pair("k", "k.png", "MRI of the spine.")
    for seed in range(60):
        for question, _ in _turns(TemplateTeacher().converse(pair, True, 4, random.Random(seed))):
            assert _kind(question) in {"modality", "is_modality", "organ", "is_organ", "describe"}
    normal = Pair("k", "k.png", "CT of the left kidney. No abnormality is seen.")
    for seed in range(60):
        for question, _ in _turns(TemplateTeacher().converse(normal, True, 4, random.Random(seed))):
            assert not _kind(question).startswith(("side", "size", "count"))


def test_facts_that_stand_only_in_mentions_come_with_mentions_and_not_without() -> None:
    pair = Pair("k", "k.png", "CT of the brain with a haemorrhage.", "Figure 1",
                (Mention("As seen in Figure 1, the lesion was large and lay on the left side."),))  # fmt: skip
    words = {True: "", False: ""}
    for mentions in words:
        for seed in range(40):
            messages = TemplateTeacher().converse(pair, mentions, 4, random.Random(seed))
            words[mentions] += " ".join(message.text for message in messages) + " "
    assert "left side" in words[True]
    assert "large" in words[True]
    for word in ("left", "right", "large", "small"):
        assert word not in words[False]


def test_yes_is_right_half_of_the_time_for_every_kind(
    world: list[tuple[Truth, Pair]], teacher: TemplateTeacher
) -> None:
    yes: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    for run in range(2):
        for _, pair in world:
            messages = teacher.converse(pair, True, 4, random.Random(f"{run}/{pair.key}"))
            for question, answer in _turns(messages):
                if answer.startswith(("Yes,", "No,")):
                    kind = _kind(question)
                    kind = "abnormality" if kind == "normality" else kind
                    closed[kind] += 1
                    yes[kind] += answer.startswith("Yes,")
    assert set(closed) == {"is_modality", "is_organ", "abnormality", "has_finding", "side_closed", "size_closed",
                           "count_closed"}  # fmt: skip
    for kind, number in closed.items():
        assert 0.45 <= yes[kind] / number <= 0.55, (kind, yes[kind], number)


@pytest.mark.parametrize("normal_share", [0.05, 0.25, 0.45])
def test_balance_does_not_hang_on_how_many_images_are_normal(normal_share: float) -> None:
    rng = random.Random(1)
    pairs = []
    for number in range(1500):
        finding = rng.choice(["a cyst", "a stone", "a haemorrhage"])
        said = "No abnormality is seen." if rng.random() < normal_share else f"There is {finding}."
        pairs.append(Pair(f"p{number}", f"p{number}.png", f"CT of the kidney. {said}"))
    teacher = TemplateTeacher(Census.of(of_pair(pair, mentions=False) for pair in pairs))
    yes: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    shown: Counter[bool] = Counter()
    for pair in pairs:
        for question, answer in _turns(teacher.converse(pair, False, 3, random.Random(pair.key))):
            kind = _kind(question)
            if kind == "has_finding":
                closed[kind] += 1
                yes[kind] += answer.startswith("Yes,")
            if kind in ("abnormality", "normality"):
                shown["No abnormality" in pair.caption] += 1
    assert abs(yes["has_finding"] / closed["has_finding"] - 0.5) < 0.08
    assert abs(shown[True] / shown.total() - 0.5) < 0.12  # as many normal as abnormal images are asked about


def test_a_reader_of_the_questions_alone_is_right_about_half_of_the_time(turns: list[Turn]) -> None:
    closed = [(q, a.split(",")[0]) for _, q, a in turns if a.startswith(("Yes,", "No,"))]
    half = len(closed) // 2
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in closed[:half]:
        seen[question][answer] += 1
    hits = sum(seen[q].most_common(1)[0][0] == a if q in seen else a == "Yes" for q, a in closed[half:])
    assert hits / (len(closed) - half) < 0.6


def test_all_kinds_occur_and_none_dominates(turns: list[Turn]) -> None:
    kinds = Counter(_kind(question) for _, question, _ in turns)
    kinds["abnormality"] += kinds.pop("normality")
    shares = {kind: number / kinds.total() for kind, number in kinds.items()}
    assert len(shares) == 14
    assert min(shares.values()) > 0.03, shares
    assert max(shares.values()) < 0.15, shares


def test_the_image_stands_once_in_the_first_turn_and_speakers_alternate(
    told: list[tuple[Truth, tuple[Message, ...]]],
) -> None:
    lengths: Counter[int] = Counter()
    for _, messages in told:
        assert [m.num_images for m in messages] == [1] + [0] * (len(messages) - 1)
        assert [m.role for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        lengths[len(messages) // 2] += 1
    assert max(lengths) == 4
    assert lengths[4] > 0.8 * lengths.total()


def test_no_turn_is_given_away_by_an_earlier_one(told: list[tuple[Truth, tuple[Message, ...]]]) -> None:
    groups = tables.load("questions.yaml")["groups"]
    group_of = {kind: group for group, entry in groups.items() for kind in entry["kinds"]} | {"normality": "finding"}
    for _, messages in told:
        asked = [group_of[_kind(question)] for question, _ in _turns(messages)]
        assert len(set(asked)) == len(asked)
        assert [groups[g]["rank"] for g in asked] == sorted(groups[g]["rank"] for g in asked)


def test_no_turn_speaks_of_the_text_and_cleaning_finds_nothing_to_do(
    told: list[tuple[Truth, tuple[Message, ...]]],
) -> None:
    for _, messages in told:
        kept, dropped = clean(messages)
        assert kept == messages
        assert not dropped
        for message in messages:
            assert not re.search(r"caption|\btext\b|figure|context|[{}]|  ", message.text), message.text
            assert message.text[0].isupper()
            assert message.text[-1] in ".?"


def test_real_captions_give_sound_conversations_that_do_not_speak_of_the_text(shared_data: Path) -> None:
    asked: Counter[str] = Counter()
    for path in sorted((shared_data / "jats_pmc").glob("*.*ml")):
        for figure in parse_article(path.read_bytes()).figures:
            mentions = tuple(Mention(mention.sentence) for mention in figure.mentions)
            pair = Pair(f"{path.stem}-{figure.id}", "x.png", figure.caption, figure.label, mentions)
            messages, dropped = clean(TemplateTeacher().converse(pair, True, 4, random.Random(pair.key)))
            asked.update(dropped)
            asked["conversations"] += bool(messages)
            assert problems(Conversation(pair.key, ("x",), messages)) in (
                [],
                ["0 image tokens for 1 images", "no turns"],
            )
            assert not re.search(r"\bcaption\b|\bfig(ure|\.)? ?\d", " ".join(m.text for m in messages), re.IGNORECASE)
    assert asked["conversations"] > 40
    assert asked["conversations"] > 10 * (asked.total() - asked["conversations"])


def test_defect_8_the_same_seed_gives_the_same_turns_and_another_gives_others(
    world: list[tuple[Truth, Pair]], teacher: TemplateTeacher
) -> None:
    pair = world[0][1]
    assert teacher.converse(pair, True, 4, random.Random("a")) == teacher.converse(pair, True, 4, random.Random("a"))
    assert len({str(teacher.converse(pair, True, 4, random.Random(n))) for n in range(20)}) > 10


def test_a_pair_without_facts_is_described_by_its_cleaned_caption() -> None:
    pair = Pair("k", "k.png", "Figure 3. (A) The wings of the moth (arrow) are folded.")
    (question, answer) = TemplateTeacher().converse(pair, True, 4, random.Random(0))
    assert question.num_images == 1
    assert answer.text == "The wings of the moth are folded."
    assert TemplateTeacher().converse(Pair("k", "k.png", "Figure 3."), True, 4, random.Random(0)) == ()


def test_a_finding_in_doubt_or_by_another_name_is_never_the_false_one() -> None:
    pair = Pair("k", "k.png", "Chest X-ray with a nodule and a possible effusion.")
    teacher = TemplateTeacher()
    for seed in range(200):
        for question, answer in _turns(teacher.converse(pair, False, 4, random.Random(seed))):
            if answer.startswith("No,") and _kind(question) == "has_finding":
                assert not re.search("effusion|tumour|nodule", question)


def test_the_number_of_a_finding_is_not_asked_where_the_corpus_knows_one_number_only() -> None:
    teacher = TemplateTeacher(Census(counts={"haemorrhage": Counter({1: 50})}))
    pair = Pair("k", "k.png", "CT of the brain with a large haemorrhage on the left side.")
    for seed in range(60):
        for question, _ in _turns(teacher.converse(pair, False, 4, random.Random(seed))):
            assert not _kind(question).startswith("count")


def test_the_tables_are_plain_strings() -> None:
    """YAML 1.1 reads yes, no and on as truth values; a wording table must not lose a key that way."""
    for name in ("lexicon.yaml", "questions.yaml", "clean.yaml"):
        for key in _keys(tables.load(name)):
            assert not isinstance(key, bool), (name, key)


def _keys(tree: object) -> Iterator[object]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _keys(value)
    elif isinstance(tree, list):
        for value in tree:
            yield value if not isinstance(value, dict) else None
            yield from _keys(value)
