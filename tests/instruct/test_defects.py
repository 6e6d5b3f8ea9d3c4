"""The eleven defects of LLaVA-Med's data scripts (v1.0.0), each once as it would show here.

1 is about lost calls: tests/instruct/test_ask.py has more of it. 9 and 10 are the corpus floor's.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from llavamed import cli
from llavamed.corpus.build import build
from llavamed.corpus.store import Corpus
from llavamed.demo.truth import Truth
from llavamed.instruct import generate as stage
from llavamed.instruct.clean import clean
from llavamed.instruct.formats import import_file, to_llava
from llavamed.instruct.generate import generate
from llavamed.instruct.select import select
from llavamed.instruct.show import show
from llavamed.recipe import CorpusSection, InstructSection
from llavamed.records import Message, Pair, assistant, read_conversations, read_jsonl, user
from tests.instruct.conftest import TURNS, Endpoint, Said

MakeCorpus = Callable[..., Path]
World = list[tuple[Truth, Pair]]

JATS = """<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>
<article-id pub-id-type="pmc">{pmc}</article-id><permissions><license xlink:href="{licence}"/></permissions>
</article-meta></front><body><fig id="f1"><label>Figure 1</label><caption><p>CT of the brain with a large tumour.</p>
</caption><graphic xlink:href="f1"/></fig></body></article>"""
BY, BY_NC = (f"https://creativecommons.org/licenses/{name}/4.0/" for name in ("by", "by-nc"))


def _png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.frombytes("L", (64, 64), random.Random(colour).randbytes(4096)).save(out, format="PNG")
    return out.getvalue()


def _articles(folder: Path) -> Path:
    """Two articles, one of them non-commercial, as a zip that also tries to write outside of itself."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "articles.zip", "w") as archive:
        archive.writestr("a/one.xml", JATS.format(pmc="1", licence=BY))
        archive.writestr("a/f1.png", _png(1))
        archive.writestr("b/two.xml", JATS.format(pmc="2", licence=BY_NC))
        archive.writestr("b/f1.png", _png(2))
        archive.writestr("../escaped.png", _png(3))
    return folder


def test_defect_1_a_failed_call_loses_itself_alone_and_the_bill_is_known(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    pairs = [replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:9])]
    endpoint.reply = lambda body: Said("oops", 413) if "Case 4" in str(body["messages"][-1]) else Said()
    section = InstructSection(teacher=endpoint.url, teacher_model="m")
    made = generate(make_corpus(pairs), tmp_path / "out", section, seed=0)
    assert made.counts["instruct"] == 8
    assert made.funnel["instruct: teacher_declined"] == 1
    assert (made.extra["asked"]["tokens_in"], made.extra["asked"]["tokens_out"]) == (800, 80)
    assert len(list(read_jsonl(tmp_path / "out" / "journal.jsonl"))) == 8


@pytest.mark.parametrize("flag", ["--without-mentions", "--set=instruct.mentions=False"])
def test_defect_2_no_means_no(
    flag: str, world: World, make_corpus: MakeCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus([pair for _, pair in world[:5]])
    seen = []

    def noted(corpus: Path, out: Path, section: InstructSection, seed: int) -> object:
        seen.append(section.mentions)
        raise SystemExit(0)

    monkeypatch.setattr(stage, "generate", noted)
    monkeypatch.setattr(
        "sys.argv", ["llavamed", "instruct", "generate", str(corpus), "--out", str(tmp_path / "o"), flag]
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert seen == [False]  # what is not given as an option is left to the recipe


@pytest.mark.parametrize("count", [1, 2, 7])
def test_defect_3_so_many_as_asked_for_and_not_one_less(count: int) -> None:
    keys, _ = select([(str(n), "mri") for n in range(7)], ("mri",), count, seed=0)
    assert len(keys) == count


def test_defect_4_what_one_step_writes_the_next_one_reads(
    world: World, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    generate(make_corpus([pair for _, pair in world[:5]]), tmp_path / "out", InstructSection(), seed=0)
    file = tmp_path / "out" / "instruct.jsonl"
    assert len(list(read_conversations(file))) == len(import_file(file, "llavamed")) == len(show(file, limit=9)) == 5


def test_defect_5_an_answer_keeps_its_capitals() -> None:
    kept, _ = clean((user("What?", images=1), assistant("Based on the caption, the CT scan shows a GIST.")))
    assert kept[1].text == "The CT scan shows a GIST."


@pytest.mark.parametrize(
    "answer", ["WHILE I CANNOT see the image, it is a cyst.", "However, Based On The Caption, no."]
)
def test_defect_6_a_rule_finds_its_phrase_in_any_capitals(answer: str) -> None:
    kept, dropped = clean((user("What?", images=1), assistant(answer)))
    assert "aption" not in "".join(message.text for message in kept)
    assert dropped


def test_defect_7_the_image_outlives_the_turn_that_carried_it() -> None:
    kept, _ = clean((user("What?", images=1), assistant("I cannot see it."), user("Where?"), assistant("On the left.")))
    assert [message.num_images for message in kept] == [1, 0]


def test_defect_8_where_the_image_stands_is_decided_and_not_drawn() -> None:
    last = Message("user", ({"type": "text", "text": "What?"}, {"type": "image"}))
    for first in (user("What?", images=1), last):
        runs = {str(to_llava_of(first)) for _ in range(20)}
        assert len(runs) == 1


def to_llava_of(first: Message) -> object:
    from llavamed.records import Conversation

    return to_llava(Conversation("a", ("a.png",), clean((first, assistant("A cyst.")))[0]))


def test_defects_9_10_and_11_nothing_escapes_names_keep_their_kind_and_the_licence_decides(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    build(_articles(tmp_path / "in"), corpus, CorpusSection(licence="commercial"))
    pairs = list(Corpus(corpus).pairs())
    assert not list(tmp_path.rglob("escaped*"))
    assert [(pair.licence, pair.file.rpartition(".")[2]) for pair in pairs] == [("CC-BY-4.0", "png")]
    assert Corpus(corpus).image(pairs[0].key) == _png(1)
    section = InstructSection(domains=("ct_scan", "mri", "other"))
    generate(corpus, tmp_path / "out", section, seed=0)
    for name in ("align.jsonl", "instruct.jsonl"):
        rows = list(read_conversations(tmp_path / "out" / name))
        assert {row.source["licence"] for row in rows} == {"CC-BY-4.0"}


def test_defect_9_a_figure_without_its_file_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.xml").write_text(JATS.format(pmc="1", licence=BY))
    (tmp_path / "in" / "two.xml").write_text(JATS.format(pmc="2", licence=BY).replace('href="f1"', 'href="f2"'))
    (tmp_path / "in" / "f2.png").write_bytes(_png(1))
    made = build(tmp_path / "in", tmp_path / "corpus", CorpusSection())
    assert made.counts["pairs"] == 1
    assert sum(made.funnel.values()) == 1


def test_the_answers_here_are_what_the_teacher_was_asked_for() -> None:
    assert json.loads(Said().text) == TURNS
