from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from llavamed.manifest import Manifest
from llavamed.model.parts import build
from llavamed.recipe import LoraSection, ModelSection, StageSection, TrainSection
from llavamed.train import lanes, loop
from llavamed.train.data import Pixels, read_examples
from llavamed.train.lanes import Lanes
from llavamed.train.validate import read_rows


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def four_threads(two_threads: None) -> None:
    torch.set_num_threads(4)


def test_packs_are_worked_on_at_the_same_time_and_come_in_their_order(two_threads: None) -> None:
    both = threading.Barrier(2, timeout=30)  # passed only if two are at work at once

    def work(pack: int) -> tuple[int, int]:
        both.wait()
        return pack, torch.get_num_threads()

    with Lanes(2) as pool:
        assert list(pool.map(work, range(6))) == [(pack, 1) for pack in range(6)]
    assert torch.get_num_threads() == 2


def test_cores_are_shared_out_among_the_lanes(four_threads: None) -> None:
    with Lanes(2) as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [2] * 4
    assert torch.get_num_threads() == 4


def test_an_error_in_a_lane_is_raised_and_the_threads_come_back(two_threads: None) -> None:
    def work(pack: int) -> int:
        if pack == 1:
            raise ValueError("pack 1")
        return pack

    with Lanes(2) as pool, pytest.raises(ValueError, match="pack 1"):
        list(pool.map(work, range(4)))
    assert torch.get_num_threads() == 2


def test_there_are_no_more_lanes_than_a_step_has_packs(four_threads: None) -> None:
    stage, train = StageSection(batch_size=8), TrainSection(tokens_per_pack=100)
    assert lanes.count(np.full(20, 10), stage, train) == 1  # 80 tokens a step
    assert lanes.count(np.full(20, 25), stage, train) == 2
    assert lanes.count(np.full(20, 1000), stage, train) == 4
    assert lanes.count(np.full(2, 40), stage, train) == 1  # a step cannot have more than there is


def test_what_draws_random_numbers_or_is_compiled_has_one_lane(two_threads: None) -> None:
    lengths, train = np.full(20, 1000), TrainSection(tokens_per_pack=100)
    assert lanes.count(lengths, StageSection(lora=LoraSection(dropout=0.1)), train) == 1
    assert lanes.count(lengths, StageSection(lora=LoraSection(dropout=0.0)), train) == 2
    assert lanes.count(lengths, StageSection(), train.model_copy(update={"compile": True})) == 1


@pytest.mark.parametrize("trains", [("projector",), ("projector", "language_model")])
def test_a_stage_in_two_lanes_learns_what_it_learns_in_one_and_the_same_bytes_each_time(
    parts: ModelSection, data: Path, images: Path, tmp_path: Path, two_threads: None, trains: tuple[str, ...]
) -> None:
    """The packs are others, so the sums are taken in another order; within two lanes nothing may depend on the clock.
    One of the eight records is text alone: in a pack of its own it has no gradient for the projector."""

    def train(out: Path, threads: int) -> tuple[list[float], bytes]:
        torch.set_num_threads(threads)
        stage = StageSection(trains=trains, learning_rate=3e-3, epochs=4, batch_size=8)
        settings = TrainSection(max_tokens=128, tokens_per_pack=48)
        assembled = build(parts, 0)
        pixels = Pixels(images, assembled.processor)
        examples = read_examples(data, pixels, assembled.processor, settings.max_tokens)
        assert lanes.count(examples.lengths, stage, settings) == threads
        loop.run_stage(assembled, examples, pixels, "s", stage, settings, out, 0, Manifest("stage"))
        assert torch.get_num_threads() == threads
        rows = read_rows(out / "metrics.jsonl")
        assert all(row["packs"] % threads == 0 for row in rows)
        return [row["loss"] for row in rows], (out / "model" / "model.safetensors").read_bytes()

    (one, _), two, again = train(tmp_path / "1", 1), train(tmp_path / "2", 2), train(tmp_path / "3", 2)
    assert two == again
    assert two[0] == pytest.approx(one, rel=1e-5)
