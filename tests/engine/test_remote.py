"""Against a small real HTTP server that records what it is sent."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from llavamed.engine import connect, public_name, remote
from llavamed.engine.remote import RemoteEngine, RemoteError
from llavamed.engine.request import Request
from llavamed.errors import InputError
from llavamed.records import Message, assistant, user


class Endpoint:
    """`bodies` and `keys` are what came in; `statuses` are answered first, one a request, then 200. A question
    in `contents` is answered by that content, one in `raw` by that body, and one about "nothing" by no choice."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.statuses: list[int] = []
        self.contents: dict[str, str | None] = {}
        self.raw: dict[str, bytes] = {}
        self.models = ["small", "other"]
        self.retry_after, self.code = "0", "y"  # of what is not 200
        self.places: int | None = None  # more at a time are a 429
        self.busy = self.most = 0
        endpoint, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                self.reply(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in endpoint.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.bodies.append(body)
                endpoint.keys.append(self.headers["Authorization"])
                status = endpoint.statuses.pop(0) if endpoint.statuses else 200
                with lock:
                    if endpoint.places is not None and endpoint.busy >= endpoint.places:
                        status = 429
                    endpoint.busy += status == 200
                    endpoint.most = max(endpoint.most, endpoint.busy)
                try:
                    self.answer(body, status)
                finally:
                    with lock:
                        endpoint.busy -= status == 200

            def answer(self, body: dict[str, Any], status: int) -> None:
                if endpoint.places is not None and status == 200:
                    time.sleep(0.02)
                if status != 200:
                    self.reply(status, {"error": {"message": "not now", "type": "x", "code": endpoint.code}})
                elif body.get("stream"):
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.end_headers()
                    for word in ("An ", "answer."):
                        event = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "small"}
                        event["choices"] = [{"index": 0, "delta": {"content": word}}]  # type: ignore[assignment]
                        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                    self.wfile.write(b"data: [DONE]\n\n")
                elif str(body["messages"][-1]["content"]) in endpoint.raw:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    self.wfile.write(endpoint.raw[body["messages"][-1]["content"]])
                else:
                    asked = body["messages"][-1]["content"]
                    text = f"echo {asked}"[:40]
                    message = {"role": "assistant", "content": endpoint.contents.get(str(asked), text)}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    head = {"id": "1", "object": "chat.completion", "created": 0, "model": "small"}
                    self.reply(200, {**head, "choices": [] if asked == "nothing" else [choice]})

            def reply(self, status: int, value: dict[str, Any]) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", endpoint.retry_after)
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_answers_come_back_in_order_with_several_under_way(endpoint: Endpoint) -> None:
    engine = RemoteEngine(endpoint.url, "small", concurrency=4)
    requests = [Request((user(f"question {i}"),)) for i in range(20)]
    assert engine.generate(requests) == [f"echo question {i}" for i in range(20)]


