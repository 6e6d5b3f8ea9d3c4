from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from llavamed.errors import InputError
from llavamed.model.parts import Assembled, trainable_parameters
from llavamed.recipe import StageSection
from llavamed.train import checkpoint
from llavamed.train.optimizer import make_optimizer, rate_factor, round_at_random, set_rates, training_state


def test_each_part_has_its_rate_and_norms_and_biases_do_not_decay(assembled: Assembled) -> None:
    stage = StageSection(learning_rate=1e-3, projector_learning_rate=5e-3, weight_decay=0.1)
    parameters = trainable_parameters(assembled.model, ("projector", "language_model"))
    optimizer = make_optimizer(parameters, stage, (0.9, 0.95))
    names = {parameter: name for named in parameters.values() for name, parameter in named.items()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.append(name)
            assert group["lr"] == (5e-3 if "projector" in name else 1e-3), name
            assert group["weight_decay"] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name
    assert sorted(seen) == sorted(names.values())
    assert set_rates(optimizer, 0.5) == {"projector": 2.5e-3, "language_model": 5e-4}


def test_moments_made_beforehand_change_nothing() -> None:
    def trained(prepared: bool) -> torch.Tensor:
        layer = torch.nn.Linear(4, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 12).view(3, 4))
            layer.bias.zero_()
        named: Any = {"projector": dict(layer.named_parameters())}
        stage = StageSection(learning_rate=0.1)
        optimizer: Any = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.0, fused=True)
        if prepared:
            optimizer = make_optimizer(named, stage, (0.9, 0.999))
        for step in range(3):
            optimizer.zero_grad()
            layer(torch.full((2, 4), float(step))).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(trained(True), trained(False))


def test_state_names_every_tensor_that_a_step_changes(assembled: Assembled) -> None:
    parameters = trainable_parameters(assembled.model, ("projector",))
    state = training_state(parameters, make_optimizer(parameters, StageSection(), (0.9, 0.999)))
    kinds = {name.split("/")[0] for name in state}
    assert kinds == {"parameter", "step", "exp_avg", "exp_avg_sq"}
    assert len(state) == 4 * 4


@pytest.mark.parametrize(("total", "ratio"), [(100, 0.03), (10, 0.0), (1, 0.5), (7, 0.9)])
def test_cosine_is_that_of_transformers_after_a_warm_up_that_starts_above_zero(total: int, ratio: float) -> None:
    stage = StageSection(warmup_ratio=ratio)
    factors = [rate_factor(step, total, stage) for step in range(total)]
    warmup = -(-total * ratio // 1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(warmup), total)
    reference = [scheduler.lr_lambdas[0](step) for step in range(total)]
    assert factors[int(warmup) :] == pytest.approx(reference[int(warmup) :])
    assert all(factor > 0 for factor in factors)
    assert max(factors) <= 1
    assert factors[: int(warmup)] == sorted(factors[: int(warmup)])


def test_constant_schedule_stays_at_the_base_rate_after_the_warm_up() -> None:
    stage = StageSection(warmup_ratio=0.2, schedule="constant")
    assert [rate_factor(step, 10, stage) for step in range(10)] == [0.5] + [1.0] * 9


def _descend(state: Any, steps: int = 60) -> tuple[torch.Tensor, Any, dict[str, torch.Tensor]]:
    """A 64 x 64 matrix towards a target, by noisy gradients; returns its distances, the optimizer and its state."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 64, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    parameters: Any = {"projector": {"w": weight}}
    optimizer = make_optimizer(parameters, StageSection(weight_decay=0.01), (0.9, 0.999), state)
    distances = []
    for step in range(steps):
        torch.manual_seed(step)  # as the loop does
        set_rates(optimizer, 50.0)  # 0.05
        weight.grad = weight.detach() - target + 0.1 * torch.randn(64, 64, generator=generator)
        optimizer.step()
        distances.append((weight.detach() - target).norm().item())
    return torch.tensor(distances), optimizer, training_state(parameters, optimizer)


def test_bfloat16_moments_lead_down_the_same_way() -> None:
    exact, _, _ = _descend("float32")
    found, _, state = _descend("bfloat16")
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "parameter/w": torch.float32, "step/w": torch.float32,
        "exp_avg/w": torch.bfloat16, "exp_avg_sq/w": torch.bfloat16,
    }  # fmt: skip
    assert torch.allclose(found, exact, rtol=0.01)


def test_bfloat16_arithmetic_is_that_of_adamw_but_for_the_rounding_of_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llavamed.train.optimizer.torch.bfloat16", torch.float64)
    monkeypatch.setattr("llavamed.train.optimizer.round_at_random", lambda values: values)
    monkeypatch.setattr("llavamed.train.optimizer._CHUNK", 1000)
    _, _, found = _descend("bfloat16")
    _, _, exact = _descend("float32")
    assert torch.allclose(found["parameter/w"], exact["parameter/w"], rtol=1e-4, atol=1e-6)


def test_rounding_at_random_keeps_the_mean_and_what_bfloat16_holds() -> None:
    torch.manual_seed(0)
    values = torch.full((200_000,), 1.001)  # a third of the way from 1 to the next, 1.0078
    rounded = round_at_random(values).float()
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert rounded.mean().item() == pytest.approx(1.001, abs=5e-5)
    exact = torch.tensor([0.0, 1.0, -2.5, 1e-30, 3e38]).bfloat16()
    assert torch.equal(round_at_random(exact.float()), exact)


def test_a_second_moment_in_bfloat16_shrinks_when_gradients_do() -> None:
    """Rounded to the nearest it would stay at its largest for ever."""
    weight = torch.nn.Parameter(torch.zeros(4096))
    named: Any = {"projector": {"w": weight}}
    optimizer = make_optimizer(named, StageSection(), (0.9, 0.999), "bfloat16")
    torch.manual_seed(0)
    for step in range(310):
        weight.grad = torch.full((4096,), 1.0 if step < 10 else 0.0)
        optimizer.step()
        if step == 9:
            largest = optimizer.state[weight]["exp_avg_sq"].float().mean()
    assert optimizer.state[weight]["exp_avg_sq"].float().mean() == pytest.approx(largest.item() * 0.999**300, rel=0.02)


def test_int8_without_torchao_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(InputError, match=r'pip install "llavamed\[fast\]"'):
        _descend("int8")


@pytest.mark.slow
def test_int8_moments_lead_down_the_same_way_and_go_through_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    exact, _, _ = _descend("float32")
    found, _, state = _descend("int8")
    assert torch.allclose(found, exact, rtol=0.05)
    assert {name: tensor.dtype for name, tensor in state.items() if "exp_avg" in name} == {
        "exp_avg.codes/w": torch.uint8, "exp_avg.scale/w": torch.float32,
        "exp_avg_sq.codes/w": torch.uint8, "exp_avg_sq.scale/w": torch.float32,
    }  # fmt: skip
    path = checkpoint.save(tmp_path, 60, state, "abc", keep=1)
    straight, _, expected = _descend("int8", 61)
    _, optimizer, fresh = _descend("int8", 0)
    checkpoint.restore(path, fresh)
    assert checkpoint.matches(path, fresh)
    weight = optimizer.param_groups[0]["params"][0]
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(64, 64, generator=generator) for _ in range(62)]
    torch.manual_seed(60)
    set_rates(optimizer, 50.0)
    weight.grad = weight.detach() - noises[0] + 0.1 * noises[61]
    optimizer.step()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in expected.items())
    assert (weight.detach() - noises[0]).norm().item() == pytest.approx(straight[-1].item())
