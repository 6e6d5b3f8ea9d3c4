"""Progress shows count, share, rate and time left."""

from __future__ import annotations

import pytest

from llavamed import progress
from llavamed.progress import Progress, clock, track


def test_the_line_has_count_share_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("reading", 200, "files")
    now[0] = 110.0
    shown.advance(50, "loss 1.0")
    assert shown.line() == "reading: 50/200 (25%), 5.0 files/s, 0:30 left, loss 1.0"


def test_the_rate_of_a_resumed_run_counts_only_what_this_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("training", 100, "steps", start=50)
    now[0] = 10.0
    shown.advance(10)
    assert "1.0 steps/s, 0:40 left" in shown.line()


def test_track_yields_everything() -> None:
    assert list(track([1, 2, 3], "x")) == [1, 2, 3]


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (90, "1:30"), (3725, "1:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
