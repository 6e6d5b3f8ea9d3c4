"""Answers in the making, together: rows that enter a batch, get a token at each step and leave when they end.

In: prompts as token ids, with the features of their images. Out: their tokens, the same as each would get
alone from transformers' `generate` (up to the rounding of sums in another order, see docs/inference.md).

Three things cost time in a plain batch, and none of them is needed:

* **Waiting for the longest.** Answers of a medical benchmark have 2 to 60 tokens; a batch that runs until the
  last one ends spends most of its steps on rows that are done. Here ended rows leave, and others from the line
  take their places, as soon as a quarter of the places is free (each change copies the key-value cache, so not at
  every ended row). A cache column that no row needs any more is cut off.
* **The same beginning again and again.** Questions about one image begin alike: system prompt, image, line
  break. Rows that enter together and begin alike up to their last image are prefilled once up to there,
  and the cache is copied to each. A LLaVA prompt is nine tenths image, so this is most of the prompt.
* **Padding.** Prompts are padded at the left, so that every answer begins in the same column; who sorts them by
  length wastes little. The padding is masked and positions are counted without it.

Row r of the cache therefore looks like this, columns from left to right (`.` is masked):

    . . prefix and image . . question answer

`DynamicCache` holds it: a static one is no faster on a CPU (docs/experiments.md), and would have to be as long as the
longest answer might become. All its layers are whole ones, also for a model with a sliding window: the mask keeps to
the window, and rows can be put together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from llavamed.engine.features import Features, Picture

REFILL = 4  # rows leave and enter when one part in so many is free
_TAIL = 16  # tokens before a stop string that are decoded with it

Text = Callable[[list[int]], str]


@dataclass(eq=False)
class Row:
    """One answer in the making; `place` is the caller's."""

    place: int
    prompt: NDArray[np.int64]  # (tokens,), each image as often as it has tokens
    images: Sequence[Picture] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choices: tuple[int, ...] = ()  # the answer is the likeliest of these tokens
    tokens: list[int] = field(default_factory=list)  # so far
    ended: bool = False
    random: torch.Generator | None = None  # of the sampling
    error: Exception | None = None  # why it has no answer


