"""What a recipe will cost, before anything is downloaded: parameters, tokens, memory, steps, FLOPs.

In: a recipe. Out: `Plan`, whose `tables()` are for printing. The model is built on torch's meta device: shapes
without numbers, so a 7B model takes a moment and no memory. Configs of well-known bases stand in `bases.py`;
of local folders they are read; only for other hub ids is the hub asked, and then for the config alone.

What is counted and what is estimated:

- Parameters are exact, of the bases as published (a few rows for new tokens come on top).
- Tokens are measured with the recipe's own processor where the stage's data file is there, else taken from
  LLaVA-Med's data as measured (a caption 120 tokens, a conversation 290, plus question and template).
- Steps follow from the data file, else from the paper's 600,000 pairs and 60,000 conversations.
- FLOPs: 2N forward, 2N for the gradient of activations, 2N for that of weights where they train, N being the
  matrices a token passes; causal attention and the output layer at supervised tokens on top.
- Memory is an estimate. Weights, gradients and AdamW's moments follow from how the trainer keeps them; saved
  activations were measured on one Mistral layer in bfloat16 without recomputation (137 KiB per token and layer
  with frozen weights, 197 KiB with trained ones) and are scaled with the layer's width and the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

from llavamed.errors import InputError
from llavamed.model import chat, folder, parts
from llavamed.model.bases import BASES
from llavamed.recipe import ModelSection, Part, Recipe, StageSection, TrainSection
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
# KiB per token and layer kept for the backward pass, of the layer in the next line, in bfloat16: frozen, trained
_ACTIVATION_KIB = {
    "none": (137.0, 197.0),
    "none, compiled": (93.0, 137.0),
    "selective": (92.0, 92.0),  # products and attention: 10.5 times the width
    "full": (8.0, 8.0),  # the layer's input
}
_MOMENT_BYTES = {"float32": 8, "bfloat16": 4, "int8": 2}  # both of a parameter
_ACTIVATION_WIDTH = 4096 + 14336
_CHUNK_LOGITS = 2**24  # the most logits that train/loss.py holds at a time


@dataclass(frozen=True)
class StagePlan:
    """One stage. Token counts are means per example; `memory` maps what to bytes; `flops` is for the whole stage."""

    name: str
    trains: tuple[Part, ...]
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
    memory: dict[str, float]
    pack_tokens: int  # tokens in one forward pass, as the recipe and the batch have it
    pack_tokens_that_fit: int  # the most that the GPU holds beside the rest

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
    gpu_bytes: float
    stages: tuple[StagePlan, ...]

    @property
    def parameters(self) -> int:
        return sum(count for _, count in self.parts.values())

    def tables(self) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
        """Tables as (title, columns, rows of text): the parts, the stages, the memory."""
        stages, gib = self.stages, 2**30
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
                s.source,
            )
            for s in stages
        ]
        memory: list[Sequence[str]] = [
            (
                s.name,
                *(f"{size / gib:.2f}" for size in s.memory.values()),
                f"{s.memory_bytes / gib:.2f}",
                self._advice(s),
            )
            for s in stages
        ]
        return [
            ("model", ("part", "from", "parameters"), table),
            (
                "stages",
                (
                    "stage",
                    "trains",
                    "trainable",
                    "examples x epochs",
                    "tokens (image + text)",
                    "steps",
                    "FLOPs",
                    "from",
                ),
                work,
            ),
            (
                f"estimated memory, GiB ({self.dtype}, no recomputation)",
                ("stage", *(stages[0].memory if stages else ()), "all", f"on {self.gpu_bytes / gib:.0f} GiB"),
                memory,
            ),
        ]

    def _advice(self, stage: StagePlan) -> str:
        if stage.memory_bytes <= self.gpu_bytes:
            return "fits"
        if stage.pack_tokens_that_fit >= stage.tokens:
            return f"too much; set train.tokens_per_pack={stage.pack_tokens_that_fit}"
        return "too much for one GPU, whatever the pack"


def plan(recipe: Recipe, gpu_bytes: float = 80e9) -> Plan:
    """The plan of the recipe's stages on GPUs of `gpu_bytes`. Raises InputError if a part's config cannot be had."""
    model = _meta_model(recipe.model)
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
            stages.append(_stage(recipe, name, stage, model, gpu_bytes))
    return Plan(
        recipe=recipe.name,
        parts={part: (named[part], sum(p.numel() for p in counts[part].values())) for part in parts.PREFIXES},
        image_tokens=model.config.image_seq_length,
        dtype=recipe.train.dtype,
        gpu_bytes=gpu_bytes,
        stages=tuple(stages),
    )


def _meta_model(section: ModelSection) -> LlavaForConditionalGeneration:
    if section.init_from is not None:
        config = folder.read_config(parts.init_folder(section))
    else:
        vision = _config(section.vision_tower, "vision_tower")
        text = _config(section.language_model, "language_model")
        config = parts.llava_config(section, vision, text, image_token_id=text.vocab_size - 1)
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


def _config(name: str, part: Part) -> Any:
    if name in BASES:
        return AutoConfig.for_model(**BASES[name])
    return parts.tower_config(name) if part == "vision_tower" else parts.text_config(name)


def _stage(
    recipe: Recipe, name: str, stage: StageSection, model: LlavaForConditionalGeneration, gpu_bytes: float
) -> StagePlan:
    examples, image_tokens, text_tokens, supervised, source = _tokens(recipe, name, stage, model)
    trainable = sum(
        parameter.numel()
        for named in parts.trainable_parameters(model, stage.trains).values()
        for parameter in named.values()
    )
    tokens = image_tokens + text_tokens
    images = image_tokens / model.config.image_seq_length
    pack = round(min(recipe.train.tokens_per_pack, stage.batch_size * tokens))
    memory = _memory(model, stage, recipe.train, trainable, pack, pack * supervised / tokens)
    per_token = memory["activations"] / pack
    state = sum(memory.values()) - per_token * pack
    steps_per_epoch = math.ceil(examples / stage.batch_size)
    return StagePlan(
        name=name,
        trains=stage.trains,
        trainable=trainable,
        examples=examples,
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        supervised_tokens=supervised,
        source=source,
        steps=max(1, round(stage.epochs * steps_per_epoch)),
        flops=examples * stage.epochs * _flops(model, stage.trains, tokens, supervised, images),
        memory=memory,
        pack_tokens=pack,
        pack_tokens_that_fit=max(0, int((gpu_bytes - state) / per_token) // 128 * 128),
    )


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


def _flops(
    model: LlavaForConditionalGeneration, trains: tuple[Part, ...], tokens: float, supervised: float, images: float
) -> float:
    """Of one example, forward and backward. The towers' layers above the chosen features do no useful work."""
    text, vision = model.config.text_config, model.config.vision_config
    body = _matrices(model.model.language_model.layers)
    head = text.vocab_size * text.hidden_size
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    attention = 2 * width * tokens**2 * text.num_hidden_layers  # causal: half of all pairs
    total = 2 * body * tokens + 2 * head * supervised + attention
    total += 2 * body * tokens + 2 * head * supervised + 2.5 * attention  # the gradient of activations
    if "language_model" in trains:
        total += 2 * body * tokens + 2 * head * supervised
    patches = model.config.image_seq_length + parts.TOWERS[vision.model_type][1]
    layer = model.config.vision_feature_layer
    used = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    tower = 2 * _matrices(model.model.vision_tower.encoder.layers) / vision.num_hidden_layers * used * patches
    tower += 4 * vision.hidden_size * patches**2 * used
    projector = 2 * _matrices(model.model.multi_modal_projector) * model.config.image_seq_length
    tower_passes, projector_passes = (3 if "vision_tower" in trains else 1), (2 if "projector" in trains else 1)
    return float(total + images * (tower * tower_passes + projector * projector_passes))


