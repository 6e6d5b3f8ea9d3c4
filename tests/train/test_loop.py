from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import folder as model_folder
from llavamed.model.parts import Assembled, build
from llavamed.recipe import ModelSection, StageSection, TrainSection, ValidationSection
from llavamed.train import loop
from llavamed.train import stop as stop_module
from llavamed.train.data import Pixels, read_examples
from llavamed.train.loop import run_stage
from llavamed.train.meter import TIMED
from llavamed.train.validate import keep_rows, read_rows

TRAIN = TrainSection(max_tokens=128, tokens_per_pack=64)
Run = Callable[..., Manifest]


@pytest.fixture
def run(parts: ModelSection, data: Path, images: Path) -> Run:
    """Train a fresh model to `out` for ten steps of three packs or so."""

    def make(out: Path, train: TrainSection = TRAIN, resume: bool = True, seed: int = 0, **stage: Any) -> Manifest:
        keys = {"trains": ("projector", "language_model"), "learning_rate": 3e-3, "epochs": 5, "batch_size": 4, **stage}
        section = StageSection(data=str(data), images=str(images), **keys)
        made_from = Manifest("stage", settings={**section.model_dump(), "seed": seed})
        return _train(build(parts, 0), section, train, out, seed, made_from, resume)

    return make


def _train(assembled: Assembled, section: StageSection, train: TrainSection, *rest: Any) -> Manifest:
    pixels = Pixels(Path(str(section.images)), assembled.processor)
    examples = read_examples(Path(str(section.data)), pixels, assembled.processor, train.max_tokens)
    return run_stage(assembled, examples, pixels, "instruct", section, train, *rest)


def _curve(out: Path) -> list[dict[str, Any]]:
    """The metrics but for what a clock or the machine decides."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_rows(out / "metrics.jsonl")]


def _weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something right after the optimizer update of `step` (counted from 1)."""
    original = loop._Run.step

    def step_and_act(self: Any, number: int, *rest: Any) -> dict[str, Any]:
        row = original(self, number, *rest)
        if number + 1 == step:
            action()
        return row

    monkeypatch.setattr(loop._Run, "step", step_and_act)


def test_a_stage_leaves_metrics_model_and_manifest(run: Run, tmp_path: Path) -> None:
    made = run(tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert {row["examples"] for row in rows} == {4}
    assert all(0 < row["fill"] <= 1 for row in rows)
    assert made.counts["examples"] == 40
    assert made.counts["tokens"] == sum(row["tokens"] for row in rows) > made.counts["supervised_tokens"] > 0
    assert made.extra["last_loss"] < made.extra["first_loss"]
    body = manifest.read(tmp_path)
    assert body is not None
    assert body["fingerprint"] == made.fingerprint
    assert "model/model.safetensors" in body["files"]
    assert not (tmp_path / "checkpoints").exists()
    assert model_folder.load(tmp_path).model.dtype == torch.float32


def test_the_same_seed_gives_the_same_curve_and_weights_and_another_seed_does_not(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, seed=seed)
    assert _curve(tmp_path / "a") == _curve(tmp_path / "b") != _curve(tmp_path / "c")
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b") != _weights(tmp_path / "c")


def test_a_stage_keeps_freed_memory_from_its_first_step_to_its_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    @contextlib.contextmanager
    def keeping() -> Iterator[None]:
        said.append("kept")
        yield
        said.append("given back")

    monkeypatch.setattr(loop, "freed_memory_kept", keeping)
    _stop_at(monkeypatch, 1, lambda: said.append("first step"))
    _stop_at(monkeypatch, 10, lambda: said.append("last step"))
    run(tmp_path)
    assert said == ["kept", "first step", "last step", "given back"]


def test_only_the_parts_that_train_change(run: Run, parts: ModelSection, tmp_path: Path) -> None:
    run(tmp_path, trains=("projector",))
    before, after = build(parts, 0).model.state_dict(), model_folder.load(tmp_path).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)


