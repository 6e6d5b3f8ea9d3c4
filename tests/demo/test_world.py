"""The phantom world: drawn from its truth, told in words that hold it, and the same bytes every time."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lxml import etree

from llavamed.demo import wording as w
from llavamed.demo.articles import write_articles
from llavamed.demo.benchmark import questions, write_benchmark
from llavamed.demo.draw import draw
from llavamed.demo.truth import DOMAIN_NAMES, SCENES, Truth, findings_of, organs_of, sample
from llavamed.instruct.facts import extract
from llavamed.records import DOMAINS

SEED_WITH_ALL = 3  # of 120 articles: one that has every kind of figure, defect and licence


def truths(count: int, seed: int = 0) -> list[Truth]:
    rng = np.random.default_rng(seed)
    return [sample(rng) for _ in range(count)]


def test_the_five_domains_of_the_paper_occur_equally_often() -> None:
    counts = Counter(t.domain for t in truths(2000))
    assert set(counts) == set(DOMAIN_NAMES) == set(DOMAINS) - {"other"}
    assert max(counts.values()) < 1.25 * min(counts.values())


@pytest.mark.parametrize(("domain", "organ"), SCENES)
def test_a_picture_depends_on_truth_and_seed_alone_and_shows_its_finding(domain: str, organ: str) -> None:
    normal = Truth(domain, organ)
    found = next(t for t in truths(3000) if (t.domain, t.organ) == (domain, organ) and not t.normal)
    first = draw(normal, np.random.default_rng(3), 96)
    assert np.array_equal(first, draw(normal, np.random.default_rng(3), 96))
    assert first.shape == (96, 96, 3)
    assert np.abs(first.astype(int) - draw(found, np.random.default_rng(3), 96)).max() > 40


def test_a_side_is_drawn_on_the_opposite_half_of_the_picture() -> None:
    """The radiological convention: the patient's left is on the viewer's right."""
    normal = draw(Truth("ct_scan", "brain"), np.random.default_rng(5)).astype(int)
    for side, half in (("left", slice(80, 160)), ("right", slice(0, 80))):
        lesion = draw(Truth("ct_scan", "brain", "haemorrhage", side, "large", 1), np.random.default_rng(5)).astype(int)
        change = (np.abs(lesion - normal).min(axis=2) > 60).sum(axis=0)  # beyond grain and exposure
        assert change[half].sum() > 0.75 * change.sum()


@pytest.mark.parametrize("seed", range(300))
def test_caption_and_mentions_together_hold_the_truth_and_never_contradict_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = sample(rng)
    telling = w.tell(truth, "Figure 1", rng)
    caption = extract(telling.caption)
    everything = extract(" ".join([telling.caption, *telling.sentences]))
    assert everything.modality == DOMAIN_NAMES[truth.domain]
    assert everything.organ == truth.organ
    assert everything.finding == truth.finding
    for name in ("side", "size"):
        value = getattr(truth, name)
        assert getattr(everything, name) == (value or None)
        assert getattr(caption, name) == (None if name in telling.withheld else value or None)


def wordings_of_training() -> set[str]:
    """All that is asked in pretraining, align and instruct, with names and values filled in."""
    from llavamed.demo import pretrain
    from llavamed.instruct import tables
    from llavamed.instruct.template import TemplateTeacher
    from llavamed.records import Pair

    some, rng, teacher, draws = truths(2500, seed=7), np.random.default_rng(8), TemplateTeacher(), random.Random(9)
    asked = {pair[0] for t in some for _ in range(5) if (pair := pretrain.question_and_answer(t, rng))}
    asked |= set(pretrain.WORDS["describe"])
    tellings = (w.tell(t, "Figure 1", rng) for t in some)
    pairs = [Pair(key="k", file="k.jpg", caption=" ".join([t.caption, *t.sentences])) for t in tellings]
    asked |= {m.text for p in pairs for m in teacher.converse(p, False, 3, draws) if m.role == "user"}
    table = tables.load("questions.yaml")
    return asked | {*table["describe_brief"], *table["describe_detailed"]}


def test_no_benchmark_question_is_asked_in_training() -> None:
    """Compared as they are asked, every name and value filled in, articles and courtesies set aside."""
    held_out = {w.shape(q.question) for q, _ in questions(3000, seed=0, image_size=8)}
    trained = {w.shape(question) for question in wordings_of_training()}
    assert len(held_out) > 300
    assert len(trained) > 3000
    assert not held_out & trained


def test_the_pretraining_leaves_out_what_reads_like_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from llavamed.demo import pretrain

    planted = "Now, please name a side."
    tables = {**pretrain.WORDS["questions"], "side_open": [planted, "Left or right?"]}
    monkeypatch.setitem(pretrain.WORDS, "questions", tables)
    rng = np.random.default_rng(0)
    assert planted in {pretrain.pretrain_question("side_open", "open", rng) for _ in range(100)}
    monkeypatch.setattr(pretrain, "HELD_OUT_SHAPES", {w.shape("Name the side!")})
    assert planted not in {pretrain.pretrain_question("side_open", "open", rng) for _ in range(300)}


def test_the_demo_says_nothing_that_the_language_model_was_pretrained_on() -> None:
    from llavamed.demo.pretrain import pretrain_caption

    rng = np.random.default_rng(0)
    some = truths(1500)
    known = {sentence for t in some for sentence in pretrain_caption(t, rng).split(". ")}
    told = {sentence for t in some for sentence in w.tell(t, "Figure 1", rng).caption.split(". ") if len(sentence) > 40}
    assert len(told) > 500
    assert not told & known


def test_closed_questions_cannot_be_answered_from_their_words() -> None:
    """The best reader without the picture answers each wording with its more frequent answer."""
    rows = [q for q, _ in questions(6000, seed=1, image_size=8) if q.closed]
    by_words: dict[str, Counter[str]] = {}
    for row in rows:
        by_words.setdefault(row.question, Counter())[row.answer] += 1
    frequent = {words: counts for words, counts in by_words.items() if sum(counts.values()) >= 20}
    guessed = sum(max(c.values()) for c in frequent.values()) / sum(sum(c.values()) for c in frequent.values())
    assert guessed < 0.62  # 0.5 plus what choosing the majority of a finite sample gains
    share = Counter(row.answer for row in rows)["yes"] / len(rows)
    assert 0.47 < share < 0.53


def test_articles_are_the_same_bytes_every_time_and_hold_every_defect(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_articles(tmp_path / name, 120, seed=SEED_WITH_ALL, image_size=32)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    rows = [json.loads(line) for line in (tmp_path / "a" / "truth.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in rows} == {"single", "compound", "plot", "diagram"}
    assert {"image_missing", "image_cut"} <= {r["defect"] for r in rows}
    metadata = [json.loads(p.read_text()) for p in (tmp_path / "a" / "metadata").iterdir()]
    assert any(m["is_retracted"] for m in metadata)
    assert {"CC BY", "CC0", "CC BY-NC"} <= {m["license_code"] for m in metadata}


def test_an_article_names_its_figures_as_the_bucket_does(tmp_path: Path) -> None:
    write_articles(tmp_path, 3, seed=4, image_size=32)
    folder = next(p for p in sorted(tmp_path.iterdir()) if p.name.startswith("PMC"))
    tree = etree.parse(str(folder / f"{folder.name}.xml"))
    href = "{http://www.w3.org/1999/xlink}href"
    stems = {p.stem for p in folder.iterdir() if p.suffix in {".jpg", ".png", ".tif"}}
    assert {g.get(href) for g in tree.iter("graphic")} >= stems
    body = json.loads((folder / f"{folder.name}.json").read_text())
    assert all(url.startswith(f"s3://pmc-oa-opendata/{folder.name}/") and "?md5=" in url for url in body["media_urls"])


def test_benchmark_folder_is_what_its_loader_reads(tmp_path: Path) -> None:
    from llavamed.evaluate import benchmarks

    write_benchmark(tmp_path, 26, seed=0, image_size=32)
    loaded = benchmarks.load("phantom", tmp_path)
    assert len(loaded.questions) == 26
    assert all((loaded.images / q.image).is_file() for q in loaded.questions)
    assert {q.groups["kind"] for q in loaded.questions} == {k.split("_")[0] for k in w.HELD_OUT}


def test_every_domain_has_enough_to_ask_about() -> None:
    assert all(findings_of(d) and organs_of(d) for d in DOMAIN_NAMES)
