"""One self-contained HTML page: the end of every stage.

A page is a title, a line that says what made it, and a list of blocks (tables, figures, cards of
image + text). Figures and images are inlined, so the file can be mailed and opens anywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from llavamed.manifest import write_atomic

_MEDIA = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


@dataclass
class Block:
    """One section; all of its text goes through the template's escaping."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    figures: Sequence[str] = ()  # data URLs
    cards: Sequence[Mapping[str, Any]] = ()  # {"image": data URL or "", "title": str, "lines": [(name, text)]}
    links: Sequence[tuple[str, str]] = ()  # (text, relative path)


@dataclass
class Page:
    title: str
    subtitle: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)  # the row of large numbers at the top
    blocks: list[Block] = field(default_factory=list)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], text: str = "") -> None:
        self.blocks.append(Block(title, text, columns=columns, rows=rows))

    def figures(self, title: str, figures: Sequence[Any], text: str = "") -> None:
        """`figures` are matplotlib figures."""
        self.blocks.append(Block(title, text, figures=[_figure_url(f) for f in figures]))

    def cards(self, title: str, cards: Sequence[Mapping[str, Any]], text: str = "") -> None:
        self.blocks.append(Block(title, text, cards=cards))

    def links(self, title: str, links: Sequence[tuple[str, str]], text: str = "") -> None:
        self.blocks.append(Block(title, text, links=links))

    def html(self) -> str:
        source = (resources.files("llavamed") / "report.html.jinja").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(source).render(page=self)

    def write(self, path: Path) -> None:
        write_atomic(path, self.html())


def image_url(data: bytes) -> str:
    """A data URL for the bytes of a PNG, JPEG, GIF or WebP; raises ValueError for anything else."""
    for magic, kind in _MEDIA.items():
        if data.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    raise ValueError(f"not a PNG, JPEG, GIF or WebP image (starts with {data[:4]!r})")


def _figure_url(figure: Any) -> str:
    # no software version in the metadata: the same curve is the same bytes
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return image_url(out.getvalue())


def new_figure(width: float = 6.0, height: float = 3.2) -> tuple[Any, Any]:
    """A matplotlib figure and axes without the pyplot state machine (safe in threads and servers)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes
