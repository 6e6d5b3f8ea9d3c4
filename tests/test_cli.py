"""The command line: bad input gets one line that says what, where and what to do, and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from llavamed import cli, recipe
from llavamed.manifest import Manifest
from llavamed.model import folder, parts


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "model"
    folder.save(parts.build(recipe.load("tiny").model, seed=0), path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["llavamed", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    code = stop.value.code
    return 0 if code is None else int(code)


def told(capsys: pytest.CaptureFixture[str], *words: object) -> None:
    """The last call printed one line on standard error, without a traceback, that holds all of `words`."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llavamed: error:")]
    assert len(lines) == 1, lines
    for word in words:
        assert str(word) in lines[0]


def test_a_missing_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(monkeypatch, "corpus", "build", tmp_path / "absent", "--out", tmp_path / "out") == 2
    told(capsys, tmp_path / "absent")
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, "chat", tmp_path / "absent", "--ask", "What?") == 2
    told(capsys, tmp_path / "absent")


def test_a_misspelt_recipe_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "train", "tiny", "--set", "train.instruct.epoch=2", "--dry-run") == 2
    told(capsys, "train.instruct.epoch", "did you mean 'train.instruct.epochs'")


def test_a_truncated_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Path, image: Path
) -> None:
    image.write_bytes(image.read_bytes()[:600])
    assert run(monkeypatch, "chat", tiny_model, "--image", image, "--ask", "What is shown?") == 2
    told(capsys, image, "truncated")


def test_xml_that_is_not_jats(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    articles = tmp_path / "articles"
    articles.mkdir()
    (articles / "page.xml").write_text("<html><body>not an article</body></html>")
    assert run(monkeypatch, "corpus", "build", articles, "--out", tmp_path / "out") == 2
    told(capsys, "page.xml", "JATS")


def test_an_empty_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(monkeypatch, "corpus", "build", tmp_path / "empty", "--out", tmp_path / "out") == 2
    told(capsys, tmp_path / "empty")


def test_a_checkpoint_with_a_missing_tensor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Path, image: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = broken / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if "multi_modal_projector" in n)
    save_file({n: t for n, t in tensors.items() if n != name}, weights, {"format": "pt"})
    assert run(monkeypatch, "chat", broken, "--image", image, "--ask", "What is shown?") == 2
    told(capsys, name)


def test_an_unknown_benchmark_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "score", "vqarad", tmp_path / "p.jsonl", "--data", tmp_path) == 2
    told(capsys, "vqa-rad")


def test_a_misspelt_command_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "trian") == 2


def test_score_reads_other_peoples_predictions_and_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared_data: Path, tmp_path: Path
) -> None:
    """Answering every VQA-RAD question with its reference: 100 by every rule, from ids or by order."""
    data = shared_data / "vqa_rad"
    rows = json.loads((data / "test.json").read_text())
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"question_id": r["qid"], "text": str(r["answer"])}) + "\n" for r in rows)
    )
    for more in ((), ("--by-order",)):
        assert (
            run(
                monkeypatch,
                "score",
                "vqa-rad",
                tmp_path / "p.jsonl",
                "--data",
                data,
                "--out",
                tmp_path / "s",
                "--json",
                *more,
            )
            == 0
        )
        body = json.loads(capsys.readouterr().out)
        assert body["n"] == 451
        assert body["scores"]["open_recall_official"]["value"] == 100
        assert body["scores"]["closed_accuracy"]["n"] == 272


def test_score_gives_the_official_number_of_mmmus_example_outputs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared_data: Path, tmp_path: Path
) -> None:
    data = shared_data / "mmmu"
    command = ("score", "mmmu", data / "llava1.5_13b", "--data", data, "--out", tmp_path / "s")
    assert run(monkeypatch, *command, "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["scores"]["accuracy_official"]["value"] == pytest.approx(100 * 330 / 900, abs=1e-4)
    assert body["scores"]["accuracy_medical_official"]["value"] == pytest.approx(100 * 58 / 150, abs=1e-4)
    assert run(monkeypatch, *command) == 0
    assert "Strict and official: The official script draws a random option" in capsys.readouterr().out


def test_the_folder_of_another_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared_data: Path, tmp_path: Path
) -> None:
    assert run(monkeypatch, "score", "vqa-rad", tmp_path / "p.jsonl", "--data", shared_data / "slake") == 2
    told(capsys, "image_name", "looks like slake")


def test_the_benchmarks_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "benchmarks", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 20
    assert rows["pope"]["splits (default first)"].startswith("all, random")


def test_dry_run_plans_the_7b_model_without_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "llava-med-v1.5", "--dry-run") == 0
    out = capsys.readouterr().out
    for number in ("7,241,732,096", "20,979,712", "576"):
        assert number in out


@pytest.mark.parametrize("options", [["--fp8-frozen"], ["--set", "train.fp8_frozen=true"]])
def test_fp8_of_frozen_weights_has_a_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]) -> None:
    asked = []

    def train(settings: recipe.Recipe, *_: object) -> Manifest:
        asked.append(settings.train.fp8_frozen)
        return Manifest("train")

    monkeypatch.setattr("llavamed.train.run.train", train)
    assert run(monkeypatch, "train", "tiny", "--out", tmp_path, *options) == 0
    assert asked == [True]


def test_dry_run_says_hours_and_the_largest_pack_for_the_gpu_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "llava-med-v1.5-141gb", "--dry-run", "--gpu", "h200") == 0
    out = capsys.readouterr().out
    assert "an estimate at 40% of the 989 TFLOP/s that its datasheet gives, until measured" in out
    assert "recompute: selective; moments: bfloat16" in out
    for word in ("8.8", "5.0", "largest that fits", "on h200, 140 GiB", "12,288", "fits"):
        assert word in out
    assert run(monkeypatch, "train", "llava-med-v1.5", "--dry-run", "--gpu", "h2000") == 2
    assert "did you mean 'h200'" in capsys.readouterr().err


def test_help_answers_at_once() -> None:
    """The best of five in processor time, which is the wall clock's on an idle machine."""
    seconds = []
    for _ in range(5):
        began = os.times()
        subprocess.run([sys.executable, "-m", "llavamed.cli", "--help"], check=True, capture_output=True)
        ended = os.times()
        seconds.append(sum(ended[2:4]) - sum(began[2:4]))  # of children: user and system
    assert 0 < min(seconds) < 0.3, seconds


def test_doctor_prints_a_row_for_each_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "doctor", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"python", "torch, transformers", "disk", "extra [serve]"} <= {row["what"] for row in rows}


def test_tables_print_square_brackets_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "doctor") == 0
    assert "extra [serve]" in capsys.readouterr().out


def test_every_command_that_prints_tables_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared_data: Path, tmp_path: Path
) -> None:
    corpus, instruct = tmp_path / "corpus", tmp_path / "instruct"
    for arguments in (
        ("corpus", "build", shared_data / "jats_packages", "--out", corpus),
        ("corpus", "show", corpus),
        ("instruct", "generate", corpus, "--out", instruct, "--set", "instruct.domains=[other]"),
        ("instruct", "show", instruct),
        ("instruct", "import", shared_data / "vqa_rad", "--format", "vqa-rad", "--out", tmp_path / "rad.jsonl"),
        ("train", "llava-med-v1.5", "--dry-run"),
    ):
        assert run(monkeypatch, *arguments, "--json") == 0, arguments
        assert json.loads(capsys.readouterr().out), arguments
