"""Compound figures: the caption's labels, the picture's gutters, and both together."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.corpus.build import build
from llavamed.corpus.panel import boxes, is_compound, parts, split
from llavamed.corpus.show import show
from llavamed.corpus.store import Corpus
from llavamed.demo.articles import write_articles
from llavamed.recipe import CorpusSection


@pytest.mark.parametrize(
    ("caption", "compound"),
    [
        ("(A) CT and (B) MRI of the liver.", True),
        ("Brain CT (A) and MR diffusion images (B, C).", True),
        ("Mid sagittal (a, c) and axial MRI (b, d).", True),
        ("Staining. A, Normal tissue. B, Tumour.", True),
        ("A: before. B: after.", True),
        ("Radiographs before (left panel) and after (right panel).", True),
        ("Series (A-F) of slices.", True),
        ("A 45-year-old man with a mass.", False),
        ("Hepatitis (A) in a child.", False),
        ("CT of the chest (arrow).", False),
        ("Vitamin D and a (b) value were low.", False),
    ],
)
def test_compound_figures(caption: str, compound: bool) -> None:
    assert is_compound(caption) is compound


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("(A) CT and (B) MRI of the liver.", {"A": "CT", "B": "MRI of the liver."}),
        ("Two views. (a) Axial; (b) coronal.", {"A": "Two views. Axial", "B": "Two views. coronal."}),
        ("Staining. A, Normal. B, Tumour.", {"A": "Staining. Normal.", "B": "Staining. Tumour."}),
        ("a Axial CT. b Coronal T1 image", {"A": "Axial CT.", "B": "Coronal T1 image"}),
        ("A scan was made. A Axial view. B Coronal view", {"A": "A scan was made. Axial view.",
                                                           "B": "A scan was made. Coronal view"}),
        # what precedes a label is its text, and the tail is said of all
        ("Brain CT (A) and MRI (B, C) without lesion.",
         {"A": "Brain CT without lesion.", "B": "MRI without lesion.", "C": "MRI without lesion."}),
        ("Sagittal (A, C) and axial MRI (B, D) of the spine.",
         {"A": "Sagittal of the spine.", "B": "axial MRI of the spine.",
          "C": "Sagittal of the spine.", "D": "axial MRI of the spine."}),
        ("Slices. (A-C) Before. (D) After.", {"A": "Slices. Before.", "B": "Slices. Before.", "C": "Slices. Before.",
                                              "D": "Slices. After."}),
        # a label that comes again refers back
        ("(A) CT. (B) MRI of the mass in (A).", {"A": "CT.", "B": "MRI of the mass in (A)."}),
        ("Before (left panel) and after (right panel).", {"left": "Before", "right": "after"}),
        ("Upper row: CT. Lower row: MRI.", {"upper": "CT.", "lower": "MRI."}),
        # a gap, one letter alone, anatomy
        ("(A) CT. (C) MRI.", {}),
        ("Hepatitis (A) in a child.", {}),
        ("The left lung and the right lung are clear.", {}),
        ("CT of the chest (arrow).", {}),
    ],
)  # fmt: skip
def test_the_parts_of_a_caption(caption: str, expected: dict[str, str]) -> None:
    assert {part.label: part.text for part in parts(caption)} == expected


def figure(
    rows: list[list[tuple[int, int]]], gutter: int, paper: int = 255
) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Panels of noise in rows of (width, height), and their boxes."""
    rng = np.random.default_rng(0)
    width = max(sum(w for w, _ in row) + gutter * (len(row) - 1) for row in rows)
    height = sum(max(h for _, h in row) for row in rows) + gutter * (len(rows) - 1)
    made, found, top = np.full((height, width), paper, np.uint8), [], 0
    for row in rows:
        left = 0
        for w, h in row:
            made[top : top + h, left : left + w] = rng.integers(60, 200, (h, w))
            found.append((left, top, left + w, top + h))
            left += w + gutter
        top += max(h for _, h in row) + gutter
    return made, found


