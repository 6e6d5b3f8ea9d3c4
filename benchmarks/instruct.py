"""The generation engine against an endpoint with the faults of a real one: throughput, memory, twenty kills.

    python benchmarks/instruct.py [throughput] [memory] [kill] [--records 10000] [--full queue|refuse] [--scale 1]
    [--memory-records 1000 10000] [--out DIR]

Everything is the command as a user runs it (`llavamed instruct generate CORPUS --teacher URL`), in a process of its
own, against `benchmarks/endpoint.py` in another, over HTTP: 64 places, median 2 s, and its five kinds of faults.

throughput  Records a second against what an ideal caller would have reached with the same faults (endpoint.py says what
            that is), over the whole run, its slow start and its last straggler included, and over the middle: from the
            5th to the 95th of 100 answers. Beside it the way of LLaVA-Med's script, restated: batches of three are
            gathered, an error loses the batch and waits six seconds, three rounds over what is missing. Hung calls
            are cut after 30 s for it (it had no limit), and its rate is taken from fewer records. On a machine that has
            other work, `--scale 4` makes all times of the endpoint four times as long.
memory      Peak memory of the process with 1,000 and with 10,000 records, which must not be a tenth more. Times are
            scaled down.
kill        kill -9 at twenty random moments, then a run to the end. Every record must be there once, no question may
            stand in the journal twice, and of the calls that the endpoint counted no more may have left nothing behind
            (no answer, no fault) than were under way, by its count, when the process was stopped and killed, and three
            a kill that had just ended and were not yet read.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
from PIL import Image

from llavamed.corpus.store import CorpusWriter
from llavamed.demo.truth import sample
from llavamed.demo.wording import tell
from llavamed.instruct import answer
from llavamed.manifest import Manifest
from llavamed.records import Mention, Pair, read_conversations, read_jsonl

ENDPOINT, PEAK = (Path(__file__).with_name(name) for name in ("endpoint.py", "peak.py"))
ORIGINAL_RECORDS, BATCH, ROUNDS, PENALTY_SECONDS, HANG_SECONDS = 180, 3, 3, 6.0, 30.0
MEMORY_RECORDS, MEMORY_SCALE = (1000, 10_000), 0.1
KILLS, KILL_RECORDS, KILL_SCALE = 20, 3000, 0.5


def make_corpus(folder: Path, count: int) -> Path:
    """Phantom pairs with a small grey image; each caption is another one. One from an earlier run is used again."""
    if (folder / "manifest.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng, grey = np.random.default_rng(0), io.BytesIO()
    Image.new("L", (64, 64), 120).save(grey, format="PNG")
    with CorpusWriter(folder) as writer:
        for number in range(count):
            truth = sample(rng)
            told = tell(truth, "Figure 1", rng)
            key = f"pair-{number:06d}"
            mentions = tuple(Mention(sentence) for sentence in told.sentences)
            caption = f"{told.caption} Case {number}."
            pair = Pair(key, f"{key}.png", caption, "Figure 1", mentions, licence="CC-BY-4.0", domain=truth.domain)
            writer.add(pair, grey.getvalue())
    Manifest("corpus", {"count": count}).write(folder)
    return folder


@contextmanager
def endpoint(**options: object) -> Iterator[str]:
    """The URL of an endpoint in a process of its own."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen([sys.executable, str(ENDPOINT), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats", timeout=30) as reply:
        body: dict[str, Any] = json.load(reply)
    return body


def command(corpus: Path, out: Path, url: str) -> list[str]:
    options = ["--teacher", url, "--teacher-model", "simulated"]
    return [sys.executable, "-m", "llavamed", "instruct", "generate", str(corpus), "--out", str(out), *options]