@pytest.mark.parametrize(
    "keys", [{}, {"optimizer_state": "bfloat16", "recompute": "selective"}, {"checkpoint_in_background": True}]
)
def test_a_crash_after_five_steps_and_a_resume_end_as_if_nothing_had_happened(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """The crash comes three steps after the last checkpoint, so those three are done again."""
    train = TRAIN.model_copy(update=keys)
    run(tmp_path / "straight", train)
    often = train.model_copy(update={"checkpoint_minutes": 1e-9})

    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    saved = loop._Run.save
    monkeypatch.setattr(loop._Run, "save", lambda self, done: saved(self, done) if done in (0, 2) else None)
    _stop_at(monkeypatch, 5, crash)
    with pytest.raises(Crash):
        run(tmp_path / "resumed", often)
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # a line cut short by the crash
    monkeypatch.undo()
    run(tmp_path / "resumed", train)
    assert _curve(tmp_path / "resumed") == _curve(tmp_path / "straight")
    assert _weights(tmp_path / "resumed") == _weights(tmp_path / "straight")


@pytest.mark.parametrize("in_background", [None, True])
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_is_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException],
    in_background: bool | None,
) -> None:  # fmt: skip
    run(tmp_path / "straight")
    before = signal.getsignal(number)

    def stop() -> None:
        """A scheduler's signal to all processes, and torchrun's copy of it."""
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)

    _stop_at(monkeypatch, 5, stop)
    with pytest.raises(raised) as caught:
        run(tmp_path / "resumed", TRAIN.model_copy(update={"checkpoint_in_background": in_background}))
    if raised is SystemExit:
        assert caught.value.code == 0  # type: ignore[attr-defined]
    assert signal.getsignal(number) is before
    assert (tmp_path / "resumed" / "checkpoints" / "step-00000005").is_dir()
    assert len(read_rows(tmp_path / "resumed" / "metrics.jsonl")) == 5
    monkeypatch.undo()
    run(tmp_path / "resumed")
    assert _curve(tmp_path / "resumed") == _curve(tmp_path / "straight")
    assert _weights(tmp_path / "resumed") == _weights(tmp_path / "straight")


def test_a_later_signal_stops_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "_SAME_SIGNAL", 0.05)
    ended = []

    def stop_and_insist() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        ended.append(False)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # the handler ends it; the signal may come to another thread first
        ended.append(True)

    _stop_at(monkeypatch, 5, stop_and_insist)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert ended == [False]
    assert not (tmp_path / "checkpoints" / "step-00000005").exists()


@pytest.mark.parametrize("change", [{"resume": False}, {"learning_rate": 1e-3}])
def test_without_resume_or_with_another_recipe_a_stage_is_begun_anew(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
) -> None:
    run(tmp_path / "straight", **change)
    _stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again")
    monkeypatch.undo()
    run(tmp_path / "again", **change)
    assert "going on after step" not in capsys.readouterr().err
    assert _curve(tmp_path / "again") == _curve(tmp_path / "straight")
    assert _weights(tmp_path / "again") == _weights(tmp_path / "straight")


