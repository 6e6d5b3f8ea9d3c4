"""Tables: for people in the terminal, for programs as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


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
