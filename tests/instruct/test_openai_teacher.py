"""The hosted teacher against a small server of our own: no network beyond this machine."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from llavamed import manifest
from llavamed.demo.truth import Truth
from llavamed.errors import InputError
from llavamed.instruct.clean import clean
from llavamed.instruct.generate import generate
from llavamed.instruct.journal import Journal
from llavamed.instruct.openai_teacher import OpenAITeacher, TeacherFailed, prompt
from llavamed.recipe import InstructSection
from llavamed.records import Mention, Pair, read_conversations

PAIR = Pair("k", "k.png", "CT of a GIST.", "Figure 1", (Mention("Figure 1 shows it."),))
TURNS = {
    "turns": [{"question": "What is it?", "answer": "A CT scan."}, {"question": "Of what?", "answer": "A tumour."}]
}


class Endpoint:
    """Answers with what `reply` makes of the request: (status, text of the assistant)."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.reply: Callable[[dict[str, Any]], tuple[int, str]] = lambda body: (200, json.dumps(TURNS))
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.requests.append(body)
                endpoint.keys.append(self.headers["authorization"])
                status, text = endpoint.reply(body)
                error = {"error": {"message": text, "type": "x", "code": "x"}}
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                good = {
                    "id": "c",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [choice],
                }
                data = json.dumps(good if status == 200 else error).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("LLAVAMED_TEACHER_KEY", "secret-key")
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def _converse(endpoint: Endpoint, turns: int = 4, mentions: bool = True) -> Any:
    return OpenAITeacher(endpoint.url, "m", max_retries=1).converse(PAIR, mentions, turns, random.Random(0))


def test_the_answer_becomes_turns_and_the_first_carries_the_image(endpoint: Endpoint) -> None:
    messages = _converse(endpoint)
    assert [m.text for m in messages] == ["What is it?", "A CT scan.", "Of what?", "A tumour."]
    assert [m.num_images for m in messages] == [1, 0, 0, 0]
    assert len(_converse(endpoint, turns=1)) == 2


def test_the_request_is_blind_asks_for_a_schema_and_is_the_same_each_time(endpoint: Endpoint) -> None:
    _converse(endpoint)
    _converse(endpoint)
    first, second = endpoint.requests
    assert first == second
    assert first["response_format"]["json_schema"]["schema"]["required"] == ["turns"]
    assert all(isinstance(message["content"], str) for message in first["messages"])
    assert endpoint.keys[0] == "Bearer secret-key"


def test_the_prompt_holds_two_worked_examples_that_obey_the_schema_and_mentions_only_if_asked_for() -> None:
    messages = prompt(PAIR, mentions=True, turns=3)
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "Write 3 questions" in messages[0]["content"]
    assert '{"turns": [{"question": "...", "answer": "..."}]}' in messages[0]["content"]
    for example in (messages[2], messages[4]):
        assert {"question", "answer"} == set(json.loads(example["content"])["turns"][0])
    assert json.loads(messages[-1]["content"])["mentions"] == ["Figure 1 shows it."]
    assert json.loads(prompt(PAIR, mentions=False, turns=3)[-1]["content"])["mentions"] == []


def test_a_busy_endpoint_is_tried_again(endpoint: Endpoint) -> None:
    answers = iter([(503, "busy"), (200, json.dumps(TURNS))])
    endpoint.reply = lambda body: next(answers)
    assert len(_converse(endpoint)) == 4


def test_json_in_a_fence_is_read(endpoint: Endpoint) -> None:
    endpoint.reply = lambda body: (200, f"```json\n{json.dumps(TURNS)}\n```")
    assert len(_converse(endpoint)) == 4


@pytest.mark.parametrize("text", ["", "I cannot.", '{"turns": [{"question": "What?"}]}', '{"turns": "none"}'])
def test_an_answer_of_another_form_fails_this_record(endpoint: Endpoint, text: str) -> None:
    endpoint.reply = lambda body: (200, text)
    with pytest.raises(TeacherFailed, match="not the JSON"):
        _converse(endpoint)


def test_an_error_is_told_without_the_key(endpoint: Endpoint) -> None:
    endpoint.reply = lambda body: (400, "bad request with secret-key inside")
    with pytest.raises(TeacherFailed) as caught:
        _converse(endpoint)
    assert "secret-key" not in str(caught.value)
    assert "[key]" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "key was refused"), (403, "key was refused"), (404, "no model 'm'")]
)
def test_what_would_fail_every_record_is_an_input_error(endpoint: Endpoint, status: int, said: str) -> None:
    endpoint.reply = lambda body: (status, "secret-key is wrong")
    with pytest.raises(InputError, match=said) as caught:
        _converse(endpoint)
    assert "secret-key" not in str(caught.value)


def test_a_teacher_that_is_no_url_or_has_no_model_is_an_input_error() -> None:
    with pytest.raises(InputError, match="template"):
        OpenAITeacher("templte", "m")
    with pytest.raises(InputError, match="teacher_model"):
        OpenAITeacher("http://localhost:1/v1", "")