def _matrices(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2)


def _memory(
    model: LlavaForConditionalGeneration,
    stage: StageSection,
    train: TrainSection,
    trainable: int,
    pack: int,
    supervised: float,
) -> dict[str, float]:
    """Bytes by kind. What trains is kept in float32 with float32 gradients, whatever the dtype; under bfloat16,
    autocast makes a copy of it to multiply with. `pack` and `supervised` are tokens."""
    width = {"float32": 4, "bfloat16": 2}[train.dtype]
    text = model.config.text_config
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable
    recompute = "none, compiled" if train.compile and train.recompute == "none" else train.recompute
    kib = _ACTIVATION_KIB[recompute]["language_model" in stage.trains]
    per_token_layer = kib * 1024 * (text.hidden_size + text.intermediate_size) / _ACTIVATION_WIDTH * width / 2
    # the loss takes a chunk at a time: the product in its own width, in float32, and its softmax in float32
    chunk = min(supervised, max(1, _CHUNK_LOGITS // text.vocab_size)) * text.vocab_size
    return {
        "weights": float(frozen * width + trainable * (4 if width == 4 else 4 + width)),
        "gradients": float(trainable * 4),
        "AdamW": float(trainable * _MOMENT_BYTES[train.optimizer_state]),
        "activations": per_token_layer * text.num_hidden_layers * pack,
        "logits": chunk * (8 if width == 4 else 4 + 4 + width),
    }
