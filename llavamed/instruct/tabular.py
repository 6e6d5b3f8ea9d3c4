"""Any table of image, question and answer as conversations: JSON, JSON lines, CSV or TSV, a question a row.

People name their columns as they like. `NAMES` lists what they call them; a table with other names says which is which
(`image=scan,question=q`). Rows with the same image and the same conversation id become one conversation in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.instruct import rows
from llavamed.instruct.formats import IMAGE
from llavamed.records import Conversation, Message, assistant, user

NAMES = {
    "image": ("image", "image_path", "image_name", "image_file", "img", "img_name", "figure_path", "path", "file",
              "filename"),
    "question": ("question", "query", "prompt", "instruction", "problem"),
    "answer": ("answer", "response", "label", "gt_answer", "answers", "output", "reference"),
    "id": ("id", "qid", "question_id", "uid", "index"),
    "conversation": ("conversation", "conversation_id", "dialogue_id"),
}  # fmt: skip
_NEEDED = ("image", "question", "answer")


def read(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, Conversation | str]]:
    """(line, conversation or what is wrong with the row). `columns` says what this table calls image, question, answer,
    id or conversation, where that is not one of NAMES. Raises InputError if a needed column is not there."""
    unknown = [name for name in columns if name not in NAMES]
    if unknown:
        raise InputError(f"--columns {unknown[0]}=...: not one of {', '.join(NAMES)}")
    found: dict[str, str] | None = None
    talks: dict[str, tuple[int, Conversation]] = {}
    for number, (line, row) in enumerate(rows.read(path), 1):
        if isinstance(row, str):
            yield line, row
            continue
        found = found or _columns(path, row, columns)
        cells = {name: row.get(column) for name, column in found.items()}
        wrong = _wrong(cells)
        if wrong:
            yield line, wrong
            continue
        image, question, answer = (str(cells[name]).strip() for name in _NEEDED)
        turns: tuple[Message, ...] = (_asked(question), assistant(answer))
        talk = cells.get("conversation")
        if talk is None:
            yield (
                line,
                Conversation(str(cells.get("id") or f"{path.stem}-{number}"), (image,), turns, _source(path, row)),
            )
            continue
        key = f"{talk}"
        if key in talks:
            first, before = talks[key]
            if before.images != (image,):
                yield line, f"conversation {key!r} began with the image {before.images[0]!r}, not {image!r}"
                continue
            more = Message("user", tuple(part for part in turns[0].content if part["type"] == "text"))
            turns = (*before.messages, more, turns[1])
            talks[key] = (first, Conversation(key, (image,), turns, before.source))
        else:
            talks[key] = (line, Conversation(key, (image,), turns, _source(path, row)))
    yield from talks.values()


def _columns(path: Path, row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    lower = {str(name).lower(): str(name) for name in row}
    found = dict(columns)
    for name, usual in NAMES.items():
        called = next((lower[word] for word in usual if word in lower), None)
        if name not in found and called is not None:
            found[name] = called
    missing = [name for name in _NEEDED if found.get(name) not in row]
    if missing:
        raise InputError(
            f"{path}: no column for {', '.join(missing)} among {', '.join(map(repr, row))}; "
            f"name it: --columns {missing[0]}=NAME"
        )
    return found


def _wrong(cells: Mapping[str, Any]) -> str:
    for name in _NEEDED:
        value = cells[name]
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"empty {name}"
        if not isinstance(value, str | int | float):
            return f"{name} is a {type(value).__name__}, not text"
    return ""


def _asked(question: str) -> Message:
    """The question with its image in front, or where it has a mark of its own."""
    if question.count(IMAGE) != 1:
        return user(question, images=1)
    before, after = (part.strip() for part in question.split(IMAGE))
    texts = [{"type": "text", "text": part} for part in (before, after) if part]
    return Message("user", ({"type": "image"}, *texts) if not before else (texts[0], {"type": "image"}, *texts[1:]))


def _source(path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    extra = {name: row[name] for name in ("licence", "license", "split", "organ", "modality") if row.get(name)}
    return {"format": "table", "file": path.name, **extra}
