"""The command as a person types it, where things go wrong: one line and exit code 2, or a counted drop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llavamed import cli
from llavamed.corpus.store import Corpus
from llavamed.demo.truth import Truth
from llavamed.records import Pair, read_conversations, read_jsonl
from tests.instruct.conftest import SECRET, Endpoint, Said


class Command:
    def __init__(self, corpus: Path, out: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self._patch = out, monkeypatch
        self._start = ["llavamed", "instruct", "generate", str(corpus), "--out", str(out), "--teacher", url]

    def run(self, *more: str) -> int:
        self._patch.setattr(sys, "argv", [*self._start, "--teacher-model", "m", *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)


@pytest.fixture
def command(
    endpoint: Endpoint, world: list[tuple[Truth, Pair]], make_corpus: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Command:  # fmt: skip
    corpus = make_corpus([replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:12])])
    return Command(corpus, tmp_path / "out", endpoint.url, monkeypatch)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert not any("Traceback" in line for line in lines)
    (error,) = [line for line in lines if line.startswith("llavamed: error:")]
    return error


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said(f"Incorrect API key provided: {SECRET}", 401), "the key was refused; set LLAVAMED_TEACHER_KEY"),
        (Said(body="<!DOCTYPE html><html><body>Sign in</body></html>"), "sent a web page, not a chat completion"),
        (Said("no such model", 404), "no model 'm' there"),
        (Said("I would rather write a poem."), "can its model do this?"),
    ],
)
def test_an_endpoint_that_cannot_do_it_is_one_line(
    command: Command, endpoint: Endpoint, capsys: pytest.CaptureFixture[str], said: Said, words: str
) -> None:
    endpoint.reply = lambda body: said
    assert command.run() == 2
    error = _error(capsys)
    assert words in error
    assert SECRET not in error


def test_what_was_answered_before_things_went_wrong_is_still_there(
    command: Command, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.reply = lambda body: Said() if len(endpoint.requests) <= 5 else Said("revoked", 401)
    assert command.run() == 2
    _error(capsys)
    assert len(list(read_jsonl(command.out / "journal.jsonl"))) == 5
    endpoint.reply = lambda body: Said()
    asked = len(endpoint.requests)
    assert command.run() == 0
    assert len(endpoint.requests) - asked == 7
    assert len(list(read_conversations(command.out / "instruct.jsonl"))) == 12


def test_a_model_that_sometimes_ignores_the_schema_costs_those_records(
    command: Command, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.reply = lambda body: Said("No.") if "Case 3" in str(body["messages"][-1]) else Said()
    assert command.run() == 0
    assert "dropped: instruct: teacher_not_in_form" in capsys.readouterr().out
    assert len(list(read_conversations(command.out / "instruct.jsonl"))) == 11


def test_a_pair_without_an_image_is_a_counted_drop(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Path(command._start[3])
    _, offset, _ = Corpus(corpus)._places["pair-0011"]
    shard = next(corpus.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:offset])
    assert command.run() == 0
    assert "dropped: instruct: no_image" in capsys.readouterr().out
    assert len(list(read_conversations(command.out / "instruct.jsonl"))) == 11


def test_a_prompt_with_an_unknown_field_is_one_line_before_any_call(
    command: Command, endpoint: Endpoint, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: 60k-im\nmax_token: 5\n")
    assert command.run("--prompt", str(tmp_path / "mine.yaml")) == 2
    assert "unknown field 'max_token' (did you mean 'max_tokens'?)" in _error(capsys)
    assert not endpoint.requests
    assert not command.out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-cost", "-1"), "instruct.max_cost"),
        (("--max-cost", "1"), "instruct.price"),
        (("--domains", "mri,ct"), "the domains are"),
        (("--judge", "http://localhost:1/v1"), "judge_model"),
        (("--import-batch", "absent.jsonl"), "absent.jsonl: no such file"),
    ],
)
def test_wrong_options_are_one_line(
    command: Command, capsys: pytest.CaptureFixture[str], options: tuple[str, str], words: str
) -> None:
    assert command.run(*options) == 2
    assert words in _error(capsys)
