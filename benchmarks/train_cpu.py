"""Training on a CPU: the engine beside transformers' `Trainer` and TRL's `SFTTrainer`, in one process.

    pip install "trl==1.16.*" accelerate datasets       into an environment of its own: they are no dependency
    python benchmarks/train_cpu.py [--threads N] [--quick] [--threads 1 --cpu-seconds]

Everyone trains a copy of the same weights (the demo's two million parameters), in float32, with AdamW (fused, constant
rate 1e-3, no decay, gradients clipped at 1), 32 examples a step, the loss the mean over the step's supervised tokens.
Lengths follow LLaVA-Med's data: a caption has 120 tokens (deviation 1.1 times the mean, log-normal), a conversation of
four turns 335 with its template (deviation a third), 225 of them supervised; 36 more are the picture. The words are
the demo's, and every picture is at the tower's size.

    llavamed    `train.loop.run_stage`: packed, at the best of its token budgets a pack
    Trainer     padded, SDPA; token ids, labels and preprocessed pixels are ready in memory, as they are for us
    SFTTrainer  padded (it refuses to pack pictures); its own collator, which renders the template, tokenises and
                preprocesses the picture for every batch: pictures and messages are what it takes

A peer runs at the best of its batch sizes, the rest of a step by accumulation, in each of two orders: the plan's, in
which it takes the steps that we take, and `group_by_length`, which draws the examples of a step by length: less
padding, other steps. The choice of the batch size is made on fewer steps before.

Time is that of the training loop: the sum of `seconds` in metrics.jsonl; from `on_train_begin` to the end of the last
step. Loading, the first checkpoint and saving are outside. All steps count: what is grouped by length begins with the
longest, and to skip these would flatter it; the choice of the batch size before has warmed everyone up. Repeats are
interleaved; a ratio is taken within a repeat. On a machine that others use, two threads wait for whichever is not let
run and the wall clock says nothing: `--threads 1 --cpu-seconds` counts processor time, which hardly varies.

Equal loss: on 64 held-out examples after the last step, everyone's by the same plain forward of transformers. In the
plan's order a peer must come to our loss but for rounding. By length the steps are made of other examples, and after
so few steps that alone moves the loss: the bound is wider, and the runs of the choice, in the plan's order, are
what shows that everyone does the same sums.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
import trl
from PIL import Image

from llavamed.demo.draw import draw
from llavamed.demo.truth import sample
from llavamed.demo.wording import tell
from llavamed.manifest import Manifest
from llavamed.model import chat
from llavamed.model.parts import Assembled, build, trainable_parameters
from llavamed.recipe import ModelSection, StageSection, TrainSection
from llavamed.records import Conversation, assistant, user, write_jsonl
from llavamed.train.data import Examples, Pixels, read_examples
from llavamed.train.loop import run_stage
from llavamed.train.validate import read_rows

SEED, BATCH, HELD_OUT = 0, 32, 64
ROUNDING, OTHER_ORDER = 0.002, 0.1  # nats a token that a held-out loss may be away from ours
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
BUDGETS = (1024, 2048, 4096, 8192)  # tokens a pack
TRAIN = TrainSection()
STAGES = {
    "align": StageSection(trains=("projector",)),
    "instruct": StageSection(trains=("projector", "language_model")),
}
STAGES = {
    name: stage.model_copy(update={"batch_size": BATCH, "warmup_ratio": 0.0, "schedule": "constant"})
    for name, stage in STAGES.items()
}


@dataclass(frozen=True)
class Work:
    """What everyone trains on in one stage."""

    name: str
    assembled: Assembled  # never trained, only copied
    conversations: list[Conversation]
    examples: Examples
    held_out: Examples
    pixels: Pixels
    images: Path

    @property
    def steps(self) -> int:
        return len(self.conversations) // BATCH

    @property
    def order(self) -> list[int]:
        """The plan's (`pack.plan_epoch`)."""
        order: list[int] = np.random.default_rng([SEED, 0]).permutation(len(self.conversations)).tolist()
        return order

    def only(self, steps: int) -> Work:
        """The examples of so many steps."""
        count = steps * BATCH
        fewer = Examples(**{key: value[:count] for key, value in vars(self.examples).items()})
        return replace(self, conversations=self.conversations[:count], examples=fewer)


