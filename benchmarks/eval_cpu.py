"""Evaluation on a CPU: ours beside one question at a time, the original's way, with the same answers.

    python benchmarks/eval_cpu.py --model demo-run/train/instruct [--questions N] [--repeats 3] [--parts]

The questions are VQA-RAD's 451 test questions on 203 radiographs where ../shared/data is present, and 451 of the
phantom world otherwise. Everyone has the same model in memory (in float32), decodes greedily, at most 64 tokens, and
writes a line for each answer.

    one at a time    as LLaVA-Med's `model_vqa.py` and `model_vqa_med.py`: for each question open and preprocess the
                     image, tokenise the prompt, call transformers' `generate`
    batches of 32    what one does next: transformers' `generate` on padded batches, sorted by length; image and prompt
                     are prepared for each question as before
    llavamed         `evaluate.predict.predict`, as `llavamed eval` runs it: with journal, resume and progress

Processor time is what the threads of the process used together; it is the one to look at on a machine that others
use. Wall time counts that our images are decoded in a thread of their own. Repeats are interleaved, each with empty
caches, and a ratio is taken within a repeat. Exits with 1 where an answer differs or the ratio is below what was
asked (4).

`--parts` also switches off what makes it fast, one thing at a time, where every fourth question is "Describe the
image.", so that answers are of several lengths; counts steps; times a step with either kind of cache; and times the
prefill of eight questions where an image has 576 tokens, as in LLaVA-Med v1.5 (a small random model).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from PIL import Image

from llavamed.demo.benchmark import write_benchmark
from llavamed.engine import decode, line
from llavamed.engine.features import Features, Picture
from llavamed.engine.local import LocalEngine
from llavamed.evaluate import benchmarks
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.predict import predict
from llavamed.model import chat, folder
from llavamed.model.folder import Assembled
from llavamed.records import read_jsonl, user

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "vqa_rad"
ASKED, TOKENS, BATCH = 4.0, 64, 32
Answers = dict[str, str]


def one_at_a_time(assembled: Assembled, benchmark: Benchmark, out: Path) -> Answers:
    answers = {}
    with (out / "answers.jsonl").open("w") as lines:
        for question in benchmark.questions:
            answers |= generated(assembled, benchmark, [question])
            lines.write(json.dumps({"question_id": question.id, "text": answers[question.id]}) + "\n")
            lines.flush()
    return answers


def in_batches(assembled: Assembled, benchmark: Benchmark, out: Path) -> Answers:
    answers: Answers = {}
    ordered = sorted(benchmark.questions, key=lambda question: -len(benchmark.ask(question)))
    with (out / "answers.jsonl").open("w") as lines:
        for start in range(0, len(ordered), BATCH):
            more = generated(assembled, benchmark, ordered[start : start + BATCH])
            answers |= more
            lines.writelines(json.dumps({"question_id": key, "text": text}) + "\n" for key, text in more.items())
            lines.flush()
    return answers


@torch.inference_mode()
def generated(assembled: Assembled, benchmark: Benchmark, questions: Any) -> Answers:
    """By transformers alone."""
    processor, model = assembled.processor, assembled.model
    inputs = processor(
        images=[Image.open(benchmark.images / question.image).convert("RGB") for question in questions],
        text=[chat.prompt(processor, (user(benchmark.ask(question), images=1),)) for question in questions],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    tokens = model.generate(
        **inputs, do_sample=False, max_new_tokens=TOKENS, pad_token_id=processor.tokenizer.pad_token_id
    )
    texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {question.id: text.strip() for question, text in zip(questions, texts, strict=True)}


def ours(assembled: Assembled, benchmark: Benchmark, out: Path) -> Answers:
    engine = LocalEngine.around(assembled, "model")
    path = predict(engine, benchmark, out, max_new_tokens=TOKENS, batch_size=BATCH)
    return {row["id"]: row["text"] for row in read_jsonl(path)}


Way = Callable[[Assembled, Benchmark, Path], Answers]
WAYS: dict[str, Way] = {"one at a time": one_at_a_time, f"batches of {BATCH}": in_batches, "llavamed": ours}


def without(*patches: Any) -> Way:
    def way(assembled: Assembled, benchmark: Benchmark, out: Path) -> Answers:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            return ours(assembled, benchmark, out)

    return way


def processor_alone(image_processor: Any, images: Any) -> Any:
    return image_processor(images, return_tensors="pt")["pixel_values"]


PARTS: dict[str, Way] = {
    "ended rows stay until all have ended": without(
        mock.patch.object(decode, "REFILL", 1), mock.patch.object(line, "REFILL", 1)
    ),
    "each beginning prefilled for every question": without(
        mock.patch.object(decode.Batch, "_cut", lambda batch, row: len(row.prompt) - 1)
    ),
    "images prepared by the processor": without(mock.patch("llavamed.engine.local.pixels", processor_alone)),
    "nothing kept of an image": without(
        mock.patch("llavamed.evaluate.predict.lru_cache", return_value=lambda make: make),
        mock.patch("llavamed.engine.local.Features", functools.partial(Features, limit_bytes=0)),
    ),
}  # fmt: skip


def measured(way: Way, assembled: Assembled, benchmark: Benchmark) -> tuple[float, float, Answers]:
    """Processor and wall seconds, and the answers."""
    with tempfile.TemporaryDirectory() as out:
        processor, wall = time.process_time(), time.perf_counter()
        answers = way(assembled, benchmark, Path(out))
        return time.process_time() - processor, time.perf_counter() - wall, answers


def table(
    ways: dict[str, Way], base: str, repeats: int, assembled: Assembled, benchmark: Benchmark
) -> dict[str, float]:
    """Prints a row for each way; returns the ratio of processor time to `base` of each."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    expected: Answers | None = None
    for _ in range(repeats):
        for name, way in ways.items():
            processor, wall, answers = measured(way, assembled, benchmark)
            runs[name].append((processor, wall))
            expected = expected or answers
            differing = [key for key, text in expected.items() if answers.get(key) != text]
            if differing or len(answers) != len(benchmark.questions):
                sys.exit(f"{name}: {len(differing)} answers differ, first that of question {differing[:1]}")
    count, ratios = len(benchmark.questions), {}
    print("| | processor, ms a question | examples/s of processor time | ratio | wall, ms a question | ratio |")
    print("|---|---|---|---|---|---|")
    for name, both in runs.items():
        processor, wall = (1000 * statistics.median(column) / count for column in zip(*both, strict=True))
        ratio, wall_ratio = (
            statistics.median(theirs[i] / mine[i] for theirs, mine in zip(runs[base], both, strict=True))
            for i in (0, 1)
        )
        ratios[name] = ratio
        print(f"| {name} | {processor:.1f} | {1000 / processor:.1f} | {ratio:.2f} | {wall:.1f} | {wall_ratio:.2f} |")
    print(f"\nThe same {count} answers from everyone.\n")
    return ratios


