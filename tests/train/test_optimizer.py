from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from llavamed.model.parts import Assembled, trainable_parameters
from llavamed.recipe import StageSection
from llavamed.train.optimizer import make_optimizer, rate_factor, set_rates, training_state


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
