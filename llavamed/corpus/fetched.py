"""What a fetch leaves for a person: counts by reason, what LLaVA-Med's list still gives, and a page.

`coverage.jsonl` answers, image by image, what became of the 721,154 links of LLaVA-Med's list: the key of the image in
the mirror, or why it is not there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llavamed.corpus import sources
from llavamed.corpus.ledger import ARTICLES, FETCHED, Row
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
    "metadata_damaged": "the metadata does not say what it should",
    "failed_unreachable": "no connection, many times; another run tries again",
    "failed_busy": "the server was busy, many times; another run tries again",
    "failed_cut_short": "cut short, many times; another run tries again",
    "failed_wrong_md5": "never with the right MD5; another run tries again",
    "failed_refused": "the server refused; another run tries again",
    "failed_too_large": "a file over the limit",
}


def finish(out: Path, result: Manifest, rows: list[Row], legacy: list[LegacyRow] | None) -> None:
    """Count the rows into `result`, write the coverage, the page and, last, the manifest."""
    states = Counter(row.state for row in rows)
    kept = [row for row in rows if row.state == FETCHED]
    result.counts |= {
        "articles": len(kept),
        "files": sum(row.files for row in kept),
        "bytes": sum(row.bytes for row in kept),
        "images_missing": sum(row.images_missing for row in kept),
    }
    result.funnel = {state: states[state] for state in sorted(states) if state != FETCHED}
    licences = Counter(row.licence for row in kept)
    result.extra["licences"] = dict(sorted(licences.items()))
    page = _page(result, licences)
    if legacy is not None:
        coverage = Counter(_cover(out, rows, legacy))
        result.extra["coverage"] = dict(coverage)
        counted = [(name, f"{count:,}", _MEANING.get(name, "")) for name, count in coverage.most_common()]
        text = f"Of {len(legacy):,} rows; each is in {COVERAGE}."
        page.table("LLaVA-Med's list", ("", "images", "meaning"), counted, text)
    page.write(out / _REPORT)
    # perhaps millions of files, each verified as it came: they are not hashed again
    result.files = {name: "" for name in (ARTICLES, _REPORT)}
    result.write(out, hash_files=False)


def _cover(out: Path, rows: list[Row], legacy: list[LegacyRow]) -> Iterator[str]:
    """For each row of LLaVA-Med's list: "present", or why its image is not. Writes `coverage.jsonl`."""
    latest = {row.name.pmcid: row for row in rows}  # sorted by version
    aside = out / f"{COVERAGE}.tmp"
    with aside.open("w", encoding="utf-8") as lines:
        for one in legacy:
            row = latest.get(one.pmcid)
            state, key = "row_damaged", ""
            if row is not None:
                state = row.state
            if row is not None and state == FETCHED:
                names = sources.by_stem(sorted(path.name for path in (out / row.article).iterdir()))
                file = sources.best_image(names, one.file)
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
