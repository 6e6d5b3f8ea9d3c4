"""A LLaVA of 60,000 random parameters, and eight conversations about eight coloured images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from llavamed.model.parts import Assembled, build
from llavamed.recipe import ModelSection
from llavamed.records import Conversation, assistant, user, write_jsonl

COLOURS = {
    "red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "white": (250, 250, 250),
    "black": (5, 5, 5), "yellow": (240, 220, 20), "purple": (150, 30, 160), "grey": (128, 128, 128),
}  # fmt: skip
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "[INST]", "[/INST]"]


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModelSection:
    """Random base parts as folders: 4 image tokens of 16 pixels, 2 kv heads under 4 heads."""
    tower, language_model = tmp_path_factory.mktemp("tower"), tmp_path_factory.mktemp("language_model")
    torch.manual_seed(1)
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=16,
            projection_dim=16,
        )
    ).save_pretrained(tower)
    side = {"height": 32, "width": 32}
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": side}
    (tower / "preprocessor_config.json").write_text(json.dumps({**settings, "do_center_crop": True}))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet)
    core.train_from_iterator(["What colour is the image?", "It is " + " ".join(COLOURS)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(language_model)
    MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            sliding_window=None,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(language_model)
    return ModelSection(vision_tower=str(tower), language_model=str(language_model))


@pytest.fixture
def assembled(parts: ModelSection) -> Assembled:
    """Fresh for every test: training changes it."""
    return build(parts, seed=0)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def conversations() -> list[Conversation]:
    """One per colour, of different lengths; the last is text alone."""
    made = []
    for number, name in enumerate(COLOURS):
        more = (user("Really?"), assistant("Yes, " + "very " * number + name)) if number % 2 else ()
        messages = (user("What colour is the image?", images=1), assistant(f"It is {name}."), *more)
        made.append(Conversation(f"c-{name}", (f"{name}.png",), messages))
    return [*made[:-1], Conversation("c-text", (), (user("What colour is grey?"), assistant("It is grey.")))]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, conversations: list[Conversation]) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    write_jsonl(path, conversations)
    return path


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[[list[Conversation]], Path]:
    def write(conversations: list[Conversation]) -> Path:
        write_jsonl(tmp_path / "data.jsonl", conversations)
        return tmp_path / "data.jsonl"

    return write


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 kB: as on a full disk, a write fails in the middle."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
