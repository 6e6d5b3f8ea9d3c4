"""The attribution: authors, link and licence of every article, exceptions by key, and nothing in it that acts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.corpus import attribution, prune
from llavamed.corpus.build import build
from llavamed.corpus.store import Corpus
from llavamed.recipe import CorpusSection
from llavamed.records import Pair

NC = "<permissions><license xlink:href='https://creativecommons.org/licenses/by-nc/4.0/'/></permissions>"
META = (
    "<article-id pub-id-type='pmc'>5</article-id><title-group><article-title>On plates</article-title></title-group>"
    "<contrib-group><contrib contrib-type='author'><name><surname>Lovelace</surname>"
    "<given-names>Ada</given-names></name></contrib></contrib-group>"
    "<permissions><license xlink:href='https://creativecommons.org/licenses/by/4.0/'/></permissions>"
)


def article(*figures: tuple[str, str], meta: str = META) -> bytes:
    """(href, what stands in the figure beside its caption and graphic)."""
    body = "".join(
        f"<fig id='f{n}'><caption><p>Axial CT of the liver</p></caption><graphic xlink:href='{href}'/>{more}</fig>"
        for n, (href, more) in enumerate(figures, 1)
    )
    return (
        f"<article xmlns:xlink='http://www.w3.org/1999/xlink'><front><article-meta>{meta}</article-meta></front>"
        f"<body>{body}</body></article>"
    ).encode()


def images(count: int) -> dict[str, bytes]:
    found = {}
    for n in range(1, count + 1):
        out = io.BytesIO()
        values = np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(out, "JPEG")
        found[f"a/g{n}.jpg"] = out.getvalue()
    return found


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pair(key: str, **more: str) -> Pair:
    return Pair(key, "", "", article="PMC1.1", **{"licence": "CC-BY-4.0", **more})  # type: ignore[arg-type]


def written(*pairs: Pair) -> list[str]:
    credits: dict[str, attribution.Entry] = {}
    for one in pairs:
        attribution.add(credits, one)
    return list(attribution.lines(credits))


@pytest.mark.parametrize("order", [("", NC), (NC, "")])
def test_each_figure_is_named_with_its_own_licence_whichever_comes_first(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    files = {"a/a.xml": article(("g1", order[0]), ("g2", order[1])), **images(2)}
    build(put(tmp_path / "in", files), tmp_path / "out", CorpusSection(licence="noncommercial"), workers=1)
    text = (tmp_path / "out/ATTRIBUTION.md").read_text()
    address = "<https://pmc.ncbi.nlm.nih.gov/articles/PMC5/>"
    first, second = ("CC-BY-NC-4.0", "CC-BY-4.0") if order[0] else ("CC-BY-4.0", "CC-BY-NC-4.0")
    assert f"- Ada Lovelace. On plates. {address} (PMC5). {first}.\n  - {second}: `PMC5_f2`\n" in text
    assert "| CC-BY-NC-4.0 | 1 | <https://creativecommons.org/licenses/by-nc/4.0/> |" in text
    assert [p.authors for p in Corpus(tmp_path / "out").pairs()] == ["Ada Lovelace"] * 2


def test_texts_without_an_image_are_credited_and_stay_so_when_pairs_are_taken_out(tmp_path: Path) -> None:
    other = META.replace(">5<", ">6<").replace("by/4.0", "by/3.0")
    files = {"a/a.xml": article(("g1", "")), **images(1), "b/b.xml": article(("gone", ""), meta=other)}
    out = tmp_path / "out"
    build(put(tmp_path / "in", files), out, workers=1)
    text = (out / "ATTRIBUTION.md").read_text()
    assert "(PMC6). CC-BY-3.0." in text
    assert "| CC-BY-3.0 | 0 |" in text
    prune.begin(out, ["PMC5_f1"], [], {"benchmark_image": 1}, [])
    text = (out / "ATTRIBUTION.md").read_text()
    assert "(PMC6). CC-BY-3.0." in text
    assert "PMC5" not in text


def test_what_a_figure_says_of_its_origin_is_kept_and_said(tmp_path: Path) -> None:
    files = {"a/a.xml": article(("g1", "<attrib>Source: plate 4 of the atlas</attrib>")), **images(1)}
    build(put(tmp_path / "in", files), tmp_path / "out", workers=1)
    (one,) = Corpus(tmp_path / "out").pairs()
    assert (one.caption, one.credit) == ("Axial CT of the liver", "Source: plate 4 of the atlas")
    assert "  - `PMC5_f1`: Source: plate 4 of the atlas" in (tmp_path / "out/ATTRIBUTION.md").read_text()


def test_the_link_is_the_doi_else_pubmed_central_else_pubmed() -> None:
    assert attribution.link(pair("k", doi="10.1002/(SICI)1<1661::AID>3.0 x")) == (
        "https://doi.org/10.1002/(SICI)1%3C1661::AID%3E3.0%20x"
    )
    assert attribution.link(pair("k")) == "https://pmc.ncbi.nlm.nih.gov/articles/PMC1/"
    assert attribution.link(Pair("k", "", "", article="a", pmid="7")) == "https://pubmed.ncbi.nlm.nih.gov/7/"
    assert attribution.link(Pair("k", "", "", article="a", pmid="../x")) == ""


HOSTILE = (
    "[b](http://x) <img src=x onerror=alert(1)> ![i](//x) https://evil.test/a www.evil.test me@evil.test `c` *e* _u_ "
    "~~s~~ # h &lt;script&gt; <script>x</script> | a | <https://x.test> [r][1] \\[z](y) <b>"
)


@pytest.mark.parametrize("field", ["title", "authors", "credit"])
def test_words_of_strangers_are_shown_and_do_nothing(field: str) -> None:
    markdown = pytest.importorskip("markdown_it")
    lines = written(pair("k", **{field: HOSTILE}), pair("k2", licence="CC-BY-NC-4.0"))
    tokens = markdown.MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse("\n".join(lines))
    inline = [child for token in tokens for child in token.children or ()]
    links = [child.attrs["href"] for child in inline if child.type == "link_open"]
    assert links == ["https://pmc.ncbi.nlm.nih.gov/articles/PMC1/"]
    kinds = {child.type for child in inline} | {token.type for token in tokens}
    assert not kinds & {"image", "em_open", "strong_open", "s_open", "heading_open", "table_open", "html_block"}
    assert all(child.content == "<!-- -->" for child in inline if child.type == "html_inline")
    shown = "".join(child.content for child in inline if child.type in ("text", "text_special"))
    assert HOSTILE in shown


def test_an_entry_met_twice_is_one_and_says_every_licence() -> None:
    first: dict[str, attribution.Entry] = {}
    second: dict[str, attribution.Entry] = {}
    attribution.add(first, pair("a"))
    attribution.add(second, pair("b", licence="CC-BY-NC-4.0"))
    attribution.add(second, pair("c", licence="CC-BY-SA-4.0", credit="Atlas"))
    attribution.merge(first, second)
    assert list(attribution.lines(first))[1:] == [
        "  - CC-BY-NC-4.0: pairs of another copy, whose field `licence` says so",
        "  - CC-BY-SA-4.0: `c`",
        "  - `c`: Atlas",
    ]
