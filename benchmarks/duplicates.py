"""Are copies grouped, and are other plots left alone? Pictures of articles and drawn plots, each with altered copies.

    python benchmarks/duplicates.py --data ../shared/data [--plots 1500]

Copies: every picture saved again under each change of `benchmarks/lookalike.py`, beside its original. Others: plots
that are drawn alike (the same axes, another course) and VQA-RAD's radiographs, none of them a copy of another. The
peer is the 64-bit perceptual hash within 6 bits, groups chained, as is usual. Then the time, and how it grows, of plots
and of blank pictures.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from lookalike import CHANGES, saved
from PIL import Image, ImageDraw

from llavamed.corpus.duplicates import NEAR_BITS, Groups, image_groups
from llavamed.imaging.decode import decode, glance
from llavamed.imaging.lookalike import miniature, phash
from llavamed.printing import table

_SIZE = (600, 450)
Looks = tuple[np.ndarray, np.ndarray]  # hashes (n,), miniatures (n, 256)


def _axes() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    pen.line([(60, 20), (60, 400), (580, 400)], fill="black", width=2)
    return image, pen


def survival(rng: random.Random) -> Image.Image:
    image, pen = _axes()
    for colour in ("red", "blue"):
        x, y = 60, 25
        while x < 570:
            to_x, to_y = x + rng.randint(10, 50), min(395, y + rng.randint(3, 40))
            pen.line([(x, y), (to_x, y), (to_x, to_y)], fill=colour, width=2)
            x, y = to_x, to_y
    return image


def roc(rng: random.Random) -> Image.Image:
    """A classifier of 40 scores, by steps."""
    image, pen = _axes()
    pen.line([(60, 400), (580, 20)], fill="grey")
    scores = sorted(
        [(rng.gauss(rng.uniform(0.3, 2), 1), 1) for _ in range(20)] + [(rng.gauss(0, 1), 0) for _ in range(20)]
    )
    at = [60.0, 400.0]
    points = [tuple(at)]
    for _, is_case in reversed(scores):
        at[is_case] += -19 if is_case else 26
        points.append(tuple(at))
    pen.line(points, fill="blue", width=3)
    return image


def bars(rng: random.Random) -> Image.Image:
    image, pen = _axes()
    for x in range(100, 560, 115):
        pen.rectangle((x, 400 - rng.randint(60, 350), x + 70, 400), fill=rng.choice(["red", "blue", "grey", "black"]))
    return image


def forest(rng: random.Random) -> Image.Image:
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    pen.line([(400, 20), (400, 430)], fill="black")
    for y in range(30, 426, 33):
        x, half = 400 + rng.randint(-120, 120), rng.randint(10, 60)
        pen.line([(x - half, y), (x + half, y)], fill="black")
        pen.rectangle((x - 4, y - 4, x + 4, y + 4), fill="black")
        pen.text((20, y - 5), f"Study {rng.randint(1, 99)} et al. 20{rng.randint(0, 26):02d}", fill="black")
    return image


PLOTS: dict[str, Callable[[random.Random], Image.Image]] = {
    "survival curves": survival, "ROC curves": roc, "bar charts": bars, "forest plots": forest
}  # fmt: skip


def looks(files: list[bytes]) -> Looks:
    seen = [glance(data) for data in files]
    return np.array([phash(one.grey) for one in seen], np.uint64), np.stack([miniature(one) for one in seen])


def grouped(found: Looks) -> np.ndarray:
    return image_groups(np.arange(len(found[0])), *found)


def by_hash(found: Looks) -> np.ndarray:
    hashes = found[0]
    near = [
        (a, b)
        for a, b in combinations(range(len(hashes)), 2)
        if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= NEAR_BITS
    ]
    groups = Groups(len(hashes))
    groups.join_all(np.array(near, np.int64).reshape(-1, 2))
    return groups.names()


def said(groups: np.ndarray) -> str:
    inside = groups[groups >= 0]
    return f"{len(inside)}, largest {np.bincount(inside).max() if len(inside) else 0}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--plots", type=int, default=1500, help="of each kind, for the time")
    arguments = parser.parse_args()
    radiographs = [file.read_bytes() for file in sorted((arguments.data / "vqa_rad/images").glob("*.jpg"))]
    figures = [*arguments.data.glob("medicat/figures/*"), *arguments.data.glob("jats_packages/**/*.jpg")]
    drawn = {name: [saved(draw(random.Random(n))) for n in range(300)] for name, draw in PLOTS.items()}
    pictures = radiographs[::3] + [file.read_bytes() for file in sorted(figures)]
    pictures += [data for plots in drawn.values() for data in plots[:40]]
    rows = []
    originals = looks(pictures)
    for name, (change, (low, high)) in CHANGES.items():
        rngs = [random.Random(f"{name} {n}") for n in range(len(pictures))]
        copies = looks([saved(change(decode(d), r), r.randint(low, high)) for d, r in zip(pictures, rngs, strict=True)])
        both = [(np.array(h), np.stack(m)) for h, m in zip(*(zip(*two) for two in zip(originals, copies)))]  # noqa: B905
        rows.append([name, len(both), *(f"{sum(way(one)[1] == 0 for one in both)}" for way in (grouped, by_hash))])
    table(["copies of", "n", "grouped with the original", "by hash"], rows, False)
    rows = []
    for name, files in {**drawn, "VQA-RAD": radiographs}.items():
        found = looks(files)
        rows.append([name, len(files), said(grouped(found)), said(by_hash(found))])
    table(["others", "n", "in groups", "by hash, chained"], rows, False)
    many = [draw(random.Random(n)).reduce(7).convert("L") for draw in PLOTS.values() for n in range(arguments.plots)]
    small = np.stack([np.asarray(one.resize((16, 16), Image.Resampling.HAMMING), np.uint8).ravel() for one in many])
    hashes = np.array([phash(one) for one in many], np.uint64)
    mixed = np.random.default_rng(0).permutation(len(many))
    sets = {f"plots of four layouts, {part}": (hashes[at], small[at])
            for part, at in (("a quarter", mixed[::4]), ("half", mixed[::2]), ("all", mixed))}  # fmt: skip
    sets["survival curves"] = hashes[: arguments.plots], small[: arguments.plots]
    sets["blank"] = np.zeros_like(hashes), np.full_like(small, 255)
    rows = []
    for name, found in sets.items():
        began = time.perf_counter()
        grouped(found)
        seconds, count = time.perf_counter() - began, len(found[0])
        rows.append([name, f"{count:,}", f"{seconds:.2f}", f"{1000 * seconds / count:.3f}"])
    table(["pictures", "n", "seconds", "ms a picture"], rows, False)


if __name__ == "__main__":
    main()
