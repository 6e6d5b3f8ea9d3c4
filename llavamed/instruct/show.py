"""Conversations beside the text they were made from, as rows for a terminal or for JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.records import Conversation, Pair, read_conversations

FILE = "instruct.jsonl"


def show(data: Path, limit: int = 3) -> list[dict[str, Any]]:
    """The first `limit` conversations of an instruct folder or of a .jsonl file: id, images, turns, and where they
    come from. Caption and mentions are added if the corpus named by the folder's manifest is still there."""
    path = data / FILE if data.is_dir() else data
    if not path.is_file():
        raise InputError(f"{path}: no such file; `llavamed instruct generate CORPUS --out FOLDER` makes one")
    conversations: list[Conversation] = []
    for conversation in read_conversations(path):
        if len(conversations) == limit:
            break
        conversations.append(conversation)
    pairs = _pairs(path.parent, {str(c.source.get("pair", "")) for c in conversations})
    return [_row(c, pairs.get(str(c.source.get("pair", "")))) for c in conversations]


def _row(conversation: Conversation, pair: Pair | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": conversation.id, "images": ", ".join(conversation.images)}
    row |= {name: str(value) for name, value in conversation.source.items() if name != "pair"}
    if pair is not None:
        row |= {"caption": pair.caption, "mentions": " ".join(m.sentence for m in pair.mentions)}
    for number, message in enumerate(conversation.messages):
        row[f"{message.role} {number // 2 + 1}"] = "[image] " * message.num_images + message.text
    return row


def _pairs(folder: Path, keys: set[str]) -> dict[str, Pair]:
    """The pairs with these keys, from the corpus beside the conversations; {} if it is not there any more."""
    body = manifest.read(folder) or {}
    place = body.get("extra", {}).get("images")
    corpus = folder / place if place else None
    if corpus is None or manifest.read(corpus) is None:
        return {}
    return {pair.key: pair for pair in Corpus(corpus).pairs() if pair.key in keys}