@pytest.mark.parametrize("paper", [255, 0])
@pytest.mark.parametrize("gutter", [2, 7, 30])
@pytest.mark.parametrize(
    "rows",
    [
        [[(90, 80), (90, 80)]],
        [[(90, 80)], [(90, 80)], [(90, 80)]],
        [[(90, 80), (90, 80), (90, 80)], [(90, 80), (90, 80), (90, 80)]],
        [[(200, 60)], [(60, 90), (110, 90)]],  # a wide one above two
    ],
)
def test_panels_are_found_in_reading_order(rows: list[list[tuple[int, int]]], gutter: int, paper: int) -> None:
    made, expected = figure(rows, gutter, paper)
    found = boxes(made, len(expected))
    if rows[0][0] == (200, 60):  # its lower row is narrower than the page
        assert [box[:2] for box in found] == [box[:2] for box in expected]
    assert found == expected
    margin = np.pad(made, 20, constant_values=paper)
    assert boxes(margin, len(expected)) == [tuple(v + 20 for v in box) for box in expected]


def test_a_count_that_differs_leaves_the_figure_whole() -> None:
    made, _ = figure([[(90, 80), (90, 80)], [(90, 80), (90, 80)]], 6)
    assert boxes(made, 3) == boxes(made, 5) == []
    assert split(made, "(A) CT. (B) MRI. (C) PET.").whole_because == "counts_differ"
    assert split(made, "CT of four patients.").whole_because == "no_labels"
    assert split(made[:80, :90], "(A) CT. (B) MRI.").whole_because == "no_gutters"


def test_a_panel_that_is_a_grid_of_its_own_is_one_where_its_gutters_are_clearly_narrower() -> None:
    inner, _ = figure([[(60, 60), (60, 60)], [(60, 60), (60, 60)]], 3)
    page = np.full((123, 270), 255, np.uint8)
    page[:, :123], page[:, 147:] = inner, inner
    assert boxes(page, 2) == [(0, 0, 123, 123), (147, 0, 270, 123)]
    assert len(boxes(page, 8)) == 8
    assert boxes(page, 3) == []


def test_letters_above_panels_and_text_of_the_page_are_no_panels() -> None:
    made, expected = figure([[(120, 100), (120, 100)]], 10)
    page = np.pad(made, ((20, 20), (0, 0)), constant_values=255)
    page[4:14, 5:12] = page[4:14, 135:142] = 0  # two letters
    page[134:138, ::2] = 0  # a line of text that was cut through
    assert boxes(page, 2) == [(left, top + 20, right, bottom + 20) for left, top, right, bottom in expected]


def test_columns_are_read_first_where_the_labels_are_left_and_right() -> None:
    made, _ = figure([[(90, 80), (90, 80)], [(90, 80), (90, 80)]], 6)
    made[80:86, :] = 255
    two = split(made, "Left: CT of two. Right: MRI of two.")
    assert two.whole_because == "counts_differ"  # four alike: nothing says which gutter is meant
    made[80:86, :90] = made[80:86, 96:] = 128
    assert [box for _, box in split(made, "Left: CT of two. Right: MRI.").panels] == [
        (0, 0, 90, 166),
        (96, 0, 186, 166),
    ]


def test_real_figures_are_cut_where_their_gutters_are_clear(shared_data: Path) -> None:
    """Looked at as pictures: a row of three and a grid of four; the other three with labels have debris of the page."""
    rows = [json.loads(line) for line in (shared_data / "medicat/sample.jsonl").read_text().splitlines()]
    found = {}
    for row in rows:
        with Image.open(shared_data / "medicat/figures" / f"{row['pdf_hash']}_{row['fig_uri']}") as image:
            result = split(np.asarray(image.convert("L")), row["s2_caption"])
        found[row["pdf_hash"][:4], row["fig_key"]] = [box for _, box in result.panels] or result.whole_because
    assert found["5f2d", "Figure1"] == [(33, 0, 244, 229), (254, 0, 463, 229), (473, 0, 684, 229)]
    assert found["5f2d", "Figure2"] == [(0, 0, 253, 317), (261, 0, 650, 317), (0, 325, 253, 642), (261, 325, 650, 642)]
    assert [found["57c9", f"Figure{n}"] for n in (1, 2, 4)] == ["no_gutters"] * 3
    assert sum(one == "no_labels" for one in found.values()) == 5


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    folder = tmp_path / "articles"
    folder.mkdir()
    captions = ("(A) Axial CT of the liver. (B) Axial MRI of the liver.", "(A) CT. (B) MRI. (C) Gross specimen of it.")
    body = "".join(
        f"<p>Seen in <xref ref-type='fig' rid='f{n}'>Fig. {n}B</xref>.</p><fig id='f{n}'><label>Fig. {n}</label>"
        f"<caption><p>{caption}</p></caption><graphic xlink:href='g{n}'/></fig>"
        for n, caption in enumerate(captions, 1)
    )
    meta = "<license xlink:href='https://creativecommons.org/licenses/by/4.0/'/>"
    (folder / "one.xml").write_text(
        f"<article xmlns:xlink='http://www.w3.org/1999/xlink'><front><article-meta><permissions>{meta}</permissions>"
        f"</article-meta></front><body>{body}</body></article>"
    )
    for number, name in ((1, "g1.jpg"), (2, "g2.png")):
        Image.fromarray(figure([[(90 + number, 80), (90, 80)]], 8)[0]).save(folder / name, quality=95)
    return folder


