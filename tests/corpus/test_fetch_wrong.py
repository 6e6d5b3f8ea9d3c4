"""A server that is wrong, slow or another one: nothing that is in the mirror is lost to it, and the run says so."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import faulty_bucket

from llavamed import manifest
from llavamed.corpus import sources, wanted
from llavamed.corpus.alone import alone
from llavamed.corpus.client import Client, Failed
from llavamed.corpus.fetch import Request, fetch
from llavamed.errors import InputError

FIRST = faulty_bucket.FIRST
SIX = [FIRST, FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 4, FIRST + 5]


@pytest.fixture
def server() -> Iterator[Any]:
    with faulty_bucket.Server(faulty_bucket.Bucket(60)) as running:
        yield running


def asked(server: Any, folder: Path, names: Any = SIX, **more: Any) -> Request:
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    return Request(base_url=server.url, pause=0.01, ids=folder / "ids.txt", **more)


def tree(folder: Path) -> dict[str, str]:
    found = (path for path in folder.glob("PMC*/*"))
    return {str(p.relative_to(folder)): faulty_bucket.md5(p.read_bytes()) for p in found}


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


LOGIN = answer("200 OK", b"<html><body>Please log in to the wifi</body></html>")
ELSEWHERE = answer("301 Moved", b"", "Location: http://login.example/here")


# --- an answer that is wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (answer("403 Forbidden", b"proxy"), "HTTP 403"),
        (answer("404 Not Found", b"no"), "HTTP 404"),
        (LOGIN, "not JSON"),
        (ELSEWHERE, "HTTP 301 to http://login.example/here"),
        (answer("418 Teapot"), "HTTP 418"),
    ],
)
@pytest.mark.parametrize("held", [True, False])
def test_a_server_that_is_wrong_about_everything_ends_the_run_and_takes_nothing(
    server: Any, tmp_path: Path, wrong: bytes, says: str, held: bool
) -> None:
    out = tmp_path / "out"
    if held:
        fetch(out, asked(server, tmp_path))
    before = tree(out)
    assert bool(before) == held
    server.instead = lambda key, query: wrong
    with pytest.raises(InputError, match=says):
        fetch(out, asked(server, tmp_path))
    assert tree(out) == before
    server.instead = lambda key, query: None
    made = fetch(out, asked(server, tmp_path))
    assert made.counts["articles"] == 6
    assert made.extra["changes"]["unchanged" if held else "new"] == 6


def test_a_server_that_turns_wrong_on_the_way_is_noticed(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llavamed.corpus.fetch._MOST_FAILED", 8)
    out = tmp_path / "out"
    request = asked(server, tmp_path, server.bucket.ids(), concurrency=1)
    server.instead = lambda key, query: LOGIN if server.asked.total() > 40 else None
    with pytest.raises(InputError, match="8 articles in a row"):
        fetch(out, request)
    assert 0 < len(tree(out)) < len(server.bucket.expected())
    server.instead = lambda key, query: None
    fetch(out, request)
    assert tree(out) == server.bucket.expected()


def test_one_listing_that_does_not_come_is_one_article_s_failure(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its neighbour has the versions 1 and 3: tried one by one, it would be taken for 1."""
    server.bucket.versions = lambda pmcid: {FIRST + 1: [1, 3]}.get(pmcid, [1] if pmcid in SIX else [])
    bad = f"prefix=PMC{FIRST}."
    server.instead = lambda key, query: answer("403 Forbidden") if bad in query else None
    out = tmp_path / "out"
    made = fetch(out, asked(server, tmp_path))
    assert made.funnel == {"failed_forbidden": 1}
    assert {path.name for path in out.glob("PMC*")} == {f"PMC{FIRST + 1}.3", *(f"PMC{i}.1" for i in SIX[2:])}
    server.instead = lambda key, query: None
    assert fetch(out, asked(server, tmp_path)).counts["articles"] == 6
    server.instead = lambda key, query: LOGIN if bad in query else None
    again = fetch(out, asked(server, tmp_path))
    assert (again.funnel, again.extra["changes"]["unchecked"]) == ({}, 1)
    assert (out / f"PMC{FIRST}.1" / f"PMC{FIRST}.1.json").is_file()
    assert "1 articles are as they were, unchecked" in capsys.readouterr().err


