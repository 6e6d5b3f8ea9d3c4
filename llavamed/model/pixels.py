"""Pictures become the numbers that a vision tower takes.

In: RGB images of any size. Out: float32 (images, 3, height, width), bit for bit what the folder's own image
processor gives.

The processor of a LLaVA folder pads a picture to a square and resizes it, and does both by way of numpy
arrays with the channels in front. For a radiograph of 900 x 900 pixels these copies cost more than a small
model's whole answer. Padding and resizing are Pillow's work, so here Pillow does them on the picture itself
(a third of the time), and the processor gets a picture that only wants scaling. Where the processor is of
another kind, or set otherwise, it does everything itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil


def pixels(image_processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """float32 (images, 3, height, width). The images must be RGB."""
    steps: dict[str, bool] = {}
    if pads_and_resizes(image_processor):
        images = [resized(image_processor, image) for image in images]
        steps = {"do_pad": False, "do_resize": False}
    values: torch.Tensor = image_processor(list(images), return_tensors="pt", **steps)["pixel_values"]
    return values


def pads_and_resizes(image_processor: Any) -> bool:
    """True if `resized` does the first half of what this processor does."""
    size = image_processor.size
    return (
        type(image_processor) is LlavaImageProcessorPil
        and bool(image_processor.do_pad and image_processor.do_resize and image_processor.image_mean)
        and bool(size["height"] and size["height"] == size["width"])
        and not (size["shortest_edge"] or size["longest_edge"])
    )


def resized(image_processor: Any, image: Image.Image) -> Image.Image:
    """Centred on a square of the mean colour, as LLaVA's `expand2square` does, then resized.

    What it makes stays as it is when `pixels` does the same again.
    """
    assert image.mode == "RGB", image.mode
    side = max(image.size)
    if image.width != image.height:
        square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in image_processor.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    size = (image_processor.size["width"], image_processor.size["height"])
    return image.resize(size, resample=image_processor.resample)
