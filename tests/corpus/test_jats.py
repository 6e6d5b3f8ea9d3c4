"""Every trap of JATS that the reader claims to know, as a few lines of XML."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llavamed.corpus import jats, safe_xml
from llavamed.corpus.jats import Article, ArticleError, Unresolved, parse_article
from llavamed.errors import InputError


def article(body: str, meta: str = "", after: str = "", head: str = "") -> Article:
    xml = (
        f'{head}<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:ali="http://www.niso.org/schemas/ali/1.0/">'
        f"<front><article-meta>{meta}</article-meta></front><body>{body}</body>{after}</article>"
    )
    return parse_article(xml.encode())


def fig(number: int, caption: str = "A lesion.", identity: str | None = None, label: str | None = None) -> str:
    label = f"Figure {number}." if label is None else label
    return (
        f'<fig id="{identity or f"f{number}"}"><label>{label}</label><caption><p>{caption}</p></caption>'
        f'<graphic xlink:href="img{number}"/></fig>'
    )


def xref(number: int, text: str | None = None) -> str:
    return f'<xref ref-type="fig" rid="f{number}">{f"Figure {number}" if text is None else text}</xref>'


def sentences(found: Article, figure: int = 0) -> list[str]:
    return [mention.sentence for mention in found.figures[figure].mentions]


# --- figures ---------------------------------------------------------------------------------


def test_metadata_comes_from_the_article_and_not_from_its_references_or_sub_articles() -> None:
    found = article(
        "",
        '<article-id pub-id-type="pmc">123</article-id><article-id pub-id-type="pmid">45</article-id>'
        '<article-id pub-id-type="doi">10.1/x</article-id>'
        "<title-group><article-title>On <italic>E. coli</italic><xref ref-type='fn' rid='n'>*</xref></article-title>"
        "</title-group>",
        "<back><ref-list><ref><article-title>Another</article-title></ref></ref-list></back>"
        "<sub-article><front-stub><article-id pub-id-type='doi'>10.1/other</article-id></front-stub></sub-article>",
    )
    assert (found.pmcid, found.pmid, found.doi, found.title) == ("PMC123", "45", "10.1/x", "On E. coli")


def test_pmcid_with_its_prefix_is_not_prefixed_again() -> None:
    assert article("", '<article-id pub-id-type="pmcid">PMC99</article-id>').pmcid == "PMC99"


def test_title_and_all_paragraphs_of_a_caption_are_joined_by_one_space() -> None:
    found = article(
        "<fig><caption><title>A <bold>title</bold>.</title><p>One.</p>\n<p>Two\n three.</p></caption></fig>"
    )
    assert found.figures[0].caption == "A title. One. Two three."


def test_words_of_a_list_or_a_line_break_are_not_glued() -> None:
    found = article(
        "<fig><caption><p>First<break/>second:<list><list-item><p>a</p></list-item><list-item><p>b</p></list-item></list></p>"
        "</caption></fig>"
    )
    assert found.figures[0].caption == "First second: a b"


def test_text_of_a_caption_survives_any_nesting_but_not_comments_and_tex() -> None:
    found = article(
        "<fig><caption><p>x<sup>2<italic>a</italic></sup><!-- hidden --><?pi hidden?>y"
        "<inline-formula><alternatives><tex-math>\\documentclass{article}</tex-math><mml:math xmlns:mml='m'>"
        "<mml:mi>z</mml:mi></mml:math></alternatives></inline-formula></p></caption></fig>"
    )
    assert found.figures[0].caption.replace(" ", "") == "x2ayz"


TEX = r"\documentclass{minimal} \usepackage{amsmath} \begin{document}$$\alpha = 0.4$$\end{document}"
MATH = "<mml:math xmlns:mml='m'><mml:mi>α</mml:mi><mml:mo>=</mml:mo><mml:mn>0.4</mml:mn></mml:math>"


@pytest.mark.parametrize(
    ("forms", "plain"),
    [
        (r"<inline-graphic xlink:href='eq1.gif'/><tex-math><![CDATA[$\alpha = 0.4$]]></tex-math>", r"$\alpha = 0.4$"),
        (f"<tex-math>{TEX}</tex-math><inline-graphic xlink:href='eq1.gif'/>", r"$$\alpha = 0.4$$"),
        (f"<tex-math>{TEX}</tex-math>{MATH}", "α=0.4"),
        (f"{MATH}<tex-math>{TEX}</tex-math>", "α=0.4"),
    ],
)
def test_a_formula_is_its_tex_only_where_it_has_no_other_words(forms: str, plain: str) -> None:
    for formula in (f"<alternatives>{forms}</alternatives>", forms):
        said = f"Lift with <inline-formula>{formula}</inline-formula>."
        found = article(f"<p>{said} See {xref(1)}.</p>{fig(1, said)}")
        assert found.figures[0].caption == f"Lift with {plain}."
        assert found.figures[0].mentions[0].paragraph == f"Lift with {plain}. See Figure 1."


PICTURE = "<inline-graphic xlink:href='e'>{}</inline-graphic>"
ANNOTATED = (
    "<mml:math xmlns:mml='m'><mml:semantics><mml:mrow/><mml:annotation>k</mml:annotation></mml:semantics></mml:math>"
)


@pytest.mark.parametrize(
    "unread",
    [
        PICTURE.format("<alt-text>Inline Graphic</alt-text>"),
        PICTURE.format("<object-id pub-id-type='doi'>10.1/x</object-id>"),
        "<alt-text>k</alt-text>",
        ANNOTATED,
    ],
)
def test_what_is_not_read_of_another_form_is_no_reason_to_leave_tex_out(unread: str) -> None:
    for forms in (f"{unread}<tex-math>$k$</tex-math>", f"<tex-math>$k$</tex-math>{unread}"):
        for formula in (f"<alternatives>{forms}</alternatives>", forms):
            found = article(f"<fig><p>Lift with <inline-formula>{formula}</inline-formula>.</p></fig>")
            assert found.figures[0].caption.replace(" ", "") == "Liftwith$k$."


def test_of_several_alternatives_in_tex_the_first_that_says_something_is_text() -> None:
    forms = "<tex-math> </tex-math><tex-math>$k$</tex-math><tex-math>$K$</tex-math>"
    found = article(f"<fig><p>By <inline-formula><alternatives>{forms}</alternatives></inline-formula>.</p></fig>")
    assert found.figures[0].caption.replace(" ", "") == "By$k$."
    lines = "<disp-formula><tex-math>$a$</tex-math><tex-math>$b$</tex-math></disp-formula>"
    assert article(f"<fig><p>By {lines}</p></fig>").figures[0].caption == "By $a$$b$"


def test_tex_in_a_sentence_is_text_whatever_stands_beside_it() -> None:
    found = article("<fig><caption><p><italic>Lift</italic> with <tex-math>$k$</tex-math>.</p></caption></fig>")
    assert found.figures[0].caption == "Lift with $k$."


def test_very_many_forms_of_one_formula_are_looked_through_once() -> None:
    began = time.process_time()
    article(f"<p><alternatives>{'<tex-math>x</tex-math>' * 50_000}</alternatives></p>")
    assert time.process_time() - began < 2.5  # a minute and more if each looks at all


def test_a_formula_with_a_number_is_its_tex_too() -> None:
    found = article(f"<fig><p>By <disp-formula><label>(1)</label><tex-math>{TEX}</tex-math></disp-formula></p></fig>")
    assert found.figures[0].caption == r"By (1) $$\alpha = 0.4$$"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("5 × 10<sup>6</sup>/mL", "5 × 10^6/mL"),
        ("p &lt; 10<sup>−4</sup>", "p < 10^−4"),
        ("10<italic><sup> 3 </sup></italic> cells", "10^ 3 cells"),
        ("<mml:msup><mml:mn>10</mml:mn><mml:mn>6</mml:mn></mml:msup> dose", "10^6 dose"),
        ("<mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn></mml:mfrac> dose", "1/2 dose"),
        (
            "<mml:mfrac><mml:mrow><mml:mi>a</mml:mi><mml:mo>+</mml:mo><mml:mi>b</mml:mi></mml:mrow><mml:mi>c</mml:mi>"
            "</mml:mfrac>",
            "(a+b)/c",
        ),
        (
            "H<sub>2</sub>O, cm<sup>2</sup>, s<sup>−1</sup>, <sup>18</sup>F and <sup>99m</sup>Tc",
            "H2O, cm2, s−1, 18F and 99mTc",
        ),
        ("the 4<sup>th</sup> of 12<sup>a</sup>", "the 4th of 12a"),
        ("in 2010<sup><xref ref-type='bibr' rid='b5'>5</xref></sup>", "in 20105"),  # a note, not a power
    ],
)
def test_powers_and_fractions_are_not_other_numbers(text: str, plain: str) -> None:
    figure = f"<fig xmlns:mml='m'><caption><p>{text}</p></caption></fig>"
    assert article(figure).figures[0].caption == plain


def test_figures_without_id_label_caption_or_graphic_are_kept() -> None:
    found = article("<fig><graphic xlink:href='a.jpg'/></fig><fig id='f2'><label>Fig. 2</label></fig>")
    assert [(f.id, f.label, f.caption, f.graphics) for f in found.figures] == [
        ("", "", "", ("a.jpg",)),
        ("f2", "Fig. 2", "", ()),
    ]


def test_a_group_gives_its_caption_only_to_figures_without_one() -> None:
    found = article(
        "<fig-group id='g'><label>Figure 1</label><caption><p>Of the group.</p></caption>"
        f"{fig(1, 'Its own.')}<fig id='f2'><graphic xlink:href='b'/></fig></fig-group>"
        "<p>See <xref ref-type='fig' rid='g'>Fig. 1</xref>.</p>"
    )
    assert [f.caption for f in found.figures] == ["Its own.", "Of the group."]
    assert [f.group_caption for f in found.figures] == ["Of the group.", ""]
    assert sentences(found, 0) == sentences(found, 1) == ["See Fig. 1."]


def test_text_beside_a_caption_is_part_of_it_and_one_language_is_chosen() -> None:
    both = "<caption xml:lang='pt'><p>Um corte.</p></caption><caption xml:lang='en'><p>A section.</p></caption>"
    found = article(f"<fig>{both}<p>(a) Bone.</p></fig><fig><p>Only a legend.</p></fig>")
    assert [f.caption for f in found.figures] == ["A section. (a) Bone.", "Only a legend."]


def test_figures_of_the_floats_group_are_found_and_cited() -> None:
    found = article(f"<p>See {xref(1)}.</p>", after=f"<floats-group>{fig(1)}</floats-group>")
    assert sentences(found) == ["See Figure 1."]


def test_alternatives_are_one_image_and_not_its_thumbnail() -> None:
    found = article(
        "<fig><alternatives><graphic xlink:href='x.thumbnail.jpg' content-type='scielo-267x140'/>"
        "<graphic xlink:href='x.jpg'/><graphic xlink:href='x.tif'/></alternatives></fig>"
    )
    assert found.figures[0].graphics == ("x.jpg",)


def test_several_graphics_are_several_images_and_the_first_attribute_is_not_the_href() -> None:
    found = article("<fig><graphic mimetype='image' xlink:href='a'/><p><graphic id='i' xlink:href='b.gif'/></p></fig>")
    assert found.figures[0].graphics == ("a", "b.gif")


def test_namespaces_do_not_matter() -> None:
    xml = (
        '<j:article xmlns:j="http://jats.nlm.nih.gov" xmlns:x="http://www.w3.org/1999/xlink"><j:body>'
        '<j:p>See <j:xref ref-type="fig" rid="f1">Fig. 1</j:xref>.</j:p>'
        '<j:fig id="f1"><j:caption><j:p>A lesion.</j:p></j:caption><j:graphic x:href="a"/></j:fig></j:body></j:article>'
    )
    found = parse_article(xml.encode()).figures[0]
    assert (found.caption, found.graphics, found.mentions[0].sentence) == ("A lesion.", ("a",), "See Fig. 1.")


# --- mentions --------------------------------------------------------------------------------


def test_a_mention_is_the_sentence_with_its_paragraph_and_section() -> None:
    found = article(
        "<sec><title>Case <italic>report</italic></title><sec><p>He fell. The skull "
        f"({xref(1, 'Fig. 1')}) was intact. He went home.</p></sec></sec>{fig(1)}"
    )
    mention = found.figures[0].mentions[0]
    assert mention.sentence == "The skull (Fig. 1) was intact."
    assert mention.paragraph == "He fell. The skull (Fig. 1) was intact. He went home."
    assert mention.section == "Case report"


@pytest.mark.parametrize(
    "wrapped", ["<bold>{}</bold>", "<sup><italic>{}</italic></sup>", "<bold><sup>({})</sup></bold>"]
)
def test_a_citation_is_found_however_deeply_it_sits(wrapped: str) -> None:
    assert len(sentences(article(f"<p>A mass {wrapped.format(xref(1))} was seen.</p>{fig(1)}"))) == 1


def test_a_citation_that_names_several_figures_counts_for_each() -> None:
    found = article(f"<p>See <xref ref-type='fig' rid='f1 f3'>Figs. 1, 3</xref>.</p>{fig(1)}{fig(2)}{fig(3)}")
    assert [len(f.mentions) for f in found.figures] == [1, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        f"Figs. {xref(1, '1')}–{xref(3, '3')}",
        f"{xref(1, 'Figs. 1')} to {xref(3, '3')}",
        f"{xref(1, 'Figs. 1')}-<bold>{xref(3, '3')}</bold>",
        f"<bold>{xref(1, 'Figures 1')}</bold> through {xref(3)}",
        f"{xref(1, 'Figs. 1')}—{xref(3, '')}",
        "<xref ref-type='fig' rid='f1 f3'>Figs. 1–3</xref>",
        "<xref ref-type='fig' rid='f1'>Figs. 1-3</xref>",
        "<xref ref-type='fig' rid='f1'>Figs. 1, 2 and 3</xref>",
        f"{xref(1, 'Figs. 1')}–3",
    ],
)
def test_a_range_cites_the_figures_in_between(text: str) -> None:
    found = article(f"<p>All are shown in {text}.</p>" + "".join(fig(n) for n in range(1, 5)))
    assert [len(f.mentions) for f in found.figures] == [1, 1, 1, 0]


def test_a_range_goes_by_the_numbers_and_not_by_the_order_or_the_supplements() -> None:
    supplement = fig(9, identity="f1s1", label="Figure 1—figure supplement 1.")
    found = article(f"<p>All in Figs. {xref(1)}–{xref(3)}.</p>{fig(3)}{supplement}{fig(1)}{fig(2)}")
    assert [len(f.mentions) for f in found.figures] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    "text", [f"{xref(1)}–9", f"{xref(1)}-3%", f"{xref(1)}-3.5 cm", xref(1, "Fig. 1, 2003"), xref(1)]
)
def test_a_number_behind_a_citation_is_no_range_where_there_is_no_such_figure(text: str) -> None:
    found = article(f"<p>It is shown in {text}.</p>" + "".join(fig(n) for n in range(1, 5)))
    assert [len(f.mentions) for f in found.figures] == [1, 0, 0, 0]


def test_two_figures_side_by_side_are_no_range() -> None:
    found = article(f"<p>In {xref(1)} and {xref(3)}.</p>{fig(1)}{fig(2)}{fig(3)}")
    assert [len(f.mentions) for f in found.figures] == [1, 0, 1]


def test_a_caption_cites_nothing() -> None:
    found = article(f"{fig(1, f'As in {xref(1)}.')}{fig(2, f'Enlarged from {xref(1)}.')}")
    assert [f.mentions for f in found.figures] == [(), ()]
    assert found.figures[1].caption == "Enlarged from Figure 1."


def test_a_figure_inside_a_paragraph_does_not_leak_into_it() -> None:
    found = article(f"<p>Before {xref(1)} it.{fig(1, 'The leak.')}<table-wrap><td>Cells.</td></table-wrap> After.</p>")
    assert found.figures[0].mentions[0].paragraph == "Before Figure 1 it. After."


def test_one_sentence_that_cites_twice_is_one_mention_with_all_panels() -> None:
    found = article(f"<p>It grew ({xref(1, 'Fig. 1B')}) and shrank ({xref(1, 'Fig. 1A')}). Then it left.</p>{fig(1)}")
    assert [(m.sentence, m.panels) for m in found.figures[0].mentions] == [
        ("It grew (Fig. 1B) and shrank (Fig. 1A).", "AB")
    ]


@pytest.mark.parametrize(
    ("text", "panels"),
    [
        (xref(1, "Figure 1"), ""),
        (xref(1, "Fig. 1A"), "A"),
        (xref(1, "Fig. 1a, b"), "AB"),
        (xref(1, "Figure 1C, 1F, and 1G"), "CFG"),
        (xref(1, "Fig. 1A-D,F"), "ABCDF"),
        (xref(1, "Fig. 1 (A–C)"), "ABC"),
        (xref(1, "Fig 1B and 1B′"), "B"),
        (xref(1, "Fig. 1") + "a,c", "AC"),
        (xref(1, "1") + "<italic>b</italic>", "B"),
        (xref(1, "Fig. 1") + " and others", ""),
        (xref(1, "Fig. 1") + "cm", ""),
        (f"{xref(1, 'Fig. 1A')}–{xref(1, 'C')}", "ABC"),
        (f"{xref(1, 'Fig. 1A')}, {xref(1, 'D')}", "AD"),
    ],
)
def test_panels(text: str, panels: str) -> None:
    assert article(f"<p>It is shown in {text}.</p>{fig(1)}").figures[0].mentions[0].panels == panels


def test_a_citation_of_nothing_is_counted() -> None:
    found = article(f"<p>See {xref(7)} and {xref(1)}.</p>{fig(1)}")
    assert found.unresolved == (Unresolved("f7", "Figure 7"),)
    assert found.citations == 2
    assert len(found.figures[0].mentions) == 1


def test_every_citation_is_counted_and_what_is_not_there_is_listed_with_its_text() -> None:
    found = article(
        f"<p>See {xref(1)}, <xref ref-type='fig' rid='f1 f8'>Figs. 1, 8</xref> and <xref ref-type='fig'>Fig. X</xref>; "
        f"<xref ref-type='bibr' rid='f1'>1</xref>.</p>{fig(1, f'After {xref(9)}.')}"
    )
    assert found.citations == 4  # one of them in the caption
    assert found.unresolved == (Unresolved("f8", "Figs. 1, 8"), Unresolved("", "Fig. X"), Unresolved("f9", "Figure 9"))


def test_a_figure_without_id_is_found_by_its_number() -> None:
    found = article(f"<p>See {xref(2, 'Figura 2')}.</p>{fig(1)}<fig><label>Figura 2.</label></fig>")
    assert [len(f.mentions) for f in found.figures] == [0, 1]
    assert found.unresolved == ()


def test_ids_of_a_sub_article_are_its_own() -> None:
    found = article(
        f"<p>Main {xref(1)}.</p>{fig(1, 'Main.')}",
        after=f"<sub-article><body><p>Reply {xref(1)}.</p>{fig(1, 'Reply.')}</body></sub-article>",
    )
    assert [(f.caption, f.mentions[0].sentence) for f in found.figures] == [
        ("Main.", "Main Figure 1."),
        ("Reply.", "Reply Figure 1."),
    ]


def test_a_bare_pointer_in_a_table_is_no_mention() -> None:
    cells = f"<td>{xref(1)} [3]</td><td>The mass of {xref(1)}</td>"
    found = article(f"<table-wrap><tr>{cells}</tr></table-wrap>{fig(1)}")
    assert sentences(found) == ["The mass of Figure 1"]
    assert found.mentions_bare == 1


@pytest.mark.parametrize("cell", ["Fig.&#xa0;{}", "See also Fig. {} and Table 2", "(Figs {})", "figure {} [3]"])
def test_a_pointer_whose_link_begins_behind_its_word_is_bare_too(cell: str) -> None:
    found = article(f"<table-wrap><tr><td>{cell.format(xref(1, '1'))}</td></tr></table-wrap>{fig(1)}")
    assert (sentences(found), found.mentions_bare) == ([], 1)


@pytest.mark.parametrize("space", ["", " ", "\n\t ", "\u2003"])
def test_citations_lie_where_they_stand_whatever_white_space_is_around_and_in_them(space: str) -> None:
    found = article(f"<p>{space}Seen{space}{xref(1, f'{space}Figure{space}1B{space}')}{space}there.</p>{fig(1)}")
    (mention,) = found.figures[0].mentions
    assert mention.panels == "B"
    assert mention.sentence == " ".join(f"Seen{space}{space}Figure{space}1B{space}{space}there.".split())


def test_a_paragraph_of_very_many_citations_is_read_in_one_pass() -> None:
    began = time.process_time()
    found = article("<p>" + f"Cells grew {xref(1)}. " * 1_000 + f"</p>{fig(1)}")
    assert len(found.figures[0].mentions) == 1_000
    with pytest.raises(ArticleError, match="50,000,000") as caught:  # the paragraph, ten thousand times
        article("<p>" + f"Cells grew {xref(1)}. " * 10_000 + f"</p>{fig(1)}")
    assert caught.value.reason == "mentions_bomb"
    assert time.process_time() - began < 4  # half a minute if each citation is placed from the beginning


def test_one_link_to_very_many_figures_is_refused() -> None:
    rids = " ".join(f"f{n}" for n in range(3000))
    figures = "".join(f"<fig id='f{n}'/>" for n in range(3000))
    text = "".join(f"<p>{'word ' * 100}<xref ref-type='fig' rid='{rids}'>Figs.</xref></p>" for _ in range(40))
    with pytest.raises(ArticleError) as caught:
        article(text + figures)
    assert caught.value.reason == "mentions_bomb"


def test_the_caption_of_a_group_is_read_once_and_shared_and_bounded() -> None:
    words = "word " * 1_000
    group = f"<fig-group><caption><p>{words}</p></caption>{'<fig/>' * 50}</fig-group>"
    captions = [figure.caption for figure in article(group).figures]
    assert all(caption is captions[0] for caption in captions)
    for one in ("<fig/>", fig(1, "Its own.")):
        with pytest.raises(ArticleError) as caught:
            article(group.replace("<fig/>", one * 300))
        assert caught.value.reason == "text_bomb"


def test_a_text_that_thousands_of_images_would_carry_is_refused() -> None:
    figure = f"<fig><caption><p>{'word ' * 2_000}</p></caption>{{}}</fig>"
    assert len(article(figure.format("<graphic xlink:href='a'/>")).figures) == 1
    with pytest.raises(ArticleError) as caught:
        article(figure.format("".join(f"<graphic xlink:href='{n}'/>" for n in range(6_000))))
    assert caught.value.reason == "text_bomb"
    title = f"<title-group><article-title>{'word ' * 2_000}</article-title></title-group>"
    with pytest.raises(ArticleError, match="59,994,000"):
        article("<fig/>" * 6_000, title)


# --- licence ---------------------------------------------------------------------------------


CC = "http://creativecommons.org/licenses"


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (f"<license xlink:href='{CC}/by/4.0/'><p>Text</p></license>", "CC-BY-4.0"),
        (f"<ali:license_ref>{CC}/by-nc/4.0/</ali:license_ref>", "CC-BY-NC-4.0"),
        (f"<license><ali:license_ref>{CC}/by/3.0/</ali:license_ref></license>", "CC-BY-3.0"),
        (f"<license><p>See <ext-link xlink:href='{CC}/by/2.5/'>it</ext-link>.</p></license>", "CC-BY-2.5"),
        (f"<license xlink:href='{CC}/by/4.0/'/><license xlink:href='{CC}/by-nc/4.0/'/>", "CC-BY-NC-4.0"),
        ("<license><p>under the Creative Commons Attribution License</p></license>", "CC-BY"),
        (
            "<copyright-statement>X et al. under the Creative Commons Attribution License.</copyright-statement>",
            "CC-BY",
        ),
        ("<copyright-statement>© The Author(s) 2009</copyright-statement>", "unknown"),
        ("", "unknown"),
    ],
)
def test_licence_wherever_it_stands(meta: str, expected: str) -> None:
    assert article("", f"<permissions>{meta}</permissions>").licence == expected


def test_an_old_article_states_its_licence_outside_of_permissions() -> None:
    old = "<copyright-statement>X. Distributed under the Creative Commons Attribution License.</copyright-statement>"
    assert article("", old).licence == "CC-BY"


def test_a_figure_taken_from_elsewhere_has_its_own_licence() -> None:
    borrowed = (
        "<fig id='f2'><permissions><copyright-statement>© Elsevier 1999</copyright-statement></permissions></fig>"
    )
    found = article(fig(1) + borrowed, "<permissions><license><p>CC BY 4.0</p></license></permissions>")
    assert (found.licence, [f.licence for f in found.figures]) == ("CC-BY-4.0", ["", "unknown"])


# --- what is no article, and what is hostile -------------------------------------------------


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"   ",
        b"not xml",
        b"<article><body>",
        b"\x89PNG\r\n",
    ],
)
def test_what_is_not_xml_is_an_input_error_with_a_reason(xml: bytes) -> None:
    with pytest.raises(InputError, match="here\\.xml") as caught:
        parse_article(xml, "here.xml")
    assert isinstance(caught.value, ArticleError)
    assert caught.value.reason == "not_xml"


def test_xml_that_is_not_jats_names_its_root() -> None:
    with pytest.raises(ArticleError, match="<html>") as caught:
        parse_article(b"<html><body/></html>")
    assert caught.value.reason == "not_jats"


def test_the_wrapper_of_a_single_efetch_is_opened() -> None:
    assert (
        parse_article(b"<pmc-articleset><article><body><fig id='a'/></body></article></pmc-articleset>").figures[0].id
        == "a"
    )


def test_named_characters_of_the_dtd_are_read_without_it() -> None:
    head = '<!DOCTYPE article PUBLIC "-//NLM//DTD" "archivearticle.dtd">'
    assert article(fig(1, "5&nbsp;&micro;m &lt; &alpha;"), head=head).figures[0].caption == "5 µm < α"


def test_characters_of_private_use_are_text() -> None:
    own = "\uefa0\uefa3&#61346;"
    found = article(f"<p>See {own} {xref(1, f'Fig. {own}1B')} there.</p>{fig(1, f'A {own}lesion.')}")
    (mention,) = found.figures[0].mentions
    assert (mention.sentence, mention.panels) == ("See \uefa0\uefa3\uefa2 Fig. \uefa0\uefa3\uefa21B there.", "B")
    assert found.figures[0].caption == "A \uefa0\uefa3\uefa2lesion."


@pytest.mark.parametrize("space", ["\n\t", *(c for c in map(chr, range(0x20, 0x10000)) if c.isspace())])
def test_white_space_of_any_kind_is_one_space(space: str) -> None:
    found = article(f"<p>{space}Seen{space}{xref(1)}{space}.</p>{fig(1, f'A{space * 2}<b>le{space}sion</b>{space}.')}")
    assert sentences(found) == ["Seen Figure 1 ."]
    assert found.figures[0].caption == "A le sion ."


def test_a_link_inside_of_a_link_is_read_where_it_stands() -> None:
    found = article(f"<p>See {xref(1, 'Fig. 1A, ' + xref(2, 'Fig. 2B'))} there.</p>{fig(1)}{fig(2)}")
    assert sentences(found, 0) == sentences(found, 1) == ["See Fig. 1A, Fig. 2B there."]
    assert found.figures[1].mentions[0].panels == "B"


def test_a_prefix_or_character_that_is_not_declared_is_read_and_told() -> None:
    xml = b"<article><fig><caption><p>5&nbsp;&micro;m</p></caption><graphic xlink:href='a.jpg'/></fig>%s</article>"
    found = parse_article(xml % b"")
    assert (found.figures[0].caption, found.figures[0].graphics, found.mended) == ("5 µm", ("a.jpg",), True)
    assert not parse_article(b"<article/>").mended
    with pytest.raises(ArticleError) as caught:
        parse_article(xml % b"<p>")
    assert caught.value.reason == "not_xml"


def test_a_figure_in_a_figure_keeps_its_picture_to_itself() -> None:
    inner = "<fig id='f1a'><caption><p>Inner.</p></caption><graphic xlink:href='b'/></fig>"
    found = article(f"<fig id='f1'><caption><p>Outer.</p></caption><graphic xlink:href='a'/>{inner}</fig>")
    assert [(figure.caption, figure.graphics) for figure in found.figures] == [("Outer.", ("a",)), ("Inner.", ("b",))]


def test_numbers_of_thousands_of_digits_are_no_figures() -> None:
    long = "9" * 5_000
    body = f"<p>In {xref(1, f'Figs. 1-{long}')}, {xref(1, f'Figs. 1, {long}')}, {xref(1)}-{long}.</p>"
    found = article(body + fig(1) + fig(2, label=f"Figure {long}"))
    assert [len(figure.mentions) for figure in found.figures] == [1, 0]


def test_ranges_among_very_many_figures_are_looked_up_and_not_searched() -> None:
    figures = "".join(f"<fig id='f{n}'><label>Figure {n}</label></fig>" for n in range(5_000))
    text = "".join(f"<p>See {xref(n, f'Figs. {n}-{n + 1}')}.</p>" for n in range(4_999))
    began = time.process_time()
    found = article(text + figures)
    assert all(len(figure.mentions) == 2 for figure in found.figures[1:-1])
    assert time.process_time() - began < 2.5  # four if all figures are looked through for each


REFERENCES = (
    b"<back><ref-list id='r'><title>References</title><ref>Smith J. A figure of speech.</ref></ref-list>%s</back>"
)


@pytest.mark.parametrize(
    "back",
    [
        REFERENCES % b"",
        REFERENCES % b"<ref-list><ref/></ref-list>",
        REFERENCES % b"<app><p>In <xref ref-type='fig' rid='f1'>Fig. 1</xref>.</p></app><ref-list/>",
        b"<back><ref-list><ref>See <xref ref-type='fig' rid='f1'>Fig. 1</xref></ref></ref-list></back>",
        b"<back><ref-list><ref-list><ref/></ref-list><p><xref rid='f1'>Fig. 1</xref></p></ref-list></back>",
        b"<back><ref-list><ref/><fig id='f2'><label>Fig. 2</label></fig></ref-list></back>",
        b"<back><!-- <ref-list> --><ref-list><ref/></ref-list></back>",
        b"<back><![CDATA[<ref-list>]]></back><ref-list></ref-list>",
    ],
)
def test_a_list_of_references_is_passed_over_only_where_no_figure_is_in_it(back: bytes) -> None:
    xml = b"<article><body><fig id='f1'><label>Fig. 1</label></fig><p>A.</p></body>%s</article>" % back
    root = safe_xml.parse(xml, "")
    found = parse_article(xml)
    assert [figure.id for figure in found.figures] == root.xpath("//fig/@id")
    assert found.citations == len(root.xpath("//xref"))


def test_every_real_article_is_the_same_with_its_references(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [*shared_data.glob("jats_plos/*.xml"), *shared_data.glob("jats_pmc/*ml")]
    without = [parse_article(file.read_bytes()) for file in files]
    monkeypatch.setattr(jats, "_without_references", lambda xml: xml)
    assert without == [parse_article(file.read_bytes()) for file in files]
