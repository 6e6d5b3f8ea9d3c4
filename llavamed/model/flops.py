"""The work in an example, in floating-point operations: the one count behind the plan's hours and the meter's MFU.

In: a model (its shapes are enough) and a stage. Out: `Flops`, what one token, one pair of tokens, one supervised
token and one image cost, forward and backward.

With N the weights of the matrices that a token passes, the forward pass takes 2N (a multiplication and an addition
each), the gradient of the activations 2N again, and the gradient of the weights, where they train, another 2N. So a
stage that trains the projector alone costs 4N per token and not 6N: the language model's weights are frozen, but
the projector lies below it, and the gradient has to pass. On top come causal attention (half of all pairs), the
output layer at supervised tokens, and per image the tower's layers up to the one that is used, and the projector.

Only useful work is counted (Chowdhery et al. 2022, PaLM, appendix B): what is recomputed to save memory, padding, and
the tower's layer above the features are not, so that a share of the peak cannot be raised by wasting. The last layer of
the language model is counted whole, as others count it, although `train.last_layer` leaves parts of it out: of 32
layers that is at most 2 % more than what is done, of the demo's four a seventh.
`recomputed` is what recomputation adds to the time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llavamed.model import parts
from llavamed.recipe import LoraSection, Part, StageSection


@dataclass(frozen=True)
class Flops:
    per_token: float
    per_pair: float  # of tokens: times the square of an example's length
    per_supervised: float
    per_image: float

    def of(self, tokens: float, pairs: float, supervised: float, images: float) -> float:
        """`pairs` is the sum over the examples of their lengths' squares."""
        return (
            self.per_token * tokens + self.per_pair * pairs + self.per_supervised * supervised + self.per_image * images
        )


def on_meta(config: Any) -> LlavaForConditionalGeneration:
    """The model of this config, shapes without numbers. Also of a model that is sharded, adapted or quantized."""
    with torch.device("meta"):
        return LlavaForConditionalGeneration(copy.deepcopy(config))


def trained_whole(stage: StageSection) -> tuple[Part, ...]:
    """The parts whose own weights train."""
    return tuple(part for part in stage.trains if stage.lora is None or part not in stage.lora.parts)


def adapters(model: LlavaForConditionalGeneration, lora: LoraSection | None) -> dict[Part, int]:
    """Parameters of the adapters by part: rank x (in + out) for every linear layer of its blocks."""
    if lora is None:
        return {}
    blocks: dict[Part, torch.nn.Module] = {
        "projector": model.model.multi_modal_projector,
        "language_model": model.model.language_model.layers,
        "vision_tower": _tower_layers(model),
    }
    return {
        part: sum(lora.rank * sum(m.weight.shape) for m in blocks[part].modules() if isinstance(m, torch.nn.Linear))
        for part in lora.parts
    }


def count(model: LlavaForConditionalGeneration, stage: StageSection) -> Flops:
    text, vision = model.config.text_config, model.config.vision_config
    whole, adapted = trained_whole(stage), adapters(model, stage.lora)
    passes = {part: 3 if part in whole else 2 for part in parts.PREFIXES}  # forward, activations, weights

    language_model = 2 * matrices(model.model.language_model.layers) * passes["language_model"]
    head = 2 * text.vocab_size * text.hidden_size * passes["language_model"]

    patches = model.config.image_seq_length + parts.TOWERS.get(vision.model_type, (None, 0))[1]
    layer = model.config.vision_feature_layer
    used = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    tower = 2 * matrices(_tower_layers(model)) / vision.num_hidden_layers * used * patches
    tower += 4 * vision.hidden_size * patches**2 * used
    tower_trains = "vision_tower" in whole or "vision_tower" in adapted
    tower *= passes["vision_tower"] if tower_trains else 1
    tower += 6 * adapted.get("vision_tower", 0) / vision.num_hidden_layers * used * patches

    projector = 2 * matrices(model.model.multi_modal_projector) * (1 + ("projector" in whole) + tower_trains)
    projector += 6 * adapted.get("projector", 0)

    return Flops(
        per_token=float(language_model + 6 * adapted.get("language_model", 0)),
        per_pair=_attention(text) * 3.5,  # FlashAttention's backward is 2.5 times its forward
        per_supervised=float(head),
        per_image=float(tower + projector * model.config.image_seq_length),
    )


def recomputed(model: LlavaForConditionalGeneration, tokens: float, pairs: float) -> float:
    """What `train.recompute: full` repeats: the forward pass of the language model's layers."""
    return 2 * matrices(model.model.language_model.layers) * tokens + _attention(model.config.text_config) * pairs


def _tower_layers(model: LlavaForConditionalGeneration) -> torch.nn.Module:
    tower = model.model.vision_tower
    layers: torch.nn.Module = getattr(tower, "encoder", tower).layers
    return layers


def _attention(text: Any) -> float:
    """Of the causal forward pass, for a pair of tokens, over all layers."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return float(2 * text.num_attention_heads * head_dim * text.num_hidden_layers)


def matrices(module: torch.nn.Module) -> int:
    """Weights of all but vectors."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2)