@dataclass(frozen=True)
class Result:
    examples_per_second: float
    training_loss: float  # mean over the steps
    held_out_loss: float


def text(tokenizer: Any, tokens: int, rng: np.random.Generator) -> str:
    """Sentences of the demo's articles, of about so many tokens."""
    words: list[str] = []
    while (have := len(tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])) < tokens:
        told = tell(sample(rng), "Figure 2", rng)
        words += " ".join((told.caption, *told.sentences)).split()
    return " ".join(words[: max(1, round(len(words) * tokens / have))])


def conversation(tokenizer: Any, stage: str, number: int, rng: np.random.Generator) -> Conversation:
    if stage == "align":
        sigma = np.sqrt(np.log(1 + 1.1**2))
        tokens = int(np.clip(rng.lognormal(np.log(120) - sigma**2 / 2, sigma), 8, 900))
        turns = [user("Describe the image briefly.", images=1), assistant(text(tokenizer, tokens, rng))]
    else:
        answers = np.clip(rng.normal(225, 225 / 3), 40, 900) / 4 - 1  # one more is the end of text
        turns = []
        for turn in range(4):
            turns.append(user(text(tokenizer, 19, rng), images=int(turn == 0)))
            turns.append(assistant(text(tokenizer, int(answers), rng)))
    return Conversation(f"c-{number:05d}", (f"{number:05d}.png",), tuple(turns))


def make_work(stage: str, steps: int, out: Path) -> Work:
    rng = np.random.default_rng([SEED, len(stage)])
    assembled = build(ModelSection(vision_tower="tiny", language_model="tiny"), SEED)
    processor = assembled.processor
    side = chat.image_side(processor.image_processor)
    (out / "images").mkdir(parents=True)
    everything = []
    for number in range(steps * BATCH + HELD_OUT):
        Image.fromarray(draw(sample(rng), rng, side)).save(out / "images" / f"{number:05d}.png")
        everything.append(conversation(processor.tokenizer, stage, number, rng))
    pixels = Pixels(out / "images", processor)
    parts = {"train": everything[:-HELD_OUT], "held_out": everything[-HELD_OUT:]}
    read = {}
    for name, part in parts.items():
        write_jsonl(out / f"{name}.jsonl", part)
        read[name] = read_examples(out / f"{name}.jsonl", pixels, processor, TRAIN.max_tokens)
    return Work(stage, assembled, parts["train"], read["train"], read["held_out"], pixels, out / "images")


def held_out_loss(work: Work, model: Any) -> float:
    """The mean over supervised tokens, by the plain forward of a fresh model with the trained weights."""
    plain = copy.deepcopy(work.assembled.model)
    plain.load_state_dict(model.state_dict())
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, HELD_OUT, 8):
            rows = [row(work, index, work.held_out) for index in range(start, start + 8)]
            batch = padded(rows)
            labels = batch.pop("labels")[:, 1:].flatten()
            logits = plain(**batch).logits[:, :-1].flatten(0, 1)
            total += F.cross_entropy(logits, labels, reduction="sum").item()
            count += float((labels != -100).sum())
    return total / count


def llavamed(work: Work, out: Path, tokens_per_pack: int) -> Result:
    """Our engine, as `llavamed train` runs it."""
    mine = Assembled(copy.deepcopy(work.assembled.model), work.assembled.processor)
    stage, train = STAGES[work.name], TRAIN.model_copy(update={"tokens_per_pack": tokens_per_pack})
    run_stage(mine, work.examples, work.pixels, work.name, stage, train, out, SEED, Manifest("stage"))
    steps = read_rows(out / "metrics.jsonl")
    rate = len(work.conversations) / sum(step["seconds"] for step in steps)
    return Result(rate, statistics.mean(step["loss"] for step in steps), held_out_loss(work, mine.model))


