"""The script that makes the tiny base parts: each piece at a size that takes seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from llavamed.demo import pretrain
from llavamed.demo import wording as w
from llavamed.demo.truth import Truth, sample


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return pretrain.train_tokenizer(documents=500)


def test_both_parts_can_be_made_again(tokenizer: PreTrainedTokenizerFast) -> None:
    """Two steps each, as a smoke test; what they reach is in the parts' card."""
    tower, processor = pretrain.train_tower(tokenizer, images=48, steps=2, batch=16)
    _, pictures = pretrain.draw_examples(48, stream=0)
    assert tower.config.image_size == pictures.shape[-1] == pretrain.IMAGE_SIZE
    features = features_of(tower, pretrain.normalise(pictures, processor))
    assert features.std().item() == pytest.approx(1, abs=0.05)
    model = pretrain.train_language_model(tokenizer, steps=2, batch=4)
    assert model.config.vocab_size == len(tokenizer)


def features_of(tower: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tower(pixels, output_hidden_states=True).hidden_states[pretrain.FEATURE_LAYER]


def test_unit_features_divides_and_changes_nothing_else() -> None:
    from transformers import CLIPVisionConfig

    torch.manual_seed(0)
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=16,
        )
    ).eval()
    pixels = torch.randn(4, 3, 32, 32)
    before = features_of(tower, pixels)
    pretrain.unit_features(tower, pixels)
    torch.testing.assert_close(features_of(tower, pixels), before / before.std(), rtol=1e-4, atol=1e-5)


def test_answers_about_normal_and_abnormal_have_the_right_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truths = [sample(rng) for _ in range(200)]
    for kind, yes in (("normal_closed", True), ("abnormal_closed", False)):
        monkeypatch.setitem(pretrain.WORDS, "questions", {kind: pretrain.WORDS["questions"][kind]})
        for truth in truths:
            pair = pretrain.question_and_answer(truth, rng)
            assert pair is not None
            assert pair[1].startswith("Yes") == (truth.normal == yes), (pair, truth)
        monkeypatch.undo()


def test_a_picture_teaches_only_the_facts_that_it_has() -> None:
    values = {kind: sorted({"normal", "nodule", "left", "CT", "brain", "small", "one"}) for kind in pretrain.KINDS}
    classifiers = pretrain.FactClassifiers(values, 8)
    normal = Truth("ct_scan", "brain")
    classifiers.loss(torch.randn(2, 4, 8), [normal, normal]).backward()
    assert classifiers.lines["side"].weight.grad.abs().sum() == 0
    assert classifiers.lines["organ"].weight.grad.abs().sum() > 0


def test_exchanged_words_keep_their_slots_and_take_the_article_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(pretrain, "EXCHANGED", 1.0)
    seen = {pretrain.exchange("Is this an image of {x}, with a {noun}?", rng) for _ in range(200)}
    assert {"Is this an image of {x}, with a {noun}?", "Is this a picture of {x}, with a {noun}?"} <= seen
    assert not any("a i" in question or "an p" in question for question in seen)


def test_a_group_of_synonyms_never_crosses_what_is_asked() -> None:
    told = {value for values in (*w.FINDING_FORMS.values(), *w.SIZE_FORMS.values()) for form in values for value in
            (form if isinstance(form, tuple) else (form,))}  # fmt: skip
    told |= {"left", "right", "one", "two", "three", "normal", "abnormal", "CT", "MRI", "histology", "lung", "brain"}
    words = [word for group in pretrain.WORDS["synonyms"] for word in group]
    assert len(words) == len(set(words))
    assert not told & set(words)


def test_one_is_asked_about_in_the_singular() -> None:
    rng = np.random.default_rng(1)
    truth = Truth("ct_scan", "lung", "nodule", "left", "small", 2)
    asked = [pair[0] for _ in range(8000) if (pair := pretrain.question_and_answer(truth, rng))]
    assert any(" one nodule" in question.lower() for question in asked)
    assert not any(f" one {nouns}" in question for question in asked for nouns in ("nodules", "pulmonary nodules"))
    assert any(question == question.lower() and not question.endswith("?") for question in asked)
