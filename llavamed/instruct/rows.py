"""The records of a file that somebody else wrote, each with the line where it begins.

CSV, TSV, JSON lines, and JSON: an array, an object that holds one (`{"info": ..., "data": [...]}`), an object of
records by their ids, or a single record. Who has to mend a file needs the line, also in an array that an editor has
spread over many: it is read record by record, and the lines are counted on the way. A record that cannot be read is
one of the problems to be listed and does not hide those after it, as long as it is known where the next one begins.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llavamed.errors import InputError

_WHAT = "give a .json, .jsonl, .csv or .tsv of conversations or questions"
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN is how pandas and numpy write that there is nothing

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
        yield from _array(path, text, text.index("["))
    elif _is_one_object(text):
        yield from _document(path, text)
    else:
        yield from _lines(text)


def _lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, _object(_DECODER.decode(line))
            except (json.JSONDecodeError, RecursionError) as error:
                yield number, f"not JSON ({getattr(error, 'msg', 'nested too deep')}); each line must be one object"


def _is_one_object(text: str) -> bool:
    try:
        _, end = _DECODER.raw_decode(text, _skip(text, 0))
    except (json.JSONDecodeError, RecursionError):
        return False
    return text.lstrip().startswith("{") and _skip(text, end) == len(text)


def _document(path: Path, text: str) -> Iterator[Row]:
    """The records in a file that is one object."""
    members = list(_members(text))
    lists = [(name, place) for name, place, value in members if _holds_records(value)]
    if len(lists) > 1:
        names = " and ".join(repr(name) for name, _ in lists)
        raise InputError(f"{path}: {names} could each be the records; give one of them in a file of its own")
    if lists:
        yield from _array(path, text, lists[0][1])
    elif members and all(isinstance(value, dict) for _, _, value in members):
        for name, place, value in members:
            yield text.count("\n", 0, place) + 1, {"id": name, **value}
    else:
        yield text.count("\n", 0, text.index("{")) + 1, {name: value for name, _, value in members}


def _members(text: str) -> Iterator[tuple[str, int, Any]]:
    """(name, where its value begins, value) of an object that is known to be whole."""
    place = _skip(text, text.index("{") + 1)
    while text[place] != "}":
        name, place = _DECODER.raw_decode(text, place)
        begins = _skip(text, _skip(text, place) + 1)  # after the colon
        value, place = _DECODER.raw_decode(text, begins)
        yield name, begins, value
        place = _skip(text, place)
        place = _skip(text, place + 1) if text[place] == "," else place


def _holds_records(value: Any) -> bool:
    """A list of objects that are not the turns of one conversation."""
    if not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
        return False
    return not all({"from", "role", "value", "content"} & item.keys() for item in value)


def _array(path: Path, text: str, begins: int) -> Iterator[Row]:
    place, line = begins + 1, 1
    counted = 0  # up to here, lines are counted
    while True:
        place = _skip(text, place)
        if text[place : place + 1] in (",", "]"):
            if text[place] == "]":
                return
            place = _skip(text, place + 1)
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else f"line {line}"
            said = getattr(error, "msg", "nested too deep")
            raise InputError(f"{path}: not JSON ({said} in {where}); is the file whole?") from None
        yield line, _object(value)


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _table(path: Path, text: str) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
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


def _delimiter(text: str) -> str:
    """What parts the column names into most. Nothing else is guessed: a quote is ", as everywhere."""
    head = text.lstrip("\n").partition("\n")[0]
    return max(",;\t", key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))


def _object(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else f"a {type(value).__name__}, not an object"
