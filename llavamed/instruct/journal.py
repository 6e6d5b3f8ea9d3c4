"""What a teacher has already answered, so that no answer is paid for twice.

A journal is one file of JSON lines, only ever appended to: the hash of a request and the text that came
back. Each line is on the disk before the next request is sent, so whatever ends a run (Ctrl-C, kill -9, a
power cut, an account without credit) the next one asks only what is missing. A process that is killed
while it writes leaves a cut last line; that line is dropped.

The hash covers all that decides the answer (endpoint, model, prompt, the pair's texts, sampling), so a
changed prompt or setting is asked anew and an old answer is never taken for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.manifest import fingerprint

NAME = "journal.jsonl"


class Journal:
    """The answers in the file at `path`, which need not exist. Raises InputError for a file that is no journal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self._read()

    def answer(self, request: dict[str, Any]) -> str | None:
        """What was answered to exactly this request, or None."""
        row = self.row(request)
        return None if row is None else row["answer"]

    def row(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The whole line that was kept for exactly this request, or None."""
        return self._rows.get(fingerprint(request))

    def keep(self, request: dict[str, Any], pair: str, answer: str, more: Mapping[str, Any] | None = None) -> None:
        """Write down an answer; it is on the disk when this returns. `pair` is for readers of the file, `more` are
        further fields of the line."""
        row = {"request": fingerprint(request), "pair": pair, "answer": answer, **(more or {})}
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self._rows[row["request"]] = row

    def _read(self) -> None:
        whole = 0  # bytes up to the last line that is whole
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    self._rows[row["request"]] = {**row, "answer": row["answer"]}
                except (ValueError, KeyError, TypeError):
                    raise InputError(f"{self._path}:{number}: not a line of a journal; delete this line") from None
                whole += len(line)
        if whole < self._path.stat().st_size:
            os.truncate(self._path, whole)
