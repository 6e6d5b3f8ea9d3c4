"""What the tower and the projector made of an image, kept for the next question about it.

Benchmarks ask an image many questions (SLAKE eleven, VQA-RAD two), and a conversation asks about its image at
every turn. The key is a hash of the very numbers that the tower is given: a name would confuse two files that
are called alike, and would encode one picture under two names twice. Since the key is all that the tower sees,
what is kept is what it would say again.

Memory is bounded: what was asked for longest ago gives way.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

LIMIT_BYTES = 256 * 2**20  # 7B: 56 images of 4.7 MB


@dataclass(frozen=True, eq=False)
class Picture:
    """`pixels` float32 (3, height, width) as the tower takes them; `key` names them."""

    pixels: torch.Tensor
    key: bytes

    @classmethod
    def of(cls, pixels: torch.Tensor) -> Picture:
        return cls(pixels, hashlib.sha256(pixels.numpy().tobytes()).digest())


class Features:
    """Call it with pictures for the features (tokens, dim) of each. `encode` does several (images, 3, height, width)
    at once."""

    def __init__(
        self, encode: Callable[[torch.Tensor], Sequence[torch.Tensor]], limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._encode, self._limit = encode, limit_bytes
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # the one asked for longest ago first
        self.bytes = 0  # held

    def __call__(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        new = {picture.key: picture.pixels for picture in pictures if picture.key not in self._kept}
        made = dict(zip(new, self._encode(torch.stack(list(new.values()))), strict=True)) if new else {}
        wanted = [made[picture.key] if picture.key in made else self._kept[picture.key] for picture in pictures]
        for picture in pictures:
            if picture.key in self._kept:
                self._kept.move_to_end(picture.key)
            else:
                # a copy: a view would keep the features of all images that were encoded with this one
                self._kept[picture.key] = made[picture.key].clone()
                self.bytes += _bytes(self._kept[picture.key])
        while self.bytes > self._limit:
            self.bytes -= _bytes(self._kept.popitem(last=False)[1])
        return wanted


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()
