from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import folder as model_folder
from llavamed.model.parts import build, trainable_parameters
from llavamed.recipe import ModelSection, StageSection, TrainSection
from llavamed.train.data import Pixels, read_examples
from llavamed.train.fp8 import LARGEST, Fp8Linear, freeze, quantise, quantise_tokens, unfreeze
from llavamed.train.loop import run_stage
from llavamed.train.validate import read_rows

HALF_STEP = 2**-4  # three bits of mantissa: a value is at most a sixteenth of itself away


def _linear(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
def test_every_value_is_within_half_a_step(size: float) -> None:
    values = size * torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    codes, scale = quantise_tokens(values)
    back = codes.float() * scale
    tiniest = scale * 2**-10  # half of the smallest number: below it everything is zero
    assert ((back - values).abs() <= HALF_STEP * values.abs() + tiniest).all()


def test_scales_are_powers_of_two_that_use_the_range() -> None:
    values = torch.tensor([[448.0, 1.0], [449.0, 1.0], [3e-5, 0.0], [0.0, 0.0]])
    codes, scale = quantise_tokens(values)
    assert torch.equal(scale.log2(), scale.log2().round())
    assert scale[:2].flatten().tolist() == [1.0, 2.0]
    assert LARGEST / 2 <= codes[2].float().max() <= LARGEST
    assert torch.equal(codes[3].float(), torch.zeros(2))


def test_a_number_that_is_not_one_stays_visible() -> None:
    codes, scale = quantise_tokens(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
    back = codes.float() * scale
    assert back[0].isnan().any()
    assert torch.equal(back[1], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_the_exact_one_within_the_formats_error(bias: bool) -> None:
    linear = _linear(bias)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    exact = linear(x)
    bound = 2.2 * HALF_STEP * (x.abs() @ linear.weight.abs().T)  # both factors are off by a sixteenth at most
    found = Fp8Linear(linear)(x)
    assert ((found - exact).abs() <= bound).all()
    assert (found - exact).norm() < 0.05 * exact.norm()  # errors go both ways


def test_the_gradient_is_the_quantised_one_times_the_quantised_weight() -> None:
    linear = _linear()
    layer = Fp8Linear(linear)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 64, generator=generator, requires_grad=True)
    upstream = torch.randn(7, 48, generator=generator)
    upstream[3] *= 1e-5  # a token with a small gradient keeps its own scale
    layer(x).backward(upstream)
    codes, scale = quantise_tokens(upstream)
    weights, weight_scale = quantise(linear.weight, linear.weight.abs().max())
    expected = (codes.float() * scale) @ (weights.float() * weight_scale)
    assert torch.allclose(x.grad, expected, rtol=1e-5, atol=1e-12)
    exact = upstream @ linear.weight
    assert ((x.grad - exact).norm(dim=1) < 0.06 * exact.norm(dim=1)).all()


def test_the_output_has_the_dtype_of_a_linear_layers() -> None:
    layer, x = Fp8Linear(_linear()), torch.randn(3, 64)
    assert layer(x).dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_freeze_and_unfreeze_lose_nothing_and_odd_sizes_are_left_alone() -> None:
    torch.manual_seed(0)
    block = nn.ModuleDict({"even": nn.Linear(32, 16), "odd": nn.Linear(32, 10)}).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    assert freeze([block]) == 1
    assert isinstance(block["even"], Fp8Linear)
    assert type(block["odd"]) is nn.Linear
    unfreeze(block)
    assert block.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_a_weight_that_trains_is_refused() -> None:
    with pytest.raises(InputError, match="the language model trains"):
        freeze([nn.ModuleDict({"trained": nn.Linear(32, 16)})])


def test_align_has_the_loss_curve_of_the_exact_weights_and_leaves_them_untouched(
    parts: ModelSection, data: Path, images: Path, tmp_path: Path
) -> None:
    """Ten times over eight conversations: each loss within 1 % of the exact one, the fall within 5 %."""
    stage = StageSection(data=str(data), images=str(images), learning_rate=3e-3, epochs=10, batch_size=4)
    curves = {}
    for fp8 in (False, True):
        train = TrainSection(max_tokens=128, tokens_per_pack=64, fp8_frozen=fp8)
        assembled = build(parts, 0)
        pixels = Pixels(images, assembled.processor)
        examples = read_examples(data, pixels, assembled.processor, train.max_tokens)
        out = tmp_path / str(fp8)
        made_from = Manifest("stage", settings=stage.model_dump())
        run_stage(assembled, examples, pixels, "align", stage, train, out, 0, made_from)
        curves[fp8] = [row["loss"] for row in read_rows(out / "metrics.jsonl")]
        assert manifest.read(out) is not None
    exact, found = torch.tensor(curves[False]), torch.tensor(curves[True])
    assert not torch.equal(exact, found)
    assert torch.allclose(found, exact, rtol=0.01)
    assert (found[0] - found[-4:].mean()).item() == pytest.approx((exact[0] - exact[-4:].mean()).item(), rel=0.05)
    given: Any = build(parts, 0).model
    trainable_parameters(given, ())
    saved = model_folder.load(tmp_path / "True").model.state_dict()
    for name, tensor in given.state_dict().items():
        assert torch.equal(saved[name], tensor) or "multi_modal_projector" in name, name
