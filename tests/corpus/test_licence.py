"""Licences in all the ways in which articles state them."""

from __future__ import annotations

import pytest

from llavamed.corpus import licence
from llavamed.errors import InputError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("http://creativecommons.org/licenses/by/2.0", "CC-BY-2.0"),
        ("http://creativecommons.org/licenses/by-nc-nd/3.0/", "CC-BY-NC-ND-3.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/3.0/igo/", "CC-BY-NC-SA-3.0"),
        ("http://creativecommons.org/licenses/by/", "CC-BY"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("http://creativecommons.org/licenses/publicdomain/", "CC-PDDC"),
        ("https://www.elsevier.com/tdm/userlicense/1.0/", "unknown"),
        ("http://creativecommons.org/licenses/sampling/1.0/", "unknown"),
    ],
)
def test_urls(url: str, expected: str) -> None:
    assert licence.from_url(url) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("distributed under the terms of the Creative Commons Attribution License, which permits", "CC-BY"),
        ("the Creative Commons Attribution 4.0 International License (", "CC-BY-4.0"),
        ("This is an open access article under the CC BY-NC-ND license", "CC-BY-NC-ND"),
        ("the Creative Commons Attribution-NonCommercial-ShareAlike 3.0 Unported License", "CC-BY-NC-SA-3.0"),
        ("the Creative Commons Attribution Non-Commercial License", "CC-BY-NC"),
        (
            "the terms of the Creative Commons Attribution Noncommercial License which permits any noncommercial use",
            "CC-BY-NC",
        ),
        ("Creative Commons Attribution License, which permits unrestricted non-commercial use", "CC-BY-NC"),
        ("(http://creativecommons.org/licenses/by-nc/3.0/), Creative Commons Attribution", "CC-BY-NC-3.0"),
        ("made available under the Creative Commons CC0 public domain dedication.", "CC0-1.0"),
        ("under the terms of the Creative Commons Public Domain Declaration, which stipulates", "CC-PDDC"),
        ("Creative Commons Attribution-ShareAlike-NonCommercial 4.0", "CC-BY-NC-SA-4.0"),
        ("CC BY-SA for non-commercial use only", "CC-BY-NC-SA"),
        (
            "the Creative Commons Attribution-NonCommercial-NoDerivatives 4.0 International License, which permits any "
            "non-commercial use. The Creative Commons Public Domain Dedication waiver "
            "(http://creativecommons.org/publicdomain/zero/1.0/) applies to the data made available in this article",
            "CC-BY-NC-ND-4.0",
        ),
        ("CC BY-NC-ND 4.0. See https://creativecommons.org/licenses/by/4.0/", "CC-BY-NC-ND-4.0"),
        ("© The Author. The Creative Commons Public Domain Dedication waiver applies to the data", "unknown"),
        ("Creative Commons Attribution License, provided it is not used for commercial purposes", "CC-BY-NC"),
        ("Creative Commons Attribution 4.0, for commercial or non-commercial use", "CC-BY-4.0"),
        ("Open Access article in the spirit of the Public Library of Science principles", "unknown"),
        ("© Springer Science+Business Media, LLC 2007", "unknown"),
        ("", "unknown"),
        # what publishers of CC BY write, which restricts nothing
        (
            "licensed under a Creative Commons Attribution 4.0 International License. The images or other third party "
            "material in this article are included in the article's Creative Commons licence, unless indicated "
            "otherwise in a credit line to the material. If material is not included in the article's Creative Commons "
            "licence and your intended use is not permitted by statutory regulation or exceeds the permitted use, you "
            "will need to obtain permission directly from the copyright holder. To view a copy of this licence, visit "
            "http://creativecommons.org/licenses/by/4.0/. The Creative Commons Public Domain Dedication waiver "
            "(http://creativecommons.org/publicdomain/zero/1.0/) applies to the data made available in this article.",
            "CC-BY-4.0",
        ),
        (
            "under the terms of the Creative Commons Attribution License (CC BY). The use, distribution or "
            "reproduction in other forums is permitted, provided the owner(s) are credited. No use, distribution or "
            "reproduction is permitted which does not comply with these terms.",
            "CC-BY",
        ),
        ("CC BY 4.0, which permits reuse, commercially or not, without asking prior permission", "CC-BY-4.0"),
        (
            "CC BY 4.0, which permits commercial use without permission; it does not restrict commercial use",
            "CC-BY-4.0",
        ),
        ("Creative Commons Attribution 4.0, for any purpose, not only commercial", "CC-BY-4.0"),
        ("CC BY 4.0. Articles may contain illustrations copyrighted by other organizations", "CC-BY-4.0"),
    ],
)
def test_prose(text: str, expected: str) -> None:
    assert licence.from_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Creative Commons Attribution License; no commercial use", "CC-BY-NC"),
        ("Creative Commons Attribution License. Commercial use requires permission", "CC-BY-NC"),
        ("Creative Commons Attribution License. For commercial re-use, permission must be obtained", "CC-BY-NC"),
        ("CC BY 4.0, commercial reuse is not permitted", "CC-BY-NC-4.0"),
        ("Creative Commons Attribution license for uses that are not commercial", "CC-BY-NC"),
        ("CC BY. The work cannot be changed in any way or used commercially without permission", "CC-BY-NC-ND"),
        (
            "Creative Commons Attribution License, the use is non-commercial and no modifications are made",
            "CC-BY-NC-ND",
        ),
        ("CC-BY/NC 4.0", "CC-BY-NC-4.0"),
        ("License (CCBY-NC-ND)", "CC-BY-NC-ND"),
        ("All rights reserved. No commercial reuse. CC BY", "unknown"),
        ("This is not an open access article under the Creative Commons Attribution License", "unknown"),
        ("Previously published under CC BY", "unknown"),
        ("CC BY applies to the text only; figures are © Elsevier", "unknown"),
        ("CC BY 4.0, except for the figures", "unknown"),
    ],
)
def test_a_restriction_in_other_words_counts_and_a_denied_licence_does_not(text: str, expected: str) -> None:
    assert licence.from_text(text) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("CC BY", "CC-BY"), ("CC0", "CC0-1.0"), ("CC BY-NC-ND", "CC-BY-NC-ND"), ("CC BY-NC", "CC-BY-NC"),
        ("CC BY-SA", "CC-BY-SA"), ("TDM", "TDM"), ("NO-CC CODE", "unknown"), ("", "unknown"),
        ("CC-BY-4.0", "CC-BY-4.0"), ("CC BY 3.0 IGO", "CC-BY-3.0"),
    ],
)  # fmt: skip
def test_codes_of_pubmed_central(code: str, expected: str) -> None:
    assert licence.from_code(code) == expected


