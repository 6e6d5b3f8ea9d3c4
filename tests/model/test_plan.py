from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llavamed import recipe
from llavamed.errors import InputError
from llavamed.model import chat, gpus, parts
from llavamed.model.gpus import Gpu
from llavamed.model.plan import _CHUNK_LOGITS, _USABLE, plan
from llavamed.records import Conversation, assistant, user, write_jsonl
from llavamed.train import loss
from llavamed.train.pack import Schedule

A100 = gpus.named("a100-80g")


def test_v15_is_counted_as_published() -> None:
    found = plan(recipe.load("llava-med-v1.5"), A100)
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
    found = plan(recipe.load("llava-med-v1.0"), A100)
    assert found.parts["language_model"][1] == 6_738_415_616  # LLaMA-7B
    assert found.image_tokens == 256
    assert found.stages[0].trainable == 1024 * 4096 + 4096  # one linear layer


def test_tiny_is_read_from_the_shipped_parts_and_equals_the_built_model() -> None:
    tiny = recipe.load("tiny")
    built = parts.build(tiny.model, seed=0).model
    found = plan(tiny, A100)
    assert found.parameters == sum(p.numel() for p in built.parameters())
    assert found.image_tokens == built.config.image_seq_length
    assert all(stage.memory_bytes < 3e9 for stage in found.stages)


def test_a_data_file_is_measured(tmp_path: Path) -> None:
    conversation = Conversation("a", ("x",), (user("What is it?", images=1), assistant("A scan of the chest.")))
    write_jsonl(tmp_path / "data.jsonl", [conversation] * 70)
    tiny = recipe.load("tiny", [f"train.align.data={tmp_path / 'data.jsonl'}", "train.align.batch_size=32"])
    align = plan(tiny, A100).stages[0]
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
    align = plan(big, A100).stages[0]
    assert align.text_tokens == pytest.approx(100)
    assert "characters" in align.source


def test_too_little_memory_is_said_with_the_pack_that_fits() -> None:
    found = plan(recipe.load("llava-med-v1.5"), Gpu("48 GB", 48e9))
    align, instruct = found.stages
    assert align.memory_bytes > 48e9
    assert 0 < align.pack_tokens_that_fit < align.pack_tokens
    assert instruct.pack_tokens_that_fit == 0
    text = str(found.tables())
    assert f"train.tokens_per_pack={align.pack_tokens_that_fit}" in text
    assert "too much for one GPU" in text


ADAPTERS = "--set train.instruct.trains=[projector]"


@pytest.mark.parametrize(
    ("memory", "overrides", "remedy"),
    [
        (150e9, ["train.optimizer_state=bfloat16", "train.max_tokens=8192"], "--set train.recompute=selective"),
        (130e9, [], "--set train.recompute=selective --set train.optimizer_state=bfloat16"),
        (110e9, [], "--set train.recompute=selective --set train.optimizer_state=int8"),
        (48e9, [], f"--set train.recompute=selective {ADAPTERS} --set train.instruct.lora.quantize=none"),
        (24e9, [], f"--set train.recompute=full {ADAPTERS} --set train.instruct.lora.quantize=nf4"),
        (10e9, [], ""),
    ],
)
def test_where_no_pack_fits_the_least_change_that_does_is_said(
    memory: float, overrides: list[str], remedy: str
) -> None:
    gpu, overrides = Gpu("some", memory), [*overrides, "train.align=null"]
    found = plan(recipe.load("llava-med-v1.5", overrides), gpu)
    assert found.stages[0].remedy == remedy
    if remedy:
        assert f"whatever the pack; {remedy} fits" in str(found.tables())
        changed = plan(
            recipe.load("llava-med-v1.5", [*overrides, *remedy.removeprefix("--set ").split(" --set ")]), gpu
        )
        assert changed.stages[0].pack_tokens_that_fit >= changed.max_tokens


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("llava-med-v1.5-24gb", "a10-24g"),
        ("llava-med-v1.5-24gb", "rtx3090"),
        ("llava-med-v1.5-24gb", "rtx4090"),
        ("llava-med-v1.5-48gb", "l40s"),
        ("llava-med-v1.5-48gb", "rtx6000-ada"),
        ("llava-med-v1.5-80gb", "a100-80g"),
        ("llava-med-v1.5-80gb", "h100-80g"),
        ("llava-med-v1.5-141gb", "h200"),
    ],
)
def test_a_preset_fits_the_gpus_it_is_named_for(name: str, gpu: str) -> None:
    found = plan(recipe.load(name), gpus.named(gpu))
    for stage in found.stages:
        assert stage.memory_bytes < _USABLE * found.gpu.memory, stage.name
        assert stage.pack_tokens_that_fit >= recipe.load(name).train.tokens_per_pack
    assert [row[-1] for row in found.tables()[2][2]] == ["fits", "fits"]


