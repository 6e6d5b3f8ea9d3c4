"""The demo, whole: small in the fast suite, at its real size and under kill -9 in the slow one."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llavamed import manifest, pipeline, recipe
from llavamed.demo.run import demo

SMALL = {
    "demo.articles": 30,
    "demo.questions": 26,
    "demo.image_size": 96,
    "train.instruct.epochs": 1,
    "evaluate.max_new_tokens": 12,
    "evaluate.bootstrap": 100,
}


TOO_LONG = 900  # seconds; a demo that hangs must not hold up everything else


def sets() -> list[str]:
    return [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


def results(out: Path) -> dict[str, Any]:
    """All that must be the same when a demo is run again: corpus bytes, conversations, losses, weights, scores."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix in {".tar", ".parquet", ".safetensors"} or path.name in {
            "align.jsonl",
            "instruct.jsonl",
            "items.jsonl",
        }:
            found[name] = manifest.file_sha256(path)
        elif path.name == "metrics.jsonl":
            found[name] = [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        elif path.name == "scores.json":
            found[name] = json.loads(path.read_text())["scores"]
    return found


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pipeline.Outcome]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, demo(recipe.changed(recipe.load("tiny"), SMALL), out)


def test_every_stage_leaves_a_manifest_and_a_report(small_demo: tuple[Path, pipeline.Outcome]) -> None:
    out, outcome = small_demo
    for stage in ("world/articles", "world/benchmark", "corpus", "instruct", "train", "train/align", "train/instruct"):
        assert manifest.read(out / stage) is not None, stage
    for stage in (".", "corpus", "instruct", "train", "eval/phantom/instruct"):
        assert (out / stage / "report.html").is_file(), stage
    assert [(r.model, r.image) for r in outcome.rows] == [
        ("untrained projector", "real"),
        ("align only", "real"),
        *(("align + instruct", image) for image in ("real", "blank", "shuffled", "noise", "text-only")),
    ]


GOLDEN = Path(__file__).parent / "golden" / "tiny-losses.json"
PEAK = Path(__file__).parents[1] / "benchmarks" / "peak.py"


