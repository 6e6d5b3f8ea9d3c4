"""The counts that the reader is held to (`benchmarks/jats_articles.py`): they see what is wrong, and read odd files as
the reader should."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llavamed.corpus.jats import Article, Figure, Unresolved
from llavamed.records import Mention

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import jats_articles
from jats_articles import File

ARTICLE = """<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><journal-meta><publisher><publisher-name>A Press
</publisher-name></publisher></journal-meta></front><body>
<p>It grew <bold>(<xref ref-type="fig" rid="f1">Fig. 1</xref>)</bold>. Then it left (<xref ref-type="fig" rid="f9">Fig.
9</xref>).</p>
<fig id="f1"><label>Fig. 1</label><caption><title>A lesion.</title><p>Of the <i>left</i> lung.</p></caption>
<graphic xlink:href="one"/></fig>
<fig id="f2"><label>Fig. 2</label><caption><p>Another.</p></caption><graphic xlink:href="two"/></fig>
</body></article>"""


def body(xml: str) -> File:
    head = '<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="m">'
    return File(f"{head}<body>{xml}</body></article>".encode(), "a.xml")


def figure(**changes: object) -> Callable[[Article], Article]:
    return lambda article: replace(article, figures=(replace(article.figures[0], **changes), *article.figures[1:]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("unaccounted", lambda article: replace(article, figures=article.figures[:1])),
        ("unaccounted", figure(id="f3")),
        ("unaccounted", figure(label="Fig.")),
        ("lost", figure(caption="")),
        ("cut", figure(caption="A lesion.")),
        ("cut", figure(caption="Of the left lung.")),
        ("unaccounted", figure(caption="A lesion.Of the left lung.")),
        ("hrefs wrong", figure(graphics=())),
        ("hrefs wrong", figure(graphics=("two",))),
        ("hrefs wrong", figure(graphics=("one", "two"))),
        ("unaccounted", figure(mentions=())),
        ("unaccounted", figure(mentions=(Mention("Then it left.", "Then it left.", "", ""),))),
        ("unaccounted", lambda article: replace(article, citations=1)),
        ("unaccounted", lambda article: replace(article, unresolved=())),
        ("unaccounted", lambda article: replace(article, unresolved=(Unresolved("f9", "Fig. 8"),))),
        ("unaccounted", lambda article: replace(article, unresolved=(*article.unresolved, Unresolved("f1", "Fig. 1")))),
        (
            "unaccounted",
            lambda a: replace(a, figures=(a.figures[0], replace(a.figures[1], mentions=a.figures[0].mentions))),
        ),
    ],
)
def test_whatever_a_reader_gets_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch, what: str, wrong: Callable[[Article], Article]
) -> None:
    right = File(ARTICLE.encode(), "a.xml")
    assert right.wrong == []
    assert [right.counts[name] for name in ("figures", "captions", "images", "xrefs", "resolved", "listed")] == [
        2, 2, 2, 2, 1, 1,
    ]  # fmt: skip
    monkeypatch.setattr(jats_articles, "parse_article", lambda xml, where: wrong(right.article))
    assert File(ARTICLE.encode(), "a.xml").counts[what]


def test_the_script_prints_a_row_a_publisher_and_fails_where_anything_is_unaccounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nxml").write_text(ARTICLE)
    (tmp_path / "b.xml").write_text("<book/>")
    monkeypatch.setattr("sys.argv", ["jats_articles", str(tmp_path), "--json"])
    assert jats_articles.main() == 0
    printed, told = capsys.readouterr()
    assert [(row["publisher"], row["figures"], row["unaccounted"]) for row in json.loads(printed)] == [
        ("A Press", 2, 0),
        ("all", 2, 0),
    ]
    assert "refused (not_jats): b.xml" in told
    read = jats_articles.parse_article
    monkeypatch.setattr(jats_articles, "parse_article", lambda xml, where: replace(read(xml, where), unresolved=()))
    assert jats_articles.main() == 1
    assert "in/a.nxml: unaccounted: 'f9' 'Fig. 9' is neither resolved nor listed" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["jats_articles", str(tmp_path / "in/nothing")])
    assert jats_articles.main() == 1


def only(file: File) -> Figure:
    assert file.wrong == []
    (found,) = file.article.figures
    return found


# --- what articles of other publishers taught, in the fewest words ---


def test_words_of_a_caption_stand_behind_its_title_without_a_paragraph() -> None:
    found = body("""<fig id="f1"><label><bold>Fig.&#xa0;1.</bold> </label><caption>
        <title>Mass of rats.</title> Fed (A) and unfed (B), <italic>p</italic>&#xa0;&lt; 0.05.
        </caption><graphic xlink:href="f1.eps" xlink:type="simple"/></fig>""")
    assert only(found).caption == "Mass of rats. Fed (A) and unfed (B), p < 0.05."


def test_a_formula_of_a_caption_is_a_picture_and_tex() -> None:
    found = body("""<fig id="f1"><caption><p>Lift with <inline-formula><alternatives><inline-graphic xlink:href="i98"/>
        <tex-math><![CDATA[$k=0.4$]]></tex-math></alternatives></inline-formula>.</p></caption></fig>""")
    assert only(found).caption == "Lift with $k=0.4$."
    assert (found.counts["TeX"], found.counts["images"]) == (1, 0)


@pytest.mark.parametrize(
    "forms",
    [
        "<inline-graphic xlink:href='e'><alt-text>Inline Graphic</alt-text></inline-graphic><tex-math>$k$</tex-math>",
        "<tex-math>$k$</tex-math><graphic xlink:href='e'><object-id>10.1/x</object-id></graphic>",
        "<mml:math><mml:mrow/><mml:annotation>k</mml:annotation></mml:math><tex-math>$k$</tex-math>",
        "<tex-math>$k$</tex-math><tex-math>$k$</tex-math>",
        "<tex-math/><tex-math>$k$</tex-math>",
    ],
)
def test_tex_is_counted_where_no_other_form_says_anything_and_once(forms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    formula = f"<inline-formula><alternatives>{forms}</alternatives></inline-formula>"
    xml = f'<fig id="f1"><label>Fig 1</label><caption><p>Lift with {formula} now.</p></caption></fig>'
    right = body(xml)
    assert only(right).caption.replace(" ", "") == "Liftwith$k$now."
    for caption in ("Lift with now.", "Lift with $k$$k$ now."):
        wrong = figure(caption=caption)(right.article)
        monkeypatch.setattr(jats_articles, "parse_article", lambda xml, where, wrong=wrong: wrong)
        assert body(xml).counts["cut"] == 1


def test_of_several_that_a_link_names_each_must_be_found_or_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    xml = """<p>See <xref ref-type="fig" rid="f1 f99">Figs 1 and 99</xref> now.</p>
        <fig id="f1"><label>Fig 1</label><caption><p>A map.</p></caption></fig>"""
    right = body(xml)
    assert right.wrong == []
    assert (right.counts["resolved"], right.counts["listed"]) == (1, 1)
    silent = replace(right.article, unresolved=())
    monkeypatch.setattr(jats_articles, "parse_article", lambda xml, where: silent)
    assert body(xml).wrong == ["unaccounted: 'f99' 'Figs 1 and 99' is neither resolved nor listed"]


def test_data_that_a_caption_brings_along_is_no_part_of_it() -> None:
    found = body("""<fig id="f2"><object-id>10.1/x.004</object-id><label>Figure 2.</label><caption>
        <p>Vesicles, see <xref ref-type="supplementary-material" rid="S1">Figure 2—source data 1</xref>.</p>
        <p><supplementary-material id="S1"><object-id>10.1/x.005</object-id><label>Figure 2—source data 1.</label>
        <caption><title>Files.</title></caption></supplementary-material></p></caption>
        <graphic xlink:href="fig2.tif"/></fig>""")
    assert only(found).caption == "Vesicles, see Figure 2—source data 1."
    assert (found.counts["xrefs"], found.counts["aside"], found.counts["unseen"]) == (1, 1, 1)


def test_a_paragraph_holds_its_figures_and_numbers_link_to_supplements_too() -> None:
    found = body("""<p>They were chosen (Fig. <xref rid="F3" ref-type="fig">3</xref>), see Table
        <xref rid="M1" ref-type="media">S4</xref>. Others (Fig. <xref rid="F3" ref-type="fig">3A,C,D</xref>) too.<fig
        id="F3"><label>Figure 3</label><caption><p>Variation (V<sub>n</sub>/V<sub>n+1</sub>).</p></caption>
        <graphic xlink:href="a_HTML" id="d29"/></fig></p>""")
    assert [mention.panels for mention in only(found).mentions] == ["", "ACD"]
    assert (found.counts["xrefs"], found.counts["resolved"]) == (2, 2)


def test_a_paragraph_may_hold_nothing_but_its_figure_and_a_sentence_may_name_it_twice() -> None:
    link = '<xref ref-type="fig" rid="f01">Figura 1</xref>'
    found = body(f"""<p>Na {link} há mais ({link}).</p>
        <p>
            <fig id="f01">
                <label>Figura 1</label>
                <caption>
                    <title>Cobertura, 2008-2010.</title>
                </caption>
                <graphic xlink:href="gf01"/>
            </fig>
        </p>""")
    assert [mention.sentence for mention in only(found).mentions] == ["Na Figura 1 há mais (Figura 1)."]


def test_a_supplement_stands_with_its_figure_in_a_group_that_says_nothing() -> None:
    found = body("""<fig-group><fig id="f3"><label>Figure 3.</label><caption><title>It
        grew.</title><p><bold>DOI:</bold> <ext-link>10.1/x</ext-link></p></caption><graphic xlink:href="f003"/></fig>
        <fig id="f3s1" specific-use="child-fig"><label>Figure 3—figure supplement 1.</label><caption/>
        <graphic xlink:href="fs001"/></fig></fig-group>
        <p>See <xref ref-type="fig" rid="f3 f3s1">Figure 3</xref>.</p>""")
    assert found.wrong == []
    assert [figure.caption for figure in found.article.figures] == ["It grew. DOI: 10.1/x", ""]
    assert all(figure.mentions for figure in found.article.figures)


def test_two_languages_of_a_figure_are_two_figures_of_a_group_that_is_cited() -> None:
    found = body("""<p>As in <xref ref-type="fig" rid="g1">Figure 1</xref>.</p><fig-group id="g1">
        <fig xml:lang="pt"><label>Figura 1</label><caption><title>Um mapa.</title></caption></fig>
        <fig xml:lang="en"><label>Figure 1</label><caption><title>A map.</title></caption><alternatives>
        <graphic xlink:href="a.tif"/><graphic xlink:href="a.png"/>
        <graphic xlink:href="t.jpg" content-type="scielo-267x140"/></alternatives></fig></fig-group>""")
    assert found.wrong == []
    assert [(figure.caption, figure.graphics) for figure in found.article.figures] == [
        ("Um mapa.", ()),
        ("A map.", ("a.tif",)),
    ]


def test_a_title_may_be_empty_and_a_figure_without_id_is_named_by_its_number() -> None:
    found = body("""<p>As in <xref ref-type="fig" rid="nobody">Figure 2</xref>.</p>
        <fig><label>Figure 2.</label><caption><title/><p>A map.</p></caption></fig>""")
    assert only(found).caption == "A map."
    assert (found.counts["resolved"], found.counts["listed"]) == (1, 0)
