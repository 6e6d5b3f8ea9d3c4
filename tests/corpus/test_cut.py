"""Where units end: an article more, less or changed touches few of them, and the corpus is as if made at once."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from test_unit import ROOT, article, picture

from llavamed import manifest
from llavamed.corpus import cut as cutting
from llavamed.corpus import prune, sources
from llavamed.corpus import unit as units
from llavamed.corpus.build import build
from llavamed.corpus.cut import cut
from llavamed.corpus.sources import Package, Source
from llavamed.corpus.store import Corpus
from llavamed.recipe import CorpusSection


def entry(name: str) -> Source:
    return Source(name, name, None, name, None)  # type: ignore[arg-type]


def names(entries: list[Source]) -> dict[str, tuple[str, ...]]:
    return {one.name: tuple(e.where for e in one.entries) for one in cut(entries, CorpusSection(), "")}


def test_units_hold_every_article_once_in_order_and_are_of_a_bounded_size() -> None:
    entries = [entry(f"a{n:05d}") for n in range(5000)]
    made = cut(entries, CorpusSection(), "")
    assert [e for one in made for e in one.entries] == entries
    sizes = [len(one.entries) for one in made]
    assert all(25 <= size <= 75 for size in sizes[:-1])
    assert 40 < sum(sizes) / len(sizes) < 60
    assert len({one.name for one in made}) == len(made)
    assert cut([], CorpusSection(), "") == []


def test_an_article_more_touches_few_units_wherever_it_stands() -> None:
    entries = [entry(f"a{n:05d}") for n in range(3000)]
    before = names(entries)
    touched = []
    for at in range(0, 3000, 60):
        after = names([*entries[:at], entry(f"a{at:05d}-new"), *entries[at:]])
        touched.append(sum(after[name] != before.get(name) for name in after))
    assert sum(touched) / len(touched) < 4
    assert max(touched) < 15  # of 60


def test_units_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "_drawn", lambda where, part=0: 10**12 - 1)
    made = cut([entry(f"a{n:05d}") for n in range(300)], CorpusSection(), "")
    assert [one.name for one in made] == ["999999999999", *(f"{n:012d}" for n in range(len(made) - 1))]
    assert len(made) > 4


# --- building again --------------------------------------------------------------------------


def everything(out: Path) -> dict[str, str]:
    """{file: sha256} of a corpus and what it keeps for the next build; not the manifest, which says when."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != manifest.NAME)
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def put(root: Path, number: int, seed: int | None = None) -> None:
    folder = root / f"PMC{number}.1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"PMC{number}.1.xml").write_bytes(article(number if seed is None else seed))
    (folder / "g1.jpg").write_bytes(picture(number % 7))
    (folder / "g2.jpg").write_bytes(picture(number))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(units, "ARTICLES", 4)
    for number in range(100, 160):
        put(tmp_path / "in", number)
    return tmp_path / "in"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The articles that are read, once for each time; the first that is read is read twice, to see that it can be."""
    found: list[str] = []
    real = units._read
    monkeypatch.setattr(units, "_read", lambda source, tally: (found.append(source.name), real(source, tally))[1])
    return found


@pytest.mark.parametrize("by_time", [False, True])
@pytest.mark.parametrize("place", ["folder", "fsspec"])
def test_building_again_reads_what_changed_and_ends_as_if_made_at_once(
    mirror: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, by_time: bool, place: str
) -> None:
    if by_time:
        monkeypatch.setattr("llavamed.corpus.folder._CONTENT_HASHED_BYTES", 0)
    out = str(tmp_path / "out") if place == "folder" else f"file://{tmp_path}/out"
    build(mirror, out, workers=1)
    assert len(read) == 61
    put(mirror, 1305)  # sorted between PMC130.1 and PMC131.1
    put(mirror, 150, seed=999)
    for path in (mirror / "PMC110.1").iterdir():
        path.unlink()
    (mirror / "PMC110.1").rmdir()
    read.clear()
    again = build(mirror, out, workers=1)
    assert {"PMC1305.1", "PMC150.1"} <= set(read)
    assert len(read) <= 1 + 5 * 6
    fresh = build(mirror, tmp_path / "fresh", workers=1)
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")
    assert (again.counts, again.funnel, again.files) == (fresh.counts, fresh.funnel, fresh.files)
    assert again.counts["articles"] == 60


def test_one_picture_changed_or_one_that_comes_later_is_noticed(mirror: Path, tmp_path: Path, read: list[str]) -> None:
    build(mirror, tmp_path / "out", workers=1)
    read.clear()
    (mirror / "PMC150.1/g2.jpg").write_bytes(picture(5000))
    build(mirror, tmp_path / "out", workers=1)
    assert "PMC150.1" in read
    assert len(read) <= 7
    data = (mirror / "PMC120.1/g1.jpg").read_bytes()
    (mirror / "PMC120.1/g1.jpg").unlink()
    assert build(mirror, tmp_path / "out", workers=1).funnel == {"image_missing": 1}
    (mirror / "PMC120.1/scans").mkdir()
    (mirror / "PMC120.1/scans/g1.jpg").write_bytes(data)
    read.clear()
    assert build(mirror, tmp_path / "out", workers=1).funnel == {}
    assert len(read) <= 7
    read.clear()
    (mirror / "PMC130.1/notes.csv").write_text("no figure")
    (mirror / "PMC130.1/g1.jpg").touch()
    build(mirror, tmp_path / "out", workers=1)
    assert read == []


def test_what_another_setting_made_is_made_again(mirror: Path, tmp_path: Path, read: list[str]) -> None:
    build(mirror, tmp_path / "out", workers=1)
    read.clear()
    build(mirror, tmp_path / "out", CorpusSection(min_caption_words=2), workers=1)
    assert len(read) == 61


def test_an_article_that_is_there_twice_for_a_time(mirror: Path, tmp_path: Path) -> None:
    def copy(name: str) -> None:
        (mirror / name).mkdir()
        (mirror / name / "x.xml").write_bytes(article(7, doi="10.1/same"))
        for number in (1, 2):
            (mirror / name / f"g{number}.jpg").write_bytes(picture(number))

    copy("last")
    build(mirror, tmp_path / "out", workers=1)
    copy("PMC1")  # before all others: what was alone, and kept its keys, gives them up
    build(mirror, tmp_path / "out", workers=1)
    build(mirror, tmp_path / "fresh", workers=1)
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")
    same = [pair.key for pair in Corpus(tmp_path / "out").pairs() if pair.article == "10.1/same"]
    assert same == ["10-1-same_f1", "10-1-same_f2", "10-1-same_f1-2", "10-1-same_f2-2"]
    for path in (mirror / "PMC1").iterdir():
        path.unlink()
    build(mirror, tmp_path / "out", workers=1)
    build(mirror, tmp_path / "fresh2", workers=1)
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh2")


def test_what_an_audit_took_out_is_there_again(mirror: Path, tmp_path: Path, read: list[str]) -> None:
    build(mirror, tmp_path / "out", workers=1)
    key = "PMC140-1_f1"
    prune.begin(tmp_path / "out", [key], [], {"benchmark_image": 1}, [])
    assert key not in Corpus(tmp_path / "out")
    put(mirror, 1305)
    read.clear()
    build(mirror, tmp_path / "out", workers=1)
    assert "PMC140.1" in read
    assert len(read) <= 1 + 4 * 6
    build(mirror, tmp_path / "fresh", workers=1)
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")


def test_a_missing_shard_is_made_again(mirror: Path, tmp_path: Path, read: list[str]) -> None:
    build(mirror, tmp_path / "out", workers=1)
    before = everything(tmp_path / "out")
    min((tmp_path / "out").glob("shard-*")).unlink()
    read.clear()
    build(mirror, tmp_path / "out", workers=1)
    assert 2 <= len(read) <= 7
    assert everything(tmp_path / "out") == before


@pytest.mark.parametrize("place", ["folder", "fsspec"])
@pytest.mark.parametrize("damaged", ["shard-{}.tar", "units/{}.parquet", "units/{}.jsonl", "units/{}.json"])
def test_a_unit_of_which_a_file_was_cut_short_is_made_again(
    mirror: Path, tmp_path: Path, read: list[str], damaged: str, place: str
) -> None:
    (mirror / "PMC150.1/g2.jpg").unlink()  # some text without its image
    out = str(tmp_path / "out") if place == "folder" else f"file://{tmp_path}/out"
    build(mirror, out, workers=1)
    shard = Path(Corpus(tmp_path / "out").place("PMC150-1_f1").rpartition(" bytes ")[0])
    path = tmp_path / "out" / damaged.format(shard.stem.removeprefix("shard-"))
    os.truncate(path, path.stat().st_size // 2)
    put(mirror, 1005)  # far from it
    read.clear()
    build(mirror, out, workers=1)
    assert {"PMC1005.1", "PMC150.1"} <= set(read)
    assert len(read) <= 1 + 5 * 6
    build(mirror, tmp_path / "fresh", workers=1)
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")


def test_what_could_not_be_read_is_tried_again(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sources.Folder.read

    def fails(self: sources.Folder, name: str, limit: int) -> bytes:
        if name.startswith("PMC120.1"):
            raise sources.SourceError("busy", "unreadable")
        return real(self, name, limit)

    with monkeypatch.context() as patched:
        patched.setattr(sources.Folder, "read", fails)
        assert build(mirror, tmp_path / "out", workers=1).funnel == {"article_unreadable": 1}
    put(mirror, 1305)
    assert build(mirror, tmp_path / "out", workers=1).funnel == {}


def test_a_rebuild_killed_at_any_moment_ends_as_if_made_at_once(mirror: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom llavamed.corpus import unit\n"
        "from llavamed.corpus.build import build\nif __name__ == '__main__':\n    unit.ARTICLES = 4\n"
        "    build(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)"
    )
    (tmp_path / "build.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "build.py"), str(mirror), str(tmp_path / "out")]
    build(mirror, tmp_path / "out", workers=1)
    for number in range(100, 160, 5):
        put(mirror, number, seed=number + 500)
    rng = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        while not (tmp_path / "out" / manifest.UNFINISHED).exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command], env=env, check=True, capture_output=True)
    build(mirror, tmp_path / "fresh", workers=1)
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")


# --- one archive -----------------------------------------------------------------------------


def test_a_large_zip_is_cut_into_units_and_its_problems_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for n in range(11):
            archive.writestr(f"{n:02d}/a{n}.xml", article(n, 1))
            archive.writestr(f"{n:02d}/g1.jpg", picture(n))
        archive.writestr("../out.xml", "x")
    whole = build(tmp_path / "all.zip", tmp_path / "whole", workers=1)
    monkeypatch.setattr(units, "ARTICLES", 4)
    monkeypatch.setattr(sources, "_LEAST_SPLIT_BYTES", 1)
    made = cut(sources.scan(tmp_path / "all.zip").entries, CorpusSection(), "")
    assert [(part.part, part.parts) for one in made for part in one.entries if isinstance(part, Package)] == [
        (0, 3), (1, 3), (2, 3),
    ]  # fmt: skip
    assert len({one.fingerprint for one in made}) == 3
    cut_up = build(tmp_path / "all.zip", tmp_path / "parts", workers=2)
    assert (cut_up.counts["shards"], cut_up.funnel) == (3, whole.funnel)
    assert cut_up.funnel == {"article_archive_path_out": 1}
    assert list(Corpus(tmp_path / "parts").pairs()) == list(Corpus(tmp_path / "whole").pairs())
    assert json.loads((tmp_path / "parts/manifest.json").read_text())["counts"]["articles"] == 11
