"""What a frozen tower sees in a picture, worked out once and not once an epoch.

In: the stage's pictures and its tower. Out: something that is asked for pictures as `Pixels` is, and gives the
tower's features instead, (tokens, dim); `forward.image_features` goes on from there.

This pays where a small tower stands beside a small language model on a CPU: of the demo's `instruct` it is a tenth.
LLaVA-Med's own would be 1.2 MB a picture, 71 GB for 60,000, to save 0.6 % of the work, so there is a limit
(`FEATURE_CACHE_BYTES`), and only a stage that shows its pictures again is worth the trouble.

The hard thing is that a matrix product of other rows may end in another last bit. So the pictures are taken in the
order of the records and in groups that depend on nothing else: a run that is resumed has the same features.

The meter's FLOP/s go on counting the tower in every epoch: they are the work of the model, not of the machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llavamed.progress import Progress
from llavamed.train.data import Examples, Pixels
from llavamed.train.forward import tower_features

FEATURE_CACHE_BYTES = 512 * 2**20  # of all pictures of a stage; where they are more, none are kept
_GROUP = 32  # pictures that the tower sees at a time


class Features:
    """Of every picture of `examples`, by key."""

    def __init__(self, model: Any, examples: Examples, pixels: Pixels) -> None:
        keys = list(dict.fromkeys(key for images in examples.images for key in images))
        self._kept: dict[str, NDArray[np.float32]] = {}
        with torch.no_grad(), Progress("looking at images", total=len(keys), unit="images") as progress:
            for start in range(0, len(keys), _GROUP):
                group = keys[start : start + _GROUP]
                stacked = torch.from_numpy(np.stack([pixels.load(key) for key in group]))
                # a copy of each, or the class token that was cut off would be kept as well
                seen = [each.float().numpy().copy() for each in tower_features(model, stacked)]
                self._kept |= dict(zip(group, seen, strict=True))
                progress.advance(len(group))

    def load(self, key: str) -> NDArray[np.float32]:
        """(tokens, dim) of the tower's layer that the projector reads."""
        return self._kept[key]


def fit(model: Any, examples: Examples) -> bool:
    """True if the features of all pictures of the stage can be kept in memory."""
    images = {key for images in examples.images for key in images}
    each = 4 * int(model.config.image_seq_length) * int(model.config.vision_config.hidden_size)
    return 0 < len(images) * each <= FEATURE_CACHE_BYTES
