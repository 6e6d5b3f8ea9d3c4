"""Cross-entropy over supervised tokens, without ever holding the logits.

In: hidden states of the positions that predict a supervised token (n, dim), the output matrix
(vocabulary, dim), the tokens, and a weight for each. Out: the weighted sum of -log p(token).

Logits for a pack of 16,000 tokens and a vocabulary of 32,000 are 2 GB in fp32, and autograd would keep
them twice. The gradient of cross-entropy is known as soon as the logits are (softmax minus one-hot), so
both gradients are taken chunk by chunk in the forward pass and the chunk's logits are dropped.

The weights carry the normalisation. LLaVA averages within each micro-batch, so that its objective
changes with the batch a GPU happens to hold; here the weights of one optimizer step add up to 1 over *all*
its packs, whatever the packing: summing the gradients of the packs is exactly one big batch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

_CHUNK_LOGITS = 2**24  # logits held at a time: 64 MB in fp32


def token_weights(counts: NDArray[np.integer], loss: Literal["token", "example"]) -> NDArray[np.float64]:
    """The weight of each supervised token of example i of a step; `counts` (examples,) says how many it has.

    "token": the mean over all supervised tokens of the step. "example": the mean of the examples' means.
    """
    assert (counts > 0).all()
    if loss == "token":
        return np.full(len(counts), 1.0 / counts.sum())
    return 1.0 / (len(counts) * counts)


def weighted_cross_entropy(
    hidden: torch.Tensor,  # (n, dim)
    output: torch.Tensor,  # (vocabulary, dim)
    targets: torch.Tensor,  # (n,) int64
    weights: torch.Tensor,  # (n,) float32
) -> torch.Tensor:
    """sum(weights * -log softmax(hidden @ output.T)[targets]), a float32 scalar.

    The product is taken in the autocast dtype where autocast is on, the softmax always in float32.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, output = hidden.to(dtype), output.to(dtype)
    with torch.autocast(device, enabled=False):
        loss: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, output, targets, weights)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, output: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        need_hidden, need_output = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_output = torch.zeros_like(output, dtype=torch.float32) if need_output else None
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, _CHUNK_LOGITS // output.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            log_p = F.log_softmax((hidden[part] @ output.T).float(), dim=-1)  # (rows, vocabulary)
            target, weight = targets[part, None], weights[part, None]
            total -= (log_p.gather(1, target) * weight).sum()
            if grad_hidden is None and grad_output is None:
                continue
            slope = log_p.exp_()  # d loss / d logits = weight * (softmax - one-hot)
            slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
            slope = slope.mul_(weight).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(slope, output, out=grad_hidden[part])
            if grad_output is not None:
                grad_output += slope.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, None if grad_output is None else grad_output.to(output.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        grad_hidden, grad_output = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * upstream.to(grad_hidden.dtype),
            None if grad_output is None else grad_output * upstream.to(grad_output.dtype),
            None,
            None,
        )
