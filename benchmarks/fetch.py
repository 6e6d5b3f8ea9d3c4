"""Fetch a synthetic bucket from a server that fails, kill the fetch at random moments, and compare the trees.

    python benchmarks/fetch.py [--articles 20000] [--kills 10] [--out DIR]

The server (`faulty_bucket.py`, a process of its own) drops 2 % of the connections, answers 5 % with 503, cuts 1 %
short and flips a bit in 1 %. The bucket is fetched once without interruption and once under kill -9 at random shares of
the work, and both trees must be the one that the bucket says, file by file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faulty_bucket import Bucket

FAULTS = ("0.02", "0.05", "0.01", "0.01")
NOT_COMPARED = {"manifest.json", "report.html"}  # they say when, and how many requests it took


def tree(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_COMPARED)
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes(), usedforsecurity=False).hexdigest() for p in paths}


def folders(out: Path) -> int:
    return sum(name.startswith("PMC") for name in os.listdir(out)) if out.is_dir() else 0


def command(ids: Path, out: Path, url: str) -> list[str]:
    where = ["--ids", str(ids), "--out", str(out), "--base-url", url]
    return [sys.executable, "-m", "llavamed", "corpus", "fetch", *where]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--out", type=Path, help="keep the trees here")
    args = parser.parse_args()
    out, rng = args.out or Path(tempfile.mkdtemp()), random.Random(0)
    bucket = Bucket(args.articles)
    out.mkdir(parents=True, exist_ok=True)
    ids = out / "ids.txt"
    ids.write_text("".join(f"PMC{i}\n" for i in bucket.ids()))
    script = Path(__file__).with_name("faulty_bucket.py")
    options = ["--articles", str(args.articles), "--port", str(args.port), "--faults", *FAULTS]
    server = subprocess.Popen([sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    try:
        began = time.monotonic()
        subprocess.run(command(ids, out / "straight", url), check=True, stdout=subprocess.DEVNULL)
        straight = time.monotonic() - began
        # random shares of the work, not random seconds: the machine may be twice as fast the second time
        whole = len(bucket.wanted())
        for number, share in enumerate(sorted(rng.uniform(0, 0.98) for _ in range(args.kills)), 1):
            process = subprocess.Popen(command(ids, out / "killed", url), stdout=subprocess.DEVNULL)
            while process.poll() is None and folders(out / "killed") < share * whole:
                time.sleep(0.2)
            time.sleep(rng.uniform(0, 1))
            if process.poll() is not None:
                raise SystemExit(f"ended before kill {number}; give more --articles")
            process.kill()
            process.wait()
            print(f"kill {number}: {folders(out / 'killed'):,} articles there", file=sys.stderr)
        subprocess.run(command(ids, out / "killed", url), check=True, stdout=subprocess.DEVNULL)
    finally:
        server.kill()
    trees = [tree(out / name) for name in ("straight", "killed")]
    articles = {path: digest for path, digest in trees[0].items() if path.startswith("PMC")}
    expected = bucket.expected()
    traffic = json.loads((out / "straight" / "manifest.json").read_text())["extra"]["traffic"]
    rows = [
        ("articles in the bucket", "20,000", f"{args.articles:,}"),
        ("files fetched, every MD5 as the bucket says", f"{len(expected):,}", f"{len(articles):,}"),
        ("the tree is the one expected", "yes", "yes" if articles == expected else "NO"),
        ("requests, of them tried again", "-", f"{traffic['requests']:,}, {traffic['retries']:,}"),
        ("minutes, articles/s", "-", f"{straight / 60:.1f}, {args.articles / straight:.0f}"),
        ("kills -9", "10", str(args.kills)),
        ("tree after the kills", "identical", "identical" if trees[0] == trees[1] else "DIFFERENT"),
    ]
    print("| what | asked | measured |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if args.out is None:
        shutil.rmtree(out)
    if articles != expected or trees[0] != trees[1]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
