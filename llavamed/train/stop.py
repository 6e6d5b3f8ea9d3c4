"""Who asks a run to end, and when it does: between two steps, all ranks together, once the checkpoint is on the disk.

In: SIGTERM, a batch system's notice, and SIGINT, Ctrl-C. Out: exit code 0 for the one, KeyboardInterrupt for the other.
The hard thing is several ranks: a signal may reach one of them, or reach two at different moments. Only what all have
agreed on decides what all do next; a rank that acted on what it alone knows would leave the others waiting for it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from llavamed.train.ranks import Ranks

_SAME_SIGNAL = 5.0  # seconds


@dataclass
class Stop:
    """Which signal asked this process to end, if any, and when; and which one all ranks know of."""

    asked: int | None = None
    since: float = 0.0
    agreed: int | None = None

    def agree(self, ranks: Ranks, late: bool) -> bool:
        """Learn of a signal that another rank got; return whether the first rank finds it late. Every rank has to call:
        only what all know may decide what all do next."""
        if ranks.world == 1:
            self.agreed = self.asked
            return late
        told = [late and ranks.first, self.asked == signal.SIGTERM, self.asked == signal.SIGINT]
        late, term, interrupt = (count > 0 for count in ranks.total([float(flag) for flag in told]))
        if term or interrupt:
            self.agreed = signal.SIGTERM if term else signal.SIGINT
        return late

    def leave(self) -> None:
        """Called once the checkpoint is on disk."""
        if self.agreed == signal.SIGTERM:
            raise SystemExit(0)
        if self.agreed == signal.SIGINT:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Within the block SIGTERM and SIGINT are noted, for the loop to act on between two steps.

    The first one may come twice: a scheduler or a terminal sends it to all processes, and torchrun passes it on to
    its ranks. What comes within `_SAME_SIGNAL` seconds is the same; a later one acts at once. Only the main thread may
    set handlers; elsewhere signals keep their meaning.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        if stop.since and time.monotonic() - stop.since > _SAME_SIGNAL:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        elif not stop.since:
            stop.asked, stop.since = number, time.monotonic()
            print(
                f"\nstopping after this step; another signal, from {_SAME_SIGNAL:g} seconds on, stops at once",
                file=sys.stderr,
            )

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