def test_a_corpus_with_panels_keeps_the_whole_and_counts_both(articles: Path, tmp_path: Path) -> None:
    plain = build(articles, tmp_path / "plain", workers=1)
    made = build(articles, tmp_path / "panels", CorpusSection(panels=True), workers=1)
    assert (plain.counts["pairs"], plain.counts["panels"]) == (2, 0)
    assert (made.counts["pairs"], made.counts["panels"]) == (4, 2)
    assert made.extra["compound"] == {"counts_differ": 1, "split": 1}
    corpus = Corpus(tmp_path / "panels")
    whole, a, b, other = corpus.pairs()
    assert [whole.key, a.key, b.key] == ["one_f1", "one_f1_A", "one_f1_B"]
    assert [pair.domain for pair in (a, b)] == ["ct_scan", "mri"]
    assert [pair.caption for pair in (a, b)] == ["Axial CT of the liver.", "Axial MRI of the liver."]
    assert [len(pair.mentions) for pair in (whole, a, b)] == [1, 0, 1]  # the text cites Fig. 1B
    assert (whole.is_compound, a.is_compound, a.parent, a.panel) == (True, False, "one_f1", "A")
    assert (other.whole_because, whole.whole_because) == ("counts_differ", "")
    assert whole.sha256 == next(Corpus(tmp_path / "plain").pairs()).sha256
    for pair in (a, b):
        left, top, right, bottom = map(int, pair.panel_box.split(","))
        with Image.open(io.BytesIO(corpus.image(pair.key))) as image:
            assert image.size == (pair.width, pair.height) == (right - left, bottom - top)
            cut = np.asarray(Image.open(articles / "g1.jpg").convert("L"), int)[top:bottom, left:right]
            assert np.abs(np.asarray(image.convert("L"), int) - cut).mean() < 4
    row = show(tmp_path / "panels", "one_f1_B")[0]
    assert row["panel"].startswith("B of one_f1, at ")
    page = (tmp_path / "panels/report.html").read_text()
    assert "Compound figures" in page
    assert "panel A of one_f1" in page
    told = [(tmp_path / name / "ATTRIBUTION.md").read_text() for name in ("plain", "panels")]
    assert ["are panels, cut from its picture" in text for text in told] == [False, True]


def test_panels_are_the_same_bytes_in_every_build(articles: Path, tmp_path: Path) -> None:
    files = [build(articles, tmp_path / str(n), CorpusSection(panels=True), workers=1).files for n in (1, 2)]
    assert files[0] == files[1]
    assert sum(name.startswith("shard-") for name in files[0]) == 1


def test_every_compound_figure_of_the_phantom_world_falls_into_the_panels_that_were_drawn(tmp_path: Path) -> None:
    write_articles(tmp_path / "articles", 40, 0, 96)
    rows = map(json.loads, (tmp_path / "articles/truth.jsonl").read_text().splitlines())
    truths = {(row["article"], row["figure"]): row["truths"] for row in rows}
    made = build(tmp_path / "articles", tmp_path / "corpus", CorpusSection(panels=True), workers=1)
    panels = [pair for pair in Corpus(tmp_path / "corpus").pairs() if pair.parent]
    assert made.extra["compound"] == {"split": len(panels) // 2}
    assert len(panels) >= 16
    for pair in panels:
        shown = truths[pair.article, pair.figure]["AB".index(pair.panel)]
        assert pair.domain == shown["domain"], pair.caption
