"""Fetching from a bucket that fails, is killed, changes and lies: the tree is the expected one, and all is counted."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import faulty_bucket

from llavamed import manifest
from llavamed.corpus import client, sources, versions, wanted
from llavamed.corpus.build import build
from llavamed.corpus.fetch import Request, fetch
from llavamed.errors import InputError

ROOT = Path(__file__).parents[2]
FIRST = faulty_bucket.FIRST
FAULTS = (0.02, 0.05, 0.01, 0.01)


@pytest.fixture
def server() -> Iterator[Any]:
    with faulty_bucket.Server(faulty_bucket.Bucket(60)) as running:
        yield running


def ids(folder: Path, names: Any) -> Path:
    (folder / "ids.txt").write_text("# mine\n" + "".join(f"{name}\n" for name in names))
    return folder / "ids.txt"


def tree(folder: Path) -> dict[str, str]:
    """{path: MD5} of all articles' files."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes(), usedforsecurity=False).hexdigest() for p in found}


def quick(server: Any, **more: Any) -> Request:
    return Request(base_url=server.url, pause=0.01, **more)


# --- all that is asked for, whole ---------------------------------------------------------------


def test_everything_arrives_whole_from_a_server_that_fails(tmp_path: Path) -> None:
    with faulty_bucket.Server(faulty_bucket.Bucket(150), faults=FAULTS) as server:
        made = fetch(tmp_path / "out", quick(server, ids=ids(tmp_path, server.bucket.ids())))
        assert all(server.done[fault] > 0 for fault in ("dropped", "503", "cut short", "corrupted"))
        expected = server.bucket.expected()
    assert tree(tmp_path / "out") == expected
    assert made.counts == {
        "articles_asked_for": 150, "articles": len(server.bucket.wanted()), "files": len(expected),
        "bytes": sum(p.stat().st_size for p in (tmp_path / "out").rglob("PMC*/*")), "images_missing": 0,
        "images_failed": 0, "images_too_large": 0,
    }  # fmt: skip
    assert made.funnel == {"licence_excluded": 5, "not_open_access": 3, "retracted": 4}
    assert made.counts["articles"] + sum(made.funnel.values()) == 150
    assert made.extra["traffic"]["retries"] == sum(server.done.values())
    assert not list((tmp_path / "out").glob(".*"))


def test_a_fetch_killed_twice_ends_with_the_tree_of_one_that_was_not(tmp_path: Path) -> None:
    with faulty_bucket.Server(faulty_bucket.Bucket(100), faults=FAULTS) as server:
        listed = ids(tmp_path, server.bucket.ids())
        out = tmp_path / "out"
        command = [sys.executable, "-m", "llavamed", "corpus", "fetch", "--ids", str(listed), "--out", str(out)]
        command += ["--base-url", server.url, "--concurrency", "4"]
        for kill, share in enumerate((0.2, 0.6)):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            while len(list(out.glob("PMC*/*.json"))) < share * 85 and process.poll() is None:
                time.sleep(0.01)
            time.sleep(random.Random(kill).uniform(0, 0.3))
            process.kill()
            assert process.wait() < 0, process.stdout and process.stdout.read()
            assert manifest.read(out) is None
        whole, before = {path.parent.name for path in out.glob("PMC*/*.json")}, server.asked.copy()
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert "going on after" in again.stderr
        assert len(whole) >= 0.6 * 85
        again_paid = [key for key in server.asked - before if key.split("/")[0] in whole]
        assert not again_paid, "what is whole is not paid twice"
        straight = fetch(tmp_path / "straight", quick(server, ids=listed))
        assert tree(out) == tree(tmp_path / "straight") == server.bucket.expected()
        assert (out / "articles.jsonl").read_bytes() == (tmp_path / "straight" / "articles.jsonl").read_bytes()
        body = manifest.read(out)
        assert body is not None
        assert (body["counts"], body["funnel"]) == (straight.counts, straight.funnel)


