"""POPE: yes by default officially, and a summary that is scikit-learn's."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llavamed.evaluate.metrics import pope as m


def test_every_golden_value_of_the_original_script(golden: Callable[[str], Any]) -> None:
    for row in golden("pope"):
        assert m.parse_official(row["text"]) == row["official"]


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("NO", "yes", "no"),
        ("", "yes", None),
        ("I cannot tell", "yes", None),
        ("no.yes", "no", "no"),
        ("Nothing here", "yes", None),
        ("Yes, not a doubt", "no", "yes"),
        ("I do not know", "no", None),
        ("no\nyes", "yes", "no"),  # split at blanks only: "no\nyes" is one word
        ("Yes", "yes", "yes"),
    ],
)
def test_what_is_a_yes(text: str, official: str, strict: str | None) -> None:
    assert (m.parse_official(text), m.parse_strict(text)) == (official, strict)
    assert m.official_accuracy(text, official) == 1.0
    assert m.strict_accuracy(text, "yes") == float(strict == "yes")


def test_the_random_split_is_balanced_and_a_model_that_always_says_yes_scores_two_thirds(shared_data: Path) -> None:
    lines = (shared_data / "pope" / "coco_pope_random.json").read_text().splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    share = Counter(labels)["yes"] / len(labels)
    found = m.summary((m.parse_official(""), label) for label in labels)
    assert found == {
        "accuracy": share,
        "precision": share,
        "recall": 1.0,
        "f1": pytest.approx(2 * share / (1 + share)),
        "yes_ratio": 1.0,
    }
    nothing = m.summary((m.parse_strict(""), label) for label in labels)
    assert nothing == dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_ratio"), 0.0)


def test_the_summary_is_that_of_scikit_learn_on_random_answers() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(41)
    for choices in (["yes", "no"], ["yes", "no", None], ["no", None], ["yes"]):
        for _ in range(10):
            pairs = [(rng.choice(choices), rng.choice(["yes", "no"])) for _ in range(rng.randint(1, 60))]
            given, wanted = [str(choice) for choice, _ in pairs], [label for _, label in pairs]
            precision, recall, f1, _ = metrics.precision_recall_fscore_support(
                wanted, given, labels=["yes"], average="micro", zero_division=0
            )
            assert m.summary(pairs) == {
                "accuracy": pytest.approx(metrics.accuracy_score(wanted, given)),
                "precision": pytest.approx(precision),
                "recall": pytest.approx(recall),
                "f1": pytest.approx(f1),
                "yes_ratio": given.count("yes") / len(given),
            }
            assert m.summary(rng.sample(pairs, len(pairs))) == m.summary(pairs)


def test_no_answers_and_other_labels_are_errors() -> None:
    with pytest.raises(ValueError, match="no answers"):
        m.summary([])
    with pytest.raises(ValueError, match="labels are yes and no"):
        m.summary([("yes", "maybe")])
