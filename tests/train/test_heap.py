from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from llavamed.train import heap
from llavamed.train.heap import freed_memory_kept

_SCRIPT = """
import contextlib, json, resource, sys
import torch
from llavamed.train.heap import freed_memory_kept

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

with freed_memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    for turn in range(22):
        if turn == 2:
            before = faults()
        tensors = [torch.ones(2**21) for _ in range(20)]  # 8 MiB each
        del tensors
    inside, found = resident_mb(), faults() - before
print(json.dumps([found, inside, resident_mb()]))
"""


def _run(how: str) -> list[float]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run([sys.executable, "-c", _SCRIPT, how], env=environment, stdout=subprocess.PIPE, check=True)
    found: list[float] = json.loads(said.stdout)
    return found


@pytest.mark.skipif(not heap._is_ours(), reason="glibc does not allocate here, or was told how to")
def test_memory_that_is_freed_and_wanted_again_costs_no_faults_and_goes_back_at_the_end() -> None:
    faults, inside, after = _run("kept")
    plain_faults, _, _ = _run("plain")
    assert faults < plain_faults / 10
    assert after < inside - 80  # MiB, of 160


def test_trimming_is_put_back_also_on_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    libc = SimpleNamespace(mallopt=lambda *given: said.append(given), malloc_trim=lambda pad: said.append("trim"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(heap, "_is_ours", lambda: True)
    block = freed_memory_kept()
    block.__enter__()
    assert said == [(-3, 32 * 2**20), (-1, -1)]
    error = KeyError()
    assert not block.__exit__(KeyError, error, None)
    assert said[2:] == [(-1, 64 * 2**20), "trim"]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_decided_is_not_overruled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=65536" if name.startswith("GLIBC") else "65536")
    monkeypatch.setattr(ctypes, "CDLL", None)  # may not be called
    with freed_memory_kept():
        pass


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    with freed_memory_kept():
        pass
