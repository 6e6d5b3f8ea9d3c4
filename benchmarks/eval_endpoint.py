"""An endpoint kept busy: our client against a simulated server, as a part of what an ideal client would get.

    python benchmarks/eval_endpoint.py [--requests 1500] [--slots 64] [--median 4.0] [--sigma 0.5]

The server is a process of its own that answers after a time drawn from a log-normal distribution, one draw a question.
It has so many places, and one of four ways with a request that finds none free:

    queue                     it waits in line, as in vLLM, SGLang or llama-server
    refuse                    status 429 with `Retry-After: 1`, as in `llavamed serve` and with hosted models
    refuse, no time named     status 429 alone
    refuse, and 2 % anyway    as `refuse`, and so many of the others too

The ideal client sends the next request in the instant in which a place becomes free: with the same times in the same
order this takes a time that is computed. Feeling the way at the start and running dry at the end are in ours.
Server and client share the machine: with short answers it is the processor that is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
from PIL import Image

from llavamed.engine.remote import RemoteEngine
from llavamed.engine.request import Request
from llavamed.records import user

WAYS: dict[str, tuple[dict[str, str], float]] = {  # headers of a refusal, and the share that is refused at any load
    "queue": ({}, 0.0),
    "refuse": ({"Retry-After": "1"}, 0.0),
    "refuse, no time named": ({}, 0.0),
    "refuse, and 2 % anyway": ({"Retry-After": "1"}, 0.02),
}
SEED = 0


def seconds_of(requests: int, median: float, sigma: float) -> list[float]:
    """How long each answer takes."""
    drawn = np.random.default_rng(SEED).lognormal(np.log(median), sigma, requests)
    return [float(value) for value in drawn]


def ideal(seconds: list[float], slots: int) -> float:
    """The time that all take, each begun when a place becomes free, in their order."""
    free = [0.0] * slots
    for one in seconds:
        heapq.heappush(free, heapq.heappop(free) + one)
    return max(free)


async def serve(way: str, slots: int, seconds: list[float]) -> None:
    """Speaks just enough HTTP. Prints its port, then answers until it is ended."""
    places, counted = asyncio.Semaphore(slots), {"busy": 0, "most": 0, "refused": 0}
    headers, share = WAYS[way]
    chance = random.Random(SEED)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = head.partition("content-length:")[2].split("\r\n")[0].strip()
                body = await reader.readexactly(int(length or 0))
                if head.startswith("get /v1/models"):
                    await reply(writer, 200, {"data": [{"id": "simulated", "object": "model"}]})
                elif head.startswith("get /counted"):
                    await reply(writer, 200, counted)
                elif way != "queue" and (places.locked() or chance.random() < share):
                    counted["refused"] += 1
                    await reply(writer, 429, {"error": {"message": "busy"}}, headers)
                else:
                    async with places:
                        counted["busy"] += 1
                        counted["most"] = max(counted["most"], counted["busy"])
                        number = json.loads(body)["messages"][-1]["content"][-1]["text"].split()[-1]
                        await asyncio.sleep(seconds[int(number)])
                        counted["busy"] -= 1
                    message = {"role": "assistant", "content": f"answer {number}"}
                    choice = {"index": 0, "finish_reason": "stop", "message": message}
                    head_of = {"id": "1", "object": "chat.completion", "created": 0, "model": "simulated"}
                    await reply(writer, 200, {**head_of, "choices": [choice]})
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def reply(
        writer: asyncio.StreamWriter, status: int, value: object, more: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(value).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(more or {})}
        head = "".join(f"{key}: {text}\r\n" for key, text in fields.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data)
        await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**20, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def requests_of(count: int) -> Iterator[Request]:
    """A small picture and a number; eleven questions about a picture, as in SLAKE."""
    for number in range(count):
        if number % 11 == 0:
            grey = np.random.default_rng(number).integers(0, 255, (160, 160, 1), dtype=np.uint8)
            image = Image.fromarray(np.repeat(grey, 3, axis=2))
        yield Request((user(f"question {number}", images=1),), (image,), max_new_tokens=8)


def measure(way: str, args: argparse.Namespace) -> tuple[float, float, int, int]:
    """Seconds, processor seconds of the client, the most under way at the server, refusals."""
    command = [sys.executable, __file__, "--serve", way, "--requests", str(args.requests), "--slots", str(args.slots)]
    command += ["--median", str(args.median), "--sigma", str(args.sigma)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            engine = RemoteEngine(url)
            began, worked = time.monotonic(), time.process_time()
            answers = dict(engine.each(requests_of(args.requests)))
            took, worked = time.monotonic() - began, time.process_time() - worked
            assert answers == {number: f"answer {number}" for number in range(args.requests)}
            with urllib.request.urlopen(url + "/counted") as reply:
                counted = json.load(reply)
            engine.close()
        finally:
            server.kill()
    return took, worked, counted["most"], counted["refused"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--median", type=float, default=4.0, help="seconds an answer takes")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the logarithm")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    seconds = seconds_of(args.requests, args.median, args.sigma)
    if args.serve:
        asyncio.run(serve(args.serve, args.slots, seconds))
        return
    best = ideal(seconds, args.slots)
    print(f"{args.requests} requests, {args.slots} places, {sum(seconds) / len(seconds):.2f} s an answer on average")
    print(f"ideal: {best:.1f} s, {args.requests / best:.1f} answers/s\n")
    print("| server | seconds | answers/s | of the ideal, % | most under way | refused | client's processor, ms each |")
    print("|---|---|---|---|---|---|---|")
    for way in WAYS:
        took, worked, most, refused = measure(way, args)
        cells = [f"{took:.1f}", f"{args.requests / took:.1f}", f"{100 * best / took:.1f}", most, refused]
        print(f"| {way} | {' | '.join(map(str, cells))} | {1000 * worked / args.requests:.1f} |", flush=True)


if __name__ == "__main__":
    main()
