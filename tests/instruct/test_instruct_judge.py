"""A second model's verdicts: counted, never filled in, and paid for once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llavamed import manifest
from llavamed.demo.truth import Truth
from llavamed.errors import InputError
from llavamed.instruct.generate import generate
from llavamed.instruct.judge import Judged, read
from llavamed.recipe import InstructSection
from llavamed.records import Conversation, Pair, assistant, user
from tests.instruct.conftest import Endpoint, Said

PAIR = Pair("k", "k.png", "CT.")
TALK = Conversation("k", ("k",), (user("What?", 1), assistant("A CT."), user("Where?"), assistant("Left.")))


def _verdicts(*grounded: bool) -> str:
    return json.dumps({"verdicts": [{"turn": n, "grounded": g, "why": "x"} for n, g in enumerate(grounded, 1)]})


@pytest.fixture
def corpus(world: list[tuple[Truth, Pair]], make_corpus: Callable[..., Path]) -> Path:
    return make_corpus([replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:20])])


def _section(endpoint: Endpoint, sample: int = 10) -> InstructSection:
    return InstructSection(judge=endpoint.url, judge_model="judge", judge_sample=sample)


def _turns(body: dict[str, Any]) -> int:
    return len(json.loads(body["messages"][-1]["content"])["turns"])


def test_a_sample_is_judged_and_the_worst_is_shown(endpoint: Endpoint, corpus: Path, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Said:
        source = json.loads(body["messages"][-1]["content"])["source"]
        return Said(_verdicts(*(n > 0 or "Case 1" not in source["caption"] for n in range(_turns(body)))))

    endpoint.reply = reply
    made = generate(corpus, tmp_path / "out", _section(endpoint, 20), seed=0)
    judged = manifest.require(tmp_path / "out", "instruct", "")["extra"]["judged"]
    assert (judged["conversations"], judged["unjudged"], judged["answers"]) == (20, 0, made.counts["turns"])
    # cases 1 and 10 to 19 have one answer each that is not grounded
    assert judged["grounded"] == pytest.approx(1 - 11 / made.counts["turns"], abs=1e-4)
    assert judged["low"] < judged["grounded"] < judged["high"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("not grounded. x") == 10
    assert "Groundedness, by a second model" in page


def test_judging_is_paid_for_once_and_a_larger_sample_holds_the_smaller(
    endpoint: Endpoint, corpus: Path, tmp_path: Path
) -> None:
    endpoint.reply = lambda body: Said(_verdicts(*[True] * _turns(body)))
    generate(corpus, tmp_path / "out", _section(endpoint, 8), seed=0)
    assert len(endpoint.requests) == 8
    generate(corpus, tmp_path / "out", _section(endpoint, 12), seed=0)
    assert len(endpoint.requests) == 12


def test_what_cannot_be_read_is_counted_and_left_out(endpoint: Endpoint, corpus: Path, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said("All good!" if len(endpoint.requests) > 4 else _verdicts(True))
    generate(corpus, tmp_path / "out", _section(endpoint, 6), seed=0)
    judged = manifest.require(tmp_path / "out", "instruct", "")["extra"]["judged"]
    assert (judged["answers"], judged["unjudged"], judged["grounded"]) == (4, 2, 1.0)


def test_a_judge_that_breaks_off_takes_nothing_away_and_goes_on_in_the_next_run(
    endpoint: Endpoint, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def good(body: dict[str, Any]) -> Said:
        return Said(_verdicts(*[True] * _turns(body)))

    endpoint.reply = lambda body: good(body) if len(endpoint.requests) <= 4 else Said("wrong key", 401)
    made = generate(corpus, tmp_path / "out", _section(endpoint, 20), seed=0)
    judged = manifest.require(tmp_path / "out", "instruct", "")["extra"]["judged"]
    assert (made.counts["instruct"], judged["conversations"], judged["unjudged"]) == (20, 20, 16)
    assert "key was refused" in judged["stopped"]
    assert "the judge did not end its work, run it again" in capsys.readouterr().err
    endpoint.reply = good
    generate(corpus, tmp_path / "out", _section(endpoint, 20), seed=0)
    judged = manifest.require(tmp_path / "out", "instruct", "")["extra"]["judged"]
    assert (judged["unjudged"], "stopped" in judged) == (0, False)


@pytest.mark.parametrize("said", [Said("All good!"), Said("no", 401)])
def test_a_judge_that_babbles_or_refuses_is_counted_as_unjudged(
    endpoint: Endpoint, corpus: Path, tmp_path: Path, said: Said
) -> None:
    endpoint.reply = lambda body: said
    generate(corpus, tmp_path / "out", _section(endpoint, 20), seed=0)
    judged = manifest.require(tmp_path / "out", "instruct", "")["extra"]["judged"]
    assert (judged["answers"], judged["unjudged"]) == (0, 20)
    assert (tmp_path / "out" / "report.html").exists()


def test_a_judge_that_is_misspelt_is_known_before_any_work(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="judge_model"):
        generate(corpus, tmp_path / "out", InstructSection(judge="http://localhost:1/v1"), seed=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (_verdicts(True, False), 2),
        (f"```json\n{_verdicts(True)}\n```", 1),
        (f"<think>{{hm}}</think>{_verdicts(True)}", 1),
        ('{"verdicts": []}', None),
        ('{"verdicts": [{"turn": 1, "grounded": "perhaps"}]}', None),
        ("10/10", None),
    ],
)
def test_verdicts_are_read_or_not(text: str, number: int | None) -> None:
    found = read(text)
    assert (len(found.verdicts) if found else None) == number


def test_the_interval_takes_whole_conversations() -> None:
    def judged(*each: list[bool]) -> Judged:
        items = [(PAIR, TALK, [(n, good, "") for n, good in enumerate(goods)]) for goods in each]
        return Judged("m", items, unjudged=0)

    alike = judged(*[[True] * 4] * 10, *[[False] * 4] * 10)
    mixed = judged(*[[True, True, False, False]] * 20)
    assert alike.share == mixed.share == 0.5
    assert alike.interval[1] - alike.interval[0] > 0.3
    assert mixed.interval == (0.5, 0.5)
    assert judged().interval == (0.0, 1.0)
