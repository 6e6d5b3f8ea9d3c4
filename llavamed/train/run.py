"""The whole curriculum: a recipe in, a run folder out.

    out/recipe.yaml
    out/untrained/model/     the parts with a fresh projector: the ablation's first row, and where training starts
    out/align/               projector only, on captions
    out/instruct/            projector and language model, on conversations
    out/finetune/            the same on one benchmark's training split
    out/report.html, out/manifest.json

Every stage starts by loading the folder of the one before, also when both run in the same process. So there is
one path and not two, and what goes on is what was saved.

A stage is skipped if its manifest says that it was made from exactly this: its section of the recipe, the bytes
of its data, its corpus (of loose image files their names and sizes) and the fingerprint of what it starts from.
Change one thing, and that stage and those after it are made again, which is said together with the reason.

The folder belongs to one recipe, by name: another one's finished models are never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import folder as model_folder
from llavamed.model.parts import Assembled, build, init_folder, locate
from llavamed.model.parts import processor as make_processor
from llavamed.recipe import ModelSection, Part, Recipe, StageSection, to_yaml
from llavamed.train import lora
from llavamed.train.data import BadRecords, Examples, Pixels, images_fingerprint, read_examples
from llavamed.train.loop import MODEL, drop_checkpoints, run_stage
from llavamed.train.page import write_page
from llavamed.train.ranks import Ranks, join
from llavamed.train.track import check as check_trackers
from llavamed.train.validate import Score, check_held_out

STAGES = ("align", "instruct", "finetune")
UNTRAINED = "untrained"
_BAD_RECORDS = "bad_records.jsonl"
_ALSO_DECIDES = {  # keys of `train`
    "max_tokens", "tokens_per_pack", "clip_grad_norm", "adam_betas", "dtype", "validation", "optimizer_state",
    "fp8_frozen",
}  # fmt: skip


def train(recipe: Recipe, out: Path, resume: bool = True, score: Score | None = None) -> Manifest:
    """Run the stages that the recipe has, in order; returns the run's manifest.

    `score` is asked for its number at each validation (`evaluate.run.small_score` makes one of a benchmark).
    Finished stages are skipped. An unfinished one goes on from its last checkpoint, or is begun anew with
    `resume` false. Raises InputError naming the recipe key if data are missing or cannot be trained on, and if
    `out` holds the run of another recipe or anything else; all this before `out` is touched.
    """
    with join(recipe.train.stuck_minutes) as ranks:
        return _train(recipe, Path(out), resume, score, ranks)


def _train(recipe: Recipe, out: Path, resume: bool, score: Score | None, ranks: Ranks) -> Manifest:
    """Every rank reads and trains; the first one writes."""
    present = [(name, stage) for name in STAGES if (stage := getattr(recipe.train, name)) is not None]
    if not present:
        raise InputError(f"recipe {recipe.name!r}: no stage to train; set one of train.{', train.'.join(STAGES)}")
    for name, stage in present:
        _check_paths(name, stage)
        lora.require(stage.lora)
        if ranks.world > 1 and stage.lora is not None and stage.lora.quantize != "none":
            raise InputError(f"train.{name}.lora.quantize works in one process only{_torchrun(ranks)}; set it to none")
    if ranks.world > 1 and recipe.train.optimizer_state == "int8":
        raise InputError(f"train.optimizer_state=int8 works in one process only{_torchrun(ranks)}; set it to bfloat16")
    if ranks.world > 1 and recipe.train.checkpoint_in_background:
        raise InputError(f"train.checkpoint_in_background works in one process only{_torchrun(ranks)}; leave it out")
    check_trackers(recipe.train.trackers)
    _check_recipe(recipe, out)
    wanted: dict[str, Manifest] = {}
    with ranks.alive("looking at the parts and the data"):
        before = start = _untrained_manifest(recipe)
        for name, stage in present:
            before = wanted[name] = stage_manifest(recipe, name, stage, before.fingerprint)
    run = Manifest(
        "train",
        settings={"recipe": recipe.name, "stages": list(wanted)},
        inputs={name: stage_made_from.fingerprint for name, stage_made_from in wanted.items()},
    )
    done = {name for name in wanted if manifest.is_done(out / name, wanted[name])}
    whole = manifest.is_done(out, run) and manifest.is_done(out / UNTRAINED, start)
    if len(done) < len(wanted) or not whole:
        first = next((number for number, name in enumerate(wanted) if name not in done), len(wanted))
        again = present[first:]  # what comes after a stage that is made again has to start from the new one
        processor = make_processor(recipe.model)
        sources: dict[str | None, Pixels] = {}  # stages that show the same folder share what was decoded
        examples: dict[str, Examples] = {}
        bad: dict[str, BadRecords] = {}
        for name, stage in again:  # all of them now: a bad record of the last stage must not wait for its turn
            images = None if stage.images is None else Path(stage.images)
            pixels = sources.setdefault(stage.images, Pixels(images, processor))
            with ranks.alive(f"reading the records of {name}"):
                try:
                    examples[name] = read_examples(Path(str(stage.data)), pixels, processor, recipe.train.max_tokens)
                except BadRecords as error:
                    bad[name] = error
                    continue
            if recipe.train.validation.every:
                check_held_out(len(examples[name].ids), recipe.train.validation.held_out)
        if bad:
            raise _all_bad(bad, out, ranks)
        ranks.wait()  # nobody writes before everybody has looked
        if ranks.first:
            manifest.begin(out, run.stage)
            manifest.write_atomic(out / model_folder.RECIPE, to_yaml(recipe))
            for name, _ in again:
                _tell_why(out / name, wanted[name])
                manifest.begin(out / name, wanted[name].stage)
            for name, _ in again[1:]:
                drop_checkpoints(out / name)  # they go on from a model that is about to be replaced
            with ranks.alive("putting the model together"):
                _untrained(recipe, out, start)
        ranks.wait()
        previous = out / UNTRAINED
        for name, stage in present:
            folder = out / name
            if name in examples:
                run_stage(
                    _load(previous, recipe, ranks),
                    examples.pop(name),
                    sources[stage.images],
                    name,
                    stage,
                    recipe.train,
                    folder,
                    recipe.seed,
                    wanted[name],
                    resume,
                    ranks,
                    score,
                )
            elif ranks.first:
                print(f"train {name}: finished already, skipped", file=sys.stderr)
                drop_checkpoints(folder)
            previous = folder
    finished = {name: _finished(out / name) for name in wanted}
    run.counts = {
        f"{name}_{key}": body["counts"][key] for name, body in finished.items() for key in ("steps", "examples")
    }
    run.seconds = sum(body["seconds"] for body in finished.values())
    run.files = {model_folder.RECIPE: manifest.file_sha256(out / model_folder.RECIPE)}
    if ranks.first and not manifest.is_done(out, run):
        write_page(out, recipe, finished)
        run.files["report.html"] = manifest.file_sha256(out / "report.html")
        run.write(out, hash_files=False)  # every stage's manifest has the hashes of its own files
    ranks.wait()
    return run


def stage_manifest(recipe: Recipe, name: str, stage: StageSection, starts_from: str) -> Manifest:
    """What a stage is made from; `starts_from` is the fingerprint of the model that it trains on."""
    assert stage.data is not None
    inputs = {stage.data: manifest.file_sha256(Path(stage.data)), "the model it starts from": starts_from}
    if stage.images is not None:
        inputs[stage.images] = images_fingerprint(Path(stage.data), Path(stage.images))
    settings = {
        "name": name,
        "seed": recipe.seed,
        **stage.model_dump(exclude={"data", "images"}),
        **recipe.train.model_dump(include=_ALSO_DECIDES),
    }
    return Manifest("stage", settings=settings, inputs=inputs, extra={"model": recipe.model.model_dump(mode="json")})


def _all_bad(bad: dict[str, BadRecords], out: Path, ranks: Ranks) -> InputError:
    """One error for all stages; every bad record is listed in a file beside `out`, which stays as it was."""
    listed = out.with_name(f"{out.name}-{_BAD_RECORDS}")
    if ranks.first:
        rows = ({"stage": name, "record": id, "reason": why} for name, one in bad.items() for id, why in one.problems)
        out.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_atomic(listed, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return InputError(f"{'. '.join(map(str, bad.values()))}. All of them: {listed}")


def _torchrun(ranks: Ranks) -> str:
    return f", and torchrun has started {ranks.world}"


def _load(stage: Path, recipe: Recipe, ranks: Ranks) -> Assembled:
    with ranks.alive(f"loading the model of {stage.name}"):
        return model_folder.load(stage / MODEL, _dtype(recipe))


def _untrained(recipe: Recipe, out: Path, made_from: Manifest) -> None:
    """Write the model before any training, as a stage folder."""
    folder = out / UNTRAINED
    if not manifest.is_done(folder, made_from):
        manifest.begin(folder, made_from.stage)
        began = time.monotonic()
        model_folder.save(build(recipe.model, recipe.seed, _dtype(recipe)), folder / MODEL)
        made_from.seconds = time.monotonic() - began
        made_from.write(folder)


def _untrained_manifest(recipe: Recipe) -> Manifest:
    section = recipe.model
    settings = {**section.model_dump(), "seed": recipe.seed, "dtype": recipe.train.dtype}
    return Manifest(UNTRAINED, settings=settings, inputs=_part_fingerprints(section))


def _part_fingerprints(section: ModelSection) -> dict[str, str]:
    if section.init_from is not None:
        return {section.init_from: _folder_sha256(init_folder(section))}
    parts: tuple[Part, ...] = ("vision_tower", "language_model")
    return {part: _folder_sha256(Path(locate(getattr(section, part), part))) for part in parts}


def _folder_sha256(folder: Path) -> str:
    """Over the weights and JSON files of a model folder; a hub id stands for itself."""
    if not folder.is_dir():
        return str(folder)
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja"))):
        digest.update(f"{file.name} {manifest.file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _check_paths(name: str, stage: StageSection) -> None:
    if stage.data is None:
        raise InputError(
            f"stage {name!r} has no data; set train.{name}.data to a conversations .jsonl "
            f"(and train.{name}.images to its images)"
        )
    if not Path(stage.data).is_file():
        raise InputError(f"{stage.data}: no such file; set train.{name}.data to a conversations .jsonl")
    if stage.images is not None and not Path(stage.images).is_dir():
        raise InputError(
            f"{stage.images}: no such folder; set train.{name}.images to a corpus or a folder of image files"
        )


def _check_recipe(recipe: Recipe, out: Path) -> None:
    """Raises InputError if `out` holds the run of a recipe of another name."""
    path = out / model_folder.RECIPE
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # cut short; it is written again
    name = tree.get("name", recipe.name) if isinstance(tree, dict) else recipe.name
    if name != recipe.name:
        raise InputError(f"{out}: holds the run of recipe {name!r}, this one is {recipe.name!r}; give another --out")


def _tell_why(folder: Path, wanted: Manifest) -> None:
    """Say what differs if a finished stage is about to be made again."""
    body = manifest.read(folder)
    if body is None:
        return
    before, now = body.get("settings", {}), wanted.settings
    reasons = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in {**before, **now}
        if manifest.fingerprint(before.get(key)) != manifest.fingerprint(now.get(key))
    ]
    known = body.get("inputs", {}).values()
    reasons += [f"{what} changed" for what, value in wanted.inputs.items() if value not in known]
    told = ", ".join(reasons) or "an earlier stage is made again, or files of this one are missing"
    print(f"train {folder.name}: its finished model is replaced: {told}", file=sys.stderr)


def _finished(folder: Path) -> dict[str, Any]:
    body = manifest.read(folder)
    assert body is not None, folder
    return body


def _dtype(recipe: Recipe) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, recipe.train.dtype)
    return dtype
