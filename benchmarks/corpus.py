"""How fast articles become pairs, beside what others do, and in how much memory.

    pip install pubmed_parser==0.5.1 ImageHash
    python benchmarks/corpus.py --work /tmp/corpus-bench [--only parse,images,workers,memory,groups]

parse     articles a second, and the errors of each reader against a plain count of what is in the files;
          pubmed_parser's captions alone, and with its paragraphs, which is what gives it mentions at all
images    sha256, checks and perceptual hash of real JPEGs: by the scaled decode, and by decoding all of it
workers   the same corpus by one process and by two
memory    the peaks of builds of N articles, of 10 N and of 40 N, each several times
groups    the peak of joining unit indexes of many pairs, each with a picture and a caption of its own

The corpora are made of the real PLOS articles with radiographs under their figures' names. Rounds alternate, the best
of each counts.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lxml import etree
from PIL import Image

from llavamed.corpus import duplicates, store
from llavamed.corpus.jats import parse_article
from llavamed.imaging.decode import decode, glance
from llavamed.imaging.lookalike import phash
from llavamed.printing import table

HREF = "{http://www.w3.org/1999/xlink}href"
BUILD = """
import sys, time
from pathlib import Path
from llavamed.corpus.build import build
if __name__ == "__main__":
    began = time.perf_counter()
    made = build(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))
    seconds = time.perf_counter() - began
    print(made.counts["articles"], made.counts["pairs"], seconds)
