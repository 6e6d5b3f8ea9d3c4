"""Prompts are checked like code: every field, every example, every slot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llavamed.errors import InputError
from llavamed.instruct import answer, prompts
from llavamed.instruct.clean import clean
from llavamed.records import Mention, Pair, assistant, user

PAIR = Pair("k", "k.png", "CT of a GIST {1}.", "Figure 1", (Mention("Figure 1 shows it."),))
MINE = """
extends: 60k
version: 7
about: mine
"""


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_papers_variants_and_styles_are_there() -> None:
    found = {name: prompts.load(name) for name in prompts.shipped()}
    assert {name: (p.style, p.mentions) for name, p in found.items()} == {
        "10k": ("conversation", False),
        "60k": ("conversation", False),
        "60k-im": ("conversation", True),
        "detailed": ("description", True),
        "closed": ("closed", True),
    }
    assert len({p.hash for p in found.values()}) == 5


@pytest.mark.parametrize("name", prompts.shipped())
@pytest.mark.parametrize("sighted", [False, True])
def test_a_prompt_becomes_a_chat_whose_examples_obey_the_schema(name: str, sighted: bool) -> None:
    prompt = prompts.load(name)
    messages = prompt.messages(PAIR, mentions=True, turns=3, sighted=sighted)
    roles = ["system", *["user", "assistant"] * len(prompt.examples), "user"]
    assert [message["role"] for message in messages] == roles
    assert f"Write {prompt.turns or 3} question" in messages[0]["content"]
    assert ("You also see the image" in messages[0]["content"]) == sighted
    assert '{"turns": [{"question": "...", "answer": "..."}]}' in messages[0]["content"]
    assert all(answer.read(message["content"]) for message in messages if message["role"] == "assistant")
    said = json.loads(messages[-1]["content"])
    assert said["caption"] == PAIR.caption
    assert said.get("mentions") == (["Figure 1 shows it."] if prompt.mentions else None)
    said = json.loads(prompt.messages(PAIR, mentions=False, turns=3, sighted=False)[-1]["content"])
    assert not said.get("mentions")


@pytest.mark.parametrize("name", prompts.shipped())
def test_the_worked_examples_pass_our_own_cleaning(name: str) -> None:
    prompt = prompts.load(name)
    for example in prompt.examples:
        talk = [m for t in example.turns for m in (user(t.question), assistant(t.answer))]
        kept, dropped = clean(talk, 0, written=True, closed=prompt.style == "closed")
        assert kept == tuple(talk), dropped


def test_a_file_of_ones_own_states_its_differences(tmp_path: Path) -> None:
    mine = prompts.load(_write(tmp_path / "mine.yaml", MINE))
    assert (mine.about, mine.system) == ("mine", prompts.load("60k").system)
    assert mine.hash != prompts.load("60k").hash


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINE + "temprature: 0.5\n", "unknown field 'temprature' (did you mean 'temperature'?)"),
        (MINE + "examples: [{given: {label: a, caption: b, mention: []}, turns: []}]\n", "did you mean 'mentions'?"),
        (MINE + "system: Write {turn} questions. {sight}\n", "{turns} and {sight}"),
        (MINE + "system: 'Reply as {\"turns\": 1} {sight}'\n", "{turns} and {sight}"),
        (MINE + "system: Write something.\n", "must hold {turns} and {sight}"),
        (MINE + "temperature: 3\n", "temperature: Input should be less than or equal to 2"),
        (MINE + "style: chat\n", "style:"),
        ("version: 1\n", "about: Field required"),
        ("extends: 60\n", "did you mean '60k'?"),
        ("[1]", "must be a mapping"),
        ("a: [", "not YAML"),
        ("extends: mine.yaml\n", "no such file"),
    ],
)
def test_a_wrong_prompt_is_one_line_that_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        prompts.load(_write(tmp_path / "mine.yaml", text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_extends_itself_and_one_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(InputError, match="extends itself"):
        prompts.load(_write(path, f"extends: {path}\n"))
    with pytest.raises(InputError, match=r"did you mean '60k-im'.*give one of 10k, 60k"):
        prompts.load("60k-in")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        prompts.load(str(path))