def test_training_off_the_main_thread_leaves_signals_alone(run: Run, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    worker = threading.Thread(target=run, args=(tmp_path,), kwargs={"epochs": 1})
    worker.start()
    worker.join()
    assert (tmp_path / "manifest.json").is_file()
    assert signal.getsignal(signal.SIGTERM) is before


def test_checkpoints_are_there_until_the_stage_is_finished(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two must not leave a stage that is neither finished nor can be resumed."""
    written = Manifest.write

    def write(self: Manifest, folder: Path, **options: Any) -> None:
        if folder == tmp_path:
            assert list((tmp_path / "checkpoints").iterdir())
        written(self, folder, **options)

    monkeypatch.setattr(Manifest, "write", write)
    run(tmp_path, epochs=1)
    body = manifest.require(tmp_path, "stage", "")
    assert not any("checkpoints" in name for name in body["files"])
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_with_the_records_and_keeps_the_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    original = loop.PackLoss.forward

    def poisoned(self: Any, batch: Any) -> torch.Tensor:
        value = original(self, batch)
        if what == "loss":
            return value * float("nan")
        weight = self.model.lm_head.weight[0, 0]
        return value + (weight - weight.detach()).sqrt()  # adds 0, with an infinite slope

    monkeypatch.setattr(loop.PackLoss, "forward", poisoned)
    with pytest.raises(
        RuntimeError, match=rf"the {what} of step 1 is not finite, in the records .*c-red.*learning_rate"
    ):
        run(tmp_path, batch_size=8)


def test_a_full_disk_is_found_before_the_first_step(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"GB free.*keep_checkpoints"):
        run(tmp_path)
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_folder_never_grows_beyond_what_was_checked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    sizes, needed, put, ask = [], [], loop.checkpoint._to_disk, loop._Run._disk_bytes

    def measured(path: Path) -> None:  # called before a checkpoint gets its name and older ones go
        sizes.append(sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))
        put(path)

    monkeypatch.setattr(loop.checkpoint, "_to_disk", measured)
    monkeypatch.setattr(loop._Run, "_disk_bytes", lambda self: needed.append(ask(self)) or needed[-1])
    losses = iter([1.0, *[2.0] * 20])  # the first is the best and stays
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: next(losses))
    validation = ValidationSection(every=1, held_out=2, samples=0, keep=keep)
    run(tmp_path, TRAIN.model_copy(update={"checkpoint_minutes": 1e-9, "validation": validation}))
    assert len(sizes) > 10
    assert max(sizes) <= 1.05 * needed[0]  # names and shapes beside the numbers
    assert max(sizes) > 0.6 * needed[0]


def test_a_model_that_cannot_be_saved_and_read_back_does_not_start(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.checkpoint, "matches", lambda *_: False)
    with pytest.raises(RuntimeError, match="not what was written"):
        run(tmp_path)


@pytest.mark.parametrize("trains", [("projector",), ("projector", "language_model")])
def test_bfloat16_trains_float32_parameters_and_saves_bfloat16(
    trains: tuple[str, ...], parts: ModelSection, data: Path, images: Path, tmp_path: Path
) -> None:
    """A rate too small for bfloat16 weights to move by must add up over the steps."""
    wide = TRAIN.model_copy(update={"tokens_per_pack": 512})
    train = wide.model_copy(update={"dtype": "bfloat16"})
    keys: dict[str, Any] = {"trains": trains, "learning_rate": 3e-4, "epochs": 10, "batch_size": 8}
    section = StageSection(data=str(data), images=str(images), **keys)
    assembled = build(parts, 0, torch.bfloat16)
    made = _train(assembled, section, train, tmp_path / "bfloat16", 0, Manifest("stage"))
    exact = _train(build(parts, 0), section, wide, tmp_path / "float32", 0, Manifest("stage"))
    assert made.extra["last_loss"] == pytest.approx(exact.extra["last_loss"], rel=0.01)
    assert made.extra["last_loss"] < made.extra["first_loss"]
    assert {p.dtype for p in model_folder.load(tmp_path / "bfloat16").model.parameters()} == {torch.bfloat16}


def test_eight_examples_are_learnt_by_heart_and_need_their_images(run: Run, tmp_path: Path, images: Path) -> None:
    began = time.monotonic()
    made = run(tmp_path, TRAIN.model_copy(update={"tokens_per_pack": 512}), epochs=80, batch_size=8, learning_rate=1e-2)
    assert made.extra["last_loss"] < 0.02
    assert time.monotonic() - began < 60
    assembled = model_folder.load(tmp_path)
    assert _colour(assembled, images / "red.png") == "red"
    assert _colour(assembled, images / "blue.png") == "blue"


def _colour(assembled: Assembled, image: Path) -> str:
    from PIL import Image

    from llavamed.model.chat import prompt
    from llavamed.records import user

    text = prompt(assembled.processor, [user("What colour is the image?", images=1)])
    inputs = assembled.processor(images=Image.open(image), text=text, return_tensors="pt", add_special_tokens=False)
    out = assembled.model.generate(**inputs, max_new_tokens=8)
    answer: str = assembled.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip().removeprefix("It is ").partition(".")[0]


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"st')
    keep_rows(path, 3)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    assert np.array_equal([row["step"] for row in read_rows(tmp_path / "absent")], [])
