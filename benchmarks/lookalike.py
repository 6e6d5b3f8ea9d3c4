"""Are planted benchmark images found, and is nothing else? Altered VQA-RAD images among other pictures.

    python benchmarks/lookalike.py --data ../shared/data [--step 1]

Planted: each VQA-RAD image under each change alone and all of them at once, saved as JPEG. Not planted ("the rest"):
each VQA-RAD image against the *other* ones, upright, mirrored and upside down (other patients, same examination: the
hardest there is), and tiles of the figures of articles. The peer is the perceptual hash that the literature uses.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

from llavamed.imaging.decode import decode, glance
from llavamed.imaging.lookalike import SIDE, Gallery, phash
from llavamed.printing import table

HASH_BITS = (6, 10)  # two thresholds that are used with a 64-bit perceptual hash
Change = Callable[[Image.Image, random.Random], Image.Image]


def resized(image: Image.Image, rng: random.Random) -> Image.Image:
    factor = rng.uniform(0.35, 1.5)
    width, height = (max(64, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    """Five per cent of each side's length, taken off its two ends in a random share."""
    width, height = image.size
    left, top = (round(side * rng.uniform(0, 0.05)) for side in image.size)
    return image.crop((left, top, left + round(width * 0.95), top + round(height * 0.95)))


def regreyed(image: Image.Image, rng: random.Random) -> Image.Image:
    gamma, gain, offset = rng.uniform(0.6, 1.6), rng.uniform(0.7, 1.2), rng.uniform(-25, 25)
    curve = [max(0, min(255, round(255 * (i / 255) ** gamma * gain + offset))) for i in range(256)]
    return image.point(curve * len(image.getbands()))


def all_at_once(image: Image.Image, rng: random.Random) -> Image.Image:
    return resized(regreyed(cropped(image, rng), rng), rng)


def bordered(image: Image.Image, rng: random.Random) -> Image.Image:
    """A frame of one grey, as wide as 3-12 % of the picture on each side by itself."""
    width, height = image.size
    left, top, right, bottom = (round(side * rng.uniform(0.03, 0.12)) for side in (width, height, width, height))
    grey = rng.choice([(0, 0, 0), (255, 255, 255)])
    return ImageOps.expand(image.convert("RGB"), (left, top, right, bottom), grey)


def negative(image: Image.Image, _: random.Random) -> Image.Image:
    return ImageOps.invert(image.convert("RGB"))


CHANGES: dict[str, tuple[Change, tuple[int, int]]] = {  # name -> (change, from which JPEG quality to which)
    "recompressed": (lambda image, _: image, (25, 60)),
    "resized": (resized, (85, 95)),
    "crop of 5 %": (cropped, (85, 95)),
    "grey levels": (regreyed, (85, 95)),
    "all four": (all_at_once, (40, 75)),
    "border": (bordered, (40, 75)),
    "negative": (negative, (40, 75)),
}


def saved(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def looked_at(data: bytes) -> Image.Image:
    return glance(data, side=SIDE).grey


def tiles(data: Path) -> Iterator[Image.Image]:
    """Pieces of 400 pixels of the figures of real articles: photographs, drawings, charts."""
    files = [*data.glob("medicat/figures/*"), *data.glob("modality/*.png"), *data.glob("jats_packages/**/*.jpg")]
    for file in sorted(files):
        image = decode(file.read_bytes(), str(file))
        yield image
        for top in range(0, image.height - 400, 400):
            for left in range(0, image.width - 400, 400):
                yield image.crop((left, top, left + 400, top + 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--step", type=int, default=1, help="every n-th image alone")
    arguments = parser.parse_args()
    files = sorted((arguments.data / "vqa_rad/images").glob("*.jpg"))
    originals = [decode(file.read_bytes(), str(file)) for file in files]
    greys = [looked_at(file.read_bytes()) for file in files]
    hashes = [phash(grey) for grey in greys]
    gallery = Gallery(greys)
    chosen = range(0, len(files), arguments.step)

    def by_hash(grey: Image.Image, without: int | None = None) -> tuple[int, int]:
        own = phash(grey)
        return min(((own ^ h).bit_count(), i) for i, h in enumerate(hashes) if i != without)

    rows, looked_up, seconds = [], 0, 0.0
    for name, (change, (low, high)) in CHANGES.items():
        found, hashed = 0, [0] * len(HASH_BITS)
        for i in chosen:
            rng = random.Random(f"{name} {i}")
            grey = looked_at(saved(change(originals[i], rng), rng.randint(low, high)))
            began = time.perf_counter()
            match = gallery.find(grey)
            seconds += time.perf_counter() - began
            looked_up += 1
            found += match is not None and (match[0] == i or same(originals, match[0], i))
            bits, nearest = by_hash(grey)
            for n, most in enumerate(HASH_BITS):
                hashed[n] += bits <= most and (nearest == i or same(originals, nearest, i))
        rows.append([name, len(chosen), *(f"{100 * n / len(chosen):.1f}" for n in (found, *hashed))])
    turns: dict[str, Callable[[Image.Image], Image.Image]] = {
        "other VQA-RAD images": lambda image: image,
        "the same, mirrored": ImageOps.mirror,
        "the same, upside down": ImageOps.flip,
    }
    wrong_in_all, rest = 0, 0
    for name, turn in turns.items():
        wrong, hashed = 0, [0] * len(HASH_BITS)
        for i in chosen:
            grey = turn(greys[i])
            match = gallery.find(grey, without=i)
            if match is not None:
                wrong += 1
                print(f"taken for another: {name}, {files[i].name} for {files[match[0]].name}, {match[1]:.3f}")
            for n, most in enumerate(HASH_BITS):
                hashed[n] += by_hash(grey, i)[0] <= most
        rows.append([name, len(chosen), *(f"{100 * n / len(chosen):.1f}" for n in (wrong, *hashed))])
        wrong_in_all, rest = wrong_in_all + wrong, rest + len(chosen)
    wrong, count, hashed = 0, 0, [0] * len(HASH_BITS)
    for tile in tiles(arguments.data):
        grey = looked_at(saved(tile))
        wrong += gallery.find(grey) is not None
        for n, most in enumerate(HASH_BITS):
            hashed[n] += by_hash(grey)[0] <= most
        count += 1
    rows.append(["figures of articles", count, *(f"{100 * n / count:.2f}" for n in (wrong, *hashed))])
    table(["pictures", "n", "found, %", *(f"phash <= {bits} bits, %" for bits in HASH_BITS)], rows, False)
    wrong_in_all, rest = wrong_in_all + wrong, rest + count
    print(f"false positives on the rest: {wrong_in_all} of {rest} ({100 * wrong_in_all / rest:.3f} %)")
    print(f"{1000 * seconds / looked_up:.1f} ms a picture that is in a gallery of {len(files)}")


def same(images: list[Image.Image], a: int, b: int) -> bool:
    """VQA-RAD has some pictures twice."""
    return images[a].size == images[b].size and images[a].tobytes() == images[b].tobytes()


if __name__ == "__main__":
    main()
