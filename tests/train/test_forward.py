from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, SiglipVisionConfig, ViTConfig

from llavamed.errors import InputError
from llavamed.model.parts import Assembled, trainable_parameters
from llavamed.train.attention import packed
from llavamed.train.data import Examples, Pixels, make_batch, read_examples, step_weights
from llavamed.train.forward import PackLoss, image_features
from llavamed.train.pack import Step

BATCH = tuple(range(8))


@pytest.fixture
def read(assembled: Assembled, data: Path, images: Path) -> tuple[Examples, Pixels]:
    pixels = Pixels(images, assembled.processor)
    return read_examples(data, pixels, assembled.processor, max_tokens=128), pixels


def _gradients(assembled: Assembled, read: tuple[Examples, Pixels], step: Step, loss: Any, parts: Any) -> Any:
    model = assembled.model
    examples, pixels = read
    named = {k: v for part in trainable_parameters(model, parts).values() for k, v in part.items()}
    model.zero_grad(set_to_none=True)
    weights, total = step_weights(examples, step, loss), 0.0
    with packed(model):
        for pack in step:
            value = PackLoss(model)(make_batch(examples, pixels, pack, weights, model.config.image_token_id))
            if value.requires_grad:
                value.backward()
            total += value.item()
    return total, {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}


def _reference_loss(assembled: Assembled, read: tuple[Examples, Pixels], loss: str) -> torch.Tensor:
    """Example by example through the model's own forward, averaged as the words say."""
    examples, pixels = read
    by_example = []
    for index in BATCH:
        ids = torch.from_numpy(examples.input_ids[index]).long()[None]
        arrays = [torch.from_numpy(pixels.load(key)) for key in examples.images[index]]
        logits = assembled.model(input_ids=ids, pixel_values=torch.stack(arrays) if arrays else None).logits[0]
        targets = ids[0].masked_fill(~torch.from_numpy(examples.supervised[index]), -100)
        by_example.append(F.cross_entropy(logits[:-1], targets[1:], ignore_index=-100, reduction="none"))
    if loss == "example":
        return torch.stack([x.sum() / examples.targets[i] for i, x in enumerate(by_example)]).mean()
    return torch.cat(by_example).sum() / int(examples.targets.sum())


@pytest.mark.parametrize("loss", ["token", "example"])
@pytest.mark.parametrize("step", [(BATCH,), (BATCH[:3], BATCH[3:4], BATCH[4:]), ((7,), (0, 1, 2, 3, 4, 5, 6))])
def test_loss_and_gradient_of_a_step_are_the_models_own_however_it_is_packed(
    assembled: Assembled, read: tuple[Examples, Pixels], step: Step, loss: str
) -> None:
    total, gradients = _gradients(assembled, read, step, loss, ("projector", "language_model"))
    assembled.model.zero_grad(set_to_none=True)
    reference = _reference_loss(assembled, read, loss)
    reference.backward()
    assert total == pytest.approx(reference.item(), rel=1e-5)
    named = dict(assembled.model.named_parameters())
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, named[name].grad, atol=1e-5), name


def test_a_frozen_language_model_passes_the_gradient_on_to_the_projector(
    assembled: Assembled, read: tuple[Examples, Pixels]
) -> None:
    _, gradients = _gradients(assembled, read, (BATCH,), "token", ("projector",))
    assert set(gradients) == {f"model.multi_modal_projector.linear_{n}.{k}" for n in "12" for k in ("weight", "bias")}
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    assert all(p.grad is None for n, p in assembled.model.named_parameters() if n not in gradients)


def test_a_trained_tower_gets_gradients_up_to_the_layer_that_is_used(
    assembled: Assembled, read: tuple[Examples, Pixels]
) -> None:
    _, gradients = _gradients(assembled, read, (BATCH,), "token", ("vision_tower",))
    layers = {name.split(".layers.")[1][0] for name in gradients if ".layers." in name}
    assert layers == {"0", "1"}  # of three: the feature layer is the last but one


def test_a_pack_of_text_alone_has_no_gradient_when_only_the_projector_trains(
    assembled: Assembled, read: tuple[Examples, Pixels]
) -> None:
    total, gradients = _gradients(assembled, read, ((7,),), "token", ("projector",))
    assert total > 0
    assert gradients == {}


@pytest.mark.parametrize("layer", [-1, -2, 1, 2])
@pytest.mark.parametrize("kind", ["clip", "siglip", "vit"])
def test_features_are_those_of_the_models_own_path(assembled: Assembled, kind: str, layer: int) -> None:
    model: Any = assembled.model
    shape: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    if kind != "clip":
        vision = SiglipVisionConfig(**shape) if kind == "siglip" else ViTConfig(**shape)
        text = MistralConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=32, vocab_size=50)
        text.num_attention_heads = text.num_key_value_heads = 4
        strategy = "full" if kind == "siglip" else "default"
        config = LlavaConfig(vision_config=vision, text_config=text, vision_feature_select_strategy=strategy)
        model = LlavaForConditionalGeneration(config).eval()
    model.config.vision_feature_layer = layer
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.stack(list(model.get_image_features(pixels).pooler_output))
        assert torch.allclose(image_features(model, pixels), expected, atol=1e-6)


def test_several_feature_layers_are_refused(assembled: Assembled) -> None:
    assembled.model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(InputError, match="feature layer"):
        image_features(assembled.model, torch.zeros(1, 3, 32, 32))
