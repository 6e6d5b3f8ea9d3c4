"""The reader against 89 published articles: the counts of an inventory made by other code, and XPath as oracle."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from llavamed.corpus.jats import Article, parse_article


@pytest.fixture(scope="module")
def real(shared_data: Path) -> dict[str, tuple[Any, Article]]:
    """name -> (the tree as plain lxml reads it, our article), for folders and zips."""
    files = [*shared_data.glob("jats_p*/*.*ml"), *shared_data.glob("jats_packages/*/*.xml")]
    contents = {str(f.relative_to(shared_data)): f.read_bytes() for f in files}
    for package in shared_data.glob("jats_packages/zips/*.zip"):
        with zipfile.ZipFile(package) as archive:
            names = [n for n in archive.namelist() if n.endswith(".xml") and not n.startswith("__MACOSX")]
            contents |= {f"{package.name}!{n}": archive.read(n) for n in names}
    return {name: (etree.fromstring(data), parse_article(data, name)) for name, data in sorted(contents.items())}


@pytest.fixture(scope="module")
def inventory(shared_data: Path) -> list[dict[str, str]]:
    with (shared_data / "jats_inventory.tsv").open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows, delimiter="\t"))


def normal(element: Any) -> str:
    return " ".join(element.xpath("string(.)").split())


def flat(text: str) -> str:
    """As XPath has it, without the sign of an exponent."""
    return text.replace("^", "")


def test_every_file_of_the_inventory_has_as_many_figures_as_it_says(real: Any, inventory: list[dict[str, str]]) -> None:
    assert len(inventory) == 84
    assert len(real) == 89
    found = {row["file"]: len(real[row["file"]][1].figures) for row in inventory}
    assert found == {row["file"]: int(row["fig"]) for row in inventory}
    assert sum(found.values()) == 499


def test_captions_labels_ids_and_hrefs_are_what_xpath_finds(real: Any) -> None:
    for name, (tree, article) in real.items():
        elements = tree.xpath("//*[local-name()='fig']")
        assert len(elements) == len(article.figures), name
        for element, figure in zip(elements, article.figures, strict=True):
            parts = element.xpath("*[local-name()='caption']/*[local-name()='title' or local-name()='p']")
            assert flat(figure.caption) == flat(" ".join(normal(part) for part in parts)), (name, figure.id)
            assert figure.label == "".join(normal(e) for e in element.xpath("*[local-name()='label']")), name
            assert figure.id == element.get("id", "")
            hrefs = element.xpath(".//*[local-name()='graphic']/@*[local-name()='href']")
            assert list(figure.graphics) == [h for h in hrefs if "thumbnail" not in h], (name, figure.id)


def test_every_citation_of_a_figure_is_resolved_or_listed_with_its_text(
    real: Any, inventory: list[dict[str, str]]
) -> None:
    for row in inventory:
        tree, article = real[row["file"]]
        xrefs = tree.xpath("//*[local-name()='xref'][@ref-type='fig']")
        assert len(xrefs) == int(row["xref_fig"])
        ids = {i for e in tree.xpath("//*[local-name()='fig' or local-name()='fig-group']") for i in e.xpath(".//@id")}
        lost = [(rid, normal(x)) for x in xrefs for rid in x.get("rid", "").split() if rid not in ids]
        assert len(lost) == int(row["xref_unresolved"]), row["file"]
        misnamed = [x for x in tree.xpath("//*[local-name()='xref'][not(@ref-type='fig')]") if x.get("rid", "") in ids]
        assert article.citations == len(xrefs) + len(misnamed), row["file"]
        unresolved = [(u.rid, u.text) for u in article.unresolved]
        # the one id that nobody has stands in "Figure 2", and there is a figure of that label without an id
        assert unresolved == [] if "hoehnea" in row["file"] else unresolved == lost, row["file"]


def test_no_caption_of_the_inventory_is_lost_or_cut(real: Any, inventory: list[dict[str, str]]) -> None:
    for row in inventory:
        tree, article = real[row["file"]]
        assert sum(not figure.caption for figure in article.figures) == int(row["no_caption"]), row["file"]
        # the words of every caption of the file, wherever it stands, in the order of the file
        words = flat(
            " ".join(normal(c) for c in tree.xpath("//*[local-name()='fig']/*[local-name()='caption']/*"))
        ).split()
        assert flat(" ".join(figure.caption for figure in article.figures)).split() == words, row["file"]


def test_every_figure_that_the_text_cites_has_a_mention_and_no_other(real: Any) -> None:
    for name, (tree, article) in real.items():
        cited = tree.xpath(
            "//*[local-name()='xref'][not(ancestor::*[local-name()='fig' or local-name()='fig-group'])]"
            "[not(ancestor::*[local-name()='td' or local-name()='th'])]/@rid"
        )
        ids = {figure.id for figure in article.figures} - {""}
        named = {rid for rids in cited for rid in rids.split()} & ids
        mentioned = {figure.id for figure in article.figures if figure.mentions}
        assert named <= mentioned, name
        # what is mentioned beyond that stands inside a range or in a table cell
        ranges = "0087236 0120924 0005723 0100977 0040045 1004082 1004453 36842 0050698 0119705 PMC3339583".split()  # noqa: SIM905
        assert mentioned == named or any(part in name for part in ranges), name


def test_mentions_lie_in_their_paragraphs_and_name_a_figure(real: Any) -> None:
    for name, (_, article) in real.items():
        for figure in article.figures:
            for mention in figure.mentions:
                assert mention.sentence in mention.paragraph, name
                # two articles end a paragraph with an empty <xref/> behind the last sentence
                assert any(c.isdigit() for c in mention.sentence) or "0030408" in name or "0020402" in name, name


def test_no_caption_leaks_into_a_paragraph_of_the_text(real: Any) -> None:
    for name, (_, article) in real.items():
        paragraphs = {m.paragraph for figure in article.figures for m in figure.mentions}
        captions = [figure.caption for figure in article.figures if len(figure.caption) > 60]
        assert not any(caption in paragraph for caption in captions for paragraph in paragraphs), name


def test_ranges_of_a_real_article_cite_their_middle_figures(real: Any) -> None:
    article = real["jats_plos/journal.pone.0087236.xml"][1]
    by_label = {figure.label: figure for figure in article.figures}
    assert any("9–11" in m.sentence for m in by_label["Figure 10"].mentions)  # "Figs 9–11": no xref names figure 10
    assert any("21–23" in m.sentence for m in by_label["Figure 22"].mentions)
    assert any("43–46" in m.sentence for m in by_label["Figure 44"].mentions)
    assert any("43–46" in m.sentence for m in by_label["Figure 45"].mentions)


def test_citations_inside_italic_and_bold_are_all_found(real: Any) -> None:
    article = real["jats_pmc/PMC3339583.xml"][1]  # 72 of its 84 citations are nested
    assert all(figure.mentions for figure in article.figures)


def test_licences_of_the_five_abdominal_imaging_articles_are_unknown(real: Any) -> None:
    for number in (2386533, 2491404, 2774419, 2852030, 2900587):
        assert real[f"jats_pmc/PMC{number}.xml"][1].licence == "unknown"


def test_licences_agree_with_the_inventory_where_it_has_a_url(real: Any, inventory: list[dict[str, str]]) -> None:
    for row in inventory:
        found = real[row["file"]][1].licence
        parts = row["licence"].rstrip("/").split("/")
        if "licenses" in parts:
            kind, version = parts[parts.index("licenses") + 1 :][:2]
            assert found == f"CC-{kind.upper()}-{version}", row["file"]
        elif "Creative Commons Attribution" in row["licence_text"]:
            assert found.startswith("CC-BY"), row["file"]


def test_ids_agree_with_the_inventory(real: Any, inventory: list[dict[str, str]]) -> None:
    for row in inventory:
        article = real[row["file"]][1]
        assert article.doi == row["doi"]
        assert article.pmcid.removeprefix("PMC") == row["pmcid"].removeprefix("PMC")
        assert article.title
