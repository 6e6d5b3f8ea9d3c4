"""The demo: draw the phantom world, publish it, and run the whole pipeline over it.

    out/world/articles     phantom articles in the bucket's layout
    out/world/benchmark    held-out questions: other seeds, other words
    out/corpus, instruct, train, eval, report.html    what `pipeline.run` makes of them

Every folder is complete or absent (`manifest.json` is written last), so the demo may be interrupted at
any moment and run again: what is finished stays, and the result is the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llavamed import manifest, pipeline, recipe
from llavamed.demo.articles import write_articles
from llavamed.demo.benchmark import write_benchmark
from llavamed.manifest import Manifest
from llavamed.recipe import Recipe


def demo(settings: Recipe, out: Path) -> pipeline.Outcome:
    """Make the world that `settings.demo` describes under `out` and run `settings` over it."""
    world, size = out / "world", settings.demo.image_size
    began = time.monotonic()
    _make(
        world / "articles",
        Manifest("phantom articles", {"articles": settings.demo.articles, "size": size, "seed": settings.seed}),
        lambda folder: write_articles(folder, settings.demo.articles, settings.seed, size),
    )
    _make(
        world / "benchmark",
        Manifest("phantom benchmark", {"questions": settings.demo.questions, "size": size, "seed": settings.seed}),
        lambda folder: write_benchmark(folder, settings.demo.questions, settings.seed, size),
    )
    seconds = time.monotonic() - began
    settings = recipe.changed(
        settings,
        {"corpus.articles": str(world / "articles"), "evaluate.data": str(world / "benchmark")},
    )
    outcome = pipeline.run(settings, out)
    return replace(outcome, seconds={"phantom world": seconds, **outcome.seconds})


def _make(folder: Path, wanted: Manifest, write: Callable[[Path], None]) -> None:
    """Write `folder` anew unless it is complete and made from the same settings."""
    if manifest.is_done(folder, wanted):
        return
    manifest.begin(folder, wanted.stage)
    for old in folder.iterdir():  # what an interrupted or differently set demo left
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != manifest.UNFINISHED:
            old.unlink()
    began = time.monotonic()
    write(folder)
    wanted.seconds = time.monotonic() - began
    wanted.write(folder)
