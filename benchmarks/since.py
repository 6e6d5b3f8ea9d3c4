"""The demo's training by this version and by an earlier one, on the same data from the same parts.

    python benchmarks/since.py DEMO_RUN [--commit 4d23b05] [--repeats 3]

4d23b05 is the last commit before the training engine: the first whole, which packed already. Each run is a process of
its own with one thread, and what is compared is processor time, everything from reading the data to the finished
models: on a machine that others use the wall clock says nothing. Repeats are interleaved, a ratio is taken within one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = """
import json, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from llavamed import recipe
from llavamed.train import run
stage = run.run_stage
seconds = {}
def timed(assembled, examples, pixels, name, *rest, **more):
    began = time.process_time()
    made = stage(assembled, examples, pixels, name, *rest, **more)
    seconds[name] = (time.process_time() - began, made.counts["examples"], made.extra["last_loss"])
    return made
run.run_stage = timed
out, sets = Path(sys.argv[1]), json.loads(sys.argv[2])
began = time.process_time()
run.train(recipe.changed(recipe.load("tiny"), sets), out)
print(json.dumps(seconds | {"all": (time.process_time() - began, 0, 0.0)}))
"""


def train(code: Path, out: Path, sets: dict[str, str]) -> dict[str, tuple[float, int, float]]:
    """{stage or "all": (processor seconds, examples, last loss)}"""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, str(out), json.dumps(sets)]
    said = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, tuple[float, int, float]] = json.loads(said.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished demo run, for its data")
    parser.add_argument("--commit", default="4d23b05")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    data = args.run.resolve()
    sets = {
        "model.vision_tower": str(ROOT / "llavamed" / "demo" / "base" / "vision_tower"),
        "model.language_model": str(ROOT / "llavamed" / "demo" / "base" / "language_model"),
    }
    for stage in ("align", "instruct"):
        sets[f"train.{stage}.data"] = str(data / "instruct" / f"{stage}.jsonl")
        sets[f"train.{stage}.images"] = str(data / "corpus")
    with tempfile.TemporaryDirectory() as scratch:
        before, git = Path(scratch) / "before", ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(before), args.commit], check=True)
        try:
            repeats = [
                [train(code, Path(scratch) / f"{place}-{repeat}", sets) for place, code in enumerate((before, ROOT))]
                for repeat in range(args.repeats)
            ]
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    print(f"| stage | {args.commit}, processor s | this version | ratio | last loss before | now |\n{'|---' * 6}|")
    for stage in ("align", "instruct", "all"):
        old, new = ([pair[place][stage] for pair in repeats] for place in (0, 1))
        ratios = [was[0] / now[0] for was, now in zip(old, new, strict=True)]
        losses = [f"{one[0][2]:.4f}" if stage != "all" else "" for one in (old, new)]
        medians = [f"{statistics.median(one[0] for one in times):.1f}" for times in (old, new)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"| {stage} | {' | '.join([*medians, ratio, *losses])} |")


if __name__ == "__main__":
    main()
