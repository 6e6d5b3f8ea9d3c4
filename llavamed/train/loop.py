"""One stage of the curriculum, from its examples to its model folder.

In: an assembled model, the stage's section of the recipe, and what it is made from. Out: a folder with

    metrics.jsonl    one line per optimizer step, without gaps or repeats, whatever happened in between
    checkpoints/     the last few states to go on from; removed once the stage is finished
    model/           the trained model, a plain Hugging Face folder
    manifest.json    the stage is finished

The hard thing is that an interruption must leave no trace. All that a step depends on is a function of the
step's number (the packs, the learning rate, the random seed) or is in the checkpoint (trained parameters,
moments). So a run that was killed and resumed ends with the same bytes as one that was not, on the same
machine with the same number of threads. On a GPU the attention kernel's backward adds in no fixed order, and
two runs agree only to rounding.

Checkpoints are written by the clock, on SIGTERM (a batch system's notice: then exit code 0) and on Ctrl-C. One is
written and read back before the first step, and the disk is measured, so that a run does not die at its last save.

Under `dtype: bfloat16` products are taken in bfloat16 while the parameters that are trained, and their moments,
are kept in float32: a step of 2e-5 on a weight of 1 is smaller than bfloat16 can tell apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np
import torch

from llavamed.errors import InputError
from llavamed.manifest import Manifest, write_atomic
from llavamed.model import folder as model_folder
from llavamed.model.parts import Assembled, trainable_parameters
from llavamed.progress import Progress
from llavamed.recipe import StageSection, TrainSection
from llavamed.train import checkpoint, speed
from llavamed.train.attention import packed
from llavamed.train.data import Examples, Pixels, batches
from llavamed.train.forward import Batch, pack_loss
from llavamed.train.optimizer import make_optimizer, rate_factor, set_rates, training_state
from llavamed.train.pack import Schedule, Step

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model"


def run_stage(
    assembled: Assembled,
    examples: Examples,
    pixels: Pixels,
    name: str,
    stage: StageSection,
    train: TrainSection,
    out: Path,
    seed: int,
    made_from: Manifest,
    resume: bool = True,
) -> Manifest:
    """Train `assembled` in place and write the finished stage to `out`; returns its manifest.

    `made_from` says what the stage is made of (`run.stage_manifest`): checkpoints of anything else are not resumed.
    Raises InputError if the disk is too small, RuntimeError if loss or gradient stop being finite.
    """
    schedule = Schedule(examples.lengths, stage.batch_size, train.tokens_per_pack, seed, stage.epochs)
    run = _Run(assembled, name, stage, train, out, seed, made_from.fingerprint, examples, schedule)
    done = run.resume_or_begin(resume)
    model, token_id = assembled.model, assembled.model.config.image_token_id
    source = batches(examples, pixels, schedule, done, stage.loss, token_id)
    title = f"train {name}"
    progress = Progress(title, schedule.examples_before(schedule.total), "examples", schedule.examples_before(done))
    saved = time.monotonic()
    with packed(model), contextlib.closing(source), _stop_signals() as stop, progress, run.log() as log:
        for number, (step, packs) in enumerate(source, done):
            row = run.step(number, step, packs)
            log.write(json.dumps(row) + "\n")
            log.flush()
            done = number + 1
            note = f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
            progress.advance(row["examples"], note)
            late = time.monotonic() - saved > 60 * train.checkpoint_minutes
            if done < schedule.total and (late or stop.asked):
                os.fsync(log.fileno())  # the log must reach as far as the checkpoint
                run.save(done)
                saved = time.monotonic()
                stop.leave()
        finished = run.finish(made_from)
        stop.leave()
    return finished


class _Run:
    """The state of a stage while it trains."""

    def __init__(
        self,
        assembled: Assembled,
        name: str,
        stage: StageSection,
        train: TrainSection,
        out: Path,
        seed: int,
        fingerprint: str,
        examples: Examples,
        schedule: Schedule,
    ) -> None:
        self.assembled, self.name, self.stage, self.train, self.out = assembled, name, stage, train, out
        self.seed, self.fingerprint, self.examples, self.schedule = seed, fingerprint, examples, schedule
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = train.dtype == "bfloat16"
        model: Any = assembled.model
        self.parameters = trainable_parameters(model, stage.trains)
        self.trained = [parameter for named in self.parameters.values() for parameter in named.values()]
        self.folder_dtype = model.dtype
        for parameter in self.trained:
            parameter.data = parameter.data.float()
        model.to(self.device).train()
        if "vision_tower" not in stage.trains:
            model.model.vision_tower.eval()
        speed.prepare(model, train, stage)
        self.optimizer = make_optimizer(self.parameters, stage, train.adam_betas, train.optimizer_state)
        self.state = training_state(self.parameters, self.optimizer)

    def resume_or_begin(self, resume: bool) -> int:
        """Steps already done. Leaves the folder as it was after exactly that many steps."""
        checkpoints = self.out / CHECKPOINTS
        found = checkpoint.latest(checkpoints, self.fingerprint) if resume else None
        if found is not None:
            done, path = found
            checkpoint.restore(path, self.state)
            keep_metrics(self.out / METRICS, done)
            if done:
                print(f"train {self.name}: going on after step {done} of {self.schedule.total}", file=sys.stderr)
            return done
        self.out.mkdir(parents=True, exist_ok=True)
        for stale in (checkpoints, self.out / MODEL):
            shutil.rmtree(stale, ignore_errors=True)
        (self.out / METRICS).unlink(missing_ok=True)
        self._check_disk()
        path = self.save(0)
        if not checkpoint.matches(path, self.state):
            raise RuntimeError(
                f"{path}: what was read back is not what was written; the disk is faulty, or the model that was "
                "loaded has parameters that are not numbers"
            )
        return 0

    def log(self) -> TextIO:
        return (self.out / METRICS).open("a", encoding="utf-8")

    def save(self, done: int) -> Path:
        return checkpoint.save(self.out / CHECKPOINTS, done, self.state, self.fingerprint, self.train.keep_checkpoints)

    def step(self, number: int, step: Step, packs: list[Future[Batch]]) -> dict[str, Any]:
        """One optimizer update; returns its line of metrics."""
        began = time.perf_counter()
        torch.manual_seed(int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]))
        rates = set_rates(self.optimizer, rate_factor(number, self.schedule.total, self.stage))
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for future in packs:
            batch = future.result().to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = pack_loss(self.assembled.model, batch)
            if loss.requires_grad:  # in `align` a pack without images teaches the projector nothing
                loss.backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.train.clip_grad_norm)
        by_pack, grad_norm = torch.stack(losses).tolist(), norm.item()
        self._check_finite(number, step, by_pack, grad_norm)
        self.optimizer.step()
        members = [index for pack in step for index in pack]
        tokens = int(self.examples.lengths[members].sum())
        seconds = time.perf_counter() - began
        return {
            "step": number + 1,
            "loss": sum(by_pack),
            "grad_norm": grad_norm,
            "learning_rates": rates,
            "examples": len(members),
            "tokens": tokens,
            "supervised_tokens": int(self.examples.targets[members].sum()),
            "fill": round(tokens / (len(step) * self.train.tokens_per_pack), 4),
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_memory_mb": round(self._peak_memory_mb(), 1),
        }

    def finish(self, made_from: Manifest) -> Manifest:
        model: Any = self.assembled.model
        for parameter in self.trained:
            parameter.grad = None
            parameter.data = parameter.data.to(self.folder_dtype)
            parameter.requires_grad_(False)
        self.optimizer.state.clear()
        self.state = {}
        model.to("cpu").eval()
        speed.restore(model)
        model_folder.save(self.assembled, self.out / MODEL)
        rows = read_metrics(self.out / METRICS)
        finished = replace(
            made_from,
            counts={
                "steps": len(rows),
                **{key: sum(row[key] for row in rows) for key in ("examples", "tokens", "supervised_tokens")},
                "trainable_parameters": sum(parameter.numel() for parameter in self.trained),
            },
            seconds=sum(row["seconds"] for row in rows),
            extra={"first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"]},
        )
        finished.write(self.out)
        drop_checkpoints(self.out)
        return finished

    def _check_finite(self, number: int, step: Step, by_pack: list[float], grad_norm: float) -> None:
        wrong = [pack for pack, loss in zip(step, by_pack, strict=True) if not np.isfinite(loss)]
        if not wrong and np.isfinite(grad_norm):
            return
        what = "loss" if wrong else "gradient"
        ids = [self.examples.ids[index] for pack in (wrong or step) for index in pack]
        listed = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
        raise RuntimeError(
            f"train {self.name}: the {what} of step {number + 1} is not finite, in the records {listed}. Look at these "
            f"records, or lower train.{self.name}.learning_rate or raise its warmup_ratio"
        )

    def _check_disk(self) -> None:
        state = sum(tensor.nbytes for tensor in self.state.values())
        model = sum(tensor.nbytes for tensor in self.assembled.model.state_dict().values())
        needed = (self.train.keep_checkpoints + 1) * state + model
        free = shutil.disk_usage(self.out).free
        if free < needed:
            raise InputError(
                f"{self.out}: {free / 1e9:.1f} GB free, but the checkpoints and the model of this stage take "
                f"{needed / 1e9:.1f} GB; free space, choose another folder or lower train.keep_checkpoints"
            )

    def _peak_memory_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def drop_checkpoints(out: Path) -> None:
    """The largest files of a stage, and of no use once it is finished or what it starts from is replaced."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line that was cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def keep_metrics(path: Path, steps: int) -> None:
    """Forget the steps after `steps`: they are about to be done again."""
    rows = [row for row in read_metrics(path) if row["step"] <= steps]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class _Stop:
    """Which signal asked the run to end, if any."""

    asked: int | None = None

    def leave(self) -> None:
        """Called once the checkpoint is on disk."""
        if self.asked == signal.SIGTERM:
            raise SystemExit(0)
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Within the block SIGTERM and SIGINT are noted, for the loop to act on between two steps.

    A second signal acts at once. Only the main thread may set handlers; elsewhere signals keep their meaning.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        stop.asked = number
        for known, handler in before.items():
            signal.signal(known, handler)
        print("\nstopping after this step; the next signal stops at once", file=sys.stderr)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
