"""Packed attention on a CPU: a call per document against one padded batch, forward and backward.

    python benchmarks/packed_attention.py

One layer's shapes in the tiny language model (4 query and 2 key-value heads of 32), about 4,000 tokens
in 27 documents, for documents of about equal and of mixed length. Milliseconds, median of 30.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from llavamed.train.attention import packed_attention

HEADS, KV_HEADS, DIM, DOCUMENTS, MEAN = 4, 2, 32, 27, 150
MODULE = torch.nn.Module()


def split(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=ends, max_length_q=max(lengths))[0]


def padded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Documents as rows of one batch; right padding is invisible to a causal reader."""
    rows = [
        torch.nn.utils.rnn.pad_sequence([d.transpose(0, 1) for d in x[0].split(lengths, 1)], batch_first=True)
        for x in (q, k, v)
    ]
    out = F.scaled_dot_product_attention(*(r.transpose(1, 2) for r in rows), is_causal=True, enable_gqa=True)
    return torch.cat([out[i, :, :n] for i, n in enumerate(lengths)], 1).transpose(0, 1).unsqueeze(0)


def milliseconds(body: Callable[..., torch.Tensor], lengths: list[int]) -> float:
    tokens = sum(lengths)
    shapes = ((1, HEADS, tokens, DIM), (1, KV_HEADS, tokens, DIM), (1, KV_HEADS, tokens, DIM))
    inputs = [torch.randn(s, requires_grad=True) for s in shapes]
    taken = []
    for _ in range(33):
        began = time.perf_counter()
        body(*inputs, lengths).sum().backward()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[3:])


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    print("| threads | sd of length | per document, ms | one padded batch, ms | ratio |\n|---|---|---|---|---|")
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        for spread in (20, 60):
            lengths = [int(n) for n in np.clip(rng.normal(MEAN, spread, DOCUMENTS), 20, 400)]
            ours, theirs = milliseconds(split, lengths), milliseconds(padded, lengths)
            print(f"| {threads} | {spread} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
