"""A corpus without what it will be judged on: found when altered, taken out everywhere, whenever it is stopped."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from llavamed import manifest
from llavamed.corpus import audit as auditing
from llavamed.corpus import held_out, prune
from llavamed.corpus import unit as units
from llavamed.corpus.audit import Against, audit
from llavamed.corpus.build import build
from llavamed.corpus.shards import read
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.imaging.decode import decode
from llavamed.recipe import CorpusSection

ROOT = Path(__file__).parents[2]
LICENCE = "<permissions><license xlink:href='https://creativecommons.org/licenses/by/4.0/'/></permissions>"
QUESTION = "Is there a mass in the left lower lobe?"


def picture(seed: int) -> Image.Image:
    """Soft blobs with fine structure on them."""
    rng = np.random.default_rng(seed)
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
        for n in (6, 60)
    )
    return Image.blend(coarse, fine, 0.3)


def saved(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def altered(image: Image.Image) -> Image.Image:
    width, height = image.size
    cut = image.crop((round(width * 0.03), 0, width, round(height * 0.95)))
    return cut.resize((180, 170)).point([min(255, int(255 * (i / 255) ** 0.7)) for i in range(256)])


def article(figures: list[str]) -> bytes:
    body = "".join(
        f"<p>Seen in <xref ref-type='fig' rid='f{n}'>Fig. {n}</xref>.</p><fig id='f{n}'><label>Fig. {n}</label>"
        f"<caption><p>{caption}</p></caption><graphic xlink:href='g{n}'/></fig>"
        for n, caption in enumerate(figures)
    )
    meta = f"<front><article-meta>{LICENCE}</article-meta></front>"
    return f"<article xmlns:xlink='http://www.w3.org/1999/xlink'>{meta}<body>{body}</body></article>".encode()


def against(first: int = 100, questions: tuple[str, ...] = (QUESTION, "What is this?")) -> Against:
    """A benchmark of four pictures."""
    data = {f"{n}.png": saved(picture(n)) for n in range(first, first + 4)}
    return Against(f"bench{first}", tuple(data), data.__getitem__, questions, f"files of {first}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six articles of three figures, two an article a unit. Of bench100 they hold one picture as it is, one as TIFF and
    one altered, once more in another article; and a caption that asks its question."""
    root = tmp_path_factory.mktemp("audit")
    figures = {(a, f): saved(picture(10 * a + f), "JPEG") for a in range(6) for f in range(3)}
    figures[0, 1] = saved(picture(100))
    figures[1, 0] = figures[4, 0] = saved(altered(picture(102)), "JPEG", quality=50)
    for f in range(3):
        figures[2, f] = figures[3, f] = saved(picture(101 + f % 2 * 2), "TIFF", compression=("raw", "tiff_lzw")[f % 2])
    for a in range(6):
        folder = root / f"articles/{a}"
        folder.mkdir(parents=True)
        captions = [f"CT of the chest of patient {10 * a + f} with a mass" for f in range(3)]
        if a == 5:
            captions[2] = "What readers were asked: is there a  MASS in the left lower lobe. What is this?"
        (folder / f"a{a}.xml").write_bytes(article(captions))
        for f in range(3):
            data = figures[a, f]
            (folder / f"g{f}.{'tif' if data[:2] in (b'II', b'MM') else 'jpg'}").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "ARTICLES", 2)
        build(root / "articles", root / "corpus", workers=1)
    return root


@pytest.fixture
def corpus(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "corpus", tmp_path / "corpus"))


HIT = {"a0_f1", "a1_f0", "a2_f0", "a2_f1", "a2_f2", "a3_f0", "a3_f1", "a3_f2", "a4_f0", "a5_f2"}


def check(corpus: Path, keys: list[str]) -> None:
    """Index, shards, manifest and attribution say the same, and every image is where the index says."""
    body = manifest.read(corpus)
    assert body is not None
    found = Corpus(corpus)
    assert found.keys() == keys
    for pair in found.pairs():
        assert hashlib.sha256(found.image(pair.key)).hexdigest() == pair.sha256
    assert sorted(pair.key for shard in corpus.glob("shard-*") for pair, _ in read(shard)) == sorted(keys)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in corpus.glob("*.*") if p.is_file()}
    del files[manifest.NAME]
    assert files == body["files"]
    assert body["counts"]["pairs"] == len(keys)
    figures = sum(number for name, number in body["funnel"].items() if not name.startswith("article_"))
    assert body["counts"]["figure_images"] == len(keys) + figures
    assert sum(body["extra"]["licences"].values()) == len(keys)
    credited = (corpus / "ATTRIBUTION.md").read_text()
    for pair in found.pairs():
        assert f"({pair.article})" in credited


