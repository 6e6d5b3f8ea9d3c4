"""The API as clients see it: the openai client unchanged, and what must be refused, each with its reason."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from llavamed.serve.app import create_app
from llavamed.serve.gate import Gate
from llavamed.serve.wire import MAX_IMAGES, as_api_error

from .fake import WORDS, FakeEngine, data_url, png

TEXT = "".join(WORDS)


@pytest.fixture
def url(live: Any) -> Iterator[str]:
    with live() as address:
        yield address


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10)


def asks(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake-model", "messages": [{"role": "user", "content": text}], **more}


def shows(*urls: str, **more: Any) -> dict[str, Any]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return asks("", **{"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}], **more})


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# --- the openai client, unchanged ---


def test_openai_client_gets_a_whole_answer_about_an_image(client: openai.OpenAI, engine: FakeEngine) -> None:
    body = shows(data_url(png(24, 16, "navy")), temperature=0.5, top_p=0.9, seed=3, stop="END", max_tokens=99)
    completion = client.chat.completions.create(**body)
    assert completion.choices[0].message.content == TEXT
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "fake-model"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 5  # "What?" and an image of 4, as the fake engine counts
    assert completion.usage.completion_tokens == len(TEXT.split())
    (request,) = engine.requests
    assert request.images[0].mode == "RGB"
    assert request.images[0].size == (24, 16)
    assert request.images[0].getpixel((0, 0)) == (0, 0, 128)
    assert [part["type"] for part in request.messages[0].content] == ["image", "text"]
    assert (request.temperature, request.top_p, request.seed, request.stop) == (0.5, 0.9, 3, ("END",))
    assert request.max_new_tokens == 99


def test_streamed_text_is_the_whole_text_and_usage_comes_last(client: openai.OpenAI) -> None:
    body = shows(data_url(png()))
    events = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    whole = client.chat.completions.create(**body)
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == whole.choices[0].message.content
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "stop"
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    assert len({event.id for event in events}) == 1


def test_a_stream_ends_in_done_and_is_made_of_events(url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asks("hi", stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    first = json.loads(lines[0].removeprefix("data: "))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"]["role"] == "assistant"


def test_the_answer_is_cut_at_max_tokens_and_says_so(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(**asks("hi", max_completion_tokens=2))
    assert completion.choices[0].message.content == "".join(WORDS[:2])
    assert completion.choices[0].finish_reason == "length"


def test_system_developer_and_earlier_turns_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And now?"},
    ]
    client.chat.completions.create(model="fake-model", messages=messages, user="me", n=1, frequency_penalty=0)
    assert [(m.role, m.text) for m in engine.requests[0].messages] == [
        ("system", "Be brief."),
        ("user", "Hello."),
        ("assistant", "Hi."),
        ("user", "And now?"),
    ]


def test_models_health_and_notice(client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == ["fake-model"]
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    ready = httpx.get(f"{url}/ready")
    assert ready.json() == {"status": "ready", "model": "fake-model"}
    assert ready.headers["x-llavamed-notice"] == "research use only, not for clinical use"


# --- what must be refused ---

GOOD = data_url(png())
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "https": (shows("https://example.org/scan.png"), "images must be data URLs"),
    "http": (shows("http://169.254.169.254/latest/meta-data"), "images must be data URLs"),
    "file": (shows("file:///etc/passwd"), "not file"),
    "path": (shows("/etc/passwd"), "not a bare path"),
    "damaged": (shows(data_url(png(200, 200)[:120])), "messages[0].content[0]"),
    "no image": (shows(data_url(b"<html>not found</html>")), "not an image"),
    "not base64": (shows("data:image/png;base64,!!!"), "not base64"),
    "data without base64": (shows("data:text/plain,hello"), "a data URL must read"),
    "too many": (shows(*[GOOD] * (MAX_IMAGES + 1)), f"more than {MAX_IMAGES} images"),
    "role": (asks("", messages=[{"role": "wizard", "content": "hi"}]), "messages[0].role"),
    "tool role": (asks("", messages=[{"role": "tool", "content": "hi", "tool_call_id": "1"}]), "messages[0].role"),
    "part": (asks("", messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), "input_audio"),
    "url absent": (
        asks("", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        "messages[0].content[0].image_url.url: Field required",
    ),
    "no messages": (asks("", messages=[]), "messages"),
    "empty message": (asks("", messages=[{"role": "user", "content": []}]), "the message is empty"),
    "assistant last": (asks("", messages=[{"role": "assistant", "content": "hi"}]), "the last message"),
    "assistant's image": (
        asks("", messages=[{"role": "assistant", "content": shows(GOOD)["messages"][0]["content"]}]),
        "only user messages may hold images",
    ),
    "n": (asks("hi", n=2), "supports only n = 1"),
    "tools": (asks("hi", tools=[{"type": "function"}]), "tools"),
    "logprobs": (asks("hi", logprobs=True), "logprobs"),
    "unknown field": (asks("hi", temprature=0.3), "'temprature'"),
    "temperature": (asks("hi", temperature=9), "temperature"),
    "max_tokens": (asks("hi", max_tokens=0), "max_tokens"),
    "stop": (asks("hi", stop=list("abcde")), "stop"),
    "engine's word": (asks("wrong"), "the question is too long; shorten it"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_400_and_the_reason(case: str, stream: bool, engine: FakeEngine) -> None:
    body, words = REFUSED[case]
    response = post(create_app(engine, page=False), json={**body, "stream": stream})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert words in error["message"] or words in (error["param"] or "")


def post(app: Any, **what: Any) -> httpx.Response:
    """One request without a socket."""
    import anyio

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            return await http.post("/v1/chat/completions", **what)

    return anyio.run(go)


def test_a_remote_image_is_never_fetched(url: str, engine: FakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        target = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        assert httpx.post(f"{url}/v1/chat/completions", json=shows(target)).status_code == 400
        with pytest.raises(TimeoutError):
            trap.accept()
    assert engine.requests == []


@pytest.mark.parametrize("sides", [(7000,), (5000, 5000)])
def test_images_over_the_budget_of_pixels_are_refused(sides: tuple[int, ...], engine: FakeEngine) -> None:
    urls = []
    for side in sides:
        buffer = io.BytesIO()
        Image.new("1", (side, side)).save(buffer, "PNG")  # a few kilobytes that unpack to 75 or 150 MB of RGB
        urls.append(data_url(buffer.getvalue()))
    response = post(create_app(engine, page=False), json=shows(*urls))
    assert response.status_code == 400
    assert "pixels" in response.json()["error"]["message"]


def test_a_body_over_32_mib_is_refused_by_its_length(engine: FakeEngine) -> None:
    response = post(create_app(engine, page=False), content=b" " * (32 * 2**20 + 1))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_a_body_in_chunks_is_refused_when_it_passes_the_limit(engine: FakeEngine) -> None:
    async def endless() -> Any:
        for _ in range(1000):
            sent.append(1)
            yield b" " * 1000

    sent: list[int] = []
    gated = Gate(create_app(engine, page=False), max_body_bytes=5000)
    response = post(gated, content=endless(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "larger than" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{", "application/json"), (b"[" * 200_000, "application/json"), (json.dumps(asks("hi")).encode(), "text/plain")],
    ids=["no JSON", "nested 200,000 deep", "a form's content type, as another site's page could send"],
)
def test_bodies_that_are_not_json_objects_are_refused(content: bytes, kind: str, engine: FakeEngine) -> None:
    response = post(create_app(engine, page=False), content=content, headers={"Content-Type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert engine.requests == []


def test_another_model_and_another_route_are_404_with_what_there_is(url: str) -> None:
    other = httpx.post(f"{url}/v1/chat/completions", json=asks("hi", model="gpt-9"))
    assert other.status_code == 404
    assert other.json()["error"]["code"] == "model_not_found"
    assert "'fake-model'" in other.json()["error"]["message"]
    assert "GET /v1/models" in httpx.get(f"{url}/v1/embeddings").json()["error"]["message"]
    assert httpx.get(f"{url}/docs").status_code == 404  # they would load scripts from a public host


def test_every_v1_route_wants_the_key_before_the_body(live: Any, engine: FakeEngine) -> None:
    with live(api_key="s3cret") as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for path in ("models", "chat/completions", "openapi.json", "nothing"):
                response = httpx.post(f"{url}/v1/{path}", content=b"not even JSON", headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{url}/health").status_code == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret")
        assert client.chat.completions.create(**asks("hi")).choices[0].message.content == TEXT
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="other").models.list()


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_without_a_key_loopback_names_are_answered_with_any_port(host: str, engine: FakeEngine) -> None:
    assert post(create_app(engine, page=False), json=asks("hi"), headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "192.168.1.2", "127.0.0.1@evil", "[", ""]
)
def test_without_a_key_a_page_that_gave_its_name_our_address_is_turned_away(host: str, engine: FakeEngine) -> None:
    response = post(create_app(engine, page=False), json=asks("hi"), headers={"Host": host})
    assert response.status_code == 421
    assert response.json()["error"]["code"] == "host_not_allowed"
    assert "localhost" in response.json()["error"]["message"]
    assert engine.requests == []


def test_with_a_key_any_host_name_is_answered(engine: FakeEngine) -> None:
    app = create_app(engine, api_key="s3cret", page=False)
    headers = {"Host": "models.example.org", "Authorization": "Bearer s3cret"}
    assert post(app, json=asks("hi"), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[Errno 2] No such file or directory: '/home/ann/models/x.safetensors'", "directory: '[path]'"),
        ("cannot open C:\\Users\\ann\\x.bin", "cannot open [path]"),
        ("POST https://host/v1/chat failed with 1/2", "POST https://host/v1/chat failed with 1/2"),
    ],
)
def test_an_error_of_the_model_is_told_without_paths(text: str, told: str) -> None:
    message = as_api_error(RuntimeError(text)).body["error"]["message"]
    assert message is not None
    assert message.endswith(told)


# --- the line, and those who leave it ---


def test_a_full_line_is_429_with_retry_after_and_not_ready(live: Any, engine: FakeEngine) -> None:
    with live(max_waiting=1) as url, httpx.Client() as http, contextlib.ExitStack() as open_streams:
        open_streams.enter_context(http.stream("POST", f"{url}/v1/chat/completions", json=asks("slow", stream=True)))

        def wait_in_line() -> None:
            with contextlib.suppress(httpx.TimeoutException):
                httpx.post(f"{url}/v1/chat/completions", json=asks("hello"), timeout=2)

        waiting = threading.Thread(target=wait_in_line)
        waiting.start()
        wait_for(lambda: httpx.get(f"{url}/ready").status_code == 503)
        refused = httpx.post(f"{url}/v1/chat/completions", json=asks("me too"))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        waiting.join()
        # the one who waited gave up, and left the line while the first answer still runs
        wait_for(lambda: httpx.get(f"{url}/ready").status_code == 200)
        assert not engine.closed.is_set()
        assert [request.messages[-1].text for request in engine.requests] == ["slow"]


def test_leaving_a_stream_stops_the_model(url: str, engine: FakeEngine) -> None:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asks("slow", stream=True)) as response:
        next(response.iter_lines())
    assert engine.closed.wait(5)
    assert httpx.post(f"{url}/v1/chat/completions", json=asks("hi")).status_code == 200


def test_leaving_before_a_whole_answer_stops_the_model(url: str, engine: FakeEngine) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{url}/v1/chat/completions", json=asks("slow"), timeout=0.5)
    assert engine.closed.wait(5)


def test_a_broken_model_is_told_to_who_asked_not_to_the_log_and_not_to_the_next(
    url: str, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        whole = httpx.post(f"{url}/v1/chat/completions", json=asks("broken for Mrs Smith"))
        with pytest.raises(openai.APIError, match="ZeroDivisionError"):
            list(client.chat.completions.create(**asks("broken for Mrs Smith"), stream=True))
        raw = httpx.post(f"{url}/v1/chat/completions", json=asks("broken", stream=True)).text
        after = httpx.post(f"{url}/v1/chat/completions", json=asks("hi"))
    assert whole.status_code == 500
    assert "ZeroDivisionError" in whole.json()["error"]["message"]
    assert raw.endswith("data: [DONE]\n\n")
    assert after.json()["choices"][0]["message"]["content"] == TEXT
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("llavamed"))
    assert "ZeroDivisionError at" in ours
    assert "Smith" not in ours
    assert "secret" not in ours


def test_no_prompt_no_image_and_no_answer_is_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    image = png()
    with caplog.at_level(logging.DEBUG):
        httpx.post(f"{url}/v1/chat/completions", json=shows(data_url(image)))
        httpx.post(f"{url}/v1/chat/completions", json=asks("Mrs Smith, born 1950", temperature="hot"))
    text = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpcore"))
    for word in ("Smith", "1950", "What?", WORDS[1], base64.b64encode(image).decode()[:40]):
        assert word not in text
