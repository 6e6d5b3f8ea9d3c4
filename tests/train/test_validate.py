from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import folder as model_folder
from llavamed.model.chat import encode
from llavamed.model.parts import Assembled, build
from llavamed.recipe import ModelSection, StageSection, TrainSection, ValidationSection
from llavamed.records import Conversation
from llavamed.train import checkpoint, loop
from llavamed.train.data import Pixels, read_examples
from llavamed.train.loop import run_stage
from llavamed.train.validate import best_steps, hold_out, keep_rows, read_rows

LOOK = ValidationSection(every=3, held_out=3, samples=2)
Run = Callable[..., Manifest]


@pytest.fixture
def run(parts: ModelSection, data: Path, images: Path) -> Run:
    """Ten steps of the five records that are not held out."""

    def make(
        out: Path, look: ValidationSection = LOOK, score: Any = None, compile: bool = False, **stage: Any
    ) -> Manifest:
        keys = {"trains": ("projector", "language_model"), "learning_rate": 3e-3, "epochs": 5, "batch_size": 3, **stage}
        section = StageSection(data=str(data), images=str(images), **keys)
        train = TrainSection(max_tokens=128, tokens_per_pack=64, validation=look, compile=compile)
        assembled = build(parts, 0)
        pixels = Pixels(images, assembled.processor)
        examples = read_examples(data, pixels, assembled.processor, train.max_tokens)
        made_from = Manifest("stage", settings=section.model_dump())
        return run_stage(assembled, examples, pixels, "instruct", section, train, out, 0, made_from, score=score)

    return make


def test_held_out_records_are_not_trained_on_and_their_loss_is_the_models_own(
    run: Run, assembled: Assembled, conversations: list[Conversation], data: Path, images: Path, tmp_path: Path
) -> None:
    """The last look against transformers' loss of the saved model on the same records, one at a time."""
    made = run(tmp_path)
    pixels = Pixels(images, assembled.processor)
    trained, held_out = hold_out(read_examples(data, pixels, assembled.processor, 128), 3, seed=0)
    assert sorted(trained.ids + held_out.ids) == sorted(c.id for c in conversations)
    assert made.counts["examples"] == 5 * len(trained.ids)
    rows = read_rows(tmp_path / "validation.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    model: Any = model_folder.load(tmp_path).model
    total = count = 0.0
    for conversation in (c for c in conversations if c.id in held_out.ids):
        encoded = encode(assembled.processor, conversation)
        labels = np.where(encoded.supervised, encoded.input_ids, -100)[None]
        pictures = {}
        if conversation.images:
            pictures["pixel_values"] = torch.from_numpy(pixels.load(conversation.images[0])[None])
        with torch.no_grad():
            ids = torch.from_numpy(encoded.input_ids[None].astype(np.int64))
            out = model(input_ids=ids, labels=torch.from_numpy(labels.astype(np.int64)),
                        **pictures)  # fmt: skip
        total += float(out.loss) * encoded.supervised[1:].sum()
        count += encoded.supervised[1:].sum()
    assert rows[-1]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_samples_are_what_the_saved_model_says(run: Run, tmp_path: Path) -> None:
    run(tmp_path)
    rows = read_rows(tmp_path / "samples.jsonl")
    assert [row["step"] for row in rows] == [step for step in (3, 6, 9, 10) for _ in range(2)]
    last = rows[-1]
    assert last["question"].endswith(("image?", "grey?"))
    assert last["reference"].startswith("It is ")
    picture = Image.open(io.BytesIO(base64.b64decode(last["image"].partition(",")[2])))
    assert picture.size == (32, 32)


def test_looking_does_not_change_what_is_trained(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "looks")
    monkeypatch.setattr(loop._Run, "validate", lambda *_: False)
    run(tmp_path / "blind")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("looks", "blind")]
    assert weights[0] == weights[1]


