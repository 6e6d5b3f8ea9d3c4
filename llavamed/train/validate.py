"""What a stage measures on the way: the loss of records that it never trains on, a small score, a few answers.

    validation.jsonl    one line per look: step, loss, and score with its name where a benchmark is given
    samples.jsonl       what the model answers to the same few held-out records, greedily, at each look

Training loss falls also for a model that learns its few thousand records by heart; the held-out loss does not, and
where it turns up the run should have ended (`validation.keep: best` ends it there after the fact).

Answers and scores need the whole model in one place: of several ranks the first one gathers it (`loop._Run._ask`).
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from llavamed.errors import InputError
from llavamed.manifest import write_atomic
from llavamed.model.parts import Assembled
from llavamed.recipe import ValidationSection
from llavamed.train.data import Examples, Pixels, make_batch, step_weights
from llavamed.train.pack import split

VALIDATION = "validation.jsonl"
SAMPLES = "samples.jsonl"
Score = Callable[[Assembled], tuple[str, float]]  # the score's name and value, in percent

_HELD_OUT_STREAM = 7  # of the random numbers, apart from the plan's
_NEW_TOKENS = 64
_THUMBNAIL = 96  # pixels


@dataclass(frozen=True)
class Look:
    """The held-out records and how often to look at them."""

    held_out: Examples
    pixels: Pixels
    settings: ValidationSection
    score: Score | None = None

    def due(self, done: int, total: int) -> bool:
        """Every so many steps, and at the end."""
        return done % self.settings.every == 0 or done == total


def check_held_out(total: int, count: int) -> None:
    """Raises InputError if of `total` records too few would be left to train on."""
    if count > total // 2:
        raise InputError(
            f"train.validation.held_out is {count}, more than half of the {total} records; lower it or give more data"
        )


def hold_out(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """The examples to train on, and `count` others. The same seed holds out the same."""
    total = len(examples.ids)
    check_held_out(total, count)
    order = np.random.default_rng([_HELD_OUT_STREAM, seed]).permutation(total)
    return take(examples, np.sort(order[count:])), take(examples, np.sort(order[:count]))


def take(examples: Examples, indices: np.ndarray) -> Examples:
    """The examples at `indices`."""
    chosen = {
        field.name: column[indices] if isinstance(column, np.ndarray) else [column[index] for index in indices]
        for field in fields(Examples)
        for column in (getattr(examples, field.name),)
    }
    return Examples(**chosen)  # type: ignore[arg-type]


def held_out_loss(look: Look, run: Any) -> float:
    """Mean over the supervised tokens, in nats. `run.pack_loss(batch)` is this rank's, `run.ranks` adds them up."""
    examples, token_id = look.held_out, run.assembled.model.config.image_token_id
    step = split(np.arange(len(examples.ids)), examples.lengths, run.train.tokens_per_pack, run.ranks.world)
    weights = step_weights(examples, step, "token")
    total = 0.0
    with torch.no_grad():
        for pack in step[run.ranks.rank :: run.ranks.world]:
            run.ranks.doing("taking the loss of held-out records")
            one = (pack, weights) if pack else (step[0][:1], dict.fromkeys(weights, 0.0))
            total += run.pack_loss(make_batch(examples, look.pixels, *one, token_id)).item()
    return float(run.ranks.total([total])[0])


@torch.inference_mode()
def answers(assembled: Assembled, look: Look) -> list[dict[str, Any]]:
    """What the model says to the first turn of a few held-out examples, greedily."""
    model: Any = assembled.model
    examples, tokenizer = look.held_out, assembled.processor.tokenizer
    device = next(model.parameters()).device
    rows = []
    for index in range(min(look.settings.samples, len(examples.ids))):
        ids, supervised = examples.input_ids[index], examples.supervised[index]
        begin = int(np.flatnonzero(supervised)[0])
        end = begin + int(np.argmin(np.append(supervised[begin:], False)))
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids[None, :begin].astype(np.int64)).to(device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        images = [look.pixels.load(key) for key in examples.images[index]]
        if images:
            inputs["pixel_values"] = torch.from_numpy(np.stack(images)).to(device, model.dtype)
        said = model.generate(
            **inputs, max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )[0, begin:]
        prompt = ids[:begin][ids[:begin] != model.config.image_token_id]
        rows.append(
            {
                "id": examples.ids[index],
                "image": _thumbnail(images[0], assembled.processor.image_processor) if images else "",
                "question": tokenizer.decode(prompt, skip_special_tokens=True).strip(),
                "reference": tokenizer.decode(ids[begin:end], skip_special_tokens=True).strip(),
                "answer": tokenizer.decode(said, skip_special_tokens=True).strip(),
            }
        )
    return rows


def best_steps(rows: list[dict[str, Any]]) -> list[int]:
    """The steps that were looked at, that of the lowest held-out loss first; the earlier one if equal."""
    finite = [row for row in rows if math.isfinite(row["loss"])]
    return [row["step"] for row in sorted(finite, key=lambda row: (row["loss"], row["step"]))]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a last line that was cut short by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
        out.flush()
        os.fsync(out.fileno())


def keep_rows(path: Path, steps: int) -> None:
    """Forget what comes after `steps`: it is about to be done again."""
    if path.is_file():
        rows = [row for row in read_rows(path) if row["step"] <= steps]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def _thumbnail(pixels: np.ndarray, processor: Any) -> str:
    """Normalised pixels (3, height, width) as a small picture in a data URL."""
    mean, std = (np.array(value).reshape(3, 1, 1) for value in (processor.image_mean, processor.image_std))
    picture = Image.fromarray((np.clip(pixels * std + mean, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
