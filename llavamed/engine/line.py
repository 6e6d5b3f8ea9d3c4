"""Rows wait in line for a place in the batch, and a failure costs no more than it must.

In: rows, and how many may be under way. Out: the rows, as they end, in an order of their own.

A batch can fail in two ways, and neither may end the run. Where CUDA has no more memory, half as many rows go together
from then on. Where the model raises something else, one row is at fault and the others are not: all that were under way
go again, one by one, and the one that fails alone gets the error. Either way a row begins again from its prompt.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from llavamed.engine.decode import REFILL, Batch, Row


def run(
    rows: Iterator[Row], size: int, make_batch: Callable[[], Batch], lock: threading.Lock, name: str
) -> Iterator[Row]:
    """Every row, once it has ended or has an `error`; at most `size` are under way. `lock` is held for each step."""
    batch, waiting, singly = make_batch(), deque[Row](), 0  # singly: how many go one by one
    while True:
        most = 1 if singly else size
        entering: list[Row] = []
        if (room := most - batch.alive) * REFILL >= most:
            waiting.extend(islice(rows, max(0, room - len(waiting))))
            entering = [waiting.popleft() for _ in range(min(room, len(waiting)))]
        ended = [row for row in entering if row.error is not None]  # it had one when it came
        entering = [row for row in entering if row.error is None]
        if not entering and not batch.alive and not ended:
            return
        error: Exception | None = None
        try:
            with lock:
                if entering:
                    ended += batch.enter(entering)
                elif batch.alive:
                    ended += batch.step()
        except AssertionError:
            raise
        except Exception as raised:  # noqa: BLE001 - the row at fault is found and gets it
            error = raised.with_traceback(None)  # a traceback holds on to the memory
        if error is not None:
            alone = len(batch.rows) + len(entering) == 1
            again = [*(row for row in batch.rows if not row.ended), *entering]
            batch = make_batch()
            if alone:
                again[0].error = error
                ended += again
            else:
                waiting.extendleft(reversed(again))
                if isinstance(error, torch.OutOfMemoryError):
                    size = max(1, size // 2)
                    print(f"{name}: out of memory; {size} requests together from now on", file=sys.stderr)
                else:
                    singly = len(again)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for row in ended:
            singly = max(0, singly - 1)
            yield row