def test_only_what_figures_name_is_asked_for_and_the_build_reads_it(server: Any, tmp_path: Path) -> None:
    fetch(tmp_path / "out", quick(server, ids=ids(tmp_path, [f"PMC{FIRST}", FIRST + 3])))
    objects = {key for key in server.asked if "/" in key and not key.startswith("list")}
    assert objects == {
        f"metadata/PMC{FIRST}.1.json", f"PMC{FIRST}.1/PMC{FIRST}.1.xml", f"PMC{FIRST}.1/PMC{FIRST}.1-g1.jpg",
        f"metadata/PMC{FIRST + 3}.2.json", f"PMC{FIRST + 3}.2/PMC{FIRST + 3}.2.xml",
        f"PMC{FIRST + 3}.2/PMC{FIRST + 3}.2-g1.jpg", f"PMC{FIRST + 3}.2/PMC{FIRST + 3}.2-g2.jpg",
    }  # fmt: skip
    found = sources.scan(tmp_path / "out")
    assert [entry.name for entry in found.entries] == [f"PMC{FIRST}.1", f"PMC{FIRST + 3}.2"]
    assert found.problems == []
    result = build(tmp_path / "out", tmp_path / "corpus")
    assert result.funnel == {"not_an_image": 3}  # the bucket's images are noise


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [f"PMC{FIRST + 3}.2"]),
        ({"every_version": True}, [f"PMC{FIRST + 3}.1", f"PMC{FIRST + 3}.2"]),
        ({"name": f"PMC{FIRST + 3}.1"}, [f"PMC{FIRST + 3}.1"]),
        ({"name": f"PMC{FIRST + 3}.7"}, []),
    ],
)
def test_the_latest_version_unless_asked(
    server: Any, tmp_path: Path, more: dict[str, Any], expected: list[str]
) -> None:
    listed = ids(tmp_path, [more.pop("name", FIRST + 3)])
    fetch(tmp_path / "out", quick(server, ids=listed, **more))
    assert sorted(p.name for p in (tmp_path / "out").glob("PMC*")) == expected


def test_a_plain_web_server_will_do(server: Any, tmp_path: Path) -> None:
    """`python -m http.server` over a folder of the bucket's layout: no listing and no ETag."""
    mirror = tmp_path / "mirror"
    for name in (f"PMC{FIRST + 3}.1", f"PMC{FIRST + 3}.2", f"PMC{FIRST}.1"):
        (mirror / "metadata").mkdir(parents=True, exist_ok=True)
        (mirror / name).mkdir()
        number, version = map(int, name.removeprefix("PMC").split("."))
        (mirror / f"metadata/{name}.json").write_bytes(server.bucket.metadata(number, version))
        for file, data in server.bucket.files(number, version).items():
            (mirror / name / file).write_bytes(data)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(mirror))

        def log_message(self, *_: Any) -> None:
            pass

    plain = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=plain.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{plain.server_port}"
    fetch(tmp_path / "out", Request(ids=ids(tmp_path, [FIRST, FIRST + 3, FIRST + 9]), base_url=url, pause=0.01))
    plain.shutdown()
    names = {f"PMC{FIRST}.1", f"PMC{FIRST + 3}.2"}
    assert tree(tmp_path / "out") == {k: v for k, v in server.bucket.expected().items() if k.split("/")[0] in names}


# --- what is asked for --------------------------------------------------------------------------


def test_a_search_pages_through_its_results_at_the_allowed_rate(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wanted, "_PAGE", 2)
    began = time.monotonic()
    made = fetch(tmp_path / "out", quick(server, query="5", eutils_url=server.url))
    assert made.counts["articles_asked_for"] == 6  # those whose numbers end in 5
    assert server.asked["esearch.fcgi"] == 3
    assert time.monotonic() - began > 2 / 3  # three requests a second without a key
    with pytest.raises(InputError, match="nothing found"):
        fetch(tmp_path / "none", quick(server, query="nothing", eutils_url=server.url))


