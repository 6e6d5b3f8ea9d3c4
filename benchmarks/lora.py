"""Adapters against training in full, and the model that QLoRA trained against the merged one.

    llavamed demo --no-serve --out demo-run
    python benchmarks/lora.py demo-run

One epoch of 960 of the demo's conversations from its aligned model, then the loss on 100 others: of the base with its
adapters as they were trained, of the merged model that the stage leaves, and, for QLoRA, of the adapters merged
into the quantised weights instead.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch

from llavamed.manifest import Manifest
from llavamed.model import folder
from llavamed.recipe import LoraSection, StageSection, TrainSection
from llavamed.records import read_conversations, write_jsonl
from llavamed.train import lora
from llavamed.train.attention import packed
from llavamed.train.data import Examples, Pixels, make_batch, read_examples, step_weights
from llavamed.train.forward import pack_loss
from llavamed.train.loop import run_stage

TRAIN = TrainSection(max_tokens=1024, tokens_per_pack=4096)
ADAPTED: dict[str, Any] = {"learning_rate": 3e-3, "projector_learning_rate": 1e-3}
WAYS: dict[str, dict[str, Any]] = {
    "in full": {"trains": ("projector", "language_model"), "learning_rate": 1e-3},
    "LoRA, rank 16": {"lora": LoraSection(rank=16, alpha=32), **ADAPTED},
    "QLoRA, rank 16": {"lora": LoraSection(rank=16, alpha=32, quantize="nf4"), **ADAPTED},
}


@torch.no_grad()
def loss(model: Any, examples: Examples, pixels: Pixels) -> float:
    step = tuple(tuple(range(start, start + 20)) for start in range(0, len(examples.ids), 20))
    weights, token_id = step_weights(examples, step, "token"), model.config.image_token_id
    model.eval()
    with packed(model):
        return sum(pack_loss(model, make_batch(examples, pixels, pack, weights, token_id)).item() for pack in step)


def main(run: Path, out: Path) -> None:
    base = run / "train" / "align" / "model"
    processor = folder.load_processor(base)
    conversations = list(read_conversations(run / "instruct" / "instruct.jsonl"))
    write_jsonl(out / "train.jsonl", conversations[:960])
    write_jsonl(out / "held_out.jsonl", conversations[-100:])
    pixels = Pixels(run / "corpus", processor)
    training, held_out = (
        read_examples(out / f"{name}.jsonl", pixels, processor, TRAIN.max_tokens) for name in ("train", "held_out")
    )
    rows = [f"| before | - | - | {loss(folder.load(base).model, held_out, pixels):.4f} | - |"]
    detach = lora._detach
    for name, keys in WAYS.items():
        as_trained, quantized = float("nan"), {}

        def look(assembled: folder.Assembled) -> dict[str, torch.Tensor]:
            """Before the adapters are taken out at the end of the stage."""
            nonlocal as_trained
            for layer, module in assembled.model.named_modules():
                if isinstance(module, bnb.nn.Linear4bit):
                    weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                    quantized[layer.replace(".base_layer", "") + ".weight"] = weight.float()  # noqa: B023
            as_trained = loss(assembled.model, held_out, pixels)
            return detach(assembled)

        lora._detach = look
        stage = StageSection(batch_size=32, **keys)
        done = run_stage(
            folder.load(base), training, pixels, "instruct", stage, TRAIN, out / name, 0, Manifest("stage")
        )
        model = folder.load(out / name).model
        merged = loss(model, held_out, pixels)
        before, weights = folder.load(base).model.state_dict(), model.state_dict()
        for weight, value in quantized.items():
            weights[weight] += value - before[weight]
        into_quantized = f"{loss(model, held_out, pixels):.4f}" if quantized else "-"
        parameters = done.counts["trainable_parameters"]
        told = "-" if as_trained != as_trained else f"{as_trained:.4f}"
        rows.append(f"| {name} | {parameters:,} | {told} | {merged:.4f} | {into_quantized} |")
    print(
        "| trained | parameters | loss as trained | merged | merged into the quantised weights |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]), Path(scratch))
