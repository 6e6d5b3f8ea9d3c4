"""A conversation in the terminal, behind `llavamed chat MODEL --image FILE`.

In go lines that a person types; out come answers, piece by piece as the model makes them. One conversation is about
one picture, as in LLaVA-Med: another picture starts another conversation.

The one hard thing is Ctrl-C. While an answer is written it stops that answer (closing the engine's iterator ends the
generation) and the conversation goes on with what was said; at the prompt it ends the conversation, as Ctrl-D does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from PIL import Image

from llavamed.engine.request import Engine, Request
from llavamed.errors import InputError
from llavamed.imaging.decode import read
from llavamed.records import Message, assistant, user

PROMPT = "you> "
HELP = "/image PATH  another picture, a new conversation     /reset  forget what was said     /quit  end (or Ctrl-D)"
MAX_NEW_TOKENS = 512


def chat(
    engine: Engine,
    images: Sequence[Path],
    stream_out: TextIO,
    read_line: Callable[[str], str] = input,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> None:
    """Converse until /quit or the end of input. `read_line(prompt)` gives a line or raises EOFError, as `input` does.

    Raises InputError for a file in `images` that cannot be read; the same error for `/image` is only told.
    """
    pictures = [read(path) for path in images]
    said: list[Message] = []
    print(f"{engine.name}: for research; not for clinical use", file=stream_out)
    for path, picture in zip(images, pictures, strict=True):
        print(_shown(path, picture), file=stream_out)
    print(HELP, file=stream_out, flush=True)
    while True:
        try:
            line = read_line(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            print(file=stream_out)
            return
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            said = []
            print("forgotten", file=stream_out)
        elif command == "/image":
            path = Path(rest.strip().strip("'\"")).expanduser()
            try:
                pictures = [read(path)]
            except InputError as error:
                print(f"error: {error}", file=stream_out)
                continue
            said = []
            print(_shown(path, pictures[0]), file=stream_out)
        elif command.startswith("/"):
            print(HELP, file=stream_out)
        elif line:
            question = user(line, images=0 if said else len(pictures))
            try:
                answer = _answer(engine, (*said, question), pictures, stream_out, max_new_tokens)
            except InputError as error:
                print(f"error: {error}", file=stream_out)
                continue
            if answer:
                said += [question, assistant(answer)]


def ask(
    engine: Engine, image: Path | None, question: str, stream_out: TextIO, *, max_new_tokens: int = MAX_NEW_TOKENS
) -> str:
    """One question, one answer: written to `stream_out` as it is made, and returned. Raises InputError."""
    pictures = [] if image is None else [read(image)]
    return _answer(engine, (user(question, images=len(pictures)),), pictures, stream_out, max_new_tokens)


def _answer(
    engine: Engine,
    messages: tuple[Message, ...],
    pictures: Sequence[Image.Image],
    stream_out: TextIO,
    max_new_tokens: int,
) -> str:
    """Write the answer as it comes; what was written before a Ctrl-C is the answer then."""
    request = Request(messages=messages, images=tuple(pictures), max_new_tokens=max_new_tokens)
    pieces = engine.stream(request)
    written = ""
    try:
        for piece in pieces:
            written += piece
            stream_out.write(piece)
            stream_out.flush()
    except KeyboardInterrupt:
        stream_out.write(" [stopped]")
    finally:
        if (close := getattr(pieces, "close", None)) is not None:
            close()
        if written and not written.endswith("\n"):
            stream_out.write("\n")
        stream_out.flush()
    return written.strip()


def _shown(path: Path, picture: Image.Image) -> str:
    return f"picture: {path} ({picture.width} x {picture.height})"