"""

GROUPS = """
import re, sys, time
from pathlib import Path
import pandas  # which pyarrow imports where it is installed
from llavamed.corpus import store
def kib(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
parts = [file.read_bytes for file in sorted(Path(sys.argv[1]).iterdir())]
store.merge_indexes(parts[:2], Path(sys.argv[2]))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, began = kib("VmRSS"), time.process_time()
found = store.merge_indexes(parts, Path(sys.argv[2]))
print(before, kib("VmHWM"), time.process_time() - began, *(f"{n:,}" for n in found.values()))
"""


def best(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of processor time of each, the least of alternating rounds."""
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.process_time()
            function()
            least[name] = min(least[name], time.process_time() - began)
    return least


def parse(data: Path, rounds: int) -> None:
    import pubmed_parser

    logging.disable(logging.CRITICAL)
    files = sorted([*data.glob("jats_plos/*.xml"), *data.glob("jats_pmc/*ml")])

    def theirs(file: Path, paragraphs: bool = False) -> list[dict[str, Any]] | None:
        try:
            if paragraphs:
                pubmed_parser.parse_pubmed_paragraph(str(file))
            return pubmed_parser.parse_pubmed_caption(str(file)) or []
        except Exception:  # noqa: BLE001 - whatever it raises, the article is lost
            return None

    seconds = best(
        {
            "llavamed: captions, mentions, licence, identity": lambda: [
                parse_article(f.read_bytes(), f.name) for f in files
            ],
            "pubmed_parser: captions": lambda: [theirs(f) for f in files],
            "pubmed_parser: captions and paragraphs": lambda: [theirs(f, True) for f in files],
        },
        rounds,
    )
    found: list[list[tuple[str, list[str], str]] | None] = []
    peer: list[list[tuple[str, list[str], str]] | None] = []
    for file in files:
        article = parse_article(file.read_bytes(), file.name)
        found.append([(f.id, list(f.graphics), f.caption) for f in article.figures])
        rows = theirs(file)
        row = rows and [(r["fig_id"], [r["graphic_ref"]] if r["graphic_ref"] else [], r["fig_caption"]) for r in rows]
        peer.append(rows if rows is None else row or [])
    ours_wrong, theirs_wrong = errors(files, found), errors(files, peer)
    ours = seconds["llavamed: captions, mentions, licence, identity"]
    rows_out = [
        [name, f"{len(files) / s:.0f}", f"{s / ours:.2f}", *(theirs_wrong if "pubmed" in name else ours_wrong)]
        for name, s in seconds.items()
    ]
    columns = ["reader", "articles/s", "ours / its", "articles lost", "figures lost", "wrong graphic", "caption cut"]
    table(columns, rows_out, False, f"parse: {len(files)} articles, one process, best of {rounds}")


def errors(files: Iterable[Path], found: Iterable[list[tuple[str, list[str], str]] | None]) -> list[int]:
    """[articles lost, figures lost, figures whose graphic is not one that they name, captions of which text is
    missing], against the elements of the file as they stand there."""
    lost_articles = lost = wrong = cut = 0
    for file, rows in zip(files, found, strict=True):
        figures = etree.fromstring(file.read_bytes(), etree.XMLParser(remove_comments=True)).findall(".//{*}fig")
        lost_articles += rows is None
        lost += len(figures) - len(rows or [])
        for figure, (_, graphics, caption) in zip(figures, rows or [], strict=False):
            hrefs = {g.get(HREF) for g in figure.iter("{*}graphic")}
            wrong += bool(hrefs) and not (graphics and set(graphics) <= hrefs)
            said = figure.find("{*}caption")
            if said is not None:
                for apart in [*said.iter("{*}permissions", "{*}tex-math", "{*}fn", "{*}object-id")]:
                    apart.clear(keep_tail=True)
                cut += len(letters(caption or "")) < len(letters("".join(said.itertext())))
    return [lost_articles, lost, wrong, cut]


def letters(text: str) -> str:
    return re.sub(r"\W", "", text)


def images(data: Path, rounds: int) -> None:
    import imagehash

    sets = {
        "radiographs (VQA-RAD)": sorted(data.glob("vqa_rad/images/*.jpg")),
        "figures (articles, MedICaT)": sorted([*data.glob("jats_packages/*/*.jpg"), *data.glob("medicat/**/*.jpg")]),
    }
    rows = []
    for name, files in sets.items():
        read = [file.read_bytes() for file in files]
        read = [one for one in read if one.startswith(b"\xff\xd8")]
        pixels = sum(glance(one).width * glance(one).height for one in read) / len(read) / 1e6

        def scaled(read: list[bytes] = read) -> list[tuple[str, int]]:
            return [(hashlib.sha256(one).hexdigest(), phash(glance(one).grey)) for one in read]

        def whole(read: list[bytes] = read) -> list[tuple[str, int]]:
            return [(hashlib.sha256(one).hexdigest(), phash(decode(one).convert("L"))) for one in read]

        def usual(read: list[bytes] = read) -> list[tuple[str, str]]:
            import io

            return [(hashlib.sha256(b).hexdigest(), str(imagehash.phash(Image.open(io.BytesIO(b))))) for b in read]

        seconds = best({"scaled": scaled, "whole": whole, "usual": usual}, rounds)
        bits = [(a[1] ^ b[1]).bit_count() for a, b in zip(scaled(), whole(), strict=True)]
        rows.append([
            name, len(read), f"{pixels:.2f}", *(f"{len(read) / s:.0f}" for s in seconds.values()),
            f"{seconds['whole'] / seconds['scaled']:.2f}", f"{seconds['usual'] / seconds['scaled']:.2f}",
            f"{sum(bits) / len(bits):.2f}",
        ])  # fmt: skip
    columns = ["JPEGs", "n", "megapixels", "scaled decode/s", "full decode/s", "imagehash/s", "scaled / full",
               "scaled / imagehash", "bits that differ"]  # fmt: skip
    table(columns, rows, False, f"images: check, sha256 and perceptual hash, one process, best of {rounds}")


def articles(data: Path, out: Path, count: int) -> Path:
    """`count` articles in folders: the PLOS articles over and over, with VQA-RAD images (links) as their figures."""
    if out.is_dir():
        return out
    sources = sorted(data.glob("jats_plos/*.xml"))
    pool = out.parent / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    for file in data.glob("vqa_rad/images/*.jpg"):
        if not (pool / file.name).exists():
            shutil.copy(file, pool / file.name)
    pictures = sorted(pool.glob("*.jpg"))
    at = 0
    for number in range(count):
        source = sources[number % len(sources)]
        folder = out / f"a{number:06d}"
        folder.mkdir(parents=True)
        xml = source.read_bytes()
        doi = f"10.1371/copy.{number}".encode()
        own = re.sub(rb"10\.1371/journal\.[a-z]+\.\d+(?=</article-id>)", doi, xml)
        (folder / f"a{number:06d}.xml").write_bytes(own)
        for figure in parse_article(xml).figures:
            for href in figure.graphics:
                target = folder / f"{href.rpartition('/')[2]}.jpg"
                if not target.exists():
                    os.link(pictures[at % len(pictures)], target)
                at += 1
    return out


def built(source: Path, work: Path, workers: int) -> tuple[int, int, float, int, int]:
    """(articles, pairs, seconds, peak KiB of the parent, of its largest child) of a build in a process of its own."""
    script, out = work / "build.py", work / "out"
    script.write_text(BUILD)
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(script), str(source), str(out), str(workers)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    peaks: dict[int, int] = {}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        while running.poll() is None:
            peaks |= peak_kib(running.pid)
            time.sleep(0.1)
        assert running.stdout is not None
        count, pairs, seconds = running.stdout.read().split()
    own = peaks.pop(running.pid)
    return int(count), int(pairs), float(seconds), own, max(peaks.values(), default=0)


def peak_kib(parent: int) -> dict[int, int]:
    """The largest memory that a process and those that came of it had so far, as Linux tells it: getrusage counts a
    child's copy of its parent before it becomes another program."""
    peaks, parents = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        if "VmHWM" in lines:
            peaks[int(lines["Pid"])] = int(lines["VmHWM"].split()[0])
            parents[int(lines["Pid"])] = int(lines["PPid"])
    found = {parent} & peaks.keys()
    while more := {pid for pid, of in parents.items() if of in found} - found:  # workers are forked by a helper
        found |= more
    return {pid: peaks[pid] for pid in found}


def workers(data: Path, work: Path, count: int, rounds: int) -> None:
    source = articles(data, work / f"articles-{count}", count)
    seconds = {1: float("inf"), 2: float("inf")}
    pairs = 0
    for _ in range(rounds):
        for n in seconds:
            _, pairs, taken, _, _ = built(source, work, n)
            seconds[n] = min(seconds[n], taken)
    rows = [
        [n, f"{s:.1f}", f"{count / s:.1f}", f"{pairs / s:.0f}", f"{seconds[1] / s:.2f}"] for n, s in seconds.items()
    ]
    columns = ["processes", "seconds", "articles/s", "pairs/s", "times one"]
    table(columns, rows, False, f"workers: {count} articles, {pairs} pairs, the whole build, best of {rounds}")


def memory(data: Path, work: Path, count: int, times: Iterable[int], rounds: int) -> None:
    rows = []
    for n in (more * count for more in times):
        runs = [built(articles(data, work / f"articles-{n}", n), work, 2) for _ in range(rounds)]
        peaks = ([run[at] / 1024 for run in runs] for at in (3, 4))
        rows.append(
            [*runs[0][:2], f"{min(run[2] for run in runs):.0f}", *(f"{min(p):.0f}-{max(p):.0f}" for p in peaks)]
        )
    columns = ["articles", "pairs", "seconds", "MiB, parent", "MiB, largest worker"]
    table(columns, rows, False, f"memory: two processes, {rounds} runs each")


def groups(work: Path, counts: Iterable[int]) -> None:
    rows = []
    for n in counts:
        folder = unit_indexes(work / f"units-{n}", n)
        script = work / "groups.py"
        script.write_text(GROUPS)
        command = [sys.executable, str(script), str(folder), str(work / "index.parquet")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        before, peak, seconds, found = done.stdout.split(maxsplit=3)
        more = (int(peak) - int(before)) * 1024
        rows.append([f"{n:,}", f"{float(seconds):.1f}", f"{more / 2**20:.0f}", f"{more / n:.0f}", found.strip()])
    table(["pairs", "seconds", "MiB more at the peak", "bytes a pair", "groups"], rows, False, "groups: one process")


def unit_indexes(folder: Path, count: int) -> Path:
    """Indexes of units of 325 pairs: smooth pictures, of which every tenth is a copy of one of the unit before it, and
    captions of words, one in ten a copy too."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    before = None
    for start in range(0, count, 325):
        size = min(325, count - start)
        smooth = [Image.fromarray(one).resize((16, 16)) for one in rng.normal(128, 40, (size, 6, 6)).astype(np.float32)]
        looks = np.stack([np.asarray(one).clip(0, 255).astype(np.uint8).ravel() for one in smooth])
        hashes = rng.integers(0, 1 << 63, size, np.uint64)
        minima = rng.integers(0, 1 << 32, (size, duplicates.MINIMA), np.uint32)
        if before is not None:
            for mine, theirs in zip((looks, hashes, minima), before, strict=True):
                mine[::10] = theirs[: len(mine[::10])]
        before = looks, hashes, minima
        found = {
            "key": [f"PMC{at}-1_F1" for at in range(start, start + size)],
            "sha256": [hashlib.sha256(look.tobytes()).hexdigest() for look in looks],
            "phash": [f"{int(one):016x}" for one in hashes],
            store.MINHASH: minima.tolist(),
            store.LOOK: [look.tobytes() for look in looks],
        }
        rest = {name: [None] * size for name in store._UNIT_SCHEMA.names if name not in found}
        pq.write_table(pa.table({**rest, **found}, schema=store._UNIT_SCHEMA), folder / f"{start:09d}.parquet")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("corpus-bench"))
    parser.add_argument("--only", default="parse,images,workers,memory,groups")
    parser.add_argument("--articles", type=int, default=800, help="of the comparison of workers")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 40], help="a quarter of --articles, for memory")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for what in arguments.only.split(","):
        if what == "parse":
            parse(arguments.data, arguments.rounds)
        elif what == "images":
            images(arguments.data, arguments.rounds)
        elif what == "workers":
            workers(arguments.data, arguments.work, arguments.articles, min(3, arguments.rounds))
        elif what == "memory":
            memory(arguments.data, arguments.work, arguments.articles // 4, arguments.times, min(3, arguments.rounds))
        elif what == "groups":
            groups(arguments.work, (12_000, 50_000, 200_000))
        else:
            parser.error(f"--only {what}: give parse, images, workers, memory, groups")


if __name__ == "__main__":
    main()
