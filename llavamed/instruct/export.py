"""Conversations out, for other trainers: one file, and on request the images beside it.

Ours (`messages` with image parts, `images`) is what TRL reads; `strings` has `<image>` in the text, as ms-swift and
LLaMA-Factory want it; `llava` is LLaVA's JSON. Our images are keys of a corpus, which nobody else can open: with a
folder to write them to they become files there, under the names that the file then uses, with the bytes that were
published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.instruct.formats import to_llava, to_strings
from llavamed.instruct.show import FILE
from llavamed.manifest import write_atomic
from llavamed.records import Conversation, read_conversations

WRITERS: dict[str, Callable[[Conversation], dict[str, Any]]] = {
    "llava": to_llava,
    "strings": to_strings,
    "llavamed": Conversation.to_json,
}


def export(data: Path, out: Path, fmt: str, images: Path | None = None) -> tuple[int, int]:
    """Write the conversations of an instruct folder or a .jsonl to `out`; returns how many, and how many images.

    Raises InputError for a format that is none, an absent corpus, or an `images` that is a file.
    """
    if fmt not in WRITERS:
        raise InputError(f"--format {fmt}: not known; give one of {', '.join(WRITERS)}")
    path = data / FILE if data.is_dir() else data
    conversations = read_conversations(path)
    written: dict[str, str] = {}
    if images is not None:
        conversations = _with_files(conversations, _corpus(path.parent), images, written)
    rows = [json.dumps(WRITERS[fmt](conversation), ensure_ascii=False) for conversation in conversations]
    out.parent.mkdir(parents=True, exist_ok=True)
    text = "[\n" + ",\n".join(rows) + "\n]\n" if fmt == "llava" else "".join(f"{row}\n" for row in rows)
    write_atomic(out, text)
    return len(rows), len(written)


def _corpus(folder: Path) -> Corpus:
    place = (manifest.read(folder) or {}).get("extra", {}).get("images")
    if place is None:
        raise InputError(f"{folder}: names no corpus; give the folder that `llavamed instruct generate` wrote")
    return Corpus(folder / place)


def _with_files(
    conversations: Iterator[Conversation], corpus: Corpus, folder: Path, written: dict[str, str]
) -> Iterator[Conversation]:
    if folder.is_file():
        raise InputError(f"{folder}: a file; give a folder for the images")
    folder.mkdir(parents=True, exist_ok=True)
    files = {pair.key: Path(pair.file).name for pair in corpus.pairs()}
    for conversation in conversations:
        for key in conversation.images:
            if key not in written:
                data = corpus.image(key)  # an InputError, if it is not there
                written[key] = files[key]
                (folder / files[key]).write_bytes(data)
        yield replace(conversation, images=tuple(written[key] for key in conversation.images))
