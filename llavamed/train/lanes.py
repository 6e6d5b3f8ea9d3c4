"""Several packs of a step at a time on a CPU, each on cores of its own.

torch spreads one matrix product over all cores. The products of a small model are over in a millisecond, and what
stands between them (norms, activations, Python) is done by one core while the others wait. A step has several packs,
and they need nothing of each other before their gradients are added. So each core, or each equal share of them, takes a
pack: a *lane*. What that brings on two cores stands in docs/experiments.md; more were not at hand.

The hard thing is that the result must not depend on which lane was faster. Nothing is added in a lane: each works out
the gradients of its pack (`torch.autograd.grad`, which leaves the parameters' own untouched), and the caller takes them
in the order of the packs. A run with so many threads ends with the same bytes every time. What all lanes share must
stay as it is while they work, and that is not so of everything (`lanes_for`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llavamed.recipe import StageSection, TrainSection

In = TypeVar("In")
Out = TypeVar("Out")

# rotary tables that transformers works out anew on the way, for all that use the module
_MOVING_TABLES = ("dynamic", "longrope")


class Lanes:
    """A pool of threads, each with its share of torch's; a context manager. Leaving it waits for the packs at hand."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._all = torch.get_num_threads()
        # Said aloud, also where it is so already: torch then forbids MKL to choose the number by itself, after which
        # attention's backward pass ends in other last bits. A resumed run, where nobody had set it before, would
        # go another way than one that was never stopped.
        torch.set_num_threads(self._all)
        self._each = max(1, self._all // count)
        self._pool = ThreadPoolExecutor(count, "llavamed-lane", torch.set_num_threads, (self._each,))

    def map(self, work: Callable[[In], Out], packs: Iterable[In]) -> Iterator[Out]:
        """`work` of every pack, in their order; of what is done no more waits to be taken than there are lanes."""
        torch.set_num_threads(self._each)  # a thread's first operation takes the number that any thread set last
        waiting: deque[Future[Out]] = deque()
        try:
            for pack in packs:
                waiting.append(self._pool.submit(work, pack))
                if len(waiting) > self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            torch.set_num_threads(self._all)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def lanes_for(config: Any, lengths: NDArray[np.integer], stage: StageSection, train: TrainSection) -> int:
    """How many lanes a stage on this CPU has: as many as its steps have packs anyway (half-empty ones cost more than
    they gain), if torch's threads can be shared out evenly among them. Each takes the memory of a pack and of two sets
    of gradients.

    One where lanes would meet: in the random numbers of dropout, which come from one generator; in autocast's cache of
    weights and the compiler, which are the whole process's; in rotary tables that a forward pass changes. And one with
    `train.recompute`, which asks for memory.
    """
    if train.dtype != "float32" or train.recompute != "none" or train.compile:
        return 1
    tables = str(getattr(config.text_config, "rope_parameters", ""))
    if _drops_out(config, stage) or any(kind in tables for kind in _MOVING_TABLES):
        return 1
    packs = math.ceil(float(lengths.mean()) * min(stage.batch_size, len(lengths)) / train.tokens_per_pack)
    threads = torch.get_num_threads()
    return max(lanes for lanes in range(1, threads + 1) if threads % lanes == 0 and lanes <= packs)


def _drops_out(config: Any, stage: StageSection) -> bool:
    if stage.lora is not None and stage.lora.dropout > 0:
        return True
    parts = (config.text_config, config.vision_config)
    return any(
        "drop" in key and isinstance(value, float) and value > 0
        for part in parts
        for key, value in part.to_dict().items()
    )
