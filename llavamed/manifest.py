"""What made a folder: the file that says a stage is finished.

Every stage writes its data files first and `manifest.json` last, by rename. A folder without a manifest
is unfinished and is begun again (or resumed by the stage's own journal); a folder whose manifest has the
same fingerprint is done and is skipped.

The fingerprint hashes what went in (settings and the fingerprints of the inputs), so a changed recipe or
input repeats exactly the stages that depend on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llavamed.errors import InputError

NAME = "manifest.json"
UNFINISHED = "unfinished.json"  # the marker of a folder that a stage is writing
ASIDE = ".tmp"  # ends the name of a file that is being written
_PACKAGES = ("llavamed", "torch", "transformers", "tokenizers", "numpy", "pillow", "lxml", "pyarrow")


def fingerprint(value: Any) -> str:
    """sha256 over canonical JSON, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class Manifest:
    """`stage` names the command; `settings` is the part of the recipe it used; `inputs` maps each input
    folder or file to its fingerprint; `counts` and `funnel` say what came out and what was dropped, by reason."""

    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    funnel: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # relative path -> sha256
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint({"stage": self.stage, "settings": self.settings, "inputs": sorted(self.inputs.values())})

    @classmethod
    def of(cls, body: dict[str, Any]) -> Manifest:
        """What `read` found, as it was before it was written."""
        return cls(**{one.name: body[one.name] for one in fields(cls) if one.name in body})

    def write(self, folder: Path, *, hash_files: bool = True) -> None:
        """Make `folder` complete: hash its files, then put the manifest in place by rename."""
        if hash_files:
            self.files = {str(p.relative_to(folder)): file_sha256(p) for p in _results(folder)}
        body = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": self.settings,
            "inputs": self.inputs,
            "counts": self.counts,
            "funnel": self.funnel,
            "seconds": round(self.seconds, 3),
            "versions": versions(),
            "files": self.files,
            **({"extra": self.extra} if self.extra else {}),
        }
        write_atomic(folder / NAME, json.dumps(body, indent=1, ensure_ascii=False, default=str) + "\n")
        (folder / UNFINISHED).unlink(missing_ok=True)


def _results(folder: Path) -> Iterator[Path]:
    """The files that a stage made, without what is about the making."""
    for path in sorted(folder.rglob("*")):
        about = path.name in (NAME, UNFINISHED) or path.suffix in (ASIDE, ".log")
        if path.is_file() and not about and "checkpoints" not in path.relative_to(folder).parts:
            yield path


def begin(folder: Path, stage: str, **about: Any) -> None:
    """Make `folder` ready to be written by `stage`; from here on it is unfinished. What else there is `about` it that
    must outlive a kill is kept in the marker.

    Raises InputError if it is a file, if it holds another stage's work, or if it is not empty and not ours: a
    stage clears what it left behind, and must never clear what somebody else did.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file; give a folder to write")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / UNFINISHED
    body = read(folder) or read_marker(marker)
    if body is None and any(path.name != UNFINISHED + ASIDE for path in folder.iterdir()):  # left by a kill below
        raise InputError(f"{folder}: not empty and not made by llavamed; give an empty or a new folder")
    if body is not None and body["stage"] != stage:
        raise InputError(
            f"{folder}: holds the work of {body['stage']!r}, not {stage!r}; give another folder, or delete it"
        )
    write_atomic(marker, json.dumps({"stage": stage, **about}) + "\n")
    (folder / NAME).unlink(missing_ok=True)


def read_marker(marker: Path) -> dict[str, Any] | None:
    """Which stage is writing a folder; None where the marker is absent or was cut short."""
    try:
        body = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return body if isinstance(body, dict) and "stage" in body else None


def files_fingerprint(paths: Iterable[Path], root: Path) -> str:
    """Names and sizes of loose files: notices that files were exchanged without reading them all."""
    return fingerprint([(str(p.relative_to(root)), p.stat().st_size if p.is_file() else None) for p in sorted(paths)])


def write_atomic(path: Path, text: str) -> None:
    """The file is either the old one or the whole new one, also after a power cut."""
    aside = path.with_name(path.name + ASIDE)
    with aside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished folder, or None if the folder is unfinished or absent."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: damaged ({error.msg}); delete the folder and run the stage again") from None
    if not isinstance(body, dict) or not {"stage", "fingerprint", "files"} <= body.keys():
        raise InputError(f"{path}: not a manifest of llavamed; give a folder that llavamed made")
    return body


def require(folder: Path, stage: str, hint: str) -> dict[str, Any]:
    """The manifest of an input folder, or an InputError that says which command makes one."""
    if not folder.is_dir():
        if re.match(r"\w\w+:/", str(folder)):
            raise InputError(f"{folder}: must be a folder here; copy it first (aws s3 sync, gsutil rsync, rclone)")
        raise InputError(f"{folder}: no such folder; {hint}")
    body = read(folder)
    if body is None:
        raise InputError(f"{folder}: no {NAME}, so it is unfinished or not made by llavamed; {hint}")
    if body.get("stage") != stage:
        raise InputError(f"{folder}: made by {body.get('stage')!r}, but {stage!r} is needed; {hint}")
    return body


def is_done(folder: Path, expected: Manifest) -> bool:
    """True if `folder` was completed from exactly these settings and inputs, and its files are still there."""
    body = read(folder)
    return (
        body is not None
        and body["fingerprint"] == expected.fingerprint
        and all((folder / name).is_file() for name in body["files"])
    )
