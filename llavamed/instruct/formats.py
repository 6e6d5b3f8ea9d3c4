"""Conversations in other people's formats: LLaVA's JSON and messages with marks in and out, tables in, and benchmarks.

LLaVA's record is {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]} with the mark
`<image>` before or after the first question. What goes wrong in the field is a record whose marks and
images do not match: some trainers drop it silently, others stop hours later. So `import_file` looks at
every record before it returns any, and lists all that is wrong in one error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llavamed.corpus.store import INDEX, Corpus
from llavamed.errors import InputError
from llavamed.instruct import rows
from llavamed.records import Conversation, Message, Question, assistant, user

IMAGE = "<image>"
_ROLES: dict[str, Any] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_LISTED = 100  # problems named in one error; the rest are counted


def to_llava(conversation: Conversation) -> dict[str, Any]:
    """One LLaVA record. Raises InputError for a system turn, which that format lacks."""
    turns = []
    for message in conversation.messages:
        if message.role == "system":
            raise InputError(f"record {conversation.id!r}: a system turn; LLaVA's format has none, remove it")
        parts = [IMAGE if part["type"] == "image" else part["text"] for part in message.content]
        turns.append({"from": "human" if message.role == "user" else "gpt", "value": "\n".join(parts)})
    images = list(conversation.images)
    row: dict[str, Any] = {"id": conversation.id}
    if images:
        row["image"] = images[0] if len(images) == 1 else images
    return {**row, "conversations": turns}


def from_llava(row: dict[str, Any], default_id: str = "") -> Conversation:
    """One LLaVA record as a conversation. Raises ValueError saying what is malformed; `problems` checks the rest."""
    turns = row.get("conversations", row.get("conversatons"))  # the second stands in LLaVA-Med's released files
    if not isinstance(turns, list):
        raise ValueError('no list "conversations"')
    image = row.get("image")
    if not (image is None or isinstance(image, str) or (isinstance(image, list) and _all_strings(image))):
        raise ValueError('"image" is neither a path nor a list of paths')
    images = () if not image else (image,) if isinstance(image, str) else tuple(image)
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError(f'turn {number} has no text "value"')
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise ValueError(f'turn {number} is from {turn.get("from")!r}, not "human" or "gpt"')
        messages.append(Message(role, _parts(turn["value"]) if role == "user" else _text(turn["value"])))
    source = {"format": "llava", **({"domain": row["domain"]} if "domain" in row else {})}
    return Conversation(str(row.get("id", default_id)), images, tuple(messages), source)


def problems(conversation: Conversation) -> list[str]:
    """What keeps a conversation from being trained on; [] if nothing does."""
    found = []
    marks = sum(message.num_images for message in conversation.messages)
    if marks != len(conversation.images):
        found.append(f"{marks} image tokens for {len(conversation.images)} images")
    turns = [message for message in conversation.messages if message.role != "system"]
    if not turns:
        return [*found, "no turns"]
    expected = ["user", "assistant"] * (len(turns) // 2 + 1)
    if [message.role for message in turns] != expected[: len(turns)] or len(turns) % 2:
        found.append(f"speaker order is {', '.join(message.role for message in turns)}")
    for number, message in enumerate(turns, 1):
        if not message.text.strip():
            found.append(f"turn {number}: empty {'question' if message.role == 'user' else 'answer'}")
        if message.role == "assistant" and (IMAGE in message.text or message.num_images):
            found.append(f"turn {number}: an image token in an answer")
        elif IMAGE in message.text:
            found.append(f"turn {number}: {IMAGE} written out in the text")
    return found


def from_questions(
    questions: Iterable[Question], ask: Callable[[Question], str] = lambda question: question.question
) -> Iterator[Conversation]:
    """A benchmark's questions as single turns with the reference as answer; of lettered options it is the letter.

    `ask` gives the text of the question as the benchmark will ask it (`Benchmark.ask`).
    """
    for item in questions:
        yield Conversation(
            item.id,
            item.images,
            (user(ask(item), images=len(item.images)), assistant(item.letter or item.answer)),
            {"closed": item.closed, **item.groups},
        )


FORMATS = ("llava", "llavamed", "table")


def import_file(
    path: Path, fmt: str, images: Path | None = None, columns: Mapping[str, str] | None = None
) -> list[Conversation]:
    """All conversations of a file; `fmt` is "llava" (.json or .jsonl), "llavamed" (messages, as ours) or "table" (a
    question a row). With `images`, a folder or a corpus, every image must be there.

    Raises one InputError that names every problem with its line; nothing is skipped.
    """
    if fmt not in FORMATS:
        raise InputError(f"--format {fmt}: not known; give one of {', '.join(FORMATS)}")
    conversations: list[Conversation] = []
    wrong: list[str] = []
    ids: set[str] = set()
    missing = _missing_images(images)
    for line, found in _conversations(path, fmt, columns or {}):
        if isinstance(found, str):
            wrong.append(f"line {line}: {found}")
            continue
        where = f"line {line} (id {found.id!r})"
        wrong += [f"{where}: {problem}" for problem in (*problems(found), *missing(found))]
        if found.id in ids:
            wrong.append(f"{where}: the id occurs twice")
        ids.add(found.id)
        conversations.append(found)
    if wrong:
        listed = "; ".join(wrong[:_LISTED])
        more = f"; and {len(wrong) - _LISTED:,} more" if len(wrong) > _LISTED else ""
        number = f"{len(wrong):,} problem{'s' if len(wrong) > 1 else ''}"
        raise InputError(f"{path}: {number}, mend or remove these records: {listed}{more}")
    if not conversations:
        raise InputError(f"{path}: no conversations in it")
    return conversations


def _conversations(path: Path, fmt: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Conversation | str]]:
    if fmt == "table":
        from llavamed.instruct import tabular  # which is made of the things here

        yield from tabular.read(path, columns)
        return
    for number, (line, row) in enumerate(rows.read(path), 1):
        if isinstance(row, str):
            yield line, row
            continue
        where = f"(id {str(row.get('id', '?'))!r}): "
        try:
            yield line, (from_llava if fmt == "llava" else from_messages)(row, f"{path.stem}-{number}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield line, where + (str(error) if isinstance(error, ValueError) else f"not a conversation ({error!r})")


def from_messages(row: dict[str, Any], default_id: str = "") -> Conversation:
    """A record of messages, ours or one that writes `<image>` into its texts, as ms-swift and LLaMA-Factory do. Theirs
    have no id, and no images where there are none."""
    known = default_id if row.get("id") is None else row["id"]
    name = str(known) if isinstance(known, int) else known
    images = row.get("images")
    paths = [] if images is None else [images] if isinstance(images, str) else images
    conversation = Conversation.from_json({**row, "id": name, "images": paths})
    if sum(message.num_images for message in conversation.messages) or not conversation.images:
        return conversation
    messages = tuple(replace(m, content=_parts(m.text)) if m.role == "user" else m for m in conversation.messages)
    return replace(conversation, messages=messages)


def to_strings(conversation: Conversation) -> dict[str, Any]:
    """A record whose messages are strings with `<image>` in them: what ms-swift and LLaMA-Factory read."""
    turns = [
        {"role": m.role, "content": "\n".join(IMAGE if p["type"] == "image" else p["text"] for p in m.content)}
        for m in conversation.messages
    ]
    return {"id": conversation.id, "messages": turns, "images": list(conversation.images)}


def _missing_images(images: Path | None) -> Callable[[Conversation], list[str]]:
    """What of a conversation's images is not in the folder or corpus; nothing is missing where none is named."""
    if images is None:
        return lambda conversation: []
    if (images / INDEX).is_file():
        held = Corpus(images)
        return lambda conversation: [f"no image {key!r} in {images}" for key in conversation.images if key not in held]
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; give a corpus, or a folder of image files")
    return lambda conversation: [
        f"no image {key!r} in {images}" for key in conversation.images if not (key and (images / key).is_file())
    ]


def _all_strings(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _parts(value: str) -> tuple[dict[str, str], ...]:
    """A question as parts, each `<image>` where it stands."""
    pieces = (piece.strip() for piece in re.split(f"({re.escape(IMAGE)})", value))
    return tuple({"type": "image"} if piece == IMAGE else {"type": "text", "text": piece} for piece in pieces if piece)


def _text(value: str) -> tuple[dict[str, str], ...]:
    return ({"type": "text", "text": value.strip()},)