def test_an_inventory_is_taken_whole_or_as_a_sample_that_a_seed_decides(server: Any, tmp_path: Path) -> None:
    made = fetch(tmp_path / "all", quick(server, inventory="latest"))
    assert tree(tmp_path / "all") == server.bucket.expected()
    assert made.settings["inventory"] == faulty_bucket.DATE
    assert not any(key.startswith("list-type=2&prefix=PMC") for key in server.asked)  # the versions are known
    samples = []
    for number, seed in enumerate((1, 1, 2)):
        fetch(tmp_path / str(number), quick(server, inventory="latest", sample=12, seed=seed))
        samples.append((tmp_path / str(number) / "articles.jsonl").read_text())
    assert samples[0] == samples[1] != samples[2]
    assert len(samples[0].splitlines()) == 12


def test_a_later_run_acts_on_what_is_new_changed_removed_and_retracted(server: Any, tmp_path: Path) -> None:
    bucket, out = server.bucket, tmp_path / "out"
    first = fetch(out, quick(server, inventory="latest"))
    assert first.extra["changes"]["new"] == first.counts["articles"]
    good = bucket.wanted()
    bucket.removed.add(good[0])
    bucket.retracted.add(good[1])
    bucket.revised[good[2]] = 1
    bucket.articles += 2
    server.asked.clear()
    second = fetch(out, quick(server, inventory="latest"))
    assert second.extra["changes"] == {
        "new": 2, "changed": 1, "unchanged": 57, "superseded": 0, "removed": 1, "newly_retracted": 1,
        "unchecked": 0,
    }  # fmt: skip
    assert tree(out) == bucket.expected()
    assert server.asked[f"metadata/PMC{good[3]}.1.json"] == 0  # an unchanged article costs nothing
    third = fetch(out, quick(server, inventory="latest"))
    assert set(third.extra["changes"].values()) == {0, 61}


def test_a_new_version_replaces_the_old_one(server: Any, tmp_path: Path) -> None:
    out, listed = tmp_path / "out", ids(tmp_path, [FIRST + 3, FIRST + 4])
    server.bucket.versions = lambda pmcid: [1]
    fetch(out, quick(server, ids=listed))
    del server.bucket.versions
    made = fetch(out, quick(server, ids=listed))
    assert sorted(p.name for p in out.glob("PMC*")) == [f"PMC{FIRST + 3}.2", f"PMC{FIRST + 4}.1"]
    assert (made.extra["changes"]["superseded"], made.extra["changes"]["unchanged"]) == (1, 1)


def test_another_policy_is_applied_to_what_is_there_already(server: Any, tmp_path: Path) -> None:
    out, listed = tmp_path / "out", ids(tmp_path, server.bucket.ids())
    fetch(out, quick(server, ids=listed, licence="noncommercial"))
    both = frozenset({"CC BY", "CC BY-NC"})
    assert tree(out) == server.bucket.expected(both)
    server.asked.clear()
    fetch(out, quick(server, ids=listed))
    assert tree(out) == server.bucket.expected()
    assert not any(key.endswith(".jpg") for key in server.asked)
    fetch(out, quick(server, ids=listed, licence="CC BY-NC,commercial"))
    assert tree(out) == server.bucket.expected(both)


