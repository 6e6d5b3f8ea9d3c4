"""Real processes under torchrun, on the CPU with gloo: what they make is what one process makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llavamed.recipe import ModelSection
from llavamed.train import ranks
from llavamed.train.ranks import Ranks, Watchdog, join
from llavamed.train.validate import read_rows

SECONDS = 240


@pytest.fixture(scope="module")
def recipe(parts: ModelSection, data: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages; three examples a step leave some packs without an image, and the last step with fewer than ranks."""
    stage = {"data": str(data), "images": str(images), "epochs": 2, "batch_size": 7, "learning_rate": 3e-3}
    tree = {
        "name": "two-ranks",
        "model": {"vision_tower": parts.vision_tower, "language_model": parts.language_model},
        "train": {
            "max_tokens": 128,
            "tokens_per_pack": 64,
            "align": stage,
            "instruct": {**stage, "trains": ["projector", "language_model"]},
        },
    }
    path = tmp_path_factory.mktemp("ranks") / "two-ranks.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


# the command line with one accident in it: argv is what happens, then the command's own arguments
WORKER = """
import os, signal, sys, time
from llavamed.cli import main
from llavamed.evaluate import run
from llavamed.train import loop

accident, last_rank = sys.argv.pop(1), os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
step = loop._Run.step

def step_with_accident(self, number, *rest):
    if self.name == "instruct" and number == 1 and last_rank:
        if accident == "signal":  # and its copy, which torchrun passes on
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        elif accident == "error":
            raise OSError("the disk of this rank is gone")
        elif accident == "stuck":
            self.ranks.doing("waiting for a disk")
            time.sleep(600)
    return step(self, number, *rest)

def made_up(*_):
    # a small score that knows every weight
    return lambda assembled: ("made up", sum(p.abs().sum().item() for p in assembled.model.parameters()))

loop._Run.step = step_with_accident
run.small_score = made_up
main()
"""


def train(recipe: Path, out: Path, ranks: int, accident: str = "none", *options: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    worker = recipe.parent / "worker.py"
    worker.write_text(WORKER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(worker), accident, "train", str(recipe), "--out", str(out), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done.returncode, done.stdout + done.stderr


def assert_same(one: Path, other: Path) -> None:
    for stage in ("align", "instruct"):
        curves = [[row["loss"] for row in read_rows(run / stage / "metrics.jsonl")] for run in (one, other)]
        assert len(curves[0]) == 4
        assert curves[0] == pytest.approx(curves[1], rel=1e-5)
        before, after = (load_file(run / stage / "model" / "model.safetensors") for run in (one, other))
        assert before.keys() == after.keys()
        for name in before:
            torch.testing.assert_close(before[name], after[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    code, said = train(recipe, recipe.parent / "alone", 1)
    assert code == 0, said
    return recipe.parent / "alone"


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_ranks_train_what_one_process_does_also_when_stopped_and_resumed_on_another_number(
    recipe: Path, alone: Path, tmp_path: Path, before: int, after: int
) -> None:
    """The signal reaches the last rank alone: all have to save and leave together, with exit code 0."""
    out = tmp_path / "stopped"
    code, said = train(recipe, out, before, "signal")
    assert code == 0, said[-3000:]
    assert (out / "instruct" / "checkpoints" / "step-00000002").is_dir()
    code, said = train(recipe, out, after)
    assert code == 0, said[-3000:]
    assert said.count("going on after step 2 of 4") == 1
    assert said.count("report: ") == 1
    assert_same(alone, out)


def test_two_ranks_in_bfloat16_train_and_answer_as_one_does_within_rounding(recipe: Path, tmp_path: Path) -> None:
    """bfloat16 holds 8 bits: one rounding is 0.4 %, and by so much the losses may differ. The weights, which Adam moves
    by the sign of the smallest gradients too, may come apart by 5 % of the way that they go (1.5 % when written)."""
    sets = {
        "train.align": "null",
        "train.dtype": "bfloat16",
        "train.instruct.batch_size": 6,
        "train.validation.every": 2,
        "train.validation.held_out": 2,
        "train.validation.samples": 2,
        "train.validation.benchmark": "phantom",
        "train.validation.data": ".",
    }
    options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    for world in (1, 2):
        code, said = train(recipe, tmp_path / str(world), world, "none", *options)
        assert code == 0, said[-3000:]
    one, two = (tmp_path / world / "instruct" for world in "12")
    for name in ("metrics.jsonl", "validation.jsonl"):
        losses = [[row["loss"] for row in read_rows(stage / name)] for stage in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=4e-3), name
    scores = [[row["score"] for row in read_rows(stage / "validation.jsonl")] for stage in (one, two)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    asked = [[(row["step"], row["id"], row["question"]) for row in read_rows(stage / "samples.jsonl")]
             for stage in (one, two)]  # fmt: skip
    assert asked[0] == asked[1]
    assert len(asked[0]) == 2
    folders = (tmp_path / "1" / "untrained", one, two)
    start, by_one, by_two = (load_file(stage / "model" / "model.safetensors") for stage in folders)
    apart, moved = (
        sum((a[name] - b[name]).float().square().sum().item() for name in start) ** 0.5
        for a, b in ((by_one, by_two), (by_one, start))
    )
    assert apart < 0.05 * moved


@pytest.mark.parametrize(
    ("accident", "reason"),
    [
        ("error", r"rank 0 stops: rank 1 failed: OSError: the disk of this rank is gone"),
        ("stuck", r"stops: rank 1 has been waiting for a disk for 0\.\d minutes; the others wait"),
    ],
)
def test_a_rank_that_fails_or_hangs_ends_the_run_with_its_name_and_reason(
    recipe: Path, tmp_path: Path, accident: str, reason: str
) -> None:
    began = time.monotonic()
    code, said = train(recipe, tmp_path / "out", 2, accident, "--set", "train.stuck_minutes=0.1")
    assert code not in (0, 2)
    assert re.search(reason, said), said[-3000:]
    assert time.monotonic() - began < 120


def test_a_rank_that_works_alone_is_alive_for_a_bounded_time_and_is_then_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 0 writes while rank 1 waits; both have told as many deeds."""
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(Watchdog, "_end", lambda self, why: said.append((time.monotonic(), why)))
    for name, seconds in (("_LOOK_EVERY", 0.02), ("_BEAT_EVERY", 0.05), ("_ALONE", 0.8)):
        monkeypatch.setattr(ranks, name, seconds)
    store = torch.distributed.HashStore()
    began = time.monotonic()
    with Watchdog(store, 0, 2, 0.3) as writes, Watchdog(store, 1, 2, 0.3) as waits:
        waits.tell("waiting for the model")
        writes.tell("waiting for the model")
        with Ranks(0, 2, torch.device("cpu"), writes).alive("writing the model"):
            while len(said) < 2 and time.monotonic() - began < 10:
                time.sleep(0.05)
    assert len(said) == 2  # one for each rank
    for when, why in said:
        assert when - began > 0.8
        assert "rank 0 has been writing the model for" in why


def test_one_process_is_not_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join() as one:
        assert (one.rank, one.world, one.first) == (0, 1, True)
        assert one.total([1.5]) == [1.5]
        assert one.everyone({"a": 1}) == [{"a": 1}]
        assert not torch.distributed.is_initialized()
