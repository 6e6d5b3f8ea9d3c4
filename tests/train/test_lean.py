"""Against the model as transformers has it, and the gradients against finite differences."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from llavamed.train import lean
from llavamed.train.attention import NAME

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.1,
}  # fmt: skip
ENDS = torch.tensor([0, 7, 27, 39], dtype=torch.int32)
BOUNDS = {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS, "max_length_q": 20, "max_length_k": 20}
KNOWN = {
    "Llama": (LlamaConfig, LlamaModel, 7, 3),  # its norms and its attentions
    "Llama that names a window": (partial(LlamaConfig, sliding_window=5), LlamaModel, 7, 3),
    "Mistral": (MistralConfig, MistralModel, 7, 3),
    "Mistral with a window": (partial(MistralConfig, sliding_window=5), MistralModel, 7, 3),
    "Qwen2": (Qwen2Config, Qwen2Model, 7, 3),
    "Qwen2 with a window in some layers": (
        partial(Qwen2Config, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        Qwen2Model,
        7,
        3,
    ),
    "Qwen3": (Qwen3Config, Qwen3Model, 13, 0),
}


def _run(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(states, gradients by parameter) of a pack of three documents."""
    model.zero_grad()
    ids = torch.randint(0, 64, (1, 39), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in ENDS.diff().tolist()])[None]
    states = model(ids, position_ids=positions, use_cache=False, **BOUNDS).last_hidden_state
    (states * torch.randn(1, 39, 32, generator=torch.Generator().manual_seed(1))).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("frozen", ["", "norm", "all but the embedding"])
@pytest.mark.parametrize("name", KNOWN)
def test_states_and_gradients_are_those_of_the_plain_model(name: str, frozen: str) -> None:
    config, kind, norms, attentions = KNOWN[name]
    torch.manual_seed(0)
    model = kind(config(**SHAPE))
    for parameter_name, parameter in model.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # norms of ones would hide their weight
        if frozen:
            parameter.requires_grad = frozen not in parameter_name if frozen == "norm" else "embed" in parameter_name
    model.set_attn_implementation(NAME)
    states, gradients = _run(model)
    lean.put_in(model)
    replaced = [type(module).__name__ for module in model.modules() if "forward" in vars(module)]
    assert [sum(kind in one for one in replaced) for kind in ("Norm", "Attention")] == [norms, attentions]
    with torch.profiler.profile() as profile:
        lean_states, lean_gradients = _run(model)
    ran = {event.key: event.count for event in profile.key_averages()}
    assert [ran.get(one, 0) for one in ("_Norm", "_Rotation")] == [norms, 2 * attentions]
    assert _near(lean_states, states)
    assert lean_gradients.keys() == gradients.keys()
    for parameter_name, gradient in gradients.items():
        assert _near(lean_gradients[parameter_name], gradient), parameter_name


def test_without_a_gradient_it_is_the_plain_model() -> None:
    """Bit for bit: answers and scores are those of the model that is written."""
    torch.manual_seed(0)
    model = MistralModel(MistralConfig(**SHAPE))
    ids = torch.randint(0, 64, (1, 9))
    with torch.no_grad():
        plain = model(ids).last_hidden_state
        lean.put_in(model)
        assert torch.equal(model(ids).last_hidden_state, plain)


def test_a_norm_with_other_arithmetic_is_left_alone() -> None:
    model = GemmaModel(GemmaConfig(**SHAPE))
    lean.put_in(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    states = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = (torch.randn(1, 1, 5, 8, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, w: lean._Norm.apply(x, w, 1e-2), (states, weight))
    assert torch.autograd.gradcheck(lambda x: lean.rotated(x, cos, sin), (heads,))


def test_a_row_of_zeros_has_a_gradient() -> None:
    norm = LlamaRMSNorm(4, eps=1e-6)
    states = torch.zeros(1, 1, 4, requires_grad=True)
    expected = torch.autograd.grad(norm(states).sum(), states)[0]
    found = torch.autograd.grad(lean._Norm.apply(states, norm.weight, 1e-6).sum(), states)[0]
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_rotation_is_that_of_transformers(kind: torch.dtype) -> None:
    """Also of narrow queries by wide tables, as under autocast."""
    torch.manual_seed(0)
    states, table = torch.randn(1, 2, 5, 8, dtype=kind), torch.randn(1, 5, 8)
    expected = apply_rotary_pos_emb(states, states, table.cos(), table.sin())[0]
    found = lean.rotated(states, table.cos()[:, None], table.sin()[:, None])
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, atol=1e-6)