def test_of_code_and_article_the_narrower_holds_and_the_article_adds_the_version() -> None:
    assert licence.combine("CC BY", "CC-BY-4.0") == "CC-BY-4.0"
    assert licence.combine("CC BY-NC", "CC-BY-4.0") == "CC-BY-NC"
    assert licence.combine("CC BY", "CC-BY-NC-4.0") == "CC-BY-NC-4.0"
    assert licence.combine("TDM", "CC-BY-4.0") == "TDM"
    assert licence.combine("NO-CC CODE", "CC-BY-4.0") == licence.combine("", "CC-BY-4.0") == "CC-BY-4.0"
    assert licence.combine("NO-CC CODE", "unknown") == "unknown"


def test_a_conflict_is_two_licences_of_different_families() -> None:
    assert licence.conflict("CC BY", "CC-BY-NC-4.0")
    assert not licence.conflict("CC BY", "CC-BY-4.0")
    assert not licence.conflict("NO-CC CODE", "CC-BY-4.0")
    assert not licence.conflict("CC BY", "unknown")


def test_a_part_with_a_licence_of_its_own_never_widens_the_articles() -> None:
    assert licence.strictest("CC-BY-4.0", "CC-BY-NC-4.0") == "CC-BY-NC-4.0"
    assert licence.strictest("CC-BY-NC-4.0", "CC0-1.0") == "CC-BY-NC-4.0"
    assert licence.strictest("unknown", "CC-BY-4.0") == licence.strictest("CC-BY-4.0", "unknown") == "unknown"


