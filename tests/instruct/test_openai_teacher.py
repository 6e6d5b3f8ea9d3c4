"""The hosted teacher and the stage around it, against a small server of our own: no network beyond this machine."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.demo.truth import Truth
from llavamed.errors import InputError
from llavamed.instruct.clean import clean
from llavamed.instruct.generate import generate
from llavamed.instruct.journal import Journal
from llavamed.instruct.openai_teacher import OpenAITeacher, TeacherFailed
from llavamed.recipe import InstructSection
from llavamed.records import Mention, Pair, read_conversations, read_jsonl
from tests.instruct.conftest import SECRET, TURNS, Endpoint, Said

PAIR = Pair("k", "k.png", "CT of a GIST.", "Figure 1", (Mention("Figure 1 shows it."),))
MakeCorpus = Callable[..., Path]
World = list[tuple[Truth, Pair]]


def _png(key: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2000, 1000), (10, 20, 30)).save(out, format="PNG")
    return out.getvalue()


def _teacher(**settings: Any) -> OpenAITeacher:
    return OpenAITeacher(InstructSection(teacher="http://localhost:1/v1", teacher_model="m", **settings), _png)


def _section(endpoint: Endpoint, **settings: Any) -> InstructSection:
    return InstructSection(teacher=endpoint.url, teacher_model="m", **settings)


def _caption(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    caption: str = json.loads(text)["caption"]
    return caption


def _talk(text: str, tmp_path: Path, turns: int = 4) -> list[tuple[str, int]]:
    """(text, images) of the messages that an answer becomes."""
    teacher = _teacher()
    with Journal(tmp_path / "journal.jsonl") as teacher.journal:
        teacher.journal.keep(teacher.call(PAIR, True, turns, random.Random(0)).id, "k", text)
        return [(m.text, m.num_images) for m in teacher.converse(PAIR, True, turns, random.Random(0))]


def test_the_answer_becomes_turns_and_the_first_carries_the_image(tmp_path: Path) -> None:
    said = [("What is it?", 1), ("A CT scan.", 0), ("Of what?", 0), ("A tumour.", 0)]
    assert _talk(json.dumps(TURNS), tmp_path) == said


def test_no_more_turns_than_asked_for(tmp_path: Path) -> None:
    assert len(_talk(json.dumps(TURNS), tmp_path, turns=1)) == 2


def test_no_answer_in_the_journal_is_a_failure_with_its_kind(tmp_path: Path) -> None:
    teacher = _teacher()
    with Journal(tmp_path / "j") as teacher.journal, pytest.raises(TeacherFailed, match="failed"):
        teacher.converse(PAIR, True, 4, random.Random(0))


def test_what_is_asked_is_blind_has_a_schema_and_is_the_same_each_time() -> None:
    first, second = (_teacher().call(PAIR, True, 4, random.Random(0)) for _ in range(2))
    assert (first.body, first.id) == (second.body, second.id)
    assert first.body["response_format"]["json_schema"]["schema"]["required"] == ["turns"]
    assert all(isinstance(message["content"], str) for message in first.body["messages"])
    others = [
        _teacher().call(replace(PAIR, caption="MRI."), True, 4, random.Random(0)),
        _teacher().call(PAIR, False, 4, random.Random(0)),
        _teacher().call(PAIR, True, 4, random.Random(1)),
        _teacher(prompt="detailed").call(PAIR, True, 4, random.Random(0)),
        _teacher(sighted=True).call(PAIR, True, 4, random.Random(0)),
    ]
    assert len({first.id, *(call.id for call in others)}) == 6


def test_a_sighted_teacher_gets_the_image_and_the_hash_does_not_need_its_pixels() -> None:
    call = _teacher(sighted=True).call(PAIR, True, 4, random.Random(0))
    assert "base64" not in str(call.body)
    image, text = call.sent["messages"][-1]["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (1024, 512)
    assert json.loads(text["text"])["caption"] == PAIR.caption
    assert "You also see the image" in call.sent["messages"][0]["content"]
    known = _teacher(sighted=True).call(replace(PAIR, sha256="ab" * 32), True, 4, random.Random(0))
    assert "ab" * 32 in str(known.body)


def test_url_and_model_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    section = InstructSection(teacher="env")
    monkeypatch.delenv("LLAVAMED_TEACHER_URL", raising=False)
    with pytest.raises(InputError, match="LLAVAMED_TEACHER_URL"):
        OpenAITeacher(section, _png)
    monkeypatch.setenv("LLAVAMED_TEACHER_URL", "http://user:hidden@localhost:8000")
    monkeypatch.setenv("LLAVAMED_TEACHER_MODEL", "from-environment")
    teacher = OpenAITeacher(section, _png)
    assert (teacher.where, teacher.name) == ("http://localhost:8000/v1", "from-environment")


def test_a_teacher_that_is_none_says_what_to_give() -> None:
    with pytest.raises(InputError, match="template"):
        OpenAITeacher(InstructSection(teacher="templte", teacher_model="m"), _png)
    with pytest.raises(InputError, match="teacher_model"):
        OpenAITeacher(InstructSection(teacher="http://localhost:1/v1"), _png)
    with pytest.raises(InputError, match="--without-mentions"):
        _teacher(prompt="60k")
    assert _teacher(mentions=False).prompt == _teacher(prompt="60k", mentions=False).prompt


def test_defect_1_an_interrupted_stage_asks_only_what_is_missing(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = make_corpus([pair for _, pair in world[:6]]), tmp_path / "out"
    section = _section(endpoint)

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("llavamed.instruct.generate.clean", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(corpus, out, section, seed=0)
    assert len(endpoint.requests) == 6
    monkeypatch.setattr("llavamed.instruct.generate.clean", clean)
    assert generate(corpus, out, section, seed=0).counts["instruct"] == 6
    assert len(endpoint.requests) == 6
    # the journal is no result: the stage stays finished without it
    assert set(manifest.require(out, "instruct", "")["files"]) == {"align.jsonl", "instruct.jsonl", "report.html"}
    fewer = section.model_copy(update={"count": 3})  # another stage of the same answers
    assert generate(corpus, out, fewer, seed=0).counts["instruct"] == 3
    assert len(endpoint.requests) == 6
    assert generate(corpus, out, section, seed=1).counts["instruct"] == 6  # other sampling: other answers
    assert len(endpoint.requests) == 12


def test_a_failing_record_is_counted_and_its_neighbours_stay_in_the_order_of_the_corpus(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    pairs = [replace(pair, caption=f"{pair.caption} Case {n}.") for n, (_, pair) in enumerate(world[:12])]
    endpoint.reply = lambda body: Said("oops") if _caption(body) == pairs[2].caption else Said()
    made = generate(make_corpus(pairs), tmp_path / "out", _section(endpoint), seed=0)
    assert made.funnel["instruct: teacher_not_in_form"] == 1
    rows = list(read_conversations(tmp_path / "out" / "instruct.jsonl"))
    assert [row.source["pair"] for row in rows] == [pair.key for n, pair in enumerate(pairs) if n != 2]
    assert {row.source["teacher"] for row in rows} == {"m"}
    assert {row.source["prompt_hash"] for row in rows} == {_teacher().prompt_hash}
    asked = manifest.require(tmp_path / "out", "instruct", "")["extra"]["asked"]
    assert (asked["answered"], asked["calls"], asked["tokens_in"]) == (11, 14, 1400)


def test_the_key_stands_in_no_file_that_is_written(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    host = endpoint.url.replace("http://", "http://user:hidden@")
    section = InstructSection(teacher=host, teacher_model="m")
    endpoint.reply = lambda body: Said() if len(endpoint.requests) > 3 else Said(f"bad {SECRET}", 500)
    generate(make_corpus([pair for _, pair in world[:6]]), tmp_path / "out", section, seed=0)
    for path in (tmp_path / "out").iterdir():
        assert SECRET not in path.read_text(), path
        assert "hidden" not in path.read_text(), path
    assert SECRET not in "".join(capfd.readouterr())


def test_a_bound_on_the_cost_ends_the_stage_with_what_it_paid_for(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus([replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:30])])
    endpoint.reply = lambda body: Said(usage=(1000, 100))
    section = _section(endpoint, price=(10.0, 10.0), max_cost=0.2)  # 0.011 a call; 0.027 at most
    made = generate(corpus, tmp_path / "out", section, seed=0)
    left = made.funnel["instruct: teacher_over_max_cost"]
    assert 0 < left < 30
    assert made.counts["instruct"] == 30 - left
    assert f"{left} of 30 pairs were not asked about" in capsys.readouterr().err
    made = generate(corpus, tmp_path / "out", section.model_copy(update={"max_cost": 2.0}), seed=0)
    assert made.counts["instruct"] == len(endpoint.requests) == 30
    with pytest.raises(InputError, match=r"instruct\.price"):
        generate(corpus, tmp_path / "other", section.model_copy(update={"price": None}), seed=0)


def test_an_endpoint_that_only_fails_stops_the_stage_and_nothing_looks_finished(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    endpoint.reply = lambda body: Said("oops")
    corpus = make_corpus([replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:20])])
    with pytest.raises(InputError, match="first 10 pairs"):
        generate(corpus, tmp_path / "out", _section(endpoint), seed=0)
    assert len(endpoint.requests) == 30
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len(list(read_jsonl(tmp_path / "out" / "journal.jsonl"))) == 30


def test_a_pair_whose_image_is_gone_is_a_counted_drop(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    corpus = make_corpus([pair for _, pair in world[:4]])
    shard = next(corpus.glob("*.tar"))
    store = Corpus(corpus)
    last = store._places[world[3][1].key][1]
    shard.write_bytes(shard.read_bytes()[: last + 10])
    for section in (_section(endpoint), _section(endpoint, sighted=True)):
        made = generate(corpus, tmp_path / f"out-{section.sighted}", section, seed=0)
        assert (made.counts["instruct"], made.counts["align"]) == (3, 3)
        assert made.funnel["instruct: no_image"] == made.funnel["align: no_image"] == 1


def test_a_sighted_teacher_loses_only_the_record_whose_image_cannot_be_read(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    corpus = make_corpus([replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:4])])
    store, shard = Corpus(corpus), next(corpus.glob("*.tar"))
    _, offset, size = store._places[world[1][1].key]
    data = bytearray(shard.read_bytes())
    data[offset : offset + size] = b"x" * size
    shard.write_bytes(data)
    made = generate(corpus, tmp_path / "out", _section(endpoint, sighted=True), seed=0)
    assert made.counts["instruct"] == 3
    assert made.funnel["instruct: teacher_failed"] == 1


def test_a_second_process_that_is_refused_leaves_the_first_ones_result(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    corpus, out = make_corpus([pair for _, pair in world[:4]]), tmp_path / "out"
    generate(corpus, out, _section(endpoint), seed=0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with Journal(out / "journal.jsonl"), pytest.raises(InputError, match="another process is writing it"):
        generate(corpus, out, _section(endpoint), seed=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_lock_is_held_until_the_manifest_stands(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llavamed.instruct import generate as module

    corpus, out = make_corpus([pair for _, pair in world[:4]]), tmp_path / "out"
    write, refused = module.write_page, []

    def write_page(*args: Any) -> None:
        with pytest.raises(InputError, match="another process is writing it") as caught:
            Journal(out / "journal.jsonl")
        refused.append(caught.value)
        write(*args)

    monkeypatch.setattr(module, "write_page", write_page)
    generate(corpus, out, _section(endpoint), seed=0)
    assert refused


def test_records_that_were_declined_are_asked_again_and_a_dead_endpoint_spoils_nothing(
    endpoint: Endpoint, world: World, make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus([replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:12])])
    out, section = tmp_path / "out", _section(endpoint)
    endpoint.reply = lambda body: Said() if len(endpoint.requests) <= 8 else Said("balance too low", 400)
    assert generate(corpus, out, section, seed=0).funnel["instruct: teacher_declined"] == 4
    assert "4 without an answer: declined: " in capsys.readouterr().err
    asked = manifest.require(out, "instruct", "")["extra"]["asked"]
    assert [("balance too low" in reason, number) for reason, number in asked["unanswered"].items()] == [(True, 4)]

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for said in (Said("wrong key", 401), Said("balance too low", 413)):
        endpoint.reply = lambda body, said=said: said  # type: ignore[misc]
        assert generate(corpus, out, section, seed=0).counts["instruct"] == 8
        told = capsys.readouterr().err
        assert "4 pairs had no answer; those that may get one are asked again" in told
        assert "left as it was" in told
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    endpoint.reply, calls = lambda body: Said(), len(endpoint.requests)
    assert generate(corpus, out, section, seed=0).counts["instruct"] == 12
    assert len(endpoint.requests) == calls + 4
    generate(corpus, out, section, seed=0)
    assert "finished already, skipped" in capsys.readouterr().err
    assert len(endpoint.requests) == calls + 4
