"""The alignment examples: the caption is the answer, untouched; its length decides the question."""

from __future__ import annotations

import random

from llavamed.instruct import tables
from llavamed.instruct.align import align
from llavamed.records import Pair


def _question(words: int) -> str:
    pair = Pair("k", "k.png", " ".join(["word"] * words))
    return align(pair, random.Random(words), {}).messages[0].text


def test_asks_briefly_below_thirty_words_and_in_detail_from_thirty_on() -> None:
    table = tables.load("questions.yaml")
    assert all(_question(n) in table["describe_brief"] for n in range(1, 30))
    assert all(_question(n) in table["describe_detailed"] for n in range(30, 60))
    assert min(len(set(table["describe_brief"])), len(set(table["describe_detailed"]))) >= 10
    assert not set(table["describe_brief"]) & set(table["describe_detailed"])


def test_the_caption_is_the_answer_unchanged() -> None:
    caption = "Figure 1.  (A) CT  of a GIST (arrow)."
    conversation = align(Pair("k", "k.png", caption), random.Random(0), {"pair": "k"})
    assert conversation.messages[1].text == caption
    assert [m.num_images for m in conversation.messages] == [1, 0]
    assert (conversation.images, conversation.source) == (("k",), {"pair": "k"})
