"""The journal: nothing asked twice, nothing lost, nothing reused from another experiment."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llavamed.engine import Request, Unanswered, connect
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, controls
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.predict import predict, read_header
from llavamed.imaging.decode import decode
from llavamed.records import user


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


class OneByOne:
    """An engine with `each` and its own idea of lengths; a looker answers. Ends with an interrupt, which leaves the
    journal in the order of the answers."""

    name = "one by one"

    def __init__(self, looker: Any, count_tokens: Callable[[str], int]) -> None:
        self.looker, self.images = looker, set[int]()
        self.count_tokens = lambda request: count_tokens(request.messages[-1].text)

    def each(self, requests: Iterable[Request], batch_size: int) -> Iterator[tuple[int, str]]:
        for place, request in enumerate(requests):
            self.images.add(id(request.images[0]))
            yield place, self.looker.answer(request)
        raise KeyboardInterrupt


@pytest.mark.parametrize("count_tokens", [len, lambda text: 100 - len(text)])
def test_images_come_by_their_longest_prompt_in_tokens_and_their_questions_together(
    colour_benchmark: Benchmark, tmp_path, looker, count_tokens: Callable[[str], int]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(OneByOne(looker, count_tokens), colour_benchmark, tmp_path)
    questions = {question.id: question for question in colour_benchmark.questions}
    asked = [questions[row["id"]] for row in rows(tmp_path / "predictions.jsonl")]
    groups = [list(group) for _, group in groupby(asked, lambda question: question.image)]
    assert len(groups) == len(colour_benchmark.image_names)
    lengths = [[count_tokens(question.question) for question in group] for group in groups]
    assert all(group == sorted(group, reverse=True) for group in lengths)
    assert [group[0] for group in lengths] == sorted((group[0] for group in lengths), reverse=True)


def test_an_image_is_decoded_once_for_its_questions(
    colour_benchmark: Benchmark, tmp_path, looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(controls, "decode", lambda data, name: (decoded.append(name), decode(data, name))[1])
    predict(looker, colour_benchmark, tmp_path)
    assert sorted(decoded) == sorted(colour_benchmark.image_names)


def test_two_images_of_one_name_in_different_folders_are_not_confused(tmp_path, looker) -> None:
    data = tmp_path / "data"
    red, blue = (200, 20, 20), (20, 20, 200)
    for folder, colour in (("a", red), ("b", blue), ("c", red)):
        (data / "images" / folder).mkdir(parents=True)
        Image.new("RGB", (20, 16), colour).save(data / "images" / folder / "x.png")
    rows_ = [
        {"id": f"{folder}{n}", "image": f"{folder}/x.png", "question": "Which?", "answer": "", "closed": False}
        for n in range(2)
        for folder in "abc"
    ]
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    found = rows(predict(looker, benchmarks.load("phantom", data), tmp_path / "out"))
    assert [row["text"] for row in found] == ["It is red", "It is blue", "It is red"] * 2


ENDPOINT_RUN = """
import sys
from pathlib import Path
from llavamed.engine import connect
from llavamed.evaluate import benchmarks
from llavamed.evaluate.predict import predict
predict(connect(sys.argv[1]), benchmarks.load("phantom", Path(sys.argv[2])), Path(sys.argv[3]))
"""


def test_after_kill_9_an_endpoint_is_asked_only_what_it_had_not_answered(
    colours: Path, colour_benchmark: Benchmark, tmp_path, endpoint_of_colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = endpoint_of_colours
    out = tmp_path / "out"
    monkeypatch.setenv("LLAVAMED_API_KEY", "first")
    run = subprocess.Popen([sys.executable, "-c", ENDPOINT_RUN, url, str(colours), str(out)])
    journal = out / "predictions.jsonl"
    deadline = time.monotonic() + 60
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 12:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()  # SIGKILL
    run.wait()
    kept = {row["id"] for row in rows_that_are_whole(journal)}
    assert 12 <= len(kept) < 54
    monkeypatch.setenv("LLAVAMED_API_KEY", "second")  # some of the first are still being answered
    engine = connect(url)
    again = predict(engine, colour_benchmark, out)
    assert asked.count("Bearer second") == 54 - len(kept)
    assert again.read_bytes() == predict(engine, colour_benchmark, tmp_path / "straight").read_bytes()


def rows_that_are_whole(path: Path) -> list[dict[str, Any]]:
    """The last line may be cut."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def endpoint_of_colours(looker) -> Iterator[tuple[str, list[str]]]:
    """An OpenAI-compatible server that looks, 0.2 s a question, and the keys with which it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            self.reply({"data": [{"id": "looker", "object": "model"}]})

        def do_POST(self) -> None:
            image, text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            asked.append(self.headers["Authorization"])
            time.sleep(0.2)
            picture = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
            answer = looker.answer(Request((user(text["text"], images=1),), (picture,)))
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
            self.reply({"id": "1", "object": "chat.completion", "created": 0, "model": "looker", "choices": [choice]})

        def reply(self, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked was killed
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


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
