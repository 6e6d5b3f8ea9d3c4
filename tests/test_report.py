"""The page is one file: nothing is fetched, and what a user wrote cannot become markup."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from llavamed.report import Page, image_url, new_figure


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


def test_a_page_is_self_contained_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    figure, axes = new_figure()
    axes.plot([1, 2])
    page = Page("Title", facts={"pairs": 3})
    page.table("Funnel", ["reason", "count"], [["<script>alert(1)</script>", 2]])
    page.figures("Curve", [figure])
    page.cards("Examples", [{"image": image_url(png()), "title": "<b>x</b>", "lines": [("caption", "a & b")]}])
    page.links("More", [("corpus", "corpus/report.html")])
    page.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;b&gt;x" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(s.startswith("data:image/png;base64,") or s == "corpus/report.html" for s in sources)


def test_the_same_figure_is_the_same_bytes() -> None:
    def page() -> str:
        figure, axes = new_figure()
        axes.plot([1, 2, 3])
        made = Page("t")
        made.figures("f", [figure])
        return made.html()

    assert page() == page()


def test_only_browser_formats_are_inlined() -> None:
    with pytest.raises(ValueError, match="not a PNG"):
        image_url(b"II*\x00")
