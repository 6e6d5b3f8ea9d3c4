"""What is kept of an image is what would be made of it again, and no more of it than fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL.Image import Image

from llavamed.engine.features import Features, Picture
from llavamed.engine.local import LocalEngine
from llavamed.engine.request import Request
from llavamed.records import user

FEATURE_BYTES = 6 * 8 * 4


class Tower:
    """Features that tell the picture; counts what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def __call__(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        self.encoded += [int(one.flatten()[0]) for one in pixels]
        return list(pixels.flatten(1)[:, :1].unsqueeze(1).expand(-1, 6, 8).contiguous())


def picture(number: int) -> Picture:
    return Picture.of(torch.full((3, 4, 4), float(number)))


@pytest.mark.parametrize("kept", [0, 1, 3, 100])
def test_features_are_right_and_bounded_whatever_is_kept(kept: int) -> None:
    tower = Tower()
    features = Features(tower, limit_bytes=kept * FEATURE_BYTES)
    for numbers in ([1, 2, 1], [2, 3], [4, 5, 6, 7], [1], [7, 7], [1, 8]):
        found = features([picture(number) for number in numbers])
        assert [int(one[0, 0]) for one in found] == numbers
        assert all(one.shape == (6, 8) for one in found)
        assert features.bytes <= kept * FEATURE_BYTES
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in features._kept.values()}
        assert sum(storages.values()) == features.bytes, "a view holds on to more than itself"
    if kept == 100:
        assert tower.encoded == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_image_asked_for_longest_ago_gives_way() -> None:
    tower = Tower()
    features = Features(tower, limit_bytes=2 * FEATURE_BYTES)
    for number in (1, 2, 1, 3, 1, 2):  # 2 gives way to 3, as 1 was asked for since
        features([picture(number)])
    assert tower.encoded == [1, 2, 3, 2]


def test_one_picture_under_two_names_is_encoded_once_and_two_of_one_name_are_not_confused(
    engine: LocalEngine, picture: Callable[[int], Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine never sees a name: the same pixels are the same picture, other pixels another."""
    encoded: list[int] = []
    features = Features(lambda pixels: (encoded.append(len(pixels)), engine._encode(pixels))[1])
    monkeypatch.setattr(engine, "_features", features)

    def ask(image: Image) -> str:
        return engine.generate([Request((user("What is shown?", images=1),), (image,), 8)])[0]

    first, copy, other = picture(1), picture(1).copy(), picture(2)
    for image in (first, other):
        image.filename = "a.png"  # type: ignore[attr-defined]
    answers = [ask(image) for image in (first, copy, other)]
    assert encoded == [1, 1]
    assert answers[0] == answers[1] != answers[2]
    first.paste(other)  # the same object with other pixels
    assert ask(first) == answers[2]
    assert encoded == [1, 1]
