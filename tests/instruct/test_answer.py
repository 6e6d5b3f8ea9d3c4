"""What language models send in place of the JSON they were asked for."""

from __future__ import annotations

import json
import time

import pytest
from openai.lib._pydantic import to_strict_json_schema

from llavamed.instruct.answer import Answer, read, response_format

TWO = [("What is it?", "A CT of a GIST."), ("Is it large?", "Yes.")]
GOOD = json.dumps({"turns": [{"question": q, "answer": a} for q, a in TWO]})


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here is the conversation:\n\n```\n{GOOD}\n```\nLet me know!",
        f"Sure. {GOOD}",
        f"<think>The user wants {{}} JSON. User: x</think>\n{GOOD}",
        json.dumps(json.loads(GOOD)["turns"]),
        json.dumps({"id": 3, **json.loads(GOOD)}),
        "User: What is it?\nAssistant: A CT of a GIST.\nUser: Is it large?\nAssistant: Yes.",
        "**User:** What is it?\n\n**Assistant:** A CT of a GIST.\n\n**User:** Is it large?\n\n**Assistant:** Yes.",
        f"A draft: {{}} User: x\n</think>\n{GOOD}",
        json.dumps({"turns": [{"type": "open", **turn} for turn in json.loads(GOOD)["turns"]]}),
        "User: What is it?\n\nAssistant: A CT of a GIST.\n\n---\n\nUser: Is it large?\nAssistant: Yes.",
        "Q1: What is it?\nA1: A CT of a GIST.\nQ2: Is it large?\nA2: Yes.",
        "### Question 1: What is it?\n### Answer 1: A CT of a GIST.\n### Question 2: Is it large?\n### Answer 2: Yes.",
        "Here you are.\nHuman: What is it?\nGPT: A CT of a GIST.\nHuman: Is it large?\nGPT: Yes.",
    ],
)
def test_a_conversation_is_found_in_whatever_it_is_wrapped(text: str) -> None:
    found = read(text)
    assert found is not None
    assert [(turn.question, turn.answer) for turn in found.turns] == TWO


def test_no_turn_is_an_answer_too() -> None:
    found = read('{"turns": []}')
    assert found is not None
    assert found.turns == []


def test_an_answer_over_several_lines_is_whole() -> None:
    found = read("User: Describe it.\nAssistant: A CT.\n\nIt shows a GIST.")
    assert found is not None
    assert found.turns[0].answer == "A CT.\n\nIt shows a GIST."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        GOOD[:-9],
        '{"turns": [{"question": "What?"}]}',
        '{"turns": [{"question": "What?", "answer": ""}]}',
        '{"turns": [{"question": "What?", "answer": 3}]}',
        f"<think>A draft: {GOOD} But is it",
        "<thinking>User: What is it?\nAssistant: A cyst.",
        '{"turns": ["What?"]}',
        '{"turns": "none"}',
        '{"turns": null}',
        "[1, 2]",
        "User: What is it?",
        "User: What is it?\nUser: And that?\nAssistant: A cyst.\nAssistant: A GIST.",
        "Assistant: A cyst.\nUser: What is it?",
        "{" * 2000,
        "[" * 2000,
    ],
)
def test_half_of_a_conversation_is_none(text: str) -> None:
    assert read(text) is None


def test_the_schema_is_what_openais_own_client_makes_of_the_model() -> None:
    def plain(schema: object) -> object:
        if isinstance(schema, dict):
            return {k: plain(v) for k, v in sorted(schema.items()) if k not in ("title", "minLength")}
        return [plain(v) for v in schema] if isinstance(schema, list) else schema

    assert plain(response_format()["json_schema"]["schema"]) == plain(to_strict_json_schema(Answer))


@pytest.mark.parametrize("text", ["\n" * 50_000, "User" + " " * 50_000, "User" + "\n" * 50_000, "<think>" * 10_000])
def test_a_reply_that_repeats_itself_is_read_in_time(text: str) -> None:
    """Reading in time that grows with the square takes minutes here; the event loop would stand still meanwhile."""
    began = time.process_time()
    assert read(text) is None
    assert time.process_time() - began < 2
