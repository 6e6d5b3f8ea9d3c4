"""One evaluation, whole: a model, a benchmark, the controls, the scores and the report.

    out/<control>/predictions.jsonl, header.json     a journal each; see predict.py
    out/items.jsonl, scores.json, report.html
    out/manifest.json                                last: the folder is complete

Run again, it asks only what is unanswered; a complete folder made from the same model, benchmark and
settings is left as it is, unless requests failed in it: they are asked again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llavamed import manifest
from llavamed.engine import Request, connect, public_name
from llavamed.engine.local import LocalEngine
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, page
from llavamed.evaluate import predictions as files
from llavamed.evaluate.controls import asked, left_out
from llavamed.evaluate.families import FAMILIES
from llavamed.evaluate.metrics import radiology
from llavamed.evaluate.predict import predict
from llavamed.evaluate.score import MAX_ANSWER, Scores, judge, score
from llavamed.imaging.decode import decode
from llavamed.model import folder as model_folder
from llavamed.model.folder import Assembled
from llavamed.recipe import EvaluateSection
from llavamed.records import Prediction, user

_JUDGED = "its answers are judged, not counted"
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model")  # weights, settings, template, tokenizer


def check(benchmark_name: str, data: Path, split: str | None = None) -> None:
    """Raises InputError for an unknown name, missing files or missing images: what `evaluate` would say at once."""
    benchmarks.load(benchmark_name, data, split).require_images()


def small_score(
    benchmark_name: str,
    data: Path,
    questions: int,
    split: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 32,
) -> Callable[[Assembled], tuple[str, float]]:
    """A function from a model in memory to (name, per cent): the mean strict score of a few of a benchmark's questions,
    evenly spaced. For looking on while a model trains: without controls or an interval it is not a result.

    A question counts by its family's measure: of LLaVA-Med's, closed ones by accuracy, open ones by recall. Raises
    InputError as `check` does.
    """
    whole = benchmarks.load(benchmark_name, data, split)
    if not FAMILIES[whole.family].measures:
        raise InputError(f"{whole.name}: {_JUDGED}; give another benchmark")
    benchmark = replace(whole, questions=whole.questions[:: -(-len(whole.questions) // questions)])
    benchmark.require_images()
    name = f"{benchmark.name} {benchmark.split}, {len(benchmark.questions)} questions"

    def score_of(assembled: Assembled) -> tuple[str, float]:
        engine = LocalEngine.around(assembled, name)
        requests = [
            Request(
                (user(benchmark.ask(q), images=len(q.images)),),
                tuple(decode(benchmark.read_image(image), where=image) for image in q.images),
                max_new_tokens,
                choices=tuple(q.lettered) if benchmark.by_likelihood else (),
            )
            for q in benchmark.questions
        ]
        answers = [a for start in range(0, len(requests), batch_size)
                   for a in engine.generate(requests[start : start + batch_size])]  # fmt: skip
        given = [Prediction(q.id, answer) for q, answer in zip(benchmark.questions, answers, strict=True)]
        items = judge(benchmark, given)
        return name, 100 * sum(item.credit for item in items) / len(items)

    return score_of


def evaluate(
    model: str,
    benchmark_name: str,
    data: Path,
    out: Path,
    section: EvaluateSection,
    seed: int = 0,
    split: str | None = None,
) -> manifest.Manifest:
    """Ask `model` (a folder or an endpoint URL) the benchmark in `data` under every control of `section` that there
    can be of it (a question without an image has none to take away).

    Returns the manifest of `out`; its count `failed` is of all conditions. Raises InputError for a wrong name,
    missing files or images, or if every request with the real image failed.
    """
    began = time.monotonic()
    benchmark = benchmarks.load(benchmark_name, data, split)
    benchmark.require_images()
    family = FAMILIES[benchmark.family]
    impossible = (
        left_out(benchmark, section.controls)
        if family.metrics
        else {control: _JUDGED for control in section.controls if control != "real"}
    )
    controls = ["real", *(c for c in section.controls if c != "real" and c not in impossible)]
    max_new_tokens = section.max_new_tokens or benchmark.max_new_tokens
    made = manifest.Manifest(
        stage="eval",
        settings={
            "benchmark": benchmark.name,
            "split": benchmark.split,
            "controls": controls,
            "max_new_tokens": max_new_tokens,
            "bootstrap": section.bootstrap,
            "seed": seed,
            "prompt_hash": benchmark.prompt_hash,
            "scorers": family.scorers,
        },
        inputs={
            "model": model_fingerprint(model),
            "benchmark": manifest.fingerprint(dict(benchmark.sha256)),
            "images": benchmark.images_fingerprint,
        },
    )
    body = manifest.read(out) if manifest.is_done(out, made) else None
    if body is not None and not body["counts"].get("failed", 0):
        print(f"eval {benchmark.name}: finished already, skipped", file=sys.stderr)
        return manifest.Manifest.of(body)
    for control, reason in impossible.items():
        print(f"eval {benchmark.name}: control {control} left out: {reason}", file=sys.stderr)
    engine = connect(model)  # before anything is touched: a misspelt model must not undo a finished evaluation
    try:
        manifest.begin(out, made.stage)
        paths = {
            control: predict(
                engine,
                asked(benchmark, control),
                out / control,
                control,
                seed,
                max_new_tokens,
                section.batch_size,
                model_fingerprint=made.inputs["model"],
            )
            for control in controls
        }
    finally:
        engine.close()
    real = paths.pop("real")
    scores = score(benchmark, real, bootstrap=section.bootstrap, seed=seed, controls=paths)
    failed = scores.n_failed
    if failed["real"] == scores.n:
        raise InputError(
            f"{public_name(model)}: every request failed ({scores.items[0].prediction.failed}); mend the cause and run "
            "again, failed requests are repeated"
        )
    if any(failed.values()):
        told = ", ".join(f"{name} {count}" for name, count in failed.items() if count)
        print(f"eval {benchmark.name}: requests failed ({told}); run again to repeat them", file=sys.stderr)
    shared = _seen_in_training(benchmark, data)
    scores = replace(scores, provenance={**scores.provenance, "seen_in_training": shared})
    scores.write(out)
    _report(benchmark, scores, out)
    made.counts = {
        "questions": scores.n,
        "closed": scores.provenance["n_closed"],
        "open": scores.provenance["n_open"],
        "images": len(benchmark.image_names),
        "failed": sum(failed.values()),
    }
    made.extra = {"model": public_name(model)}  # not in the fingerprint: a folder that was moved holds the same model
    made.funnel = {
        **benchmark.dropped,
        "failed requests (counted as wrong)": failed["real"],
        **{f"failed requests, {name} (left out of the gaps)": failed[name] for name in paths},
        "answers not readable (counted as wrong)": sum(
            item.parsed is None and family.parse is not None and family.is_parsed(item.question)
            for item in scores.items
        ),
        f"answers cut at {MAX_ANSWER:,} characters": sum(item.cut for item in scores.items),
    }
    made.seconds = time.monotonic() - began
    made.write(out)
    return made


def evaluate_predictions(
    benchmark_name: str,
    predictions: Path,
    data: Path,
    out: Path,
    by_order: bool = False,
    split: str | None = None,
    controls: Mapping[str, Path] | None = None,
    clinical: Sequence[str] = (),
) -> Scores:
    """Score a file of answers made anywhere: `out/scores.json`, `items.jsonl`, `report.html`. No model, no GPU.

    `controls` are files of answers made without the image, by the control's name; `clinical` names measures of
    `metrics/radiology.py`, for reports.
    """
    began = time.monotonic()
    radiology.require(clinical)
    benchmark = benchmarks.load(benchmark_name, data, split)
    if clinical and benchmark.family != "report":
        raise InputError(f"--radiology: {benchmark.name} has no reports; leave it out")
    controls = dict(controls or {})
    for name, reason in left_out(benchmark, list(controls)).items():
        raise InputError(f"--control {name}: {benchmark.name} cannot have it: {reason}; leave it out")
    scores = score(benchmark, predictions, by_order=by_order, controls=controls)
    if clinical:
        items = scores.items
        found = radiology.measure(
            clinical,
            ["" if item.prediction.failed else item.prediction.text for item in items],
            [item.question.answer for item in items],
            [bool(item.prediction.failed) for item in items],
            [item.drawn_with for item in items],
        )
        scores = replace(scores, provenance={**scores.provenance, "radiology": found})
    made = manifest.Manifest(
        stage="score",
        settings={
            "benchmark": benchmark.name,
            "split": benchmark.split,
            "by_order": by_order,
            "controls": ["real", *controls],
            "radiology": list(clinical),
            "scorers": scores.family.scorers,
        },
        inputs={
            "predictions": scores.provenance["predictions_sha256"],
            **{name: files.sha256(path) for name, path in controls.items()},
            "benchmark": manifest.fingerprint(dict(benchmark.sha256)),
        },
        counts={"questions": scores.n, "failed": sum(scores.n_failed.values())},
        funnel=dict(benchmark.dropped),
    )
    manifest.begin(out, made.stage)
    shared = _seen_in_training(benchmark, data)
    scores = replace(scores, provenance={**scores.provenance, "seen_in_training": shared})
    scores.write(out)
    _report(benchmark, scores, out)
    made.seconds = time.monotonic() - began
    made.write(out)
    return scores


def model_fingerprint(model: str) -> str:
    """What identifies the weights: names and bytes of the model's files, or the URL of an endpoint.

    Of a finished stage the manifest has the files' sha256; a copy of its model elsewhere has the same fingerprint.
    """
    if not Path(model).expanduser().is_dir():
        return manifest.fingerprint(public_name(model))
    folder = model_folder.find(Path(model).expanduser())
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _MODEL_FILES)
    stage = (manifest.read(folder.parent) or {}) if folder.name == "model" else {}
    known = stage.get("files", {})
    return manifest.fingerprint(
        [(path.name, known.get(f"model/{path.name}") or manifest.file_sha256(path)) for path in files]
    )


def _report(benchmark: benchmarks.Benchmark, scores: Scores, out: Path) -> None:
    read_image = benchmark.read_image if benchmark.has_images else None
    shared = scores.provenance["seen_in_training"]
    page.build(benchmark, scores, read_image, shared).write(out / "report.html")


def _seen_in_training(benchmark: benchmarks.Benchmark, data: Path) -> dict[str, int] | None:
    """The overlap with the training split, where models are fine-tuned on one and it is on disk."""
    if benchmark.split == "train" or benchmark.family != "llava_med":
        return None
    try:
        train = benchmarks.load(benchmark.name, data, "train")
    except InputError:
        return None
    readers = (split.read_image if split.has_images else None for split in (train, benchmark))
    return benchmarks.overlap(train, benchmark, *readers)