def test_the_loss_curves_are_the_golden_ones(small_demo: tuple[Path, pipeline.Outcome]) -> None:
    """Any change of what training sees or does shows here. Where one is meant, delete the file, run this test and
    look at the difference. Machines add in other orders: the first step agrees closely, later ones drift."""
    out, _ = small_demo
    found = {
        stage: [json.loads(line)["loss"] for line in (out / "train" / stage / "metrics.jsonl").read_text().splitlines()]
        for stage in ("align", "instruct")
    }
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps({k: [round(v, 6) for v in curve] for k, curve in found.items()}, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was absent and is written anew; commit it if the curve is right")
    golden = json.loads(GOLDEN.read_text())
    for stage, curve in golden.items():
        assert found[stage][0] == pytest.approx(curve[0], rel=1e-5)
        assert found[stage] == pytest.approx(curve, rel=5e-3)


def test_a_finished_demo_is_not_repeated(small_demo: tuple[Path, pipeline.Outcome]) -> None:
    out, first = small_demo
    before = {p: p.stat().st_mtime_ns for p in out.rglob(manifest.NAME)}
    again = demo(recipe.changed(recipe.load("tiny"), SMALL), out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob(manifest.NAME)} == before
    assert again.rows == first.rows


def test_every_page_is_one_file_that_fetches_nothing(small_demo: tuple[Path, pipeline.Outcome]) -> None:
    out, _ = small_demo
    for page in out.rglob("report.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text, page
        assert "<script" not in text, page


def test_conversations_hold_to_the_truth(small_demo: tuple[Path, pipeline.Outcome]) -> None:
    """Nothing that the offline teacher lets the model say contradicts what was drawn."""
    from llavamed.demo.truth import DOMAIN_NAMES, NONE
    from llavamed.instruct.facts import extract
    from llavamed.records import read_conversations

    out, _ = small_demo
    truths = {}
    for line in (out / "world" / "articles" / "truth.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "single":
            truths[row["article"].replace(".", "-") + "_" + row["figure"]] = row["truths"][0]
    checked = 0
    for conversation in read_conversations(out / "instruct" / "instruct.jsonl"):
        truth = truths.get(conversation.images[0])
        if truth is None:
            continue
        for message in conversation.messages:
            if message.role != "assistant" or message.text.startswith("No,"):
                continue
            said = extract(message.text)
            for name, value in (
                ("modality", DOMAIN_NAMES[truth["domain"]]),
                ("organ", truth["organ"]),
                ("side", truth["side"]),
                ("size", truth["size"]),
            ):
                assert getattr(said, name) in (None, value), (conversation.id, message.text, truth)
            if said.finding not in (None, NONE, "lesion", "abnormality"):
                assert said.finding == truth["finding"], (conversation.id, message.text, truth)
            checked += 1
    assert checked > 100


@pytest.mark.slow
def test_two_demos_of_the_same_seed_are_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-m", "llavamed.cli", "demo", "--no-serve", "--out", tmp_path / name, *sets()],
            check=True,
            timeout=TOO_LONG,
        )
    assert results(tmp_path / "a") == results(tmp_path / "b")


def marks(out: Path) -> int:
    """How far a demo has come: files, and lines of the curves."""
    found = 0
    for path in out.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a folder that is being replaced
            found += len(path.read_bytes().splitlines()) if path.name == "metrics.jsonl" else 1
    return found


@pytest.mark.slow
def test_a_demo_killed_at_random_moments_ends_the_same(tmp_path: Path) -> None:
    """kill -9 and Ctrl-C in turn, at moments drawn from a seed, ever later. A moment is how far an uninterrupted run
    had come by then, which is the same on a machine that was slow then and is fast now."""
    command = [sys.executable, "-m", "llavamed.cli", "demo", "--no-serve", *sets()]
    straight = subprocess.Popen([*command, "--out", tmp_path / "straight"])
    far = []
    deadline = time.monotonic() + TOO_LONG
    while straight.poll() is None and time.monotonic() < deadline:
        far.append(marks(tmp_path / "straight"))
        time.sleep(0.1)
    assert straight.poll() == 0
    expected = results(tmp_path / "straight")
    rng = random.Random(0)
    broken = [*command, "--out", tmp_path / "broken"]
    kills = 0
    for attempt in range(10):
        moment = far[int(len(far) * (attempt + rng.random()) / 10)]
        before = marks(tmp_path / "broken")
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(broken, stderr=said, stdout=said)
        deadline = time.monotonic() + TOO_LONG
        while process.poll() is None and time.monotonic() < deadline:
            now = marks(tmp_path / "broken")
            if now >= moment and now != before:  # it has done something since the last time
                break
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if attempt % 2 else signal.SIGINT)
            process.wait(timeout=60)
            kills += 1
        else:
            assert process.returncode == 0, (tmp_path / "said").read_text()
    assert kills >= 5
    subprocess.run(broken, check=True)
    assert results(tmp_path / "broken") == expected


@pytest.mark.slow
def test_the_demo_meets_its_bounds(tmp_path: Path) -> None:
    """The scores and the memory, at the demo's real size, in a process of its own (its time: benchmarks/demo.py)."""
    out = tmp_path / "out"
    demo = [sys.executable, "-m", "llavamed.cli", "demo", "--no-serve", "--out", str(out), "--json"]
    ran = subprocess.run([sys.executable, str(PEAK), *demo], stdout=subprocess.PIPE, text=True, check=True)
    peak = int(ran.stdout.splitlines()[-1]) / 2**20
    assert peak < 3.0, f"peak memory {peak:.2f} GiB"

    def score(row: str, name: str, control: str | None = None) -> float:
        body = json.loads((out / "eval" / "phantom" / row / "scores.json").read_text())
        scores = body["controls"][control]["scores"] if control else body["scores"]
        return float(scores[name]["value"])

    assert score("instruct", "closed_accuracy") >= 90
    assert score("instruct", "closed_accuracy", "blank") <= 60
    assert score("instruct", "open_recall") >= 80
    for name in ("closed_accuracy", "open_recall", "open_f1"):
        assert score("instruct", name) > max(score("align", name), score("untrained", name)) + 20
