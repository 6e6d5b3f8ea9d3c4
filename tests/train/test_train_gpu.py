"""The GPU benchmark with toy shapes on a CPU: it is run rarely, and must not have fallen behind the trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# the machine it is meant for has torch, transformers and numpy, and not these
SCRIPT = """
import runpy, sys
sys.modules["pydantic"] = sys.modules["typer"] = None
sys.argv = ["train_gpu.py", "--tiny", "--out", sys.argv[1]]
runpy.run_path("benchmarks/train_gpu.py", run_name="__main__")
"""


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = (tmp_path / "train_gpu.md").read_text()
    assert told.split("## Trouble")[1].split() == ["-", "none"], told[-3000:]
    for row in ("v1.5 stage 1, packed, fp8", "v1.5 stage 1, padded", "v1.5 stage 2, packed", "v1.0 stage 2, packed"):
        assert f"| {row} |" in told
    checks = [line for line in told.split("## Right?")[1].split("## Fast?")[0].splitlines() if line.count("|") == 5][2:]
    assert len(checks) >= 22
    assert all(line.split("|")[4].split()[0] == "ok" for line in checks), told
