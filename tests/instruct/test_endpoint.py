"""One call, and what its failure means; the endpoint is a small server of our own."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from llavamed.errors import InputError
from llavamed.instruct.endpoint import Busy, Declined, Endpoint, Faltered, Reply, connect, estimate
from tests.instruct.conftest import SECRET, TURNS, Said
from tests.instruct.conftest import Endpoint as Server

BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "What?"}],
    "temperature": 0.0,
    "max_tokens": 50,
    "seed": 7,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
}


def _connect(url: str, model: str = "m", timeout_seconds: float = 30.0) -> Endpoint:
    return connect(url, model, "instruct.teacher", "LLAVAMED_TEACHER_KEY", timeout_seconds)


def _ask(server: Server, *, proven: bool = False, made: Endpoint | None = None) -> Reply:
    made = made or _connect(server.url)
    made.proven = proven

    async def once() -> Reply:
        try:
            return await made.ask(BODY)
        finally:
            await made.close()

    return asyncio.run(once())


def _event(**body: Any) -> str:
    return f"data: {json.dumps(body)}"


def _piece(text: str, finish: str | None = None) -> str:
    return _event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


def test_a_whole_answer_is_read_with_its_tokens(endpoint: Server) -> None:
    assert _ask(endpoint) == Reply(json.dumps(TURNS), (100, 10), True, "stop")
    assert endpoint.keys == [f"Bearer {SECRET}"]
    sent = endpoint.requests[0]
    assert (sent["stream"], sent["seed"], sent["messages"]) == (True, 7, BODY["messages"])


def test_a_stream_is_put_together_and_comments_in_it_are_passed_over(endpoint: Server) -> None:
    usage = _event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 2})
    endpoint.reply = lambda body: Said(
        events=[": waiting", _piece("A C"), _piece("T."), _piece("", "stop"), usage, "data: [DONE]"]
    )
    assert _ask(endpoint) == Reply("A CT.", (5, 2), True, "stop")


def test_tokens_are_estimated_where_the_endpoint_does_not_count_them(endpoint: Server) -> None:
    endpoint.reply = lambda body: Said(events=[_piece("word " * 40, "length")])
    reply = _ask(endpoint)
    assert (reply.tokens[1], reply.counted, reply.finish) == (50, False, "length")
    assert estimate('{"url": "data:image/jpeg;base64,' + "A" * 10_000 + '"}') < 10


@pytest.mark.parametrize(
    "events",
    [
        [_piece("A C")],
        [],
        [_piece("A C"), _event(error={"message": "out of memory"})],
    ],
)
def test_a_stream_that_was_cut_or_broke_has_faltered(endpoint: Server, events: list[str]) -> None:
    endpoint.reply = lambda body: Said(events=events)
    with pytest.raises(Faltered, match=r"cut|out of memory") as caught:
        _ask(endpoint)
    assert (caught.value.tokens[1] > 0) == bool(events)


def test_a_body_shorter_than_promised_has_faltered(endpoint: Server) -> None:
    endpoint.reply = lambda body: Said(headers={"content-length": "5000", "connection": "close"})
    with pytest.raises(Faltered):
        _ask(endpoint, made=_ended_soon(endpoint))


def _ended_soon(endpoint: Server) -> Endpoint:
    made = _connect(endpoint.url, timeout_seconds=0.3)

    async def watched(body: Any, ask: Any = made.ask) -> Reply:
        async def tick() -> None:
            while True:
                await asyncio.sleep(0.05)
                made.end_silent()

        ticker = asyncio.create_task(tick())
        try:
            return await ask(body)
        finally:
            ticker.cancel()

    made.ask = watched  # type: ignore[method-assign]
    return made


def test_a_call_that_hangs_is_given_up_after_a_silence(endpoint: Server) -> None:
    def hang(body: dict[str, Any]) -> Said:
        time.sleep(1.0)
        return Said()

    endpoint.reply = hang
    began = time.monotonic()
    with pytest.raises(Faltered, match="silent"):
        _ask(endpoint, made=_ended_soon(endpoint))
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (Said("slow down", 429, {"retry-after": "3"}), Busy, "slow down"),
        (Said("oops", 500), Faltered, "oops"),
        (Said("busy", 503, {"retry-after": "2"}), Busy, "busy"),
        (Said("too large", 413), Declined, "too large"),
        (Said("This model's maximum context length is 8192 tokens", 400), Declined, "context length"),
        (Said("wrong key", 401), InputError, "LLAVAMED_TEACHER_KEY"),
        (Said("wrong key", 403), InputError, "key was refused"),
        (Said("nothing here", 404), InputError, "no model 'm'"),
        (Said("insufficient_quota: check your plan", 429), InputError, "no credit"),
        (Said("pay", 402), InputError, "no credit"),
        (Said(body="<!doctype html><html><body>Welcome</body></html>"), InputError, "web page"),
        (Said(body="hello"), InputError, "no JSON"),
        (Said(body="[1, 2]"), InputError, "no chat completion"),
        (Said(body='{"choices": [{"delta": "x"}]}'), InputError, "no chat completion"),
        (Said(body='{"choices": 5}'), InputError, "no chat completion"),
        (Said(body='{"status": "ok"}'), InputError, "no chat completion"),
        (Said(finish="content_filter"), Declined, "content filter"),
        (Said(events=[_event(choices=[{"delta": {"refusal": "I cannot"}}])]), Declined, "cannot"),
    ],
)  # fmt: skip
def test_each_failure_says_what_helps(endpoint: Server, said: Said, kind: type[Exception], words: str) -> None:
    endpoint.reply = lambda body: said
    with pytest.raises(kind, match=words) as caught:
        _ask(endpoint)
    if isinstance(caught.value, Busy):
        assert caught.value.wait == float(said.headers["retry-after"])


@pytest.mark.parametrize(("said", "kind"), [(Said(body="<html>gateway</html>"), Faltered), (Said("x", 403), Declined),
                                            (Said("x", 404), Faltered), (Said("bad seed", 400), Declined)])  # fmt: skip
def test_an_endpoint_that_has_answered_before_is_no_wrong_address(
    endpoint: Server, said: Said, kind: type[Exception]
) -> None:
    endpoint.reply = lambda body: said
    with pytest.raises(kind):
        _ask(endpoint, proven=True)


def test_no_connection_has_faltered() -> None:
    with pytest.raises(Faltered):
        _ask(None, made=_connect("http://127.0.0.1:9/v1"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "said", "given_up"),
    [
        (422, "Unsupported fields: {'response_format', 'stream_options'}", ["schema", "usage", "object"]),
        (400, "'max_tokens' is not supported, use 'max_completion_tokens'", ["max_tokens"]),
        (400, "temperature does not support 0", ["temperature"]),
        (400, "something is wrong", ["schema", "object", "usage", "seed", "max_tokens", "temperature"]),
    ],
)  # fmt: skip
def test_what_an_endpoint_does_not_understand_is_given_up(
    endpoint: Server, status: int, said: str, given_up: list[str]
) -> None:
    hated = {
        422: ("response_format", "stream_options"),
        "max": ("max_tokens",),
        "tem": ("temperature",),
        "som": ("temperature",),
    }[422 if status == 422 else said.strip("'")[:3]]
    endpoint.reply = lambda body: Said(said, status) if any(name in body for name in hated) else Said()
    made = _connect(endpoint.url)
    assert _ask(endpoint, made=made).text
    assert made.given_up == given_up
    assert not any(name in endpoint.requests[-1] for name in hated)
    if "max_tokens" in given_up:
        assert endpoint.requests[-1]["max_completion_tokens"] == 50


def test_what_a_model_is_known_not_to_take_is_never_sent(endpoint: Server) -> None:
    without = ("schema", "seed", "max_tokens", "temperature")
    made = connect(endpoint.url, "m", "teacher", "LLAVAMED_TEACHER_KEY", 30.0, without)
    body = {**BODY, "seed": 3, "temperature": 0.0, "response_format": {"type": "json_schema"}}
    asyncio.run(made.ask(body))
    (sent,) = endpoint.requests
    assert not {"seed", "max_tokens", "temperature"} & sent.keys()
    assert (sent["max_completion_tokens"], sent["response_format"]) == (50, {"type": "json_object"})
    endpoint.reply = lambda body: Said("no", 400)  # whatever is given up
    made = connect(endpoint.url, "m", "teacher", "LLAVAMED_TEACHER_KEY", 30.0, without)
    with pytest.raises(Declined):
        asyncio.run(made.ask(body))
    assert made.given_up == list(without)
    assert not any("temperature" in sent for sent in endpoint.requests)


def test_streaming_is_given_up_last(endpoint: Server) -> None:
    endpoint.reply = lambda body: Said("streaming is not for you", 400) if body["stream"] else Said()
    made = _connect(endpoint.url)
    assert _ask(endpoint, made=made).text
    assert endpoint.requests[-1]["stream"] is False
    assert "stream_options" not in endpoint.requests[-1]


def test_a_record_that_is_refused_whatever_is_given_up_costs_the_others_nothing(endpoint: Server) -> None:
    endpoint.reply = lambda body: Said("no", 400)
    made = _connect(endpoint.url)
    with pytest.raises(Declined):
        _ask(endpoint, made=made)
    assert made.given_up == []
    assert len(endpoint.requests) == 8


@pytest.mark.parametrize("said", [Said(f"bad {SECRET}", 500), Said(f"bad {SECRET}", 413), Said(f"{SECRET}", 401)])
def test_an_error_is_told_without_the_key(endpoint: Server, said: Said) -> None:
    endpoint.reply = lambda body: said
    with pytest.raises((Faltered, Declined, InputError)) as caught:
        _ask(endpoint)
    assert SECRET not in str(caught.value)


def test_half_a_character_becomes_one_that_can_be_written(endpoint: Server) -> None:
    endpoint.reply = lambda body: Said(text="x \ud83d y")
    assert _ask(endpoint).text == "x ? y"


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
    def sent(to: str, **keys: str) -> str:
        for name in ("LLAVAMED_TEACHER_KEY", "OPENAI_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        for name, key in keys.items():
            monkeypatch.setenv(name, key)
        return _connect(to)._client.api_key

    openai_url = "https://api.openai.com/v1"
    assert sent(url, OPENAI_API_KEY="theirs") == "none"
    assert sent(url, OPENAI_API_KEY="theirs", LLAVAMED_TEACHER_KEY="own") == "own"
    assert sent(openai_url, OPENAI_API_KEY="theirs") == "theirs"
    assert sent(openai_url, OPENAI_API_KEY="theirs", LLAVAMED_TEACHER_KEY="own") == "own"


def test_a_url_without_a_path_gets_one_and_its_password_is_not_shown() -> None:
    made = _connect("http://user:hidden@localhost:8000")
    assert str(made._client.base_url) == "http://user:hidden@localhost:8000/v1/"
    assert made.where == "http://localhost:8000/v1"
    with pytest.raises(InputError, match="give a URL"):
        _connect("templte")
    with pytest.raises(InputError, match="teacher_model") as caught:
        _connect("http://user:hidden@localhost:1/v1", model="")
    assert "hidden" not in str(caught.value)


def test_a_key_from_a_file_with_its_newline_is_sent_without(endpoint: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVAMED_TEACHER_KEY", f" {SECRET}\r\n")
    assert _ask(endpoint).text
    assert endpoint.keys == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("key", [f"{SECRET}\nmore", f"{SECRET}é", f"{SECRET}\x7f"])
def test_a_key_that_no_header_can_hold_is_an_error_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("LLAVAMED_TEACHER_KEY", key)
    with pytest.raises(InputError, match="LLAVAMED_TEACHER_KEY: holds a character that no key has") as caught:
        _connect("http://localhost:1/v1")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:abc/v1", "http://[::1/v1", "http://", "user:hidden@localhost:8000/v1", "http://u:hidden@:x/v1"],
)
def test_what_is_no_url_is_one_line_that_does_not_show_it(url: str) -> None:
    with pytest.raises(InputError, match="give a URL such as") as caught:
        _connect(url)
    assert "hidden" not in str(caught.value)


def test_an_address_is_the_same_with_a_slash_at_its_end() -> None:
    assert {_connect(f"http://localhost:8000{path}").where for path in ("", "/", "/v1", "/v1/", "/v1//")} == {
        "http://localhost:8000/v1"
    }


def _content(value: Any) -> Said:
    return Said(body=json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": value}}]}))


def test_content_in_parts_is_put_together(endpoint: Server) -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "A C"}, {"type": "text", "text": "T."}]
    endpoint.reply = lambda body: _content(parts)
    assert _ask(endpoint).text == "A CT."


@pytest.mark.parametrize("value", [{"text": "A"}, 5, [5], [{"text": 5}], [None]])
def test_content_that_is_no_text_is_no_chat_completion(endpoint: Server, value: Any) -> None:
    endpoint.reply = lambda body: _content(value)
    with pytest.raises(InputError, match="no chat completion"):
        _ask(endpoint)


def test_an_answer_in_one_piece_counts_as_the_silence_that_it_was(endpoint: Server) -> None:
    def slow(body: dict[str, Any]) -> Said:
        time.sleep(0.1)
        return Said()

    endpoint.reply = slow
    made = _connect(endpoint.url)
    _ask(endpoint, made=made)
    assert 0.1 <= max(made.patience._silences) < 5


def test_a_call_that_was_cut_off_may_be_on_the_bill(endpoint: Server) -> None:
    def hang(body: dict[str, Any]) -> Said:
        time.sleep(0.6)
        return Said()

    endpoint.reply = hang
    for streams, most in ((True, 0), (False, 50)):  # an answer that comes in one piece may have been nearly whole
        made = _ended_soon(endpoint)
        made._streams = streams
        with pytest.raises(Faltered, match="silent") as caught:
            _ask(endpoint, made=made)
        assert caught.value.tokens[0] > 0
        assert caught.value.tokens[1] == most


def test_a_call_that_found_nobody_is_on_no_bill() -> None:
    with pytest.raises(Faltered) as caught:
        _ask(None, made=_connect("http://127.0.0.1:9/v1"))  # type: ignore[arg-type]
    assert caught.value.tokens == (0, 0)
