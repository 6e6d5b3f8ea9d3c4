"""The demo against its bounds: wall time, peak memory, `--help`, and the scores, in one table.

    python benchmarks/demo.py [--out DIR]

Each figure comes from a process of its own; the demo runs at its real size from nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LLAVAMED = [sys.executable, "-m", "llavamed.cli"]


def timed(command: list[str]) -> tuple[float, float]:
    """(seconds, peak GiB of the process) of a command that must succeed."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(command)}: failed")
    return time.monotonic() - began, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="keep the run here (must not exist)")
    args = parser.parse_args()
    if args.out and args.out.exists():
        raise SystemExit(f"{args.out}: exists; a finished demo would be skipped, not measured")
    out = args.out or Path(tempfile.mkdtemp()) / "demo"
    help_seconds = min(timed([*LLAVAMED, "--help"])[0] for _ in range(5))
    seconds, peak = timed([*LLAVAMED, "demo", "--no-serve", "--out", str(out)])
    again, _ = timed([*LLAVAMED, "demo", "--no-serve", "--out", str(out)])

    def score(row: str, name: str, control: str = "") -> str:
        body = json.loads((out / "eval" / "phantom" / row / "scores.json").read_text())
        entry = (body["controls"][control]["scores"] if control else body["scores"])[name]
        return f"{entry['value']:.1f} ({entry['low']:.1f}-{entry['high']:.1f}), n {entry['n']}"

    rows = [
        ("llavamed --help, seconds (best of 5)", "< 0.3", f"{help_seconds:.2f}"),
        ("demo, minutes", "<= 6", f"{seconds / 60:.1f}"),
        ("demo, peak memory, GiB", "< 3", f"{peak:.2f}"),
        ("demo run again, seconds", "-", f"{again:.1f}"),
        ("closed accuracy, image, %", ">= 90", score("instruct", "closed_accuracy")),
        ("closed accuracy, blank, %", "<= 60", score("instruct", "closed_accuracy", "blank")),
        ("open recall, image, %", ">= 80", score("instruct", "open_recall")),
        ("open F1, image, %", "-", score("instruct", "open_f1")),
        ("closed accuracy, align only, %", "far below", score("align", "closed_accuracy")),
        ("open recall, align only, %", "far below", score("align", "open_recall")),
        ("closed accuracy, untrained projector, %", "far below", score("untrained", "closed_accuracy")),
        ("open recall, untrained projector, %", "far below", score("untrained", "open_recall")),
    ]
    print("| what | asked | measured |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if args.out is None:
        shutil.rmtree(out.parent)


if __name__ == "__main__":
    main()
