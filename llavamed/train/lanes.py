"""Several packs of a step at a time on a CPU, each on cores of its own.

torch spreads one matrix product over all cores. The products of a small model are over in a millisecond, and what
stands between them (norms, activations, Python) is done by one core while the others wait: on two cores a pack is done
in two thirds of the time and not in half. A step has several packs, and they need nothing of each other before their
gradients are added. So each core, or each equal share of them, takes a pack: a *lane*.

The hard thing is that the result must not depend on which lane was faster. Nothing is added in a lane: each works out
the gradients of its pack (`torch.autograd.grad`, which leaves the parameters' own untouched), and the caller takes them
in the order of the packs. A run of so many lanes ends with the same bytes every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llavamed.recipe import StageSection, TrainSection

Pack = TypeVar("Pack")
Made = TypeVar("Made")


class Lanes:
    """A pool of threads, each with its share of torch's; a context manager."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._all = torch.get_num_threads()
        self._each = max(1, self._all // count)
        self._pool = ThreadPoolExecutor(count, "llavamed-lane", torch.set_num_threads, (self._each,))

    def map(self, work: Callable[[Pack], Made], packs: Iterable[Pack]) -> Iterator[Made]:
        """`work` of every pack, in their order. Random numbers that it draws come in no fixed order."""
        torch.set_num_threads(self._each)  # MKL has one number for all threads
        try:
            yield from self._pool.map(work, packs)
        finally:
            torch.set_num_threads(self._all)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def count(lengths: NDArray[np.integer], stage: StageSection, train: TrainSection) -> int:
    """How many lanes a stage on this CPU has: one for each of torch's threads, but no more than its steps have packs
    anyway, as half-empty packs cost more than they gain and a lane takes the memory of a pack.

    One where packs draw random numbers (dropout of adapters), as all draw from one generator; and with
    `train.compile`, as the compiler is entered by one thread at a time.
    """
    draws = stage.lora is not None and stage.lora.dropout > 0
    if draws or train.compile:
        return 1
    tokens = float(lengths.mean()) * min(stage.batch_size, len(lengths))
    return min(torch.get_num_threads(), math.ceil(tokens / train.tokens_per_pack))
