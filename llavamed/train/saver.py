"""Who writes a checkpoint: the loop, which waits for the disk, or a thread beside it while training goes on.

In: the state after a step. Out: its checkpoint (`checkpoint.py`), now or soon. The trained parameters of a 7B model and
their moments are 84 GB in float32, to be hashed and written every `checkpoint_minutes`. So the state is copied into
the host's memory and a thread writes the copy. That helps where the state is on a GPU and the host has room for it; on
a CPU the thread would take from training what it saves, so there the loop writes itself.

The hard thing is that only what is on the disk counts: who reads a checkpoint back, or leaves the run because one was
written, has to `wait` first. What went wrong in the thread is raised there, or at the next save. A second save waits
for the first, so there is one copy at most.

Several ranks write together, each its part, and keep in step by messages; a thread's would cross with those of
training. They write in the loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from types import TracebackType

import torch

from llavamed.train import checkpoint
from llavamed.train.ranks import Ranks

_SPARE_MEMORY = 4 * 2**30  # bytes that a copy must leave free
# where control groups stand; the files with a group's limit and use; what its statistics call unused cached files
_CGROUP_2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_CGROUP_1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class Saver:
    """Writes checkpoints of one stage into `folder`; `beside` None: in a thread where that helps.

    A context manager: leaving it waits for what is being written, but an interrupt does not and loses that checkpoint.
    """

    def __init__(self, folder: Path, made_from: str, keep: int, ranks: Ranks, beside: bool | None) -> None:
        self.folder, self.made_from, self.keep, self.ranks, self.beside = folder, made_from, keep, ranks, beside
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save(self, done: int, state: Mapping[str, torch.Tensor], spare: int | None) -> Path:
        """The checkpoint of `done` steps, or the promise of it; removes older ones as `checkpoint.save` does."""
        self.wait()
        if self._in_thread(state):
            copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
            self._thread = Thread(target=self._run, args=(done, copies, spare), name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write(done, state, spare)
        return checkpoint.at(self.folder, done)

    def wait(self) -> None:
        """Return once everything is on the disk, or raise what kept it from getting there."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the thread so far, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not KeyboardInterrupt:
            self.wait()

    def _in_thread(self, state: Mapping[str, torch.Tensor]) -> bool:
        if self.ranks.world > 1:
            return False
        if self.beside is not None:
            return self.beside
        size = sum(tensor.nbytes for tensor in state.values() if tensor.is_cuda)
        return 0 < size < _available_memory() - _SPARE_MEMORY

    def _run(self, done: int, state: Mapping[str, torch.Tensor], spare: int | None) -> None:
        try:
            self._write(done, state, spare)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the loop raises it
            self._error = error

    def _write(self, done: int, state: Mapping[str, torch.Tensor], spare: int | None) -> None:
        checkpoint.save(self.folder, done, state, self.made_from, self.keep, self.ranks, spare)


def _available_memory(root: Path = Path("/")) -> int:
    """Bytes that the machine could give without swapping, or this job may still take; 0 where neither is said."""
    said = re.findall(r"MemAvailable: +(\d+)", _text(root / "proc/meminfo"))
    return min([*(int(kibibytes) * 1024 for kibibytes in said), *_job_memory(root)], default=0)


def _job_memory(root: Path) -> Iterator[int]:
    """What each limit on this process leaves it: of its control group and of those above, as a container, Slurm or
    systemd set them, in version 2 or 1. Cached files that nobody uses count as free."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit, usage, idle = _CGROUP_1 if controllers else _CGROUP_2
        groups = [Path(path), *Path(path).parents]
        for folder in (root / mount / str(group).lstrip("/") for group in groups):
            most, used = (_text(folder / name).strip() for name in (limit, usage))
            if most.isdecimal() and used.isdecimal():
                cached = re.search(rf"^{idle} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                yield max(0, int(most) - int(used) + (int(cached[1]) if cached else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
