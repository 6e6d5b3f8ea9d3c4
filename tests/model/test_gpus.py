from __future__ import annotations

import pytest

from llavamed.errors import InputError
from llavamed.model import gpus
from llavamed.model.gpus import GIB


@pytest.mark.parametrize(
    ("device_name", "gib", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40g"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80g"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80g"),
        ("NVIDIA H100 PCIe", 79.1, "h100-80g-pcie"),
        ("NVIDIA H100 NVL", 93.0, "h100-94g-nvl"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA B200", 178.4, "b200"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA A10", 22.0, "a10-24g"),
        ("NVIDIA A10G", 22.0, "a10g-24g"),
        ("NVIDIA RTX A6000", 47.4, "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", 47.4, "rtx6000-ada"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
        ("NVIDIA GeForce RTX 3090", 23.6, "rtx3090"),
    ],
)
def test_a_device_is_recognised_by_the_name_torch_gives(device_name: str, gib: float, name: str) -> None:
    found = gpus.recognised(device_name, gib * GIB)
    assert found.name == name
    assert found.peak == gpus.named(name).peak
    assert found.memory == gib * GIB


@pytest.mark.parametrize(
    "device_name",
    ["Tesla V100-SXM2-16GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H20"],
)
def test_of_another_device_or_a_slice_no_peak_is_claimed(device_name: str) -> None:
    found = gpus.recognised(device_name, 16 * GIB)
    assert (found.name, found.memory, found.peak) == (device_name, 16 * GIB, None)


def test_the_peak_is_that_of_bfloat16() -> None:
    assert gpus.named("h200").peak_in("bfloat16") == 989e12
    assert gpus.named("h200").peak_in("float32") is None


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'a100-40gb': not known \(did you mean 'a100-40g'\?\).*--gpu-gb"):
        gpus.named("a100-40gb")


def test_what_is_planned_for_is_the_one_named_then_the_one_at_hand_then_an_a100(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "at_hand", lambda: gpus.named("l4"))
    assert gpus.to_plan_for("h200", None).name == "h200"
    assert gpus.to_plan_for("", None).name == "l4"
    assert gpus.to_plan_for("", 48).memory == 48e9
    assert gpus.to_plan_for("h200", 48) == gpus.Gpu("h200", 48e9, 989e12, 790e12)
    monkeypatch.setattr(gpus, "at_hand", lambda: None)
    assert gpus.to_plan_for("", None).name == "a100-80g"
