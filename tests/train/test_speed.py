from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed.errors import InputError
from llavamed.model.parts import Assembled, trainable_parameters
from llavamed.recipe import StageSection, TrainSection
from llavamed.train.attention import packed
from llavamed.train.data import Pixels, make_batch, read_examples, step_weights
from llavamed.train.forward import Batch, pack_loss
from llavamed.train.speed import prepare, restore

COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is absent: apt-get install g++")

BOTH = StageSection(trains=("projector", "language_model"))
STEP = ((0, 1, 2), (3, 4, 5, 6, 7))


@pytest.fixture
def batches(assembled: Assembled, data: Path, images: Path) -> list[Batch]:
    pixels = Pixels(images, assembled.processor)
    examples = read_examples(data, pixels, assembled.processor, max_tokens=128)
    weights = step_weights(examples, STEP, "token")
    return [make_batch(examples, pixels, pack, weights, assembled.model.config.image_token_id) for pack in STEP]


def _step(model: Any, batches: list[Batch], bfloat16: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    with packed(model):
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = pack_loss(model, batch)
            loss.backward()
            total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _same(found: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"recompute": "selective"},
        {"recompute": "full"},
        pytest.param({"compile": True}, marks=[pytest.mark.slow, COMPILES]),
        pytest.param({"compile": True, "recompute": "selective"}, marks=[pytest.mark.slow, COMPILES]),
    ],
)
def test_loss_and_gradient_are_those_of_the_plain_model(
    assembled: Assembled, batches: list[Batch], keys: dict[str, Any]
) -> None:
    model: Any = assembled.model.train()
    trainable_parameters(model, BOTH.trains)
    expected = _step(model, batches)
    prepare(model, TrainSection(**keys), BOTH)
    _same(_step(model, batches), expected)


def test_full_recompute_keeps_a_quarter_for_the_backward_pass(assembled: Assembled, batches: list[Batch]) -> None:
    model: Any = assembled.model.train()
    trainable_parameters(model, BOTH.trains)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept() -> int:
        seen: dict[int, int] = {}

        def look(tensor: torch.Tensor) -> torch.Tensor:
            if (storage := tensor.untyped_storage()).data_ptr() not in parameters:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with packed(model), torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
            loss = pack_loss(model, batches[1])
        assert loss.requires_grad
        return sum(seen.values())

    plain = kept()
    prepare(model, TrainSection(recompute="full"), BOTH)
    assert kept() < plain / 4


@pytest.mark.parametrize("compiled", [True, False])
def test_restore_gives_the_plain_model_back(assembled: Assembled, compiled: bool) -> None:
    model: Any = assembled.model
    trainable_parameters(model, ("projector",))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {name: type(module) for name, module in model.named_modules()}
    switches = TrainSection(recompute="full", compile=compiled, fp8_frozen=True)
    prepare(model, switches, StageSection(trains=("projector",)))
    assert model.state_dict().keys() != before.keys()
    restore(model)
    assert {name: type(module) for name, module in model.named_modules()} == modules
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any("forward" in vars(module) or module._compiled_call_impl for module in model.modules())


def test_gradients_of_a_step_add_up_in_float32_under_bfloat16(assembled: Assembled, batches: list[Batch]) -> None:
    model: Any = assembled.model.bfloat16().train()
    parameters = trainable_parameters(model, BOTH.trains)
    for named in parameters.values():
        for parameter in named.values():
            parameter.data = parameter.data.float()
    apart = [_step(model, [batch], bfloat16=True)[1] for batch in batches]
    together = _step(model, batches, bfloat16=True)[1]
    for name, gradient in together.items():
        assert gradient.dtype == torch.float32, name
        assert torch.equal(gradient, apart[0][name] + apart[1][name]), name
    rounded = [name for name, g in together.items() if not torch.equal(g, g.bfloat16().float())]
    assert len(rounded) > len(together) / 2  # sums that bfloat16 could not have held


def test_fp8_without_a_frozen_language_model_is_refused(assembled: Assembled) -> None:
    trainable_parameters(assembled.model, BOTH.trains)
    with pytest.raises(InputError, match="every stage trains the language model"):
        prepare(assembled.model, TrainSection(fp8_frozen=True, instruct=BOTH), BOTH)


def test_fp8_is_left_out_of_the_stage_that_trains_after_one_that_does_not(assembled: Assembled) -> None:
    trainable_parameters(assembled.model, BOTH.trains)
    switches = TrainSection(fp8_frozen=True, align=StageSection(), instruct=BOTH)
    prepare(assembled.model, switches, BOTH)
    assert not any("Fp8" in type(module).__name__ for module in assembled.model.modules())


@pytest.mark.slow
@COMPILES
def test_compiled_fp8_is_fp8(assembled: Assembled, batches: list[Batch]) -> None:
    model: Any = assembled.model.train()
    stage = StageSection(trains=("projector",))
    trainable_parameters(model, stage.trains)
    prepare(model, TrainSection(fp8_frozen=True), stage)
    expected = _step(model, batches[:1])
    restore(model)
    prepare(model, TrainSection(fp8_frozen=True, compile=True), stage)
    _same(_step(model, batches[:1]), expected)


def test_layers_hand_on_what_autocast_multiplies(assembled: Assembled, batches: list[Batch]) -> None:
    """Also where the embedding is trained, and so in float32: the stream between layers would be twice as wide."""
    model: Any = assembled.model
    seen = []
    model.model.language_model.layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with packed(model), torch.autocast("cpu", torch.bfloat16):
        pack_loss(model, batches[0])
    assert seen == [torch.bfloat16]