def test_an_image_travels_losslessly_inside_the_request(
    endpoint: Endpoint, picture: Callable[[int], Image.Image]
) -> None:
    image = picture(1)
    messages = (
        Message("system", ({"type": "text", "text": "Be brief."},)),
        user("Look.", images=1),
        assistant("I see."),
        user("What is it?"),
    )
    RemoteEngine(endpoint.url, "small").generate(
        [Request(messages, (image,), max_new_tokens=9, temperature=0.5, top_p=0.9, seed=7, stop=("END",))]
    )
    body = endpoint.bodies[0]
    settings = {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p", "seed", "stop")}
    assert settings == {
        "model": "small", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"]
    }  # fmt: skip
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in body["messages"] if m["role"] != "user"] == ["Be brief.", "I see."]
    shown, text = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "Look."}
    head, _, data = shown["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(image))


def test_a_stream_gives_the_pieces(endpoint: Endpoint) -> None:
    assert list(RemoteEngine(endpoint.url, "small").stream(Request((user("?"),)))) == ["An ", "answer."]


def test_a_busy_endpoint_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.statuses = [429, 503]
    assert RemoteEngine(endpoint.url, "small").generate([Request((user("hi"),))]) == ["echo hi"]
    assert len(endpoint.bodies) == 3


def test_an_endpoint_with_few_places_is_given_no_more_and_all_are_answered(endpoint: Endpoint) -> None:
    endpoint.places = 3
    requests = [Request((user(f"question {i}"),)) for i in range(80)]
    engine = RemoteEngine(endpoint.url, "small")
    assert engine.generate(requests) == [f"echo question {i}" for i in range(80)]
    assert endpoint.most == 3
    refused = len(endpoint.bodies) - 80
    assert refused < 80
    endpoint.bodies.clear()
    assert engine.generate(requests[:30]) == [f"echo question {i}" for i in range(30)]
    assert len(endpoint.bodies) - 30 < 20, "what the endpoint takes is remembered"


def test_outcomes_come_as_they_are_there_and_requests_are_taken_as_they_are_needed(endpoint: Endpoint) -> None:
    endpoint.contents = {"question 3": None}
    taken = []

    def requests() -> Iterator[Request]:
        for number in range(200):
            taken.append(number)
            yield Request((user(f"question {number}"),))

    outcomes = RemoteEngine(endpoint.url, "small", concurrency=4).each(requests())
    found = [next(outcomes)]
    assert len(taken) < 40
    found += outcomes
    assert sorted(place for place, _ in found) == list(range(200))
    by_place = dict(found)
    assert isinstance(by_place.pop(3), RemoteError)
    assert all(text == f"echo question {place}" for place, text in by_place.items())


def test_an_endpoint_that_refuses_everyone_ends_the_run_and_one_that_refuses_one_does_not(endpoint: Endpoint) -> None:
    engine = RemoteEngine(endpoint.url, "small", concurrency=1)
    requests = [Request((user(f"{i}"),)) for i in range(3)]
    endpoint.statuses = [401] * 3
    with pytest.raises(InputError, match=r"check the key in LLAVAMED_API_KEY and the name of the model"):
        list(engine.each(requests))
    endpoint.statuses = [200, 403]
    assert [type(outcome) for _, outcome in engine.each(requests)] == [str, RemoteError, str]


def test_an_endpoint_that_is_gone_ends_the_run() -> None:
    engine = RemoteEngine("http://127.0.0.1:9", "small", max_retries=0)
    outcomes = engine.each(Request((user(f"{i}"),)) for i in range(10_000))
    assert [type(outcome) for _, outcome in itertools.islice(outcomes, 31)] == [RemoteError] * 31
    with pytest.raises(InputError, match="32 requests in a row; start it again and run this again"):
        next(outcomes)


def test_an_endpoint_that_asks_for_an_hour_ends_the_run(endpoint: Endpoint) -> None:
    endpoint.statuses, endpoint.retry_after = [429], "3600"
    with pytest.raises(InputError, match=r"not now.*left alone for 3600 seconds"):
        RemoteEngine(endpoint.url, "small").generate([Request((user("hi"),))])


def test_a_spent_account_is_not_asked_again(endpoint: Endpoint) -> None:
    endpoint.statuses, endpoint.code = [429], "insufficient_quota"
    with pytest.raises(RemoteError, match="not now"):
        RemoteEngine(endpoint.url, "small").generate([Request((user("hi"),))])
    assert len(endpoint.bodies) == 1


def test_an_image_is_encoded_once_for_the_questions_that_follow_one_another(
    endpoint: Endpoint, picture: Callable[[int], Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Image.Image] = []
    data_url = remote.data_url
    monkeypatch.setattr(remote, "data_url", lambda image: (encoded.append(image), data_url(image))[1])
    images = [picture(1), picture(2), picture(1)]
    requests = [Request((user(f"{i}", images=1),), (images[i // 5],)) for i in range(15)]
    RemoteEngine(endpoint.url, "small").generate(requests)
    assert len(encoded) == 3
    urls = {body["messages"][0]["content"][1]["text"]: body["messages"][0]["content"][0] for body in endpoint.bodies}
    assert urls["0"] == urls["4"] == urls["10"] != urls["5"] == urls["9"]


def test_what_still_fails_names_the_endpoint_and_the_reason(endpoint: Endpoint) -> None:
    endpoint.statuses = [400]
    engine = RemoteEngine(endpoint.url, "small")
    with pytest.raises(RemoteError, match=f"{endpoint.url}/v1, model 'small': .*not now"):
        engine.generate([Request((user("hi"),))])
    endpoint.statuses = [400]
    with pytest.raises(RemoteError, match="not now"):
        list(engine.stream(Request((user("hi"),))))


def test_one_failing_request_does_not_take_the_batch_with_it(endpoint: Endpoint) -> None:
    endpoint.contents = {"2": None, "3": ""}
    engine = RemoteEngine(endpoint.url, "small")
    with pytest.raises(RemoteError, match=r"model 'small': a reply without a text \(finish_reason 'stop'\)") as caught:
        engine.generate([Request((user(text),)) for text in ("1", "2", "3", "nothing")])
    assert [str(a) for a in caught.value.answers[::2]] == ["echo 1", ""]
    assert [type(answer) for answer in caught.value.answers] == [str, RemoteError, str, RemoteError]
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("body", [b'{"choices": [{"ind', b"<html>", b"[]", b'{"choices": [{}]}', b""])
def test_a_reply_that_is_no_completion_fails_its_request_alone(endpoint: Endpoint, body: bytes) -> None:
    endpoint.raw = {"2": body}
    with pytest.raises(RemoteError, match=r"a reply (that is not JSON|without a text)") as caught:
        RemoteEngine(endpoint.url, "small").generate([Request((user(text),)) for text in ("1", "2", "3")])
    assert [type(answer) for answer in caught.value.answers] == [str, RemoteError, str]


def test_a_single_answer_brings_what_it_cost_and_takes_further_fields(endpoint: Endpoint) -> None:
    engine = RemoteEngine(endpoint.url, "small")
    reply = engine.complete(Request((user("hi"),)), {"response_format": {"type": "text"}, "max_tokens": None})
    assert (reply.text, reply.finish_reason, reply.prompt_tokens) == ("echo hi", "stop", 0)
    assert endpoint.bodies[0]["response_format"] == {"type": "text"}
    assert "max_tokens" not in endpoint.bodies[0]


def test_the_key_is_not_in_what_is_told(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.contents = {}
    endpoint.statuses = [401]
    with pytest.raises(RemoteError) as caught:
        RemoteEngine(endpoint.url, "small", "not now").generate([Request((user("hi"),))])  # what its error says
    assert "[key]" in str(caught.value)
    assert "not now" not in str(caught.value)


def test_a_key_at_the_cut_of_a_long_error_is_not_half_told(endpoint: Endpoint) -> None:
    key = "k" * 200
    engine = RemoteEngine(endpoint.url, "small", key)
    assert "kkk" not in engine._reason(openai.OpenAIError("x" * 250 + key))
    assert engine._reason(openai.OpenAIError("x " + key)) == "x [key]"


def test_a_password_in_the_url_is_used_and_never_shown(endpoint: Endpoint) -> None:
    engine = connect(endpoint.url.replace("://", "://me:secret@") + "#small")
    assert engine.name == f"{endpoint.url}/v1#small"
    endpoint.statuses = [400]
    with pytest.raises(RemoteError) as caught:
        engine.generate([Request((user("hi"),))])
    assert "secret" not in str(caught.value)
    assert endpoint.keys == ["Basic " + base64.b64encode(b"me:secret").decode()]
    assert public_name("https://me:secret@a.org:8000/v1?b=c#d") == "https://a.org:8000/v1#d"
    assert public_name("HTTPS://me:secret@a.org/v1") == "https://a.org/v1"
    assert public_name("http://me:secret@[::1/v1") == "http://..."
    assert public_name("runs/a@b") == "runs/a@b"


def test_connect_takes_the_endpoints_first_model_or_the_one_named(endpoint: Endpoint) -> None:
    assert connect(endpoint.url).name == f"{endpoint.url}/v1#small"
    assert connect(f"{endpoint.url}/v1/#other").name == f"{endpoint.url}/v1#other"
    endpoint.models = []
    with pytest.raises(InputError, match="serves no model"):
        connect(endpoint.url)


def test_an_endpoint_that_is_down_is_an_input_error() -> None:
    with pytest.raises(InputError, match="is it up"):
        RemoteEngine("http://127.0.0.1:9", max_retries=0)


def test_the_key_is_the_one_given_or_from_the_environment(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("LLAVAMED_API_KEY", "ours")
    RemoteEngine(endpoint.url, "small").generate([Request((user("hi"),))])
    RemoteEngine(endpoint.url, "small", api_key="given").generate([Request((user("hi"),))])
    assert endpoint.keys == ["Bearer ours", "Bearer given"]


def test_openais_key_is_sent_to_openai_alone(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVAMED_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    RemoteEngine(endpoint.url, "small").generate([Request((user("hi"),))])
    assert endpoint.keys == ["Bearer none"]
    keys = {
        url: RemoteEngine(url, "small")._client.api_key
        for url in ("https://api.openai.com/v1", "http://api.openai.com", "https://api.openai.com.evil.org/v1")
    }
    assert list(keys.values()) == ["theirs", "none", "none"]
    monkeypatch.setenv("LLAVAMED_API_KEY", "ours")
    assert RemoteEngine("https://api.openai.com", "small")._client.api_key == "ours"
