"""How a stage's model is run: everything that makes it faster or smaller and leaves its function as it is.

In: a model on its device, ready to train, and the recipe's `train` section. Out: the same model, its layers
run otherwise. `restore` makes it the plain model again, for saving.

    lean             norms and rotations in few passes on a CPU (`lean.py`), unless they are compiled
    last layer       only where its output is read (`last_layer.py`), always
    recompute        "selective": a layer keeps the results of its matrix products and attention, and works out
                     the cheap rest again in the backward pass; "full": it keeps its input alone and does
                     everything twice, a third more work. Neither, unless the memory demands it
    compile          each layer for itself (regional compilation): one compilation serves all layers, of any
                     length, and hooks between layers stay what they are
    fp8_frozen       a frozen language model multiplies in 8 bits (`fp8.py`)

The order matters. fp8 replaces what a layer holds; the trimmed forward is part of what is recomputed; and both
are inside what is compiled, so that the compiler sees them. Sharding (FSDP2), where there is any, comes after.

A layer's forward is replaced on the instance and the class stays: no name of a weight changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import varlen  # noqa: F401  registers torch.ops.torch_attn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from llavamed.errors import InputError
from llavamed.train import fp8, last_layer, lean

if TYPE_CHECKING:
    from llavamed.recipe import StageSection, TrainSection

# what is dear to work out again; the rest of a layer is norms, rotations, activations and sums
_KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
]


def prepare(model: Any, train: TrainSection, stage: StageSection) -> None:
    """Switch on what the recipe asks for. Call it once, with the model on its device and its parts frozen.

    Raises InputError if `train.fp8_frozen` has no frozen language model in any stage, or the GPU cannot do it.
    """
    language_model, tower = model.model.language_model, model.model.vision_tower
    if train.fp8_frozen:
        if "language_model" not in stage.trained_parts:
            fp8.freeze(language_model.layers)
        elif not any("language_model" not in other.trained_parts for other in _stages(train)):
            raise InputError(
                "train.fp8_frozen: every stage trains the language model, and only frozen weights can be kept in "
                "8 bits; leave it out"
            )
    if not train.compile:
        lean.put_in(language_model)
    last_layer.trim(language_model)
    tower_layers = getattr(getattr(tower, "encoder", tower), "layers", ())
    if train.recompute != "none":
        trained = [language_model.layers] + [tower_layers] * ("vision_tower" in stage.trained_parts)
        for layer in (layer for layers in trained for layer in layers):
            layer.forward = partial(_recomputing, layer.forward, _contexts(train.recompute, stage))
    if train.compile:
        for layer in (*language_model.layers, *tower_layers):
            layer.compile(dynamic=True)


def restore(model: Any) -> None:
    """Undo `prepare`: the plain model, with the weights it has now. On a GPU, move the model off it first: the
    weights that fp8 put away come back to the device that the model is on."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
        module.__dict__.pop("reads_predict_from", None)
        module._compiled_call_impl = None
    fp8.unfreeze(model)


def _stages(train: TrainSection) -> list[StageSection]:
    return [stage for stage in (train.align, train.instruct, train.finetune) if stage is not None]


def _contexts(recompute: str, stage: StageSection) -> dict[str, Any]:
    # the only dropout is that of adapters: where there is none, no random state need be kept
    contexts = {"preserve_rng_state": stage.lora is not None and stage.lora.dropout > 0}
    if recompute == "full":
        return contexts
    return contexts | {"context_fn": partial(create_selective_checkpoint_contexts, _KEPT)}


def _recomputing(
    forward: Callable[..., torch.Tensor], contexts: dict[str, Any], *args: Any, **kwargs: Any
) -> torch.Tensor:
    made: torch.Tensor = checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, **contexts)
    return made
