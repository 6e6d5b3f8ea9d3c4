"""The metrics of a run in the tracker that people already look at: TensorBoard, W&B, MLflow, Trackio.

    train:
      trackers: [tensorboard, mlflow]

`metrics.jsonl` is the record and is always written; a tracker gets a copy of its numbers. So a tracker may never cost
the run anything: a package that is missing is told before the first step, and whatever else goes wrong, then or in
the ninth hour (no login, no network, a full disk), is said once, and that tracker is dropped.

What is sent: the numbers of each step, and the stage's settings without the paths of its data. No names of records,
no environment, no source code, no output of the terminal. Where it is sent is the tracker's own business
(WANDB_MODE, WANDB_API_KEY, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID...); without these TensorBoard, Trackio and MLflow
keep everything on this machine. (MLflow's small package, mlflow-skinny, cannot: it needs a server.) A run that is
resumed goes on in the tracker as the same run.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from llavamed.errors import InputError

PROJECT = "llavamed"


class _Tracker(Protocol):
    def log(self, step: int, numbers: dict[str, float]) -> None: ...

    def close(self, completed: bool) -> None: ...


def check(names: Iterable[str]) -> None:
    """Raises InputError with the command that installs what is missing."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without origin: some folder of that name
            raise InputError(
                f"train.trackers: {name} is not installed; pip install {name} "
                "(all of them: pip install 'llavamed[track]'), or take it out of train.trackers"
            )


class Trackers:
    """Those of one stage; `folder` is the run's, `run` its name there, `done` the steps it goes on after."""

    def __init__(
        self, names: Iterable[str], folder: Path, run: str, settings: Mapping[str, Any], done: int = 0
    ) -> None:
        self._open: dict[str, _Tracker] = {}
        for name in names:
            try:
                self._open[name] = _KINDS[name](folder / name, run, dict(settings), done)
            except Exception as error:  # noqa: BLE001 - other people's code; the run must not depend on it
                _say(name, error)

    def log(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row that has a `step`; a mapping in it becomes one number for each of its keys."""
        numbers = _numbers(row)
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(row["step"], numbers)
            except Exception as error:  # noqa: BLE001 - as above
                del self._open[name]
                _say(name, error)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.close(kind is None)
            except Exception as error:  # noqa: BLE001 - as above
                _say(name, error)


class _TensorBoard:
    def __init__(self, folder: Path, run: str, settings: dict[str, Any], done: int) -> None:
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(folder / run, purge_step=done + 1)
        self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=1, default=str)}\n```", done)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def close(self, completed: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, run: str, settings: dict[str, Any], done: int) -> None:
        wandb = import_module("wandb")
        quiet = wandb.Settings(console="off", disable_git=True, disable_code=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            name=_title(folder, run),
            id=_remembered(folder, run) if done else None,
            resume="allow",
            dir=folder.parent,  # it adds "wandb"
            config=settings,
            settings=quiet,
        )
        _remember(folder, run, self._run.id)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self, completed: bool) -> None:
        self._run.finish(exit_code=0 if completed else 1)


class _Mlflow:
    def __init__(self, folder: Path, run: str, settings: dict[str, Any], done: int) -> None:
        self._mlflow = import_module("mlflow")
        before = _remembered(folder, run) if done else None
        self._mlflow.set_experiment(PROJECT)
        started = self._mlflow.start_run(run_id=before, run_name=None if before else _title(folder, run))
        if before is None:  # settings cannot be sent twice
            self._mlflow.log_params(settings)
            _remember(folder, run, started.info.run_id)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._mlflow.log_metrics(numbers, step=step)

    def close(self, completed: bool) -> None:
        self._mlflow.end_run("FINISHED" if completed else "FAILED")


class _Trackio:
    def __init__(self, folder: Path, run: str, settings: dict[str, Any], done: int) -> None:
        trackio = import_module("trackio")
        before = _remembered(folder, run) if done else None
        name = before or f"{_title(folder, run)}-{secrets.token_hex(3)}"  # it knows its runs by their names alone
        self._run = trackio.init(project=PROJECT, name=name, config=settings, resume="allow" if before else "never")
        _remember(folder, run, name)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self, completed: bool) -> None:
        self._run.finish()


_KINDS: dict[str, type[_TensorBoard] | type[_Wandb] | type[_Mlflow] | type[_Trackio]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


def _numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"loss": 1, "learning_rates": {"projector": 2}, "mfu": None} -> {"loss": 1, "learning_rates/projector": 2}."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            found[f"{prefix}{key}"] = value
    return found


def _title(folder: Path, run: str) -> str:
    """What people read in a list of runs: the run's folder and the stage."""
    return f"{folder.resolve().parent.name}-{run}"


def _remember(folder: Path, run: str, identity: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run}.id").write_text(identity, encoding="utf-8")


def _remembered(folder: Path, run: str) -> str | None:
    """What the tracker called this run before it was interrupted."""
    path = folder / f"{run}.id"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _say(name: str, error: Exception) -> None:
    print(f"{name}: dropped, the run goes on without it ({' '.join(str(error).split())})", file=sys.stderr)
