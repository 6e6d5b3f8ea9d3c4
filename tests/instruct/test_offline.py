"""The plan of a run, and batch files out and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from llavamed.corpus.store import Corpus
from llavamed.demo.truth import Truth
from llavamed.errors import InputError
from llavamed.instruct import batch, tables
from llavamed.instruct.endpoint import CONCESSIONS
from llavamed.instruct.generate import generate
from llavamed.instruct.journal import Journal
from llavamed.instruct.offline import export_batch, import_batch, plan
from llavamed.instruct.prices import Bill, not_taken, price_of
from llavamed.recipe import InstructSection
from llavamed.records import Pair, read_conversations, read_jsonl
from tests.instruct.conftest import TURNS, Endpoint, Said

SECTION = InstructSection(teacher="http://localhost:1/v1", teacher_model="gpt-4o-mini-2024-07-18")


@pytest.fixture
def corpus(world: list[tuple[Truth, Pair]], make_corpus: Callable[..., Path]) -> Path:
    return make_corpus([replace(p, caption=f"{p.caption} Case {n}.") for n, (_, p) in enumerate(world[:40])])


def _answer(request: dict[str, Any], text: str = json.dumps(TURNS)) -> dict[str, Any]:
    body = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 1000, "completion_tokens": 30}}
    return {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_dry_run_counts_calls_tokens_and_cost_and_touches_nothing(corpus: Path, tmp_path: Path) -> None:
    found = plan(corpus, tmp_path / "out", SECTION.model_copy(update={"count": 20}), seed=0)
    assert (found.pairs, found.calls, found.answered) == (20, 20, 0)
    assert 1000 < found.tokens_in / 20 < 2500
    assert 40 < found.tokens_out / 20 < 400
    assert found.cost == pytest.approx((found.tokens_in * 0.15 + found.tokens_out * 0.60) / 1e6)
    assert found.batch_cost == pytest.approx(found.cost / 2)
    assert not (tmp_path / "out").exists()
    unknown = plan(corpus, tmp_path / "out", SECTION.model_copy(update={"teacher_model": "local"}), seed=0)
    assert unknown.cost is None
    assert "instruct.price" in str(unknown.table())
    assert plan(corpus, tmp_path / "out", InstructSection(), seed=0).calls == 0


def test_a_dry_run_knows_what_is_answered_and_learns_how_long_answers_are(
    corpus: Path, tmp_path: Path, endpoint: Endpoint
) -> None:
    section = SECTION.model_copy(update={"teacher": endpoint.url})
    endpoint.reply = lambda body: Said(usage=(1000, 77))
    generate(corpus, tmp_path / "out", section.model_copy(update={"count": 25}), seed=0)
    found = plan(corpus, tmp_path / "out", section, seed=0)
    assert (found.answered, found.calls, found.tokens_out) == (25, 15, 15 * 77)


def test_dated_versions_have_their_models_price_and_other_models_do_not() -> None:
    assert price_of("gpt-4o-2024-08-06") == price_of("openai/gpt-4o") == price_of("GPT-4o")
    assert price_of("gpt-4o-mini") != price_of("gpt-4o")
    assert price_of("gpt-5-pro") is None
    assert price_of("llama") is None
    own = price_of("llama", (1.0, 2.0))
    assert own is not None
    assert own.of(1e6, 1e6) == 3.0


def test_each_answer_is_billed_at_its_models_price(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        for number, about in enumerate(
            ({"model": "gpt-4o-mini"}, {"model": "gpt-4o", "batch": "b"}, {"model": "x"}, {})
        ):
            journal.keep(f"{number:016x}", "k", "a", (1_000_000, 0), **about)
        bill = Bill(journal, price_of("gpt-4o-mini"))
        assert bill.spent == pytest.approx(0.15 + 2.50 / 2 + 0.15)  # a line without a model is this one's
        assert bill.summary()["unpriced"] == ["x"]
        assert Bill(journal, price_of("x", (1.0, 1.0))).spent == pytest.approx(0.15 + 2.50 / 2 + 2.0)
    with Journal(tmp_path / "j.jsonl", writable=False) as journal:
        assert Bill(journal, price_of("gpt-4o-mini")).spent == pytest.approx(bill.spent)


def test_a_batch_goes_out_and_comes_back_as_if_it_had_been_asked(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files, number = export_batch(corpus, out, SECTION, 0, tmp_path / "batch")
    requests = [row for path in files for row in read_jsonl(path)]
    assert number == len(requests) == len({row["custom_id"] for row in requests}) == 40
    assert {(row["method"], row["url"]) for row in requests} == {("POST", "/v1/chat/completions")}
    assert requests[0]["body"]["model"] == SECTION.teacher_model
    results = _write(tmp_path / "results.jsonl", [_answer(row) for row in requests])
    counts, missing = import_batch(corpus, out, SECTION, 0, [results])
    assert (dict(counts), missing) == ({"answers": 40}, 0)
    made = generate(corpus, out, SECTION, seed=0)  # nobody listens at that address
    assert made.counts["instruct"] == len(list(read_conversations(out / "instruct.jsonl"))) == 40
    assert made.extra["asked"]["tokens_out"] == 40 * 30
    assert made.extra["asked"]["cost"] == pytest.approx(40 * (1000 * 0.15 + 30 * 0.60) / 1e6 / 2)
    counts, missing = import_batch(corpus, out, SECTION, 0, [results])
    assert dict(counts) == {"known already": 40}


def test_what_a_batch_did_not_answer_is_told_and_goes_into_the_next(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files, _ = export_batch(corpus, out, SECTION, 0, tmp_path / "batch")
    requests = list(read_jsonl(files[0]))
    rows = [_answer(row) for row in requests[5:]]
    rows.append({"custom_id": requests[0]["custom_id"], "response": None, "error": {"code": "batch_expired"}})
    rows.append({"custom_id": requests[1]["custom_id"], "response": {"status_code": 500, "body": {"error": "x"}}})
    rows.append({"custom_id": requests[2]["custom_id"], "response": {"status_code": 200, "body": {}}, "error": None})
    rows.append(_answer(requests[3], "oops"))
    counts, missing = import_batch(corpus, out, SECTION, 0, [_write(tmp_path / "results.jsonl", rows)])
    assert missing == 5
    assert dict(counts) == {"answers": 36, "error: batch_expired": 1, "status 500: x": 1, "no chat completion": 1}
    files, number = export_batch(corpus, out, SECTION, 0, tmp_path / "second")
    again = list(read_jsonl(files[0]))
    assert number == 5
    assert {row["custom_id"] for row in again} & {row["custom_id"] for row in requests} == {
        requests[n]["custom_id"] for n in (0, 1, 2, 4)
    }  # the fifth is put another way


GPT_5 = SECTION.model_copy(update={"teacher_model": "gpt-5-mini-2025-08-07"})


def test_a_batch_is_worded_as_the_model_takes_it_and_its_answers_are_those_of_any_wording(
    corpus: Path, tmp_path: Path
) -> None:
    files, _ = export_batch(corpus, tmp_path / "out", GPT_5, 0, tmp_path / "by-table")
    named = GPT_5.model_copy(update={"teacher_model": "mine", "without": ("temperature", "schema")})
    others, _ = export_batch(corpus, tmp_path / "out", named, 0, tmp_path / "by-setting")
    for row in read_jsonl(files[0]):
        assert not {"max_tokens", "temperature", "stream", "stream_options"} & row["body"].keys()
        assert row["body"]["max_completion_tokens"] == int(row["custom_id"].partition("-")[2])
    for row in read_jsonl(others[0]):
        assert "temperature" not in row["body"]
        assert "max_tokens" in row["body"]
        assert row["body"]["response_format"] == {"type": "json_object"}
    plain, _ = export_batch(corpus, tmp_path / "out", named.model_copy(update={"without": ()}), 0, tmp_path / "plain")
    assert [row["custom_id"] for row in read_jsonl(plain[0])] == [row["custom_id"] for row in read_jsonl(others[0])]


def test_the_endpoint_itself_is_asked_in_the_same_words(corpus: Path, tmp_path: Path, endpoint: Endpoint) -> None:
    section = GPT_5.model_copy(update={"teacher": endpoint.url, "count": 5})
    endpoint.reply = lambda body: Said("use max_completion_tokens", 400) if "max_tokens" in body else Said()
    assert generate(corpus, tmp_path / "out", section, seed=0).extra["asked"]["calls"] == len(endpoint.requests) == 5
    # how it is asked is not what is made
    assert generate(corpus, tmp_path / "out", section.model_copy(update={"without": ("seed",)}), 0).counts
    assert len(endpoint.requests) == 5


def test_every_concession_of_the_table_and_the_recipe_is_one_that_the_endpoint_knows() -> None:
    known = {name for name, _ in CONCESSIONS}
    assert set(get_args(get_args(InstructSection.model_fields["without"].annotation)[0])) == known
    listed = tables.load("prices.yaml")["models"]
    assert {name for model in listed for name in not_taken(model)} <= known
    assert not_taken("openai/gpt-5-mini") == ("max_tokens", "temperature")
    assert not_taken("llama") == ()


def test_what_a_batch_was_refused_for_says_what_to_set(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, section = tmp_path / "out", SECTION.model_copy(update={"without": ("seed",)})
    files, _ = export_batch(corpus, out, section, 0, tmp_path / "batch")
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    rows = [
        {"custom_id": row["custom_id"], "error": None,
         "response": {"status_code": 400, "body": {"error": {"message": said, "param": "max_tokens"}}}}
        for row in read_jsonl(files[0])
    ]  # fmt: skip
    counts, missing = import_batch(corpus, out, section, 0, [_write(tmp_path / "errors.jsonl", rows)])
    assert (list(counts.values()), missing) == ([40], 40)
    told = capsys.readouterr().err
    assert "40 requests were refused for a parameter that the model does not take" in told
    assert '--set "instruct.without=[seed,max_tokens]"' in told
    said = "response_format: json_object is not supported"  # the schema was left out already
    rows = [row | {"response": {"status_code": 400, "body": {"error": {"message": said}}}} for row in rows]
    weaker = section.model_copy(update={"without": ("schema",)})
    import_batch(corpus, out, weaker, 0, [_write(tmp_path / "errors.jsonl", rows)])
    assert '--set "instruct.without=[schema,object]"' in capsys.readouterr().err
    mended = section.model_copy(update={"without": ("seed", "max_tokens")})
    files, number = export_batch(corpus, out, mended, 0, tmp_path / "second")
    assert number == 40
    assert not any("max_tokens" in row["body"] or "seed" in row["body"] for row in read_jsonl(files[0]))
    too_long = {"message": "maximum context length is 4096 tokens, reduce max_tokens"}  # of its own record
    rows = [row | {"response": {"status_code": 400, "body": {"error": too_long}}} for row in rows]
    import_batch(corpus, out, section, 0, [_write(tmp_path / "errors.jsonl", rows)])
    assert "instruct.without" not in capsys.readouterr().err


def test_an_answer_that_a_batch_cut_is_final_until_more_is_allowed(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "more.yaml").write_text("extends: 60k-im\nmax_tokens: 4000\n")
    more = SECTION.model_copy(update={"prompt": str(tmp_path / "more.yaml")})
    files, _ = export_batch(corpus, out, SECTION, 0, tmp_path / "batch")
    rows = [_answer(row) for row in read_jsonl(files[0])]
    choice = {"message": {"content": '{"turns": [{"ques'}, "finish_reason": "length"}
    rows[7]["response"]["body"]["choices"] = [choice]
    cut = _write(tmp_path / "cut.jsonl", rows)
    counts, missing = import_batch(corpus, out, SECTION, 0, [cut])
    assert (dict(counts), missing) == ({"answers": 39, "answers cut at max_tokens": 1}, 0)
    made = generate(corpus, out, SECTION, seed=0)  # nobody listens at that address
    assert made.funnel["instruct: teacher_cut_at_max_tokens"] == 1
    page = (out / "report.html").read_text()
    assert "Pairs without an answer" in page
    assert "longer than 1,200 tokens; give the prompt more" in page
    files, number = export_batch(corpus, out, more, 0, tmp_path / "second")
    assert number == 1
    (request,) = read_jsonl(files[0])
    assert request["body"]["max_tokens"] == 4000
    counts, missing = import_batch(corpus, out, more, 0, [cut])
    assert (dict(counts), missing) == ({"known already": 40}, 1)
    for expected in ({"answers": 1}, {"known already": 1}):
        counts, missing = import_batch(corpus, out, more, 0, [_write(tmp_path / "whole.jsonl", [_answer(request)])])
        assert (dict(counts), missing) == (expected, 0)
    assert generate(corpus, out, more, seed=0).counts["instruct"] == 40


@pytest.mark.parametrize(("held", "batch_allowed"), [(4000, 1200), (1200, 1200), (1200, 4000)])
def test_a_whole_answer_takes_the_place_of_one_that_was_cut_whatever_was_allowed(
    corpus: Path, tmp_path: Path, endpoint: Endpoint, held: int, batch_allowed: int
) -> None:
    def allowing(max_tokens: int) -> InstructSection:
        path = tmp_path / f"{max_tokens}.yaml"
        path.write_text(f"extends: 60k-im\nmax_tokens: {max_tokens}\n")
        return SECTION.model_copy(update={"teacher": endpoint.url, "prompt": str(path), "count": 3})

    endpoint.reply = lambda body: Said('{"tur', finish="length") if len(endpoint.requests) == 2 else Said()
    generate(corpus, tmp_path / "out", allowing(held), seed=0)
    files, _ = export_batch(corpus, tmp_path / "new", allowing(batch_allowed), 0, tmp_path / "batch")
    results = _write(tmp_path / "results.jsonl", [_answer(row) for row in read_jsonl(files[0])])
    for expected in ({"answers": 1, "known already": 2}, {"known already": 3}):
        counts, _ = import_batch(corpus, tmp_path / "out", allowing(held), 0, [results])
        assert dict(counts) == expected
    assert generate(corpus, tmp_path / "out", allowing(held), seed=0).counts["instruct"] == 3


def test_a_dry_run_does_not_count_what_is_of_no_use_as_answered_nor_what_was_cut_as_short(
    corpus: Path, tmp_path: Path, endpoint: Endpoint
) -> None:
    section = SECTION.model_copy(update={"teacher": endpoint.url})
    cut = Said('{"tur', finish="length", usage=(1000, 1200))
    endpoint.reply = lambda body: cut if 2 <= len(endpoint.requests) <= 4 else Said(usage=(1000, 80))
    generate(corpus, tmp_path / "out", section.model_copy(update={"count": 38}), seed=0)
    found = plan(corpus, tmp_path / "out", section, seed=0)
    assert (found.answered, found.given_up, found.calls) == (35, 3, 2)
    assert ["answered, but of no use", 3] in found.table()[1]
    (tmp_path / "more.yaml").write_text("extends: 60k-im\nmax_tokens: 4000\n")
    more = plan(corpus, tmp_path / "out", section.model_copy(update={"prompt": str(tmp_path / "more.yaml")}), seed=0)
    each = (35 * 80 + 3 * 1200) / 38
    assert (more.calls, more.given_up, more.tokens_out) == (5, 0, round(2 * each) + 3 * 4000)
    assert more.basis.endswith("; max_tokens of 3 that were cut before")


def test_the_line_of_a_cut_answer_can_be_deleted_and_it_is_asked_again(
    corpus: Path, tmp_path: Path, endpoint: Endpoint
) -> None:
    section = SECTION.model_copy(update={"teacher": endpoint.url, "count": 5})
    endpoint.reply = lambda body: Said('{"tur', finish="length") if len(endpoint.requests) == 2 else Said()
    assert generate(corpus, tmp_path / "out", section, seed=0).counts["instruct"] == 4
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_text("".join(line for line in journal.open() if '"length"' not in line))
    assert generate(corpus, tmp_path / "out", section, seed=0).counts["instruct"] == 5
    assert len(endpoint.requests) == 6


def test_an_image_that_cannot_be_shown_leaves_its_card_in_the_report(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Corpus.image

    def image(self: Corpus, key: str) -> bytes:
        if key == "pair-0020":
            raise InputError("shard-000000.tar: Input/output error")
        return b"no image" if key == "pair-0021" else read(self, key)

    monkeypatch.setattr(Corpus, "image", image)
    monkeypatch.setattr("llavamed.instruct.page._CARDS", 40)  # one for each
    made = generate(corpus, tmp_path / "out", InstructSection(), seed=0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img") > made.counts["instruct"] - 2
    assert page.count("cannot be shown: shard-000000.tar: Input/output error") == 1
    assert page.count("cannot be shown: its bytes are no image") == 1


def test_an_image_that_is_gone_leaves_its_pair_out_and_no_other_asked_or_exported(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint
) -> None:
    read = Corpus.image

    def image(self: Corpus, key: str) -> bytes:
        if key == "pair-0020":
            raise InputError("shard-000000.tar: Input/output error")
        return read(self, key)

    monkeypatch.setattr(Corpus, "image", image)  # these pairs know no hash of their image: it is read for the question
    section = SECTION.model_copy(update={"sighted": True, "teacher": endpoint.url})
    _, number = export_batch(corpus, tmp_path / "out", section, 0, tmp_path / "batch")
    assert number == 39
    made = generate(corpus, tmp_path / "out", section, seed=0)
    assert (made.counts["instruct"], made.funnel["instruct: teacher_failed"]) == (39, 1)
    assert made.extra["asked"]["unanswered"] == {"failed: shard-000000.tar: Input/output error": 1}
    assert "Input/output error" in (tmp_path / "out" / "report.html").read_text()


def test_an_export_that_ends_early_leaves_nothing_in_the_way(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        path.with_name(path.name + ".tmp").write_text(text[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(batch, "write_atomic", full)
        with pytest.raises(OSError, match="No space left"):
            export_batch(corpus, tmp_path / "out", SECTION, 0, tmp_path / "batch")
    read = Corpus.image

    def image(self: Corpus, key: str) -> bytes:
        if key == "pair-0020":
            raise KeyboardInterrupt
        return read(self, key)

    monkeypatch.setattr(batch, "MAX_REQUESTS", 5)
    section = SECTION.model_copy(update={"sighted": True})
    with monkeypatch.context() as broken:
        broken.setattr(Corpus, "image", image)
        with pytest.raises(KeyboardInterrupt):
            export_batch(corpus, tmp_path / "out", section, 0, tmp_path / "batch")
    assert export_batch(corpus, tmp_path / "out", section, 0, tmp_path / "batch")[1] == 40


def test_an_image_that_cannot_be_read_leaves_its_pair_out_and_no_other(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = Corpus.image
    monkeypatch.setattr(Corpus, "image", lambda self, key: b"GIF?" if key == "pair-0020" else read(self, key))
    monkeypatch.setattr(batch, "MAX_REQUESTS", 10)
    section = SECTION.model_copy(update={"sighted": True})
    files, number = export_batch(corpus, tmp_path / "out", section, 0, tmp_path / "batch")
    assert number == sum(len(list(read_jsonl(path))) for path in files) == 39
    told = capsys.readouterr().err
    assert "1 pairs are not in it" in told
    assert "pair-0020" in told


def test_files_stay_within_what_vendors_take(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_REQUESTS", 15)
    files, _ = export_batch(corpus, tmp_path / "out", SECTION, 0, tmp_path / "batch")
    assert [len(list(read_jsonl(path))) for path in files] == [15, 15, 10]
    monkeypatch.setattr(batch, "MAX_BYTES", 30_000)
    files, _ = export_batch(corpus, tmp_path / "out", SECTION, 0, tmp_path / "small")
    assert max(path.stat().st_size for path in files) <= 30_000
    assert sum(len(list(read_jsonl(path))) for path in files) == 40


@pytest.mark.parametrize(
    "line",
    [
        '{"custom_id": "0123456789abcdef", "response": {}}',
        '{"custom_id": "request-1", "response": {}}',
        "{}",
        '{"custom_id": 3, "error": 1}',
        "x",
    ],
)
def test_a_file_that_is_no_result_of_ours_is_an_input_error(corpus: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"r\.jsonl:1"):
        import_batch(corpus, tmp_path / "out", SECTION, 0, [tmp_path / "r.jsonl"])


def test_bad_places_for_batch_files(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        export_batch(corpus, tmp_path / "out", SECTION, 0, tmp_path / "full")
    with pytest.raises(InputError, match="template"):
        export_batch(corpus, tmp_path / "out", InstructSection(), 0, tmp_path / "batch")
