"""How many compound figures `corpus/panel.py` cuts rightly: made of real pictures, so that the truth is known.

    python benchmarks/panels.py [--images ../shared/data/vqa_rad/images] [--figures 500] [--sheet out.png]

Radiographs, CT and MRI of VQA-RAD are laid out as figures are: rows and columns of equal or unequal panels, gutters of
2 to 30 pixels, white or black, letters inside, above or none, JPEG at the qualities of publishers. A cut is right if
every panel lies in its picture and holds it, in the right order. The same pictures alone, with a caption that claims
two to four panels, must stay whole. `--sheet` draws the first figures with their cuts.
"""

from __future__ import annotations

import argparse
import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from llavamed.corpus import panel

ROOT = Path(__file__).parents[2]


def compose(rng: random.Random, pictures: list[Image.Image]) -> tuple[Image.Image, list[panel.Box], str, int, bool]:
    """A figure, the boxes of its panels in reading order, its caption, the width of its gutters, if these are white."""
    rows, columns = rng.choice([(1, 2), (1, 3), (2, 1), (2, 2), (2, 2), (2, 3), (3, 2), (1, 4), (3, 3)])
    gutter, paper = rng.choice([2, 3, 4, 6, 8, 12, 20, 30]), rng.choice(["white", "white", "white", "black"])
    above = rng.random() < 0.25  # letters stand above their panels, else inside
    lettered, margin = rng.random() < 0.8, rng.choice([0, 0, 10, 40])
    head = 18 if above and lettered else 0
    widths = [rng.randint(150, 320) for _ in range(columns)] if rng.random() < 0.4 else [240] * columns
    heights = [rng.randint(150, 320) for _ in range(rows)] if rng.random() < 0.4 else [240] * rows
    size = (sum(widths) + gutter * (columns - 1) + 2 * margin, sum(heights) + (gutter + head) * rows + 2 * margin)
    figure = Image.new("RGB", size, paper)
    pen, boxes, top = ImageDraw.Draw(figure), [], margin
    for height in heights:
        left, top = margin, top + head
        for width in widths:
            picture = pictures[rng.randrange(len(pictures))].convert("RGB").resize((width, height))
            figure.paste(picture, (left, top))
            letter = "ABCDEFGHI"[len(boxes)]
            ink = "black" if paper == "white" else "white"
            if lettered:
                pen.text((left + 2, top - 14) if head else (left + 6, top + 4), letter, fill=ink if head else "white")
            boxes.append((left, top, left + width, top + height))
            left += width + gutter
        top += height + gutter
    out = io.BytesIO()
    figure.save(out, "JPEG", quality=rng.choice([75, 85, 92]))
    letters = "ABCDEFGHI"[: len(boxes)]
    style = rng.choice(
        [" ".join(f"({one}) Finding {one}." for one in letters), f"Findings ({letters[0]}-{letters[-1]})."]
    )
    return Image.open(io.BytesIO(out.getvalue())), boxes, style, gutter, paper == "white"


def is_right(grey_HW: np.ndarray, found: list[panel.Box], truth: list[panel.Box], white: bool) -> bool:
    """Each panel lies in its picture and holds 95 % of what is not paper there: a scan's own black margins on black
    paper belong to nobody."""
    if len(found) != len(truth):
        return False
    for (a, b, c, d), (left, top, right, bottom) in zip(found, truth, strict=True):
        if a < left - 2 or b < top - 2 or c > right + 2 or d > bottom + 2:
            return False
        ink = (grey_HW < 238) if white else (grey_HW > 40)
        if ink[b:d, a:c].sum() < 0.95 * ink[top:bottom, left:right].sum():
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, default=ROOT / "shared/data/vqa_rad/images")
    parser.add_argument("--figures", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    pictures = [Image.open(path).convert("L") for path in sorted(args.images.iterdir())]
    results: Counter[str] = Counter()
    by_gutter: dict[int, Counter[str]] = {}
    shown = []
    for _ in range(args.figures):
        figure, truth, caption, gutter, white = compose(rng, pictures)
        found = panel.split(np.asarray(figure.convert("L")), caption)
        boxes = [box for _, box in found.panels]
        grey_HW = np.asarray(figure.convert("L"))
        result = "right" if is_right(grey_HW, boxes, truth, white) else "wrong" if boxes else found.whole_because
        results[result] += 1
        by_gutter.setdefault(gutter, Counter())[result] += 1
        shown.append((figure, boxes, result))
    alone: Counter[str] = Counter()
    for picture in pictures:
        claimed = "ABCD"[: rng.randint(2, 4)]
        found = panel.split(np.asarray(picture), " ".join(f"({one}) Finding." for one in claimed))
        alone["cut" if found.panels else found.whole_because] += 1
    cut = results["right"] + results["wrong"]
    print(f"| figures of several pictures | {args.figures} |\n|---|---|")
    print(f"| cut | {cut} ({cut / args.figures:.3f}) |")
    print(f"| of them right | {results['right']} ({results['right'] / max(1, cut):.3f}) |")
    for reason in (panel.NO_GUTTERS, panel.COUNTS_DIFFER):
        print(f"| whole, {reason} | {results[reason]} |")
    print(f"| single pictures said to be several | {len(pictures)} |\n| of them cut | {alone['cut']} |")
    for gutter, counts in sorted(by_gutter.items()):
        print(
            f"| gutter of {gutter} pixels: right, wrong, whole | "
            f"{counts['right']}, {counts['wrong']}, {counts.total() - counts['right'] - counts['wrong']} |"
        )
    if args.sheet:
        draw(args.sheet, shown)


def draw(path: Path, shown: list[tuple[Image.Image, list[panel.Box], str]]) -> None:
    cards = [*[one for one in shown if one[2] == "wrong"][:6], *[one for one in shown if one[2] == "right"][:4]]
    cards += [one for one in shown if one[2] not in {"right", "wrong"}][:6]
    sheet = Image.new("RGB", (4 * 310, 310 * -(-len(cards) // 4)), "gray")
    for number, (figure, boxes, result) in enumerate(cards):
        marked = figure.convert("RGB")
        pen = ImageDraw.Draw(marked)
        for box in boxes:
            pen.rectangle(box, outline="red", width=4)
        marked.thumbnail((300, 280))
        at = (number % 4 * 310, number // 4 * 310)
        sheet.paste(marked, at)
        ImageDraw.Draw(sheet).text((at[0], at[1] + 290), result, fill="white")
    sheet.save(path)


if __name__ == "__main__":
    main()