def test_a_mirror_is_not_taken_back_to_an_old_version_by_a_server_that_cannot_list(server: Any, tmp_path: Path) -> None:
    server.bucket.versions = lambda pmcid: [1, 3] if pmcid in SIX else []
    out = tmp_path / "out"
    fetch(out, asked(server, tmp_path))
    server.can_list = False
    made = fetch(out, asked(server, tmp_path))
    assert made.extra["changes"]["unchanged"] == 6
    server.bucket.versions = lambda pmcid: ([1] if pmcid == FIRST else [1, 3]) if pmcid in SIX else []
    made = fetch(out, asked(server, tmp_path))
    assert (made.extra["changes"]["unchanged"], made.extra["changes"]["unchecked"]) == (5, 1)
    assert {path.name for path in out.glob("PMC*")} == {f"PMC{i}.3" for i in SIX}


def test_an_old_version_stays_until_the_new_one_is_here(server: Any, tmp_path: Path) -> None:
    out, name = tmp_path / "out", f"PMC{FIRST + 3}"
    server.bucket.versions = lambda pmcid: [1]
    fetch(out, asked(server, tmp_path))
    del server.bucket.versions
    server.instead = lambda key, query: answer("403 Forbidden") if f"{name}.2" in key else None
    made = fetch(out, asked(server, tmp_path))
    assert (made.funnel, made.counts["articles"]) == ({"failed_forbidden": 1}, 6)
    assert (out / f"{name}.1").is_dir()
    server.instead = lambda key, query: None
    assert fetch(out, asked(server, tmp_path)).extra["changes"]["superseded"] == 1
    assert not (out / f"{name}.1").exists()


def test_an_xml_that_is_not_there_though_the_metadata_names_it_is_asked_for_again(server: Any, tmp_path: Path) -> None:
    out, file = tmp_path / "out", f"PMC{FIRST}.1/PMC{FIRST}.1.xml"
    server.instead = lambda key, query: answer("404 Not Found") if key == file else None
    assert fetch(out, asked(server, tmp_path)).funnel == {"failed_xml_missing": 1}
    server.instead = lambda key, query: None
    assert fetch(out, asked(server, tmp_path)).funnel == {}


def test_a_bucket_that_may_be_read_but_not_listed_says_403_of_what_it_lacks(server: Any, tmp_path: Path) -> None:
    def s3(key: str, query: str) -> bytes | None:
        return None if key and server.bucket.get(key) is not None else answer("403 Forbidden")

    server.instead = s3
    made = fetch(tmp_path / "out", asked(server, tmp_path))
    assert made.counts["articles"] == 6
    assert (tmp_path / "out" / f"PMC{FIRST + 3}.2").is_dir()


# --- what the bucket has no more ----------------------------------------------------------------


