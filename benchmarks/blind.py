"""Does the harness tell a model that sees from one that does not? The demo's model, and the same with its eyes shut.

    python benchmarks/blind.py --model demo-run/train/instruct --data demo-run/world/benchmark

Three models answer the phantom benchmark under every control: the demo's; the same with a projector of zeros, which
is a text-only model (whatever the picture, the language model gets the same); and the same with a projector that was
never trained, to which pictures are noise. Exits with 1 unless the first is far above its controls and the other two
are said not to use the image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from llavamed.evaluate import show
from llavamed.evaluate.run import evaluate
from llavamed.model import folder
from llavamed.recipe import EvaluateSection

FAR = 20.0  # points, at least, between the image and the best control


def shut(model: Path, out: Path, projector: str) -> Path:
    """A copy of the model with another projector: of "zeros", or "random" as a new one is drawn."""
    assembled = folder.load(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in assembled.model.model.multi_modal_projector.parameters():
            drawn = (
                0.02 * torch.randn(weight.shape, generator=generator) if weight.ndim > 1 else torch.zeros(weight.shape)
            )
            weight.copy_(torch.zeros_like(weight) if projector == "zeros" else drawn)
    folder.save(assembled, out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("demo-run/train/instruct"))
    parser.add_argument("--data", type=Path, default=Path("demo-run/world/benchmark"))
    args = parser.parse_args()
    failures = []
    with tempfile.TemporaryDirectory() as place:
        models = {"the demo's model": args.model}
        for projector in ("zeros", "random"):
            models[f"projector of {projector}"] = shut(args.model, Path(place, projector), projector)
        print("| model | metric | real | blank | shuffled | noise | text-only | the image is worth |")
        print("|---|---|---|---|---|---|---|---|")
        for name, model in models.items():
            out = Path(place, "eval", name)
            evaluate(str(model), "phantom", args.data, out, EvaluateSection())
            scores = show.read(out)
            for metric, n, *cells in show.headline(scores)[1][:2]:
                print(f"| {name} | {metric} n {n} | {' | '.join(cells)} |")
            verdict = show.verdict(scores)
            sees = verdict.startswith("The model uses the image")
            gaps = [body["gaps"][metric]["value"] for body in scores["controls"].values()
                    for metric in ("closed_accuracy", "open_recall") if "gaps" in body]  # fmt: skip
            if name == "the demo's model" and not (sees and min(gaps) >= FAR):
                failures.append(f"{name}: {verdict} (least gap {min(gaps):.1f})")
            if name != "the demo's model" and "does not use the image" not in verdict:
                failures.append(f"{name} is not exposed: {verdict}")
            print(f"{name}: {verdict}", file=sys.stderr)
    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    main()
