from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from llavamed.model.parts import Assembled
from llavamed.train import attention
from llavamed.train.attention import NAME, packed, packed_attention
from llavamed.train.forward import collate, hidden_states

LENGTHS = [7, 1, 19, 12]


@pytest.fixture(autouse=True, params=[3, 128], ids=["several blocks", "one block"])
def queries_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_QUERIES", request.param)
    monkeypatch.setattr(attention, "_LONG", 15)  # one of the documents is done whole


def _documents(vocabulary: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(7, vocabulary, (length,), generator=generator) for length in LENGTHS]


def _packed_arguments(documents: list[torch.Tensor]) -> dict[str, Any]:
    lengths = [len(document) for document in documents]
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return {
        "input_ids": torch.cat(documents)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


@pytest.mark.parametrize("kind", [(MistralConfig, MistralForCausalLM), (LlamaConfig, LlamaForCausalLM)])
@pytest.mark.parametrize("use_cache", [False, True])
def test_packed_documents_give_the_logits_of_documents_apart(kind: tuple[Any, Any], use_cache: bool) -> None:
    config = kind[0](
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    model = kind[1](config).eval()
    documents = _documents(64)
    with torch.no_grad():
        apart = torch.cat([model(document[None]).logits[0] for document in documents])
        model.set_attn_implementation(NAME)
        together = model(**_packed_arguments(documents), use_cache=use_cache).logits[0]
    assert torch.allclose(together, apart, atol=1e-5)


def test_sliding_window_is_that_of_transformers() -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, sliding_window=5,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    documents = _documents(64)
    with torch.no_grad():
        apart = torch.cat([model(document[None]).logits[0] for document in documents])
        model.set_attn_implementation(NAME)
        together = model(**_packed_arguments(documents)).logits[0]
    assert torch.allclose(together, apart, atol=1e-5)


def test_gradients_do_not_cross_documents() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)
    )
    boundaries = torch.tensor([0, 7, 8, 27, 39], dtype=torch.int32)
    out, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, cu_seq_lens_q=boundaries, max_length_q=19, scaling=8**-0.5
    )
    out[0, 8:27].sum().backward()  # the third document
    for tensor in (query, key, value):
        touched = tensor.grad.abs().sum((0, 1, 3)) > 0
        assert touched[9:27].all()  # the first token sees itself alone, so its query has no gradient
        assert not touched[:8].any()
        assert not touched[27:].any()


def test_changing_one_document_of_a_llava_pack_changes_no_other(assembled: Assembled) -> None:
    """With images and a text-only document between them, in training mode, as the trainer runs it."""
    model = assembled.model.train()
    image = model.config.image_token_id
    first, text, second = [1, image, image, image, image, 20, 21, 2], [1, 30, 31, 32, 2], [1, *[image] * 4, 40, 2]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()

    def states(first_ids: list[int], first_pixels: float) -> torch.Tensor:
        shown = pixels.copy()
        shown[0] += first_pixels
        ids = [torch.tensor(d).numpy() for d in (first_ids, text, second)]
        batch = collate(ids, [d > 10 for d in ids], torch.ones(3).numpy(), shown, image)
        with packed(model), torch.no_grad():
            return hidden_states(model, batch)

    before, after = states(first, 0.0), states([*first[:5], 99, 98, 2], 1.0)
    assert (before[:8] - after[:8]).abs().max() > 1e-3
    assert torch.equal(before[8:], after[8:])


def test_the_model_gets_its_own_attention_back(assembled: Assembled) -> None:
    model = assembled.model
    before = (model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation)
    with packed(model):
        assert model.model.language_model.config._attn_implementation == NAME
        assert model.model.vision_tower.config._attn_implementation == before[1]
    assert (model.model.language_model.config._attn_implementation, before[1]) == before
