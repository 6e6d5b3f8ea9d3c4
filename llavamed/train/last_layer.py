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

from llavamed.train import lean

# residual around attention, then residual around the MLP, each behind a norm, and nothing else: read in transformers
_PLAIN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}


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
    if hidden_states.is_cuda or type(layer.self_attn).__name__ not in lean.ROTATED:
        attended: torch.Tensor = layer.self_attn(hidden_states=normed, **kwargs)[0].index_select(1, predict_from)
    else:
        attended = lean.attend(layer.self_attn, normed, at=predict_from, **kwargs)
    states = hidden_states.index_select(1, predict_from) + attended
    made: torch.Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
    return made
