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
of its data, the manifest of its image folder (a folder of loose files has none and is not looked into) and
the fingerprint of what it starts from. Change one thing, and that stage and those after it are made again.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import folder as model_folder
from llavamed.model.parts import build, locate
from llavamed.recipe import ModelSection, Part, Recipe, StageSection, to_yaml
from llavamed.train.data import Pixels, read_examples
from llavamed.train.loop import MODEL, run_stage
from llavamed.train.page import write_page

STAGES = ("align", "instruct", "finetune")
UNTRAINED = "untrained"
_ALSO_DECIDES = {"max_tokens", "tokens_per_pack", "clip_grad_norm", "adam_betas", "dtype"}  # keys of `train`


def train(recipe: Recipe, out: Path, resume: bool = True) -> Manifest:
    """Run the stages that the recipe has, in order; returns the run's manifest.

    Finished stages are skipped. An unfinished one goes on from its last checkpoint, or is begun anew with
    `resume` false. Raises InputError naming the recipe key if data are missing or cannot be trained on.
    """
    out = Path(out)
    present = [(name, stage) for name in STAGES if (stage := getattr(recipe.train, name)) is not None]
    if not present:
        raise InputError(f"recipe {recipe.name!r}: no stage to train; set one of train.{', train.'.join(STAGES)}")
    for name, stage in present:
        _check_paths(name, stage)
    start = _untrained_manifest(recipe)
    wanted: dict[str, Manifest] = {}
    before = start
    for name, stage in present:
        before = wanted[name] = stage_manifest(recipe, name, stage, before.fingerprint)
    run = Manifest(
        "train",
        settings={"recipe": recipe.name, "stages": list(wanted)},
        inputs={name: stage_made_from.fingerprint for name, stage_made_from in wanted.items()},
    )
    if not manifest.is_done(out, run):
        (out / manifest.NAME).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        manifest.write_atomic(out / "recipe.yaml", to_yaml(recipe))
        previous = _untrained(recipe, out, start)
        processor = model_folder.load_processor(previous / MODEL)
        unfinished = {name for name in wanted if not manifest.is_done(out / name, wanted[name])}
        sources: dict[str | None, Pixels] = {}  # stages that show the same folder share what was decoded
        examples = {}
        for name, stage in present:  # all of them now: a bad record of the last stage must not wait for its turn
            if name in unfinished:
                images = None if stage.images is None else Path(stage.images)
                pixels = sources.setdefault(stage.images, Pixels(images, processor))
                examples[name] = read_examples(Path(str(stage.data)), pixels, processor, recipe.train.max_tokens)
        for name, stage in present:
            folder = out / name
            if name in unfinished:
                (folder / manifest.NAME).unlink(missing_ok=True)
                assembled = model_folder.load(previous / MODEL, _dtype(recipe))
                run_stage(
                    assembled,
                    examples.pop(name),
                    sources[stage.images],
                    name,
                    stage,
                    recipe.train,
                    folder,
                    recipe.seed,
                    wanted[name],
                    resume,
                )
            else:
                print(f"train {name}: finished already, skipped", file=sys.stderr)
            previous = folder
    finished = {name: _finished(out / name) for name in wanted}
    run.counts = {
        f"{name}_{key}": body["counts"][key] for name, body in finished.items() for key in ("steps", "examples")
    }
    run.seconds = sum(body["seconds"] for body in finished.values())
    run.files = {"recipe.yaml": manifest.file_sha256(out / "recipe.yaml")}
    if not manifest.is_done(out, run):
        write_page(out, recipe, finished)
        run.files["report.html"] = manifest.file_sha256(out / "report.html")
        run.write(out, hash_files=False)  # every stage's manifest has the hashes of its own files
    return run


def stage_manifest(recipe: Recipe, name: str, stage: StageSection, starts_from: str) -> Manifest:
    """What a stage is made from; `starts_from` is the fingerprint of the model that it trains on."""
    assert stage.data is not None
    inputs = {stage.data: manifest.file_sha256(Path(stage.data)), "starts from": starts_from}
    if stage.images is not None:
        body = manifest.read(Path(stage.images))
        inputs[stage.images] = "loose files" if body is None else str(body["fingerprint"])
    settings = {
        "name": name,
        "seed": recipe.seed,
        **stage.model_dump(exclude={"data", "images"}),
        **recipe.train.model_dump(include=_ALSO_DECIDES),
    }
    return Manifest("stage", settings=settings, inputs=inputs)


def _untrained(recipe: Recipe, out: Path, made_from: Manifest) -> Path:
    """The model before any training, as a stage folder."""
    folder = out / UNTRAINED
    if not manifest.is_done(folder, made_from):
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        model_folder.save(build(recipe.model, recipe.seed, _dtype(recipe)), folder / MODEL)
        made_from.seconds = time.monotonic() - began
        made_from.write(folder)
    return folder


def _untrained_manifest(recipe: Recipe) -> Manifest:
    section = recipe.model
    settings = {**section.model_dump(), "seed": recipe.seed, "dtype": recipe.train.dtype}
    return Manifest(UNTRAINED, settings=settings, inputs=_part_fingerprints(section))


def _part_fingerprints(section: ModelSection) -> dict[str, str]:
    if section.init_from is not None:
        found = model_folder.find(Path(section.init_from).expanduser())
        return {section.init_from: _folder_sha256(found)}
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


def _finished(folder: Path) -> dict[str, Any]:
    body = manifest.read(folder)
    assert body is not None, folder
    return body


def _dtype(recipe: Recipe) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, recipe.train.dtype)
    return dtype
