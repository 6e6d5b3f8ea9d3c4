"""What a step achieved: the measured part of its line in metrics.jsonl.

In: the examples of a step and the seconds it took, waiting for data included. Out: tokens (all, and those with loss)
and examples per second, `fill`, FLOP/s, their share of the GPU's peak (MFU), memory, the time left.

The FLOPs are those of `model/flops.py`, of the very examples in the step, and the same count that `--dry-run` plans
with: useful work alone, 4N per token where only the projector trains and 6N where the language model does. A share
is worth nothing without the whole, so each line names the peak that its `mfu` is relative to. On a CPU, under
float32, and on a GPU that is not in the table of `model/gpus.py`, no peak is known and `mfu` is null.

`fill` is how full the packs of the step are beside its fullest: 1 - `fill` is the time that the packs, were they run
side by side or padded to one shape, would wait for the fullest.
"""

from __future__ import annotations

import re
import resource
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llavamed.model import flops, gpus
from llavamed.recipe import StageSection
from llavamed.train.data import Examples
from llavamed.train.pack import Schedule, Step

# the keys that a clock or the machine decides: two runs of the same stage differ in these alone
TIMED = frozenset(
    {
        "seconds",
        "tokens_per_second",
        "supervised_tokens_per_second",
        "examples_per_second",
        "tflops_per_second",
        "mfu",
        "peak",
        "peak_memory_mb",
        "seconds_left",
    }
)
_RECENT = 20  # steps that the time left is judged by: the first ones compile and fill caches


class Meter:
    """Of one stage. `config` is the model's; `processes` is how many GPUs share a step."""

    def __init__(
        self,
        config: Any,
        examples: Examples,
        schedule: Schedule,
        stage: StageSection,
        dtype: str,
        device: torch.device,
        processes: int = 1,
    ) -> None:
        self._flops = flops.count(flops.on_meta(config), stage)
        self._examples, self._schedule, self._device = examples, schedule, device
        self._images = np.array([len(images) for images in examples.images])
        gpu = gpus.at_hand() if device.type == "cuda" else None
        peak = None if gpu is None else gpu.peak_in(dtype)
        self._peak = None if peak is None else peak * processes
        self._peak_name = None
        if gpu is not None and peak is not None:
            times = f"{processes} x " if processes > 1 else ""
            self._peak_name = f"{times}{peak / 1e12:g} TFLOP/s, the datasheet's for {gpu.name} in {dtype}"
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)  # (examples, seconds)

    def measure(self, done: int, step: Step, seconds: float) -> dict[str, Any]:
        """Of the step after which `done` steps are done; `step` is the whole of it, over all processes."""
        members = [index for pack in step for index in pack]
        lengths = self._examples.lengths[members]
        tokens, supervised = int(lengths.sum()), int(self._examples.targets[members].sum())
        fullest = max(int(self._examples.lengths[list(pack)].sum()) for pack in step)
        work = self._flops.of(tokens, float((lengths**2).sum()), supervised, int(self._images[members].sum()))
        self._recent.append((len(members), seconds))
        rate = sum(count for count, _ in self._recent) / sum(took for _, took in self._recent)
        left = self._schedule.examples_before(self._schedule.total) - self._schedule.examples_before(done)
        return {
            "examples": len(members),
            "tokens": tokens,
            "supervised_tokens": supervised,
            "packs": len(step),
            "fill": round(tokens / (len(step) * fullest), 4),
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "supervised_tokens_per_second": round(supervised / seconds, 1),
            "examples_per_second": round(len(members) / seconds, 2),
            "tflops_per_second": float(f"{work / seconds / 1e12:.6g}"),
            "mfu": None if self._peak is None else round(work / seconds / self._peak, 4),
            "peak": self._peak_name,
            "peak_memory_mb": round(self._peak_memory_mb(), 1),
            "seconds_left": round(left / rate, 1),
        }

    def _peak_memory_mb(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        status = Path("/proc/self/status")
        if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
            return int(found[1]) / 2**10  # KiB; rusage would also count the process that started this one
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def in_words(row: dict[str, Any]) -> str:
    """For the terminal, behind what the progress line says already."""
    mfu = "" if row["mfu"] is None else f", MFU {row['mfu']:.1%} of {row['peak'].partition(',')[0]}"
    return (
        f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s "
        f"({row['supervised_tokens_per_second']:,.0f} supervised), fill {row['fill']:.1%}, "
        f"{row['tflops_per_second']:.3g} TFLOP/s{mfu}, {row['peak_memory_mb'] / 1024:.1f} GiB"
    )
