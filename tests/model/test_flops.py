from __future__ import annotations

from typing import Any

import pytest
from transformers import LlavaForConditionalGeneration

from llavamed import recipe
from llavamed.model import flops, plan
from llavamed.recipe import LoraSection, StageSection

ALIGN = StageSection(trains=("projector",))
INSTRUCT = StageSection(trains=("projector", "language_model"))


@pytest.fixture(scope="module")
def v15() -> LlavaForConditionalGeneration:
    return plan.meta_model(recipe.load("llava-med-v1.5").model)


# LLaVA-Med's two generations and stages, counted by hand: tokens, supervised tokens, TFLOP per sample useful and with
# full recomputation
HAND: list[tuple[str, StageSection, int, int, float, float]] = [
    ("llava-med-v1.0", ALIGN, 435, 121, 11.7, 17.4),
    ("llava-med-v1.0", INSTRUCT, 623, 225, 24.9, 33.1),
    ("llava-med-v1.5", ALIGN, 716, 121, 21.0, 31.1),
    ("llava-med-v1.5", INSTRUCT, 911, 225, 39.5, 52.5),
]


@pytest.mark.parametrize(("name", "stage", "tokens", "supervised", "useful", "with_recomputation"), HAND)
def test_flops_agree_with_the_hand_count(
    name: str, stage: StageSection, tokens: int, supervised: int, useful: float, with_recomputation: float
) -> None:
    model = plan.meta_model(recipe.load(name).model)
    found = flops.count(model, stage).of(tokens, tokens**2, supervised, images=1)
    assert found == pytest.approx(useful * 1e12, rel=0.01)
    again = flops.recomputed(model, tokens, tokens**2)
    assert found + again == pytest.approx(with_recomputation * 1e12, rel=0.01)


def test_a_text_has_no_image_and_a_batch_is_the_sum_of_its_examples(v15: LlavaForConditionalGeneration) -> None:
    found = flops.count(v15, INSTRUCT)
    one, other = found.of(911, 911**2, 225, 1), found.of(40, 40**2, 8, 0)
    assert found.of(951, 911**2 + 40**2, 233, 1) == pytest.approx(one + other)
    tower, projector = 0.366e12, 2 * 2 * (1024 * 4096 + 4096 * 4096) * 576  # 23 of 24 layers forward; both directions
    assert found.per_image == pytest.approx(tower + projector, rel=0.01)


def test_adapters_cost_the_frozen_stage_and_themselves(v15: LlavaForConditionalGeneration) -> None:
    """An adapter on W (out, in) is A (rank, in) and B (out, rank)."""
    lora = StageSection(trains=("projector",), lora=LoraSection(rank=128))
    q, kv, up = (4096, 4096), (4096, 1024), (4096, 14336)
    by_hand = 32 * 128 * sum(sum(shape) for shape in (q, kv, kv, q, up, up, up))
    assert flops.adapters(v15, lora.lora) == {"language_model": by_hand}
    found, frozen = flops.count(v15, lora), flops.count(v15, ALIGN)
    assert found.per_token == frozen.per_token + 6 * by_hand
    assert (found.per_supervised, found.per_image) == (frozen.per_supervised, frozen.per_image)


def test_the_model_on_meta_is_that_of_the_config_and_leaves_the_config_alone(v15: Any) -> None:
    config = recipe.load("tiny").model
    model = plan.meta_model(config)
    before = model.config.to_dict()
    assert flops.count(flops.on_meta(model.config), INSTRUCT) == flops.count(model, INSTRUCT)
    assert model.config.to_dict() == before