def test_images_and_questions_are_found_and_taken_out_everywhere(corpus: Path) -> None:
    before = Corpus(corpus)
    before_keys = before.keys()
    told = audit(corpus, [against()], keep=True, workers=1)
    assert {one["key"] for one in told["found"]} == HIT
    check(corpus, before_keys)
    body = audit(corpus, [against()], workers=1)
    assert body == told
    (row,) = body["benchmarks"]
    assert (row["images_found"], row["questions_found"], row["pairs"]) == (4, 1, 10)
    how = {one["key"]: (one["what"], one["how"]) for one in body["found"]}
    assert how["a0_f1"] == ("100.png", "bytes")
    assert how["a2_f1"] == ("103.png", "pixels")
    assert how["a1_f0"] == ("102.png", "looks")
    assert how["a5_f2"] == (QUESTION, "words")
    check(corpus, [key for key in before_keys if key not in HIT])
    after = manifest.read(corpus)
    assert after is not None
    assert (after["funnel"]["benchmark_image"], after["funnel"]["benchmark_question"]) == (9, 1)
    assert "(a2)" not in (corpus / "ATTRIBUTION.md").read_text()  # none of its pictures is left
    assert Corpus(corpus).fingerprint != before.fingerprint  # what was made from it is made again
    assert "bench100: a0_f1" in (corpus / "audit.html").read_text()
    assert "audit.html" in (corpus / "report.html").read_text()


