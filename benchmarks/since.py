"""The demo's training by this version and by an earlier one, on the same data from the same parts, and what was learnt.

    python benchmarks/since.py DEMO_RUN [--commit 4d23b05] [--repeats 3] [--threads 1]

4d23b05 is the last commit before the training engine: the first whole, which packed already. Each run is a process of
its own, and what is compared is everything from reading the data to the finished models: with one thread its processor
time, as on a machine that others use the wall clock says nothing; with more, what somebody waits for who runs the demo,
the wall clock, and the machine must be quiet. Repeats are interleaved, a ratio is taken within one.
Each version follows its own recipe, so that the examples may differ in number: the speed of the engine is in examples
a second, and both models answer the same benchmark, by this version's scorer.
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

from llavamed.evaluate.benchmarks import load
from llavamed.evaluate.run import evaluate
from llavamed.evaluate.score import score
from llavamed.recipe import EvaluateSection

ROOT = Path(__file__).parents[1]
RUN = """
import json, sys, time
import torch
threads = int(sys.argv[3])
torch.set_num_threads(threads)
clock = time.process_time if threads == 1 else time.perf_counter
from pathlib import Path
from llavamed import recipe
from llavamed.train import run
stage = run.run_stage
seconds = {}
def timed(assembled, examples, pixels, name, *rest, **more):
    began = clock()
    made = stage(assembled, examples, pixels, name, *rest, **more)
    seconds[name] = (clock() - began, made.counts["examples"], made.extra["last_loss"])
    return made
run.run_stage = timed
out, sets = Path(sys.argv[1]), json.loads(sys.argv[2])
began = clock()
run.train(recipe.changed(recipe.load("tiny"), sets), out)
print(json.dumps(seconds | {"all": (clock() - began, 0, 0.0)}))
"""


def train(code: Path, out: Path, sets: dict[str, str], threads: int) -> dict[str, tuple[float, int, float]]:
    """{stage or "all": (seconds, examples, last loss)}"""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, str(out), json.dumps(sets), str(threads)]
    said = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, tuple[float, int, float]] = json.loads(said.splitlines()[-1])
    return found


def learnt(model: Path, benchmark: Path) -> tuple[str, str]:
    """(closed accuracy, open recall) of the finished model, with the pictures, %"""
    out = model.parent / "eval"
    evaluate(str(model), "phantom", benchmark, out, EvaluateSection(controls=()))
    items = score(load("phantom", benchmark), out / "real" / "predictions.jsonl").items
    credits = [[item.credit for item in items if item.question.closed is closed] for closed in (True, False)]
    closed_accuracy, open_recall = (f"{100 * statistics.mean(part):.1f} (n {len(part)})" for part in credits)
    return closed_accuracy, open_recall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished demo run, for its data")
    parser.add_argument("--commit", default="4d23b05")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
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
                [
                    train(code, Path(scratch) / f"{place}-{repeat}", sets, args.threads)
                    for place, code in enumerate((before, ROOT))
                ]
                for repeat in range(args.repeats)
            ]
            marks = [
                learnt(Path(scratch) / f"{place}-0" / "instruct", data / "world" / "benchmark") for place in (0, 1)
            ]
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    head = (
        "stage",
        f"{args.commit}, {'processor ' if args.threads == 1 else ''}s",
        "this version",
        "ratio",
        "examples before",
        "now",
        "ratio of examples/s",
    )
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for stage in ("align", "instruct", "all"):
        pairs = [[one[stage] for one in pair] for pair in repeats]
        medians = [f"{statistics.median(pair[place][0] for pair in pairs):.1f}" for place in (0, 1)]
        examples = [pairs[0][place][1] for place in (0, 1)]
        row = [stage, *medians, spread([was[0] / now[0] for was, now in pairs])]
        if stage != "all":
            per_second = [was[0] / was[1] * now[1] / now[0] for was, now in pairs]
            row += [*(f"{count:,}" for count in examples), spread(per_second)]
        print(f"| {' | '.join(row)} |")
    print("\n| learnt | before | now |\n|---|---|---|")
    for name, was, now in zip(("closed accuracy, %", "open recall, %"), *marks, strict=True):
        print(f"| {name} | {was} | {now} |")


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


if __name__ == "__main__":
    main()