def test_a_score_is_asked_for_at_each_look_and_leaves_the_model_training(run: Run, tmp_path: Path) -> None:
    seen = []

    def score(assembled: Assembled) -> tuple[str, float]:
        seen.append(assembled.model.training)
        return "made up", 100.0 / (1 + len(seen))

    run(tmp_path, score=score)
    rows = read_rows(tmp_path / "validation.jsonl")
    assert [(row["score_name"], row["score"]) for row in rows] == [("made up", 100 / n) for n in (2, 3, 4, 5)]
    assert not any(seen)


def test_the_best_step_is_kept_if_asked(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate that ruins the model after step 3 the stage leaves the model of step 3."""
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: next(losses))
    made = run(tmp_path / "best", LOOK.model_copy(update={"keep": "best"}))
    assert made.extra["model_of_step"] == 3
    monkeypatch.undo()
    weights: dict[str, Any] = {}
    original = loop._Run.validate

    def remember(self: Any, done: int) -> bool:
        if done == 3:
            weights.update({k: v.clone() for k, v in self.assembled.model.state_dict().items()})
        return original(self, done)

    monkeypatch.setattr(loop._Run, "validate", remember)
    run(tmp_path / "last")
    kept = model_folder.load(tmp_path / "best").model.state_dict()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)


def test_looking_compiles_nothing_anew(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out packs have no gradient, and an answer is of another length at every word: each a reason to."""
    counts, graphs = torch._dynamo.utils.counters["stats"], []
    validate, compile_with = loop._Run.validate, torch.nn.Module.compile

    def counted(self: Any, done: int) -> bool:
        before = counts["unique_graphs"]
        best = validate(self, done)
        graphs.append((before, counts["unique_graphs"]))
        return best

    monkeypatch.setattr(loop._Run, "validate", counted)
    # traced and guarded as ever, but what is traced is run as it is: the usual backend needs a C++ compiler
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **keys: compile_with(self, backend="eager", **keys))
    run(tmp_path, compile=True)
    assert len(read_rows(tmp_path / "samples.jsonl")) == 8
    assert len(graphs) == 10
    assert all(before == after > 0 for before, after in graphs)


@pytest.mark.parametrize("damage", ["flipped byte", "gone"])
def test_a_best_checkpoint_that_is_damaged_or_gone_gives_way_to_the_next_best(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """Of the steps 3, 6 and 9 two are left in checkpoints, 10 in memory; 6 is the best and 9 better than 10."""
    losses = iter([4.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: next(losses))
    finish = loop._Run.finish

    def damaged(self: Any, *rest: Any) -> Manifest:
        checkpoint.save(tmp_path / "checkpoints", 9, self.state, self.fingerprint, 2, spare=6)
        best = tmp_path / "checkpoints" / "step-00000006"
        if damage == "gone":
            shutil.rmtree(best)
        else:
            file = next(best.glob("*.safetensors"))
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        return finish(self, *rest)

    monkeypatch.setattr(loop._Run, "finish", damaged)
    made = run(tmp_path, LOOK.model_copy(update={"keep": "best"}))
    assert made.extra["model_of_step"] == 9
    assert "the checkpoint of step 6, the best, is gone or damaged; the model is that of step 9" in (
        capsys.readouterr().err
    )


def test_without_a_whole_checkpoint_the_last_weights_are_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "last")
    losses = iter([1.0, 2.0, 3.0, float("nan")])
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: next(losses))
    monkeypatch.setattr(checkpoint, "is_whole", lambda *_: False)
    made = run(tmp_path / "best", LOOK.model_copy(update={"keep": "best"}))
    assert made.extra["model_of_step"] == 10
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("last", "best")]
    assert weights[0] == weights[1]


def test_too_many_held_out_records_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.validation\.held_out is 5, more than half of the 8 records"):
        run(tmp_path, LOOK.model_copy(update={"held_out": 5}))


def test_rows_after_a_crash_are_whole_and_forgotten_beyond_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    path.write_text('{"step": 3, "loss": 2.0}\n{"step": 6, "loss": 1.0}\n{"step": 9, "lo')
    assert [row["step"] for row in read_rows(path)] == [3, 6]
    assert best_steps(read_rows(path)) == [6, 3]
    keep_rows(path, 5)
    assert path.read_text() == '{"step": 3, "loss": 2.0}\n'
    assert best_steps([]) == []
