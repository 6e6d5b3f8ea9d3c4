"""Selection: what qualifies, and the round over the domains."""

from __future__ import annotations

from collections import Counter

import pytest

from llavamed.errors import InputError
from llavamed.instruct.select import check_domains, reason_against_align, reason_against_instruct, select
from llavamed.records import Pair

DOMAINS = ("chest_xray", "mri", "gross")


@pytest.mark.parametrize(
    ("fields", "align", "instruct"),
    [
        ({}, None, None),
        ({"is_compound": True}, None, "compound"),
        ({"is_plot": True}, "plot", "plot"),
        ({"domain": "other"}, None, "other_domain"),
        ({"caption": " "}, "no_caption", None),
    ],
)
def test_what_qualifies(fields: dict[str, object], align: str | None, instruct: str | None) -> None:
    pair = Pair(**{"key": "k", "file": "k.png", "caption": "MRI.", "domain": "mri", **fields})  # type: ignore[arg-type]
    assert reason_against_align(pair) == align
    assert reason_against_instruct(pair, DOMAINS) == instruct


def _candidates() -> list[tuple[str, str]]:
    return [(f"{d}-{n}", d) for d, count in (("chest_xray", 50), ("mri", 30), ("gross", 4)) for n in range(count)]


def test_the_domains_take_turns_so_that_a_rare_one_is_kept_whole() -> None:
    keys, left = select(_candidates(), DOMAINS, 30, seed=1)
    assert Counter(key.split("-")[0] for key in keys) == {"chest_xray": 13, "mri": 13, "gross": 4}
    assert left == {"chest_xray": 37, "mri": 17}


def test_without_a_count_all_are_taken_once() -> None:
    keys, left = select(_candidates(), DOMAINS, None, seed=1)
    assert sorted(keys) == sorted(key for key, _ in _candidates())
    assert not left


def test_order_of_the_corpus_does_not_matter_and_a_smaller_count_is_a_subset() -> None:
    keys, _ = select(_candidates(), DOMAINS, 30, seed=1)
    assert select(_candidates()[::-1], DOMAINS, 30, seed=1)[0] == keys
    assert select(_candidates(), DOMAINS, 10, seed=1)[0] == keys[:10]
    assert select(_candidates(), DOMAINS, 30, seed=2)[0] != keys


def test_a_domain_that_is_none_is_named_with_those_that_are() -> None:
    check_domains(("mri", "other"))
    with pytest.raises(InputError, match=r"'ct'; the domains are chest_xray, mri, ct_scan"):
        check_domains(("mri", "ct"))


def test_a_domain_that_is_named_twice_counts_once() -> None:
    some = [pair for pair in _candidates() if pair[1] in ("mri", "gross")]
    keys, left = select(some, ("mri", "mri", "gross"), 10, seed=1)
    assert (len(set(keys)), len(keys), left) == (10, 10, {"mri": 24})
    assert keys == select(some, ("mri", "gross"), 10, seed=1)[0]
