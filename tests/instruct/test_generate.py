"""The stage as a whole: files, funnel, provenance, and the same bytes again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llavamed import cli, manifest
from llavamed.demo.truth import Truth
from llavamed.errors import InputError
from llavamed.instruct import formats
from llavamed.instruct.generate import generate
from llavamed.instruct.page import Tally
from llavamed.instruct.show import images, show
from llavamed.recipe import InstructSection
from llavamed.records import Conversation, Pair, assistant, read_conversations, user

MakeCorpus = Callable[..., Path]
SECTION = InstructSection()


@pytest.fixture
def pairs(world: list[tuple[Truth, Pair]]) -> list[Pair]:
    """60 phantom pairs; the first five are what selection and the teacher must cope with."""
    first = [pair for _, pair in world[:60]]
    changed = [
        {"is_plot": True},
        {"is_compound": True},
        {"domain": "other"},
        {"caption": "Figure 1.", "mentions": ()},
        {"caption": "The wings of the moth, folded.", "mentions": ()},
    ]
    return [replace(pair, **fields) for pair, fields in zip(first, changed, strict=False)] + first[5:]


def _rows(folder: Path, name: str) -> list[Conversation]:
    return list(read_conversations(folder / name))


def test_writes_both_files_counts_what_it_dropped_and_names_the_corpus(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    corpus, out = make_corpus(pairs), tmp_path / "out"
    made = generate(corpus, out, SECTION, seed=3)
    align, instruct = _rows(out, "align.jsonl"), _rows(out, "instruct.jsonl")
    assert made.counts == {
        "pairs": 60,
        "align": 59,
        "instruct": 56,
        "turns": sum(len(c.messages) // 2 for c in instruct),
    }
    assert (len(align), len(instruct)) == (59, 56)
    assert made.funnel == {
        "align: plot": 1,
        "instruct: plot": 1,
        "instruct: compound": 1,
        "instruct: other_domain": 1,
        "instruct: nothing_to_say": 1,
    }
    body = manifest.require(out, "instruct", "")
    assert (out / body["extra"]["images"]).resolve() == corpus.resolve()
    assert set(body["files"]) == {"align.jsonl", "instruct.jsonl", "report.html"}


def test_every_record_says_where_it_comes_from_and_is_sound(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    generate(make_corpus(pairs), tmp_path / "out", SECTION, seed=3)
    captions = {pair.key: pair.caption for pair in pairs}
    for name in ("align.jsonl", "instruct.jsonl"):
        rows = _rows(tmp_path / "out", name)
        assert len({row.id for row in rows}) == len(rows)
        for row in rows:
            assert formats.problems(row) == []
            assert set(row.source) == {"pair", "article", "domain", "licence", "teacher", "prompt_hash"}
            assert row.images == (row.source["pair"],)
    assert all(row.messages[1].text == captions[row.images[0]] for row in _rows(tmp_path / "out", "align.jsonl"))


def test_the_same_input_gives_the_same_bytes_and_a_finished_folder_is_not_made_again(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(pairs)
    first = generate(corpus, tmp_path / "a", SECTION, seed=3)
    assert generate(corpus, tmp_path / "b", SECTION, seed=3).files == first.files
    before = (tmp_path / "a" / "report.html").stat().st_mtime_ns
    assert "skipped" not in capsys.readouterr().err
    again = generate(corpus, tmp_path / "a", SECTION, seed=3)
    assert capsys.readouterr().err == f"{tmp_path / 'a'}: finished already, skipped\n"
    assert (tmp_path / "a" / "report.html").stat().st_mtime_ns == before
    assert (again.counts, again.funnel, again.fingerprint) == (first.counts, first.funnel, first.fingerprint)
    other = generate(corpus, tmp_path / "a", SECTION, seed=4)
    assert other.files["instruct.jsonl"] != first.files["instruct.jsonl"]


def test_a_smaller_count_writes_the_same_conversations_about_fewer_pairs_balanced(
    world: list[tuple[Truth, Pair]], make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    corpus = make_corpus([pair for _, pair in world[:60]])
    generate(corpus, tmp_path / "all", SECTION, seed=3)
    made = generate(corpus, tmp_path / "few", SECTION.model_copy(update={"count": 20}), seed=3)
    assert (made.counts["instruct"], made.counts["align"]) == (20, 60)
    assert made.funnel == {"instruct: over the count": 40}
    everything, few = ({c.id: c for c in _rows(tmp_path / n, "instruct.jsonl")} for n in ("all", "few"))
    assert all(everything[key] == conversation for key, conversation in few.items())
    assert set(Counter(c.source["domain"] for c in few.values()).values()) == {4}


def test_the_report_shows_conversations_beside_image_and_source(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    generate(make_corpus(pairs), tmp_path / "out", SECTION, seed=3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<article class="card">') == 30
    assert page.count("data:image/jpeg") == 30
    assert "nothing_to_say" in page
    assert "<b>mention</b>" in page
    for title in ("What is asked and what is told", "What was dropped, and why", "Domains", "Lengths"):
        assert title in page
    assert page.count("data:image/png") == 7  # two sunbursts, the domains, four histograms


def test_the_page_is_written_in_constant_memory(world: list[tuple[Truth, Pair]]) -> None:
    tally = Tally()
    talk = Conversation("x", ("x",), (user("What is shown?", 1), assistant("Yes, a CT.")))
    for _ in range(3):
        for _, pair in world:
            tally.add(pair, talk, seed=0)
    assert tally.num_turns == 3 * len(world)
    assert len(tally.cards) == 30
    assert len(tally.turns_each) == len(tally.asked) == 1


def test_an_interrupted_stage_leaves_no_manifest(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(pairs)
    generate(corpus, tmp_path / "out", SECTION, seed=3)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llavamed.instruct.generate.align", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(corpus, tmp_path / "out", SECTION, seed=4)
    assert manifest.read(tmp_path / "out") is None


def test_input_errors_say_what_to_do(pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="corpus build"):
        generate(tmp_path / "absent", tmp_path / "out", SECTION, seed=0)
    corpus = make_corpus(pairs)
    with pytest.raises(InputError, match="give another folder"):
        generate(corpus, corpus, SECTION, seed=0)
    with pytest.raises(InputError, match="no pair to write a conversation about; dropped: instruct: plot 1"):
        generate(make_corpus(pairs[:1], "plots"), tmp_path / "out", SECTION, seed=0)
    with pytest.raises(InputError, match="'ct'; the domains are"):
        generate(corpus, tmp_path / "out", SECTION.model_copy(update={"domains": ("ct",)}), seed=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "instruct.jsonl").write_text("mine")
    with pytest.raises(InputError, match="not made by llavamed"):
        generate(corpus, tmp_path / "mine", SECTION, seed=0)
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def test_pairs_of_other_domains_still_give_alignment_examples_and_a_warning(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus([replace(pair, domain="other") for pair in pairs[5:8]])
    made = generate(corpus, tmp_path / "out", SECTION, seed=0)
    assert (made.counts["align"], made.counts["instruct"]) == (3, 0)
    assert (tmp_path / "out" / "instruct.jsonl").read_bytes() == b""
    warning = "no pair to write a conversation about; dropped: instruct: other_domain 3"
    assert warning in capsys.readouterr().err
    assert warning in (tmp_path / "out" / "report.html").read_text()


def test_a_corpus_without_anything_to_write_leaves_the_earlier_result(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    generate(make_corpus(pairs), tmp_path / "out", SECTION, seed=3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="no pair"):
        generate(make_corpus(pairs[:1], "plots"), tmp_path / "out", SECTION, seed=0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_show_gives_the_turns_beside_caption_and_mentions(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    generate(make_corpus(pairs), tmp_path / "out", SECTION, seed=3)
    rows = show(tmp_path / "out", limit=4)
    written = _rows(tmp_path / "out", "instruct.jsonl")[:4]
    by_key = {pair.key: pair for pair in pairs}
    for row, conversation in zip(rows, written, strict=True):
        pair = by_key[conversation.images[0]]
        assert (row["id"], row["images"], row["caption"]) == (conversation.id, pair.key, pair.caption)
        assert row["mentions"] == " ".join(mention.sentence for mention in pair.mentions)
        assert row["user 1"] == f"[image] {conversation.messages[0].text}"
        assert row["assistant 1"] == conversation.messages[1].text
    json.dumps(rows)
    (tmp_path / "alone.jsonl").write_text((tmp_path / "out" / "instruct.jsonl").read_text())
    assert "caption" not in show(tmp_path / "alone.jsonl", limit=1)[0]
    with pytest.raises(InputError, match="instruct generate"):
        show(tmp_path / "absent")
    (one,) = show(tmp_path / "out", key=written[2].images[0])
    assert one["id"] == written[2].id
    shard, _, place = one["file"].partition(" bytes ")
    start, end = map(int, place.split("-"))
    image = images(tmp_path / "out")
    assert image is not None
    assert Path(shard).read_bytes()[start:end] == image(written[2].images[0])
    (saved,) = show(tmp_path / "out", key=written[2].images[0], save=tmp_path / "pictures")
    assert Path(saved["file"]).parent == tmp_path / "pictures"
    assert Path(saved["file"]).read_bytes() == image(written[2].images[0])
    with pytest.raises(InputError, match="no conversation"):
        show(tmp_path / "out", key="absent")


def test_show_prints_the_picture_where_the_terminal_can(
    pairs: list[Pair], make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    generate(make_corpus(pairs), tmp_path / "out", SECTION, seed=3)
    capsys.readouterr()
    for how, begins in (("kitty", "\x1b_G"), ("sixel", "\x1bPq"), ("none", " " * 8 + "id"), ("auto", " " * 8 + "id")):
        monkeypatch.setattr("sys.argv", ["llavamed", "instruct", "show", str(tmp_path / "out"), "--images", how])
        with pytest.raises(SystemExit):
            cli.main()
        shown = capsys.readouterr().out
        assert shown.startswith(begins), how
        assert "shard-000000.tar bytes" in shown