def _teacher_key_sent(monkeypatch: pytest.MonkeyPatch, url: str, **keys: str) -> str:
    for name in ("LLAVAMED_TEACHER_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    return OpenAITeacher(url, "m")._client.api_key


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com",
        "https://api.openai.com@evil.example/v1",
        "http://api.openai.com/v1",
    ],
)
def test_openais_key_goes_to_openai_alone(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    openai_url = "https://api.openai.com/v1"
    assert _teacher_key_sent(monkeypatch, url, OPENAI_API_KEY="theirs") == "none"
    assert _teacher_key_sent(monkeypatch, url, OPENAI_API_KEY="theirs", LLAVAMED_TEACHER_KEY="own") == "own"
    assert _teacher_key_sent(monkeypatch, openai_url, OPENAI_API_KEY="theirs") == "theirs"
    assert _teacher_key_sent(monkeypatch, openai_url, OPENAI_API_KEY="theirs", LLAVAMED_TEACHER_KEY="own") == "own"


def test_without_a_key_an_error_keeps_its_words(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVAMED_TEACHER_KEY")
    endpoint.reply = lambda body: (400, "none of the images can be read")
    with pytest.raises(TeacherFailed, match="none of the images"):
        _converse(endpoint)


def test_an_interrupted_stage_asks_only_what_is_missing(
    endpoint: Endpoint,
    world: list[tuple[Truth, Pair]],
    make_corpus: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, out = make_corpus([pair for _, pair in world[:6]]), tmp_path / "out"
    section = InstructSection(teacher=endpoint.url, teacher_model="m")

    def interrupted(*args: Any, **options: Any) -> Any:
        if len(endpoint.requests) == 5:
            raise KeyboardInterrupt
        return clean(*args, **options)

    monkeypatch.setattr("llavamed.instruct.generate.clean", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(corpus, out, section, seed=0)
    assert len(endpoint.requests) == 5
    monkeypatch.undo()
    assert generate(corpus, out, section, seed=0).counts["instruct"] == 6
    assert len(endpoint.requests) == 6
    # the journal is no result: the stage stays finished without it
    assert set(manifest.require(out, "instruct", "")["files"]) == {"align.jsonl", "instruct.jsonl", "report.html"}
    fewer = section.model_copy(update={"count": 3})  # another stage of the same answers
    assert generate(corpus, out, fewer, seed=0).counts["instruct"] == 3
    assert len(endpoint.requests) == 6
    assert generate(corpus, out, section, seed=1).counts["instruct"] == 6  # other sampling: other answers
    assert len(endpoint.requests) == 12


def test_an_answer_that_failed_is_asked_for_again(endpoint: Endpoint, tmp_path: Path) -> None:
    teacher = OpenAITeacher(endpoint.url, "m")
    teacher.journal = Journal(tmp_path / "journal.jsonl")
    endpoint.reply = lambda body: (200, "oops")
    with pytest.raises(TeacherFailed):
        teacher.converse(PAIR, True, 4, random.Random(0))
    endpoint.reply = lambda body: (200, json.dumps(TURNS))
    assert len(teacher.converse(PAIR, True, 4, random.Random(0))) == 4
    assert teacher.converse(PAIR, True, 4, random.Random(0)) == teacher.converse(PAIR, True, 4, random.Random(0))
    assert len(endpoint.requests) == 2
    assert "secret-key" not in (tmp_path / "journal.jsonl").read_text()


def test_a_failing_record_is_counted_and_its_neighbours_stay(
    endpoint: Endpoint, world: list[tuple[Truth, Pair]], make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = [pair for _, pair in world[:6]]

    def reply(body: dict[str, Any]) -> tuple[int, str]:
        broken = pairs[2].caption in json.loads(body["messages"][-1]["content"])["caption"]
        return (200, "oops") if broken else (200, json.dumps(TURNS))

    endpoint.reply = reply
    section = InstructSection(teacher=endpoint.url, teacher_model="m")
    made = generate(make_corpus(pairs), tmp_path / "out", section, seed=0)
    broken = {p.key for p in pairs if p.caption == pairs[2].caption}
    assert made.funnel["instruct: teacher_failed"] == len(broken)
    rows = list(read_conversations(tmp_path / "out" / "instruct.jsonl"))
    assert {row.source["pair"] for row in rows} == {p.key for p in pairs} - broken
    assert {row.source["teacher"] for row in rows} == {"m"}
    assert "secret-key" not in (tmp_path / "out" / "manifest.json").read_text()


def test_an_endpoint_that_only_fails_stops_the_stage_with_the_reason(
    endpoint: Endpoint, world: list[tuple[Truth, Pair]], make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    endpoint.reply = lambda body: (200, "oops")
    section = InstructSection(teacher=endpoint.url, teacher_model="m")
    with pytest.raises(InputError, match="first 10 pairs"):
        generate(make_corpus([pair for _, pair in world[:20]]), tmp_path / "out", section, seed=0)
    assert len(endpoint.requests) == 10
    assert not (tmp_path / "out" / "manifest.json").exists()
