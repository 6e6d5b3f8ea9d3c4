"""Rights of single figures: permissions on figure, graphic, caption, group and sub-article; credit lines; authors."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavamed.corpus.jats import Article, Figure, parse_article

CC = "https://creativecommons.org/licenses"
CC_BY = f"<permissions><license xlink:href='{CC}/by/4.0/'/></permissions>"
NC = f"<permissions><license xlink:href='{CC}/by-nc/4.0/'/></permissions>"
WILEY = "<permissions><copyright-statement>© 2010 Wiley</copyright-statement></permissions>"
MILLER = "<contrib-group><contrib><name><surname>Miller</surname></name></contrib></contrib-group>"


def article(body: str, meta: str = CC_BY + MILLER, after: str = "") -> Article:
    return parse_article(
        f"<article xmlns:xlink='http://www.w3.org/1999/xlink'><front><article-meta>{meta}</article-meta></front>"
        f"<body>{body}</body>{after}</article>".encode()
    )


def fig(caption: str = "A lesion.", graphic: str = "", more: str = "", inside: str = "") -> str:
    return f"<fig><caption><p>{caption}</p>{inside}</caption><graphic xlink:href='g'>{graphic}</graphic>{more}</fig>"


def one(body: str, **more: str) -> tuple[str, bool]:
    (figure,) = article(body, **more).figures
    return figure.licence, figure.third_party


@pytest.mark.parametrize(
    ("body", "licence"),
    [
        (fig(), ""),
        (fig(more=NC), "CC-BY-NC-4.0"),
        (fig(graphic=NC), "CC-BY-NC-4.0"),
        (fig(inside=NC), "CC-BY-NC-4.0"),
        (f"<fig-group>{NC}{fig()}</fig-group>", "CC-BY-NC-4.0"),
        (f"<boxed-text>{NC}<p>{fig()}</p></boxed-text>", "CC-BY-NC-4.0"),
        (f"<fig-group>{NC}{fig(more=CC_BY)}</fig-group>", "CC-BY-4.0"),  # the nearer
        (fig(more=CC_BY, graphic=NC), "CC-BY-NC-4.0"),  # as near: the narrower
        (fig("A lesion. © The Authors 2019, CC BY-NC 4.0."), "CC-BY-NC-4.0"),
        (f"<table-wrap>{WILEY}</table-wrap>{fig()}", ""),  # of something else
    ],
)
def test_the_nearest_permissions_hold(body: str, licence: str) -> None:
    assert one(body) == (licence, False)


@pytest.mark.parametrize(
    "body",
    [
        fig(more=WILEY),
        fig(graphic=WILEY),
        fig(inside=WILEY),
        fig(more="<permissions><copyright-holder>Wiley</copyright-holder></permissions>"),
        fig(more="<permissions><license><p>Used under licence from Getty Images.</p></license></permissions>"),
        f"<fig-group>{WILEY}{fig()}</fig-group>",
        fig("A lesion. Reprinted from Smith, © Wiley, with permission."),
        fig(more="<attrib>Reproduced with permission from Elsevier, 2010.</attrib>"),
        fig(graphic="<attrib>© 2010 Elsevier</attrib>"),
        f"<fig-group><caption><p>Plates. Reproduced with permission from Elsevier.</p></caption>{fig()}</fig-group>",
        f"<fig-group><attrib>© Elsevier 2010</attrib>{fig()}</fig-group>",
        fig("A lesion. Reprinted with permission from Elsevier.", more=CC_BY),  # both cannot be
    ],
)
def test_a_figure_of_somebody_else_is_a_third_partys_and_says_whose(body: str) -> None:
    (figure,) = article(body).figures
    assert (figure.licence, figure.third_party) == ("unknown", True)
    assert any(word in figure.credit for word in ("Wiley", "Elsevier", "Getty"))


@pytest.mark.parametrize(
    "statement", ["© 2019 The Author(s)", "© 2019", "© Miller et al.", "© 2009 Springer-Verlag", ""]
)
def test_a_statement_that_names_the_articles_own_holder_changes_nothing(statement: str) -> None:
    meta = "<permissions><copyright-statement>(c) Springer-Verlag 2008</copyright-statement>" + CC_BY[13:] + MILLER
    permissions = f"<permissions><copyright-statement>{statement}</copyright-statement></permissions>"
    found = article(fig(more=permissions), meta)
    assert found.licence == "CC-BY-4.0"
    assert found.figures[0].licence == ""


def test_a_reply_under_a_licence_of_its_own_gives_it_to_its_figures() -> None:
    reply = f"<sub-article><front-stub>{NC}</front-stub><body>{fig()}{fig(more=CC_BY)}</body></sub-article>"
    letter = f"<response><front-stub/><body>{fig()}</body></response>"
    found = article(fig(), after=reply + letter)
    assert [figure.licence for figure in found.figures] == ["", "CC-BY-NC-4.0", "CC-BY-4.0", ""]


def test_attributions_are_kept_apart_from_the_caption() -> None:
    body = (
        f"<fig-group><attrib>Of the group.</attrib>{fig(more='<attrib>Source: the <i>atlas</i>.</attrib>')}</fig-group>"
    )
    (figure,) = article(body + "<disp-quote><attrib>Galen</attrib></disp-quote>").figures
    assert (figure.caption, figure.credit, figure.licence) == ("A lesion.", "Source: the atlas. Of the group.", "")


def test_an_attribution_of_the_article_itself_is_no_figure_s() -> None:
    attrib = "<attrib>Source: the atlas.</attrib>"
    (figure,) = article(fig(), meta=CC_BY + MILLER + attrib, after=attrib).figures
    assert figure.credit == ""


@pytest.mark.parametrize(
    ("contrib", "printed"),
    [
        ("<name><surname>Lovelace</surname><given-names>Ada K.</given-names></name>", "Ada K. Lovelace"),
        ("<name name-style='eastern'><surname>Li</surname><given-names>Wei</given-names></name>", "Li Wei"),
        ("<name-alternatives><name><surname>Li</surname></name><name><surname>李</surname></name>"
         "</name-alternatives>", "Li"),
        ("<string-name>Ada Lovelace</string-name>", "Ada Lovelace"),
        ("<collab>The <i>PRISMA</i> Group<contrib-group><contrib><name><surname>X</surname></name></contrib>"
         "</contrib-group></collab>", "The PRISMA Group"),
        ("<anonymous/>", ""),
    ],
)  # fmt: skip
def test_authors_are_named_as_they_are_printed(contrib: str, printed: str) -> None:
    editor = "<contrib contrib-type='editor'><name><surname>Ed</surname></name></contrib>"
    group = f"<contrib-group><contrib contrib-type='author'>{contrib}</contrib>{editor}</contrib-group>"
    assert article("", group).authors == printed


def test_of_very_many_authors_the_first_twenty_are_named() -> None:
    contribs = "".join(f"<contrib><name><surname>A{n}</surname></name></contrib>" for n in range(21))
    assert article("", f"<contrib-group>{contribs}</contrib-group>").authors.endswith("A18, A19 et al.")


def test_of_all_figures_of_the_real_articles_those_of_others_are_found_and_no_more(shared_data: Path) -> None:
    """Every caption with a word of a credit line was read (2026-11-23): of 499, one is a third party's and one has a
    licence of its own."""
    found: dict[str, Figure] = {}
    articles, nameless = 0, []
    for file in sorted([*shared_data.glob("jats_p*/*.*ml"), *shared_data.glob("jats_packages/*/*.xml")]):
        read = parse_article(file.read_bytes())
        articles += 1
        nameless += [file.stem] * (not read.authors)
        found |= {figure.id: figure for figure in read.figures if figure.licence}
    assert articles == 84
    assert nameless == ["journal.pbio.0030408", "journal.pmed.0020402"]  # they name none
    assert {key: (figure.licence, figure.third_party) for key, figure in found.items()} == {
        "pbio-1000359-g002": ("unknown", True),
        "pcbi.1004113.g001": ("CC-BY-SA-3.0", False),
    }
    assert found["pbio-1000359-g002"].credit == "Illustration by Kirsten Carlson, © MBARI 2001."
