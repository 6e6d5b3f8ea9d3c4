"""Small random base parts in the formats that real ones come in: no download, a second to make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from llavamed.model.folder import Assembled
from llavamed.model.parts import build
from llavamed.recipe import ModelSection

SENTENCES = [
    "What is shown in this image?",
    "Describe the figure briefly. The chest X-ray shows a small nodule in the left upper lobe.",
    "Axial CT of the liver with two lesions; no contrast. Is there an effusion? Yes, on the right side.",
    "A chat between a curious user and an artificial intelligence assistant. USER: hello ASSISTANT: hi",
]


def _write_tower(folder: Path, image_size: int = 48, patch_size: int = 16) -> Path:
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=16,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image_size},
        "crop_size": side,
        "do_center_crop": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _write_tokenizer(folder: Path, specials: tuple[str, ...]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **({"pad_token": "<pad>"} if "<pad>" in specials else {}),
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _write_language_model(
    folder: Path,
    specials: tuple[str, ...] = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "[INST]", "[/INST]"),
    tied: bool = False,
) -> Path:
    tokenizer = _write_tokenizer(folder, specials)
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=tied,
        initializer_range=0.5,  # so that greedy answers differ between images
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_language_model() -> Callable[..., Path]:
    """Write a language model of another kind: `(folder, specials=..., tied=...)`."""
    return _write_language_model


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_language_model(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="session")
def assembled(tower: Path, language_model: Path) -> Assembled:
    """Shared: do not change it."""
    return build(ModelSection(vision_tower=str(tower), language_model=str(language_model)), seed=0)


@pytest.fixture(scope="session")
def build_small(tower: Path, language_model: Path) -> Callable[..., Assembled]:
    """A fresh model with some of the section's keys changed."""

    def make(seed: int = 0, **changes: object) -> Assembled:
        parts = {"vision_tower": str(tower), "language_model": str(language_model), **changes}
        return build(ModelSection.model_validate(parts), seed)

    return make
