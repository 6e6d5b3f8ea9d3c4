"""Credit lines as they are printed: those of others, the authors' own, and what only looks like one."""

from __future__ import annotations

import pytest

from llavamed.corpus import credit


@pytest.mark.parametrize(
    "line",
    [
        "CT of the liver. Reprinted from Smith et al. (2004), with permission from Elsevier.",
        "Illustration by Kirsten Carlson, © MBARI 2001.",  # journal.pbio.1000359
        "(F) selectivity of 1.0 µM interfering ions. Reprinted with permission from Ref. [50].",
        "Isopleths of (c), reproduced with permission from J. Fluid Mech. 835, 1108 (2018). Copyright 2018 Cambridge "
        "University Press.",
        "The section is displayed here with the permission of The Company of Biologists Limited who owns the "
        "copyright. Reused with permission.",
        "Adapted from Smith et al. (2004), with kind permission of Springer Science and Business Media.",
        "From Jones [4], with permission.",
        "Used with permission of Mayo Foundation for Medical Education and Research, all rights reserved.",
        "Reproduced from [12].",
        "Reproduced from Gray H. Anatomy of the Human Body.",
        "Photo courtesy of the Zoo, copyright San Diego Zoo.",
        "A map. Copyright: OpenStreetMap contributors",
        "A plate (C) 1998 Elsevier.",
        "Courtesy of Dr. Brown © 2003",
        "Image © National Geographic; modified by the authors.",
        "Published by permission of Wiley.",
    ],
)
def test_a_line_that_names_another_owner_is_a_third_partys(line: str) -> None:
    found = credit.read(line, ["Miller", "Li"])
    assert found.licence == "unknown"
    assert found.line
    assert set(found.line.split()) <= set(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Axial CT of the liver.",
        "© The Authors 2019, CC BY",  # repeats the article's licence: see the next test
        "© The Author(s) 2019.",
        "© 2019 by the authors. Licensee MDPI.",
        "Copyright © 2012 Miller et al.",
        "© J. Miller 2019.",
        "(c) 2015 K. Li and others",
        "Copyright is held by the authors.",
        "The diagram is free of copyright.",
        "(C) 25 cells of each kind. (A, C) and (C) 3D view.",
        "Segmented with Photoshop© CS5 and Matrigel © (BD).",
        "Photos are courtesy of Jarone Pinhassi.",  # journal.pbio.1000359
        "Map of the study area (modified from Rogers et al., 2013: fig. 1).",  # journal.pone.0087236
        "This figure is adapted from Wang et al.",  # 1471-2180-11-174
        "Experimental data, courtesy: Kumaran Ramamurthi.",  # journal.pone.0111971
        "We adapted the data presented in panel B from the Human Protein Atlas website.",
        "Source: Elaborated by the authors (2020).",
        "Published with the patient's permission.",
        "Photograph reproduced with permission of the patient's parents.",
        "The patient gave written permission to publish the image.",
        "Specimens were collected with permission from the National Park Service.",
        "The curves were reproduced from Table 2, images reproduced from the video.",
        "For copyright reasons the trade name is left out.",
        "Permission was obtained from the ethics committee to use the images.",
    ],
)
def test_what_is_the_articles_own_or_no_credit_is_left_to_it(line: str) -> None:
    assert credit.read(line, ["Miller", "Li"]).licence in ("", "CC-BY")
    assert credit.read(line, ["Miller", "Li"]).licence == ("CC-BY" if line.endswith("CC BY") else "")


@pytest.mark.parametrize(
    ("line", "licence"),
    [
        ("(source: http://commons.wikimedia.org; work is licensed under the Creative Commons Attribution-Share Alike "
         "3.0 Unported license).", "CC-BY-SA-3.0"),  # journal.pcbi.1004113
        ("Reprinted from [9] under a CC BY license, with permission from Google, original copyright 2014.", "CC-BY"),
        ("A plate. © Elsevier 2010. Licensed under CC BY-NC-ND 4.0.", "CC-BY-NC-ND-4.0"),
    ],
)  # fmt: skip
def test_a_licence_in_the_line_is_the_figures(line: str, licence: str) -> None:
    assert credit.read(line).licence == licence


def test_a_line_that_repeats_the_articles_own_statement_is_the_articles() -> None:
    assert credit.read("© 2010 Elsevier Ltd.", statements=["Copyright (c) 2009, Elsevier Ltd"]) == credit.NONE
    assert credit.read("© 2010 Elsevier Ltd.", statements=["© 2009 Springer"]).licence == "unknown"
