"""Take pairs out of a finished corpus: out of its shards, its index, its attribution, and into its funnel.

What is to be done is written into the marker of an unfinished folder before the manifest goes, so from then on nobody
reads the corpus, and whoever finds it so (`go_on`) can finish it. Every step may be done twice: a shard is written anew
without the members that must go, the index without their rows and with the places that the shards have now.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llavamed import manifest
from llavamed.corpus import shards, store, summary
from llavamed.corpus.output import Output
from llavamed.corpus.tally import Tally
from llavamed.corpus.unit import marker_of
from llavamed.manifest import Manifest
from llavamed.records import Pair, read_jsonl

_ARTICLE = "article_"  # how the funnel names what became of articles


def begin(
    corpus: Path,
    removed: Sequence[str],
    audits: Sequence[dict[str, Any]],
    reasons: Mapping[str, int],
    made: Sequence[str],
) -> None:
    """Take the pairs with the keys `removed` out, for `reasons` (reason -> pairs). Into the manifest go `audits` and
    the hashes of the files `made`."""
    body = manifest.read(corpus)
    assert body is not None, f"{corpus} is not finished"
    index = pq.read_table(corpus / store.INDEX, columns=["key", "shard"])
    hit = index.filter(pc.is_in(index["key"], pa.array(removed, pa.string())))
    plan = {
        "removed": list(removed),
        "shards": sorted(set(hit["shard"].to_pylist())),
        "audits": list(audits),
        "reasons": dict(reasons),
        "made": list(made),
        "manifest": body,
    }
    manifest.write_atomic(corpus / manifest.UNFINISHED, json.dumps({"stage": body["stage"], "prune": plan}) + "\n")
    (corpus / manifest.NAME).unlink()
    _finish(corpus, plan)


def go_on(corpus: Path) -> None:
    """Finish what was begun, if anything was."""
    marker = manifest.read_marker(corpus / manifest.UNFINISHED)
    if marker is not None and "prune" in marker:
        _finish(corpus, marker["prune"])


def _finish(corpus: Path, plan: dict[str, Any]) -> None:
    out = Output(str(corpus))
    out.clear_workspaces()
    removed = set(plan["removed"])
    with out.workspace() as place:
        moved: shards.Places = {}
        for name in plan["shards"]:
            out.remove(marker_of(name))  # the next build makes it again
            moved |= _without(corpus / name, removed, place)
        groups = _index(corpus, removed, moved, place / store.INDEX)
        os.replace(place / store.INDEX, corpus / store.INDEX)
    tally = _recount(corpus, plan["manifest"], plan["reasons"])
    _write(corpus, plan, tally, groups)


def _without(shard: Path, removed: set[str], place: Path) -> shards.Places:
    """Take these keys out of the shard; no shard at all where none is left. Returns where its images are now."""
    if not shard.is_file():
        return {}
    places = shards.copy_without(shard, removed, place / shard.name)
    if places:
        os.replace(place / shard.name, shard)
    else:
        shard.unlink()
    return places


def _index(corpus: Path, removed: set[str], moved: shards.Places, out: Path) -> dict[str, int]:
    """Write the index without the rows of these keys; returns how many groups are left."""
    old = pq.ParquetFile(corpus / store.INDEX)
    gone = pa.array(sorted(removed), pa.string())
    names = {column: _regrouped(old, column, gone) for column in store.GROUPS}
    with pq.ParquetWriter(out, old.schema_arrow, compression="zstd") as writer:
        for part in range(old.num_row_groups):
            table = old.read_row_group(part, use_threads=False)
            table = table.filter(pc.invert(pc.is_in(table["key"], gone)))
            if not len(table):
                continue
            places = zip(table["key"].to_pylist(), table["offset"].to_pylist(), table["size"].to_pylist(), strict=True)
            columns = {"offset": [moved.get(key, (offset, size))[0] for key, offset, size in places]}
            for column, renamed in names.items():
                columns[column] = [renamed.get(group, "") for group in table[column].to_pylist()]
            for column, values in columns.items():
                at = table.schema.get_field_index(column)
                table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
            writer.write_table(table)
    return {column: len(set(renamed.values())) for column, renamed in names.items()}


def _regrouped(index: pq.ParquetFile, column: str, gone: pa.Array) -> dict[str, str]:
    """Old name of a group -> its first key that is left, for those of which two are left."""
    table = index.read(columns=["key", column], use_threads=False)
    table = table.filter(pc.and_(pc.invert(pc.is_in(table["key"], gone)), pc.not_equal(table[column], "")))
    first: dict[str, str] = {}
    for key, group in zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True):
        first.setdefault(group, key)
    sizes = Counter(table[column].to_pylist())
    return {group: key for group, key in first.items() if sizes[group] > 1}


def _recount(corpus: Path, body: dict[str, Any], reasons: Mapping[str, int]) -> Tally:
    """The corpus's tally as it is now: what was read stays, what is kept is counted again."""
    funnel = Counter({name: n for name, n in body["funnel"].items() if not name.startswith(_ARTICLE)})
    about = {name.removeprefix(_ARTICLE): n for name, n in body["funnel"].items() if name.startswith(_ARTICLE)}
    tally = Tally(
        counts=Counter({name: n for name, n in body["counts"].items() if name != "pairs"}),
        funnel=funnel + Counter(reasons),
        articles_funnel=Counter(about),
        left_out=body["extra"]["articles_left_out"],
        unresolved=body["extra"]["citations_unresolved"],
        whole=Counter(body["extra"]["compound"]),
        rejected=list(read_jsonl(corpus / summary.LEFT_OUT)),
    )
    index = pq.ParquetFile(corpus / store.INDEX)
    for part in range(index.num_row_groups):
        rows = index.read_row_group(part, use_threads=False).to_pylist()
        for pair in map(Pair.from_json, rows):
            tally.keep(pair)
            tally.show(pair)
        tally.put_places({row["key"]: (row["shard"], row["offset"], row["size"]) for row in rows})
    for row in read_jsonl(corpus / store.WITHOUT_IMAGE):
        pair = Pair.from_json(row)
        tally.credit(pair)
        tally.show(pair)
    return tally


def _write(corpus: Path, plan: dict[str, Any], tally: Tally, groups: Mapping[str, int]) -> None:
    body = plan["manifest"]
    about = {f"audit against {one['benchmark']}": one["fingerprint"] for one in plan["audits"]}
    result = Manifest(body["stage"], body["settings"], body["inputs"] | about, seconds=body["seconds"])
    left = sorted(path.name for path in corpus.glob("shard-[0-9]*"))
    result.counts = body["counts"] | {"pairs": tally.counts["pairs"], "shards": len(left)}
    result.counts |= {f"{column}s": n for column, n in groups.items()}
    summary.describe(result, tally)
    result.extra["built"] = body["extra"].get("built", body["fingerprint"])
    result.extra["audits"] = plan["audits"]
    summary.write_attribution(corpus, tally)
    summary.write_page(corpus, result, tally, next(iter(body["inputs"])), lambda at: Output(str(corpus)).read(*at))
    changed = {*plan["shards"], *plan["made"], store.INDEX, summary.ATTRIBUTION, summary.REPORT}
    names = {*body["files"], *plan["made"]} - {name for name in plan["shards"] if name not in left}
    result.files = {
        name: manifest.file_sha256(corpus / name) if name in changed else body["files"][name] for name in sorted(names)
    }
    result.write(corpus, hash_files=False)
