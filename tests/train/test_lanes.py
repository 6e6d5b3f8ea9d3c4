from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llavamed.manifest import Manifest
from llavamed.model.parts import build
from llavamed.recipe import LoraSection, ModelSection, StageSection, TrainSection
from llavamed.train import loop
from llavamed.train.data import Pixels, read_examples
from llavamed.train.lanes import Lanes, lanes_for
from llavamed.train.meter import TIMED
from llavamed.train.validate import read_rows

SHORT = TrainSection(max_tokens=128, tokens_per_pack=48)  # several packs a step of the eight conversations
Trained = tuple[list[dict[str, Any]], bytes]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def train(parts: ModelSection, data: Path, images: Path, tmp_path: Path) -> Callable[..., Trained]:
    """A fresh model, trained with torch's threads as they are: (the metrics but for times, the weights' bytes)."""

    def make(name: str, stage: dict[str, Any], section: TrainSection = SHORT, lanes: int = 2) -> Trained:
        keys = {"trains": ("projector", "language_model"), "learning_rate": 3e-3, "epochs": 4, "batch_size": 8}
        chosen, assembled, count = StageSection(**{**keys, **stage}), build(parts, 0), torch.get_num_threads()
        pixels = Pixels(images, assembled.processor)
        examples = read_examples(data, pixels, assembled.processor, section.max_tokens)
        assert lanes_for(assembled.model.config, examples.lengths, chosen, section) == lanes
        made_from = Manifest("stage", settings=chosen.model_dump())
        loop.run_stage(assembled, examples, pixels, "s", chosen, section, tmp_path / name, 0, made_from)
        assert torch.get_num_threads() == count
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("llavamed-lane")]
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        assert all(row["packs"] % lanes == 0 for row in rows)
        curve = [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
        return curve, (tmp_path / name / "model" / "model.safetensors").read_bytes()

    return make


def test_packs_are_worked_on_at_the_same_time_and_come_in_their_order(threads: Callable[[int], None]) -> None:
    threads(2)
    both = threading.Barrier(2, timeout=30)  # passed only if two are at work at once

    def work(pack: int) -> tuple[int, int]:
        both.wait()
        return pack, torch.get_num_threads()

    with Lanes(2) as pool:
        assert list(pool.map(work, range(6))) == [(pack, 1) for pack in range(6)]
    assert torch.get_num_threads() == 2


def test_threads_are_shared_out_among_the_lanes(threads: Callable[[int], None]) -> None:
    threads(4)
    with Lanes(2) as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [2] * 4
    assert torch.get_num_threads() == 4


def test_of_what_is_done_little_waits_to_be_taken(threads: Callable[[int], None]) -> None:
    """Each result is a gradient of every parameter: all of a step's at once would be no small thing."""
    threads(2)
    done = []
    with Lanes(2) as pool:
        for taken, _ in enumerate(pool.map(done.append, range(20)), 1):
            time.sleep(0.01)
            assert len(done) <= taken + 2


def test_an_error_in_a_lane_is_raised_and_the_threads_come_back(threads: Callable[[int], None]) -> None:
    threads(2)

    def work(pack: int) -> int:
        if pack == 1:
            raise ValueError("pack 1")
        return pack

    with Lanes(2) as pool, pytest.raises(ValueError, match="pack 1"):
        list(pool.map(work, range(4)))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("count", "tokens", "lanes"),
    [(4, 80, 1), (4, 200, 2), (4, 300, 2), (4, 900, 4), (6, 400, 3), (1, 900, 1)],
)
def test_there_are_as_many_lanes_as_packs_that_share_the_threads_evenly(
    parts: ModelSection, threads: Callable[[int], None], count: int, tokens: int, lanes: int
) -> None:
    threads(count)
    config, train = build(parts, 0).model.config, TrainSection(tokens_per_pack=100)
    assert lanes_for(config, np.full(20, tokens // 8), StageSection(batch_size=8), train) == lanes
    assert lanes_for(config, np.full(2, tokens // 8), StageSection(batch_size=8), train) <= lanes


def test_where_lanes_would_meet_there_is_one(parts: ModelSection, threads: Callable[[int], None]) -> None:
    threads(2)
    lengths, train = np.full(20, 1000), TrainSection(tokens_per_pack=100)

    def lanes(section: dict[str, Any] | None = None, lora: float | None = None, **text: Any) -> int:
        config = build(parts, 0).model.config
        for key, value in text.items():
            setattr(config.text_config, key, value)
        stage = StageSection(lora=None if lora is None else LoraSection(dropout=lora))
        return lanes_for(config, lengths, stage, train.model_copy(update=section or {}))

    assert lanes() == lanes(lora=0.0) == lanes({"fp8_frozen": True}) == 2
    assert lanes(lora=0.1) == lanes(attention_dropout=0.1) == 1
    assert lanes(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}) == 1
    for section in ({"compile": True}, {"recompute": "selective"}, {"dtype": "bfloat16"}):
        assert lanes(section) == 1


def test_gradients_that_share_memory_are_added_apart(threads: Callable[[int], None]) -> None:
    """The gradient of a sum is one tensor for both parts, as of a ViT's class token and its place."""
    threads(2)
    run = loop._Run.__new__(loop._Run)
    first, second = run.trained = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    run.pack_loss = lambda batch: ((first + second) * batch).sum()  # type: ignore[method-assign]
    packs: list[Future[Any]] = [Future() for _ in range(3)]
    for number, pack in enumerate(packs, 1):
        pack.set_result(torch.full((4,), float(number)))
    with Lanes(2) as run.lanes:
        run._in_lanes(packs)
    for parameter in run.trained:
        assert parameter.grad.tolist() == [6.0] * 4


@pytest.mark.parametrize("trains", [("projector",), ("projector", "language_model")])
def test_two_lanes_learn_what_one_learns(
    train: Callable[..., Trained], threads: Callable[[int], None], trains: tuple[str, ...]
) -> None:
    """The packs are others, so the sums are taken in another order."""
    curves = []
    for count in (1, 2):
        threads(count)
        curve, _ = train(f"{count}", {"trains": trains}, lanes=count)
        curves.append([row["loss"] for row in curve])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "section"),
    [
        ({}, {}),
        ({"trains": ("projector",)}, {"fp8_frozen": True}),
        ({"trains": ("projector",), "lora": LoraSection(dropout=0.0, rank=4)}, {}),
        ({"trains": ("projector", "vision_tower", "language_model")}, {"optimizer_state": "bfloat16"}),
    ],
    ids=["plain", "fp8", "lora", "all parts, bfloat16 moments"],
)
def test_the_same_bytes_every_time(
    train: Callable[..., Trained], threads: Callable[[int], None], stage: dict[str, Any], section: dict[str, Any]
) -> None:
    """One of the eight records is text alone: in a pack of its own it has no gradient for the projector."""
    threads(2)
    settings = SHORT.model_copy(update=section)
    assert train("a", stage, settings) == train("b", stage, settings)


def test_a_crash_and_a_resume_end_as_if_nothing_had_happened(
    train: Callable[..., Trained], threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)
    straight = train("straight", {"epochs": 8})
    original = loop._Run.step

    def crash(self: Any, number: int, *rest: Any) -> dict[str, Any]:
        if number == 5:
            raise KeyError("crash")
        return original(self, number, *rest)

    often = SHORT.model_copy(update={"checkpoint_minutes": 1e-9})
    monkeypatch.setattr(loop._Run, "step", crash)
    with pytest.raises(KeyError, match="crash"):
        train("crashed", {"epochs": 8}, often)
    monkeypatch.setattr(loop._Run, "step", original)
    assert train("crashed", {"epochs": 8}) == straight


def test_the_bits_do_not_depend_on_whether_the_threads_were_set_before() -> None:
    """Each in a process of its own, as what is set stays. A torch without MKL has one way only."""
    script = """
import hashlib, sys, torch
from torch.nn.functional import scaled_dot_product_attention as attend
from llavamed.train.lanes import Lanes
if sys.argv[1] == "set before":
    torch.set_num_threads(2)
Lanes(1)
random = torch.Generator().manual_seed(0)
query, key, value = (torch.randn(1, heads, tokens, 32, generator=random, requires_grad=True)
                     for heads, tokens in ((4, 79), (2, 207), (2, 207)))
seen = torch.ones(79, 207, dtype=torch.bool).tril(128)
out = attend(query, key, value, attn_mask=seen, enable_gqa=True)
made = torch.autograd.grad(out, (query, key, value), torch.randn(out.shape, generator=random))
print(hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for one in (out.detach(), *made))).hexdigest())
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MKL_")}
    said = [
        subprocess.run(
            [sys.executable, "-c", script, when], env={**environment, "OMP_NUM_THREADS": "2"},
            stdout=subprocess.PIPE, check=True,
        ).stdout
        for when in ("not set", "set before")
    ]  # fmt: skip
    assert said[0] == said[1]
