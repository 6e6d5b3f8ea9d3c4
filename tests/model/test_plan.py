from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llavamed import recipe
from llavamed.errors import InputError
from llavamed.model import chat, parts
from llavamed.model.plan import _CHUNK_LOGITS, _flops, _meta_model, plan
from llavamed.records import Conversation, assistant, user, write_jsonl
from llavamed.train import loss
from llavamed.train.pack import Schedule


def test_v15_is_counted_as_published() -> None:
    found = plan(recipe.load("llava-med-v1.5"))
    counts = {part: count for part, (_, count) in found.parts.items()}
    assert counts == {
        "language_model": 7_241_732_096,  # Mistral-7B
        "projector": 20_979_712,  # 1024 -> 4096 -> 4096 with biases
        "vision_tower": 303_507_456,  # CLIP ViT-L/14 at 336 pixels, vision half
    }
    assert found.image_tokens == 576
    align, instruct = found.stages
    assert align.trainable == 20_979_712
    assert instruct.trainable == 20_979_712 + 7_241_732_096
    assert (align.steps, instruct.steps) == (4_688, 1_407)  # 600,000 / 128; 3 x 60,000 / 128
    assert (align.tokens, instruct.tokens) == (716, 911)


def test_v10_is_counted_as_published() -> None:
    found = plan(recipe.load("llava-med-v1.0"))
    assert found.parts["language_model"][1] == 6_738_415_616  # LLaMA-7B
    assert found.image_tokens == 256
    assert found.stages[0].trainable == 1024 * 4096 + 4096  # one linear layer


@pytest.mark.parametrize(
    ("name", "trains", "tokens", "supervised", "tera"),
    [
        ("llava-med-v1.0", ("projector",), 435, 121, 11.7),
        ("llava-med-v1.0", ("projector", "language_model"), 623, 225, 24.9),
        ("llava-med-v1.5", ("projector",), 716, 121, 21.0),
        ("llava-med-v1.5", ("projector", "language_model"), 911, 225, 39.5),
    ],
)
def test_flops_agree_with_the_hand_count(
    name: str, trains: tuple[recipe.Part, ...], tokens: int, supervised: int, tera: float
) -> None:
    model = _meta_model(recipe.load(name).model)
    assert _flops(model, trains, tokens, supervised, images=1) == pytest.approx(tera * 1e12, rel=0.01)


def test_tiny_is_read_from_the_shipped_parts_and_equals_the_built_model() -> None:
    tiny = recipe.load("tiny")
    built = parts.build(tiny.model, seed=0).model
    found = plan(tiny)
    assert found.parameters == sum(p.numel() for p in built.parameters())
    assert found.image_tokens == built.config.image_seq_length
    assert all(stage.memory_bytes < 3e9 for stage in found.stages)


def test_a_data_file_is_measured(tmp_path: Path) -> None:
    conversation = Conversation("a", ("x",), (user("What is it?", images=1), assistant("A scan of the chest.")))
    write_jsonl(tmp_path / "data.jsonl", [conversation] * 70)
    tiny = recipe.load("tiny", [f"train.align.data={tmp_path / 'data.jsonl'}", "train.align.batch_size=32"])
    align = plan(tiny).stages[0]
    encoded = chat.encode(parts.processor(tiny.model), conversation)
    assert align.examples == 70
    assert align.steps == 3  # batches of 32
    assert align.tokens == len(encoded.input_ids)
    assert align.supervised_tokens == encoded.supervised.sum()
    assert "measured" in align.source


def test_where_the_tokenizer_is_not_here_characters_are_counted(tmp_path: Path) -> None:
    conversation = Conversation("a", ("x",), (user("?" * 71, images=1), assistant("!" * 284)))
    write_jsonl(tmp_path / "data.jsonl", [conversation])
    big = recipe.load("llava-med-v1.5", [f"train.align.data={tmp_path / 'data.jsonl'}"])
    align = plan(big).stages[0]
    assert align.text_tokens == pytest.approx(100)
    assert "characters" in align.source


def test_too_little_memory_is_said_with_the_pack_that_fits() -> None:
    found = plan(recipe.load("llava-med-v1.5"), gpu_bytes=48e9)
    align, instruct = found.stages
    assert align.memory_bytes > 48e9
    assert 0 < align.pack_tokens_that_fit < align.pack_tokens
    assert instruct.pack_tokens_that_fit == 0
    text = str(found.tables())
    assert f"train.tokens_per_pack={align.pack_tokens_that_fit}" in text
    assert "too much for one GPU" in text


def test_logits_are_counted_as_the_loss_holds_them() -> None:
    assert _CHUNK_LOGITS == loss._CHUNK_LOGITS
    found = plan(recipe.load("llava-med-v1.5", ["train.tokens_per_pack=100000"]))
    assert [stage.memory["logits"] for stage in found.stages] == pytest.approx([_CHUNK_LOGITS * 10] * 2, rel=1e-3)


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1, 2.7])
def test_steps_are_those_that_the_trainer_makes(tmp_path: Path, epochs: float) -> None:
    conversation = Conversation("a", (), (user("What is it?"), assistant("A scan.")))
    write_jsonl(tmp_path / "data.jsonl", [conversation] * 70)
    tiny = recipe.load("tiny", [f"train.align.data={tmp_path / 'data.jsonl'}", f"train.align.epochs={epochs}"])
    assert tiny.train.align is not None
    batch_size = tiny.train.align.batch_size
    assert plan(tiny).stages[0].steps == Schedule(np.full(70, 9), batch_size, 4096, seed=0, epochs=epochs).total


def test_tables_are_whole_and_of_text() -> None:
    for title, columns, rows in plan(recipe.load("llava-med-v1.5")).tables():
        assert title
        assert rows
        assert all(len(row) == len(columns) and all(isinstance(cell, str) for cell in row) for row in rows)


def test_an_unknown_base_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match="hf download nobody/nothing"):
        plan(recipe.load("tiny", ["model.language_model=nobody/nothing"]))


def test_smaller_states_and_recomputation_are_counted() -> None:
    keys = {"train.optimizer_state": "bfloat16", "train.recompute": "full"}
    plain = plan(recipe.load("llava-med-v1.5")).stages[1]
    small = plan(recipe.changed(recipe.load("llava-med-v1.5"), keys)).stages[1]
    assert small.memory["AdamW"] == plain.memory["AdamW"] / 2
    assert small.memory["activations"] < plain.memory["activations"] / 20
    assert small.pack_tokens_that_fit >= plain.pack_tokens_that_fit
