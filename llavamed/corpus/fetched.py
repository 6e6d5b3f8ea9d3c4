"""What a fetch leaves for a person: counts by reason, what LLaVA-Med's list still gives, and a page.

`coverage.jsonl` answers, image by image, what became of the 721,154 links of LLaVA-Med's list: the key of the image in
the mirror, or why it is not there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llavamed.corpus import neighbours
from llavamed.corpus.ledger import ARTICLES, FETCHED, Ledger, Row
from llavamed.corpus.wanted import LegacyRow
from llavamed.manifest import Manifest
from llavamed.report import Page

COVERAGE = "coverage.jsonl"
_REPORT = "report.html"

_MEANING = {
    "present": "the image is in the mirror",
    "image_not_named": "the article is here, but no figure of its XML names this image",
    "row_damaged": "the row names no article",
    "not_found": "the bucket has no such article, or not this version",
    "retracted": "the metadata says it is retracted",
    "not_open_access": "neither open access nor an author manuscript",
    "historical_ocr": "scanned pages: no figures in the XML",
    "licence_excluded": "the policy does not permit its licence",
    "licence_unknown": "no licence that is recognised",
    "xml_missing": "the bucket has no XML of it",
    "failed_metadata_damaged": "what came is not the article's metadata; another run tries again",
    "failed_xml_missing": "the metadata names an XML that the server does not have; another run tries again",
    "failed_no_listing": "no listing of its versions came; another run tries again",
    "failed_unreachable": "no connection, many times; another run tries again",
    "failed_busy": "the server was busy, many times; another run tries again",
    "failed_cut_short": "cut short, many times; another run tries again",
    "failed_too_slow": "slower than a kilobyte a second, many times; another run tries again",
    "failed_wrong_md5": "never with the right MD5; another run tries again",
    "failed_refused": "the server refused; another run tries again",
    "failed_forbidden": "the server, or a proxy, does not let us (HTTP 403); another run tries again",
    "failed_redirected": "the server sends us elsewhere; another run tries again",
    "failed_too_large": "a file over the limit",
}


_SUMS = ("files", "bytes", "images_missing", "images_failed", "images_too_large")


def finish(out: Path, result: Manifest, ledger: Ledger, legacy: list[LegacyRow] | None) -> None:
    """Count the ledger's rows into `result`, write the coverage, the page and, last, the manifest."""
    states: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    of_interest = {one.pmcid for one in legacy or ()}
    latest: dict[int, Row] = {}
    for row in ledger.rows():
        states[row.state] += 1
        if row.state == FETCHED:
            licences[row.licence] += 1
            sums.update({name: getattr(row, name) for name in _SUMS})
        if row.name.pmcid in of_interest:
            latest[row.name.pmcid] = row  # sorted by version
    result.counts |= {"articles": states[FETCHED], **{name: sums[name] for name in _SUMS}}
    result.funnel = {state: states[state] for state in sorted(states) if state != FETCHED}
    result.extra["licences"] = dict(sorted(licences.items()))
    page = _page(result, licences)
    if legacy is not None:
        coverage = Counter(_cover(out, latest, legacy))
        result.extra["coverage"] = dict(coverage)
        counted = [(name, f"{count:,}", _MEANING.get(name, "")) for name, count in coverage.most_common()]
        text = f"Of {len(legacy):,} rows; each is in {COVERAGE}."
        page.table("LLaVA-Med's list", ("", "images", "meaning"), counted, text)
    page.write(out / _REPORT)
    # perhaps millions of files, each verified as it came: they are not hashed again
    result.files = {name: "" for name in (ARTICLES, _REPORT)}
    result.write(out, hash_files=False)


def _cover(out: Path, latest: dict[int, Row], legacy: list[LegacyRow]) -> Iterator[str]:
    """For each row of LLaVA-Med's list: "present", or why its image is not. Writes `coverage.jsonl`."""
    aside = out / f"{COVERAGE}.tmp"
    with aside.open("w", encoding="utf-8") as lines:
        for one in legacy:
            row = latest.get(one.pmcid)
            state, key = "row_damaged", ""
            if row is not None:
                state = row.state
            if row is not None and state == FETCHED:
                names = neighbours.by_stem(sorted(path.name for path in (out / row.article).iterdir()))
                file = neighbours.best_image(names, one.file)
                state, key = ("present", f"{row.article}/{file}") if file else ("image_not_named", "")
            lines.write(json.dumps({"pair_id": one.pair_id, "key": key, "state": state}) + "\n")
            yield state
    aside.replace(out / COVERAGE)


def _page(result: Manifest, licences: Counter[str]) -> Page:
    counts = result.counts
    page = Page(
        "Articles fetched",
        f"From {result.settings['base_url']}; licence policy: {result.settings['licence']}. Courtesy of the U.S. "
        "National Library of Medicine; retractions and new versions after today are not in it: run the command again.",
        {
            "articles": f"{counts['articles']:,}",
            "files": f"{counts['files']:,}",
            "GiB": f"{counts['bytes'] / 2**30:,.2f}",
        },
    )
    left = [(state, f"-{n:,}", _MEANING.get(state, "the XML cannot be used")) for state, n in result.funnel.items()]
    page.table("Articles", ("", "articles", "meaning"), [*left, ("fetched", f"{counts['articles']:,}", "")])
    page.table("Since the run before", ("", "articles"), [(k, f"{v:,}") for k, v in result.extra["changes"].items()])
    page.table("Licences", ("licence", "articles"), [(name, f"{n:,}") for name, n in licences.most_common()])
    page.table("Traffic", ("", ""), [(k, f"{v:,}") for k, v in result.extra["traffic"].items()])
    return page