@pytest.mark.parametrize("found", ["CC0-1.0", "CC-PDM-1.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-NC-ND-2.5"])
def test_the_address_of_a_licence_names_it(found: str) -> None:
    assert licence.from_url(licence.url(found)) == found


@pytest.mark.parametrize("found", ["CC-BY", "CC-PDDC", "TDM", "unknown"])
def test_what_has_no_one_text_has_no_address(found: str) -> None:
    assert licence.url(found) == ""


def test_links_and_words_of_one_statement_count_together_and_a_waiver_for_data_does_not() -> None:
    by, zero = "http://creativecommons.org/licenses/by/4.0/", "http://creativecommons.org/publicdomain/zero/1.0/"
    assert licence.identify([by], "under the Creative Commons Attribution License") == "CC-BY-4.0"
    assert licence.identify([by], "which permits non-commercial use") == "CC-BY-NC-4.0"
    assert licence.identify([by], "under CC BY-NC-ND") == "CC-BY-NC-ND"
    assert licence.identify([by, zero], "Attribution. The waiver applies to the data") == "CC-BY-4.0"
    assert licence.identify([zero], "The waiver applies to the data") == "unknown"
    assert licence.identify([zero], "free of all copyright") == "CC0-1.0"


def test_of_several_statements_the_narrowest_holds() -> None:
    assert licence.narrowest(["CC-BY-4.0", "unknown", "CC-BY-NC-4.0"]) == "CC-BY-NC-4.0"
    assert licence.narrowest(["unknown"]) == "unknown"
    assert licence.narrowest([]) == "unknown"


@pytest.mark.parametrize(
    ("found", "commercial", "noncommercial"),
    [
        ("CC0-1.0", True, True), ("CC-BY", True, True), ("CC-BY-SA-4.0", True, True), ("CC-PDM-1.0", True, True),
        ("CC-BY-NC-4.0", False, True), ("CC-BY-NC-SA-3.0", False, True), ("CC-BY-ND-4.0", False, False),
        ("CC-BY-NC-ND-4.0", False, False), ("TDM", False, False), ("unknown", False, False),
    ],
)  # fmt: skip
def test_policies(found: str, commercial: bool, noncommercial: bool) -> None:
    assert licence.allowed(found, "commercial") is commercial
    assert licence.allowed(found, "noncommercial") is noncommercial
    assert licence.allowed(found, "any")


@pytest.mark.parametrize(
    ("policy", "yes", "no"),
    [
        ("commercial", {"CC0-1.0", "CC-BY-4.0", "CC-BY-SA-3.0"}, {"CC-BY-NC-4.0", "CC-BY-ND-4.0", "TDM", "unknown"}),
        ("noncommercial", {"CC-BY-4.0", "CC-BY-NC-SA-4.0"}, {"CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "TDM", "unknown"}),
        ("commercial, CC BY-ND", {"CC-BY-4.0", "CC-BY-ND-4.0"}, {"CC-BY-NC-4.0", "TDM"}),
        ("TDM", {"TDM"}, {"CC0-1.0", "unknown"}),
        ("any", {"CC-BY-NC-ND-4.0", "TDM", "unknown"}, set()),
    ],
)
def test_a_policy_may_name_families(policy: str, yes: set[str], no: set[str]) -> None:
    assert all(licence.allowed(one, policy) for one in yes)
    assert not any(licence.allowed(one, policy) for one in no)


@pytest.mark.parametrize("policy", ["", "comercial", "CC-BY-XX", "commercial,"])
def test_an_unknown_policy_is_an_input_error(policy: str) -> None:
    with pytest.raises(InputError, match="licence policy"):
        licence.check_policy(policy)
