"""Any part of a packed file, against the same bytes unpacked by the standard library."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from llavamed.corpus import unpacked
from llavamed.corpus.unpacked import open_unpacked


@pytest.fixture
def plain() -> bytes:
    rng = random.Random(0)
    return b"".join(rng.randbytes(rng.randrange(300)) + bytes(rng.randrange(5000)) for _ in range(400))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "_BLOCK", 7_000)
    monkeypatch.setattr(unpacked, "_HELD", 20_000)
    monkeypatch.setattr(unpacked, "_READ", 500)


def in_two(data: bytes) -> bytes:
    return gzip.compress(data[:100_001]) + gzip.compress(data[100_001:]) + bytes(100)


PACKERS = {"gz": gzip.compress, "two": in_two, "bz2": bz2.compress, "xz": lzma.compress, "plain": bytes}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("most", [4, 1024])
def test_any_part_is_as_in_the_whole(
    plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes], most: int
) -> None:
    monkeypatch.setattr(unpacked, "_MOST_COPIES", most)  # with 4 the blocks grow from 7 kB to 448 kB
    (tmp_path / "x").write_bytes(pack(plain))
    rng = random.Random(1)
    with open_unpacked(tmp_path / "x") as file:
        for _ in range(200):
            at, size = rng.randrange(len(plain)), rng.choice([1, 500, 30_000])
            assert file.seek(at) == at
            assert file.read(size) == plain[at : at + size]
            assert file.tell() == min(at + size, len(plain))
        file.seek(0)
        assert file.read() == plain
        assert file.read(10) == b""


def test_what_is_held_is_bounded(plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(plain))
    with open_unpacked(tmp_path / "x") as file:
        assert isinstance(file, unpacked._Gzip)
        while file.read(3_000):
            assert sum(map(len, file._blocks.values())) == file._held <= 20_000


def test_a_stream_of_whole_blocks_ends(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(bytes(14_000)))
    with open_unpacked(tmp_path / "x") as file:
        assert file.read(20_000) == bytes(14_000)


def test_damage_is_an_error_and_a_cut_an_early_end(plain: bytes, tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(plain))
    (tmp_path / "cut").write_bytes(packed[: len(packed) // 2])
    with open_unpacked(tmp_path / "cut") as file:
        found = file.read()
    assert found == plain[: len(found)]
    assert len(found) < len(plain)
    packed[-6] ^= 1  # the checksum
    (tmp_path / "wrong").write_bytes(packed)
    with open_unpacked(tmp_path / "wrong") as file, pytest.raises(zlib.error):
        file.read()
