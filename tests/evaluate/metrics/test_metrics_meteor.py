"""METEOR: the authors' program where it is, and a plain word where it is not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from llavamed.errors import InputError
from llavamed.evaluate.metrics import meteor as m

# what the program answers, for the tests of the protocol: one statistic a SCORE line, then a score an item and one more
PROGRAM = """#!/usr/bin/env python3
import sys
for line in sys.stdin:
    kind, *fields = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(len(fields[-1].split()), flush=True)
    else:
        print(*(f"0.{count}" for count in fields), f"0.0{len(fields)}", sep="\\n", flush=True)
"""


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in java's place that keeps to METEOR's protocol, and a jar."""
    program = tmp_path / "java"
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "meteor-1.5.jar").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("LLAVAMED_METEOR_JAR", str(tmp_path / "meteor-1.5.jar"))
    return program


def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no java" in str(m.missing())
    with pytest.raises(InputError, match="not computed: no java on this machine; install a Java runtime"):
        m.meteor(["a"], [["a"]])
    (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("LLAVAMED_METEOR_JAR", str(tmp_path / "absent.jar"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "no meteor-1.5.jar" in str(m.missing())


def test_items_are_asked_one_a_line_whatever_is_in_them(java: Path) -> None:
    assert m.missing() is None
    assert m.meteor(["a b", "one\ntwo ||| three"], [["x", "y"], ["z"]]) == m.Scores(0.02, (0.2, 0.3))
    assert m.meteor(["a"], [["x"]]) == m.Scores(0.01, (0.1,))
    assert m.meteor(["a " * 5000], [["x"]]).items == (0.2,)  # 0.2000: cut to 2,000 words


def test_a_program_that_ends_early_is_an_error_and_not_a_score(java: Path) -> None:
    java.write_text("#!/bin/sh\nread line\n")
    with pytest.raises(InputError, match="ended early"):
        m.meteor(["a"], [["a"]])


def test_missing_references_are_errors(java: Path) -> None:
    for predictions, references in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="give one each"):
            m.meteor(predictions, references)


@pytest.mark.slow
def test_the_scores_are_those_of_pycocoevalcap() -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.meteor.meteor import Meteor

    if reason := m.missing():
        pytest.skip(reason)
    predictions = ["no focal consolidation . the heart is normal", "small pleural effusion", "clear lungs ."]
    references = [
        ["no consolidation . heart size is normal"],
        ["a small effusion", "pleural fluid"],
        ["the lungs are clear"],
    ]
    corpus, each = Meteor().compute_score(dict(enumerate(references)), {i: [t] for i, t in enumerate(predictions)})
    assert m.meteor(predictions, references) == m.Scores(corpus, tuple(each))
