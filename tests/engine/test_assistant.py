from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

import llavamed
from llavamed.engine.assistant import Assistant
from llavamed.engine.request import Request
from llavamed.errors import InputError


class Listener:
    """Answers with a number and remembers what it was asked; fails when told to."""

    name = "listener"

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.fails = False

    def generate(self, requests: Sequence[Request]) -> list[str]:
        if self.fails:
            raise RuntimeError("no")
        self.asked += requests
        return [f"answer {len(self.asked)}"]

    def stream(self, request: Request) -> Iterator[str]:
        yield from self.generate([request])

    def close(self) -> None:
        return


def test_load_and_ask_about_a_path_bytes_or_an_image(
    run_folder: Path, tmp_path: Path, picture: Callable[[int], Image.Image]
) -> None:
    assistant = llavamed.Assistant.load(run_folder)
    image, out = picture(3), io.BytesIO()
    image.save(out, format="PNG")
    (tmp_path / "scan.png").write_bytes(out.getvalue())
    answers = {
        assistant.ask(shown, "What is shown?", max_new_tokens=6)
        for shown in (image, out.getvalue(), tmp_path / "scan.png", str(tmp_path / "scan.png"))
    }
    assert len(answers) == 1
    assert answers != {assistant.ask(picture(4), "What is shown?", max_new_tokens=6)}


def test_a_chat_keeps_its_turns_and_shows_the_image_once(picture: Callable[[int], Image.Image]) -> None:
    engine = Listener()
    chat = Assistant(engine).chat(picture(0))
    assert chat.say("One?") == "answer 1"
    assert chat.say("Two?", max_new_tokens=5) == "answer 2"
    last = engine.asked[-1]
    assert [(m.role, m.text, m.num_images) for m in last.messages] == [
        ("user", "One?", 1),
        ("assistant", "answer 1", 0),
        ("user", "Two?", 0),
    ]
    assert len(last.images) == 1
    assert last.max_new_tokens == 5


def test_a_question_that_fails_is_not_remembered() -> None:
    engine = Listener()
    chat = Assistant(engine).chat()
    engine.fails = True
    with pytest.raises(RuntimeError):
        chat.say("One?")
    assert chat.messages == ()


def test_a_damaged_image_is_an_input_error() -> None:
    with pytest.raises(InputError):
        Assistant(Listener()).ask(b"not an image", "?")
