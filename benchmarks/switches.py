"""What the trainer does to a stage's layers, on the demo's data: what each change saves, and its switches' loss curves.

    python benchmarks/switches.py DEMO_RUN [--epochs 1]

    --only times,curves

DEMO_RUN is what `llavamed demo` wrote. Times are CPU seconds of one thread, the models in turn, median of 12; curves
are whole stages from the untrained model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llavamed import recipe
from llavamed.manifest import Manifest
from llavamed.model.parts import build, trainable_parameters
from llavamed.train import last_layer, lean
from llavamed.train.attention import packed
from llavamed.train.data import Pixels, make_batch, read_examples, step_weights
from llavamed.train.forward import pack_loss
from llavamed.train.loop import METRICS, run_stage
from llavamed.train.pack import Schedule
from llavamed.train.validate import read_rows

TINY = recipe.load("tiny")
CURVES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("align", {}),
    ("align", {"fp8_frozen": True}),
    ("instruct", {}),
    ("instruct", {"optimizer_state": "bfloat16"}),
    ("instruct", {"optimizer_state": "int8"}),
)


def seconds(run: Path, name: str) -> list[float]:
    """For three steps, forward and backward: of layers as transformers has them, lean, and lean with the last
    one only where it is read."""
    stage, models = getattr(TINY.train, name), []
    for changes in ((), (lean.put_in,), (lean.put_in, last_layer.trim)):
        assembled = build(TINY.model, 0)
        trainable_parameters(assembled.model.train(), stage.trains)
        for change in changes:
            change(assembled.model.model.language_model)
        models.append(assembled.model)
    pixels = Pixels(run / "corpus", assembled.processor)
    examples = read_examples(run / "instruct" / f"{name}.jsonl", pixels, assembled.processor, TINY.train.max_tokens)
    schedule = Schedule(examples.lengths, stage.batch_size, TINY.train.tokens_per_pack, 0, 1)
    token = models[0].config.image_token_id
    batches = [
        make_batch(examples, pixels, pack, step_weights(examples, schedule[i], "token"), token)
        for i in range(3)
        for pack in schedule[i]
    ]
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(14):
        for model, times in zip(models, taken, strict=True):
            began = time.process_time()
            with packed(model):
                for batch in batches:
                    pack_loss(model, batch).backward()
            times.append(time.process_time() - began)
            model.zero_grad()
    return [statistics.median(times[2:]) for times in taken]


def curve(run: Path, name: str, keys: dict[str, Any], epochs: float) -> NDArray[np.float64]:
    """The loss of every step of a stage."""
    stage = getattr(TINY.train, name).model_copy(update={"epochs": epochs})
    assembled = build(TINY.model, 0)
    pixels = Pixels(run / "corpus", assembled.processor)
    examples = read_examples(run / "instruct" / f"{name}.jsonl", pixels, assembled.processor, TINY.train.max_tokens)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train = TINY.train.model_copy(update=keys)
        run_stage(assembled, examples, pixels, name, stage, train, out, 0, Manifest("stage", settings=keys))
        return np.array([row["loss"] for row in read_rows(out / METRICS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--only", default="times,curves")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if "times" in chosen.only:
        print("| stage | layers as they are, s | lean | ratio | and the last one only where it is read | ratio |")
        print("|---|---|---|---|---|---|")
        for name in ("align", "instruct"):
            plain, thin, trimmed = seconds(chosen.run, name)
            cells = (
                name,
                f"{plain:.2f}",
                f"{thin:.2f}",
                f"{plain / thin:.2f}",
                f"{trimmed:.2f}",
                f"{plain / trimmed:.2f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)
    if "curves" in chosen.only:
        curves(chosen.run, chosen.epochs)


def curves(run: Path, epochs: float) -> None:
    print("\n| stage | | steps | first loss | last twentieth | distance, mean | distance, largest |")
    print("|---|---|---|---|---|---|---|")
    exact = np.zeros(0)
    for name, keys in CURVES:
        found = curve(run, name, keys, epochs)
        exact = exact if keys else found
        away = np.abs(found - exact) / exact
        what = ", ".join(f"{key}: {value}" for key, value in keys.items()) or "float32"
        last = found[-max(1, len(found) // 20) :].mean()
        print(
            f"| {name} | {what} | {len(found)} | {found[0]:.3f} | {last:.3f} | {100 * away.mean():.2f} % "
            f"| {100 * away.max():.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
