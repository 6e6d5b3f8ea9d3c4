"""Conversations beside image and source text, as rows for a terminal or for JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.records import Conversation, Pair, read_conversations

FILE = "instruct.jsonl"


def show(data: Path, limit: int = 3, key: str | None = None, save: Path | None = None) -> list[dict[str, Any]]:
    """The first `limit` conversations of an instruct folder or of a .jsonl file, or the one about `key` (a pair or an
    id): id, images, turns, and where they come from. Where the corpus that the folder's manifest names is still
    there, caption and mentions are added, and where the bytes of the image lie; with `save` they are written into that
    folder as files."""
    if save is not None and save.is_file():
        raise InputError(f"{save}: a file; give a folder for the images")
    path = data / FILE if data.is_dir() else data
    if not path.is_file():
        raise InputError(f"{path}: no such file; `llavamed instruct generate CORPUS --out FOLDER` makes one")
    conversations: list[Conversation] = []
    for conversation in read_conversations(path):
        if len(conversations) == limit:
            break
        if key is None or key in (conversation.id, conversation.source.get("pair")):
            conversations.append(conversation)
    if key is not None and not conversations:
        raise InputError(f"{path}: no conversation with the id or about the pair {key!r}")
    corpus = _corpus(path.parent)
    wanted = {str(c.source.get("pair", "")) for c in conversations}
    pairs = {pair.key: pair for pair in corpus.pairs() if pair.key in wanted} if corpus else {}
    return [_row(c, pairs.get(str(c.source.get("pair", ""))), corpus, save) for c in conversations]


def images(data: Path) -> Callable[[str], bytes] | None:
    """How to get an image by its key: from the corpus that the folder's manifest names. None if it is not there."""
    corpus = _corpus(data if data.is_dir() else data.parent)
    return corpus.image if corpus else None


def _row(conversation: Conversation, pair: Pair | None, corpus: Corpus | None, save: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": conversation.id, "images": ", ".join(conversation.images)}
    if pair is not None and corpus is not None:
        row["file"] = (
            corpus.place(pair.key) if save is None else _saved(corpus.image(pair.key), save / Path(pair.file).name)
        )
    row |= {name: str(value) for name, value in conversation.source.items() if name != "pair"}
    if pair is not None:
        row |= {"caption": pair.caption, "mentions": " ".join(m.sentence for m in pair.mentions)}
    for number, message in enumerate(conversation.messages):
        row[f"{message.role} {number // 2 + 1}"] = "[image] " * message.num_images + message.text
    return row


def _saved(data: bytes, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def _corpus(folder: Path) -> Corpus | None:
    """The corpus beside the conversations; None if it is not there any more."""
    place = (manifest.read(folder) or {}).get("extra", {}).get("images")
    corpus = (folder / place).resolve() if place else None
    return Corpus(corpus) if corpus is not None and manifest.read(corpus) is not None else None