class Batch:
    """Rows under way. `text` is the tokenizer's decoding, to look for stop strings in."""

    def __init__(self, model: Any, features: Features, text: Text) -> None:
        self._model, self._features, self._text = model, features, text
        self._pad = model.generation_config.pad_token_id or 0  # masked: any token does
        ends = model.generation_config.eos_token_id
        self._ends = set(ends) if isinstance(ends, list) else {ends}
        self._slides = getattr(model.config.text_config, "sliding_window", None) is not None
        self.rows: list[Row] = []  # as they lie in the cache; some may have ended
        self._cache = DynamicCache()
        self._mask = torch.empty(0, 0)  # (rows, columns) int64

    @property
    def alive(self) -> int:
        return sum(not row.ended for row in self.rows)

    @torch.inference_mode()
    def enter(self, new: Sequence[Row]) -> list[Row]:
        """Prefill the rows and give each its first token; returns those that end with it. Who ended before leaves."""
        self.leave()
        for row in new:
            row.tokens, row.ended, row.random = [], False, None
            if row.temperature > 0:
                row.random = torch.Generator(self._model.device)
                row.random.seed() if row.seed is None else row.random.manual_seed(row.seed)
        cache, mask, hidden = self._prefill(new)
        ended = self._take(new, hidden)
        if self.rows:
            mask = _join(self._cache, self._mask, cache, mask)
        else:
            self._cache = cache
        self._mask = mask
        self.rows += new
        return ended

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """One more token for every row that has not ended; returns those that end with it."""
        last = [np.array([] if row.ended else row.tokens[-1:], dtype=np.int64) for row in self.rows]
        self._mask, hidden = self._forward(last, [], self._cache, self._mask)
        ended = self._take(self.rows, hidden)
        if (len(self.rows) - self.alive) * REFILL >= len(self.rows):
            self.leave()
        return ended

    @torch.inference_mode()
    def leave(self) -> None:
        """Let go of the rows that ended, and of the columns that only they needed."""
        staying = [index for index, row in enumerate(self.rows) if not row.ended]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in staying]
        if not staying:
            self._cache = DynamicCache()
            return
        kept = torch.tensor(staying, device=self._mask.device)
        mask = self._mask[kept]
        first = int(mask.any(0).int().argmax())  # the first column that anyone needs
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[kept, :, first:], layer.values[kept, :, first:]

    def _take(self, rows: Sequence[Row], hidden: torch.Tensor) -> list[Row]:
        """Add each row's next token, from the last hidden states (rows, dim); returns the rows that end with it."""
        logits = self._model.lm_head(hidden).float()  # (rows, vocabulary)
        best = logits.argmax(-1).tolist()
        going = [(index, row) for index, row in enumerate(rows) if not row.ended]
        for index, row in going:
            if row.choices:
                row.tokens.append(row.choices[int(logits[index, list(row.choices)].argmax())])
                row.ended = True
                continue
            row.tokens.append(best[index] if row.random is None else _drawn(logits[index : index + 1], row))
            row.ended = row.tokens[-1] in self._ends or len(row.tokens) >= row.max_new_tokens or self._is_stopped(row)
        return [row for _, row in going if row.ended]

    def _is_stopped(self, row: Row) -> bool:
        """Whether a stop string stands in the last tokens (before them it was looked for already)."""
        if not row.stop:
            return False
        text = self._text(row.tokens[-(_TAIL + 4 * max(map(len, row.stop))) :])  # a character has at most four bytes
        return any(word in text for word in row.stop)

    def _prefill(self, rows: Sequence[Row]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """The rows' own cache, its mask, and the last hidden state of each row."""
        cuts = [self._cut(row) for row in rows]
        beginnings = [
            (row.prompt[:cut].tobytes(), *(image.key for image in row.images))
            for row, cut in zip(rows, cuts, strict=True)
        ]
        first = {key: index for index, key in reversed(list(enumerate(beginnings)))}  # the first row that begins so
        cache = DynamicCache()
        if len(first) == len(rows) or self._slides:  # a window would count the padding in the middle
            mask, hidden = self._forward([row.prompt for row in rows], rows, cache)
            return cache, mask, hidden
        alone = sorted(first.values())
        mask, _ = self._forward([rows[i].prompt[: cuts[i]] for i in alone], [rows[i] for i in alone], cache)
        copies = torch.tensor([alone.index(first[key]) for key in beginnings], device=mask.device)
        cache.batch_select_indices(copies)
        rest = [row.prompt[cut:] for row, cut in zip(rows, cuts, strict=True)]
        mask, hidden = self._forward(rest, [], cache, mask[copies])
        return cache, mask, hidden

    def _cut(self, row: Row) -> int:
        """The number of tokens up to the last image's end; at least one, and one is left."""
        image_tokens = np.flatnonzero(row.prompt == self._model.config.image_token_id)
        return min(int(image_tokens[-1]) + 1 if len(image_tokens) else 1, len(row.prompt) - 1)

    def _forward(
        self, ids: Sequence[NDArray[np.int64]], seen: Sequence[Row], cache: DynamicCache, before: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask of the whole cache, and the last hidden states (rows, dim), after `ids` behind what the cache holds.

        `seen` are the rows whose images stand in `ids`; `before` is the mask of what the cache holds.
        """
        longest = max(map(len, ids))
        padded = np.full((len(ids), longest), self._pad, dtype=np.int64)
        real = np.zeros_like(padded)
        for row, own in enumerate(ids):
            padded[row, longest - len(own) :] = own
            real[row, longest - len(own) :] = 1
        device = self._model.device
        tokens, mask = torch.from_numpy(padded).to(device), torch.from_numpy(real).to(device)
        language_model = self._model.model.language_model
        embeddings = language_model.get_input_embeddings()(tokens)  # (rows, tokens, dim)
        images = [image for row in seen for image in row.images]
        if images:
            features = torch.cat(self._features(images)).to(embeddings.dtype)
            embeddings[tokens == self._model.config.image_token_id] = features
        if before is not None:
            mask = torch.cat([before, mask], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -longest:]
        hidden: torch.Tensor = language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return mask, hidden


def _drawn(logits: torch.Tensor, row: Row) -> int:
    """A token drawn from logits (1, vocabulary), as transformers does."""
    nothing: Any = None  # the warpers look at the logits alone
    logits = TemperatureLogitsWarper(row.temperature)(nothing, logits)
    if row.top_p < 1:
        logits = TopPLogitsWarper(row.top_p)(nothing, logits)
    return int(torch.multinomial(logits.softmax(-1), 1, generator=row.random))


def _join(cache: DynamicCache, mask: torch.Tensor, other: DynamicCache, other_mask: torch.Tensor) -> torch.Tensor:
    """Put the other's rows below those of `cache`, both padded at the left to one width; returns the mask of both."""
    width = max(mask.shape[1], other_mask.shape[1])

    def wide(columns: torch.Tensor, dims: int) -> torch.Tensor:
        """`columns` lie in the dimension before the last `dims`."""
        return F.pad(columns, (0, 0) * dims + (width - columns.shape[-1 - dims], 0))

    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        mine.keys = torch.cat([wide(mine.keys, 1), wide(theirs.keys, 1)])
        mine.values = torch.cat([wide(mine.values, 1), wide(theirs.values, 1)])
    return torch.cat([wide(mask, 0), wide(other_mask, 0)])
