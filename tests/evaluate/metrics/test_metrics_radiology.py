"""CheXbert, RadGraph and GREEN: asked of a module with RadEval 2.2.1's interface, as its models cannot be had here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed.errors import InputError
from llavamed.evaluate import show
from llavamed.evaluate.metrics import radiology as m

# signature, checks and keys of radeval 2.2.1's `RadEval`; its scores are made up from the words that are shared
STUB = """
class RadEval:
    def __init__(self, metrics=None, openai_api_key=None, gemini_api_key=None, per_sample=False, detailed=False,
                 show_progress=True, cache_dir=None):
        assert not show_progress and isinstance(metrics, list)
        (self.name,), self.per_sample = metrics, per_sample
        if self.name == "broken":
            raise OSError("cannot reach the hub")

    def __call__(self, refs, hyps):
        if not (isinstance(hyps, list) and isinstance(refs, list)):
            raise TypeError("hyps and refs must be of type list")
        each = [len({*r.split()} & {*h.split()}) / len({*r.split()}) for r, h in zip(refs, hyps, strict=True)]
        if self.name == "f1chexbert":
            assert not self.per_sample
            return {f"f1chexbert_{n}_{kind}_f1": sum(each) / len(each)
                    for n in ("5", "all") for kind in ("micro", "macro", "weighted")}
        assert self.per_sample
        if self.name == "green":
            return {"green": [None, *each[1:]]}
        return {f"radgraph_{level}": each for level in ("simple", "partial", "complete")}
"""
REPORTS = ["no pneumothorax", "small left effusion", "clear lungs", "heart is normal", "no acute process"]


@pytest.fixture
def radeval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "site"
    (place / "radeval").mkdir(parents=True)
    (place / "radeval" / "__init__.py").write_text(STUB)
    (place / "radeval-2.2.1.dist-info").mkdir()
    (place / "radeval-2.2.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: radeval\nVersion: 2.2.1\n"
    )
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "radeval", raising=False)


def measure(*names: str, failed: int = -1) -> dict[str, dict[str, Any]]:
    given = ["" if place == failed else text for place, text in enumerate(REPORTS)]
    lost = [place == failed for place in range(len(REPORTS))]
    return m.measure(names, given, REPORTS, lost, [str(place) for place in range(len(REPORTS))])


def test_each_number_has_its_n_its_scorer_and_where_there_can_be_one_an_interval(radeval: None) -> None:
    found = measure("f1chexbert", "radgraph", failed=3)
    assert found["CheXbert F1, 14 findings, micro"] == {"value": 80, "n": 5, "scorer": "RadEval 2.2.1 f1chexbert"}
    partial = found["RadGraph F1, partial"]
    assert (partial["value"], partial["n"], partial["scorer"]) == (80, 5, "RadEval 2.2.1 radgraph")
    assert partial["low"] < 80 <= partial["high"] == 100
    assert len(found) == 4 + 3
    assert m.lines(found)[0] == "CheXbert F1, 14 findings, micro: 80.0, no interval, n = 5 (RadEval 2.2.1 f1chexbert)"


def test_a_report_that_green_did_not_grade_is_left_out_and_counted(
    radeval: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = measure("green", failed=4)["GREEN"]
    assert (found["value"], found["n"], found["not_graded"]) == (75, 4, 1)
    assert "1 not graded" in m.lines({"GREEN": found})[0]


def test_what_one_raises_is_said_in_its_place(radeval: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "NAMES", (*m.NAMES, "broken"))
    found = measure("broken", "radgraph")
    assert found["broken"] == {"error": "not computed (OSError: cannot reach the hub)"}
    assert found["RadGraph F1, simple"]["value"] == 100


def test_what_cannot_be_done_is_told_before_anything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--radiology bleurt: unknown; give some of f1chexbert,radgraph,green"):
        m.require(["radgraph", "bleurt"])
    monkeypatch.setattr(m.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"RadEval is not installed; pip install 'llavamed\[radiology\]'"):
        m.require(["radgraph"])
    m.require([])
    monkeypatch.setattr(m.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a GPU"):
        m.require(["green"])


def test_the_command_adds_them_to_a_benchmark_of_reports_alone(
    radeval: None, tmp_path: Path, llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "mimic"
    data.mkdir()
    rows = [
        {"id": str(n), "report": text, "image_path": [f"{n}.jpg"], "split": "test"} for n, text in enumerate(REPORTS)
    ]
    (data / "annotation.json").write_text(json.dumps({"test": rows}))
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"id": row["id"], "text": row["report"]}) + "\n" for row in rows)
    )
    asked = ("score", "mimic-cxr", tmp_path / "p.jsonl", "--data", data, "--out", tmp_path / "out")
    assert llavamed(*asked, "--radiology", "f1chexbert, radgraph") == 0
    assert "RadGraph F1, partial: 100.0 (100.0-100.0), n = 5 (RadEval 2.2.1 radgraph)" in capsys.readouterr().out
    assert show.read(tmp_path / "out")["provenance"]["radiology"]["CheXbert F1, 5 findings, macro"]["value"] == 100
    assert "RadGraph F1, partial" in (tmp_path / "out" / "report.html").read_text()

    (data / "questions.jsonl").write_text(
        json.dumps({"id": "0", "image": "a.png", "question": "?", "answer": "yes", "closed": True}) + "\n"
    )
    phantom = ("score", "phantom", tmp_path / "p.jsonl", "--data", data, "--out", tmp_path / "o")
    assert llavamed(*phantom, "--radiology", "radgraph") == 2
    assert "--radiology: phantom has no reports; leave it out" in capsys.readouterr().err
