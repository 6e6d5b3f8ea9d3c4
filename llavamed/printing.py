"""What people get to see: tables in the terminal or as JSON, and addresses without what is secret in them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit


def records(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in rows]


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool, title: str = "") -> None:
    if as_json:
        print(json.dumps(records(columns, rows), indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, title=Text(title) if title else None, title_justify="left")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))  # Text: what stands in [ ] is not markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log file has no width: do not fold the numbers
    console.print(shown)


def funnel(counts: dict[str, int], dropped: dict[str, int], as_json: bool) -> None:
    """What came out of a stage, and what was dropped, by reason."""
    rows = [*counts.items(), *((f"dropped: {reason}", number) for reason, number in dropped.items())]
    table(["what", "count"], [[name, f"{number:,}" if not as_json else number] for name, number in rows], as_json)


def rows_in_full(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Rows of long texts, a line for each field that holds something."""
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        for name, value in row.items():
            if value not in ("", None, (), []):
                print(f"{name:>10}  {value}")
        print()


def public_name(model: str) -> str:
    """`model` as it may be shown and written down: a URL without the user name, password and query it may hold."""
    if not re.match(r"[a-z][a-z0-9+.-]*://", model, re.I):
        return model
    try:
        parts = urlsplit(model)
    except ValueError:  # no URL after all: whatever stands in it
        return f"{model.partition('://')[0]}://..."
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
