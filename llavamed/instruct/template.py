"""The offline teacher: from what a text says about an image to a conversation about the image, by rule.

LLaVA-Med let GPT-4 write the conversations, blind, from caption and mentions. This teacher needs no
model and no network: it asks only what `facts.py` read from the text, in the wordings of
`questions.yaml`, as if both speakers saw the image.

The hard part is that the words must not answer for the image:

* a closed question is made for its answer. Yes or no is drawn first, then the question is built to
  fit, so that "yes" is right half of the time;
* that alone fails where one truth is common, for most published images show something abnormal. So the
  `Census` of the whole corpus thins the common side: "Is there an abnormality?" is put to as many
  abnormal images as there are normal ones, and a normal image's sure "no" to "Is there a nodule?" is
  paid for with more "yes" elsewhere. False findings are drawn as often as they occur;
* a conversation asks once about a fact, and never after an answer that gave it away.

A false finding rests on a closed world: what a text does not mention is taken not to be shown. Names
that one thing may bear (nodule, tumour) and findings left in doubt are therefore never the false one.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llavamed.instruct import tables
from llavamed.instruct.clean import clean_caption
from llavamed.instruct.facts import GENERIC, NONE, Count, Facts, of_pair
from llavamed.records import Message, Pair, assistant, user

_NUMBERS = {1: "one", 2: "two", 3: "three", "multiple": "multiple"}
_MIN_CAPTION_WORDS = 3  # a cleaned caption shorter than this describes nothing


@dataclass(frozen=True)
class Census:
    """What occurs in a corpus: how the false questions are weighed. The default stands for a corpus unseen."""

    normal_share: float = 0.25  # of the pairs whose text says normal or abnormal
    findings: Mapping[str, Counter[str]] = field(default_factory=dict)  # by modality ("" where unknown)
    organs: Mapping[str, Counter[str]] = field(default_factory=dict)  # by modality
    modalities: Counter[str] = field(default_factory=Counter)
    counts: Mapping[str, Counter[Count]] = field(default_factory=dict)  # how many, by finding

    @classmethod
    def of(cls, facts: Iterable[Facts]) -> Census:
        normal = known = 0
        findings: dict[str, Counter[str]] = defaultdict(Counter)
        organs: dict[str, Counter[str]] = defaultdict(Counter)
        modalities: Counter[str] = Counter()
        counts: dict[str, Counter[Count]] = defaultdict(Counter)
        for fact in facts:
            known += fact.finding is not None
            normal += fact.finding == NONE
            modality = fact.modality or ""
            findings[modality].update(fact.findings)
            if fact.modality:
                modalities[modality] += 1
            if fact.organ:
                organs[modality][fact.organ] += 1
            if fact.finding and fact.count is not None:
                counts[fact.finding][fact.count] += 1
        return cls(
            normal / known if known else cls.normal_share, dict(findings), dict(organs), modalities, dict(counts)
        )

    def always_the_same_number(self, finding: str | None) -> bool:
        """True if the corpus counts this finding and finds one number only: then asking teaches to guess."""
        return len(self.counts.get(finding or "", {})) == 1


class TemplateTeacher:
    """Writes conversations without a model. The same pair and the same `rng` state give the same turns."""

    name = "template"
    closed, by_rule = False, True

    def __init__(self, census: Census | None = None) -> None:
        self.census = census or Census()
        self.prompt_hash = tables.sha("lexicon.yaml", "questions.yaml", "clean.yaml")

    def converse(self, pair: Pair, mentions: bool, turns: int, rng: random.Random) -> tuple[Message, ...]:
        """At most `turns` questions with their answers; the first carries the image. With `mentions` the
        sentences that cite the figure are read too. A text without facts gives one describing turn whose answer
        is the cleaned caption; () if not even that is left."""
        facts = of_pair(pair, mentions)
        told = [turn for kind in self._kinds(facts, turns, rng) for turn in self._turn(kind, facts, rng)]
        if not told:
            caption = clean_caption(pair.caption)
            if len(caption.split()) < _MIN_CAPTION_WORDS:
                return ()
            told = [(rng.choice(tables.load("questions.yaml")["kinds"]["describe"]["questions"]), caption)]
        messages: list[Message] = []
        for number, (question, answer) in enumerate(told):
            messages += [user(question, images=int(number == 0)), assistant(answer)]
        return tuple(messages)

    # --- which questions --------------------------------------------------------------------------------------

    def _kinds(self, facts: Facts, turns: int, rng: random.Random) -> list[str]:
        table = tables.load("questions.yaml")
        groups = table["groups"]
        chosen = []
        if facts.finding is not None and rng.random() < table["finding_chance_per_turn"] * turns:
            chosen.append("finding")
        open_groups = [g for g in groups if g != "finding" and _known(g, facts)]
        if "count" in open_groups and self.census.always_the_same_number(facts.finding):
            open_groups.remove("count")
        if not open_groups and facts.finding is not None:
            chosen = ["finding"]
        while open_groups and len(chosen) < turns:
            group = rng.choices(open_groups, [groups[g]["weight"] for g in open_groups])[0]
            open_groups.remove(group)
            chosen.append(group)
        rng.shuffle(chosen)
        chosen.sort(key=lambda g: groups[g]["rank"])
        return [rng.choices(list(groups[g]["kinds"]), list(groups[g]["kinds"].values()))[0] for g in chosen]

    def _turn(self, kind: str, facts: Facts, rng: random.Random) -> Iterator[tuple[str, str]]:
        """The (question, answer) of one kind; none if what the text says does not allow one."""
        kinds = tables.load("questions.yaml")["kinds"]
        slots = _slots(facts)
        yes = rng.random() < 0.5
        if kind == "abnormality":
            if rng.random() >= self._abnormality_chance(facts):
                kind = "finding"
            elif yes != (facts.finding != NONE):  # the same truth asked from the other side
                kind = "normality"
        elif kind == "has_finding":
            asked, yes = self._asked_finding(facts, rng)
            if asked is None:
                kind = "finding"
            else:
                slots |= {"asked_finding": asked, "asked_a_finding": _finding(asked)["one"]}
        elif kind in _ASKED:
            asked_slots = _ASKED[kind](self, facts, yes, rng)
            if asked_slots is None:
                kind = kind.removesuffix("_closed").removeprefix("is_")
            else:
                slots |= asked_slots
        table = kinds[kind]
        question = _fill(rng.choice(table["questions"]), slots)
        if kind == "describe":
            yield question, _description(facts, slots, rng)
            return
        if kind == "finding":
            if facts.finding == GENERIC:  # "The finding is a lesion" says nothing
                return
            answers = table["answers_none" if facts.finding == NONE else "answers"]
        else:
            answers = table["answers"] if "answers" in table else table["yes" if yes else "no"]
        yield question, _fill(rng.choice(answers), slots)

    def _abnormality_chance(self, facts: Facts) -> float:
        """As many normal as abnormal images are asked: the commoner side is thinned."""
        normal = self.census.normal_share
        own, other = (normal, 1 - normal) if facts.finding == NONE else (1 - normal, normal)
        return min(1.0, other / own) if own else 1.0

    def _asked_finding(self, facts: Facts, rng: random.Random) -> tuple[str | None, bool]:
        """The finding to ask for and whether it is there; None where no fair question can be asked."""
        normal = self.census.normal_share
        if facts.finding == NONE:
            if normal > 0.5 and rng.random() >= (1 - normal) / normal:
                return None, False
            yes = False
        else:  # every normal image answers no; the abnormal ones make up for it
            yes = rng.random() < min(1.0, 0.5 / (1 - normal) if normal < 1 else 1.0)
        if facts.finding == GENERIC or (yes and not facts.findings):
            return None, yes
        if yes:
            return facts.findings[0], True
        banned = {*(a for f in (*facts.findings, *facts.unsure) for a in _alike(f))}
        seen = self.census.findings.get(facts.modality or "", Counter())
        plausible = tables.load("lexicon.yaml")["plausible"]
        usual = Counter(plausible.get(facts.modality, plausible["default"]))
        usual.update({f: 1 for f in facts.absent})
        return _draw(seen, banned, rng) or _draw(usual, banned, rng), False

    def _asked_modality(self, facts: Facts, yes: bool, rng: random.Random) -> dict[str, str] | None:
        assert facts.modality is not None
        asked = facts.modality
        if not yes:
            pool = self.census.modalities
            if not set(pool) - _alike(asked):
                pool = Counter({m: 1 for m in tables.load("lexicon.yaml")["plausible"] if m != "default"})
            asked = _draw(pool, _alike(asked), rng) or asked
        return {"asked_modality": asked, "asked_a_modality": _modality(asked)["one"]}

    def _asked_organ(self, facts: Facts, yes: bool, rng: random.Random) -> dict[str, str] | None:
        assert facts.organ is not None
        if yes:
            return {"asked_organ": facts.organ}
        same = self.census.organs.get(facts.modality or "", Counter())
        others: Counter[str] = sum(self.census.organs.values(), Counter())
        known = Counter({organ: 1 for organ in tables.load("lexicon.yaml")["organ"]["common"]})
        pools = (_draw(pool, {facts.organ}, rng) for pool in (same, others, known))
        return {"asked_organ": next(organ for organ in pools if organ)}


def _asked_side(_: TemplateTeacher, facts: Facts, yes: bool, rng: random.Random) -> dict[str, str] | None:
    if facts.side not in ("left", "right"):  # of something on both sides, "the left?" is neither right nor wrong
        return None
    return {"asked_side": facts.side if yes else {"left": "right", "right": "left"}[facts.side]}


def _asked_size(_: TemplateTeacher, facts: Facts, yes: bool, rng: random.Random) -> dict[str, str] | None:
    assert facts.size is not None
    return {"asked_size": facts.size if yes else {"small": "large", "large": "small"}[facts.size]}


def _asked_count(_: TemplateTeacher, facts: Facts, yes: bool, rng: random.Random) -> dict[str, str] | None:
    if not isinstance(facts.count, int):  # "exactly multiple" cannot be asked
        return None
    asked = facts.count if yes else rng.choice([n for n in (1, 2, 3) if n != facts.count])
    return {
        "asked_is": "Is" if asked == 1 else "Are",
        "asked_number": _NUMBERS[asked],
        "asked_count": _counted(asked, facts),
    }


_Asked = Callable[[TemplateTeacher, Facts, bool, random.Random], dict[str, str] | None]
_ASKED: dict[str, _Asked] = {
    "is_modality": TemplateTeacher._asked_modality,
    "is_organ": TemplateTeacher._asked_organ,
    "side_closed": _asked_side,
    "size_closed": _asked_size,
    "count_closed": _asked_count,
}


# --- words -----------------------------------------------------------------------------------------------------


def _known(group: str, facts: Facts) -> bool:
    """Whether the text says enough for a question of the group. Side, size and count are a finding's."""
    shown = facts.finding not in (None, NONE)
    if group == "describe":
        return facts.finding is not None or facts.modality is not None or facts.organ is not None
    if group == "count":
        return shown and facts.count is not None and "many" in _finding(facts.finding)
    if group in ("side", "size"):
        return shown and getattr(facts, group) is not None
    return getattr(facts, group) is not None