def test_a_part_of_an_inventory_is_refused_before_anything_is_deleted(
    server: Any, tmp_path: Path, llavamed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket, out, files = server.bucket, tmp_path / "out", tmp_path / "inventory"
    files.mkdir()
    rows = gzip.decompress(bucket.get(f"{faulty_bucket.INVENTORY}data/1.csv.gz") or b"").splitlines(keepends=True)
    for number, part in enumerate((rows[:30], rows[30:])):
        (files / f"{number}.csv.gz").write_bytes(gzip.compress(b"".join(part)))
    listed = {"files": [{"key": f"data/{number}.csv.gz"} for number in range(3)]}
    (files / "manifest.json").write_text(json.dumps(listed))
    request = Request(inventory=str(files), base_url=server.url, pause=0.01)
    with pytest.raises(InputError, match=r"2\.csv\.gz: not there"):
        fetch(out, request)
    (files / "manifest.json").unlink()
    made = fetch(out, request)
    assert tree(out) == bucket.expected()
    part = ["corpus", "fetch", "--inventory", files / "1.csv.gz", "--base-url", server.url, "--out", out]
    assert llavamed(*part) == 2
    told = capsys.readouterr().err
    lacking = sum(pmcid < FIRST + 29 for pmcid in bucket.wanted())  # one of the 30 rows is a second version
    assert f"lacks {lacking} articles" in told
    assert "--prune" in told
    assert tree(out) == bucket.expected()
    assert fetch(out, request).extra["changes"]["unchanged"] == made.counts["articles"] + sum(made.funnel.values())
    assert llavamed(*part, "--prune") == 0
    assert len(list(out.glob("PMC*"))) == made.counts["articles"] - lacking


def test_another_bucket_that_has_none_of_the_mirror_takes_nothing(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fetch(out, asked(server, tmp_path))
    before = tree(out)
    server.bucket.removed.update(SIX)
    made = fetch(out, asked(server, tmp_path))
    assert "6 articles in it are not in the bucket" in capsys.readouterr().err
    assert (tree(out), made.counts["articles"], made.funnel) == (before, 6, {})
    server.bucket.removed.difference_update(SIX[1:])
    made = fetch(out, asked(server, tmp_path))
    assert (made.extra["changes"]["removed"], made.counts["articles"], made.funnel) == (1, 5, {"not_found": 1})
    server.bucket.removed.update(SIX)
    made = fetch(out, asked(server, tmp_path, prune=True))
    assert (tree(out), made.extra["changes"]["removed"], made.funnel) == ({}, 5, {"not_found": 6})


def test_the_only_article_of_a_mirror_is_not_deleted_unasked(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch(out, asked(server, tmp_path, [FIRST]))
    server.bucket.removed.add(FIRST)
    for prune in (False, True):
        made = fetch(out, asked(server, tmp_path, [FIRST], prune=prune))
        assert (bool(tree(out)), made.funnel) == (not prune, {"not_found": 1} if prune else {})


def test_tomorrow_s_sample_is_today_s_and_that_of_a_list_is_that_of_the_inventory(server: Any, tmp_path: Path) -> None:
    def sample(name: str, **more: Any) -> set[str]:
        fetch(tmp_path / name, Request(base_url=server.url, pause=0.01, sample=20, seed=3, **more))
        return {json.loads(line)["article"] for line in (tmp_path / name / "articles.jsonl").read_text().splitlines()}

    today = sample("today", inventory="latest")
    server.bucket.articles += 3
    assert len(today & sample("tomorrow", inventory="latest")) >= 17
    (tmp_path / "all.txt").write_text("\n".join(map(str, range(FIRST, FIRST + 60))))
    assert sample("list", ids=tmp_path / "all.txt") == today


# --- what comes in part, slowly, packed or not at all -------------------------------------------


def test_gzip_that_nobody_asked_for_is_taken_off(server: Any, tmp_path: Path) -> None:
    def packed(key: str, query: str) -> bytes | None:
        body = server.bucket.get(key) if key else None
        return body and answer("200 OK", gzip.compress(body), "Content-Encoding: gzip")

    server.instead = packed
    fetch(tmp_path / "out", asked(server, tmp_path, server.bucket.ids()))
    assert tree(tmp_path / "out") == server.bucket.expected()


def test_without_md5_and_length_what_was_cut_is_noticed_and_the_rest_counted(server: Any, tmp_path: Path) -> None:
    """As behind a HTTP/1.0 server: the end of the connection is the end of the file."""
    cut = {f"PMC{FIRST}.1/PMC{FIRST}.1.xml", f"PMC{FIRST + 1}.1/PMC{FIRST + 1}.1-g2.jpg"}
    out = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(out, "JPEG")
    pictures = {f"PMC{i}.1/PMC{i}.1-g{n}.jpg": out.getvalue() for i in SIX[:3] for n in (1, 2)}

    def bare(key: str, query: str) -> bytes | None:
        body = pictures.get(key, server.bucket.get(key)) if key else None
        if body is None:
            return None
        if key.endswith(".json"):
            row = json.loads(body)
            row["xml_url"] = row["xml_url"].partition("?")[0]
            row["media_urls"] = [url.partition("?")[0] for url in row["media_urls"]]
            body = json.dumps(row).encode()
        body = body[: len(body) // 2] if key in cut else body
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body

    server.instead = bare
    made = fetch(tmp_path / "out", asked(server, tmp_path, SIX[:3]))
    assert made.funnel == {"failed_cut_short": 1, "failed_not_xml": 1}
    assert made.extra["traffic"]["files_without_md5"] == 6
    cut.clear()
    made = fetch(tmp_path / "out", asked(server, tmp_path, SIX[:3]))
    assert (made.counts["articles"], made.funnel) == (3, {})


def test_an_image_over_the_limit_is_counted_once_and_its_article_stays(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", 100)
    made = fetch(tmp_path / "out", asked(server, tmp_path, [FIRST + 1]))
    assert (made.counts["articles"], made.counts["images_too_large"], made.funnel) == (1, 2, {})
    server.asked.clear()
    fetch(tmp_path / "out", asked(server, tmp_path, [FIRST + 1]))
    assert not any(key.endswith(".jpg") for key in server.asked)


def test_a_body_that_drips_is_given_up(tmp_path: Path) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
        try:
            for _ in range(10_000):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass

    async def run() -> None:
        async with await asyncio.start_server(drip, "127.0.0.1", 0) as slow:
            url = f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}"
            async with Client(url, tmp_path, pause=0.0, timeout=0.1) as client:
                with pytest.raises(Failed, match="bytes in") as failed:
                    await client.save("a.jpg", tmp_path / "a.jpg", "", 10**6)
            assert failed.value.reason == "too_slow"

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 60


def test_a_listing_without_an_end_ends(server: Any, tmp_path: Path) -> None:
    def endless(key: str, query: str) -> bytes | None:
        page = b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"
        return answer("200 OK", page + b"</ListBucketResult>") if "prefix=PMC" in query or "inv" in query else None

    server.instead = endless
    with pytest.raises(InputError, match="a listing without an end"):
        fetch(tmp_path / "out", asked(server, tmp_path))
    with pytest.raises(InputError, match="a listing without an end"):
        fetch(tmp_path / "out", Request(base_url=server.url, inventory="latest", pause=0.01))


# --- this machine -------------------------------------------------------------------------------


def test_two_runs_in_one_folder_are_told_apart(server: Any, tmp_path: Path) -> None:
    fetch(tmp_path / "out", asked(server, tmp_path))
    with alone(tmp_path / "out"), pytest.raises(InputError, match="another run is writing here"):
        fetch(tmp_path / "out", asked(server, tmp_path))
    assert manifest.read(tmp_path / "out") is not None


def test_a_file_that_is_too_large_for_this_machine_is_one_line(server: Any, tmp_path: Path) -> None:
    listed = asked(server, tmp_path).ids
    command = f"ulimit -f 1; exec {sys.executable} -m llavamed corpus fetch --ids {listed} --out {tmp_path / 'out'}"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        ["bash", "-c", f"{command} --base-url {server.url}"], capture_output=True, text=True, env=env, check=False
    )
    lines = [line for line in ran.stderr.splitlines() if line.startswith("llavamed: error:")]
    assert (ran.returncode, len(lines)) == (2, 1), ran.stderr
    assert "File too large" in lines[0]
    assert "Traceback" not in ran.stderr


def test_the_memory_that_an_inventory_s_article_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight million articles must fit a laptop: numpy's columns, and nothing that is kept for each beside them."""
    monkeypatch.setattr(wanted, "_BATCH", 1000)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            rows = ((wanted.bucket.Name(i, 1), f"{i:032x}") for i in range(count))
            selection = wanted.Inventory(rows).wanted(False, None, 0)
            wanted.fingerprint(selection)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert (peak(30_000) - peak(10_000)) / 20_000 < 120
