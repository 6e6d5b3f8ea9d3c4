"""What a GPU holds and how fast it multiplies: the table behind the meter's MFU and the plan's hours.

`memory` is what `torch.cuda` reports, a little less than what is on the box. `peak` is the manufacturer's dense
bfloat16 rate with float32 accumulation, without sparsity (whose figures are twice as high and often the ones
quoted). A real matrix product stays below it: `measured` is the best one where it is known, and a model can at best
come near that. So a share of the peak says nothing before it says which of the two it is a share of; here it is
always `peak`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

import torch

from llavamed.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """`memory` in bytes; `peak` and `measured` in FLOP/s, None where they are not known."""

    name: str
    memory: float
    peak: float | None = None
    measured: float | None = None

    def peak_in(self, dtype: str) -> float | None:
        """The peak for products in `dtype`: that of bfloat16, or None."""
        return self.peak if dtype == "bfloat16" else None

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / GIB:.0f} GiB"


# name -> memory in GiB, peak in TFLOP/s, words of the device's name in torch.
# The first row whose words are all there is taken (with the nearest memory, of those that share a peak).
# Peaks: NVIDIA's datasheets of A100 (2021), A10 (2021), A10G (AWS G5), A40 (2021), RTX A6000 (2021), L4 (2023),
# L40S (2023), H100 (2022; SXM, PCIe, NVL), H200 (2023), HGX B200 (2024), RTX 6000 Ada (2023); the whitepapers of GA102,
# AD102 and the RTX Blackwell architecture for the GeForce cards, whose float32 accumulation runs at half rate.
_TABLE: dict[str, tuple[float, float, tuple[str, ...]]] = {
    "a100-40g": (39.4, 312, ("A100",)),
    "a100-80g": (79.2, 312, ("A100",)),
    "h100-80g-pcie": (79.2, 756, ("H100", "PCIe")),
    "h100-94g-nvl": (93.1, 835, ("H100", "NVL")),
    "h100-80g": (79.1, 989, ("H100",)),
    "h200-nvl": (139.8, 835, ("H200", "NVL")),
    "h200": (139.8, 989, ("H200",)),
    "b200": (178.4, 2250, ("B200",)),
    "l40s": (44.4, 362, ("L40S",)),
    "l4": (22.0, 121, ("L4",)),
    "a10g-24g": (22.0, 70, ("A10G",)),
    "a10-24g": (22.0, 125, ("A10",)),
    "a40": (44.4, 149.7, ("A40",)),
    "rtx-a6000": (47.4, 154.8, ("A6000",)),
    "rtx6000-ada": (47.4, 364, ("6000", "Ada")),
    "rtx5090": (31.3, 209.5, ("5090",)),
    "rtx4090": (23.5, 165.2, ("4090",)),
    "rtx3090": (23.6, 71, ("3090",)),
}
_OTHERWISE = {"Laptop", "MIG", "Ti", "D", "Max"}  # words that make it another card, or a slice of one
_MEASURED = {"h200": 790e12}  # bfloat16, 8192 x 8192 x 8192: 769 to 798 TFLOP/s


def names() -> list[str]:
    return list(_TABLE)


def named(name: str) -> Gpu:
    """The GPU of the table. Raises InputError naming the nearest."""
    key = name.lower()
    if key not in _TABLE:
        close = difflib.get_close_matches(key, _TABLE, n=1, cutoff=0.3)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"GPU {name!r}: not known{meant}; give one of {', '.join(_TABLE)}, or its memory by --gpu-gb")
    memory, peak, _ = _TABLE[key]
    return Gpu(key, memory * GIB, peak * 1e12, _MEASURED.get(key))


def recognised(device_name: str, memory: float) -> Gpu:
    """The GPU that torch calls `device_name` and says has `memory` bytes; without a peak if it is not in the table."""
    words = set(device_name.replace("-", " ").split())
    same = [key for key, (_, _, wanted) in _TABLE.items() if words.issuperset(wanted)]
    if not same or words & _OTHERWISE:
        return Gpu(device_name, memory)
    same = [key for key in same if _TABLE[key][1] == _TABLE[same[0]][1]]
    nearest = min(same, key=lambda key: abs(_TABLE[key][0] * GIB - memory))
    return replace(named(nearest), memory=memory)


def at_hand() -> Gpu | None:
    """The first GPU of this machine, if there is one."""
    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    return recognised(card.name, card.total_memory)


def to_plan_for(name: str, gigabytes: float | None) -> Gpu:
    """The named one, else the one at hand, else an A100 with 80 GB; `gigabytes` replaces its memory."""
    if not name and gigabytes is not None:
        return Gpu(f"a GPU of {gigabytes:g} GB", gigabytes * 1e9)
    gpu = named(name) if name else at_hand() or named("a100-80g")
    return gpu if gigabytes is None else replace(gpu, memory=gigabytes * 1e9)
