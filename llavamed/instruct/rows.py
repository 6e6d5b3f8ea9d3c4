"""The records of a file that somebody else wrote, each with the line where it begins.

JSON arrays, JSON lines, CSV and TSV. Who has to mend a file needs the line, also in an array that an editor has
spread over many: it is read record by record, and the lines are counted on the way. A record that cannot be read is
one of the problems to be listed and does not hide those after it, as long as it is known where the next one begins.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llavamed.errors import InputError

_WHAT = "give a .json, .jsonl, .csv or .tsv of conversations or questions"
_SPACE = re.compile(r"\s*")

Row = tuple[int, dict[str, Any] | str]  # the line, and the record or what is wrong with it


def read(path: Path) -> Iterator[Row]:
    """The records of a file. Raises InputError if it is no such file, or if it breaks off."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {_WHAT}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; {_WHAT}") from None
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from _table(path, text)
    elif text.lstrip().startswith("["):
        yield from _array(path, text)
    else:
        yield from _lines(text)


def _lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, _object(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                yield number, f"not JSON ({getattr(error, 'msg', 'nested too deep')}); each line must be one object"


def _array(path: Path, text: str) -> Iterator[Row]:
    decoder, place, line = json.JSONDecoder(), text.index("[") + 1, 1
    counted = 0  # up to here, lines are counted
    while True:
        place = _skip(text, place)
        if text[place : place + 1] in (",", "]"):
            if text[place] == "]":
                return
            place = _skip(text, place + 1)
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else f"line {line}"
            said = getattr(error, "msg", "nested too deep")
            raise InputError(f"{path}: not JSON ({said} in {where}); is the file whole?") from None
        yield line, _object(value)


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _table(path: Path, text: str) -> Iterator[Row]:
    try:
        dialect: Any = csv.excel_tab if path.suffix.lower() == ".tsv" else csv.Sniffer().sniff(text[:8192], ",;\t")
    except csv.Error:  # one column, or too little to tell
        dialect = csv.excel
    reader = csv.reader(text.splitlines(keepends=True), dialect, strict=True)
    names: list[str] = []
    begins = 1
    try:
        for cells in reader:
            if not names:
                names = [name.strip() for name in cells]
            elif cells:
                if len(cells) == len(names):
                    yield begins, dict(zip(names, cells, strict=True))
                else:
                    yield begins, f"{len(cells)} cells under {len(names)} column names; is there a quote missing?"
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{begins}: not a table ({error}); quote cells that hold commas or line breaks"
        ) from None


def _object(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else f"a {type(value).__name__}, not an object"
