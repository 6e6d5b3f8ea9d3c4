"""Batch files: the same questions as files in the OpenAI batch format, for endpoints that answer them within a day at
half the price.

    {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": {...}}         what goes out
    {"custom_id": id, "response": {"status_code": 200, "body": {...}}, "error": null}         what comes back

The `custom_id` is the hash by which the journal knows a question, with its `max_tokens`: "0123456789abcdef-1200". So
the answers go into the journal, and the rest of the stage does not know that they came another way. Nobody can ask back
in a batch: what the model does not take has to be known before (`without`), and what was refused for it says so. A
file holds no more than the vendors take (50,000 requests, 200 MB).
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.instruct.call import Call, known_answer
from llavamed.instruct.endpoint import CONCESSIONS, LENGTH, estimate, meant, reworded, text_of
from llavamed.instruct.journal import Journal
from llavamed.manifest import write_atomic
from llavamed.records import read_jsonl

MAX_REQUESTS, MAX_BYTES = 50_000, 190_000_000
_URL = "/v1/chat/completions"


def write_requests(
    folder: Path, calls: Iterable[Call], journal: Journal, right: Callable[[str], bool], without: Sequence[str] = ()
) -> tuple[list[Path], int]:
    """Write `requests-0001.jsonl` ... with what the journal lacks, worded for a model `without` what these
    concessions name; returns the files and how many requests they hold. A pair whose image cannot be read is left out,
    and told. What ends it early leaves no file. Raises InputError for a folder that is not empty: requests left from
    before would be paid for again."""
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

    try:
        for call in calls:
            number = known_answer(call, journal, right).ask
            if number is None:
                continue
            asked = call.variant(number)
            try:
                body = reworded(asked.sent, without)
            except InputError as error:  # its image: the neighbours go out all the same
                unreadable.append(str(error))
                continue
            row = {"custom_id": f"{asked.id}-{asked.max_tokens}", "method": "POST", "url": _URL, "body": body}
            line = json.dumps(row, ensure_ascii=False) + "\n"
            length = len(line.encode())
            if len(lines) == MAX_REQUESTS or (lines and size + length > MAX_BYTES):
                flush()
                size = 0
            lines.append(line)
            size, count = size + length, count + 1
        flush()
    except BaseException:  # half an export would stand in the way of the next, or be uploaded
        for file in folder.iterdir():  # which was empty
            file.unlink()
        raise
    if unreadable:
        print(f"{folder}: {len(unreadable):,} pairs are not in it; the first: {unreadable[0]}", file=sys.stderr)
    return files, count


def read_results(
    paths: Sequence[Path], journal: Journal, model: str = "", without: Sequence[str] = ()
) -> tuple[Counter[str], Counter[str]]:
    """Put the answers of result files into the journal; returns how many came, and how many did not, by reason; and how
    many were refused for a parameter, by the concession beyond `without` that would mend it. `model` is who was asked:
    the results may name a dated version of it. What the journal holds already is passed over. Raises InputError naming
    file and line for what is no result file."""
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for path in paths:
        for number, row in enumerate(read_jsonl(path), 1):
            custom_id = re.fullmatch(r"([0-9a-f]{16})-([0-9]{1,9})", str(row.get("custom_id")))
            if custom_id is None or not {"response", "error"} & row.keys():
                raise InputError(f"{path}:{number}: not a line of a batch's results made from our requests")
            request, max_tokens = custom_id[1], int(custom_id[2])
            held = journal.row(request)
            text, tokens, how = _answer(row)
            if held is not None and not (text is not None and _longer(how, max_tokens, held)):
                counts["known already"] += 1
                continue
            if text is None:
                counts[how] += 1
                refused.update(_parameters(row, without))
                continue
            told = row["response"]["body"].get("model")
            who = told if isinstance(told, str) and not told.startswith(model.rpartition("/")[2]) else model
            cut = {"max_tokens": max_tokens} if how == LENGTH else {}
            journal.keep(request, "", text, tokens, model=who, finish=how, batch=path.name, **cut)
            counts["answers cut at max_tokens" if cut else "answers"] += 1
    return counts, refused


def _answer(row: dict[str, Any]) -> tuple[str | None, tuple[int, int], str]:
    """(text, tokens, how it ended) of a result, or (None, ..., why there is none)."""
    if row.get("error"):
        return None, (0, 0), f"error: {_short(row['error'])}"
    response = row.get("response") or {}
    body = response.get("body") or {}
    try:
        if response["status_code"] != 200:
            return None, (0, 0), f"status {response['status_code']}: {_short(body.get('error', ''))}"
        choice = body["choices"][0]
        text = text_of(choice["message"]["content"])
        usage = body.get("usage") or {}
        tokens = (int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", estimate(text))))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None, (0, 0), "no chat completion"
    return text.encode("utf-8", "replace").decode(), tokens, str(choice.get("finish_reason") or "stop")


def _longer(how: str, max_tokens: int, held: dict[str, Any]) -> bool:
    """Whether an answer says more than the one that the journal holds: that was cut, and this was not, or later."""
    return held.get("finish") == LENGTH and (how != LENGTH or max_tokens > held.get("max_tokens", 0))


def _parameters(row: dict[str, Any], without: Sequence[str]) -> list[str]:
    """The concessions that a refused request asks for, beyond those that were made."""
    response = row.get("response")
    if not isinstance(response, dict) or response.get("status_code") not in (400, 422):
        return []
    return meant(json.dumps(response.get("body")), [name for name, _ in CONCESSIONS if name not in without])


def _short(error: Any) -> str:
    said = error.get("message") or error.get("code") if isinstance(error, dict) else error
    return " ".join(str(said).split())[:120]
