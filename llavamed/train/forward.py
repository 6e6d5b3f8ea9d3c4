"""From a pack to its loss, by our own path through an unmodified `LlavaForConditionalGeneration`.

    pixels -> tower's layers up to the one that is used -> projector ┐
    token ids -> embeddings ─────────────── features put in at the image positions
                                            -> language model (packed attention) -> hidden states
                                            -> only those that predict a supervised token -> loss

The model's own `forward` gives the same numbers (a test says so) but runs the tower to its end and keeps
every layer's output, checks the number of image tokens with a device sync, and computes logits for every
position: three quarters of a pack's positions are image and question and have no loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llavamed.errors import InputError
from llavamed.train.last_layer import is_trimmed
from llavamed.train.loss import weighted_cross_entropy


@dataclass(frozen=True)
class Batch:
    """One pack as tensors. T tokens in all, D documents, I images, S supervised tokens."""

    input_ids: torch.Tensor  # (T,) int64
    position_ids: torch.Tensor  # (T,) int64, from 0 in each document
    cu_seq_lens: torch.Tensor  # (D + 1,) int32
    max_length: int  # tokens of the longest document
    pixels: torch.Tensor | None  # (I, 3, height, width) float32, or (I, tokens, tower dim) `features`; None without
    image_positions: torch.Tensor  # (I * tokens per image,) int64, where the features go
    predict_from: torch.Tensor  # (S,) int64, the position before each supervised token
    targets: torch.Tensor  # (S,) int64
    weights: torch.Tensor  # (S,) float32

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)
        }
        return replace(self, **moved)


def collate(
    input_ids: list[NDArray[np.integer]],
    supervised: list[NDArray[np.bool_]],
    token_weight: NDArray[np.float64],  # (documents,)
    pixels: NDArray[np.float32] | None,  # of the images of all documents in order
    image_token_id: int,
) -> Batch:
    """Lay documents one behind the other. The first token of a document has nothing to be predicted from."""
    lengths = np.array([len(ids) for ids in input_ids])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate(input_ids).astype(np.int64)
    flags = np.concatenate(supervised)
    flags[starts[:-1]] = False
    targets_at = np.flatnonzero(flags)
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts[:-1], lengths)),
        cu_seq_lens=torch.from_numpy(starts.astype(np.int32)),
        max_length=int(lengths.max()),
        pixels=None if pixels is None else torch.from_numpy(pixels),
        image_positions=torch.from_numpy(np.flatnonzero(ids == image_token_id)),
        predict_from=torch.from_numpy(targets_at - 1),
        targets=torch.from_numpy(ids[targets_at]),
        weights=torch.from_numpy(np.repeat(token_weight, lengths)[targets_at].astype(np.float32)),
    )


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Projected patch features (images, tokens, text dim) of pixels, or of the `tower_features` themselves.

    The same as the model's `get_image_features`.
    """
    hidden = tower_features(model, pixels) if pixels.ndim == 4 else pixels
    features: torch.Tensor = model.model.multi_modal_projector(hidden)
    return features


def tower_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(images, tokens, tower dim) of pixels (images, 3, height, width), for towers laid out as CLIP, SigLIP or ViT."""
    tower = model.model.vision_tower
    layers = getattr(getattr(tower, "encoder", tower), "layers", None)
    index = model.config.vision_feature_layer
    if layers is None or not hasattr(tower, "embeddings") or not isinstance(index, int):
        raise InputError(
            f"vision tower {type(tower).__name__} with feature layer {index!r}: training reads one layer of a "
            "tower laid out as CLIP, SigLIP or ViT; choose such a tower in model.vision_tower"
        )
    used = index if index >= 0 else len(layers) + 1 + index  # hidden state 0 is the embeddings
    trained = any(p.requires_grad for p in tower.parameters())
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        hidden = tower.embeddings(pixels.to(tower.dtype))
        if hasattr(tower, "pre_layrnorm"):  # sic: CLIP's own spelling
            hidden = tower.pre_layrnorm(hidden)
        for layer in layers[:used]:
            hidden = layer(hidden, None)
    if model.config.vision_feature_select_strategy == "default":
        hidden = hidden[:, 1:]  # without the class token
    return hidden


def hidden_states(model: Any, batch: Batch, predict_from: torch.Tensor | None = None) -> torch.Tensor:
    """The language model's last hidden states (T, dim) of a pack; the caller has switched on `attention.packed`.

    With `predict_from` (S,) only those of these positions: (S, dim).
    """
    language_model = model.model.language_model
    embeddings = language_model.get_input_embeddings()(batch.input_ids)  # (T, dim)
    if batch.pixels is not None:
        features = image_features(model, batch.pixels).flatten(0, 1).to(embeddings.dtype)
        if len(batch.image_positions):
            assert len(features) == len(batch.image_positions), (features.shape, batch.image_positions.shape)
            embeddings = embeddings.index_copy(0, batch.image_positions, features)
        else:  # `with_image`: the tower and the projector take part, and change nothing
            embeddings = embeddings + 0 * features.sum()
    if torch.is_autocast_enabled(embeddings.device.type):
        # what runs from layer to layer is as wide as what layers multiply, also where the embedding is in float32
        embeddings = embeddings.to(torch.get_autocast_dtype(embeddings.device.type))
    trimmed = predict_from is not None and is_trimmed(language_model)
    states: torch.Tensor = language_model(
        inputs_embeds=embeddings.unsqueeze(0),
        position_ids=batch.position_ids.unsqueeze(0),
        use_cache=False,
        cu_seq_lens_q=batch.cu_seq_lens,
        cu_seq_lens_k=batch.cu_seq_lens,
        max_length_q=batch.max_length,
        max_length_k=batch.max_length,
        **({"predict_from": predict_from} if trimmed else {}),
    ).last_hidden_state[0]
    return states if predict_from is None or trimmed else states.index_select(0, predict_from)


def with_image(batch: Batch, shape: tuple[int, int, int]) -> Batch:
    """The batch, or if it has no image the same with a black one (of `shape`) that no token stands for.

    Ranks that share the projector's gradient must all have one: where one rank's pack is text alone, the others would
    wait for it forever.
    """
    return batch if batch.pixels is not None else replace(batch, pixels=torch.zeros(1, *shape))


def pack_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The pack's share of the step's loss: a float32 scalar with gradient."""
    states = hidden_states(model, batch, batch.predict_from)
    return weighted_cross_entropy(states, model.lm_head.weight, batch.targets, batch.weights)


class PackLoss(torch.nn.Module):
    """A model whose forward is `pack_loss`: the module that several ranks share out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        return pack_loss(self.model, batch)
