"""Groups of pictures and captions that say the same, against a comparison of all."""

from __future__ import annotations

import hashlib
import io
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.corpus import duplicates
from llavamed.corpus.columns import Column
from llavamed.corpus.duplicates import LEAST_WORDS, MINIMA, NEAR_BITS, NEAR_LOOKS, image_groups, minhash
from llavamed.imaging.decode import Glance, glance
from llavamed.imaging.lookalike import miniature, phash

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from duplicates import survival

WORDS = [f"word{n}" for n in range(500)]


def curve(seed: int) -> Image.Image:
    """A survival plot: two falling stairs between the same two axes, in every seed another course."""
    return survival(random.Random(seed)).convert("L")


def saved(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def groups_of(files: list[bytes]) -> list[int]:
    seen = [glance(data) for data in files]
    hashes = np.array([phash(one.grey) for one in seen], np.uint64)
    digests = np.array([hashlib.sha256(data).digest() for data in files])
    return image_groups(digests, hashes, np.stack([miniature(one) for one in seen])).tolist()


def test_plots_of_one_layout_are_not_copies_and_their_copies_are() -> None:
    plots = [curve(n) for n in range(40)]
    hashes = [phash(plot.reduce(7)) for plot in plots]
    alike = [(a, b) for a, b in combinations(hashes, 2) if (a ^ b).bit_count() <= NEAR_BITS]
    assert len(alike) > 20  # by the perceptual hash alone they chain into groups
    copies = [saved(plot.resize((260, 195), Image.Resampling.BICUBIC), 60) for plot in plots]
    assert groups_of([saved(plot) for plot in plots] + copies) == [*range(40), *range(40)]


def test_plots_of_one_layout_are_compared_with_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = np.stack([miniature(Glance(600, 450, curve(n).reduce(7), None)) for n in range(150)])
    compared: list[int] = []
    real = duplicates._correlation
    monkeypatch.setattr(duplicates, "_correlation", lambda a, b: compared.append(len(b)) or real(a, b))  # type: ignore[func-returns-value]
    assert set(image_groups(np.arange(150), np.zeros(150, np.uint64), looks).tolist()) == {-1}
    assert sum(compared) < 0.1 * 150 * 149 / 2


@pytest.mark.parametrize("at_once", [1, 7, 512])
@pytest.mark.parametrize("seed", range(3))
def test_a_picture_joins_the_first_group_whose_first_it_is_near_to(
    seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Against a comparison with every group's first, and however many are looked at together."""
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    rng = np.random.default_rng(seed)
    looks = rng.integers(0, 256, (40, 256))
    copies = looks[rng.integers(0, 40, 100)] + rng.normal(0, rng.choice([2, 5, 15], (100, 1)), (100, 256))
    looks = np.clip(np.concatenate([looks, copies]), 0, 255).astype(np.uint8)[rng.permutation(140)]
    hashes = rng.integers(0, 2, 140).astype(np.uint64) * np.uint64(127)  # two that differ by 7 bits
    firsts: list[int] = []
    expected = []
    for i in range(140):
        near = [
            one for one in firsts if hashes[one] == hashes[i] and np.corrcoef(looks[one], looks[i])[0, 1] >= NEAR_LOOKS
        ]
        expected.append(near[0] if near else i)
        firsts += [] if near else [i]
    named = [one if expected.count(one) > 1 else -1 for one in expected]
    assert image_groups(np.arange(140), hashes, looks).tolist() == named
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 5)
    assert image_groups(np.arange(140), hashes, on_disk(looks, tmp_path)).tolist() == named


def on_disk(rows: np.ndarray, folder: Path) -> Column:
    column = Column(folder / "rows", rows.dtype, rows.shape[1])
    column.append(rows[:5])
    column.append(rows[5:])
    return column


def test_of_each_picture_and_caption_about_a_hundred_bytes_are_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of pictures that all differ: each is the first of its group, in which others are looked for."""
    monkeypatch.setattr(duplicates, "_AT_ONCE", 128)
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", 128)
    rng, count = np.random.default_rng(0), 6_000
    smooth = Image.fromarray(rng.integers(0, 256, (6 * count, 6)).astype(np.uint8)).resize((16, 6 * count))
    rows = np.asarray(smooth).reshape(count, 6, 16).repeat([3, 3, 2, 2, 3, 3], axis=1).reshape(count, 256)
    looks = on_disk(rows, tmp_path)
    hashes, digests = rng.integers(0, 1 << 63, count, np.uint64), rng.integers(0, 1 << 63, count)
    minima = rng.integers(0, 1 << 32, (count, MINIMA), np.uint32)
    (tmp_path / "captions").mkdir()
    said = on_disk(minima, tmp_path / "captions")

    def bytes_a_pair(find: Callable[[int], np.ndarray]) -> float:
        find(10)  # whatever is made once
        peaks = []
        for n in (count // 2, count):
            tracemalloc.start()
            assert set(find(n).tolist()) == {-1}
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return (peaks[1] - peaks[0]) / (count // 2)

    assert bytes_a_pair(lambda n: image_groups(digests[:n], hashes[:n], looks)) < 200
    assert bytes_a_pair(lambda n: duplicates.caption_groups(said, np.ones(n, bool))) < 100


def most_held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates are compared at a time, filled as pictures are grouped."""
    held: list[int] = []
    real = duplicates._near

    def near(candidates: list[np.ndarray], looks: duplicates.Rows) -> np.ndarray:
        held.append(sum(map(len, candidates)))
        return real(candidates, looks)

    monkeypatch.setattr(duplicates, "_near", near)
    return held


@pytest.mark.parametrize("least", [0, 200, 254, 255])
def test_a_correlation_is_worked_out_in_whole_numbers(least: int) -> None:
    ones, others = np.random.default_rng(least).integers(least, 256, (2, 500, 256)).astype(np.uint8)
    a, b = ones.astype(np.int64), others.astype(np.int64)
    shared = 256 * (a * b).sum(axis=1) - a.sum(axis=1) * b.sum(axis=1)
    own, spread = (256 * (one * one).sum(axis=1) - one.sum(axis=1) ** 2 for one in (a, b))
    exact = shared / np.sqrt(np.maximum(own * spread.astype(np.float64), 1.0))
    assert np.array_equal(duplicates._correlation(ones, others), exact)


def test_blank_pictures_are_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    held = most_held(monkeypatch)
    looks = np.full((4_000, 256), 255, np.uint8)
    looks[1::2] = 0
    looks[[7, 3_001], :128] = 90
    found = image_groups(np.arange(4_000), np.zeros(4_000, np.uint64), looks)
    assert np.flatnonzero(found >= 0).tolist() == [7, 3_001]
    assert sum(held) <= duplicates._SETS


def test_however_many_candidates_there_are_few_are_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of pictures that agree in all waves that are looked at and are no copies: a fine pattern, and few greys else."""
    rng = np.random.default_rng(0)
    fine = rng.normal(0, 1, (600, 256))
    fine -= fine @ duplicates._BASIS.T @ duplicates._BASIS
    looks = on_disk(np.clip(128 + 30 * fine, 0, 255).astype(np.uint8), tmp_path)
    hashes = np.zeros(600, np.uint64)
    held = most_held(monkeypatch)
    expected = image_groups(np.arange(600), hashes, looks)
    assert max(held) > 50_000
    monkeypatch.setattr(duplicates, "_CANDIDATES_HELD", 1_000)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 500)
    held.clear()
    assert np.array_equal(image_groups(np.arange(600), hashes, looks), expected)
    assert max(held) < 1_000 + 500 + 600


def test_very_many_copies_in_a_row_are_compared_with_few_each() -> None:
    look = np.random.default_rng(0).integers(0, 256, 256).astype(np.uint8)
    looks = np.tile(look, (3_000, 1))
    looks[:, 0] = np.arange(3_000) % 7
    began = time.process_time()
    assert set(image_groups(np.arange(3_000), np.zeros(3_000, np.uint64), looks).tolist()) == {0}
    assert time.process_time() - began < 10


def test_equal_bytes_are_a_group_whatever_they_look_like() -> None:
    looks = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint8)
    assert image_groups(np.array([b"a", b"b", b"a"]), np.zeros(3, np.uint64), looks).tolist() == [0, -1, 0]
    assert image_groups(np.array([b"a", b"b"]), np.zeros(2, np.uint64), np.zeros((2, 256), np.uint8)).tolist() == [
        -1,
        -1,
    ]
    assert image_groups(np.zeros(0, "S32"), np.zeros(0, np.uint64), np.zeros((0, 256), np.uint8)).tolist() == []


@pytest.mark.parametrize("count", [0, 10, 60, 200])
def test_joining_many_at_once_is_joining_one_after_the_other(count: int) -> None:
    pairs = np.random.default_rng(count).integers(0, 100, (count, 2))
    sets = {n: {n} for n in range(100)}
    for one, two in pairs.tolist():
        both = sets[one] | sets[two]
        sets |= dict.fromkeys(both, both)
    groups = duplicates.Groups(100)
    groups.join_all(pairs)
    assert groups.names().tolist() == [min(sets[n]) if len(sets[n]) > 1 else -1 for n in range(100)]
    assert groups.apart(np.array([[0, 1], [5, 5]])).tolist() == [sets[0] is not sets[1], False]


def caption_groups(found: list[np.ndarray | None]) -> np.ndarray:
    rows = [np.zeros(MINIMA, np.uint32) if one is None else one for one in found]
    return duplicates.caption_groups(np.array(rows), np.array([one is not None for one in found]))


def caption(rng: random.Random, length: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=length))


def runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_minima_estimate_the_share_of_runs_in_common() -> None:
    rng = random.Random(0)
    errors = []
    for _ in range(200):
        one = caption(rng)
        two = " ".join(rng.choice(WORDS) if rng.random() < 0.05 else word for word in one.split())
        a, b = minhash(one), minhash(two)
        assert a is not None
        assert b is not None
        errors.append((a == b).mean() - len(runs(one) & runs(two)) / len(runs(one) | runs(two)))
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 1.5 * 0.5 / 8  # of 64 coins


def test_captions_with_a_word_changed_are_a_group_and_short_ones_are_not() -> None:
    rng = random.Random(1)
    base = [caption(rng, 60) for _ in range(20)]
    changed = [text.replace(text.split()[30], "other", 1) for text in base]
    found = caption_groups([minhash(text) for text in [*base, *changed]])
    assert found.tolist() == [*range(20), *range(20)]
    short = " ".join(WORDS[: LEAST_WORDS - 1])
    assert minhash(short) is None
    assert caption_groups([minhash(short), minhash(short)]).tolist() == [-1, -1]
    assert caption_groups([minhash(text.upper()) for text in base[:2]] + [minhash(base[1])]).tolist() == [-1, 1, 1]
