"""Which examples share a forward pass: the plan of an epoch.

In: the token length of every example, and a seed. Out: the epoch as a list of steps, each a tuple of
packs, each a tuple of example indices. A step is one global batch (one optimizer update), a pack is one
row of the forward pass in which several examples stand one behind the other.

The hard thing is to fill packs well without changing what a step means. Filling bins of a fixed size
from the whole epoch would give each step a different number of examples; here the batch is drawn first
and only then split into as few packs as hold it, the longest example first, each to the pack that is
emptiest so far (Graham's longest-processing-time rule, 1969). For LLaVA-Med's lengths and a batch of
128 the packs of a step are, on average, over 99 % as full as the fullest.

Several ranks share a step: then it has a multiple of `ranks` packs, and rank r takes every `ranks`-th from r on. As
the packs are balanced so is the work. Where a step has fewer examples than ranks, some packs are empty. In the
same way a step has a multiple of `lanes` packs (`lanes.py`), or one for each example where it has fewer; none is empty.

The plan depends on its arguments alone, so a run is resumed with nothing but the number of steps done.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Pack = tuple[int, ...]  # example indices that share one row
Step = tuple[Pack, ...]  # one optimizer update


def plan_epoch(
    lengths: NDArray[np.integer],
    batch_size: int,
    tokens_per_pack: int,
    seed: int,
    epoch: int,
    ranks: int = 1,
    lanes: int = 1,
) -> list[Step]:
    """Every example once, in the shuffled order of this seed and epoch.

    `lengths` (examples,) in tokens. A step has `batch_size` examples, the last one what is left. No pack
    holds more than `tokens_per_pack` tokens, except one that is a single longer example.
    """
    assert batch_size > 0
    assert tokens_per_pack > 0
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    return [
        split(order[start : start + batch_size], lengths, tokens_per_pack, ranks, lanes)
        for start in range(0, len(order), batch_size)
    ]


def split(
    batch: NDArray[np.integer], lengths: NDArray[np.integer], tokens_per_pack: int, ranks: int = 1, lanes: int = 1
) -> Step:
    """One batch as the fewest balanced packs of at most `tokens_per_pack` tokens, in a multiple of `ranks` and of
    `lanes`."""
    multiple = ranks * lanes
    longest_first = sorted(batch.tolist(), key=lambda index: (-int(lengths[index]), index))
    count = math.ceil(int(lengths[batch].sum()) / tokens_per_pack)
    while True:
        count = multiple * max(1, math.ceil(count / multiple))
        packs = _balance(longest_first, lengths, count)
        # the rule is greedy: it may miss a split that exists, and then one more pack is the price
        if count >= len(batch) or all(int(lengths[list(p)].sum()) <= tokens_per_pack for p in packs):
            return packs if ranks > 1 else tuple(pack for pack in packs if pack)
        count += 1


def _balance(longest_first: list[int], lengths: NDArray[np.integer], count: int) -> Step:
    packs: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]  # (tokens so far, pack), a heap
    for index in longest_first:
        tokens, number = heapq.heappop(emptiest)
        packs[number].append(index)
        heapq.heappush(emptiest, (tokens + int(lengths[index]), number))
    return tuple(tuple(pack) for pack in packs)


@dataclass
class Schedule:
    """The steps of a whole stage, planned one epoch at a time as they are asked for.

    `epochs` may be a fraction: 0.5 is the first half of the first epoch's steps.
    """

    lengths: NDArray[np.integer]
    batch_size: int
    tokens_per_pack: int
    seed: int
    epochs: float
    ranks: int = 1
    lanes: int = 1
    _epoch: int = field(default=-1, init=False)
    _steps: list[Step] = field(default_factory=list, init=False)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    @property
    def total(self) -> int:
        """Optimizer steps in the stage, at least one."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def __getitem__(self, step: int) -> Step:
        """The packs of step 0, 1, ... `total` - 1."""
        assert 0 <= step < self.total, step
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._steps = plan_epoch(
                self.lengths, self.batch_size, self.tokens_per_pack, self.seed, epoch, self.ranks, self.lanes
            )
            self._epoch = epoch
        return self._steps[within]

    def examples_before(self, step: int) -> int:
        """Examples in the steps before `step`."""
        epochs, within = divmod(step, self.steps_per_epoch)
        return epochs * len(self.lengths) + min(within * self.batch_size, len(self.lengths))
