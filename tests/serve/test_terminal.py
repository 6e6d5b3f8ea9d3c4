"""The terminal conversation: what is typed, what is shown, what the model is asked."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llavamed.engine.request import Request
from llavamed.errors import InputError
from llavamed.serve.terminal import ask, chat

from .fake import WORDS, FakeEngine, png

TEXT = "".join(WORDS)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a scan.png"
    path.write_bytes(png(24, 16))
    return path


def types(*lines: str) -> Callable[[str], str]:
    """A person who types these lines and then Ctrl-D."""
    left = iter(lines)

    def read_line(prompt: str) -> str:
        assert prompt == "you> "
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read_line


def talk(engine: FakeEngine, images: list[Path], *lines: str) -> str:
    out = io.StringIO()
    chat(engine, images, out, types(*lines))
    return out.getvalue()


def test_the_answer_is_shown_and_the_history_kept(engine: FakeEngine, picture: Path) -> None:
    shown = talk(engine, [picture], "What is shown?", "", "On which side?")
    assert "fake-model: for research; not for clinical use" in shown
    assert f"{picture} (24 x 16)" in shown
    assert shown.count(TEXT) == 2
    first, second = engine.requests
    assert [part["type"] for part in first.messages[0].content] == ["image", "text"]
    assert [m.role for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1].text == TEXT
    assert second.messages[2].num_images == 0
    assert len(second.images) == 1


def test_the_answer_is_written_piece_by_piece(engine: FakeEngine, picture: Path) -> None:
    class Screen(io.StringIO):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    screen = Screen()
    assert ask(engine, picture, "What?", screen) == TEXT
    assert screen.getvalue() == TEXT + "\n"
    assert screen.flushes >= len(WORDS)


def test_another_image_begins_another_conversation(engine: FakeEngine, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(png(8, 8))
    talk(engine, [picture], "What?", f"/image '{other}'", "And this?")
    assert len(engine.requests[1].messages) == 1
    assert engine.requests[1].images[0].size == (8, 8)


def test_reset_keeps_the_image_and_forgets_the_rest(engine: FakeEngine, picture: Path) -> None:
    talk(engine, [picture], "What?", "/reset", "What?")
    assert engine.requests[1].messages == engine.requests[0].messages


def test_quit_ends_and_unknown_commands_get_help(engine: FakeEngine) -> None:
    shown = talk(engine, [], "/help", "/quit", "never asked")
    assert shown.count("/image PATH") == 2
    assert engine.requests == []


def test_an_image_that_cannot_be_read_is_told_and_the_talk_goes_on(
    engine: FakeEngine, picture: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(png(300, 300)[:150])
    shown = talk(engine, [picture], "/image nowhere.png", f"/image {damaged}", "What?")
    assert "error: nowhere.png" in shown
    assert f"error: {damaged}" in shown
    assert engine.requests[0].images[0].size == (24, 16)
    with pytest.raises(InputError, match="nowhere"):
        chat(engine, [Path("nowhere.png")], io.StringIO(), types())


def test_a_refused_question_is_not_remembered(engine: FakeEngine) -> None:
    shown = talk(engine, [], "wrong", "right")
    assert "error: the question is too long; shorten it" in shown
    assert len(engine.requests[1].messages) == 1


def test_ctrl_c_stops_the_answer_and_not_the_conversation(engine: FakeEngine) -> None:
    class Interrupted(FakeEngine):
        def stream(self, request: Request) -> Iterator[str]:
            pieces = super().stream(request)
            try:
                yield next(pieces)
                yield next(pieces)
                if "interrupt" in request.messages[-1].text:
                    raise KeyboardInterrupt
                yield from pieces
            finally:
                pieces.close()  # type: ignore[attr-defined]

    engine = Interrupted()
    shown = talk(engine, [], "interrupt", "go on")
    assert "The lungs  [stopped]\n" in shown
    assert engine.closed.is_set()
    assert engine.requests[1].messages[1].text == "The lungs"


def test_ctrl_c_at_the_prompt_ends_it(engine: FakeEngine) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    chat(engine, [], io.StringIO(), interrupted)
