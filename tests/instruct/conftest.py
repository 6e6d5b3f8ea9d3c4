"""A corpus of phantom pairs in memory and on disk, with the written truth beside it; an endpoint of our own."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llavamed.corpus.store import CorpusWriter
from llavamed.demo.truth import Truth, sample
from llavamed.demo.wording import tell
from llavamed.manifest import Manifest
from llavamed.records import Mention, Pair


def phantom_pairs(count: int, seed: int) -> list[tuple[Truth, Pair]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        truth = sample(rng)
        telling = tell(truth, "Figure 1", rng)
        key = f"pair-{number:04d}"
        mentions = tuple(Mention(s) for s in telling.sentences)
        pair = Pair(key, f"{key}.png", telling.caption, "Figure 1", mentions, licence="CC-BY-4.0", domain=truth.domain)
        pairs.append((truth, pair))
    return pairs


@pytest.fixture(scope="session")
def world() -> list[tuple[Truth, Pair]]:
    return phantom_pairs(1600, seed=5)


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Write pairs as a corpus folder; each image is a small grey square."""

    def make(pairs: list[Pair], name: str = "corpus") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        grey = io.BytesIO()
        Image.new("L", (40, 30), 120).save(grey, format="PNG")
        with CorpusWriter(folder) as writer:
            for pair in pairs:
                writer.add(pair, grey.getvalue())
        Manifest("corpus", {"keys": [p.key for p in pairs], "captions": [p.caption for p in pairs]}).write(folder)
        return folder

    return make


TURNS = {
    "turns": [{"question": "What is it?", "answer": "A CT scan."}, {"question": "Of what?", "answer": "A tumour."}]
}
SECRET = "secret-key"


@dataclass
class Said:
    """What the endpoint answers: a text in a chat completion, or an error; `events` are sent as a stream, and `body` as
    it is."""

    text: str = json.dumps(TURNS)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: list[str] | None = None
    body: str | None = None
    usage: tuple[int, int] | None = (100, 10)
    finish: str = "stop"

    def data(self) -> tuple[str, bytes]:
        """(content type, bytes)"""
        if self.events is not None:
            return "text/event-stream", "".join(f"{event}\n\n" for event in self.events).encode()
        if self.body is not None:
            return "text/html", self.body.encode()
        if self.status != 200:
            return "application/json", json.dumps({"error": {"message": self.text, "code": "x"}}).encode()
        choice = {"index": 0, "finish_reason": self.finish, "message": {"role": "assistant", "content": self.text}}
        body: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        if self.usage:
            body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))
        return "application/json", json.dumps(body).encode()


class Endpoint:
    """Answers with what `reply` makes of the request's body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.reply: Callable[[dict[str, Any]], Said] = lambda body: Said()
        endpoint, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    endpoint.requests.append(body)
                    endpoint.keys.append(self.headers["authorization"])
                    said = endpoint.reply(body)
                kind, data = said.data()
                self.send_response(said.status)
                for name, value in {"content-type": kind, "content-length": str(len(data)), **said.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256  # many connect at once

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """Its key is SECRET; whatever is tried again is so at once."""
    monkeypatch.setenv("LLAVAMED_TEACHER_KEY", SECRET)
    monkeypatch.setattr("llavamed.instruct.ask.BACKOFF_SECONDS", 0.001)
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