def row(work: Work, index: int, examples: Examples) -> dict[str, torch.Tensor]:
    """One example as the `Trainer` is given it."""
    ids = torch.from_numpy(examples.input_ids[index].astype(np.int64))
    labels = torch.where(torch.from_numpy(examples.supervised[index]), ids, -100)
    pixels = np.stack([work.pixels.load(key) for key in examples.images[index]])
    return {"input_ids": ids, "labels": labels, "pixel_values": torch.from_numpy(pixels)}


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    ids, labels = [one["input_ids"] for one in rows], [one["labels"] for one in rows]
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=0),
        "attention_mask": pad([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "pixel_values": torch.cat([one["pixel_values"] for one in rows]),
    }


class Clock(transformers.TrainerCallback):
    """When the loop began and when its last step ended."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.ended = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


@dataclass(frozen=True)
class Way:
    """How a peer is run."""

    batch_size: int
    grouped: bool

    def __str__(self) -> str:
        return f"padded, batch {self.batch_size}" + (", by length" if self.grouped else "")


def settings(way: Way, work: Work, out: Path) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": way.batch_size,
        "gradient_accumulation_steps": BATCH // way.batch_size,
        "max_steps": work.steps,
        "train_sampling_strategy": "group_by_length" if way.grouped else "sequential",
        "optim": "adamw_torch_fused",
        "learning_rate": STAGES["align"].learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": TRAIN.adam_betas[0],
        "adam_beta2": TRAIN.adam_betas[1],
        "weight_decay": 0.0,
        "max_grad_norm": TRAIN.clip_grad_norm,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "seed": SEED,
    }


def measured(trainer: Any, work: Work) -> Result:
    trainer.remove_callback(transformers.PrinterCallback)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rate = len(work.conversations) / (clock.ended - clock.began)
    return Result(rate, statistics.mean(losses), held_out_loss(work, trainer.model))


def frozen_copy(work: Work) -> Any:
    model: Any = copy.deepcopy(work.assembled.model)
    trainable_parameters(model, STAGES[work.name].trains)
    return model


def trainer(work: Work, out: Path, way: Way) -> Result:
    made = transformers.Trainer(
        model=frozen_copy(work),
        args=transformers.TrainingArguments(**settings(way, work, out)),
        data_collator=padded,
        train_dataset=[row(work, index, work.examples) for index in work.order],
    )
    return measured(made, work)


def sft_trainer(work: Work, out: Path, way: Way) -> Result:
    chosen = [work.conversations[index] for index in work.order]
    data = datasets.Dataset.from_dict(
        {
            "messages": [[{"role": m.role, "content": m.text} for m in one.messages] for one in chosen],
            "images": [[str(work.images / key) for key in one.images] for one in chosen],
            "length": [int(work.examples.lengths[index]) for index in work.order],
        }
    ).cast_column("images", datasets.List(datasets.Image()))
    made = trl.SFTTrainer(
        model=frozen_copy(work),
        args=trl.SFTConfig(
            **settings(way, work, out), max_length=None, assistant_only_loss=True, gradient_checkpointing=False
        ),
        train_dataset=data,
        processing_class=copy.deepcopy(work.assembled.processor),
    )
    check_labels(made, work, [data[index] for index in range(3)])
    return measured(made, work)


def check_labels(made: Any, work: Work, rows: list[dict[str, Any]]) -> None:
    """Its collator must supervise the very tokens that we do."""
    theirs = made.data_collator(rows)
    for index, ids, labels, mask in zip(
        work.order, theirs["input_ids"], theirs["labels"], theirs["attention_mask"], strict=False
    ):
        ours = row(work, index, work.examples)
        assert torch.equal(ids[mask.bool()], ours["input_ids"]), index
        assert torch.equal(labels[mask.bool()], ours["labels"]), index


PEERS: dict[str, Callable[[Work, Path, Way], Result]] = {"Trainer": trainer, "SFTTrainer": sft_trainer}


def best_ways(peer: str, work: Work, sizes: tuple[int, ...], ours: Result, out: Path) -> list[Way]:
    """The fastest on a few steps, each tried once: in the plan's order, and by length."""
    ways = [Way(size, grouped) for grouped in (False, True) for size in sizes if size > 1 or not grouped]
    results = {way: PEERS[peer](work, out, way) for way in ways}
    told = "; ".join(f"{way} {result.examples_per_second:.1f}" for way, result in results.items())
    apart = max(apart_from(ours, result) for way, result in results.items() if not way.grouped)
    print(
        f"{work.name}, {peer}, examples/s in {work.steps} steps: {told}. In the plan's order the loss held out is at "
        f"most {apart:.5f} from ours"
    )
    assert apart <= ROUNDING, "not the same sums"
    return [
        max((way for way in ways if way.grouped == grouped), key=lambda way: results[way].examples_per_second)
        for grouped in (False, True)
    ]


def apart_from(ours: Result, theirs: Result) -> float:
    return abs(ours.held_out_loss - theirs.held_out_loss)


def spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def run(
    stage: str, steps: int, sweep: int, repeats: int, sizes: tuple[int, ...], budgets: tuple[int, ...], scratch: Path
) -> list[str]:
    work = make_work(stage, steps, scratch / stage)
    lengths, targets = work.examples.lengths, work.examples.targets
    print(
        f"{stage}: {len(lengths)} examples of {lengths.mean():.0f} tokens (deviation {lengths.std():.0f}), "
        f"{targets.mean():.0f} supervised"
    )
    out, few = scratch / f"{stage}-runs", work.only(sweep)
    llavamed(few, out / "warm", budgets[0])
    tried = {tokens: llavamed(few, out / f"budget-{tokens}", tokens) for tokens in budgets}
    budget = max(tried, key=lambda tokens: tried[tokens].examples_per_second)
    told = "; ".join(f"{tokens} tokens {one.examples_per_second:.1f}" for tokens, one in tried.items())
    print(f"{stage}, llavamed, examples/s in {sweep} steps: {told}")
    peers = [(peer, way) for peer in PEERS for way in best_ways(peer, few, sizes, tried[budget], out / peer)]
    ours: list[Result] = []
    theirs: dict[tuple[str, Way], list[Result]] = {peer: [] for peer in peers}
    for repeat in range(repeats):
        ours.append(llavamed(work, out / f"llavamed-{repeat}", budget))
        for peer, way in peers:
            theirs[peer, way].append(PEERS[peer](work, out / f"{peer}-{repeat}", way))
    rows = []
    for (name, way), all_of in {("llavamed", None): ours, **theirs}.items():
        ratios = [mine.examples_per_second / its.examples_per_second for mine, its in zip(ours, all_of, strict=True)]
        how, equal = f"packs of {budget} tokens", "-"
        if way is not None:
            apart = max(apart_from(ours[0], result) for result in all_of)
            bound = OTHER_ORDER if way.grouped else ROUNDING
            how, equal = str(way), f"{apart:.4f} apart, {'within' if apart <= bound else 'NOT WITHIN'} {bound}"
        rows.append(
            f"| {stage} | {name} | {how} | {spread([result.examples_per_second for result in all_of], 1)} "
            f"| {'1' if way is None else spread(ratios, 2)} "
            f"| {all_of[0].training_loss:.4f} | {all_of[0].held_out_loss:.4f} | {equal} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, for everyone")
    parser.add_argument("--quick", action="store_true", help="one repeat, few steps: checks the script")
    parser.add_argument("--stage", choices=STAGES, help="this one alone")
    parser.add_argument("--cpu-seconds", action="store_true", help="count processor time; takes --threads 1")
    args = parser.parse_args()
    if args.cpu_seconds:
        if args.threads != 1:
            parser.error("--cpu-seconds: of several threads those that wait count as well; add --threads 1")
        time.perf_counter = time.process_time  # everyone's clock, the engine's too
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    steps, sweep, repeats, sizes, budgets = (
        (3, 1, 1, (2, 4), BUDGETS[1:2]) if args.quick else (16, 2, 3, BATCH_SIZES, BUDGETS)
    )
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        for stage in [args.stage] if args.stage else STAGES:
            table += run(stage, steps, sweep, repeats, sizes, budgets, Path(scratch))
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}; {args.threads} "
        f"threads, {'processor' if args.cpu_seconds else 'wall'} time; {steps} steps of {BATCH} examples; "
        f"median (range) of {repeats} interleaved repeats; seed {SEED}\n\n"
        "| stage | trainer | how | examples/s | llavamed is faster by | training loss | loss held out | equal |\n"
        f"{'|---' * 8}|"
    )
    print("\n".join(table))


if __name__ == "__main__":
    main()
