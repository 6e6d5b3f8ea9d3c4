from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llavamed.train import loss as loss_module
from llavamed.train.loss import token_weights, weighted_cross_entropy


@pytest.mark.parametrize("chunk_logits", [50, 2**24])
@pytest.mark.parametrize("output_trains", [True, False])
def test_value_and_gradients_are_those_of_torch(
    chunk_logits: int, output_trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_LOGITS", chunk_logits)  # 50: three rows at a time, the last one short
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 8, generator=generator, requires_grad=True)
    output = torch.randn(17, 8, generator=generator, requires_grad=output_trains)
    targets = torch.randint(0, 17, (10,), generator=generator)
    weights = torch.rand(10, generator=generator)
    (3 * weighted_cross_entropy(hidden, output, targets, weights)).backward()
    mine = (hidden.grad, output.grad)
    hidden.grad = output.grad = None
    reference = (F.cross_entropy(hidden @ output.T, targets, reduction="none") * weights).sum()
    (3 * reference).backward()
    assert weighted_cross_entropy(hidden, output, targets, weights).item() == pytest.approx(reference.item(), rel=1e-6)
    assert torch.allclose(mine[0], hidden.grad, atol=1e-6)
    if output_trains:
        assert torch.allclose(mine[1], output.grad, atol=1e-6)
    else:
        assert mine[1] is None


def test_under_autocast_the_product_is_bfloat16_and_gradients_keep_the_parameters_type() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 8, generator=generator, requires_grad=True)
    output = torch.randn(17, 8, generator=generator, requires_grad=True)
    targets, weights = torch.arange(10), torch.full((10,), 0.1)
    exact = F.cross_entropy(hidden @ output.T, targets)
    with torch.autocast("cpu", torch.bfloat16):
        value = weighted_cross_entropy(hidden, output, targets, weights)
    value.backward()
    assert value.dtype == torch.float32
    assert 0 < abs(value.item() - exact.item()) < 0.05
    assert hidden.grad.dtype == output.grad.dtype == torch.float32


def test_without_targets_the_loss_is_zero() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)
    value = weighted_cross_entropy(hidden, torch.zeros(17, 8), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    value.backward()
    assert value.item() == 0


def test_token_weights_are_the_mean_over_tokens_or_the_mean_of_means() -> None:
    counts = np.array([1, 3, 6])
    losses = [np.array([2.0]), np.array([1.0, 2.0, 3.0]), np.arange(6.0)]
    for kind, expected in (
        ("token", np.concatenate(losses).mean()),
        ("example", np.mean([example.mean() for example in losses])),
    ):
        weights = token_weights(counts, kind)  # type: ignore[arg-type]
        assert (weights * counts).sum() == pytest.approx(1)
        assert sum((w * x).sum() for w, x in zip(weights, losses, strict=True)) == pytest.approx(expected)
