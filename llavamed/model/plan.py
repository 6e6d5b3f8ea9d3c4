"""What a recipe will cost, before anything is downloaded: parameters, tokens, memory, steps, hours.

In: a recipe and a GPU. Out: `Plan`, whose `tables()` are for printing. The model is built on torch's meta device:
shapes without numbers, so a 7B model takes a moment and no memory. Configs of well-known bases stand in `bases.py`; of
local folders they are read; only for other hub ids is the hub asked, and then for the config alone.

What is counted and what is estimated:

- Parameters are exact, of the bases as published (a few rows for new tokens come on top).
- Tokens are measured with the recipe's own processor where the stage's data file is there, else taken from
  LLaVA-Med's data as measured (a caption 120 tokens, a conversation 290, plus question and template).
- Steps follow from the data file, else from the paper's 600,000 pairs and 60,000 conversations.
- FLOPs are counted by `flops.py`. Hours take them at `UTILISATION` of the GPU's peak: an estimate until measured.
- Memory is an estimate. Weights, gradients and AdamW's moments follow from how the trainer keeps them; saved
  activations were measured on one Mistral layer in bfloat16 without recomputation (137 KiB per token and layer
  with frozen weights, 197 KiB with trained ones) and are scaled with the layer's width and the dtype. With
  `recompute: selective` the outputs of the matrix products and of attention are kept (93 KiB), with `full` a
  layer's input alone, and one layer at a time is whole again in the backward pass. Adapters
  keep the input of the layers they stand on, as trained weights do; with dropout, a copy and a mask for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlavaForConditionalGeneration

from llavamed.errors import InputError
from llavamed.model import chat, flops, folder, parts
from llavamed.model.bases import BASES
from llavamed.model.gpus import GIB, Gpu
from llavamed.recipe import ModelSection, Part, Recipe, StageSection, TrainSection, changed
from llavamed.records import read_conversations

# stage -> (examples, text tokens, supervised tokens, where the numbers are from), used where there is no data file
PAPER: dict[str, tuple[int, float, float, str]] = {
    "align": (600_000, 140, 121, "the paper's 600K pairs"),
    "instruct": (60_000, 335, 225, "the paper's 60K conversations"),
    "finetune": (3_064, 40, 8, "LLaVA-Med's VQA-RAD split; lengths assumed"),
}

_TEMPLATE_TOKENS = {"mistral": 0, "vicuna": 35}  # what the template adds beyond the lengths above
_CHARACTERS_PER_TOKEN = 3.55  # Mistral's tokenizer on LLaVA-Med's captions
_MEASURED = 256  # examples whose tokens are counted, evenly spaced over the file
# per token and layer, of the layer of `_ACTIVATION_WIDTH`, in bfloat16
_ACTIVATION_KIB = {
    "frozen": 137.0,
    "trained": 197.0,
    "frozen, compiled": 93.0,
    "trained, compiled": 137.0,
    "selective": 93.0,
}
_ACTIVATION_WIDTH = 4096 + 14336
_NF4_BYTES = 4.127 / 8  # a weight with its share of the scales (QLoRA, section 3)
_MOMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.03}  # int8: and a float32 scale for each 128 or so
_USABLE = 0.95  # of the memory: the rest goes to CUDA itself, the tower, passing copies and gaps between tensors
_CHUNK_LOGITS = 2**24  # the most logits that train/loss.py holds at a time

# What published one-node runs of 7B models reach of the datasheet's peak: 46 % (llm-foundry, MPT-7B, H100), 40 to 43 %
# (NeMo Automodel, Llama3-8B and Qwen2.5-7B with LoRA, H100), 33 to 39 % (torchtitan, Llama3.1-8B, H100).
UTILISATION = 0.4

# what to change where no pack fits, the least first
_ADAPTERS = {"train.{stage}.trains": ["projector"]}
_REMEDIES: tuple[dict[str, Any], ...] = (
    {"train.recompute": "selective"},
    {"train.recompute": "selective", "train.optimizer_state": "bfloat16"},
    {"train.recompute": "selective", "train.optimizer_state": "int8"},
    {"train.recompute": "full", "train.optimizer_state": "int8"},
    {"train.recompute": "selective", **_ADAPTERS, "train.{stage}.lora.quantize": "none"},
    {"train.recompute": "full", **_ADAPTERS, "train.{stage}.lora.quantize": "nf4"},
)


@dataclass(frozen=True)
class StagePlan:
    """One stage. Token counts are means per example; `memory` maps what to bytes; `flops` is for the whole stage."""

    name: str
    trains: tuple[str, ...]  # parts; "LoRA on" those that train by adapters
    trainable: int  # parameters
    examples: int
    epochs: float
    batch_size: int
    image_tokens: float
    text_tokens: float
    supervised_tokens: float
    source: str  # of examples and tokens
    steps: int
    flops: float
    hours: float | None  # on one GPU, at `UTILISATION` of its peak; None where that is not known
    memory: dict[str, float]
    pack_tokens: int  # tokens in one forward pass, as the recipe and the batch have it
    pack_tokens_that_fit: int  # the most that the GPU holds beside the rest
    remedy: str  # what to change if the longest example does not fit; empty where it does, or where nothing helps

    @property
    def tokens(self) -> float:
        return self.image_tokens + self.text_tokens

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """`parts` maps each part to (what it is, parameters); `image_tokens` are those of one image."""

    recipe: str
    parts: dict[Part, tuple[str, int]]
    image_tokens: int
    dtype: str
    optimizer_state: str
    recompute: str
    max_tokens: int  # of the longest example
    gpu: Gpu
    stages: tuple[StagePlan, ...]

    @property
    def parameters(self) -> int:
        return sum(count for _, count in self.parts.values())

    def tables(self) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
        """Tables as (title, columns, rows of text): the parts, the stages, the memory."""
        stages, gpu = self.stages, self.gpu
        hours = f"no rate of {self.dtype} products is known for {gpu.name}"
        if (peak := gpu.peak_in(self.dtype)) is not None:
            of = f"{UTILISATION:.0%} of the {peak / 1e12:g} TFLOP/s that its datasheet gives"
            hours = f"hours on one {gpu.name}: an estimate at {of}, until measured"
        table: list[Sequence[str]] = [(part, what, f"{count:,}") for part, (what, count) in self.parts.items()]
        table.append(("all", f"{self.image_tokens} tokens per image", f"{self.parameters:,}"))
        work: list[Sequence[str]] = [
            (
                s.name,
                " + ".join(s.trains),
                f"{s.trainable:,}",
                f"{s.examples:,} x {s.epochs:g}",
                f"{s.image_tokens:.0f} + {s.text_tokens:.0f}",
                f"{s.steps:,}",
                f"{s.flops:.2e}",
                "-" if s.hours is None else f"{s.hours:.1f}",
                s.source,
            )
            for s in stages
        ]
        memory: list[Sequence[str]] = [
            (
                s.name,
                *(f"{size / GIB:.2f}" for size in s.memory.values()),
                f"{s.memory_bytes / GIB:.2f}",
                f"{s.pack_tokens:,}",
                f"{s.pack_tokens_that_fit:,}",
                self._advice(s),
            )
            for s in stages
        ]
        return [
            ("model", ("part", "from", "parameters"), table),
            (
                f"stages; {hours}",
                (
                    "stage",
                    "trains",
                    "trainable",
                    "examples x epochs",
                    "tokens (image + text)",
                    "steps",
                    "FLOPs",
                    "hours",
                    "from",
                ),
                work,
            ),
            (
                f"estimated memory, GiB ({self.dtype}; recompute: {self.recompute}; moments: {self.optimizer_state})",
                (
                    "stage",
                    *(stages[0].memory if stages else ()),
                    "all",
                    "tokens per pack",
                    "largest that fits",
                    f"on {gpu}",
                ),
                memory,
            ),
        ]

    def _advice(self, stage: StagePlan) -> str:
        if stage.memory_bytes <= _USABLE * self.gpu.memory:
            return "fits"
        if stage.pack_tokens_that_fit >= self.max_tokens:
            return f"too much; set train.tokens_per_pack={stage.pack_tokens_that_fit}"
        return "too much for one GPU, whatever the pack" + (f"; {stage.remedy} fits" if stage.remedy else "")


def plan(recipe: Recipe, gpu: Gpu) -> Plan:
    """The plan of the recipe's stages on one such GPU. Raises InputError if a part's config cannot be had."""
    model = meta_model(recipe.model)
    named = {
        "projector": f"{recipe.model.projector_layers} layer(s)",
        "language_model": recipe.model.init_from or recipe.model.language_model,
        "vision_tower": recipe.model.init_from or recipe.model.vision_tower,
    }
    counts = parts.trainable_parameters(model, tuple(parts.PREFIXES))
    stages = []
    for name, stage in (
        ("align", recipe.train.align),
        ("instruct", recipe.train.instruct),
        ("finetune", recipe.train.finetune),
    ):
        if stage is not None:
            stages.append(_stage(recipe, name, stage, model, gpu))
    return Plan(
        recipe=recipe.name,
        parts={part: (named[part], sum(p.numel() for p in counts[part].values())) for part in parts.PREFIXES},
        image_tokens=model.config.image_seq_length,
        dtype=recipe.train.dtype,
        optimizer_state=recipe.train.optimizer_state,
        recompute=recipe.train.recompute,
        max_tokens=recipe.train.max_tokens,
        gpu=gpu,
        stages=tuple(stages),
    )


def meta_model(section: ModelSection) -> LlavaForConditionalGeneration:
    if section.init_from is not None:
        config = folder.read_config(parts.init_folder(section))
    else:
        vision = _config(section.vision_tower, "vision_tower")
        text = _config(section.language_model, "language_model")
        config = parts.llava_config(section, vision, text, image_token_id=text.vocab_size - 1)
    return flops.on_meta(config)


def _config(name: str, part: Part) -> Any:
    if name in BASES:
        return AutoConfig.for_model(**BASES[name])
    return parts.tower_config(name) if part == "vision_tower" else parts.text_config(name)


def _stage(recipe: Recipe, name: str, stage: StageSection, model: LlavaForConditionalGeneration, gpu: Gpu) -> StagePlan:
    examples, image_tokens, text_tokens, supervised, source = _tokens(recipe, name, stage, model)
    tokens = image_tokens + text_tokens
    images = image_tokens / model.config.image_seq_length
    pack = round(min(recipe.train.tokens_per_pack, stage.batch_size * tokens))
    memory, largest = _fit(model, stage, recipe.train, gpu, pack, supervised / tokens)
    seen = examples * stage.epochs
    useful = seen * flops.count(model, stage).of(tokens, tokens**2, supervised, images)
    again = seen * flops.recomputed(model, tokens, tokens**2) if recipe.train.recompute == "full" else 0.0
    peak = gpu.peak_in(recipe.train.dtype)
    return StagePlan(
        name=name,
        trains=(*stage.trains, *(f"LoRA on {part}" for part in (stage.lora.parts if stage.lora else ()))),
        trainable=_trainable(model, stage),
        examples=examples,
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        supervised_tokens=supervised,
        source=source,
        steps=max(1, round(stage.epochs * math.ceil(examples / stage.batch_size))),
        flops=useful,
        hours=None if peak is None else (useful + again) / (UTILISATION * peak) / 3600,
        memory=memory,
        pack_tokens=pack,
        pack_tokens_that_fit=largest,
        remedy="" if largest >= recipe.train.max_tokens else _remedy(recipe, name, model, gpu, tokens, supervised),
    )


def _remedy(
    recipe: Recipe, name: str, model: LlavaForConditionalGeneration, gpu: Gpu, tokens: float, supervised: float
) -> str:
    """The least change under which the longest example allowed fits, as the options that make it."""
    for remedy in _REMEDIES:
        values = {key.format(stage=name): value for key, value in remedy.items()}
        train = changed(recipe, values).train
        pack = recipe.train.max_tokens
        if _fit(model, getattr(train, name), train, gpu, pack, supervised / tokens)[1] >= pack:
            listed = {key: f"[{', '.join(v)}]" if isinstance(v, list) else v for key, v in values.items()}
            return " ".join(f"--set {key}={value}" for key, value in listed.items())
    return ""


def _tokens(
    recipe: Recipe, name: str, stage: StageSection, model: LlavaForConditionalGeneration
) -> tuple[int, float, float, float, str]:
    """Examples, then image, text and supervised tokens per example, and where they are from."""
    per_image = model.config.image_seq_length
    if stage.data is None:
        examples, text, supervised, source = PAPER[name]
        text += _TEMPLATE_TOKENS[recipe.model.chat_template] + 2 * recipe.model.image_wrap
        return examples, float(per_image), text, supervised, source
    conversations = list(read_conversations(Path(stage.data)))
    if not conversations:
        raise InputError(f"{stage.data}: no conversations; give a .jsonl file with one a line")
    sample = conversations[:: math.ceil(len(conversations) / _MEASURED)]
    images = sum(len(c.images) for c in sample) / len(sample)
    try:
        processor = parts.processor(recipe.model)
    except InputError:  # the tokenizer is not on this machine
        text = _mean(sum(len(m.text) for m in c.messages) for c in sample) / _CHARACTERS_PER_TOKEN
        answers = _mean(sum(len(m.text) for m in c.messages if m.role == "assistant") for c in sample)
        source = f"{stage.data}, {_CHARACTERS_PER_TOKEN} characters per token"
        return len(conversations), images * per_image, text, answers / _CHARACTERS_PER_TOKEN, source
    encoded = [chat.encode(processor, conversation) for conversation in sample]
    text = _mean(len(e.input_ids) for e in encoded) - images * per_image
    supervised = _mean(int(e.supervised.sum()) for e in encoded)
    return len(conversations), images * per_image, text, supervised, f"{stage.data}, {len(sample)} measured"


def _mean(values: Any) -> float:
    numbers = list(values)
    return float(sum(numbers) / len(numbers))


def _trainable(model: LlavaForConditionalGeneration, stage: StageSection) -> int:
    named = parts.trainable_parameters(model, flops.trained_whole(stage))
    whole = sum(parameter.numel() for part in named.values() for parameter in part.values())
    return whole + sum(flops.adapters(model, stage.lora).values())


def _fit(
    model: LlavaForConditionalGeneration,
    stage: StageSection,
    train: TrainSection,
    gpu: Gpu,
    pack: int,
    supervised_share: float,
) -> tuple[dict[str, float], int]:
    """The memory of a pack of this many tokens, in bytes by kind, and the tokens of the largest pack that fits.

    What trains is kept in float32 with float32 gradients, whatever the dtype; under bfloat16, autocast makes a copy
    of it to multiply with.
    """
    width = {"float32": 4, "bfloat16": 2}[train.dtype]
    text = model.config.text_config
    trainable = _trainable(model, stage)
    adapted = flops.adapters(model, stage.lora)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable + sum(adapted.values())
    quantized = 0
    if stage.lora is not None and stage.lora.quantize == "nf4" and "language_model" in adapted:
        quantized = flops.matrices(model.model.language_model.layers)
    # the loss takes a chunk at a time: the product in its own width, in float32, and its softmax in float32
    chunk = min(pack * supervised_share, max(1, _CHUNK_LOGITS // text.vocab_size)) * text.vocab_size
    per_token = _activation_bytes(text, stage, train, width)
    memory = {
        "weights": (frozen - quantized) * width + quantized * _NF4_BYTES + trainable * (4 if width == 4 else 4 + width),
        "gradients": trainable * 4.0,
        "AdamW": trainable * 2 * _MOMENT_BYTES[train.optimizer_state],
        "activations": per_token * pack,
        "logits": chunk * (8.0 if width == 4 else 4.0 + 4.0 + width),
    }
    left = _USABLE * gpu.memory - sum(memory.values()) + memory["activations"]
    return memory, max(0, int(left / per_token) // 128 * 128)


def _activation_bytes(text: Any, stage: StageSection, train: TrainSection, width: int) -> float:
    """Per token, over all layers of the language model."""

    def layer(kind: str) -> float:
        return (
            _ACTIVATION_KIB[kind] * 1024 * (text.hidden_size + text.intermediate_size) / _ACTIVATION_WIDTH * width / 2
        )

    adapted = stage.lora is not None and "language_model" in stage.lora.parts
    trained = "trained" if "language_model" in stage.trains or adapted else "frozen"
    whole = layer(f"{trained}, compiled" if train.compile else trained)
    between = 0.0  # the adapters of a layer
    if stage.lora is not None and adapted:
        between = 7.0 * stage.lora.rank * width
        if stage.lora.dropout:
            between += (6 * text.hidden_size + text.intermediate_size) * (width + 1)
    if train.recompute == "none":
        return float(text.num_hidden_layers * (whole + between))
    kept = layer("selective") + between if train.recompute == "selective" else text.hidden_size * width
    return float(text.num_hidden_layers * kept + whole + between)