def test_images_larger_than_usual_are_audited_where_the_corpus_allows_them(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    build(made / "articles", corpus, CorpusSection(max_pixels=100_000), workers=1)
    real = held_out.glance
    asked = []

    def glance(data: bytes, *more: Any, **how: Any) -> Any:
        asked.append(how.get("max_pixels"))
        return real(data, *more, **how)

    monkeypatch.setattr(held_out, "glance", glance)
    audit(corpus, [against()], keep=True, workers=1)
    assert set(asked) == {None, 100_000}  # the benchmark's own, and the corpus's


def test_a_corpus_in_the_other_format_is_audited_too(made: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    build(made / "articles", corpus, CorpusSection(format="hf"), workers=1)
    check(corpus, sorted(f"a{a}_f{f}" for a in range(6) for f in range(3)))
    audit(corpus, [against()], workers=1)
    check(corpus, sorted({f"a{a}_f{f}" for a in range(6) for f in range(3)} - HIT))


def test_an_audit_is_done_once_and_another_goes_on_from_it(
    corpus: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit(corpus, [against()], workers=1)
    files = {p.name: p.stat().st_mtime_ns for p in corpus.iterdir()}
    assert {one["key"] for one in audit(corpus, [against()], workers=1)["found"]} == HIT
    assert "audited against these already" in capsys.readouterr().err
    build(made / "articles", corpus, workers=1)
    assert "finished already" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in corpus.iterdir()} == files
    other = against(0)  # pictures 0, 2 of article 0; 1 was another
    body = audit(corpus, [against(), other], workers=1)
    assert [row["benchmark"] for row in body["benchmarks"]] == ["bench100", "bench0"]
    gone = HIT | {"a0_f0", "a0_f2"}
    assert {one["key"] for one in body["found"]} == gone
    check(corpus, sorted({f"a{a}_f{f}" for a in range(6) for f in range(3)} - gone))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_build_that_undoes_an_audit_says_so_and_takes_its_page_away(
    corpus: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stopped: bool
) -> None:
    audit(corpus, [against()], workers=1)
    assert {"audit.json", "audit.html"} <= {path.name for path in corpus.iterdir()}
    anew = partial(build, made / "articles", corpus, CorpusSection(min_side=16), workers=1)
    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr(units, "make", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                anew()
    anew()
    assert "was audited against bench100, which the new build undoes" in capsys.readouterr().err
    assert not {"audit.json", "audit.html"} & {path.name for path in corpus.iterdir()}
    check(corpus, sorted(f"a{a}_f{f}" for a in range(6) for f in range(3)))
    anew()
    assert "finished already" in capsys.readouterr().err
    assert {one["key"] for one in audit(corpus, [against()], workers=1)["found"]} == HIT


@pytest.mark.parametrize("step", ["look_through", "begin", "_without", "_index", "_recount", "write"])
def test_an_audit_that_is_stopped_anywhere_ends_the_same(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    where = auditing if step == "look_through" else manifest.Manifest if step == "write" else prune
    real: Callable[..., Any] = getattr(where, step)
    calls = []

    def stopped(*arguments: Any, **more: Any) -> Any:
        calls.append(step)
        if len(calls) > 1 or step in ("begin", "_index", "_recount", "write"):
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(where, step, stopped)
    with pytest.raises(KeyboardInterrupt):
        audit(corpus, [against()], workers=1)
    monkeypatch.setattr(where, step, real)
    if step not in ("look_through", "begin"):
        with pytest.raises(InputError, match="unfinished"):
            Corpus(corpus)
    audit(corpus, [against()], workers=1)
    check(corpus, sorted({f"a{a}_f{f}" for a in range(6) for f in range(3)} - HIT))
    groups = pq.read_table(corpus / "index.parquet", columns=["image_group"])["image_group"].to_pylist()
    assert groups == [""] * 8


def test_benchmarks_too_large_for_many_processes_are_told(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit(corpus, [against(0)], keep=True, workers=1)
    assert "GiB" not in capsys.readouterr().err
    monkeypatch.setattr(auditing, "_MUCH", 100_000)
    audit(corpus, [against()], keep=True, workers=1)
    assert "take 0.0 GiB in each of 2 processes" in capsys.readouterr().err


def test_what_was_looked_up_in_another_way_is_looked_up_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(corpus, [against()], workers=1)
    monkeypatch.setattr(auditing, "VERSION", 3)
    monkeypatch.setattr(auditing, "_look", lambda *_: [])
    assert audit(corpus, [against()], workers=1)["benchmarks"][0]["pairs"] == 0


def test_groups_are_named_after_what_is_left(corpus: Path) -> None:
    """The pictures of articles 2 and 3 are the same; when only the first goes, the others have a new first."""
    rows = {row["key"]: row["image_group"] for row in pq.read_table(corpus / "index.parquet").to_pylist()}
    assert {key for key, group in rows.items() if group == "a2_f0"} == {"a2_f0", "a2_f2", "a3_f0", "a3_f2"}
    body = manifest.read(corpus)
    assert body is not None
    prune.begin(corpus, ["a2_f0", "a1_f0"], [], {"benchmark_image": 2}, ())
    after = {row["key"]: row["image_group"] for row in pq.read_table(corpus / "index.parquet").to_pylist()}
    assert {key for key, group in after.items() if group == "a2_f2"} == {"a2_f2", "a3_f0", "a3_f2"}
    assert after["a4_f0"] == ""
    changed = manifest.read(corpus)
    assert changed is not None
    assert changed["counts"]["image_groups"] == body["counts"]["image_groups"] - 1


def test_the_command_line(
    corpus: Path, tmp_path: Path, llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench"
    (bench / "images").mkdir(parents=True)
    (bench / "images/x.jpg").write_bytes(saved(picture(41).resize((180, 200)), "JPEG"))
    row = {"id": "1", "image": "x.jpg", "question": "What?", "answer": "yes", "closed": True, "options": ["yes", "no"]}
    (bench / "questions.jsonl").write_text(json.dumps(row) + "\n")

    command = partial(llavamed, "corpus", "audit", corpus)
    assert command("--against", "phantom,slake", "--data", f"phantom={bench}") == 2
    assert "--data slake=FOLDER" in capsys.readouterr().err
    assert command("--against", "phantom", "--data", bench) == 2
    assert "give NAME=FOLDER" in capsys.readouterr().err
    assert command("--against", "phantom", "--data", f"phantom={bench}", "--workers", 1, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["images found"], told["pairs with any"]) == (1, 1)
    assert len(Corpus(corpus)) == 17


@pytest.mark.slow
def test_altered_vqa_rad_images_are_found_among_other_radiographs(shared_data: Path, tmp_path: Path) -> None:
    """Every second image is the benchmark's; planted after a crop of 5 %, other grey levels, another size and JPEG. The
    rest is the other half, upright, mirrored and upside down, and figures of articles."""
    spec = importlib.util.spec_from_file_location("lookalike", ROOT / "benchmarks/lookalike.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    files = sorted((shared_data / "vqa_rad/images").glob("*.jpg"))
    names = tuple(file.name for file in files[::2])
    figures: dict[str, Image.Image] = {}
    for file in files:
        image = decode(file.read_bytes())
        if file.name in names:
            for name, (change, _) in bench.CHANGES.items():
                key = f"{file.stem} {name}"
                figures[f"planted-{file.stem}-{name}".replace(" ", "_")] = change(image, random.Random(key))
        else:
            turned = (image, ImageOps.mirror(image), ImageOps.flip(image))
            figures |= {f"rest-{file.stem}-{n}": one for n, one in enumerate(turned)}
    figures |= {f"rest-tile-{n}": one for n, one in enumerate(bench.tiles(shared_data))}
    for number, (name, image) in enumerate(figures.items()):
        folder = tmp_path / f"in/{number:04d}"
        folder.mkdir(parents=True)
        (folder / f"{number:04d}.xml").write_bytes(article([f"The figure is called {name}"]))
        image.convert("RGB").save(folder / "g0.jpg", quality=random.Random(name).randint(40, 90))
    build(tmp_path / "in", tmp_path / "corpus")
    called = {pair.key: pair.caption.split()[-1] for pair in Corpus(tmp_path / "corpus").pairs()}
    read_image = {file.name: file.read_bytes() for file in files}.__getitem__
    body = audit(tmp_path / "corpus", [Against("half of vqa-rad", names, read_image, (), "half")])
    found = {one["key"] for one in body["found"]}
    planted = {key for key, name in called.items() if name.startswith("planted")}
    rest = called.keys() - planted
    print(f"recall {len(found & planted)} of {len(planted)}, wrong {len(found & rest)} of {len(rest)}")
    assert len(planted) > 700
    assert len(found & planted) >= 0.95 * len(planted)
    assert len(found & rest) <= 0.001 * len(rest)
    assert len(Corpus(tmp_path / "corpus")) == len(called) - len(found)


def test_with_a_panel_that_a_benchmark_has_goes_its_whole_figure(tmp_path: Path) -> None:
    """A picture cut out of a compound figure is in that figure as well, where only the panel gives it away."""
    articles = tmp_path / "articles"
    articles.mkdir()
    captions = ["(A) Axial CT of the liver. (B) Axial MRI of the liver."] * 2
    (articles / "one.xml").write_bytes(article(captions))
    for name, (left, right) in {"g0": (100, 900), "g1": (901, 902)}.items():
        figure = Image.new("L", (530, 256), 255)
        figure.paste(picture(left).point([40 + v * 3 // 4 for v in range(256)]), (0, 0))
        figure.paste(picture(right).point([v * 3 // 4 for v in range(256)]), (274, 0))
        figure.save(articles / f"{name}.png")
    corpus = tmp_path / "corpus"
    before = build(articles, corpus, CorpusSection(panels=True), workers=1)
    assert before.counts["panels"] == 4
    audit(corpus, [against()], workers=1)
    assert [pair.key for pair in Corpus(corpus).pairs()] == ["one_f1", "one_f1_A", "one_f1_B"]
    body = manifest.read(corpus)
    assert body is not None
    assert {name: n for name, n in body["funnel"].items() if n} == {"benchmark_image": 1, "benchmark_figure": 2}
    assert body["extra"]["compound"] == {"split": 2}


def test_an_audited_corpus_still_shows_what_was_left_out(tmp_path: Path) -> None:
    articles = tmp_path / "articles"
    articles.mkdir()
    (articles / "one.xml").write_bytes(article(["CT of the liver, kept.", "CT of nothing at all, blank."]))
    (articles / "g0.png").write_bytes(saved(picture(0)))
    (articles / "g1.png").write_bytes(saved(Image.new("L", (64, 64), 255)))
    corpus = tmp_path / "corpus"
    build(articles, corpus, workers=1)
    before = (corpus / "report.html").read_text()
    audit(corpus, [against()], workers=1)
    page = (corpus / "report.html").read_text()
    assert "Audited against" in page
    assert "near_constant: one_f1" in before
    assert "near_constant: one_f1" in page
