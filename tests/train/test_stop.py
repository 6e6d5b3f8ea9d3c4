"""Several ranks stop together or not at all. (Signals to a real run: test_loop.py, test_ranks.py.)"""

from __future__ import annotations

import signal

import pytest

from llavamed.train.ranks import Ranks
from llavamed.train.stop import Stop


def test_ranks_leave_on_a_signal_that_all_know_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one rank hears while the others are on their way must not make it leave alone."""
    told = [[0.0, 1.0, 0.0]]
    monkeypatch.setattr(Ranks, "total", lambda self, numbers: told[0])
    stop, ranks = Stop(asked=signal.SIGINT), Ranks(world=2)
    stop.leave()
    assert stop.agree(ranks, True) is False
    with pytest.raises(SystemExit):
        stop.leave()
