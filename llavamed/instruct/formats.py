"""Conversations in other people's formats: LLaVA's JSON in and out, and benchmarks as conversations.

LLaVA's record is {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]} with the mark
`<image>` before or after the first question. What goes wrong in the field is a record whose marks and
images do not match: some trainers drop it silently, others stop hours later. So `import_file` looks at
every record before it returns any, and lists all that is wrong in one error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.manifest import write_atomic
from llavamed.records import Conversation, Message, Question, assistant, read_jsonl, user

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


def write_llava(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write a LLaVA .json file; returns the number of records."""
    rows = [to_llava(conversation) for conversation in conversations]
    write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return len(rows)


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


def import_file(path: Path, fmt: str) -> list[Conversation]:
    """All conversations of a file; `fmt` is "llava" (.json or .jsonl) or "llavamed" (our .jsonl).

    Raises one InputError that names every problem with its record; nothing is skipped.
    """
    if fmt not in ("llava", "llavamed"):
        raise InputError(f"--format {fmt}: not known; give llava or llavamed")
    conversations: list[Conversation] = []
    wrong: list[str] = []
    ids: set[str] = set()
    for number, row in enumerate(_rows(path), 1):
        where = f"record {number} (id {str(row.get('id', '?'))!r})"
        try:
            conversation = from_llava(row, f"{path.stem}-{number}") if fmt == "llava" else Conversation.from_json(row)
            wrong += [f"{where}: {problem}" for problem in problems(conversation)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"not a conversation ({error!r})"
            wrong.append(f"{where}: {reason}")
            continue
        if conversation.id in ids:
            wrong.append(f"{where}: the id occurs twice")
        ids.add(conversation.id)
        conversations.append(conversation)
    if wrong:
        listed = "; ".join(wrong[:_LISTED])
        more = f"; and {len(wrong) - _LISTED:,} more" if len(wrong) > _LISTED else ""
        raise InputError(f"{path}: {len(wrong):,} problems, mend or remove these records: {listed}{more}")
    if not conversations:
        raise InputError(f"{path}: no conversations in it")
    return conversations


def _all_strings(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON array or of JSON lines; told apart by the first character, not by the name."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .json or .jsonl of conversations")
    try:
        with path.open(encoding="utf-8") as text:
            first = text.read(1)
            while first.isspace():
                first = text.read(1)
            if first != "[":
                yield from read_jsonl(path)
                return
            rows = json.loads("[" + text.read())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error.msg} in line {error.lineno}); is the file whole?") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; give a .json or .jsonl of conversations") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: record {number} is a {type(row).__name__}, not an object")
        yield row


def _parts(value: str) -> tuple[dict[str, str], ...]:
    """A question as parts, each `<image>` where it stands."""
    pieces = (piece.strip() for piece in re.split(f"({re.escape(IMAGE)})", value))
    return tuple({"type": "image"} if piece == IMAGE else {"type": "text", "text": piece} for piece in pieces if piece)


def _text(value: str) -> tuple[dict[str, str], ...]:
    return ({"type": "text", "text": value.strip()},)
