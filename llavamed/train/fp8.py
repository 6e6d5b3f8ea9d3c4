"""A frozen language model in 8-bit floats: half the time of a product, the same bytes as bfloat16.

In stage `align` the language model is frozen, yet two thirds of what is computed passes through its matrices: the
forward pass, and the gradient on its way back to the projector. A GPU of compute capability 8.9 or later
multiplies 8-bit floats twice as fast as bfloat16. What usually eats the gain is turning weights into 8 bits at every
step, a third product for the weights' own gradient that tolerates the least, and state. A frozen weight has none of
these: it is quantised once.

The format is e4m3: 4 bits of exponent, 3 of mantissa, largest number 448, relative error at most 1/16. It is a
float, so a scale serves only to bring numbers into its range:

- a weight has one scale. Its values are within a few powers of two of each other.
- an activation or gradient has one scale per token. The gradient at an image token is orders of magnitude smaller
  than at a word that is predicted, and one scale for all would round it to zero, though it is all that the
  projector learns from. The largest value of a token is found in the pass over the token that makes it, and
  the product of the token's scale is put right after the multiplication, row by row; so the fast kernel
  with one scale for all serves.
- scales are powers of two: multiplying by them is exact.

`torch._scaled_mm` takes its second matrix column by column. Forward and backward read the weight along different
sides, so on a GPU both orientations are kept, 2 bytes a weight together.

On a CPU the same numbers are multiplied in float32: an emulation for tests and for looking at loss curves, not fast.

The original weights wait in the host's memory and come back with `unfreeze`: what a stage saves is what it was
given, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from llavamed.errors import InputError

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max  # 448
_MULTIPLE = 16  # both sides of a matrix, for torch._scaled_mm


def quantise(values: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(8-bit values, float32 scale): values = 8-bit values * scale, with a power of two that brings `largest`
    (broadcastable to `values`, at least the largest magnitude) to at most 448."""
    scale = torch.exp2(torch.ceil(torch.log2(largest.float().clamp(min=1e-30) / LARGEST)))
    return (values.float() / scale).clamp(-LARGEST, LARGEST).to(FORMAT), scale


def quantise_tokens(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise` with a scale per row: (n, dim) -> (n, dim), (n, 1)."""
    return quantise(values, values.abs().amax(dim=-1, keepdim=True))


class Fp8Linear(nn.Module):
    """A frozen `nn.Linear` whose weight is held in 8 bits; on the device that the layer is on."""

    codes: torch.Tensor
    codes_T: torch.Tensor | None
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        assert not linear.weight.requires_grad, "only a frozen weight keeps its value"
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        codes, scale = quantise(weight, weight.abs().max())
        self.register_buffer("codes", codes)  # (out, in)
        cuda = torch.cuda.is_available()  # with several ranks a layer is moved to its GPU only later
        self.register_buffer("codes_T", codes.T.contiguous() if cuda else None)  # (in, out)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.original = (linear.to("cpu"),)  # in a tuple: not a part of this module, nothing moves or lists it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the autocast dtype where autocast is on."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            rows = x.reshape(-1, self.in_features)
            out: torch.Tensor = _Product.apply(rows, self.codes, self.codes_T, self.scale, dtype)
            if self.bias is not None:
                out = out + self.bias.to(dtype)
        return out.view(*x.shape[:-1], self.out_features)


@torch.compiler.allow_in_graph  # traced below Dynamo: its own tracing of such functions fails at dynamic sizes
class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # (n, in)
        codes: torch.Tensor,  # (out, in)
        codes_T: torch.Tensor | None,  # (in, out)
        scale: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, codes_T, scale)
        ctx.x_dtype = x.dtype
        return _multiply(x, codes, scale, dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        codes, codes_T, scale = ctx.saved_tensors
        towards = codes.T if codes_T is None else codes_T  # (in, out)
        return _multiply(grad, towards, scale, ctx.x_dtype, fast=False), None, None, None, None


def _multiply(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, fast: bool
) -> torch.Tensor:
    """x (n, k) times the transpose of codes (m, k), each token of x in 8 bits: (n, m).

    `fast` lets the GPU add up in fewer bits, as is usual forwards and not backwards.
    """
    tokens, token_scale = quantise_tokens(x)
    if codes.is_cuda:
        one = torch.ones_like(scale)
        out = torch._scaled_mm(
            tokens.contiguous(), codes.T, scale_a=one, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=fast
        )
        return (out * token_scale.to(out.dtype)).to(dtype)
    return ((tokens.float() @ codes.float().T) * scale * token_scale).to(dtype)


def freeze(layers: Iterable[nn.Module]) -> int:
    """Replace the frozen linear layers inside `layers` in place; returns how many.

    Raises InputError if a weight is trained, or if the GPU has no 8-bit products.
    """
    count = 0
    for layer in layers:
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if type(child) is not nn.Linear or child.in_features % _MULTIPLE or child.out_features % _MULTIPLE:
                    continue
                if child.weight.requires_grad:
                    raise InputError("train.fp8_frozen: the language model trains; only frozen weights fit in 8 bits")
                if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
                    raise InputError(
                        "train.fp8_frozen: this GPU has no 8-bit products (compute capability 8.9 or later: "
                        "L4, L40, RTX 40, H100); leave it out"
                    )
                setattr(module, name, Fp8Linear(child))
                count += 1
    return count


def unfreeze(model: nn.Module) -> None:
    """Put the original layers back, where the model is."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Fp8Linear):
                setattr(module, name, child.original[0].to(child.codes.device))
