"""What an endpoint has already answered, so that no answer is paid for twice.

A journal is one file of JSON lines, only ever appended to. A line is written and handed to the operating
system the moment an answer is whole, so whatever ends the process (Ctrl-C, kill -9, a bug of ours) the next
one asks only what is missing; `sync`, once a second, is for power cuts. A process that is killed while it
writes leaves a cut last line; that line is dropped. A last line that is whole but for its end, as an editor may
leave it, is kept.

    {"request": hash, "pair": key, "answer": text, "tokens": [in, out]}     an answer, whatever is thought of it
    {"request": hash, "pair": key, "lost": why, "tokens": [in, out]}        paid for, perhaps, and nothing came of it

The hash covers all that decides the answer (endpoint, model, prompt, the pair's texts and image, sampling), so
a changed prompt or setting is asked anew and an old answer is never taken for it. Only `max_tokens` is not in it: a
whole answer is the same under any, and the line of one that was cut (`"finish": "length"`) says under which; what is
then asked with more gets a line of its own, and of two lines for one request the later one holds. Answers
stay in the file: in memory is where each begins, some hundred bytes a record. One process writes a journal at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from llavamed.errors import InputError

NAME = "journal.jsonl"


class Journal:
    """The answers in the file at `path`, which need not exist. A context manager; only one that is to be `writable`
    keeps others out. Raises InputError for a file that is no journal, or that another process is writing."""

    def __init__(self, path: Path, writable: bool = True) -> None:
        self._path = path
        self._places: dict[int, int] = {}  # request -> where its line begins
        self.tokens = [0, 0]  # in and out, of every line
        self.tokens_of: dict[tuple[str, bool], list[int]] = {}  # the same by (model, whether a batch file brought it)
        self.lost = 0  # calls that cost, perhaps, and gave nothing
        self._dirty = False
        self._file: BinaryIO | None = None  # to write; unbuffered, so that a line is never held back
        self._lines: BinaryIO | None = None  # to read; buffered, for reading a line byte by byte takes long
        if writable:
            self._file = path.open("a+b", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise InputError(f"{path}: another process is writing it; wait for it, or end it") from None
            except OSError as error:  # file systems of some clusters know no locks
                print(f"{path}: cannot be locked ({error.strerror}); let no second process write it", file=sys.stderr)
        if path.is_file():
            try:
                with path.open("rb") as lines:
                    self._end, ended = self._read(lines)
                if self._file is not None:
                    self._file.truncate(self._end)
                    if not ended:
                        self._write(b"\n")
            except BaseException:
                if self._file is not None:
                    self._file.close()
                raise
            self._lines = path.open("rb")  # another than before: that one may remember what was cut off

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request: str) -> bool:
        return int(request, 16) in self._places

    def answer(self, request: str) -> str | None:
        """What was answered to the request with this hash, or None."""
        row = self.row(request)
        return None if row is None else row["answer"]

    def row(self, request: str) -> dict[str, Any] | None:
        """The whole line that was kept for the request with this hash, or None."""
        place = self._places.get(int(request, 16))
        if place is None:
            return None
        assert self._lines is not None
        self._lines.seek(place)
        row: dict[str, Any] = json.loads(self._lines.readline())
        return row

    def keep(self, request: str, pair: str, answer: str, tokens: tuple[int, int] = (0, 0), **about: Any) -> None:
        """Write down an answer. `pair` and what else there is `about` it are for readers of the file."""
        place = self._append({"request": request, "pair": pair, "answer": answer, "tokens": tokens, **about})
        self._places[int(request, 16)] = place

    def lose(self, request: str, pair: str, why: str, tokens: tuple[int, int]) -> None:
        """Write down a call that may be on the bill without an answer: it was cut off, or never ended."""
        self._append({"request": request, "pair": pair, "lost": why, "tokens": tokens})
        self.lost += 1

    def sync(self) -> None:
        """Make what was written safe from a power cut. May take seconds on a busy disk; safe in a thread of its own."""
        if self._dirty and self._file is not None:
            self._dirty = False
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise self._unwritable(error) from None

    def close(self) -> None:
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, row: dict[str, Any]) -> int:
        place = self._end
        self._write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        self._count(row)
        return place

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        try:
            written = 0
            while written < len(line):  # a disk that is nearly full takes a part, and says no to the next
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, self._end)  # no half line before the next one
            raise self._unwritable(error) from None
        self._end += len(line)
        self._dirty = True

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self._path}: cannot be written ({error.strerror}); make room and run again")

    def _count(self, row: dict[str, Any]) -> None:
        of_kind = self.tokens_of.setdefault((row.get("model", ""), "batch" in row), [0, 0])
        for number, tokens in enumerate(row.get("tokens", ())):
            self.tokens[number] += tokens
            of_kind[number] += tokens

    def _read(self, lines: BinaryIO) -> tuple[int, bool]:
        """Index the file; returns the bytes up to the end of the last line that is whole, and whether it has its
        newline."""
        whole = 0
        for number, line in enumerate(lines, 1):
            ended = line.endswith(b"\n")
            try:
                row = json.loads(line)
            except ValueError:
                if not ended:  # cut while it was written
                    return whole, True
                raise self._foreign(number) from None
            try:
                request = int(row["request"], 16)
                if isinstance(row.get("answer"), str):
                    self._places[request] = whole
                elif "lost" in row:
                    self.lost += 1
                else:
                    raise ValueError("neither an answer nor the loss of one")
                self._count(row)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                raise self._foreign(number) from None
            whole += len(line)
            if not ended:
                return whole, False
        return whole, True

    def _foreign(self, number: int) -> InputError:
        return InputError(f"{self._path}:{number}: not a line of a journal; delete this line")
