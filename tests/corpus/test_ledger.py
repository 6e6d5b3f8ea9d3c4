"""The ledger: what is known before, now and after, in sorted files that are never held in memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from llavamed.corpus.bucket import Name
from llavamed.corpus.ledger import Ledger, Row
from llavamed.corpus.wanted import Wanted
from llavamed.errors import InputError


def row(pmcid: int, version: int = 1, state: str = "fetched") -> Row:
    return Row(f"PMC{pmcid}.{version}" if version else f"PMC{pmcid}", state)


def run(folder: Path, rows: dict[int, list[Row]], settings: str = "a") -> None:
    with Ledger(folder, settings) as ledger:
        for pmcid, one in rows.items():
            ledger.settle(pmcid, one)
        ledger.finish()


def names(folder: Path) -> list[str]:
    return [json.loads(line)["article"] for line in (folder / "articles.jsonl").read_text().splitlines()]


def test_runs_in_any_order_leave_the_last_word_on_each_article_sorted(tmp_path: Path) -> None:
    rng, known = random.Random(0), {}
    for number in range(5):
        rows = {pmcid: [row(pmcid, 1, f"state {number}")] for pmcid in rng.sample(range(100), 60)}
        run(tmp_path, rows, str(number))
        known |= rows
        assert list(Ledger(tmp_path, "").rows()) == [known[pmcid][0] for pmcid in sorted(known)]
    assert not (tmp_path / "journal.jsonl").exists()


def test_an_interrupted_run_goes_on_but_for_what_failed_and_the_torn_line(tmp_path: Path) -> None:
    run(tmp_path, {1: [row(1)], 3: [row(3)]})
    with Ledger(tmp_path, "b") as ledger:
        ledger.settle(7, [row(7)])
        ledger.settle(1, [row(1, 2)])
        ledger.settle(5, [row(5, 0, "failed_busy")], again=True)
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"pmcid": 9, "rows": [')
    with Ledger(tmp_path, "b") as ledger:
        assert journal.read_bytes() == whole
        assert (len(ledger), 7 in ledger, 5 in ledger) == (2, True, False)
        asked = [Wanted(pmcid) for pmcid in (1, 2, 3, 5, 7, 9)]
        assert [(one.pmcid, rows) for one, rows in ledger.join(asked)] == [(2, []), (3, [row(3)]), (5, []), (9, [])]
        ledger.settle(5, [row(5)])
        ledger.finish()
    assert names(tmp_path) == ["PMC1.2", "PMC3.1", "PMC5.1", "PMC7.1"]


def test_what_was_settled_under_other_settings_is_known_and_looked_at_again(tmp_path: Path) -> None:
    with Ledger(tmp_path, "a") as ledger:
        ledger.settle(4, [row(4)])
    for _ in range(2):  # and is not forgotten if the second run is killed as well
        with Ledger(tmp_path, "b") as ledger:
            assert len(ledger) == 0
            assert [rows for _, rows in ledger.join([Wanted(4)])] == [[row(4)]]


@pytest.mark.parametrize(
    ("before", "now", "after"),
    [
        ([row(1)], [row(1, 2)], ["PMC1.2"]),  # replaced
        ([row(1)], [row(1, 2, "failed_busy")], ["PMC1.1", "PMC1.2"]),  # not yet
        ([row(1, 3)], [row(1, 1)], ["PMC1.1", "PMC1.3"]),  # never by an older one
        ([row(1, 0, "not_found")], [row(1, 1)], ["PMC1.1"]),
        ([row(1)], [row(1, 0, "not_found")], ["PMC1.1"]),
        ([row(1, 3, "retracted")], [row(1, 0, "not_found")], ["PMC1"]),
    ],
)
def test_which_versions_stay(tmp_path: Path, before: list[Row], now: list[Row], after: list[str]) -> None:
    run(tmp_path, {1: before})
    run(tmp_path, {1: now}, "b")
    assert names(tmp_path) == after


def test_what_is_gone_is_left_out(tmp_path: Path) -> None:
    run(tmp_path, {1: [row(1)], 2: [row(2)]})
    with Ledger(tmp_path, "b") as ledger:
        ledger.settle(1, [row(1, 0, "not_found")])
        ledger.finish({Name(1, 1), Name(2, 1)})
    assert names(tmp_path) == ["PMC1"]


@pytest.mark.parametrize(
    "text", ["{", "[]\n", '{"article": "PMC2.1", "state": "x"}\n{"article": "PMC1.1", "state": ""}']
)
def test_a_damaged_ledger_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "articles.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"articles\.jsonl: damaged"):
        list(Ledger(tmp_path, "").rows())


def test_the_memory_that_an_article_takes(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        run(folder, {pmcid: [row(pmcid)] for pmcid in range(count)})
        tracemalloc.start()
        try:
            with Ledger(folder, "b") as ledger:
                for one, _ in ledger.join(map(Wanted, range(count))):
                    ledger.settle(one.pmcid, [row(one.pmcid)])
                ledger.finish()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert (peak(3_000) - peak(1_000)) / 2_000 < 100
