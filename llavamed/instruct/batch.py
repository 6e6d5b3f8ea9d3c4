"""Batch files: the same questions as files in the OpenAI batch format, for endpoints that answer them within a day at
half the price.

    {"custom_id": hash, "method": "POST", "url": "/v1/chat/completions", "body": {...}}         what goes out
    {"custom_id": hash, "response": {"status_code": 200, "body": {...}}, "error": null}         what comes back

The `custom_id` is the hash by which the journal knows a question, so the answers go into the journal, and the rest of
the stage does not know that they came another way. A file holds no more than the vendors take (50,000 requests, 200
MB).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.instruct.ask import VARIANTS, Call, known_answer
from llavamed.instruct.endpoint import estimate
from llavamed.instruct.journal import Journal
from llavamed.manifest import write_atomic
from llavamed.records import read_jsonl

MAX_REQUESTS, MAX_BYTES = 50_000, 190_000_000
_URL = "/v1/chat/completions"


def write_requests(
    folder: Path, calls: Iterable[Call], journal: Journal, right: Callable[[str], bool]
) -> tuple[list[Path], int]:
    """Write `requests-0001.jsonl` ... with what the journal lacks; returns the files and how many requests they hold.
    A pair whose image cannot be read is left out, and told. Raises InputError for a folder that is not empty: requests
    left from before would be paid for again."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder}: not an empty folder; give a new one for the batch files")
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    lines: list[str] = []
    unreadable: list[str] = []
    size = count = 0

    def flush() -> None:
        if lines:
            files.append(folder / f"requests-{len(files) + 1:04d}.jsonl")
            write_atomic(files[-1], "".join(lines))
            lines.clear()

    for call in calls:
        answer, number = known_answer(call, journal, right)
        if answer is not None or number == VARIANTS:
            continue
        asked = call.variant(number)
        try:
            body = asked.sent
        except InputError as error:  # its image: the neighbours go out all the same
            unreadable.append(str(error))
            continue
        row = {"custom_id": asked.id, "method": "POST", "url": _URL, "body": body}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        length = len(line.encode())
        if len(lines) == MAX_REQUESTS or (lines and size + length > MAX_BYTES):
            flush()
            size = 0
        lines.append(line)
        size, count = size + length, count + 1
    flush()
    if unreadable:
        print(f"{folder}: {len(unreadable):,} pairs are not in it; the first: {unreadable[0]}", file=sys.stderr)
    return files, count


def read_results(paths: Sequence[Path], journal: Journal, model: str = "") -> Counter[str]:
    """Put the answers of result files into the journal; returns how many came, and how many did not, by reason. `model`
    is who was asked: the results may name a dated version of it. What the journal holds already is passed over.
    Raises InputError naming file and line for what is no result file."""
    counts: Counter[str] = Counter()
    for path in paths:
        for number, row in enumerate(read_jsonl(path), 1):
            custom_id = row.get("custom_id")
            if not isinstance(custom_id, str) or not _is_hash(custom_id) or not {"response", "error"} & row.keys():
                raise InputError(f"{path}:{number}: not a line of a batch's results made from our requests")
            if custom_id in journal:
                counts["known already"] += 1
                continue
            text, tokens, why = _answer(row)
            if text is None:
                counts[why] += 1
                continue
            told = row["response"]["body"].get("model")
            who = told if isinstance(told, str) and not told.startswith(model.rpartition("/")[2]) else model
            journal.keep(custom_id, "", text, tokens, model=who, batch=path.name)
            counts["answers"] += 1
    return counts


def _answer(row: dict[str, Any]) -> tuple[str | None, tuple[int, int], str]:
    """(text, tokens, "") of a result, or (None, ..., why there is none)."""
    if row.get("error"):
        return None, (0, 0), f"error: {_short(row['error'])}"
    response = row.get("response") or {}
    body = response.get("body") or {}
    try:
        if response["status_code"] != 200:
            return None, (0, 0), f"status {response['status_code']}: {_short(body.get('error', ''))}"
        text = body["choices"][0]["message"]["content"] or ""
        usage = body.get("usage") or {}
        tokens = (int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", estimate(text))))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None, (0, 0), "no chat completion"
    return str(text).encode("utf-8", "replace").decode(), tokens, ""


def _short(error: Any) -> str:
    said = error.get("message") or error.get("code") if isinstance(error, dict) else error
    return " ".join(str(said).split())[:120]


def _is_hash(text: str) -> bool:
    return len(text) == 16 and all(c in "0123456789abcdef" for c in text)
