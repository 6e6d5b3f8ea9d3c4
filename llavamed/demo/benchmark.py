"""The phantom benchmark: questions whose true answers are known, from other seeds and in other words.

A closed question names a value that is right half of the time, and the wrong values are drawn from
those that the question could fairly name, so that a reader who does not look gets about 50 %.
Open questions have the canonical word as reference ("left", "two", "haemorrhage").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from llavamed.demo import wording as w
from llavamed.demo.draw import draw
from llavamed.demo.truth import Truth, sample, varying
from llavamed.records import Question, write_jsonl

STREAM = 2  # articles.py uses stream 1; streams never share a seed


def applies(truth: Truth, kind: str) -> bool:
    """Whether the picture has this fact and the world lets it vary."""
    if kind == "count":
        return not truth.normal and varying(truth).counted
    return bool(w.fact(truth, kind))


def ask(truth: Truth, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A held-out question of this kind ("side_closed") and its answer; None where it does not apply."""
    name, form = kind.split("_")
    question = w.choose(rng, w.HELD_OUT[kind])
    if name == "abnormal":
        return question, "no" if truth.normal else "yes"
    open_question = form == "open"
    if not applies(truth, name) and (open_question or name != "finding"):
        return None
    value = w.fact(truth, name)
    noun, nouns = w.FINDING_FORMS[truth.finding][0] if not truth.normal else ("", "")
    if noun:
        question = question.replace("{noun}", noun).replace("{nouns}", nouns)
    if open_question:
        return question, value
    wrong = tuple(v for v in w.plausible(truth, name) if v != value)
    right = bool(value) and rng.random() < 0.5
    if not right and not wrong:
        return None
    shown = value if right else w.choose(rng, wrong)
    if shown == "one":
        question = question.replace(nouns, noun)
    return question.replace("{x}", w.candidate(name, shown)), "yes" if right else "no"


def questions(count: int, seed: int, image_size: int) -> Iterator[tuple[Question, np.ndarray]]:
    """`count` questions, one a picture, every kind equally often."""
    rng = np.random.default_rng([STREAM, seed])
    kinds = list(w.HELD_OUT)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        wanted = "no" if rng.random() < 0.5 else "yes"
        while True:
            truth = sample(rng)
            asked = ask(truth, kind, rng)
            # half of each closed kind is "yes", although a quarter of the world is normal
            if asked and (kind.endswith("open") or asked[1] == wanted):
                break
        yield (
            Question(
                id=f"phantom-{index:05d}",
                image=f"phantom-{index:05d}.png",
                question=asked[0],
                answer=asked[1],
                closed=kind.endswith("closed"),
                options=("yes", "no") if kind.endswith("closed") else (),
                groups={"kind": kind.split("_")[0], "domain": truth.domain},
            ),
            draw(truth, rng, image_size),
        )


def write_benchmark(out: Path, count: int, seed: int, image_size: int) -> None:
    """`out/questions.jsonl` and `out/images/`: the folder that `llavamed eval ... phantom --data` reads."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for question, picture in questions(count, seed, image_size):
        Image.fromarray(picture).save(out / "images" / question.image)
        rows.append(question)
    write_jsonl(out / "questions.jsonl", rows)
