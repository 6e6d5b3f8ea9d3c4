"""Conversations out: what others read, with the images as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llavamed.corpus.store import Corpus
from llavamed.demo.truth import Truth
from llavamed.errors import InputError
from llavamed.instruct.export import export
from llavamed.instruct.formats import import_file
from llavamed.instruct.generate import generate
from llavamed.recipe import InstructSection
from llavamed.records import Pair, read_conversations


@pytest.fixture
def made(world: list[tuple[Truth, Pair]], make_corpus: Callable[..., Path], tmp_path: Path) -> Path:
    generate(make_corpus([pair for _, pair in world[:6]]), tmp_path / "made", InstructSection(), seed=0)
    return tmp_path / "made"


@pytest.mark.parametrize(("fmt", "read_as"), [("llava", "llava"), ("strings", "llavamed"), ("llavamed", "llavamed")])
def test_what_is_exported_is_what_was_written_with_images_that_are_there(
    made: Path, tmp_path: Path, fmt: str, read_as: str
) -> None:
    out, images = tmp_path / f"{fmt}.json", tmp_path / "images"
    assert export(made, out, fmt, images) == (6, 6)
    back = import_file(out, read_as, images)
    ours = list(read_conversations(made / "instruct.jsonl"))
    assert [(c.id, c.messages) for c in back] == [(c.id, c.messages) for c in ours]
    corpus = Corpus(tmp_path / "corpus")
    for conversation in ours:
        assert (images / f"{conversation.images[0]}.png").read_bytes() == corpus.image(conversation.images[0])


def test_llavas_own_trainer_reads_an_array_with_paths_below_one_folder(made: Path, tmp_path: Path) -> None:
    export(made, tmp_path / "l.json", "llava", tmp_path / "images")
    rows = json.loads((tmp_path / "l.json").read_text())
    assert len(rows) == 6
    for row in rows:
        assert set(row) == {"id", "image", "conversations"}
        assert (tmp_path / "images" / row["image"]).is_file()
        assert [turn["from"] for turn in row["conversations"][:2]] == ["human", "gpt"]
        assert sum(turn["value"].count("<image>") for turn in row["conversations"]) == 1


def test_bad_input_says_what_to_give(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one of llava"):
        export(made, tmp_path / "x", "alpaca")
    (tmp_path / "alone.jsonl").write_text((made / "instruct.jsonl").read_text())
    with pytest.raises(InputError, match="names no corpus"):
        export(tmp_path / "alone.jsonl", tmp_path / "x", "llava", tmp_path / "images")
    assert export(tmp_path / "alone.jsonl", tmp_path / "x", "llava") == (6, 0)
    with pytest.raises(InputError, match="give a folder"):
        export(made, tmp_path / "y", "llava", tmp_path / "x")
