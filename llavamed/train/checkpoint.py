"""Checkpoints: a step that a run can go on from, or nothing.

In: named tensors and the number of steps done. Out: a folder `step-00001234/` with a safetensors file per rank and
a manifest that holds their sha256 and the fingerprint of the stage. It is written aside, forced to the disk,
and renamed: a folder with that name is whole. It is verified again before it is used, and a damaged one is
reported and passed over for the one before.

Written and read by PyTorch's distributed checkpoint, in its safetensors form: each rank writes what it holds, and a
run on another number of ranks reads what it needs. Nothing is pickled: safetensors and JSON cannot run code when
they are opened.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.train.ranks import Ranks, whole

_NAME = re.compile(r"step-(\d{8})")
_READ_BACK_BYTES = 2**30  # compared at a time
_FILE_BYTES = 2**30  # of a checkpoint: PyTorch puts a file together in memory before it writes it


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    made_from: str,
    keep: int,
    ranks: Ranks | None = None,
    spare: int | None = None,
) -> Path:
    """Write the checkpoint of `step` steps done and remove all but the last `keep` and that of step `spare`.

    `made_from` is the stage's fingerprint: `latest` finds only checkpoints of the same. Every rank has to call. Raises
    InputError where the disk does not take it; what was there before is still there.
    """
    ranks = ranks or Ranks()
    final = at(folder, step)
    aside = folder / f"{final.name}.tmp"
    if ranks.first:
        # saves that were killed, and what is ahead: damaged and passed over, about to be done again
        for old in (*folder.glob("step-*.tmp"), *(path for path in _found(folder) if path.name >= final.name)):
            shutil.rmtree(old)
        aside.mkdir(parents=True)
    ranks.wait()
    with (
        _without_advice(),
        _plainly(f"{aside}: cannot be written; make room and run again, the checkpoint before it is whole"),
    ):
        dcp.save(dict(tensors), storage_writer=_Writer(aside, tensors, ranks))  # type: ignore[attr-defined]
    ranks.wait()
    if ranks.first:
        with ranks.alive(f"putting the checkpoint of step {step} on the disk"):
            for path in aside.iterdir():
                _to_disk(path)
            manifest.Manifest("checkpoint", inputs={"stage": made_from}, counts={"steps": step}).write(aside)
            _to_disk(aside)
            aside.rename(final)
            _to_disk(folder)
            for older in _found(folder)[keep:]:
                if spare is None or older != at(folder, spare):
                    shutil.rmtree(older)
    ranks.wait()
    return final


def at(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` steps done is."""
    return folder / f"step-{step:08d}"


def latest(folder: Path, made_from: str) -> tuple[int, Path] | None:
    """Steps done and path of the newest whole checkpoint of this stage, or None. Damaged ones are reported."""
    whole_ones = (path for path in _found(folder) if is_whole(path, made_from))
    path = next(whole_ones, None)
    return None if path is None else (int(path.name.removeprefix("step-")), path)


def is_whole(path: Path, made_from: str) -> bool:
    """True if it is there, of this stage, and every file is as it was written. What is damaged is reported."""
    expected = manifest.Manifest("checkpoint", inputs={"stage": made_from}).fingerprint
    try:
        body = manifest.read(path)
        if body is None or body["fingerprint"] != expected:
            return False
        wrong = [name for name, digest in body["files"].items() if manifest.file_sha256(path / name) != digest]
    except (InputError, OSError) as error:
        print(f"{path}: passed over, it cannot be read ({error})", file=sys.stderr)
        return False
    if wrong:
        print(f"{path}: passed over, {wrong[0]} is damaged (its sha256 is not the manifest's)", file=sys.stderr)
    return not wrong


def restore(path: Path, tensors: Mapping[str, torch.Tensor], ranks: Ranks | None = None) -> None:
    """Copy the checkpoint's tensors into the live ones, which must have the same names, shapes and dtypes."""
    reader = _Reader(path, ranks)
    stored = reader.read_metadata().state_dict_metadata
    assert stored.keys() == tensors.keys(), sorted(stored.keys() ^ tensors.keys())[:4]
    for name, tensor in tensors.items():
        kept = stored[name]
        assert isinstance(kept, TensorStorageMetadata), name
        assert (kept.size, kept.properties.dtype) == (tensor.shape, tensor.dtype), name
    with _without_advice(), _plainly(f"{path}: cannot be read"):
        dcp.load(dict(tensors), storage_reader=reader)  # type: ignore[attr-defined]


def matches(path: Path, tensors: Mapping[str, torch.Tensor], ranks: Ranks | None = None) -> bool:
    """True if the checkpoint holds exactly these tensors, bit for bit (NaN counts as different)."""
    if _Reader(path).read_metadata().state_dict_metadata.keys() != tensors.keys():
        return False
    same = True
    for part in _parts(tensors, _READ_BACK_BYTES):
        read = {name: torch.empty_like(tensor) for name, tensor in part.items()}
        with _without_advice(), _plainly(f"{path}: cannot be read"):
            dcp.load(read, storage_reader=_Reader(path, ranks))  # type: ignore[attr-defined]
        same &= all(torch.equal(whole(read[name]), whole(tensor)) for name, tensor in part.items())
    return same


class _Writer(HuggingFaceStorageWriter):
    """Signs of life while this rank writes what it holds."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> None:
        file_of = {name: number for number, part in enumerate(_parts(tensors, _FILE_BYTES), 1) for name in part}
        super().__init__(str(path), fqn_to_index_mapping=file_of, save_distributed=True)
        self._ranks = ranks

    def write_data(self, plan: Any, planner: Any) -> Any:
        with self._ranks.alive(f"writing {self.path}"):
            return super().write_data(plan, planner)


class _Reader(HuggingFaceStorageReader):
    """Signs of life while this rank reads what it needs."""

    def __init__(self, path: Path, ranks: Ranks | None = None) -> None:
        super().__init__(str(path))
        self._ranks = ranks or Ranks()

    def read_data(self, plan: Any, planner: Any) -> Any:
        with self._ranks.alive(f"reading {self.path}"):
            return super().read_data(plan, planner)


def _parts(tensors: Mapping[str, torch.Tensor], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in parts of at most `size` bytes, so that a copy of one does not double the memory."""
    part: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(t.nbytes for t in part.values()) + tensor.nbytes > size:
            yield part
            part = {}
        part[name] = tensor
    yield part


@contextlib.contextmanager
def _plainly(what: str) -> Iterator[None]:
    """PyTorch wraps what went wrong, a full disk say, into an exception that is no `Exception`."""
    try:
        yield
    except CheckpointException as error:
        causes = dict.fromkeys(f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values())
        raise InputError(f"{what}: {'; '.join(causes)}") from error


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """A run in one process is meant; PyTorch would say so each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _found(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
