"""An endpoint that is no model: OpenAI's chat completions with the latency and the faults of a real one.

    python benchmarks/endpoint.py [--port N] [--slots 64] [--full queue|refuse] [--median 2.0] [--scale 1.0] [--seed 0]

Of the calls 2 % are refused (429 with Retry-After), 1 % fail (500), 1 % hang, 1 % are answered in another form than
asked for and 0.5 % of the streams are cut. The others take a log-normal time (sigma 0.5) on one of `slots` places;
what comes when all are taken waits in a queue, or is refused. A call that hangs keeps its place until the caller
hangs up. What happens to a call is drawn from (seed, its words, how often it was asked), not from the clock.

GET /stats says what it counted, and what an ideal caller would have needed: one who keeps every place taken from the
first call on, loses to a fault only what the fault itself takes, and knows of a hung call as soon as others would be
answered. `--scale 0.1` runs ten times as fast.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

SIGMA, RETRY_AFTER = 0.5, 1.0
FAULTS = {"refused": 0.02, "error": 0.01, "hang": 0.01, "malformed": 0.01, "cut": 0.005}
PIECES, FIRST = 10, 0.2  # of an answer; the share of the time until the first


@dataclass
class Endpoint:
    slots: int
    full: str
    median: float
    scale: float
    seed: int
    faults: dict[str, float] = field(default_factory=lambda: dict(FAULTS))
    calls: Counter[str] = field(default_factory=Counter)  # by what became of them
    asked: Counter[str] = field(default_factory=Counter)  # by their words
    good: Counter[str] = field(default_factory=Counter)  # whole answers in the right form, by their words
    begun: int = 0
    under_way: int = 0
    busy: int = 0
    most: int = 0  # at once
    service: float = 0.0  # seconds of a place that were necessary
    first: float = 0.0
    done: list[float] = field(default_factory=list)  # when a good answer was whole
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def draw(self, words: str) -> tuple[str, float, random.Random]:
        rng = random.Random(f"{self.seed}/{words}/{self.asked[words]}")
        self.asked[words] += 1
        lot, fate = rng.random(), "answered"
        for name, share in self.faults.items():
            if lot < share:
                fate = name
                break
            lot -= share
        return fate, self.scale * self.median * rng.lognormvariate(0.0, SIGMA), rng

    async def place(self) -> bool:
        if self.busy < self.slots:
            self.busy += 1
            self.most = max(self.most, self.busy)
            return True
        if self.full == "refuse":
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise
        return True

    def leave(self) -> None:
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.busy -= 1

    def stats(self) -> dict[str, Any]:
        done = sorted(self.done)
        low, high = (done[int(share * (len(done) - 1))] if done else 0.0 for share in (0.05, 0.95))
        return {
            "calls": self.calls,
            "begun": self.begun,
            "under_way": self.under_way,
            "records": len(self.good),
            "twice": sum(number > 1 for number in self.good.values()),
            "most": self.most,
            "ideal_seconds": self.service / self.slots,
            "seconds": (done[-1] - self.first) if done else 0.0,
            "middle_seconds": high - low,  # in which 90 of 100 answers came
            "service": self.service,
        }


async def serve(endpoint: Endpoint, port: int) -> asyncio.Server:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await read_request(reader):
                if not await handle(endpoint, *request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(connection, "127.0.0.1", port, backlog=1024)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes] | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head.split(" ", 2)
    length = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
    return method, path, await reader.readexactly(length)


async def handle(
    endpoint: Endpoint, method: str, path: str, data: bytes,
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
) -> bool:  # fmt: skip
    """Answer one request; False if the connection is over."""
    if method == "GET":
        return await whole(writer, 200, endpoint.stats())
    endpoint.begun += 1
    endpoint.under_way += 1
    try:
        return await complete(endpoint, json.loads(data), reader, writer)
    finally:
        endpoint.under_way -= 1


async def complete(
    endpoint: Endpoint, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    words = hashlib.sha256(json.dumps(body["messages"][-1]).encode()).hexdigest()
    endpoint.first = endpoint.first or time.monotonic()
    fate, seconds, rng = endpoint.draw(words)
    retry = {"retry-after": f"{max(RETRY_AFTER * endpoint.scale, 0.001):.3f}"}
    if fate == "refused":
        endpoint.calls[fate] += 1
        return await whole(writer, 429, error("slow down"), retry)
    if not await endpoint.place():
        endpoint.calls["refused, full"] += 1
        return await whole(writer, 429, error("all places are taken"), retry)
    gone = asyncio.create_task(reader.read(1))  # ends when the caller hangs up: it sends nothing before it is answered
    try:
        if fate == "hang":
            endpoint.service += seconds
            endpoint.calls[fate] += 1
            await gone
            return False
        if fate in ("error", "cut"):
            seconds *= rng.random()
        endpoint.service += seconds
        if fate == "error":
            await asyncio.wait({gone}, timeout=seconds)
            endpoint.calls[fate] += 1
            return await whole(writer, 500, error("internal"))
        text = json.dumps(answer(words)) if fate != "malformed" else "Here you are: " + json.dumps(answer(words))[:-9]
        if body.get("stream"):
            over = await stream(writer, text, seconds, gone, fate)
        else:
            await asyncio.wait({gone}, timeout=seconds)
            over = gone.done() or fate == "cut" or not await whole(writer, 200, completion(text))
        endpoint.calls["caller hung up" if gone.done() else fate] += 1
        if fate == "answered" and not over:
            endpoint.good[words] += 1
            endpoint.done.append(time.monotonic())
        return not over
    finally:
        endpoint.leave()
        gone.cancel()
        await asyncio.wait({gone})  # one reader at a time


async def stream(writer: asyncio.StreamWriter, text: str, seconds: float, gone: asyncio.Task[bytes], fate: str) -> bool:
    """Send the text in pieces; True if the connection is over."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    size, began = -(-len(text) // PIECES), time.monotonic()
    for number in range(PIECES):
        due = began + seconds * (FIRST + (1 - FIRST) * number / (PIECES - 1))  # late pieces do not make the next late
        await asyncio.wait({gone}, timeout=max(0.0, due - time.monotonic()))
        if gone.done():
            return True
        send(writer, {"choices": [{"index": 0, "delta": {"content": text[number * size : (number + 1) * size]}}]})
    if fate == "cut":
        return True
    send(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    send(writer, {"choices": [], "usage": usage(text)})
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()
    return False


def send(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    data = f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', **event})}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def whole(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
) -> bool:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join((*lines, "", "")).encode() + data)
    await writer.drain()
    return True


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
            "usage": usage(text)}  # fmt: skip


def usage(text: str) -> dict[str, int]:
    return {"prompt_tokens": 1400, "completion_tokens": len(text) // 4, "total_tokens": 1400 + len(text) // 4}


ASKED = ("What kind of image is this?", "Is there a lesion on the left?", "What else can be seen in {}?")
TOLD = ("This is a chest X-ray taken from the front.", "No, the left side is clear.", "The heart has a normal size.")


def answer(words: str) -> dict[str, Any]:
    turns = [{"question": q.format(words[:6]), "answer": a} for q, a in zip(ASKED, TOLD, strict=True)]
    return {"turns": turns}


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": "x"}}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--full", choices=("queue", "refuse"), default="queue")
    parser.add_argument("--median", type=float, default=2.0, help="seconds")
    parser.add_argument("--scale", type=float, default=1.0, help="of all times")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    endpoint = Endpoint(args.slots, args.full, args.median, args.scale, args.seed)
    server = await serve(endpoint, args.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
