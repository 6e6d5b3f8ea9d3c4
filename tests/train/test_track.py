from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llavamed.errors import InputError
from llavamed.train import track
from llavamed.train.track import Trackers

ROW = {"step": 3, "loss": 1.5, "learning_rates": {"projector": 1e-3}, "mfu": None, "peak": "a name", "examples": 8}
NUMBERS = {"loss": 1.5, "learning_rates/projector": 1e-3, "examples": 8}
SETTINGS = {"learning_rate": 1e-3, "trains": ["projector"]}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What stand-ins for W&B, MLflow and Trackio were called with."""
    made: list[tuple[Any, ...]] = []

    def note(name: str, result: Any = None) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append((name, arguments, options))
            return result

        return call

    run = SimpleNamespace(id="abc", log=note("log"), finish=note("finish"), info=SimpleNamespace(run_id="def"))
    modules = {
        "wandb": {"init": note("init", run), "Settings": lambda **options: options},
        "trackio": {"init": note("init", run)},
        "mlflow": {
            "start_run": note("start_run", run),
            **{name: note(name) for name in ("set_experiment", "log_params", "log_metrics", "end_run")},
        },
    }
    for name, functions in modules.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_tensorboard_writes_events_that_it_can_read(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Trackers(["tensorboard"], tmp_path, "align", SETTINGS) as trackers:
        for step in (1, 2, 3):
            trackers.log({**ROW, "step": step, "loss": 1.0 / step})
    with Trackers(["tensorboard"], tmp_path, "align", SETTINGS, done=2) as trackers:  # resumed: step 3 is done again
        trackers.log({**ROW, "step": 3, "loss": 7.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "align")).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(NUMBERS)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_wandb_gets_numbers_and_settings_and_neither_code_nor_terminal(
    calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    with Trackers(["wandb"], tmp_path, "align", SETTINGS) as trackers:
        trackers.log(ROW)
    (_, _, options), logged, finished = calls
    assert options["config"] == SETTINGS
    assert options["settings"] == {"console": "off", "disable_git": True, "disable_code": True}
    assert options["id"] is None
    assert logged == ("log", (NUMBERS,), {"step": 3})
    assert finished == ("finish", (), {"exit_code": 0})
    calls.clear()
    Trackers(["wandb"], tmp_path, "align", SETTINGS, done=2)
    assert calls[0][2]["id"] == "abc"


def test_mlflow_goes_on_as_the_same_run_and_is_told_of_a_failure(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    trackers = Trackers(["mlflow"], tmp_path, "align", SETTINGS)
    trackers.log(ROW)
    trackers.__exit__(RuntimeError, None, None)
    assert [call[0] for call in calls] == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
    assert calls[3] == ("log_metrics", (NUMBERS,), {"step": 3})
    assert calls[4] == ("end_run", ("FAILED",), {})
    calls.clear()
    Trackers(["mlflow"], tmp_path, "align", SETTINGS, done=2)
    assert [call[0] for call in calls] == ["set_experiment", "start_run"]
    assert calls[1][2]["run_id"] == "def"


def test_trackio_goes_on_as_the_same_run(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    names = []
    for done, resume in ((0, "never"), (2, "allow"), (0, "never")):
        calls.clear()
        with Trackers(["trackio"], tmp_path, "align", SETTINGS, done) as trackers:
            trackers.log(ROW)
        assert [call[0] for call in calls] == ["init", "log", "finish"]
        assert calls[0][2]["resume"] == resume
        names.append(calls[0][2]["name"])
    assert names[0] == names[1] != names[2]
    assert names[0].startswith(f"{tmp_path.name}-align-")


def test_a_package_that_is_missing_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()  # a folder of that name, such as MLflow leaves behind, is not the package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("mlflow", "trackio"):
        with pytest.raises(InputError, match=rf"{name} is not installed; pip install {name} .*llavamed\[track\]"):
            track.check([name])
    track.check([])


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_dropped_and_told_once(
    where: str, calls: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    module: Any = sys.modules["trackio"]
    setattr(module if where == "init" else module.init(), where, fail)
    with Trackers(["trackio", "mlflow"], tmp_path, "align", SETTINGS) as trackers:
        for step in (1, 2, 3):
            trackers.log({**ROW, "step": step})
    told = "trackio: dropped, the run goes on without it (no network)\n"
    assert capsys.readouterr().err == told
    assert [call[0] for call in calls].count("log_metrics") == 3
