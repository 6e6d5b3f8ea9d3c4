from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from llavamed.train import attention
from llavamed.train.attention import NAME
from llavamed.train.last_layer import is_trimmed, trim

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
KNOWN = [
    (LlamaConfig, LlamaModel),
    (MistralConfig, MistralModel),
    (partial(MistralConfig, sliding_window=5), MistralModel),
    (Qwen2Config, Qwen2Model),
    (Qwen3Config, Qwen3Model),
]


def _run(model: Any, **more: Any) -> torch.Tensor:
    ends = torch.tensor([0, 7, 27, 39], dtype=torch.int32)
    ids = torch.randint(0, 64, (1, 39), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in ends.diff().tolist()])[None]
    bounds = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 20, "max_length_k": 20}
    states: torch.Tensor = model(ids, position_ids=positions, use_cache=False, **bounds, **more).last_hidden_state[0]
    return states


@pytest.mark.parametrize("at", [[5, 6, 20, 21, 25, 38], [0, 5, 38], list(range(39))])
@pytest.mark.parametrize(("config", "kind"), KNOWN)
@pytest.mark.parametrize("queries", [3, 128], ids=["several blocks", "one block"])
def test_states_and_gradients_are_those_of_the_whole_layer(
    config: Any, kind: Any, at: Any, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a document in which nothing is read, and in which all is. In float64, where rounding hides nothing."""
    monkeypatch.setattr(attention, "_QUERIES", queries)
    torch.manual_seed(0)
    model = kind(config(**SHAPE)).double()
    model.set_attn_implementation(NAME)
    at = torch.tensor(at)
    whole = _run(model).index_select(0, at)
    direction = torch.randn(len(at), 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (whole * direction).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    trim(model)
    assert is_trimmed(model)
    trimmed = _run(model, predict_from=at)
    assert torch.allclose(trimmed, whole, rtol=1e-12, atol=1e-12)
    (trimmed * direction).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-10, atol=1e-10), name


def test_without_positions_it_is_the_plain_model() -> None:
    model = MistralModel(MistralConfig(**SHAPE))
    model.set_attn_implementation(NAME)
    before = _run(model)
    trim(model)
    assert torch.equal(_run(model), before)


def test_a_layer_with_other_arithmetic_is_left_alone() -> None:
    """Granite scales its residuals, under the same names of sub-modules."""
    model = GraniteModel(GraniteConfig(**SHAPE))
    trim(model)
    assert not is_trimmed(model)
    assert "forward" not in vars(model.layers[-1])
