"""Kill a training at twenty random moments, half of them while it writes a checkpoint, and compare what it ends with.

    python benchmarks/kill.py [--kills 20] [--out DIR]

A small demo gives the data. The stage is then trained once without interruption and once under kill -9: every odd kill
comes at a random moment, every even one as soon as a checkpoint is being written; two of four runs write by a thread
beside the loop. Once, a byte of the newest checkpoint is flipped as well: the one before it has to be used. The two
models must be the same, byte for byte, and so must the two loss curves. Seed 0 decides the moments.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llavamed import recipe
from llavamed.demo.run import demo
from llavamed.manifest import file_sha256
from llavamed.train.validate import read_rows

WORLD = {"demo.articles": 40, "demo.questions": 13, "train.instruct.epochs": 1, "evaluate.bootstrap": 10}
EPOCHS, PATIENCE = 60, 120  # of the stage under test; seconds that a start may take


def command(world: Path, out: Path, minutes_apart: float, in_background: bool = False) -> list[str]:
    sets = {
        "train.align": "null",
        "train.instruct.data": world / "instruct" / "instruct.jsonl",
        "train.instruct.images": world / "corpus",
        "train.instruct.epochs": EPOCHS,
        "train.tokens_per_pack": 512,  # several a step, side by side
        "train.checkpoint_minutes": minutes_apart,
        "train.checkpoint_in_background": in_background,
    }
    options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "llavamed", "train", "tiny", "--out", str(out), *options]


def kill_once(process: subprocess.Popen[bytes], stage: Path, writing: bool, rng: random.Random) -> bool:
    """Kill it some time after it came further than before, or while it writes; False if it ended first."""
    before, checkpoints = steps_done(stage), stage / "checkpoints"
    deadline = time.monotonic() + PATIENCE
    while steps_done(stage) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    moment = time.monotonic() + rng.uniform(0.05, 2.0)
    while process.poll() is None and time.monotonic() < deadline:
        if any(checkpoints.glob("*.tmp")) if writing else time.monotonic() > moment:
            break
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def steps_done(stage: Path) -> int:
    return len(read_rows(stage / "metrics.jsonl"))


def flip_a_byte(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, help="keep the runs here")
    args = parser.parse_args()
    out, rng = args.out or Path(tempfile.mkdtemp()), random.Random(0)
    world = out / "world"
    demo(recipe.changed(recipe.load("tiny"), WORLD), world)
    subprocess.run(command(world, out / "straight", 60), check=True)
    stage = out / "killed" / "instruct"
    killed = in_checkpoint = 0
    flipped = reported = False
    log = (out / "killed.log").open("wb")
    while killed < args.kills:
        writing = killed % 2 == 1
        process = subprocess.Popen(command(world, out / "killed", 0.01, killed % 4 >= 2), stderr=log, stdout=log)
        if not kill_once(process, stage, writing, rng):
            raise SystemExit(f"ended after {killed} kills; raise EPOCHS\n{(out / 'killed.log').read_text()[-2000:]}")
        killed += 1
        in_checkpoint += any((stage / "checkpoints").glob("*.tmp"))
        print(f"kill {killed}: {steps_done(stage)} steps", file=sys.stderr)
        whole = sorted(path for path in (stage / "checkpoints").iterdir() if path.suffix != ".tmp")
        if killed >= args.kills // 2 and not flipped and len(whole) > 1:
            flip_a_byte(whole[-1])
            flipped = True
    subprocess.run(command(world, out / "killed", 60), check=True, stderr=log, stdout=log)
    log.close()
    reported = "is damaged" in (out / "killed.log").read_text()
    runs = [out / "straight" / "instruct", stage]
    weights = [file_sha256(run / "model" / "model.safetensors") for run in runs]
    losses = [[row["loss"] for row in read_rows(run / "metrics.jsonl")] for run in runs]
    rows = [
        ("kills -9", args.kills, killed),
        ("of them while a checkpoint was written", "some", in_checkpoint),
        ("flipped byte found, the checkpoint before used", "yes", "yes" if flipped and reported else "NO"),
        ("steps", len(losses[0]), len(losses[1])),
        ("losses equal", "all", "all" if losses[0] == losses[1] else "NO"),
        ("weights", "equal", "equal" if weights[0] == weights[1] else "DIFFERENT"),
    ]
    print("| what | asked | measured |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    if args.out is None:
        shutil.rmtree(out)
    if weights[0] != weights[1] or losses[0] != losses[1] or not reported:
        raise SystemExit(json.dumps({"weights": weights}))


if __name__ == "__main__":
    main()