def test_llava_meds_own_list_is_migrated_with_a_coverage_report(server: Any, tmp_path: Path) -> None:
    def row(pair: str, pmcid: int, file: str, archive: bool = False) -> str:
        url = f"https://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/3f/46/PMC{pmcid}.tar.gz"
        path = file if archive else f"PMC{pmcid}/{file}"
        return json.dumps({"pair_id": pair, "pmc_tar_url": url, "image_file_path": path}) + "\n"

    name = f"PMC{FIRST + 3}.2"
    rows = row("1_F1", FIRST + 3, f"{name}-g1.jpg") + row("1_F2", FIRST + 3, f"{name}-g2.tif", archive=True)
    rows += row("1_F3", FIRST + 3, "other.jpg") + row("2_F1", FIRST + 7, "a.jpg") + row("3_F1", FIRST + 999, "a.jpg")
    rows += row("4_F1", FIRST + 11, "a.jpg") + '{"pair_id": "5_F1"}\n'
    (tmp_path / "urls.jsonl").write_text(rows)
    made = fetch(tmp_path / "out", quick(server, urls=tmp_path / "urls.jsonl"))
    expected = {
        "present": 2, "image_not_named": 1, "licence_excluded": 1, "not_found": 1, "retracted": 1, "row_damaged": 1,
    }  # fmt: skip
    assert made.extra["coverage"] == expected
    lines = [json.loads(line) for line in (tmp_path / "out" / "coverage.jsonl").read_text().splitlines()]
    assert [(line["pair_id"], line["key"]) for line in lines[:3]] == [
        ("1_F1", f"{name}/{name}-g1.jpg"), ("1_F2", f"{name}/{name}-g2.jpg"), ("1_F3", ""),
    ]  # fmt: skip
    assert (tmp_path / "out" / lines[0]["key"]).is_file()
    assert "LLaVA-Med" in (tmp_path / "out" / "report.html").read_text()


# --- what cannot be had -------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "funnel", "failed"), [("-g1.jpg", {}, 1), (".xml", {"failed_wrong_md5": 1}, 0)])
def test_what_never_arrives_whole_is_counted_and_tried_again_by_the_next_run(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, funnel: dict[str, int], failed: int
) -> None:
    """One bad image is counted and does not keep its article out; a bad XML does."""
    monkeypatch.setattr(client, "ATTEMPTS", 3)
    key = f"PMC{FIRST}.1/PMC{FIRST}.1{file}"
    server.bucket.extra[key] = b"something else"
    listed = ids(tmp_path, [FIRST, FIRST + 1, FIRST + 59])
    made = fetch(tmp_path / "out", quick(server, ids=listed))
    assert (made.funnel, made.counts["images_failed"]) == (funnel, failed)
    assert server.asked[key] == 3
    assert not (tmp_path / "out" / key).exists()
    del server.bucket.extra[key]
    made = fetch(tmp_path / "out", quick(server, ids=listed))
    assert (made.funnel, made.counts["images_failed"], made.counts["articles"]) == ({}, 0, 3)
    assert tree(tmp_path / "out")[key] == faulty_bucket.md5(server.bucket.get(key))


def test_files_that_are_not_there_are_counted(server: Any, tmp_path: Path) -> None:
    bucket, name = server.bucket, f"PMC{FIRST + 1}.1"
    meta = json.loads(bucket.metadata(FIRST + 1, 1))
    meta["media_urls"] = [url for url in meta["media_urls"] if "-g2.jpg" not in url]
    bucket.extra[f"metadata/{name}.json"] = json.dumps(meta).encode()
    bucket.extra[f"metadata/PMC{FIRST + 2}.1.json"] = json.dumps({**meta, "xml_url": None}).encode()
    nothing = json.dumps({"pmcid": f"PMC{FIRST + 5}", "version": 1, "license_code": "CC BY", "is_pmc_openaccess": True})
    bucket.extra[f"metadata/PMC{FIRST + 5}.1.json"] = nothing.encode()
    listed = ids(tmp_path, [FIRST + 1, FIRST + 2, FIRST + 5, FIRST + 500])
    made = fetch(tmp_path / "out", quick(server, ids=listed))
    assert made.funnel == {"failed_metadata_damaged": 1, "not_found": 1, "xml_missing": 1}  # 2's metadata is that of 1
    assert (made.counts["articles"], made.counts["images_missing"]) == (1, 1)


