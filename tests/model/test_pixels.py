"""Against the image processor itself, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llavamed.model import pixels as module
from llavamed.model.pixels import pixels

SQUARE = {"height": 96, "width": 96}
PROCESSORS = {
    "ours": LlavaImageProcessorPil(do_pad=True, size=SQUARE, crop_size=SQUARE, do_center_crop=False),
    "other mean, bilinear": LlavaImageProcessorPil(
        do_pad=True, size=SQUARE, do_center_crop=False, image_mean=[0.5, 0.4, 0.3], image_std=[0.5] * 3, resample=2
    ),
    "cropped": LlavaImageProcessorPil(do_pad=True, size=SQUARE, crop_size={"height": 80, "width": 80}),
    "not padded": LlavaImageProcessorPil(do_pad=False, size={"shortest_edge": 96}, crop_size=SQUARE),
    "not resized": LlavaImageProcessorPil(do_pad=True, do_resize=False, crop_size=SQUARE),
    "not square": LlavaImageProcessorPil(do_pad=True, size={"height": 64, "width": 96}, do_center_crop=False),
    "CLIP": CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size=SQUARE),
}


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [
        (96, 96),
        (200, 133),
        (133, 200),
        (97, 640),
        (1, 300),
        (301, 2),
        (50, 50),
        (96, 300),
        *rng.integers(1, 400, (12, 2)),
    ]
    return [Image.fromarray(rng.integers(0, 256, (int(h), int(w), 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_numbers_are_those_of_the_processor(name: str) -> None:
    processor = PROCESSORS[name]
    for picture in pictures():
        theirs = processor([picture], return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels(processor, [picture]), theirs), picture.size
    if name != "not resized":
        assert torch.equal(pixels(processor, pictures()), processor(pictures(), return_tensors="pt")["pixel_values"])


def test_pillow_does_the_work_for_our_own_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlavaImageProcessorPil, "pad_to_square", None)
    monkeypatch.setattr(LlavaImageProcessorPil, "resize", None)
    assert pixels(PROCESSORS["ours"], pictures()).shape == (20, 3, 96, 96)
    assert module.pads_and_resizes(PROCESSORS["cropped"])
    small = [module.resized(PROCESSORS["ours"], picture) for picture in pictures()]
    assert {picture.size for picture in small} == {(96, 96)}
    assert torch.equal(pixels(PROCESSORS["ours"], small), pixels(PROCESSORS["ours"], pictures()))
    assert not any(module.pads_and_resizes(PROCESSORS[name]) for name in ("not padded", "not square"))
