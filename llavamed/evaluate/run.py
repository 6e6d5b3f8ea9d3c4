"""One evaluation, whole: a model, a benchmark, the controls, the scores and the report.

    out/<control>/predictions.jsonl, header.json     a journal each; see predict.py
    out/items.jsonl, scores.json, report.html
    out/manifest.json                                last: the folder is complete

Run again, it asks only what is unanswered; a complete folder made from the same model, benchmark and
settings is left as it is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus.store import open_images
from llavamed.engine import Engine, connect
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, page
from llavamed.evaluate.metrics import llava_med
from llavamed.evaluate.predict import predict
from llavamed.evaluate.score import Scores, score
from llavamed.evaluate.show import ablation
from llavamed.recipe import EvaluateSection

__all__ = ["ablation", "evaluate", "evaluate_predictions"]

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model")  # weights, settings, template, tokenizer


def evaluate(
    model: str,
    benchmark_name: str,
    data: Path,
    out: Path,
    section: EvaluateSection,
    seed: int = 0,
    split: str = "test",
) -> manifest.Manifest:
    """Ask `model` (a folder or an endpoint URL) the benchmark in `data` under every control of `section`.

    Returns the manifest of `out`. Raises InputError for a wrong name, missing files or images, or if
    every request failed.
    """
    began = time.monotonic()
    benchmark = benchmarks.load(benchmark_name, data, split)
    controls = ["real", *(control for control in section.controls if control != "real")]
    made = manifest.Manifest(
        stage="eval",
        settings={
            "benchmark": benchmark.name,
            "split": split,
            "controls": controls,
            "max_new_tokens": section.max_new_tokens,
            "bootstrap": section.bootstrap,
            "seed": seed,
            "prompt_hash": benchmark.prompt_hash,
            "scorers": [llava_med.STRICT, llava_med.OFFICIAL],
        },
        inputs={
            "model": model_fingerprint(model),
            "benchmark": manifest.fingerprint(dict(benchmark.sha256)),
            "images": _images_fingerprint(benchmark),
        },
    )
    if manifest.is_done(out, made):
        body = manifest.read(out) or {}
        made.counts, made.funnel, made.files = body["counts"], body["funnel"], body["files"]
        made.seconds, made.extra = body["seconds"], body.get("extra", {})
        return made
    engine = connect(model)  # before anything is touched: a misspelt model must not undo a finished evaluation
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / manifest.NAME).unlink(missing_ok=True)  # from here on the folder is unfinished
        paths = {control: _predict(engine, benchmark, out, control, seed, section, made) for control in controls}
    finally:
        engine.close()
    real = paths.pop("real")
    scores = score(benchmark, real, bootstrap=section.bootstrap, seed=seed, controls=paths, out=out)
    failed = [item.prediction.failed for item in scores.items if item.prediction.failed]
    if len(failed) == scores.n:
        raise InputError(
            f"{model}: every request failed ({failed[0]}); mend the cause and run again, failed requests are repeated"
        )
    _report(benchmark, scores, data, out)
    made.counts = {
        "questions": scores.n,
        "closed": scores.provenance["n_closed"],
        "open": scores.provenance["n_open"],
        "images": len(benchmark.image_names),
    }
    made.extra = {"model": model}  # not in the fingerprint: a folder that was moved holds the same model
    made.funnel = {
        **benchmark.dropped,
        "failed requests (counted as wrong)": len(failed),
        "closed answers not readable (counted as wrong)": sum(
            item.question.closed and item.parsed is None for item in scores.items
        ),
    }
    made.seconds = time.monotonic() - began
    made.write(out)
    return made


def _predict(
    engine: Engine,
    benchmark: benchmarks.Benchmark,
    out: Path,
    control: str,
    seed: int,
    section: EvaluateSection,
    made: manifest.Manifest,
) -> Path:
    return predict(
        engine,
        benchmark,
        out / control,
        control,
        seed,
        section.max_new_tokens,
        section.batch_size,
        model_fingerprint=made.inputs["model"],
    )


def evaluate_predictions(
    benchmark_name: str, predictions: Path, data: Path, out: Path, by_order: bool = False, split: str = "test"
) -> Scores:
    """Score a file of answers made anywhere: `out/scores.json`, `items.jsonl`, `report.html`. No model, no GPU."""
    benchmark = benchmarks.load(benchmark_name, data, split)
    scores = score(benchmark, predictions, by_order=by_order, out=out)
    _report(benchmark, scores, data, out)
    return scores


def model_fingerprint(model: str) -> str:
    """What identifies the weights: the manifest of a folder of ours, the bytes of another, the URL of an endpoint."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return manifest.fingerprint(model)
    body = manifest.read(folder)
    if body is not None:
        return str(body["fingerprint"])
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _MODEL_FILES)
    return manifest.fingerprint([(str(p.relative_to(folder)), manifest.file_sha256(p)) for p in files])


def _images_fingerprint(benchmark: benchmarks.Benchmark) -> str:
    """Names and sizes: enough to notice images that were exchanged, without reading them all."""
    found: list[Any] = []
    for name in sorted(benchmark.image_names):
        path = benchmark.images / name
        found.append((name, path.stat().st_size if path.is_file() else None))
    return manifest.fingerprint(found)


def _report(benchmark: benchmarks.Benchmark, scores: Scores, data: Path, out: Path) -> None:
    read_image = open_images(benchmark.images) if benchmark.images.is_dir() else None
    page.build(benchmark, scores, read_image, _seen_in_training(benchmark, data)).write(out / "report.html")


def _seen_in_training(benchmark: benchmarks.Benchmark, data: Path) -> dict[str, int] | None:
    """The overlap with the training split, or None where that split is not on disk."""
    if benchmark.split == "train":
        return None
    try:
        train = benchmarks.load(benchmark.name, data, "train")
    except InputError:
        return None
    read_image = None
    if train.images == benchmark.images and benchmark.images.is_dir():
        read_image = open_images(benchmark.images)
    return benchmarks.overlap(train, benchmark, read_image)
