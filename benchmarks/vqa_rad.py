"""VQA-RAD with the tiny model: import, fine-tune, evaluate with controls; prints the table for docs/experiments.md.

    python benchmarks/vqa_rad.py VQA_RAD --model demo-run/train/instruct --out runs/vqa-rad

VQA_RAD holds train.json, test.json and images/ (3,064 training and 451 test questions, the split that LLaVA-Med
used). Only the command line is used, as a user would.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def llavamed(*arguments: object) -> None:
    command = [sys.executable, "-m", "llavamed.cli", *map(str, arguments)]
    print("$ llavamed", *arguments, flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("demo-run/train/instruct"))
    parser.add_argument("--out", type=Path, default=Path("runs/vqa-rad"))
    args = parser.parse_args()
    train = args.out / "train.jsonl"
    llavamed("instruct", "import", args.data, "--format", "vqa-rad", "--split", "train", "--out", train)
    llavamed(
        "train", "vqa-rad-tiny", "--out", args.out / "train",
        "--set", f"model.init_from={args.model}",
        "--set", f"train.finetune.data={train}",
        "--set", f"train.finetune.images={args.data / 'images'}",
    )  # fmt: skip
    for name, model in (("before", args.model), ("after", args.out / "train")):
        llavamed("eval", model, "vqa-rad", "--data", args.data, "--out", args.out / f"eval-{name}")


if __name__ == "__main__":
    main()
