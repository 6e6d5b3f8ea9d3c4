"""Alignment examples: "describe this image" with the caption, unchanged, as the answer.

The first stage of LLaVA-Med teaches the projector the vocabulary of the literature. Each pair becomes
one turn; the question asks to describe the image briefly where the caption has fewer than 30 words and
in detail otherwise, so that a long answer is only ever asked for where there is one (Li et al. 2023,
section 3.1). The wordings are ours, in `questions.yaml`.
"""

from __future__ import annotations

import random
from typing import Any

from llavamed.instruct import tables
from llavamed.records import Conversation, Pair, assistant, user


def align(pair: Pair, rng: random.Random, source: dict[str, Any]) -> Conversation:
    """The pair as one turn. The caption must not be empty."""
    assert pair.caption.strip(), f"{pair.key}: an empty caption cannot be an answer"
    table = tables.load("questions.yaml")
    brief = len(pair.caption.split()) < table["brief_below_words"]
    question = rng.choice(table["describe_brief" if brief else "describe_detailed"])
    return Conversation(f"{pair.key}-align", (pair.key,), (user(question, images=1), assistant(pair.caption)), source)
