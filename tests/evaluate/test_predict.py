"""The journal: nothing asked twice, nothing lost, nothing reused from another experiment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llavamed.engine import Unanswered
from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.predict import predict, read_header


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_question_is_answered_once_in_the_benchmarks_order(colour_benchmark: Benchmark, tmp_path, looker) -> None:
    path = predict(looker, colour_benchmark, tmp_path / "real", batch_size=7)
    found = rows(path)
    assert [row["id"] for row in found] == [question.id for question in colour_benchmark.questions]
    assert all(set(row) == {"id", "text", "failed", "control"} for row in found)
    by_id = {row["id"]: row["text"] for row in found}
    assert (by_id["0a"], by_id["0b"], by_id["0c"]) == ("Yes.", "No.", "It is red")
    assert sorted(looker.batches, reverse=True) == [7] * 7 + [5]


def test_batches_are_sorted_by_length_longest_first(colour_benchmark: Benchmark, tmp_path, looker) -> None:
    predict(looker, colour_benchmark, tmp_path / "real")
    lengths = [len(question) for question in looker.asked]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("kept", [0, 1, 20, 53])
def test_after_a_kill_the_rest_is_asked_and_the_file_is_the_same(
    colour_benchmark: Benchmark, tmp_path, looker, kept: int
) -> None:
    whole = predict(looker, colour_benchmark, tmp_path / "whole", batch_size=4).read_bytes()
    journal = predict(looker, colour_benchmark, tmp_path / "cut", batch_size=4)
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:kept]) + lines[kept][:17])  # the line being written is cut
    looker.asked.clear()
    predict(looker, colour_benchmark, tmp_path / "cut", batch_size=4)
    assert journal.read_bytes() == whole
    assert len(looker.asked) == 54 - kept
    looker.asked.clear()
    predict(looker, colour_benchmark, tmp_path / "cut")
    assert looker.asked == []


def test_an_interrupt_keeps_the_finished_batches(colour_benchmark: Benchmark, tmp_path, looker) -> None:
    answer, answered = looker.answer, []

    def interrupted(request: Any) -> str:
        if len(answered) == 20:
            raise KeyboardInterrupt
        answered.append(request)
        return answer(request)

    looker.answer = interrupted
    with pytest.raises(KeyboardInterrupt):
        predict(looker, colour_benchmark, tmp_path, batch_size=8)
    assert len(rows(tmp_path / "predictions.jsonl")) == 16
    looker.answer = answer
    looker.asked.clear()
    path = predict(looker, colour_benchmark, tmp_path, batch_size=8)
    assert len(looker.asked) == 54 - 16
    assert path.read_bytes() == predict(looker, colour_benchmark, tmp_path / "straight").read_bytes()


@pytest.mark.parametrize("change", ["engine", "weights", "prompt", "data", "images", "seed", "tokens", "control"])
def test_another_experiment_does_not_reuse_the_answers(
    colour_benchmark: Benchmark, tmp_path, looker, guesser, change: str
) -> None:
    tmp_path = tmp_path / "out"
    predict(looker, colour_benchmark, tmp_path, model_fingerprint="a")
    looker.asked.clear()
    engine = guesser if change == "engine" else looker
    benchmark = colour_benchmark
    if change == "prompt":
        benchmark = replace(benchmark, prompt="{question} Answer shortly.")
    if change == "images":
        Image.new("RGB", (31, 17), (1, 2, 3)).save(benchmark.images / "0.png")
    if change == "data":
        benchmark = replace(benchmark, sha256={"questions.jsonl": "0"})
    predict(
        engine,
        benchmark,
        tmp_path,
        control="noise" if change == "control" else "real",
        seed=int(change == "seed"),
        max_new_tokens=65 if change == "tokens" else 64,
        model_fingerprint="b" if change == "weights" else "a",
    )
    assert len(engine.asked) == 54
    header = read_header(tmp_path / "predictions.jsonl")
    assert header is not None
    assert header["model"] == engine.name


def test_a_request_that_raises_is_found_recorded_and_asked_again_next_time(
    colour_benchmark: Benchmark, tmp_path, looker
) -> None:
    answer = looker.answer

    def breaks_on_white(request: Any) -> str:
        if "white" in request.messages[-1].text:
            raise RuntimeError("out of memory")
        return answer(request)

    looker.answer = breaks_on_white
    found = rows(predict(looker, colour_benchmark, tmp_path))
    failed = {row["id"] for row in found if row["failed"]}
    assert failed == {question.id for question in colour_benchmark.questions if "white" in question.question}
    assert {row["failed"] for row in found} == {"", "RuntimeError: out of memory"}
    looker.answer = answer
    looker.asked.clear()
    found = rows(predict(looker, colour_benchmark, tmp_path))
    assert len(looker.asked) == len(failed)
    assert not any(row["failed"] for row in found)


def test_what_a_batch_did_answer_is_kept_when_one_of_its_requests_fails(
    colour_benchmark: Benchmark, tmp_path, looker
) -> None:
    def one_in_four_fails(requests: list[Any]) -> list[str]:
        looker.batches.append(len(requests))
        answers = [looker.answer(request) for request in requests]
        raise Unanswered("busy", [Unanswered("busy") if i % 4 == 0 else text for i, text in enumerate(answers)])

    looker.generate = one_in_four_fails
    found = rows(predict(looker, colour_benchmark, tmp_path, batch_size=8))
    assert sum(row["failed"] == "Unanswered: busy" for row in found) == 14
    assert all(row["failed"] or row["text"] for row in found)
    assert len(looker.asked) == 54  # nothing was asked twice


def test_a_defect_of_ours_is_not_an_answer_that_failed(colour_benchmark: Benchmark, tmp_path, looker) -> None:
    def defect(request: Any) -> str:
        raise AssertionError("shapes differ")

    looker.answer = defect
    with pytest.raises(AssertionError, match="shapes differ"):
        predict(looker, colour_benchmark, tmp_path)


def test_wrong_input_from_the_engine_ends_the_run(colour_benchmark: Benchmark, tmp_path, looker) -> None:
    def refuse(request: Any) -> str:
        raise InputError("http://localhost:1: refused the connection")

    looker.answer = refuse
    with pytest.raises(InputError, match="refused"):
        predict(looker, colour_benchmark, tmp_path)


def test_missing_images_are_counted_before_anything_is_asked(
    colour_benchmark: Benchmark, colours: Path, tmp_path, looker
) -> None:
    (colours / "images" / "3.png").unlink()
    with pytest.raises(InputError, match=r"1 of the 18 images of phantom are absent \(first: 3\.png\)"):
        predict(looker, colour_benchmark, tmp_path)
    assert looker.asked == []


def test_without_the_picture_the_answers_change(colour_benchmark: Benchmark, tmp_path, looker) -> None:
    real = {row["id"]: row["text"] for row in rows(predict(looker, colour_benchmark, tmp_path / "real"))}
    for control in ("blank", "shuffled", "noise"):
        found = rows(predict(looker, colour_benchmark, tmp_path / control, control=control))
        assert all(row["control"] == control for row in found)
        assert all(row["text"] != real[row["id"]] for row in found if row["id"].endswith("c"))