def steps(assembled: Assembled, benchmark: Benchmark) -> None:
    """What a GPU would feel, where a step takes as long for one row as for 32."""
    print("| rows leave and enter | steps | rows in a step | of them not ended, % |\n|---|---|---|---|")
    step = decode.Batch.step
    seen: list[tuple[int, int]] = []  # rows and those not ended, of every step

    def counted(batch: decode.Batch) -> list[decode.Row]:
        seen.append((len(batch.rows), batch.alive))
        return step(batch)

    for when, refill in (("when a quarter of the places is free", decode.REFILL), ("when all have ended", 1)):
        seen.clear()
        patches = [mock.patch.object(module, "REFILL", refill) for module in (decode, line)]
        measured(without(*patches, mock.patch.object(decode.Batch, "step", counted)), assembled, benchmark)
        rows, alive = (sum(column) for column in zip(*seen, strict=True))
        print(f"| {when} | {len(seen)} | {rows / len(seen):.1f} | {100 * alive / rows:.0f} |")
    print()


@torch.inference_mode()
def cache_steps(assembled: Assembled, columns: int = 64, steps: int = 32) -> None:
    """A step of 32 rows behind 64 columns, by the kind of cache."""
    language_model = assembled.model.model.language_model
    config = language_model.config
    kinds = {
        "dynamic": lambda: transformers.DynamicCache(),
        "static": lambda: transformers.StaticCache(config=config, max_cache_len=columns + TOKENS),
    }
    print("| key-value cache | processor, ms a step |\n|---|---|")
    mask = torch.ones(BATCH, columns + steps, dtype=torch.long)
    mask[0, 0] = 0  # as in a padded batch: without it no mask is made at all
    for name, make in kinds.items():
        best = []
        for _ in range(5):
            cache, hidden = make(), torch.randn(BATCH, columns, config.hidden_size)
            language_model(
                inputs_embeds=hidden, attention_mask=mask[:, :columns], past_key_values=cache, use_cache=True
            )
            began = time.process_time()
            for step in range(columns, columns + steps):
                positions = torch.full((BATCH, 1), step)
                language_model(
                    inputs_embeds=hidden[:, :1],
                    attention_mask=mask[:, : step + 1],
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            best.append(time.process_time() - began)
        print(f"| {name} | {1000 * min(best) / steps:.2f} |")
    print()


def prefills(image_tokens: int = 576, together: int = 8) -> None:
    """Eight questions enter, one, two, four or eight about each image."""
    torch.manual_seed(0)
    side = int(image_tokens**0.5)
    text = transformers.MistralConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2, sliding_window=None,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8 * side,
        patch_size=8,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    image = Picture.of(torch.randn(3, 8 * side, 8 * side))
    kept = Features(lambda pixels: model.get_image_features(pixels, return_dict=True).pooler_output)
    rng = np.random.default_rng(0)
    print("| questions about an image | prefilled apart, processor s | together, s | ratio |\n|---|---|---|---|")
    for each in (1, 2, 4, 8):
        rows = [
            decode.Row(
                place,
                # the first token tells the images apart: all have the same pixels, so that the tower is left out
                np.concatenate([[10 + place // each], [5] * image_tokens, rng.integers(10, 1024, 20 + place)]),
                [image],
                max_new_tokens=1,
            )
            for place in range(together)
        ]
        seconds = []
        for apart in (True, False):
            cut = mock.patch.object(decode.Batch, "_cut", lambda batch, row: len(row.prompt) - 1)
            with cut if apart else contextlib.nullcontext():
                best = []
                for _ in range(4):  # the first warms up
                    began = time.process_time()
                    decode.Batch(model, kept, lambda tokens: "").enter(rows)
                    best.append(time.process_time() - began)
            seconds.append(min(best[1:]))
        print(f"| {each} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.2f} |")
    print()


@contextlib.contextmanager
def questions(data: Path | None, count: int) -> Iterator[Benchmark]:
    """At most `count` questions; fewer than all are those of the first images, with all that is asked about them."""
    with tempfile.TemporaryDirectory() as phantom:
        if data is not None and data.is_dir():
            benchmark = benchmarks.load("vqa-rad", data)
        else:
            write_benchmark(Path(phantom), 451, seed=0, image_size=160)
            benchmark = benchmarks.load("phantom", Path(phantom))
        chosen = sorted(benchmark.questions, key=lambda question: question.image)[:count]
        yield Benchmark(benchmark.name, benchmark.split, tuple(chosen), benchmark.images, benchmark.sha256)


def mixed(benchmark: Benchmark) -> Benchmark:
    described = (
        dataclasses.replace(question, question="Describe the image.") if number % 4 == 0 else question
        for number, question in enumerate(benchmark.questions)
    )
    return dataclasses.replace(benchmark, questions=tuple(described))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("demo-run/train/instruct"))
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="VQA-RAD's folder; phantom questions where it is absent"
    )
    parser.add_argument("--questions", type=int, default=451)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    assembled = folder.load(args.model, torch.float32)
    with questions(args.data, args.questions) as benchmark:
        images = len(benchmark.image_names)
        print(f"{benchmark.name}: {len(benchmark.questions)} questions on {images} images; {args.threads} thread(s)")
        measured(ours, assembled, Benchmark(benchmark.name, "", benchmark.questions[:8], benchmark.images, {}))  # warm
        ratios = table(WAYS, "one at a time", args.repeats, assembled, benchmark)
        if args.parts:
            table({"llavamed": ours, **PARTS}, "llavamed", args.repeats, assembled, mixed(benchmark))
            steps(assembled, mixed(benchmark))
            cache_steps(assembled)
            prefills()
    if ratios["llavamed"] < ASKED:
        sys.exit(f"{ratios['llavamed']:.2f} times one at a time; {ASKED:.0f} were asked")


if __name__ == "__main__":
    main()
