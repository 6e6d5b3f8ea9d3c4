"""The reader against 89 published articles: the counts of an inventory made by other code, and XPath as oracle (most of
it in `benchmarks/jats_articles.py`, which any folder of articles can be given to)."""

from __future__ import annotations

import csv
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from jats_articles import File


@pytest.fixture(scope="module")
def real(shared_data: Path) -> dict[str, File]:
    """name -> the tree as plain lxml reads it with our article, for folders and zips."""
    files = [*shared_data.glob("jats_p*/*.*ml"), *shared_data.glob("jats_packages/*/*.xml")]
    contents = {str(f.relative_to(shared_data)): f.read_bytes() for f in files}
    for package in shared_data.glob("jats_packages/zips/*.zip"):
        with zipfile.ZipFile(package) as archive:
            names = [n for n in archive.namelist() if n.endswith(".xml") and not n.startswith("__MACOSX")]
            contents |= {f"{package.name}!{n}": archive.read(n) for n in names}
    return {name: File(data, name) for name, data in sorted(contents.items())}


@pytest.fixture(scope="module")
def inventory(shared_data: Path) -> list[dict[str, str]]:
    with (shared_data / "jats_inventory.tsv").open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows, delimiter="\t"))


def normal(element: Any) -> str:
    return " ".join(element.xpath("string(.)").split())


def flat(text: str) -> str:
    """As XPath has it, without the sign of an exponent."""
    return text.replace("^", "")


def test_every_file_of_the_inventory_has_as_many_figures_as_it_says(
    real: dict[str, File], inventory: list[dict[str, str]]
) -> None:
    assert len(inventory) == 84
    assert len(real) == 89
    found = {row["file"]: len(real[row["file"]].article.figures) for row in inventory}
    assert found == {row["file"]: int(row["fig"]) for row in inventory}
    assert sum(found.values()) == 499


def test_no_figure_caption_image_or_citation_of_any_article_is_unaccounted_for(real: dict[str, File]) -> None:
    assert {name: file.wrong for name, file in real.items() if file.wrong} == {}


def test_captions_labels_ids_and_hrefs_are_what_xpath_finds(real: dict[str, File]) -> None:
    for name, file in real.items():
        tree, article = file.tree, file.article
        elements = tree.xpath("//*[local-name()='fig']")
        assert len(elements) == len(article.figures), name
        for element, figure in zip(elements, article.figures, strict=True):
            parts = element.xpath("*[local-name()='caption']/*[local-name()='title' or local-name()='p']")
            assert flat(figure.caption) == flat(" ".join(normal(part) for part in parts)), (name, figure.id)
            assert figure.label == "".join(normal(e) for e in element.xpath("*[local-name()='label']")), name
            assert figure.id == element.get("id", "")
            hrefs = element.xpath(".//*[local-name()='graphic']/@*[local-name()='href']")
            assert list(figure.graphics) == [h for h in hrefs if "thumbnail" not in h], (name, figure.id)


def test_captions_and_citations_are_as_many_as_the_inventory_says(
    real: dict[str, File], inventory: list[dict[str, str]]
) -> None:
    for row in inventory:
        file = real[row["file"]]
        assert file.counts["captions"] == int(row["fig"]) - int(row["no_caption"]), row["file"]
        by_type = file.tree.xpath("count(//*[local-name()='xref'][@ref-type='fig'])")
        assert by_type == int(row["xref_fig"]) <= file.counts["xrefs"], row["file"]
        # the one id that nobody has stands in "Figure 2", and there is a figure of that label without an id
        unresolved = 0 if "hoehnea" in row["file"] else int(row["xref_unresolved"])
        assert file.counts["listed"] == len(file.article.unresolved) == unresolved, row["file"]


def test_mentions_lie_in_their_paragraphs_and_name_a_figure(real: dict[str, File]) -> None:
    for name, file in real.items():
        for figure in file.article.figures:
            for mention in figure.mentions:
                assert mention.sentence in mention.paragraph, name
                # two articles end a paragraph with an empty <xref/> behind the last sentence
                assert any(c.isdigit() for c in mention.sentence) or "0030408" in name or "0020402" in name, name


def test_no_caption_leaks_into_a_paragraph_of_the_text(real: dict[str, File]) -> None:
    for name, file in real.items():
        article = file.article
        paragraphs = {m.paragraph for figure in article.figures for m in figure.mentions}
        captions = [figure.caption for figure in article.figures if len(figure.caption) > 60]
        assert not any(caption in paragraph for caption in captions for paragraph in paragraphs), name


def test_ranges_of_a_real_article_cite_their_middle_figures(real: dict[str, File]) -> None:
    article = real["jats_plos/journal.pone.0087236.xml"].article
    by_label = {figure.label: figure for figure in article.figures}
    assert any("9–11" in m.sentence for m in by_label["Figure 10"].mentions)  # "Figs 9–11": no xref names figure 10
    assert any("21–23" in m.sentence for m in by_label["Figure 22"].mentions)
    assert any("43–46" in m.sentence for m in by_label["Figure 44"].mentions)
    assert any("43–46" in m.sentence for m in by_label["Figure 45"].mentions)


def test_citations_inside_italic_and_bold_are_all_found(real: dict[str, File]) -> None:
    article = real["jats_pmc/PMC3339583.xml"].article  # 72 of its 84 citations are nested
    assert all(figure.mentions for figure in article.figures)


def test_licences_of_the_five_abdominal_imaging_articles_are_unknown(real: dict[str, File]) -> None:
    for number in (2386533, 2491404, 2774419, 2852030, 2900587):
        assert real[f"jats_pmc/PMC{number}.xml"].article.licence == "unknown"


def test_licences_agree_with_the_inventory_where_it_has_a_url(
    real: dict[str, File], inventory: list[dict[str, str]]
) -> None:
    for row in inventory:
        found = real[row["file"]].article.licence
        parts = row["licence"].rstrip("/").split("/")
        if "licenses" in parts:
            kind, version = parts[parts.index("licenses") + 1 :][:2]
            assert found == f"CC-{kind.upper()}-{version}", row["file"]
        elif "Creative Commons Attribution" in row["licence_text"]:
            assert found.startswith("CC-BY"), row["file"]


def test_ids_agree_with_the_inventory(real: dict[str, File], inventory: list[dict[str, str]]) -> None:
    for row in inventory:
        article = real[row["file"]].article
        assert article.doi == row["doi"]
        assert article.pmcid.removeprefix("PMC") == row["pmcid"].removeprefix("PMC")
        assert article.title
