"""Groups of pictures and captions that say the same, against a comparison of all pairs."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from llavamed.corpus import duplicates
from llavamed.corpus.duplicates import LEAST_WORDS, MINIMA, NEAR_BITS, image_groups, minhash

WORDS = [f"word{n}" for n in range(500)]


def flipped(value: int, bits: int, rng: random.Random) -> int:
    for bit in rng.sample(range(64), bits):
        value ^= 1 << bit
    return value


def connected(count: int, near: list[tuple[int, int]]) -> list[int]:
    """The first of each position's group, or -1; by the slow way."""
    first = list(range(count))
    for _ in range(count):
        for a, b in near:
            first[a] = first[b] = min(first[a], first[b])
    return [f if first.count(f) > 1 else -1 for f in first]


@pytest.mark.parametrize("seed", range(5))
def test_near_pictures_are_grouped_as_by_comparing_all_pairs(seed: int) -> None:
    rng = random.Random(seed)
    hashes = [rng.getrandbits(64) for _ in range(60)]
    hashes += [flipped(rng.choice(hashes), rng.randrange(0, 10), rng) for _ in range(100)]
    rng.shuffle(hashes)
    near = [(a, b) for a, b in combinations(range(160), 2) if (hashes[a] ^ hashes[b]).bit_count() <= NEAR_BITS]
    found = image_groups([str(n) for n in range(160)], np.array(hashes, np.uint64))
    assert found.tolist() == connected(160, near)


def test_equal_bytes_are_a_group_whatever_their_hash() -> None:
    assert image_groups(["a", "b", "a"], np.array([0, 2**40 - 1, 2**64 - 2**40], np.uint64)).tolist() == [0, -1, 0]
    assert image_groups([], np.array([], np.uint64)).tolist() == []


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
