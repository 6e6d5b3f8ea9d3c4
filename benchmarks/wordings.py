"""How much of what people ask the demo's model understands: scores by kind of question, on two tables of wordings.

    python benchmarks/wordings.py RUN/train/instruct [--table held-out]

For each table: the model with the pictures (`eval`'s strict scores), and the tiny language model alone, which gets the
facts as words instead of a picture. What the second lacks is English, what the first lacks beyond it sight or teaching.
`development` is `wordings.yaml`, made to be looked at; of `held-out`, the demo's benchmark, look at the kinds alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import MistralForCausalLM, PreTrainedTokenizerFast

from llavamed.demo import benchmark, pretrain, wording
from llavamed.demo.truth import sample
from llavamed.evaluate.benchmarks import load
from llavamed.evaluate.metrics import llava_med
from llavamed.evaluate.run import evaluate
from llavamed.evaluate.score import Scores, score
from llavamed.recipe import EvaluateSection

QUESTIONS, SEED = 1040, 7
BASE = Path(pretrain.__file__).parent / "base" / "language_model"

Marks = dict[str, list[tuple[float, bool]]]  # kind -> (credit, answered neither yes nor no)


def seeing(model: str) -> Marks:
    """Of the model with the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data"), Path(folder, "eval")
        benchmark.write_benchmark(data, QUESTIONS, SEED, 160)
        evaluate(model, "phantom", data, out, EvaluateSection(controls=[]))
        scores: Scores = score(load("phantom", data), out / "real" / "predictions.jsonl")
    marks: Marks = defaultdict(list)
    for item in scores.items:
        kind = f"{item.question.groups['kind']}_{'closed' if item.question.closed else 'open'}"
        marks[kind].append((item.credit, item.question.closed and item.parsed is None))
    return marks


def reading() -> Marks:
    """Of the shipped language model with the facts as words."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE, padding_side="left")
    model = MistralForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    rng, kinds = np.random.default_rng(SEED), list(wording.HELD_OUT)
    asked: list[tuple[str, str, str]] = []
    while len(asked) < QUESTIONS:
        truth, kind = sample(rng), kinds[len(asked) % len(kinds)]
        if found := benchmark.ask(truth, kind, rng):
            asked.append((kind, f"<s>[INST] {pretrain.keywords(truth, rng)}\n{found[0]} [/INST]", found[1]))
    marks: Marks = defaultdict(list)
    for start in range(0, QUESTIONS, 80):
        part = asked[start : start + 80]
        prompts = tokenizer([p for _, p, _ in part], padding=True, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(
            input_ids=prompts.input_ids, attention_mask=prompts.attention_mask, max_new_tokens=16, do_sample=False
        )
        answers = tokenizer.batch_decode(tokens[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
        for (kind, _, reference), answer in zip(part, answers, strict=True):
            closed = kind.endswith("closed")
            credit = (
                llava_med.strict_closed(answer, reference, ("yes", "no"))
                if closed
                else llava_med.strict_overlap(answer, reference).recall
            )
            marks[kind].append((credit, closed and llava_med.parse_yes_no(answer) is None))
    return marks


def row(marks: Marks, form: str) -> str:
    cells = {kind.split("_")[0]: values for kind, values in marks.items() if kind.endswith(form)}
    every = [mark for values in cells.values() for mark in values]
    told = ", ".join(f"{kind} {_mean(values)}" for kind, values in sorted(cells.items()))
    unread = sum(unread for _, unread in every)
    return f"{form} {_mean(every)} (n {len(every)}{f', {unread} neither yes nor no' if unread else ''}): {told}"


def _mean(marks: list[tuple[float, bool]]) -> str:
    return f"{100 * sum(credit for credit, _ in marks) / len(marks):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a folder with the demo's model")
    parser.add_argument("--table", choices=("development", "held-out"), default="development")
    args = parser.parse_args()
    if args.table == "development":
        table = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
        wording.HELD_OUT = {kind: tuple(questions) for kind, questions in table.items()}
    for name, marks in (("seeing", seeing(args.model)), ("reading", reading())):
        for form in ("closed", "open"):
            print(f"{args.table}, {name}: {row(marks, form)}")


if __name__ == "__main__":
    main()
