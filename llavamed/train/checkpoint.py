"""Checkpoints: a step that a run can go on from, or nothing.

In: named tensors and the number of steps done. Out: a folder `step-00001234/` with `state.safetensors` and a
manifest that holds its sha256 and the fingerprint of the stage. It is written aside, forced to the disk,
and renamed: a folder with that name is whole. It is verified again before it is used, and a damaged one is
reported and passed over for the one before.

Nothing is pickled: safetensors and JSON cannot run code when they are opened.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llavamed import manifest
from llavamed.errors import InputError

_TENSORS = "state.safetensors"
_NAME = re.compile(r"step-(\d{8})")


def save(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], made_from: str, keep: int) -> Path:
    """Write the checkpoint of `step` steps done and remove all but the last `keep`.

    `made_from` is the stage's fingerprint: `latest` finds only checkpoints of the same.
    """
    final = folder / f"step-{step:08d}"
    aside = folder / f"{final.name}.tmp"
    for old in (*folder.glob("step-*.tmp"), final):  # of saves that were killed
        if old.exists():
            shutil.rmtree(old)
    aside.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / _TENSORS)
    _to_disk(aside / _TENSORS)
    manifest.Manifest("checkpoint", inputs={"stage": made_from}, counts={"steps": step}).write(aside)
    _to_disk(aside)
    aside.rename(final)
    _to_disk(folder)
    for older in _found(folder)[keep:]:
        shutil.rmtree(older)
    return final


def latest(folder: Path, made_from: str) -> tuple[int, Path] | None:
    """Steps done and path of the newest whole checkpoint of this stage, or None. Damaged ones are reported."""
    expected = manifest.Manifest("checkpoint", inputs={"stage": made_from}).fingerprint
    for path in _found(folder):
        try:
            body = manifest.read(path)
            if body is None or body["fingerprint"] != expected:
                continue
            wrong = [name for name, digest in body["files"].items() if manifest.file_sha256(path / name) != digest]
        except (InputError, OSError) as error:
            print(f"{path}: passed over, it cannot be read ({error})", file=sys.stderr)
            continue
        if wrong:
            print(f"{path}: passed over, {wrong[0]} is damaged (its sha256 is not the manifest's)", file=sys.stderr)
            continue
        return int(body["counts"]["steps"]), path
    return None


def restore(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy the checkpoint's tensors into the live ones, which must have the same names, shapes and dtypes."""
    stored = load_file(path / _TENSORS)
    assert stored.keys() == tensors.keys(), sorted(stored.keys() ^ tensors.keys())[:4]
    for name, tensor in tensors.items():
        assert (stored[name].shape, stored[name].dtype) == (tensor.shape, tensor.dtype), name
        tensor.copy_(stored[name])


def matches(path: Path, tensors: Mapping[str, torch.Tensor]) -> bool:
    """True if the checkpoint holds exactly these tensors, bit for bit (NaN counts as different)."""
    stored = load_file(path / _TENSORS)
    return stored.keys() == tensors.keys() and all(torch.equal(stored[k], v.cpu()) for k, v in tensors.items())


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