def test_hours_are_those_of_the_hand_count() -> None:
    """Half of a measured 790 TFLOP/s: 8.84 h for 600,000 pairs, 5.00 h for three epochs of 60,000 conversations."""
    found = plan(recipe.load("llava-med-v1.5"), gpus.named("h200"))
    assert [stage.hours for stage in found.stages] == pytest.approx([8.84, 5.00], rel=0.01)
    again = plan(recipe.load("llava-med-v1.5", ["train.recompute=full"]), gpus.named("h200"))
    assert [stage.hours for stage in again.stages] == pytest.approx([8.84 * 31.1 / 21.0, 5.00 * 52.5 / 39.5], rel=0.01)
    assert plan(recipe.load("llava-med-v1.5"), Gpu("some", 80e9)).stages[0].hours is None
    assert plan(recipe.load("llava-med-v1.5", ["train.dtype=float32"]), gpus.named("h200")).stages[0].hours is None


def test_memory_of_a_full_fine_tune_is_that_of_the_hand_count() -> None:
    """Of 7.24 billion parameters, in GB: float32 weights 29, bfloat16 copies 14.5, gradients 29, moments 58."""
    for state, moments in (("float32", 58.0), ("bfloat16", 29.0), ("int8", 14.5)):
        found = plan(recipe.load("llava-med-v1.5", [f"train.optimizer_state={state}"]), A100).stages[1]
        assert found.memory["AdamW"] == pytest.approx(moments * 1e9, rel=0.04)
        assert found.memory["gradients"] == pytest.approx(29e9, rel=0.01)
        assert found.memory["weights"] == pytest.approx((29 + 14.5) * 1e9 + 0.6e9, rel=0.01)


def test_recomputing_more_leaves_room_for_larger_packs() -> None:
    room = [
        plan(recipe.load("llava-med-v1.5", [f"train.recompute={kind}"]), A100).stages[0].pack_tokens_that_fit
        for kind in ("none", "selective", "full")
    ]
    assert room[0] < room[1] < room[2]


def test_logits_are_counted_as_the_loss_holds_them() -> None:
    assert _CHUNK_LOGITS == loss._CHUNK_LOGITS
    found = plan(recipe.load("llava-med-v1.5", ["train.tokens_per_pack=100000"]), A100)
    assert [stage.memory["logits"] for stage in found.stages] == pytest.approx([_CHUNK_LOGITS * 10] * 2, rel=1e-3)


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1, 2.7])
def test_steps_are_those_that_the_trainer_makes(tmp_path: Path, epochs: float) -> None:
    conversation = Conversation("a", (), (user("What is it?"), assistant("A scan.")))
    write_jsonl(tmp_path / "data.jsonl", [conversation] * 70)
    tiny = recipe.load("tiny", [f"train.align.data={tmp_path / 'data.jsonl'}", f"train.align.epochs={epochs}"])
    assert tiny.train.align is not None
    batch_size = tiny.train.align.batch_size
    assert plan(tiny, A100).stages[0].steps == Schedule(np.full(70, 9), batch_size, 4096, seed=0, epochs=epochs).total


def test_tables_are_whole_and_of_text() -> None:
    for title, columns, rows in plan(recipe.load("llava-med-v1.5"), A100).tables():
        assert title
        assert rows
        assert all(len(row) == len(columns) and all(isinstance(cell, str) for cell in row) for row in rows)


def test_an_unknown_base_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match="hf download nobody/nothing"):
        plan(recipe.load("tiny", ["model.language_model=nobody/nothing"]), A100)


def test_smaller_states_and_recomputation_are_counted() -> None:
    keys = {"train.optimizer_state": "bfloat16", "train.recompute": "full"}
    plain = plan(recipe.load("llava-med-v1.5"), A100).stages[1]
    small = plan(recipe.changed(recipe.load("llava-med-v1.5"), keys), A100).stages[1]
    assert small.memory["AdamW"] == plain.memory["AdamW"] / 2
    assert small.memory["activations"] < plain.memory["activations"] / 10
    assert small.pack_tokens_that_fit >= plain.pack_tokens_that_fit
