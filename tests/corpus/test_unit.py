"""Work units: the same bytes whoever makes them, in one go or after being killed, here or elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
import uuid
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llavamed import manifest
from llavamed.corpus import build as building
from llavamed.corpus import shards, sources, store
from llavamed.corpus import unit as units
from llavamed.corpus.audit import audit
from llavamed.corpus.build import build
from llavamed.corpus.output import Output
from llavamed.corpus.show import show, stats
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.recipe import CorpusSection

ROOT = Path(__file__).parents[2]
LICENCE = "<permissions><license xlink:href='https://creativecommons.org/licenses/by/4.0/'/></permissions>"
CAPTION = "Axial CT of the liver of patient {} with a hypodense lesion in the right lobe, arterial phase"


def picture(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize((64, 64), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def article(number: int, figures: int = 2, doi: str = "") -> bytes:
    body = "".join(
        f"<p>Seen in <xref ref-type='fig' rid='f{n}'>Fig. {n}</xref>.</p><fig id='f{n}'><label>Fig. {n}</label>"
        f"<caption><p>{CAPTION.format(number * 10 + n)}</p></caption><graphic xlink:href='g{n}'/></fig>"
        for n in range(1, figures + 1)
    )
    identity = f"<article-id pub-id-type='doi'>{doi}</article-id>" if doi else ""
    meta = f"<front><article-meta>{identity}{LICENCE}</article-meta></front>"
    return f"<article xmlns:xlink='http://www.w3.org/1999/xlink'>{meta}<body>{body}</body></article>".encode()


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """23 articles: folders, a zip, a tar, one that is retracted, one that is no XML, one image missing."""
    root = tmp_path / "articles"
    for n in range(20):
        folder = root / f"PMC{n}.1"
        folder.mkdir(parents=True)
        (folder / f"PMC{n}.1.xml").write_bytes(article(n))
        (folder / "g1.jpg").write_bytes(picture(n))
        if n != 7:
            (folder / "g2.jpg").write_bytes(picture(100 + n % 5))  # the same picture in several articles
    (root / "PMC3.1/PMC3.1.json").write_text(json.dumps({"is_retracted": True}))
    (root / "PMC4.1/PMC4.1.xml").write_text("no XML")
    with zipfile.ZipFile(root / "some.zip", "w") as archive:
        for n in (30, 31):
            archive.writestr(f"{n}/a{n}.xml", article(n, 1))
            archive.writestr(f"{n}/g1.jpg", picture(n))
    with tarfile.open(root / "PMC40.tar.gz", "w:gz") as archive:
        for name, data in (("PMC40/a.nxml", article(40, 1)), ("PMC40/g1.jpg", picture(40))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return root


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "ARTICLES", 3)


def content(out: Path) -> dict[str, str]:
    """{file: sha256} of all but the manifest, which says when, and what is kept for the next build."""
    files = (path for path in out.glob("*") if path.is_file() and path.name != manifest.NAME)
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.usefixtures("small_units")
def test_the_bytes_are_the_same_for_one_two_and_many_workers(articles: Path, tmp_path: Path) -> None:
    made = [build(articles, tmp_path / str(workers), workers=workers) for workers in (1, 2, 3)]
    assert made[0].counts["shards"] == 8
    assert made[0].counts["pairs"] == 38
    assert made[0].funnel == {"article_not_xml": 1, "article_retracted": 1, "image_missing": 1}
    first = content(tmp_path / "1")
    assert first == content(tmp_path / "2") == content(tmp_path / "3")
    assert [m.counts for m in made] == [made[0].counts] * 3
    corpus = Corpus(tmp_path / "1")
    for pair in corpus.pairs():
        assert hashlib.sha256(corpus.image(pair.key)).hexdigest() == pair.sha256


@pytest.mark.usefixtures("small_units")
def test_a_ray_cluster_makes_the_same_bytes(articles: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    build(articles, tmp_path / "local", workers=1)
    build(articles, tmp_path / "ray", engine="ray", workers=2)
    assert content(tmp_path / "local") == content(tmp_path / "ray")


def test_an_unknown_engine_is_named(articles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'spark'"):
        build(articles, tmp_path / "out", engine="spark")


@pytest.mark.usefixtures("small_units")
def test_what_is_finished_is_not_made_again(articles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(articles, tmp_path / "straight", workers=1)
    made: list[str] = []
    real = units.make

    def dies_at_the_fifth(unit: units.Unit, out: Output) -> object:
        if units.finished(unit, out) is None:
            if len(made) == 4:
                raise KeyboardInterrupt
            made.append(unit.name)
        return real(unit, out)

    monkeypatch.setattr(units, "make", dies_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        build(articles, tmp_path / "out", workers=1)
    assert manifest.read(tmp_path / "out") is None
    before = list(made)
    shards = list((tmp_path / "out").glob("shard-*.tar"))
    assert len(shards) == len(before) == 4
    stamps = {path: path.stat().st_mtime_ns for path in shards}
    for path in (tmp_path / "straight").glob("shard-*.tar"):  # half of a unit that was not finished
        if not (tmp_path / "out" / path.name).exists():
            (tmp_path / "out" / path.name).write_bytes(b"half")
            break
    made.clear()
    monkeypatch.setattr(units, "make", lambda unit, out: (made.append(unit.name), real(unit, out))[1])
    build(articles, tmp_path / "out", workers=1)
    assert made
    assert not set(made) & set(before)
    assert {path: path.stat().st_mtime_ns for path in shards} == stamps
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def test_a_build_killed_at_any_moment_ends_with_the_same_bytes(
    articles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "ARTICLES", 2)
    code = (
        "import sys\nfrom pathlib import Path\nfrom llavamed.corpus import unit\n"
        "from llavamed.corpus.build import build\nif __name__ == '__main__':\n    unit.ARTICLES = 2\n"
        "    build(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))"
    )
    (tmp_path / "build.py").write_text(code)
    out, rng = tmp_path / "killed", random.Random(0)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "build.py"), str(articles), str(out)]
    build(articles, tmp_path / "straight", workers=1)
    for least, workers in ((1, 1), (4, 2), (7, 1)):
        process = subprocess.Popen([*command, str(workers)], env=env, stderr=subprocess.DEVNULL)
        while len(list(out.glob("units/*.json"))) < least and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.wait()
    subprocess.run([*command, "1"], env=env, check=True, capture_output=True)
    assert content(out) == content(tmp_path / "straight")
    assert not list(out.glob(".partial*"))


def _dies(unit: units.Unit, out: Output) -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    return None


@pytest.mark.usefixtures("small_units")
def test_a_worker_that_is_killed_is_told_in_one_line(
    articles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "make", _dies)
    with pytest.raises(InputError, match="worker was killed"):
        build(articles, tmp_path / "out", workers=2)
    monkeypatch.undo()
    assert manifest.read(tmp_path / "out") is None
    assert build(articles, tmp_path / "out", workers=1).counts["pairs"] == 38


def test_the_command_line_chooses_place_workers_and_engine(
    articles: Path, tmp_path: Path, llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    command = partial(llavamed, "corpus", "build", articles)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unfinished.json.tmp").touch()  # a build killed in its first step
    assert command("--out", f"file://{tmp_path}/out", "--workers", 1, "--json") == 0
    printed = capsys.readouterr()
    assert {"what": "pairs", "count": 38} in json.loads(printed.out)
    assert f"report: file://{tmp_path}/out/report.html" in printed.err
    assert len(Corpus(tmp_path / "out")) == 38
    assert command("--out", tmp_path / "two", "--engine", "spark") == 2
    assert "give one of local, ray" in capsys.readouterr().err
    assert command("--out", tmp_path / "two", "--workers", 0) == 2


def test_a_file_that_a_figure_names_again_is_one_pair(tmp_path: Path) -> None:
    """By the same name in another folder or under another extension, or as the same bytes under another name."""
    names = ["g1", "x/g1", "y\\G1", "g1.tif", "copy", "g2"]
    graphics = "".join(f"<graphic xlink:href='{name}'/>" for name in names)
    xml = article(1, 1).replace(b"<graphic xlink:href='g1'/>", graphics.encode())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.xml").write_bytes(xml)
    for name, seed in (("g1", 1), ("copy", 1), ("g2", 2)):
        (tmp_path / f"in/{name}.jpg").write_bytes(picture(seed))
    made = build(tmp_path / "in", tmp_path / "out", workers=1)
    assert (made.counts["pairs"], made.funnel) == (2, {"image_again": 4})


@pytest.mark.parametrize("fmt", ["webdataset", "hf"])
def test_long_texts_and_large_images_are_held_only_until_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.xml").write_bytes(article(1, 12))
    for n in range(1, 13):
        (tmp_path / f"in/g{n}.jpg").write_bytes(picture(n))
    section = CorpusSection(format=fmt)  # type: ignore[arg-type]
    whole = build(tmp_path / "in", tmp_path / "whole", section, workers=1)
    monkeypatch.setattr(store, "TEXT_PER_SHARD", 500)
    monkeypatch.setattr(shards.ParquetShard, "_BYTES", 3000)
    cut = build(tmp_path / "in", tmp_path / "cut", section, workers=1)
    assert (whole.counts["shards"], whole.counts["pairs"]) == (1, 12)
    assert cut.counts["shards"] == 3
    before, after = Corpus(tmp_path / "whole"), Corpus(tmp_path / "cut")
    keys = before.keys()
    assert list(before.pairs()) == list(after.pairs())
    assert [before.image(key) for key in keys] == [after.image(key) for key in keys]
    assert after.keys() == keys
    if fmt == "hf":
        groups = [pq.ParquetFile(path).num_row_groups for path in sorted((tmp_path / "cut").glob("shard*"))]
        assert max(groups) > 1


def test_a_third_partys_figure_is_left_out_by_name_and_a_narrower_one_by_its_licence(tmp_path: Path) -> None:
    xml = article(1, 3)
    xml = xml.replace(b"of patient 12", b"of patient 12. Reprinted with permission from Elsevier. It shows one")
    xml = xml.replace(b"of patient 13", b"of patient 13. Licensed under CC BY-NC 4.0. It shows one")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.xml").write_bytes(xml)
    for n in range(1, 4):
        (tmp_path / f"in/g{n}.jpg").write_bytes(picture(n))
    made = build(tmp_path / "in", tmp_path / "out", workers=1)
    assert (made.counts["pairs"], made.funnel) == (1, {"licence_excluded": 1, "third_party": 1})
    assert "Reprinted with permission from Elsevier." in (tmp_path / "out/report.html").read_text()
    made = build(tmp_path / "in", tmp_path / "any", CorpusSection(licence="any"), workers=1)
    licences = [pair.licence for pair in Corpus(tmp_path / "any").pairs()]
    assert (made.funnel, licences) == ({}, ["CC-BY-4.0", "unknown", "CC-BY-NC-4.0"])


def test_a_conflict_of_metadata_and_article_is_counted_and_the_narrower_holds(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.xml").write_bytes(article(1, 1))
    (tmp_path / "in/a.json").write_text(json.dumps({"license_code": "CC BY-NC"}))
    (tmp_path / "in/g1.jpg").write_bytes(picture(1))
    made = build(tmp_path / "in", tmp_path / "out", CorpusSection(licence="noncommercial"), workers=1)
    assert (made.counts["licence_conflicts"], made.extra["licences"]) == (1, {"CC-BY-NC": 1})


def test_a_unit_travels_light(articles: Path) -> None:
    entries = sources.scan(articles).entries
    unit = units.Unit("0", tuple(entries), CorpusSection(), "")
    data = pickle.dumps(unit)
    assert len(data) < 500 * len(entries)
    assert [entry.where for entry in pickle.loads(data).entries] == [entry.where for entry in entries]


def test_the_same_article_twice_has_different_keys_in_any_number_of_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(9):
        (tmp_path / f"in/{n}").mkdir(parents=True)
        (tmp_path / f"in/{n}/a{n}.xml").write_bytes(article(n, 1, doi="10.1/same" if n in (0, 4, 8) else ""))
        (tmp_path / f"in/{n}/g1.jpg").write_bytes(picture(n))
    for size in (1, 3, 100):
        monkeypatch.setattr(units, "ARTICLES", size)
        build(tmp_path / "in", tmp_path / str(size), workers=1)
        keys = Corpus(tmp_path / str(size)).keys()
        assert len(set(keys)) == 9
        assert [key for key in keys if "same" in key] == ["10-1-same_f1", "10-1-same_f1-2", "10-1-same_f1-3"]


@pytest.mark.usefixtures("small_units")
def test_the_index_names_the_groups_of_what_is_said_twice(articles: Path, tmp_path: Path) -> None:
    (articles / "PMC10.1/PMC10.1.xml").write_bytes(article(9))  # its captions are those of PMC9
    made = build(articles, tmp_path / "out", workers=1)
    rows = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    by_sha: dict[str, list[str]] = {}
    for row in rows:
        by_sha.setdefault(row["sha256"], []).append(row["key"])
    for row in rows:
        same = by_sha[row["sha256"]]
        assert row["image_group"] == (same[0] if len(same) > 1 else "")
    assert made.counts["image_groups"] == 5
    grouped = {row["key"]: row["caption_group"] for row in rows if row["caption_group"]}
    assert grouped["PMC10-1_f1"] == grouped["PMC9-1_f1"]


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_corpus_may_be_written_to_any_place_of_fsspec(articles: Path, tmp_path: Path, protocol: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    build(articles, tmp_path / "here", workers=1)
    there = f"memory://{uuid.uuid4()}/corpus" if protocol == "memory" else f"file://{tmp_path}/there"
    made = build(articles, there, workers=1)
    files, root = fsspec.core.url_to_fs(there)
    found = {path.rpartition("/")[2]: files.cat(path) for path in files.ls(root, detail=False) if files.isfile(path)}
    body = json.loads(found.pop(manifest.NAME))
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == content(tmp_path / "here")
    assert body["files"] == content(tmp_path / "here")
    again = build(articles, there, workers=1)
    assert (again.counts, again.files) == (made.counts, made.files)
    here = Corpus(tmp_path / "here")
    far = Corpus(there)
    assert list(far.pairs()) == list(here.pairs())
    key = here.keys()[-1]
    assert (far.image(key), far.has_image(key)) == (here.image(key), True)
    assert show(there, limit=100) == show(tmp_path / "here", limit=100)
    assert show(there, key) == show(tmp_path / "here", key)
    assert stats(there) == stats(tmp_path / "here")
    files.makedirs(f"{root}2")
    files.pipe(f"{root}2/mine", b"x")
    with pytest.raises(InputError, match="not empty"):
        build(articles, f"{there}2", workers=1)


def test_a_corpus_elsewhere_is_shown_and_what_needs_a_folder_says_so(
    articles: Path, tmp_path: Path, llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    there = f"file://{tmp_path}/there"
    build(articles, there, workers=1)
    assert llavamed("corpus", "show", there, "--limit", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["key"] == "PMC0-1_f1"
    assert llavamed("corpus", "stats", there, "--json") == 0
    assert {"": "read and kept", "what": "pairs", "count": 38} in json.loads(capsys.readouterr().out)
    with pytest.raises(InputError, match="must be a folder here; copy it first"):
        audit(Path(there), [])
    assert llavamed("corpus", "show", f"file://{tmp_path}/nowhere") == 2
    assert "no corpus, or an unfinished one" in capsys.readouterr().err


def test_a_place_that_fsspec_does_not_know_is_an_input_error(articles: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        build(articles, "nowhere://x/y")


def test_the_manifest_hashes_every_file(articles: Path, tmp_path: Path) -> None:
    build(articles, tmp_path / "out", workers=1)
    body = manifest.read(tmp_path / "out")
    assert body is not None
    assert body["files"] == content(tmp_path / "out")
    assert building.build(articles, tmp_path / "out").files == body["files"]
