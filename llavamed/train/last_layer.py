"""The last decoder layer, worked out only where it is read.

Keys and values of the last layer are needed at every position: later tokens attend to them. Its output is
read only where a supervised token is predicted, a sixth (captions) to a quarter (conversations) of a pack's
positions. So its MLP and the final norm, which look at one position at a time, are run at these alone. This is
exact. In the four-layer model of the demo it is a seventh of all work, in a model of 32 layers 2 %.

On a CPU the queries are cut in the same way, and with them attention and its output projection: a twentieth more
in the demo. On a GPU they are not: the varlen kernel takes a query for every token, and of 32 layers it would be half
a per cent.

The layer keeps its class and its weights: its `forward` is replaced on the instance, where hooks on the
layer (FSDP's) and `layer.compile()` still find it. Without `predict_from` it is the plain forward.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers.models.llama.modeling_llama import rotate_half

from llavamed.train.attention import packed_attention

# residual around attention, then residual around the MLP, each behind a norm, and nothing else: read in transformers
_PLAIN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
# and of these, those whose queries and keys are rotated and nothing else
_ROTATED = {"LlamaAttention", "MistralAttention", "Qwen2Attention"}


def trim(language_model: Any) -> None:
    """From now on the language model takes `predict_from` (S,) and gives the states of these positions alone.

    Does nothing if the layers are of a kind that is not known to work so.
    """
    last = language_model.layers[-1]
    if type(last).__name__ in _PLAIN and not is_trimmed(language_model):
        last.forward = partial(_forward, last, last.forward)
        last.reads_predict_from = True


def is_trimmed(language_model: Any) -> bool:
    """True if the language model takes `predict_from`."""
    return getattr(language_model.layers[-1], "reads_predict_from", False)


def _forward(
    layer: Any, plain: Any, hidden_states: torch.Tensor, predict_from: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor:
    """(1, T, dim) -> (1, S, dim)."""
    if predict_from is None:
        untrimmed: torch.Tensor = plain(hidden_states, **kwargs)
        return untrimmed
    normed = layer.input_layernorm(hidden_states)
    if hidden_states.is_cuda or type(layer.self_attn).__name__ not in _ROTATED:
        attended: torch.Tensor = layer.self_attn(hidden_states=normed, **kwargs)[0].index_select(1, predict_from)
    else:
        attended = _attend(layer.self_attn, normed, predict_from, **kwargs)
    states = hidden_states.index_select(1, predict_from) + attended
    made: torch.Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
    return made


def _attend(
    attention: Any,
    states: torch.Tensor,  # (1, T, dim)
    at: torch.Tensor,  # (S,)
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> torch.Tensor:
    """The attention module's forward, (1, S, dim): keys and values of all tokens, queries of those `at` alone."""
    heads = (-1, attention.head_dim)
    cos, sin = (table.unsqueeze(1) for table in position_embeddings)  # (1, 1, T, head_dim)
    query = attention.q_proj(states.index_select(1, at)).unflatten(2, heads).transpose(1, 2)
    key, value = (
        project(states).unflatten(2, heads).transpose(1, 2) for project in (attention.k_proj, attention.v_proj)
    )
    out = packed_attention(
        attention,
        query * cos.index_select(2, at) + rotate_half(query) * sin.index_select(2, at),
        key * cos + rotate_half(key) * sin,
        value,
        None,
        cu_seq_lens_q=cu_seq_lens_q,
        max_length_q=max_length_q,
        scaling=attention.scaling,
        dropout=attention.attention_dropout if attention.training else 0.0,
        sliding_window=getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None)),
        at=at,
    )[0]
    made: torch.Tensor = attention.o_proj(out.flatten(2))
    return made
