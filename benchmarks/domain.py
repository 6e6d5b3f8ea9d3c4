"""Precision and recall of the domain rules (`corpus/domain.py`) on captions that were labelled by reading them.

    python benchmarks/domain.py [--shared ../shared/data] [--roco ROCO] [--half dev] [--reading third] [--errors]

The labels, their rules and where the captions are from stand in `tests/corpus/domain_labels.tsv`. `--roco` is a clone
of github.com/razorx89/roco-dataset; without it only the articles of the shared data are measured, which hold no chest
X-ray and no gross pathology. There were three readings; each half is told of all together and of each that it has.
Every caption of the ranges was read but for 65, so that wrong claims are as common as in such a list. Intervals are
Wilson's, 95 %. `--errors` prints what is wrong: for the dev half only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from llavamed.corpus import domain, jats
from llavamed.records import DOMAINS, Mention

LABELS = Path(__file__).parents[1] / "tests/corpus/domain_labels.tsv"
HALVES = ("dev", "held-out")
READINGS = ("first", "second", "third")


@dataclass(frozen=True)
class Label:
    source: str
    article: str
    figure: str
    domains: tuple[str, ...]
    plot: str
    half: str
    reading: str


@dataclass(frozen=True)
class Words:
    caption: str
    mentions: tuple[Mention, ...] = ()
    title: str = ""


def labels() -> list[Label]:
    lines = [line for line in LABELS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    rows = (line.split("\t") for line in lines[1:])
    return [Label(source, article, fig, tuple(found.split(",")), *rest) for source, article, fig, found, *rest in rows]


def shared_words(shared: Path) -> Iterator[tuple[tuple[str, str, str], Words]]:
    for path in [*shared.glob("jats_p*/*.*ml"), *shared.glob("jats_packages/*/*.xml")]:
        article = jats.parse_article(path.read_bytes(), path.name)
        for number, figure in enumerate(article.figures, 1):
            words = Words(f"{figure.group_caption} {figure.caption}".strip(), figure.mentions, article.title)
            yield ("shared", path.stem, figure.id or f"figure{number}"), words


def roco_words(roco: Path, wanted: set[str]) -> Iterator[tuple[tuple[str, str, str], Words]]:
    for source in wanted:
        for line in (roco / "data" / source.removeprefix("roco/") / "captions.txt").open(encoding="utf-8"):
            name, _, caption = line.rstrip("\n").partition("\t")
            yield (source, name, ""), Words(caption.strip())


def wilson(right: int, n: int) -> str:
    if n == 0:
        return "-"
    z, share = 1.96, right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return f"{share:.3f} ({max(0.0, middle - half):.2f}-{min(1.0, middle + half):.2f}), {right}/{n}"


def table(judged: list[tuple[Label, domain.Verdict]]) -> list[tuple[str, str, str]]:
    """(domain, precision, recall) of each domain, and of the flag for plots."""
    rows = []
    for name in DOMAINS:
        claimed = [label for label, verdict in judged if verdict.domain == name and "?" not in label.domains]
        if name != "other":  # "other" is no claim
            claimed += [label for label, verdict in judged if verdict.domain == name and "?" in label.domains]
        true = [verdict for label, verdict in judged if label.domains[0] == name]
        right = sum(name in label.domains for label in claimed)
        rows.append((name, wilson(right, len(claimed)), wilson(sum(v.domain == name for v in true), len(true))))
    clear = [(label.plot == "y", verdict.is_plot) for label, verdict in judged if label.plot in "yn"]
    hits = sum(truth and said for truth, said in clear)
    claimed_plots, plots = sum(said for _, said in clear), sum(truth for truth, _ in clear)
    return [*rows, ("is_plot", wilson(hits, claimed_plots), wilson(hits, plots))]


def judge(rows: list[Label], words: dict[tuple[str, str, str], Words]) -> list[tuple[Label, domain.Verdict]]:
    said = ((row, words[row.source, row.article, row.figure]) for row in rows)
    return [(row, domain.classify(told.caption, told.mentions, told.title)) for row, told in said]


def print_errors(rows: list[Label], words: dict[tuple[str, str, str], Words]) -> None:
    for row, verdict in judge(rows, words):
        if verdict.domain in row.domains or (verdict.domain == "other" and "?" in row.domains):
            continue
        print(f"{row.article} {row.figure}: {','.join(row.domains)} taken for {verdict.domain}", file=sys.stderr)
        print(f"    {words[row.source, row.article, row.figure].caption[:300]}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--roco", type=Path, help="a clone of github.com/razorx89/roco-dataset")
    parser.add_argument("--half", choices=HALVES, help="this half only")
    parser.add_argument("--reading", choices=READINGS, help="this reading only")
    parser.add_argument("--errors", action="store_true")
    args = parser.parse_args()
    rows = labels()
    words = dict(shared_words(args.shared)) if args.shared.is_dir() else {}
    if args.roco:
        words |= dict(roco_words(args.roco, {row.source for row in rows if row.source.startswith("roco/")}))
    known = [row for row in rows if (row.source, row.article, row.figure) in words]
    if args.errors:
        print_errors([row for row in known if row.half == "dev" and args.reading in (None, row.reading)], words)
    for half in [args.half] if args.half else HALVES:
        for readings in [(args.reading,)] if args.reading else [READINGS, *((name,) for name in READINGS)]:
            rows = [row for row in known if row.half == half and row.reading in readings]
            if not rows:
                continue
            unclear = sum("?" in row.domains for row in rows)
            print(f"\n{half}, {', '.join(readings)} reading: {len(rows)} captions, {unclear} of them do not tell\n")
            print("| domain | precision (95 %), n | recall (95 %), n |\n|---|---|---|")
            for name, precision, recall in table(judge(rows, words)):
                print(f"| {name} | {precision} | {recall} |")
    began = time.process_time()
    judge(known, words)
    print(f"\n{len(known)} figures told in {time.process_time() - began:.2f} s of processor time")


if __name__ == "__main__":
    main()
