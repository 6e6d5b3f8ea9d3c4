"""Who writes a checkpoint: the loop, which waits for the disk, or a thread beside it while training goes on.

In: the state after a step. Out: its checkpoint (`checkpoint.py`), now or soon. The trained parameters of a 7B model and
their moments are 80 GB in float32: minutes of hashing and writing, each `checkpoint_minutes`. So the state is copied
into the host's memory, which takes seconds, and a thread writes the copy. That helps where the state is on a GPU and
the host has room for it; on a CPU the thread would take from training what it saves, so there the loop writes itself.

The hard thing is that only what is on the disk counts: who reads a checkpoint back, or leaves the run because one was
written, has to `wait` first. What went wrong in the thread is raised there, or at the next save. A second save waits
for the first, so there is one copy at most.

Several ranks write together, each its part, and keep in step by messages; a thread's would cross with those of
training. They write in the loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from types import TracebackType

import torch

from llavamed.train import checkpoint
from llavamed.train.ranks import Ranks

_SPARE_MEMORY = 4 * 2**30  # bytes that a copy must leave free


class Saver:
    """Writes checkpoints of one stage into `folder`; `beside` None: in a thread where that helps.

    A context manager: leaving it waits for what is being written, but an interrupt does not and loses that checkpoint.
    """

    def __init__(self, folder: Path, made_from: str, keep: int, ranks: Ranks, beside: bool | None) -> None:
        self.folder, self.made_from, self.keep, self.ranks, self.beside = folder, made_from, keep, ranks, beside
        self._thread: Thread | None = None
        self._error: Exception | None = None

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
        except Exception as error:  # noqa: BLE001  raised again in the loop
            self._error = error

    def _write(self, done: int, state: Mapping[str, torch.Tensor], spare: int | None) -> None:
        checkpoint.save(self.folder, done, state, self.made_from, self.keep, self.ranks, spare)


def _available_memory(root: Path = Path("/")) -> int:
    """Bytes that the machine could give without swapping, or a container may still take; 0 where neither is said."""
    left = [int(found[1]) * 1024] if (found := re.search(r"MemAvailable: +(\d+)", _text(root / "proc/meminfo"))) else []
    limit, used = (_text(root / "sys/fs/cgroup" / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdecimal() and used.isdecimal():
        left.append(int(limit) - int(used))
    return min(left, default=0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
