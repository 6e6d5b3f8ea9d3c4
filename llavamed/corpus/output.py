"""Where a corpus is written: a folder of this machine, or any place that fsspec reaches (`s3://bucket/corpus`).

Work units run in many processes, perhaps on many machines, and any of them may be killed. So a file appears under its
name whole or not at all: locally by rename, in an object store by its nature. An `Output` is one string; it is sent to
workers as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, cast

from llavamed import manifest
from llavamed.errors import InputError

_WHOLE_OR_NOT = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})  # a put is one step
_WORKSPACE = ".partial-"


@dataclass(frozen=True)
class Output:
    place: str

    @property
    def folder(self) -> Path | None:
        """The local folder, or None where it is elsewhere."""
        return None if "://" in self.place else Path(self.place)

    def _far(self) -> tuple[Any, str]:
        try:
            import fsspec

            files, root = fsspec.core.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            protocol = self.place.partition("://")[0]
            hint = f"pip install what fsspec needs for {protocol}, or give a local folder"
            raise InputError(f"{self.place}: cannot be reached ({error}); {hint}") from None
        return files, root.rstrip("/")

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for files in the making, on the same file system where that is a local one."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=_WORKSPACE, dir=self.folder))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def clear_workspaces(self) -> None:
        """Remove those of processes that were killed."""
        for left in self.folder.glob(f"{_WORKSPACE}*") if self.folder is not None else ():
            shutil.rmtree(left, ignore_errors=True)

    def put(self, name: str, file: Path) -> None:
        """Move a file from the workspace to its name."""
        if self.folder is not None:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, self.folder / name)
            return
        files, root = self._far()
        target = f"{root}/{name}"
        files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if files.protocol in _WHOLE_OR_NOT or not _WHOLE_OR_NOT.isdisjoint(files.protocol):
            files.put_file(str(file), target)
        else:
            files.put_file(str(file), target + manifest.ASIDE)
            files.mv(target + manifest.ASIDE, target)
        file.unlink()

    def open(self, name: str) -> IO[bytes]:
        """Raises FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / name).open("rb")
        files, root = self._far()
        return cast(IO[bytes], files.open(f"{root}/{name}", "rb"))

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes | None:
        """The bytes of a file, or a part of them; None if there is no such file."""
        try:
            with self.open(name) as data:
                data.seek(offset)
                return data.read(-1 if size is None else size)
        except FileNotFoundError:
            return None

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of what is finished here, or None."""
        if self.folder is not None:
            return manifest.read(self.folder)
        found: dict[str, Any] | None = json.loads(self.read(manifest.NAME) or b"null")
        return found

    def length(self, name: str) -> int:
        """The bytes of a file, 0 if there is no such file."""
        if self.folder is not None:
            path = self.folder / name
            return path.stat().st_size if path.is_file() else 0
        files, root = self._far()
        return int(files.size(f"{root}/{name}")) if files.exists(f"{root}/{name}") else 0

    def names(self, pattern: str, below: str = "") -> list[str]:
        """The files that match, sorted, below one folder."""
        return sorted(self.sizes(pattern, below))

    def sizes(self, pattern: str, below: str = "") -> dict[str, int]:
        """The files that match, below one folder, with their bytes: one listing."""
        if self.folder is not None:
            here = ((path, path.stat()) for path in (self.folder / below).glob(pattern) if path.is_file())
            return {f"{below}{path.name}": about.st_size for path, about in here}
        files, root = self._far()
        try:
            found = files.ls(f"{root}/{below}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        named = {one["name"].rstrip("/").rpartition("/")[2]: one["size"] for one in found}
        return {f"{below}{name}": int(size or 0) for name, size in named.items() if fnmatch(name, pattern)}

    def remove(self, name: str) -> None:
        if self.folder is not None:
            (self.folder / name).unlink(missing_ok=True)
            return
        files, root = self._far()
        if files.exists(f"{root}/{name}"):
            files.rm(f"{root}/{name}")