def test_names_in_the_metadata_lead_nowhere_else(server: Any, tmp_path: Path) -> None:
    bucket, name = server.bucket, f"PMC{FIRST}.1"
    hrefs = ["../evil.jpg", "..", "/etc/x.jpg", ".hidden.jpg", "a/b.jpg", "c\\d.jpg", "e\0f.jpg", "PMC8.1/g.jpg"]
    graphics = "".join(f"<fig><graphic xlink:href={json.dumps(h.replace(chr(0), ''))}/></fig>" for h in hrefs)
    xml = f"<article xmlns:xlink='http://www.w3.org/1999/xlink'><body>{graphics}</body></article>".encode()
    row = json.loads(bucket.metadata(FIRST, 1))
    row["xml_url"] = f"s3://pmc-oa-opendata/{name}/{name}.xml?md5={faulty_bucket.md5(xml)}"
    row["media_urls"] = [f"s3://pmc-oa-opendata/{name}/{href}" for href in hrefs] + [7, "s3://x"]
    bucket.extra |= {f"{name}/{name}.xml": xml, f"metadata/{name}.json": json.dumps(row).encode()}
    before = {p for p in tmp_path.rglob("*")}
    made = fetch(tmp_path / "out", quick(server, ids=ids(tmp_path, [FIRST])))
    assert made.counts["images_missing"] == len({h.rpartition("/")[2].rpartition("\\")[2] for h in hrefs} - {""})
    written = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p not in before and p.is_file()}
    own = {Path("out") / name / f"{name}.{kind}" for kind in ("xml", "json")}
    assert written == own | {Path("ids.txt")} | {
        Path("out") / f for f in ("articles.jsonl", "manifest.json", "report.html")
    }


def test_hostile_xml_is_counted_by_its_name_and_not_kept(server: Any, tmp_path: Path) -> None:
    name = f"PMC{FIRST}.1"
    bomb = b'<!DOCTYPE a [<!ENTITY x "y">]><article>&x;</article>'
    row = json.loads(server.bucket.metadata(FIRST, 1))
    row["xml_url"] = f"s3://pmc-oa-opendata/{name}/{name}.xml?md5={faulty_bucket.md5(bomb)}"
    server.bucket.extra |= {f"{name}/{name}.xml": bomb, f"metadata/{name}.json": json.dumps(row).encode()}
    made = fetch(tmp_path / "out", quick(server, ids=ids(tmp_path, [FIRST])))
    assert made.funnel == {"xml_entities": 1}
    assert not (tmp_path / "out" / name).exists()


def test_a_server_that_is_gone_ends_the_run_and_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FAILURES_IN_A_ROW", 10)

    async def it_did_list(_: Any) -> bool:
        return True

    with faulty_bucket.Server(faulty_bucket.Bucket(40), faults=(0.0, 1.0, 0.0, 0.0)) as server:
        listed = ids(tmp_path, server.bucket.ids())
        with pytest.raises(InputError, match="does not answer"):
            fetch(tmp_path / "out", quick(server, ids=listed))
        with monkeypatch.context() as later:
            later.setattr(versions, "can_list", it_did_list)
            with pytest.raises(InputError, match="requests in a row failed"):
                fetch(tmp_path / "out", quick(server, ids=listed))
        server.faults = (0.0, 0.0, 0.0, 0.0)
        fetch(tmp_path / "out", quick(server, ids=listed))
        assert tree(tmp_path / "out") == server.bucket.expected()


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "one of --ids"),
        ({"query": "x", "inventory": "latest"}, "one of --ids"),
        ({"query": "x", "licence": "comercial"}, "did you mean 'commercial'"),
        ({"query": "x", "base_url": "ftp://old"}, "no web address"),
        ({"inventory": "1999-01-01T01-00Z"}, "no inventory"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_line(
    server: Any, tmp_path: Path, request_: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        fetch(tmp_path / "out", Request(**{"base_url": server.url, "pause": 0.01, **request_}))


@pytest.mark.parametrize("text", ["", "PMC12\nhttps://example.org\n", "PMC12.1.1", "\xff"])
def test_a_list_that_is_none_names_the_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="ids"):
        fetch(tmp_path / "out", Request(ids=tmp_path / "ids"))
    assert not (tmp_path / "out").exists()
