"""One stage of the curriculum, from its examples to its model folder.

In: an assembled model, the stage's section of the recipe, and what it is made from. Out: a folder with

    metrics.jsonl    one line per optimizer step, without gaps or repeats, whatever happened in between
    validation.jsonl, samples.jsonl    what `validate.py` measures on the way, if the recipe asks
    checkpoints/     the last few states to go on from; removed once the stage is finished
    model/           the trained model, a plain Hugging Face folder
    adapter/         with `lora`: what was trained, without its base (lora.py)
    manifest.json    the stage is finished

The hard thing is that an interruption must leave no trace. All that a step depends on is a function of the
step's number (the packs, the learning rate, the random seed) or is in the checkpoint (trained parameters,
moments). So a run that was killed and resumed ends with the same bytes as one that was not, on the same
machine with the same number of threads. On a GPU the attention kernel's backward adds in no fixed order, and
two runs agree only to rounding; so do runs on different numbers of ranks, which add the packs in another order.

With several ranks (`ranks.py`) each does its own packs of every step. Weights of a step add up to 1 over all packs, so
the sum over ranks is the step's gradient; PyTorch's sharding takes the mean, hence the factor `world`.

Checkpoints are written by the clock, on SIGTERM (a batch system's notice: then exit code 0) and on Ctrl-C. One is
written and read back before the first step, and the disk is measured, so that a run does not die at its last save.

Under `dtype: bfloat16` products are taken in bfloat16 while the parameters that are trained, and their moments,
are kept in float32: a step of 2e-5 on a weight of 1 is smaller than bfloat16 can tell apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import folder as model_folder
from llavamed.model.parts import Assembled
from llavamed.progress import Progress
from llavamed.recipe import StageSection, TrainSection
from llavamed.train import checkpoint, lora, speed
from llavamed.train.attention import packed
from llavamed.train.data import Examples, Pixels, batches
from llavamed.train.features import Features, fit
from llavamed.train.forward import Batch, PackLoss, with_image
from llavamed.train.heap import freed_memory_kept
from llavamed.train.lanes import Lanes, lanes_for
from llavamed.train.meter import Meter, in_words
from llavamed.train.optimizer import make_optimizer, rate_factor, set_rates, training_state
from llavamed.train.pack import Schedule, Step
from llavamed.train.ranks import Ranks, shard, whole, widen
from llavamed.train.saver import Saver
from llavamed.train.stop import stop_signals
from llavamed.train.track import Trackers
from llavamed.train.validate import (
    SAMPLES,
    VALIDATION,
    Look,
    Score,
    answers,
    append_rows,
    best_steps,
    held_out_loss,
    hold_out,
    keep_rows,
    read_rows,
)

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
    ranks: Ranks | None = None,
    score: Score | None = None,
) -> Manifest:
    """Train `assembled` in place and write the finished stage to `out`; returns its manifest.

    `made_from` says what the stage is made of (`run.stage_manifest`): checkpoints of anything else are not resumed.
    Raises InputError if the disk is too small, RuntimeError if loss or gradient stop being finite.
    """
    ranks = ranks or Ranks()
    look = None
    if train.validation.every:
        examples, held_out = hold_out(examples, train.validation.held_out, seed)
        look = Look(held_out, pixels, train.validation, score)
    alone_on_cpu = ranks.world == 1 and ranks.device.type == "cpu"
    lanes = Lanes(lanes_for(assembled.model.config, examples.lengths, stage, train) if alone_on_cpu else 1)
    schedule = Schedule(
        examples.lengths, stage.batch_size, train.tokens_per_pack, seed, stage.epochs, ranks.world, lanes.count
    )
    run = _Run(assembled, name, stage, train, out, seed, made_from.fingerprint, examples, schedule, ranks, lanes, look)
    done = run.resume_or_begin(resume)
    model, token_id = assembled.model, assembled.model.config.image_token_id
    shown = Features(model, examples, pixels) if run.sees_again() and fit(model, examples) else pixels
    source = batches(examples, shown, schedule, done, stage.loss, token_id, ranks.rank)
    title = f"train {name}"
    progress = Progress(title, schedule.examples_before(schedule.total), "examples", schedule.examples_before(done))
    saved = time.monotonic()
    trackers = Trackers(train.trackers if ranks.first else (), out.parent, name, made_from.settings, done)
    with (
        freed_memory_kept() if ranks.device.type == "cpu" else contextlib.nullcontext(),
        packed(model),
        contextlib.closing(source),
        stop_signals() as stop,
        progress,
        run.log() as log,
        trackers,
        run.saver,
        lanes,
    ):
        for number, (step, packs) in enumerate(source, done):
            row = run.step(number, step, packs)
            log.write(json.dumps(row) + "\n")
            log.flush()
            trackers.log(row)
            done = number + 1
            progress.advance(row["examples"], in_words(row))
            run.saver.check()
            best = run.validate(done)
            late = time.monotonic() - saved > 60 * train.checkpoint_minutes
            late = stop.agree(ranks, late)
            if best or (done < schedule.total and (late or stop.agreed)):
                if ranks.first:
                    os.fsync(log.fileno())  # the log must reach as far as the checkpoint
                run.save(done)
                saved = time.monotonic()
                stop.agree(ranks, False)  # a signal may have come meanwhile
                if stop.agreed:
                    run.saver.wait()
                    stop.leave()
        run.saver.wait()
        finished = run.finish(made_from)
        stop.agree(ranks, False)
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
        ranks: Ranks,
        lanes: Lanes,
        look: Look | None,
    ) -> None:
        self.assembled, self.name, self.stage, self.train, self.out = assembled, name, stage, train, out
        self.seed, self.fingerprint, self.examples, self.schedule = seed, fingerprint, examples, schedule
        self.ranks, self.device, self.lanes, self.look = ranks, ranks.device, lanes, look
        self.autocast = train.dtype == "bfloat16"
        model: Any = assembled.model
        self.folder_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
        self.parameters = lora.trainable(assembled, stage, seed)  # freezes the rest
        self.folder_dtype = model.dtype
        self._training()
        self.loss = PackLoss(model)
        if ranks.world > 1:
            speed.prepare(model, train, stage)
            shard(self.loss, list(model.model.language_model.layers), ranks, self.autocast)
            now = dict(model.named_parameters())
            self.parameters = {part: {name: now[name] for name in named} for part, named in self.parameters.items()}
        else:
            widen(model)
            model.to(self.device)
            speed.prepare(model, train, stage)
        self.trained = [parameter for named in self.parameters.values() for parameter in named.values()]
        self.optimizer = make_optimizer(self.parameters, stage, train.adam_betas, train.optimizer_state)
        self.state = training_state(self.parameters, self.optimizer)
        keep, beside = train.keep_checkpoints, train.checkpoint_in_background
        self.saver = Saver(out / CHECKPOINTS, fingerprint, keep, ranks, beside)
        self.meter = Meter(model.config, examples, schedule, stage, train.dtype, self.device, ranks.world)

    def resume_or_begin(self, resume: bool) -> int:
        """Steps already done. Leaves the folder as it was after exactly that many steps."""
        checkpoints = self.out / CHECKPOINTS
        found = None
        if resume and self.ranks.first:
            with self.ranks.alive("checking the checkpoints"):
                found = checkpoint.latest(checkpoints, self.fingerprint)
        found = self.ranks.of_first(None if found is None else (found[0], str(found[1])))
        if found is not None:
            done, path = found
            checkpoint.restore(Path(path), self.state, self.ranks)
            if self.ranks.first:
                for name in (METRICS, VALIDATION, SAMPLES):
                    keep_rows(self.out / name, done)
                if done:
                    print(f"train {self.name}: going on after step {done} of {self.schedule.total}", file=sys.stderr)
            self.ranks.wait()
            return int(done)
        if self.ranks.first:
            self.out.mkdir(parents=True, exist_ok=True)
            for stale in (checkpoints, self.out / MODEL, self.out / lora.FOLDER):
                shutil.rmtree(stale, ignore_errors=True)
            for name in (METRICS, VALIDATION, SAMPLES):
                (self.out / name).unlink(missing_ok=True)
            self._check_disk()
        self.ranks.wait()
        path = self.save(0)
        self.saver.wait()
        if not checkpoint.matches(path, self.state, self.ranks):
            raise RuntimeError(
                f"{path}: what was read back is not what was written; the disk is faulty, or the model that was "
                "loaded has parameters that are not numbers"
            )
        return 0

    def log(self) -> TextIO:
        return (self.out / METRICS if self.ranks.first else Path(os.devnull)).open("a", encoding="utf-8")

    def save(self, done: int) -> Path:
        self.ranks.doing(f"saving the checkpoint of step {done}")
        return self.saver.save(done, self.state, self.best())

    def best(self) -> int | None:
        """The step whose model the stage is to leave, if it is not simply the last."""
        if self.look is None or self.look.settings.keep != "best":
            return None
        # the first rank's word: another machine may not see yet what was written
        steps: list[int] = self.ranks.of_first(
            best_steps(read_rows(self.out / VALIDATION)) if self.ranks.first else None
        )
        return next(iter(steps), None)

    def sees_again(self) -> bool:
        """True if a frozen tower would look at the same pictures in each of several epochs, here and in float32."""
        frozen = "vision_tower" not in self.stage.trained_parts
        plain = self.device.type == "cpu" and self.ranks.world == 1 and not self.autocast
        return frozen and plain and self.stage.epochs >= 2

    def pack_loss(self, batch: Batch) -> torch.Tensor:
        """This rank's pack, as a share of the loss that its weights add up to."""
        if self.ranks.world > 1:
            batch = with_image(batch, self.image_shape)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss: torch.Tensor = self.loss(batch.to(self.device))
        return loss

    def validate(self, done: int) -> bool:
        """Look at the held-out records if it is time; True if the model was never better and is to be kept."""
        look, model = self.look, self.assembled.model
        if look is None or not look.due(done, self.schedule.total):
            return False
        self.ranks.doing(f"validating after step {done}")
        model.eval()
        with torch.compiler.set_stance("force_eager"):  # other lengths, without gradients: no reason to compile anew
            row: dict[str, Any] = {"step": done, "loss": held_out_loss(look, self)}
            samples, scored = self._ask(look)
        self._training()
        if self.ranks.first:
            append_rows(self.out / SAMPLES, [{"step": done, **sample} for sample in samples])
            append_rows(self.out / VALIDATION, [row | scored])
        self.ranks.wait()
        return self.best() == done

    def _ask(self, look: Look) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Answers to a few held-out questions, and the small score. Of several ranks the first one has the whole model
        in its hands for it, while the others wait: they may not be in step where each says a text of its own length."""
        if look.settings.samples == 0 and look.score is None:
            return [], {}
        assembled = self._gathered()
        if assembled is None:
            return [], {}
        scored: dict[str, Any] = {}
        model: Any = assembled.model
        with (
            self.ranks.alive("answering held-out questions"),
            packed(model, "sdpa"),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast),
        ):
            try:
                if self.ranks.world > 1:
                    model.to(self.device).eval()
                samples = answers(assembled, look)
                if look.score is not None:
                    scored["score_name"], scored["score"] = look.score(assembled)
            except torch.OutOfMemoryError:
                if self.ranks.world == 1:
                    raise
                print(
                    f"train {self.name}: no answers and no score: beside its share the first rank has no room on its "
                    "GPU for the whole model; the loss of held-out records goes on",
                    file=sys.stderr,
                )
                samples = []
        return samples, scored

    def _training(self) -> None:
        """Into training mode; what is frozen stays as it is at inference."""
        self.assembled.model.train()
        if "vision_tower" not in self.stage.trained_parts:
            self.assembled.model.model.vision_tower.eval()

    def step(self, number: int, step: Step, packs: list[Future[Batch]]) -> dict[str, Any]:
        """One optimizer update; returns its line of metrics."""
        began = time.perf_counter()
        torch.manual_seed(int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]))
        rates = set_rates(self.optimizer, rate_factor(number, self.schedule.total, self.stage))
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._by_turns(number, packs) if self.lanes.count == 1 else self._in_lanes(packs)
        for parameter in self.trained:
            if parameter.grad is None:  # no pack reached it: a zero gradient, as with several ranks, and not no update
                parameter.grad = torch.zeros_like(parameter)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.trained, self.train.clip_grad_norm))
        by_pack, grad_norm = torch.stack(losses).tolist(), norm.item()
        (step_loss,) = self.ranks.total([sum(by_pack)])
        self._check_finite(number, step, by_pack, step_loss, grad_norm)
        self.optimizer.step()
        row = {"step": number + 1, "loss": step_loss, "grad_norm": grad_norm, "learning_rates": rates}
        return row | self.meter.measure(number + 1, step, time.perf_counter() - began)

    def _by_turns(self, number: int, packs: list[Future[Batch]]) -> list[torch.Tensor]:
        """The loss of each pack; leaves the sum of their gradients in the parameters."""
        losses = []
        for turn, future in enumerate(packs, 1):
            where = f"pack {turn} of {len(packs)} of step {number + 1}"
            self.ranks.doing(f"waiting for the data of {where}")
            batch = future.result()
            self.ranks.doing(f"in {where}")
            loss = self.pack_loss(batch)
            if loss.requires_grad:  # in `align` a pack without images teaches the projector nothing
                (loss * self.ranks.world).backward()
            losses.append(loss.detach())
        return losses

    def _in_lanes(self, packs: list[Future[Batch]]) -> list[torch.Tensor]:
        """The same, several packs at a time, in a process alone: the watchdog is told nothing."""

        def differentiate(future: Future[Batch]) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
            loss = self.pack_loss(future.result())
            if not loss.requires_grad:
                return loss, (None,) * len(self.trained)
            return loss.detach(), torch.autograd.grad(loss, self.trained, allow_unused=True)

        losses = []
        for loss, gradients in self.lanes.map(differentiate, packs):
            losses.append(loss)
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                if gradient is not None:  # two of them may be views of one tensor, as of a ViT's class token and places
                    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return losses

    def finish(self, made_from: Manifest) -> Manifest:
        best = self._back_to_best()
        self.ranks.doing("gathering the model")
        count = sum(parameter.numel() for parameter in self.trained)
        for parameter in self.trained:
            parameter.grad = None
        self.optimizer.state.clear()
        self.state = {}
        assembled = self._gathered()
        if assembled is not None:
            with self.ranks.alive("writing the model"):
                self._write(assembled, made_from)
        self.ranks.wait()
        rows = self.ranks.of_first(read_rows(self.out / METRICS) if self.ranks.first else None)
        finished = replace(
            made_from,
            counts={
                "steps": len(rows),
                **{key: sum(row[key] for row in rows) for key in ("examples", "tokens", "supervised_tokens")},
                "trainable_parameters": count,
            },
            seconds=sum(row["seconds"] for row in rows),
            extra={
                "first_loss": rows[0]["loss"],
                "last_loss": rows[-1]["loss"],
                **({"model_of_step": best} if best is not None else {}),
            },
        )
        if self.ranks.first:
            with self.ranks.alive("finishing the stage's folder"):
                finished.write(self.out)
                drop_checkpoints(self.out)
        self.ranks.wait()
        return finished

    def _write(self, assembled: Assembled, made_from: Manifest) -> None:
        """The stage's model, and its adapter where there is one."""
        assembled.model.to("cpu").eval()
        speed.restore(assembled.model)
        if self.stage.lora is not None:
            lora.finish(assembled, self.stage, self.out / lora.FOLDER, made_from)
        for parameter in assembled.model.parameters():
            parameter.data = parameter.data.to(self.folder_dtype)
            parameter.requires_grad_(False)
        model_folder.save(assembled, self.out / MODEL)

    def _back_to_best(self) -> int | None:
        """Put back the weights that the stage is to leave; returns their step, or None if the last are simply kept."""
        wanted = self.best()
        if wanted is None:
            return None
        self.ranks.doing(f"going back to step {wanted}")
        step = self.ranks.of_first(self._best_whole(wanted) if self.ranks.first else None)
        if step < self.schedule.total:
            checkpoint.restore(checkpoint.at(self.out / CHECKPOINTS, step), self.state, self.ranks)
        return int(step)

    def _best_whole(self, wanted: int) -> int:
        """The best step whose weights are there: in a whole checkpoint or, those of the last step, in memory."""
        last = self.schedule.total
        with self.ranks.alive("checking the checkpoints"):
            for step in best_steps(read_rows(self.out / VALIDATION)):
                if step == last or checkpoint.is_whole(checkpoint.at(self.out / CHECKPOINTS, step), self.fingerprint):
                    break
            else:
                step = last
        if step != wanted:
            print(
                f"train {self.name}: the checkpoint of step {wanted}, the best, is gone or damaged; "
                f"the model is that of step {step}, the best of the others",
                file=sys.stderr,
            )
        return step

    def _gathered(self) -> Assembled | None:
        """The model in one piece. Of a sharded one it is a copy on the first rank, and None on the others, which hand
        over what they hold: every rank has to call."""
        if self.ranks.world == 1:
            return self.assembled
        whole_model, parameters = None, {}
        if self.ranks.first:
            assert self.assembled.folder is not None
            with self.ranks.alive("reading the model that the stage began with"):
                whole_model = model_folder.load(self.assembled.folder, self.folder_dtype)
                parameters = lora.trainable(whole_model, self.stage, self.seed)
        for part, named in self.parameters.items():
            for name, shard_of_it in named.items():
                tensor = whole(shard_of_it)
                if whole_model is not None:
                    parameters[part][name].data = tensor.detach().cpu()
        return whole_model

    @property
    def image_shape(self) -> tuple[int, int, int]:
        size = self.assembled.model.config.vision_config.image_size
        return 3, size, size

    def _check_finite(self, number: int, step: Step, by_pack: list[float], step_loss: float, grad_norm: float) -> None:
        """Every rank raises, or none; `by_pack` are this rank's packs, the other two numbers everyone's."""
        if np.isfinite(step_loss) and np.isfinite(grad_norm):
            return
        what = "loss" if not np.isfinite(step_loss) else "gradient"
        mine = step[self.ranks.rank :: self.ranks.world]
        bad = [index for pack, loss in zip(mine, by_pack, strict=True) if not np.isfinite(loss) for index in pack]
        wrong = [index for part in self.ranks.everyone(bad) for index in part]
        ids = [self.examples.ids[index] for index in (wrong or [index for pack in step for index in pack])]
        listed = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
        raise RuntimeError(
            f"train {self.name}: the {what} of step {number + 1} is not finite, in the records {listed}. Look at these "
            f"records, or lower train.{self.name}.learning_rate or raise its warmup_ratio"
        )

    def _check_disk(self) -> None:
        needed, free = self._disk_bytes(), shutil.disk_usage(self.out).free
        if free < needed:
            raise InputError(
                f"{self.out}: {free / 1e9:.1f} GB free, but the checkpoints and the model of this stage take "
                f"{needed / 1e9:.1f} GB; free space, choose another folder or lower train.keep_checkpoints"
            )

    def _disk_bytes(self) -> int:
        """What the stage's folder takes at most."""
        state = sum(tensor.nbytes for tensor in self.state.values())
        best = self.look is not None and self.look.settings.keep == "best"
        states = self.train.keep_checkpoints + 1 + best  # what is kept, and the one that is being written
        return (states + (self.stage.lora is not None)) * state + self.folder_bytes


def drop_checkpoints(out: Path) -> None:
    """The largest files of a stage, and of no use once it is finished or what it starts from is replaced."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
