"""PubMed Central -> a mirror on this disk: of each article its XML, the images that its figures name, its metadata.

    PMC7236913.1/PMC7236913.1.xml, .json, images      as in the bucket (see `mirror`); `corpus build` reads it
    articles.jsonl                                    a row for each article asked for, fetched or not (see `ledger`)
    coverage.jsonl                                    with --urls: a row for each image of LLaVA-Med's list

An article is settled in this order: its versions are asked for (the latest is taken), its metadata read, and the
retracted, the closed and those whose licence the policy does not permit are counted and left; then the XML is fetched
and parsed, and of the media beside it only the images that its figures name. The metadata is written last: a folder
with it is whole.

The hard thing is to be stopped anywhere and lose nothing. A file stands under its name only when its MD5 is right
(`client`), the journal says which articles are settled (`ledger`), and everything else is worked out again. A later
run compares ETags: new, changed, superseded, removed and newly retracted articles are acted on, others cost nothing
(with an inventory) or two small requests.

The other hard thing is to lose nothing to a server that is merely wrong: a login page, a typo in the address, a part of
an inventory. What such answers do not tell leaves the mirror as it is (`mirror`); if they are all that comes, the run
ends. Articles that a whole listing or inventory lacks are deleted, but if they are more than a few only with --prune.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llavamed import manifest
from llavamed.corpus import bucket, fetched, licence, versions, wanted
from llavamed.corpus.alone import alone
from llavamed.corpus.bucket import Name
from llavamed.corpus.client import Client
from llavamed.corpus.ledger import FETCHED, STAGE, Ledger
from llavamed.corpus.mirror import Mirror, bring
from llavamed.corpus.wanted import Inventory, LegacyRow, Selection, Wanted
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.progress import Progress

_PARTIAL = ".partial"  # files that are being written
_CHANGES = ("new", "changed", "unchanged", "superseded", "removed", "newly_retracted", "unchecked")
_MOST_GONE = 0.02  # of the mirror, that is deleted unasked because the bucket has it no more; of several, one may
_FIRST_FAILED = 20  # articles, and no other before them: it is the server, not the articles
_MOST_FAILED = 500  # articles in a row at any time


@dataclass(frozen=True)
class Request:
    """What to fetch: exactly one of the first four, and how."""

    ids: Path | None = None
    query: str = ""
    inventory: str = ""  # "latest", a date, or on disk a .csv.gz or a folder of them
    urls: Path | None = None  # LLaVA-Med's list of images
    sample: int | None = None
    seed: int = 0
    every_version: bool = False
    prune: bool = False  # delete however many articles the bucket has no more
    licence: str = "commercial"
    base_url: str = bucket.BASE_URL
    eutils_url: str = wanted.EUTILS
    concurrency: int = 16
    pause: float = 0.5  # seconds before the first retry at most

    def __post_init__(self) -> None:
        given = [bool(x) for x in (self.ids, self.query, self.inventory, self.urls)]
        if sum(given) != 1:
            raise InputError("say what to fetch: one of --ids FILE, --query TEXT, --inventory latest, --urls FILE")
        licence.check_policy(self.licence)


def fetch(out: Path, request: Request) -> Manifest:
    """Fetch what `request` says into `out`, or go on where a run of the same request was stopped.

    Raises InputError for a request that makes no sense, an `out` that holds something else or in which another run is
    writing, and a server that is gone or is none of PubMed Central's.
    """
    legacy = wanted.read_legacy_list(request.urls) if request.urls else None
    listed = wanted.from_file(request.ids) if request.ids else None
    with alone(out):
        manifest.begin(out, STAGE)
        return asyncio.run(_fetch(out, request, listed, legacy))


async def _fetch(out: Path, request: Request, listed: list[Wanted] | None, legacy: list[LegacyRow] | None) -> Manifest:
    began = time.monotonic()
    settings = {**asdict(request), "ids": str(request.ids or ""), "urls": str(request.urls or "")}
    for how in ("concurrency", "pause", "prune"):
        del settings[how]
    partial = out / _PARTIAL
    async with Client(request.base_url, partial, request.concurrency, request.pause) as client:
        inventory: Inventory | None = None
        asked: Sequence[Wanted] | Selection
        if request.inventory:
            inventory, settings["inventory"] = await wanted.from_inventory(client, request.inventory)
            asked = inventory.wanted(request.every_version, request.sample, request.seed)
        else:
            if listed is not None:
                asked = listed
            elif legacy is not None:
                asked = [Wanted(pmcid) for pmcid in sorted({row.pmcid for row in legacy} - {0})]
            else:
                async with Client(request.eutils_url, partial, 1, request.pause) as eutils:
                    asked = await wanted.from_search(eutils, request.query)
            if request.sample is not None:
                asked = [asked[i] for i in wanted.sampled((one.pmcid for one in asked), request.sample, request.seed)]
        inputs = wanted.fingerprint(asked)
        lists = inventory is None and await versions.can_list(client)
        mirror = Mirror(out, client, partial, request.licence, request.every_version, lists)
        with Ledger(out, manifest.fingerprint([settings, inputs])) as ledger:
            if len(ledger):
                print(f"{out}: going on after {len(ledger):,} of {len(asked):,} articles", file=sys.stderr)
            if inventory is not None:
                _refuse_a_part(ledger, inventory, request, out)
            await _all(mirror, asked, ledger, request.concurrency)
            ledger.finish(_drop(mirror, ledger, inventory, request))
    shutil.rmtree(partial)
    result = Manifest(STAGE, settings, {"articles asked for": inputs}, seconds=time.monotonic() - began)
    result.counts["articles_asked_for"] = len(asked)
    traffic = {"requests": client.requests, "retries": client.retries, "bytes": client.received}
    traffic["files_without_md5"] = client.unverified
    result.extra = {"changes": {name: mirror.changes[name] for name in _CHANGES}, "traffic": traffic}
    fetched.finish(out, result, ledger, legacy)
    return result


@dataclass
class _Health:
    """Whether the server still gives what it should. Raises InputError when it is plain that it does not."""

    server: str
    good: bool  # whether any article came
    failed: int = 0  # articles in a row
    problem: str = ""  # the last

    def note(self, problems: list[str]) -> None:
        self.good |= not problems
        self.failed = self.failed + 1 if problems else 0
        self.problem = (problems or [self.problem])[-1]
        if self.failed >= (_MOST_FAILED if self.good else _FIRST_FAILED):
            self.give_up()

    def give_up(self) -> None:
        raise InputError(
            f"{self.server}: {self.failed:,} articles in a row could not be had or checked ({self.problem}); "
            "nothing was deleted: see that the address is the bucket's or a mirror's, not a proxy or a login page"
        )


async def _all(mirror: Mirror, asked: Sequence[Wanted] | Selection, ledger: Ledger, concurrency: int) -> None:
    queue = ledger.join(asked)
    health = _Health(mirror.client.base_url, good=len(ledger) > 0)
    with Progress("fetching articles", len(asked), "articles", start=len(ledger)) as progress:

        async def worker() -> None:
            for one, rows in queue:
                now, problems = await bring(mirror, one, rows)
                again = bool(problems) or any(row.images_failed for row in now)
                ledger.settle(one.pmcid, now, again)
                health.note(problems)
                progress.advance(note=f"{mirror.client.received / 2**20:,.0f} MiB, {mirror.client.retries:,} retries")

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(2 * concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled for it
    if health.failed and not health.good:
        health.give_up()
    if left := mirror.changes["unchecked"]:
        print(f"{left:,} articles are as they were, unchecked ({health.problem}): run it again", file=sys.stderr)


def _refuse_a_part(ledger: Ledger, inventory: Inventory, request: Request, out: Path) -> None:
    """Raises InputError for an inventory that lacks much of the mirror, before anything is asked for."""
    gone, most = _gone(ledger, inventory)
    if len(gone) > most and not request.prune:
        raise InputError(
            f"--inventory {request.inventory}: lacks {len(gone):,} articles that are in {out}; if it is one of several "
            "files, give a folder with all of them; if they shall be deleted, say --prune"
        )


def _drop(mirror: Mirror, ledger: Ledger, inventory: Inventory | None, request: Request) -> set[Name]:
    """Delete what the bucket has no more, if it is little or --prune was said."""
    if inventory is None and not mirror.lists:
        return set()  # nobody said so
    gone, most = _gone(ledger, inventory)
    if len(gone) > most and not request.prune:
        print(
            f"{mirror.out}: {len(gone):,} articles in it are not in the bucket, or not asked for, any more; "
            "none was deleted: look why, and run it again with --prune if they shall be",
            file=sys.stderr,
        )
        mirror.changes["unchecked"] += len(gone)
        return set()
    for name in gone:
        mirror.delete(name)
    mirror.changes["removed"] += len(gone)
    return gone


def _gone(ledger: Ledger, inventory: Inventory | None) -> tuple[set[Name], int]:
    """(what is in the mirror and not in the bucket any more, how many of these may go unasked)."""
    gone, held = set(), 0
    for group in ledger.groups():
        held += sum(row.state == FETCHED for row in group.before)
        if group.now is None:
            out = inventory is not None and group.pmcid not in inventory
        else:
            out = not any(row.failed for row in group.now)
        if out:
            gone |= {row.name for row in group.left if row.state == FETCHED}
    return gone, min(max(1, int(_MOST_GONE * held)), max(0, held - 1))