def start(corpus: Path, out: Path, url: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(command(corpus, out, url), stdout=file, stderr=file)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait():
        raise SystemExit(log.read_text(errors="replace")[-3000:])


def peak_kib(command: list[str]) -> int:
    done = subprocess.run([sys.executable, str(PEAK), *command], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def check_once(out: Path, count: int) -> None:
    ids = [conversation.id for conversation in read_conversations(out / "instruct.jsonl")]
    if len(ids) != count or len(set(ids)) != count:
        raise SystemExit(f"{out}: {len(ids)} records, {len(set(ids))} different, {count} were asked for")


def table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


# --- throughput ----------------------------------------------------------------------------------------------------


def throughput(work: Path, count: int, full: str, scale: float) -> bool:
    corpus = make_corpus(work / f"corpus-{count}", count)
    out = work / f"throughput-{count}-{full}-{scale:g}"
    shutil.rmtree(out, ignore_errors=True)
    # at the same time, for it waits most of the time: three calls at once against an endpoint of its own
    with (
        endpoint(full=full, scale=scale) as url,
        endpoint(full=full, scale=scale) as other,
        ThreadPoolExecutor() as beside,
    ):
        original_ends = beside.submit(asyncio.run, original(other, ORIGINAL_RECORDS, scale))
        finish(start(corpus, out, url, work / "log"), work / "log")
        ours = stats(url)
        original_ends.result()
        theirs = stats(other)
    check_once(out, count)
    rows: list[tuple[object, ...]] = []
    ratio = rate(ours) / rate(theirs)
    for name, found in (("llavamed", ours), ("batches of three, three rounds", theirs)):
        rows.append(
            (
                name,
                f"{found['records']:,}",
                f"{sum(found['calls'].values()):,}",
                found["most"],
                f"{found['seconds']:.0f}",
                f"{rate(found):.2f}",
                f"{100 * found['ideal_seconds'] / found['seconds']:.1f} %",
                f"{100 * 0.9 * found['ideal_seconds'] / found['middle_seconds']:.1f} %",
                f"{ratio:.1f}" if found is ours else 1,
            )
        )
    shares = ("of ideal, whole run", "of ideal, middle", "ratio")
    table(("how", "records", "calls", "most at once", "seconds", "records/s", *shares), rows)
    print(f"what became of our calls: {ours['calls']}; endpoint full: {full}", file=sys.stderr)
    return bool(ours["ideal_seconds"] / ours["seconds"] >= 0.95)


def rate(found: dict[str, Any]) -> float:
    return float(found["records"] / found["seconds"])


async def original(url: str, count: int, scale: float) -> None:
    """The way of LLaVA-Med's script: batches of three, each gathered; an error loses the batch; three rounds."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=HANG_SECONDS * scale)
    missing = [f"Caption of case {number}." for number in range(count)]

    async def one(caption: str) -> str:
        messages: Any = [{"role": "user", "content": caption}]
        reply = await client.chat.completions.create(model="simulated", messages=messages)
        return reply.choices[0].message.content or ""

    for _ in range(ROUNDS):
        left: list[str] = []
        for first in range(0, len(missing), BATCH):
            batch = missing[first : first + BATCH]
            try:
                texts = await asyncio.gather(*(one(caption) for caption in batch))
            except openai.OpenAIError:
                await asyncio.sleep(PENALTY_SECONDS * scale)
                texts = ["" for _ in batch]
            left += [c for c, text in zip(batch, texts, strict=True) if answer.read(text) is None]
        missing = left
    await client.close()


# --- memory --------------------------------------------------------------------------------------------------------


def memory(work: Path, counts: Sequence[int]) -> bool:
    peaks = []
    for count in counts:
        corpus = make_corpus(work / f"corpus-{count}", count)
        with endpoint(scale=MEMORY_SCALE) as url:
            peaks.append(peak_kib(command(corpus, work / f"memory-{count}", url)))
        check_once(work / f"memory-{count}", count)
    rows: list[tuple[object, ...]] = []
    for number, (count, kib) in enumerate(zip(counts, peaks, strict=True)):
        more = 1024 * (kib - peaks[number - 1]) / (count - counts[number - 1]) if number else None
        rows.append(
            (f"{count:,}", f"{kib / 1024:.1f}", f"{kib / peaks[0]:.3f}", "-" if more is None else f"{more:,.0f}")
        )
    table(("records", "peak memory, MiB", "ratio", "bytes for each record more"), rows)
    return max(peaks) < 1.1 * peaks[0]


# --- kill ----------------------------------------------------------------------------------------------------------


def kill(work: Path) -> bool:
    corpus, out, rng = make_corpus(work / "corpus-kill", KILL_RECORDS), work / "kill", random.Random(0)
    with endpoint(scale=KILL_SCALE) as url:
        kills = under_way = 0
        while kills < KILLS:
            before = stats(url)["begun"]
            process = start(corpus, out, url, work / "log")
            while stats(url)["begun"] == before and process.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 2.0))
            if process.poll() is not None:
                raise SystemExit(f"ended after {kills} kills\n{(work / 'log').read_text(errors='replace')[-3000:]}")
            process.send_signal(signal.SIGSTOP)  # so that the count is that of the moment
            under_way += stats(url)["under_way"]
            process.kill()
            process.wait()
            kills += 1
            while stats(url)["under_way"]:  # what the dead process has left there
                time.sleep(0.02)
        finish(start(corpus, out, url, work / "log"), work / "log")
        found = stats(url)
    check_once(out, KILL_RECORDS)
    rows = list(read_jsonl(out / "journal.jsonl"))
    requests = Counter(row["request"] for row in rows if "answer" in row)
    right = sum(answer.read(row["answer"]) is not None for row in rows if "answer" in row)
    calls = Counter(found["calls"])
    faults = sum(calls[name] for name in ("refused", "error", "hang", "cut"))
    nothing_left = found["begun"] - faults - requests.total()
    table(
        ("what", "number"),
        [
            ("kills -9", kills),
            ("records asked for", f"{KILL_RECORDS:,}"),
            ("records there, each once", f"{right:,}"),
            ("questions in the journal twice", sum(number > 1 for number in requests.values())),
            ("calls that the endpoint counted", f"{found['begun']:,}"),
            ("of them answered, and in the journal", f"{requests.total():,}"),
            ("of these in another form, so asked again", requests.total() - right),
            ("of them the endpoint's faults (refused, failed, hung, cut)", faults),
            ("of them neither: paid for, perhaps, and lost", nothing_left),
            ("calls under way at the kills", under_way),
        ],
    )
    print(f"what became of the calls: {dict(calls)}", file=sys.stderr)
    return right == KILL_RECORDS and max(requests.values()) == 1 and nothing_left <= under_way + 3 * KILLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="throughput | memory | kill")
    parser.add_argument("--records", type=int, default=10_000, help="of the throughput")
    parser.add_argument("--full", choices=("queue", "refuse"), default="queue", help="what the endpoint does when full")
    parser.add_argument("--scale", type=float, default=1.0, help="of the endpoint's times in the throughput")
    parser.add_argument("--memory-records", type=int, nargs="+", default=MEMORY_RECORDS, help="of the memory, rising")
    parser.add_argument("--out", type=Path, help="keep the folders here, and use a corpus that is there")
    args = parser.parse_args()
    work = args.out or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    proofs = {
        "throughput": lambda work: throughput(work, args.records, args.full, args.scale),
        "memory": lambda work: memory(work, args.memory_records),
        "kill": kill,
    }
    good = [proofs[part](work) for part in args.parts or proofs]
    if args.out is None:
        shutil.rmtree(work)
    if not all(good):
        raise SystemExit("a bound was missed")


if __name__ == "__main__":
    main()