def _finding(name: str | None) -> dict[str, Any]:
    table = tables.load("lexicon.yaml")["finding"]
    entry: dict[str, Any] = table["generic"] if name == GENERIC else table["terms"][name]
    return entry


def _modality(name: str) -> dict[str, Any]:
    entry: dict[str, Any] = tables.load("lexicon.yaml")["modality"]["terms"][name]
    return entry


def _alike(name: str) -> set[str]:
    """The name and those that the same thing may bear."""
    return {name, *(other for group in tables.load("lexicon.yaml")["alike"] if name in group for other in group)}


def _counted(number: int | str, facts: Facts) -> str:
    finding = _finding(facts.finding)
    return f"{_NUMBERS[number]} {finding.get('single', facts.finding) if number == 1 else finding['many']}"


def _draw(pool: Mapping[str, int], banned: set[str], rng: random.Random) -> str | None:
    """One of the pool, as often as it occurs there, but none of the banned; None if none is left."""
    names = sorted(name for name in pool if name not in banned)
    return rng.choices(names, [pool[name] for name in names])[0] if names else None


def _slots(facts: Facts) -> dict[str, str]:
    """Everything a wording may name, from what is known."""
    slots: dict[str, str] = {"on_side": "", "is": "is", "it": "it"}
    if facts.modality:
        slots |= {"modality": facts.modality, "a_modality": _modality(facts.modality)["one"]}
    if facts.organ:
        slots["organ"] = facts.organ
    if facts.size:
        slots["size"] = facts.size
    if facts.finding in (None, NONE):
        return slots
    finding = _finding(facts.finding)
    plural = facts.count not in (None, 1) and "many" in finding
    number = _counted(facts.count, facts) if facts.count is not None and "many" in finding else finding["one"]
    listed = [finding["one"], *(_finding(f)["one"] for f in facts.findings if f != facts.finding)]
    slots |= {
        "finding": str(facts.finding),
        "a_finding": " and ".join((", ".join(listed[:-1]), listed[-1])) if len(listed) > 1 else listed[0],
        "the_finding": f"the {finding['many'] if plural else facts.finding}",
        "a_or_many": number if plural else finding["one"],
        "described": _described(number if plural else finding["one"], facts.size),
        "is": "are" if plural else "is",
        "it": "they" if plural else "it",
    }
    if "many" in finding and facts.count is not None:
        slots |= {"findings": finding["many"], "number": _NUMBERS[facts.count], "number_findings": number}
        slots["there"] = f"there {slots['is']} {number}"
    if facts.side:
        slots["side"] = facts.side
        slots["on_side"] = "on both sides" if facts.side == "bilateral" else f"on the {facts.side} side"
    return slots


def _described(named: str, size: str | None) -> str:
    """("an opacity", "small") -> "a small opacity"; ("two cysts", "large") -> "two large cysts"."""
    if size is None:
        return named
    first, _, rest = named.partition(" ")
    if first in ("a", "an"):
        return f"a {size} {rest}"
    return f"{first} {size} {rest}" if first in _NUMBERS.values() else f"{size} {named}"


def _fill(wording: str, slots: Mapping[str, str]) -> str:
    text = " ".join(wording.format_map(slots).split()).replace(" .", ".").replace(" ?", "?")
    return text[0].upper() + text[1:]


def _description(facts: Facts, slots: Mapping[str, str], rng: random.Random) -> str:
    parts = tables.load("questions.yaml")["kinds"]["describe"]["parts"]
    named = "whole" if facts.modality and facts.organ else "modality" if facts.modality else "organ"
    chosen = [named] if facts.modality or facts.organ else []
    if facts.finding is not None:
        chosen.append("none" if facts.finding == NONE else "finding")
    return " ".join(_fill(rng.choice(parts[name]), slots) for name in chosen)
