"""Publish phantom pictures as articles, in the layout of the PubMed Central bucket.

    out/PMC99000001.1/PMC99000001.1.xml    JATS with captions, labels, sentences that cite the figures, a licence
                      PMC99000001.1.json   metadata: licence code, retraction, an md5 for each object
                      phantom-g001.jpg     figures
    out/metadata/PMC99000001.1.json        the metadata again
    out/truth.jsonl                        what every figure shows; the pipeline never reads it

Like the real literature it holds what a pipeline must cope with: compound figures, plots and
diagrams, missing and cut images, figures without caption or id, retracted articles, licences that
forbid use or are absent, and a few files that are not XML. The ids lie far above those in use.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree
from lxml.builder import ElementMaker
from PIL import Image, ImageDraw

from llavamed.demo import wording as w
from llavamed.demo.draw import draw
from llavamed.demo.truth import Truth, sample
from llavamed.progress import track

STREAM = 1
FIRST_ID = 99_000_001
XLINK = "http://www.w3.org/1999/xlink"
E = ElementMaker(nsmap={"xlink": XLINK})

LICENCES = (  # PMC licence code, licence URL ("" = prose only), share of articles
    ("CC BY", "https://creativecommons.org/licenses/by/4.0/", 0.62),
    ("CC BY", "", 0.1),
    ("CC0", "https://creativecommons.org/publicdomain/zero/1.0/", 0.12),
    ("CC BY-SA", "https://creativecommons.org/licenses/by-sa/4.0/", 0.06),
    ("CC BY-NC", "https://creativecommons.org/licenses/by-nc/4.0/", 0.05),
    ("CC BY-NC-ND", "https://creativecommons.org/licenses/by-nc-nd/4.0/", 0.03),
    ("", "", 0.02),
)
PROSE = "This is an open access article distributed under the terms of the Creative Commons Attribution License."
KINDS = (("single", 0.74), ("compound", 0.12), ("plot", 0.09), ("diagram", 0.05))
DEFECTS = (("", 0.94), ("image_missing", 0.02), ("image_cut", 0.02), ("caption_missing", 0.01), ("id_missing", 0.01))
FORMATS = ((".jpg", "JPEG", 0.8), (".png", "PNG", 0.15), (".tif", "TIFF", 0.05))
RETRACTED_SHARE, NOT_XML_SHARE = 0.015, 0.01


@dataclass(frozen=True)
class Figure:
    """One figure as published; `truths` has one entry a panel, none for plots and diagrams."""

    number: int
    kind: str
    defect: str
    truths: tuple[Truth, ...]
    withheld: tuple[str, ...]
    caption: str
    sentences: tuple[str, ...]
    file: str
    data: bytes


def write_articles(out: Path, count: int, seed: int, image_size: int) -> None:
    """`count` articles under `out`. The bytes depend on `seed`, `count` and `image_size` alone."""
    (out / "metadata").mkdir(parents=True, exist_ok=True)
    with (out / "truth.jsonl").open("w", encoding="utf-8") as truths:
        for index in track(range(count), "phantom articles", unit="articles"):
            for row in _write_article(out, index, np.random.default_rng([STREAM, seed, index]), image_size):
                truths.write(json.dumps(row) + "\n")


def _write_article(out: Path, index: int, rng: np.random.Generator, size: int) -> Iterator[dict[str, Any]]:
    name = f"PMC{FIRST_ID + index}.1"
    folder = out / name
    folder.mkdir(exist_ok=True)
    figures = [_figure(number + 1, rng, size) for number in range(rng.integers(2, 5))]
    licence = LICENCES[_pick([share for *_, share in LICENCES], rng)]
    xml = _jats(name, figures, licence, rng)
    if rng.random() < NOT_XML_SHARE:
        xml = xml[: len(xml) // 2]
    files = {f"{name}.xml": xml}
    files |= {f.file: f.data for f in figures if f.defect != "image_missing"}
    for file, data in files.items():
        (folder / file).write_bytes(data)
    metadata = _metadata(name, files, licence[0], retracted=rng.random() < RETRACTED_SHARE)
    for path in (folder / f"{name}.json", out / "metadata" / f"{name}.json"):
        path.write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    for f in figures:
        yield {
            "article": name, "figure": f"F{f.number}", "kind": f.kind, "defect": f.defect,
            "truths": [asdict(t) for t in f.truths], "withheld": f.withheld,
        }  # fmt: skip


def _figure(number: int, rng: np.random.Generator, size: int) -> Figure:
    kind = KINDS[_pick([share for _, share in KINDS], rng)][0]
    defect = DEFECTS[_pick([share for _, share in DEFECTS], rng)][0]
    cited = f"Figure {number}" if rng.random() < 0.6 else f"Fig. {number}"
    truths: tuple[Truth, ...] = ()
    withheld: tuple[str, ...] = ()
    if kind == "single":
        truths = (sample(rng),)
        telling = w.tell(truths[0], cited, rng)
        caption, sentences, withheld = telling.caption, telling.sentences, telling.withheld
        picture = draw(truths[0], rng, size)
    elif kind == "compound":
        truths = (sample(rng), sample(rng))
        parts = [w.tell(t, f"{cited}{letter}", rng) for t, letter in zip(truths, "AB", strict=True)]
        caption = " ".join(f"({letter}) {part.caption}" for part, letter in zip(parts, "AB", strict=True))
        sentences = tuple(s for part in parts for s in part.sentences)
        gutter = np.full((size, size // 20, 3), 255, np.uint8)
        picture = np.concatenate([draw(truths[0], rng, size), gutter, draw(truths[1], rng, size)], axis=1)
    else:
        drawing, captions = (_plot, PLOT_CAPTIONS) if kind == "plot" else (_diagram, DIAGRAM_CAPTIONS)
        caption, picture = w.choose(rng, captions), drawing(rng, size)
        sentences = (f"The data are summarised in {cited}.",)
    suffix, encoder, _ = FORMATS[_pick([share for *_, share in FORMATS], rng)]
    out = io.BytesIO()
    Image.fromarray(picture).save(out, encoder, **({"quality": 92} if encoder == "JPEG" else {}))
    data = out.getvalue()
    return Figure(
        number=number, kind=kind, defect=defect, truths=truths, withheld=withheld,
        caption="" if defect == "caption_missing" else caption, sentences=sentences,
        file=f"phantom-g{number:03d}{suffix}", data=data[: len(data) // 2] if defect == "image_cut" else data,
    )  # fmt: skip


PLOT_CAPTIONS = (
    "Bar chart of the number of examinations per year.",
    "Bar graph comparing the groups; error bars show the standard deviation.",
    "Kaplan-Meier curve of overall survival in both groups.",
)
DIAGRAM_CAPTIONS = ("Flow chart of patient selection.", "Schematic diagram of the study design.")


def _plot(rng: np.random.Generator, size: int) -> np.ndarray:
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    low, left = int(size * 0.88), int(size * 0.12)
    pen.line([(left, size // 10), (left, low), (size - 8, low)], fill="black", width=2)
    bars = int(rng.integers(3, 6))
    step = (size - left - 10) / bars
    for bar in range(bars):
        x = left + 5 + bar * step
        top = low - int(rng.uniform(0.15, 0.75) * size)
        pen.rectangle([x, top, x + step * 0.6, low], fill=tuple(int(v) for v in rng.integers(40, 200, 3)))
    return np.asarray(picture)


def _diagram(rng: np.random.Generator, size: int) -> np.ndarray:
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    rows = int(rng.integers(3, 5))
    height = size // (rows * 2)
    for row in range(rows):
        top = size // 20 + row * 2 * height
        pen.rectangle([size * 0.25, top, size * 0.75, top + height], outline="black", width=2)
        if row + 1 < rows:
            pen.line([(size // 2, top + height), (size // 2, top + 2 * height)], fill="black", width=2)
    return np.asarray(picture)


def _jats(name: str, figures: list[Figure], licence: tuple[str, str, float], rng: np.random.Generator) -> bytes:
    number = name.removeprefix("PMC").split(".")[0]
    code, url, _ = licence
    permissions = E.permissions()
    if code:
        text = PROSE if not url else "The terms of the licence apply."
        tag = E.license(E("license-p", text))
        if url:
            tag.set(f"{{{XLINK}}}href", url)
        permissions.append(tag)
    topics = sorted({t.organ for f in figures for t in f.truths}) or ["cohort"]
    front = E.front(
        E("journal-meta", E("journal-title-group", E("journal-title", "Phantom Reports"))),
        E(
            "article-meta",
            E("article-id", number, {"pub-id-type": "pmc"}),
            E("article-id", number, {"pub-id-type": "pmid"}),
            E("article-id", f"10.5555/phantom.{number}", {"pub-id-type": "doi"}),
            E("title-group", E("article-title", f"Phantom report on the {' and '.join(topics)}")),
            permissions,
        ),
    )
    body = E.body()
    section = E.sec(E.title("Findings"))
    for figure in figures:
        section.append(_paragraph(figure, rng))
        if rng.random() < 0.7:  # most journals put figures between paragraphs, some into them
            section.append(_fig(figure))
        else:
            section[-1].append(_fig(figure))
    body.append(section)
    article = E.article(front, body, {"article-type": "research-article"})
    return etree.tostring(article, xml_declaration=True, encoding="UTF-8", pretty_print=False)


def _paragraph(figure: Figure, rng: np.random.Generator) -> Any:
    """The citing sentences among others, each "Figure N" a cross-reference."""
    others = [w.choose(rng, w.MENTIONS["other"]) for _ in range(rng.integers(1, 3))]
    paragraph = E.p(" ".join(others) + " ")
    for sentence in figure.sentences:
        for form in (f"Figure {figure.number}", f"Fig. {figure.number}"):
            before, found, after = sentence.partition(form)
            if found:
                letter = after[:1] if after[:1] in "AB" else ""
                attributes = {"ref-type": "fig", "rid": f"F{figure.number}"}
                reference = E.xref(form + letter, attributes)
                _append_text(paragraph, before)
                paragraph.append(reference)
                reference.tail = after[len(letter) :] + " "
                break
    return paragraph


def _append_text(parent: Any, text: str) -> None:
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text


def _fig(figure: Figure) -> Any:
    tag = E.fig(E.label(f"Figure {figure.number}"))
    if figure.defect != "id_missing":
        tag.set("id", f"F{figure.number}")
    if figure.caption:
        tag.append(E.caption(E.p(figure.caption)))
    tag.append(E.graphic({f"{{{XLINK}}}href": figure.file.rsplit(".", 1)[0]}))
    return tag


def _metadata(name: str, files: dict[str, bytes], code: str, *, retracted: bool) -> dict[str, Any]:
    pmcid, version = name.split(".")
    urls = {f: f"s3://pmc-oa-opendata/{name}/{f}?md5={hashlib.md5(d).hexdigest()}" for f, d in files.items()}
    number = pmcid.removeprefix("PMC")
    return {
        "pmcid": pmcid, "version": int(version), "pmid": int(number), "doi": f"10.5555/phantom.{number}",
        "title": f"Phantom report {number}", "citation": f"Phantom Reports. {number}",
        "is_pmc_openaccess": True, "is_manuscript": False, "is_historical_ocr": False, "is_retracted": retracted,
        "license_code": code or None, "xml_url": urls[f"{name}.xml"], "text_url": None, "pdf_url": None,
        "media_urls": [url for file, url in urls.items() if not file.endswith(".xml")],
    }  # fmt: skip


def _pick(shares: list[float], rng: np.random.Generator) -> int:
    return int(rng.choice(len(shares), p=shares))
