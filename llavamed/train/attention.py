"""Attention over a pack: every document attends to itself alone.

A pack is one row of several documents. What keeps them apart is not a mask (a dense one over 16,000
tokens would be 256 million entries) but the list of their boundaries, `cu_seq_lens` = (0, n1, n1 + n2,
...), which the language model passes down to this function untouched:

* on CUDA, `torch.nn.attention.varlen` takes the boundaries as they are (FlashAttention's kernel, shipped
  inside torch);
* elsewhere the row is split into documents and each goes through SDPA, 160 queries at a time with the keys up to
  the last of them: torch's kernel works out much of what causality hides. Measured on a CPU against one padded
  batch for all documents: two to three times as fast, and the blocks take a fifth off that for documents of 330
  tokens (docs/experiments.md). Documents are `split` and not sliced: the gradient of n slices is n full-length tensors.

The function is registered with transformers under the name `packed_varlen`, so that the model classes stay
as they are. No mask function is registered beside it: transformers then makes no mask at all. With any
other attention function transformers would find the boundaries in `position_ids`, but only without a mask
and a key-value cache; where either slips in, documents silently read each other. `tests/train/
test_attention.py` holds the line.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

NAME = "packed_varlen"

# of a document at a time, on a CPU. 96 to 192 differ by a few percent; most of the demo's, of 112 to 141, stay whole
_QUERIES = 160
# tokens of a document that is done whole: of blocks the masks are kept for the backward pass, n * n * 2 bytes a layer
_LONG = 1024

# torch 2.11 has no such argument and takes grouped heads as they come; 2.13 has it and then requires it
_VARLEN_HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, tokens, head_dim)
    key: torch.Tensor,  # (1, kv_heads, tokens, head_dim)
    value: torch.Tensor,  # (1, kv_heads, tokens, head_dim)
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,  # (documents + 1,) int32
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    at: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; returns (1, tokens, heads, head_dim).

    `sliding_window` counts the tokens that a token sees, itself included. For the CPU path only (the varlen kernel has
    neither): `dropout`, which is 0 in the models trained here, and `at`, (queries,) ascending, the tokens that the
    queries are of where they are not of all.
    """
    assert attention_mask is None, "a pack has boundaries, not a mask"
    assert query.shape[0] == 1, "a pack is one row"
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast the rotary embedding widens them
    window = sliding_window if sliding_window is not None and sliding_window < max_length_q else None
    if query.is_cuda:
        assert at is None, "the varlen kernel takes a query for every token"
        options: dict[str, Any] = {"enable_gqa": True} if _VARLEN_HAS_GQA else {}
        out = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            **options,
        )
        assert isinstance(out, torch.Tensor)
        return out.unsqueeze(0), None
    out = _by_document(query, key, value, cu_seq_lens_q, scaling, dropout, window, at)
    return out.transpose(1, 2), None


@torch.compiler.disable  # the lengths are data: a compiled layer steps out here and goes on behind
def _by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    at: torch.Tensor | None,
) -> torch.Tensor:
    """(1, heads, queries, head_dim), document by document and in each by blocks of queries."""
    starts, lengths = cu_seq_lens.tolist(), cu_seq_lens.diff().tolist()
    tokens: list[torch.Tensor | range] = [range(length) for length in lengths]  # of the queries of each document
    if at is not None:
        counts = torch.searchsorted(at, cu_seq_lens).diff().tolist()
        tokens = [own - start for own, start in zip(at.split(counts), starts, strict=False)]
    blocks: list[tuple[int, torch.Tensor | range]] = []  # the document and the queries' own tokens of each
    for number, document in enumerate(tokens):
        whole = at is None and window is None and len(document) > _LONG
        most = len(document) if whole else _QUERIES
        blocks += [(number, document[start : start + most]) for start in range(0, len(document), most)]
    keys_of, values_of = key.split(lengths, 2), value.split(lengths, 2)
    queries_of = query.split([len(own) for _, own in blocks], 2)  # all at once: the gradient of a split is a copy
    out = []
    for (number, own), queries in zip(blocks, queries_of, strict=True):
        end = int(own[-1]) + 1
        first = 0 if window is None else max(0, int(own[0]) + 1 - window)
        causal = len(own) == end and first == 0 and (window is None or end <= window)  # all tokens so far
        keys, values = keys_of[number], values_of[number]
        if end - first < lengths[number]:  # a slice of all has to be put together again in the backward pass
            keys, values = keys[:, :, first:end], values[:, :, first:end]
        out.append(
            F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=None if causal else _sees(own, first, end, window),
                dropout_p=dropout,
                is_causal=causal,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(out, dim=2) if out else query


def _sees(own: torch.Tensor | range, first: int, end: int, window: int | None) -> torch.Tensor:
    """(len(own), end - first) bool: a token sees itself and those before it, or only the last `window` of them."""
    tokens = torch.arange(own.start, own.stop) if isinstance(own, range) else own
    back = tokens[:, None] - torch.arange(first, end)
    return back >= 0 if window is None else (back >= 0) & (back < window)


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def packed(model: Any, name: str = NAME) -> Iterator[None]:
    """Within this block the language model of a LLaVA model attends by `packed_attention`, or by what `name` says."""
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": name})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})
