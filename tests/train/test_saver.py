"""Checkpoints written beside training: of the state as it was, and nothing lost on the way."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from llavamed.errors import InputError
from llavamed.train import checkpoint, saver
from llavamed.train.ranks import Ranks
from llavamed.train.saver import Saver


def _state(value: float) -> dict[str, torch.Tensor]:
    return {"weight/a": torch.full((3, 4), value), "moment/a": torch.full((3, 4), -value)}


def _saver(folder: Path, beside: bool | None = True, keep: int = 5) -> Saver:
    return Saver(folder, "abc", keep, Ranks(), beside)


def _left(made: Saver, error: BaseException | None = None) -> None:
    with made:
        if error is not None:
            raise error


class Gate:
    """`checkpoint.save` that waits until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.saves = Event(), 0
        save = checkpoint.save

        def gated(*args: Any) -> Path:
            assert self.open.wait(60)
            self.saves += 1
            return save(*args)

        monkeypatch.setattr(checkpoint, "save", gated)


def test_what_is_written_is_the_state_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, state, made = Gate(monkeypatch), _state(1.0), _saver(tmp_path)
    path = made.save(3, state, None)
    for tensor in state.values():
        tensor.add_(1)  # training goes on
    assert checkpoint.latest(tmp_path, "abc") is None
    gate.open.set()
    made.wait()
    assert checkpoint.latest(tmp_path, "abc") == (3, path)
    assert checkpoint.matches(path, _state(1.0))


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = Gate(monkeypatch), _saver(tmp_path, keep=1)
    made.save(1, _state(1), None)
    gate.open.set()
    made.save(2, _state(2), None)
    assert gate.saves >= 1
    made.save(3, _state(3), 2)
    made.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("way", ["wait", "save", "leave"])
def test_an_error_of_the_thread_is_raised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def full(*_: Any) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save", full)
    made = _saver(tmp_path)
    made.save(1, _state(1), None)
    ways = {"wait": made.wait, "save": lambda: made.save(2, _state(2), None), "leave": lambda: _left(made)}
    with pytest.raises(OSError, match="no space left"):
        ways[way]()
    made.wait()


def test_a_full_disk_is_told_by_the_loop(tmp_path: Path, small_files: None) -> None:
    made = _saver(tmp_path)
    made.save(1, {"weight/a": torch.zeros(50_000)}, None)
    assert made._thread is not None
    made._thread.join()
    with pytest.raises(InputError, match="make room and run again"):
        made.check()
    made.wait()


def test_leaving_waits_unless_it_is_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = Gate(monkeypatch), _saver(tmp_path)
    made.save(1, _state(1), None)
    with pytest.raises(KeyboardInterrupt):
        _left(made, KeyboardInterrupt())
    assert gate.saves == 0
    gate.open.set()
    made.save(2, _state(2), None)
    with pytest.raises(ValueError, match="loss"):
        _left(made, ValueError("the loss is not finite"))
    assert checkpoint.latest(tmp_path, "abc") == (2, checkpoint.at(tmp_path, 2))


@pytest.mark.parametrize(("beside", "world"), [(None, 1), (False, 1), (True, 2)])
def test_the_loop_writes_where_a_thread_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool | None, world: int
) -> None:
    saves = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, done, state, *_: saves.append(state))
    state = _state(1)
    Saver(tmp_path, "abc", 2, Ranks(world=world), beside).save(1, state, None)
    assert saves == [state]  # itself, not a copy


class OnGpu:
    """As much of a tensor on a GPU as the decision looks at."""

    is_cuda, nbytes = True, 10 * 2**30


@pytest.mark.parametrize(("room", "helps"), [(64, True), (13, False), (0, False)])
def test_on_a_gpu_a_thread_helps_if_the_host_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, helps: bool
) -> None:
    monkeypatch.setattr(saver, "_available_memory", lambda: room * 2**30)
    state: Any = {"weight/a": OnGpu()}
    assert _saver(tmp_path, None)._in_thread(state) is helps


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 0),
        ({"proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   50 kB\n"}, 50 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable: 50 kB\n",
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "2000\n",
            },
            50 * 1024,
        ),
        (  # a container
            {
                "proc/meminfo": "MemAvailable: 50 kB\n",
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "9000\n",
                "sys/fs/cgroup/memory.current": "2000\n",
                "sys/fs/cgroup/memory.stat": "anon 1500\ninactive_file 500\n",
            },
            7500,
        ),
        (  # a job of Slurm, within a tighter limit of its user
            {
                "proc/meminfo": "MemAvailable: 50 kB\n",
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/memory.max": "9000\n",
                "sys/fs/cgroup/user/job/memory.current": "2000\n",
                "sys/fs/cgroup/user/memory.max": "10000\n",
                "sys/fs/cgroup/user/memory.current": "4000\n",
            },
            6000,
        ),
        (  # version 1
            {
                "proc/meminfo": "MemAvailable: 50 kB\n",
                "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/job\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "8000\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "7000\n",
                "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\n",
            },
            2000,
        ),
    ],
)
def test_the_room_is_that_of_the_machine_or_the_container(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert saver._available_memory(tmp_path) == expected
