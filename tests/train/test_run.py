from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.model import folder as model_folder
from llavamed.model.parts import build
from llavamed.recipe import ModelSection, Recipe, ValidationSection, changed
from llavamed.records import Conversation, read_jsonl
from llavamed.train import loop
from llavamed.train.run import train
from llavamed.train.validate import read_rows

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(parts: ModelSection, data: Path, images: Path) -> MakeRecipe:
    """Two short stages; keyword arguments change a key of `instruct`."""

    def make(**instruct: Any) -> Recipe:
        shared = {"data": str(data), "images": str(images), "batch_size": 4, "epochs": 1}
        stages = {
            "align": {**shared, "trains": ["projector"]},
            "instruct": {**shared, "trains": ["projector", "language_model"], **instruct},
        }
        tree = {"name": "small", "model": parts.model_dump(), "train": {"max_tokens": 128, **stages}}
        return Recipe.model_validate(tree)

    return make


@pytest.fixture
def stages_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that optimizer steps were made in, one entry a step."""
    names: list[str] = []
    original = loop._Run.step

    def step(self: Any, *rest: Any) -> dict[str, Any]:
        names.append(self.name)
        return original(self, *rest)

    monkeypatch.setattr(loop._Run, "step", step)
    return names


def test_the_curriculum_leaves_a_run_folder_that_every_later_step_can_use(
    recipe: MakeRecipe, parts: ModelSection, tmp_path: Path
) -> None:
    made = train(recipe(), tmp_path)
    assert made.counts == {"align_steps": 2, "align_examples": 8, "instruct_steps": 2, "instruct_examples": 8}
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == recipe().model_dump(mode="json")
    untrained, align, instruct = (
        model_folder.load(tmp_path / name).model.state_dict() for name in ("untrained", "align", "instruct")
    )
    fresh = build(parts, 0).model.state_dict()
    assert all(torch.equal(untrained[name], fresh[name]) for name in fresh)
    moved = {name for name in fresh if not torch.equal(untrained[name], align[name])}
    assert moved
    assert all("projector" in name for name in moved)
    assert any("language_model" in name for name in fresh if not torch.equal(align[name], instruct[name]))
    assert all(torch.equal(fresh[name], instruct[name]) for name in fresh if "vision_tower" in name)
    page = (tmp_path / "report.html").read_text()
    assert all(word in page for word in ("align", "instruct", "Learning rate", "Throughput", "data:image/png"))
    body = manifest.require(tmp_path, "train", "")
    assert body["counts"] == made.counts
    assert manifest.require(tmp_path / "align", "stage", "")["settings"]["name"] == "align"


def test_running_again_repeats_nothing(recipe: MakeRecipe, tmp_path: Path, stages_run: list[str]) -> None:
    first = train(recipe(), tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    stages_run.clear()
    again = train(recipe(), tmp_path)
    assert stages_run == []
    assert (again.fingerprint, again.counts) == (first.fingerprint, first.counts)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps


def test_a_changed_stage_repeats_that_stage_alone(recipe: MakeRecipe, tmp_path: Path, stages_run: list[str]) -> None:
    train(recipe(), tmp_path)
    stages_run.clear()
    train(recipe(learning_rate=5e-4), tmp_path)
    assert set(stages_run) == {"instruct"}
    assert train(recipe(), tmp_path / "apart").counts == train(recipe(), tmp_path).counts
    weights = "instruct/model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (tmp_path / "apart" / weights).read_bytes()


def test_changed_data_repeat_the_stages_from_there_on(
    recipe: MakeRecipe, tmp_path: Path, stages_run: list[str], data: Path
) -> None:
    own = tmp_path / "own.jsonl"
    shutil.copy(data, own)
    train(recipe(data=str(own)), tmp_path / "run")
    stages_run.clear()
    own.write_text("".join(own.read_text().splitlines(keepends=True)[:4]))
    assert train(recipe(data=str(own)), tmp_path / "run").counts["instruct_examples"] == 4
    assert set(stages_run) == {"instruct"}


def test_settings_that_do_not_change_the_result_repeat_nothing(
    recipe: MakeRecipe, tmp_path: Path, stages_run: list[str]
) -> None:
    train(recipe(), tmp_path)
    stages_run.clear()
    section = recipe().train.model_copy(update={"checkpoint_minutes": 1.0, "keep_checkpoints": 5})
    train(recipe().model_copy(update={"train": section}), tmp_path)
    assert stages_run == []


def test_a_run_interrupted_in_its_second_stage_goes_on_there(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages_run: list[str]
) -> None:
    train(recipe(), tmp_path / "straight")
    finish = loop._Run.finish

    def crash(self: Any, made_from: Any) -> Any:
        if self.name == "instruct":
            raise OSError("the machine went away")
        return finish(self, made_from)

    monkeypatch.setattr(loop._Run, "finish", crash)
    with pytest.raises(OSError, match="went away"):
        train(recipe(), tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "manifest.json").exists()
    monkeypatch.setattr(loop._Run, "finish", finish)
    stages_run.clear()
    train(recipe(), tmp_path / "resumed")
    assert set(stages_run) == {"instruct"}
    weights = "instruct/model/model.safetensors"
    assert (tmp_path / "resumed" / weights).read_bytes() == (tmp_path / "straight" / weights).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, r"stage 'instruct' has no data; set train\.instruct\.data"),
        ({"data": "absent.jsonl"}, r"absent\.jsonl: no such file; set train\.instruct\.data"),
        ({"images": "absent"}, r"absent: no such folder; set train\.instruct\.images"),
    ],
)
def test_missing_paths_name_the_key_to_set_before_any_stage_runs(
    recipe: MakeRecipe, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(recipe(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_stages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no stage to train; set one of train\.align"):
        train(Recipe(name="empty"), tmp_path)


def test_a_tracker_gets_every_step_and_one_that_is_missing_stops_the_run_before_it_begins(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(changed(recipe(), {"train.trackers": ["tensorboard"]}), tmp_path / "run")
    for name in ("align", "instruct"):
        events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard" / name)).Reload()
        told = {e.step: e.value for e in events.Scalars("loss")}
        written = {row["step"]: row["loss"] for row in read_rows(tmp_path / "run" / name / "metrics.jsonl")}
        assert told == pytest.approx(written)
    monkeypatch.setattr("llavamed.train.track.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install wandb"):
        train(changed(recipe(), {"train.trackers": ["wandb"]}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_bad_records_of_any_stage_stop_the_run_before_its_first_step(
    recipe: MakeRecipe, tmp_path: Path, write_data: Callable[[list[Conversation]], Path], stages_run: list[str],
    conversations: list[Conversation],
) -> None:  # fmt: skip
    bad = write_data(
        [*conversations, *(Conversation(f"mute-{n}", (), conversations[-1].messages[:1]) for n in range(5))]
    )
    both = changed(recipe(data=str(bad)), {"train.align.data": str(bad)})
    with pytest.raises(InputError, match=r"5 of 13 records.*'mute-0'.*5 of 13 records.*All of them: ") as caught:
        train(both, tmp_path / "run")
    assert stages_run == []
    assert not (tmp_path / "run").exists()
    listed = Path(str(caught.value).rpartition("All of them: ")[2])
    assert listed == tmp_path / "run-bad_records.jsonl"
    rows = list(read_jsonl(listed))
    assert [(row["stage"], row["record"]) for row in rows] == [
        (stage, f"mute-{n}") for stage in ("align", "instruct") for n in range(5)
    ]
    assert all("supervised" in row["reason"] or "answer" in row["reason"] for row in rows), rows


def test_too_many_held_out_records_stop_the_run_before_its_first_step(
    recipe: MakeRecipe, tmp_path: Path, stages_run: list[str]
) -> None:
    section = recipe().train.model_copy(update={"validation": ValidationSection(every=1, held_out=5)})
    with pytest.raises(InputError, match="held_out is 5, more than half of the 8 records"):
        train(recipe().model_copy(update={"train": section}), tmp_path / "run")
    assert stages_run == []
    assert not (tmp_path / "run").exists()


def test_a_lost_stage_is_made_again_although_the_run_says_done(
    recipe: MakeRecipe, tmp_path: Path, stages_run: list[str]
) -> None:
    train(recipe(), tmp_path)
    weights = (tmp_path / "instruct/model/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "instruct")
    shutil.rmtree(tmp_path / "untrained")
    stages_run.clear()
    train(recipe(), tmp_path)
    assert set(stages_run) == {"instruct"}
    assert (tmp_path / "instruct/model/model.safetensors").read_bytes() == weights
    assert model_folder.find(tmp_path / "untrained")


def test_stages_after_one_that_is_made_again_are_unfinished_from_the_start(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages_run: list[str]
) -> None:
    train(recipe(), tmp_path)
    (tmp_path / "align" / "model" / "config.json").unlink()

    def crash(*_: Any) -> None:
        raise OSError("the machine went away")

    monkeypatch.setattr(loop._Run, "finish", crash)
    with pytest.raises(OSError, match="went away"):
        train(recipe(), tmp_path)
    with pytest.raises(InputError, match="a run without a finished stage"):
        model_folder.find(tmp_path)
    monkeypatch.undo()
    train(recipe(), tmp_path)
    assert model_folder.find(tmp_path) == tmp_path / "instruct" / "model"


def test_what_replaces_a_finished_model_is_told_with_the_reason(
    recipe: MakeRecipe, tmp_path: Path, data: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, pictures = tmp_path / "own.jsonl", tmp_path / "pictures"
    shutil.copy(data, own)
    shutil.copytree(images, pictures)
    where = {"data": str(own), "images": str(pictures)}
    out = tmp_path / "run"
    train(recipe(**where), out)
    assert "replaced" not in capsys.readouterr().err
    (pictures / "red.png").write_bytes((images / "red.png").read_bytes() + b"\0")
    train(recipe(**where, learning_rate=5e-4), out)
    told = capsys.readouterr().err
    assert "train align: finished already, skipped" in told
    why = f"learning_rate 0.001 -> 0.0005, {pictures} changed"
    assert f"train instruct: its finished model is replaced: {why}\n" in told


def test_the_folder_of_another_recipe_is_left_alone(recipe: MakeRecipe, tmp_path: Path, stages_run: list[str]) -> None:
    train(recipe(), tmp_path / "run")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    stages_run.clear()
    with pytest.raises(InputError, match=r"holds the run of recipe 'small', this one is 'other'; give another --out"):
        train(recipe().model_copy(update={"name": "other"}), tmp_path / "run")
    with pytest.raises(InputError, match="not empty and not made by llavamed"):
        train(recipe(), tmp_path)
    assert stages_run == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps


def test_checkpoints_that_a_killed_finish_left_are_dropped(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe(), tmp_path)
    left = tmp_path / "align" / "checkpoints" / "step-00000001"
    left.mkdir(parents=True)
    manifest.begin(tmp_path, "train")  # killed before the run's own manifest
    train(recipe(), tmp_path)
    assert not left.parent.exists()
