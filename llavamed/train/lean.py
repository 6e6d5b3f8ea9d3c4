"""The norms and rotations of a small language model on a CPU, in few passes over memory.

The matrix products of the demo's model are half of a step; a sixth were its norms and the rotation of queries and
keys, which torch's autograd takes apart: a norm of (tokens, dim) is five passes forward and a dozen back. Here each is
one function with a backward of its own:

    norm         y = w * n,  n = x * r,  r = 1 / sqrt(mean(x^2) + eps);  dx = r * (w * dy - n * mean(w * dy * n))
    rotation     of the halves (a, b) of each head by an angle; its gradient is the rotation back

Only for float32 and where there is a gradient, so that answers given meanwhile are those of the plain model. A compiler
joins passes by itself, so a GPU and `train.compile` have no need of it. As in `last_layer`, which reads the same
attention at some positions alone, in any dtype, `forward` is replaced on the instance.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers.models.llama.modeling_llama import rotate_half

from llavamed.train.attention import packed_attention

# weight * (x / root mean square): read in transformers. Gemma's adds one to the weight
_NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
# projections, rotation, attention, projection, and nothing else. Qwen3's has norms between
ROTATED = {"LlamaAttention", "MistralAttention", "Qwen2Attention"}


def put_in(language_model: Any) -> None:
    """Replace what is known to be such a norm or attention; leave all else alone."""
    for module in language_model.modules():
        kind = type(module).__name__
        if kind in _NORMS:
            module.forward = partial(_normed, module, module.forward)
        elif kind in ROTATED:
            module.forward = partial(_attended, module, module.forward)


def _serves(states: torch.Tensor) -> bool:
    return states.is_cpu and states.dtype == torch.float32 and torch.is_grad_enabled()


def _normed(norm: Any, plain: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if not _serves(hidden_states):
        untouched: torch.Tensor = plain(hidden_states)
        return untouched
    made: torch.Tensor = _Norm.apply(hidden_states, norm.weight, norm.variance_epsilon)
    return made


def _attended(attention: Any, plain: Any, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
    if "cu_seq_lens_q" not in kwargs or not _serves(hidden_states):
        untouched: tuple[torch.Tensor, Any] = plain(hidden_states, **kwargs)
        return untouched
    return attend(attention, hidden_states, **kwargs), None


def attend(
    attention: Any,
    states: torch.Tensor,  # (1, T, dim)
    *,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    attention_mask: torch.Tensor | None = None,
    at: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """The forward of an attention module, one of `ROTATED`, over a pack: (1, T, dim).

    With `at` (S,) keys and values are of all tokens, queries of those alone: (1, S, dim).
    """
    heads = (-1, attention.head_dim)
    query, key, value = (
        project(read).unflatten(2, heads).transpose(1, 2)
        for project, read in (
            (attention.q_proj, states if at is None else states.index_select(1, at)),
            (attention.k_proj, states),
            (attention.v_proj, states),
        )
    )
    cos, sin = (table.unsqueeze(1) for table in position_embeddings)  # (1, 1, T, head_dim)
    tables = (cos, sin) if at is None else (cos.index_select(2, at), sin.index_select(2, at))
    out = packed_attention(
        attention,
        rotated(query, *tables),
        rotated(key, cos, sin),
        value,
        attention_mask,
        cu_seq_lens_q=cu_seq_lens_q,
        max_length_q=max_length_q,
        scaling=attention.scaling,
        dropout=attention.attention_dropout if attention.training else 0.0,
        sliding_window=_window(attention),
        at=at,
    )[0]
    made: torch.Tensor = attention.o_proj(out.flatten(2))
    return made


def _window(attention: Any) -> int | None:
    """Mistral has one for all layers, Qwen2 one for some; a Llama's configuration may name one that it does not use."""
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window: int | None = getattr(holder, "sliding_window", None)
    return window


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """states (1, heads, T, head_dim) * cos + (-second half, first half) * sin; the tables are (1, 1, T, head_dim)."""
    if torch.compiler.is_compiling():  # a compiled last layer
        return states * cos + rotate_half(states) * sin
    kind = torch.promote_types(states.dtype, cos.dtype)  # autocast's queries are narrower than the tables
    made: torch.Tensor = _Rotation.apply(states.to(kind), cos.to(kind), sin.to(kind))
    return made


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        scale = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = scale.square_().mul_(1 / states.shape[-1]).add_(epsilon).rsqrt_()
        normed = states * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        normed, scale, weight = ctx.saved_tensors
        product = gradient * normed
        rows = product.reshape(-1, product.shape[-1])
        of_weight = rows.sum(0) if ctx.needs_input_grad[1] else None
        along = torch.mv(rows, weight).mul_(-1 / rows.shape[1]).view(scale.shape)
        torch.mul(gradient, weight, out=product)
        return product.addcmul_(normed, along).mul_(scale), of_weight, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        (first, second), (sin_first, sin_second) = states.chunk(2, -1), sin.chunk(2, -1)
        out = states * cos
        out_first, out_second = out.chunk(2, -1)
        out_first.addcmul_(second, sin_first, value=-1)
        out_second.addcmul_(first, sin_second)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (first, second), (sin_first, sin_second) = gradient.chunk(2, -1), sin.chunk(2, -1)
        out = gradient * cos
        out_first, out_second = out.chunk(2, -1)
        out_first.addcmul_(second, sin_second)
        out_second.addcmul_(first, sin_first, value=-1)
        return out, None, None
