"""The chat page: a picture, a question, the answer as it is written.

A Gradio page in the same process as the API, asking the same desk; there is no second server to lose contact with, so
an error is shown in its own words and in its place (LLaVA's page said "NETWORK ERROR DUE TO HIGH TRAFFIC" to all).

The hard thing is the patient in the picture. What a person said and sent lives in the server's memory for as long as
the tab is open (`Talk`); the browser is never asked for it again, so it cannot ask for another's, and a request that
names a file which was not uploaded is refused (`Page`). The picture in the conversation is a small copy inside
the page itself. The uploaded file, which Gradio must put on disk, lies in a folder only this user can read, is deleted
after minutes, and the folder with the process's end. Nothing on the page comes from another host, and Gradio's own
telemetry and run history are off.
"""

from __future__ import annotations

import base64
import html
import io
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Gradio reads these when it is imported; its temporary folder is otherwise one that all users share.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"
_UPLOADS = tempfile.TemporaryDirectory(prefix="llavamed-page-")
_UPLOADS_FOLDER = Path(_UPLOADS.name).resolve()
os.environ["GRADIO_TEMP_DIR"] = str(_UPLOADS_FOLDER)

import gradio as gr  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from PIL import Image  # noqa: E402

from llavamed.engine.request import Request  # noqa: E402
from llavamed.errors import InputError  # noqa: E402
from llavamed.imaging.decode import decode, read  # noqa: E402
from llavamed.records import Message, assistant, user  # noqa: E402
from llavamed.serve.desk import Desk  # noqa: E402
from llavamed.serve.gate import MAX_BODY_BYTES, same_secret  # noqa: E402
from llavamed.serve.wire import MAX_IMAGES, as_api_error  # noqa: E402

NOTICE = "For research; not for clinical use."
MAX_NEW_TOKENS = 512
KEEP_UPLOADS_SECONDS = 600
KEEP_TALK_SECONDS = 3600
_SHOW_EVERY_SECONDS = 0.08  # the page is redrawn at most this often
_SHOWN_PIXELS = 640  # the longer side of the copy in the conversation
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


@dataclass(frozen=True)
class Talk:
    """One tab's conversation: what the model sees (`messages`, `images`) and what the person sees (`shown`)."""

    messages: tuple[Message, ...] = ()
    images: tuple[Image.Image, ...] = ()
    shown: tuple[dict[str, Any], ...] = ()

    def show(self, role: str, *parts: str) -> Talk:
        return replace(self, shown=(*self.shown, *({"role": role, "content": part} for part in parts)))

    def answered(self, question: Message, images: Sequence[Image.Image], answer: str) -> Talk:
        """With a question and what there is of its answer; an empty answer leaves the model's side as it was."""
        if not answer.strip():
            return self
        return replace(
            self.show("assistant", _plain(answer)),
            messages=(*self.messages, question, assistant(answer.strip())),
            images=(*self.images, *images),
        )

    def refused(self, error: Exception) -> Talk:
        return self.show("assistant", f"**Error:** {_plain(str(as_api_error(error)))}")


Drawn = tuple[Any, list[dict[str, Any]], Talk]  # the box, the page's view, the talk to keep


def mount(app: FastAPI, desk: Desk, *, api_key: str | None, examples: Sequence[tuple[Path, str]] = ()) -> None:
    """Put the page at / of `app`. With an `api_key` a person signs in first; the key is the password."""

    def may_enter(_: str, password: str) -> bool:
        return api_key is not None and same_secret(password, api_key)

    page = build(desk, examples)
    # Gradio checks the paths in requests only once it believes to be launched; a mounted page is never told that it is.
    page.has_launched = page.is_running = True
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=may_enter if api_key is not None else None,
        auth_message="Any user name; the password is this server's API key.",
        allowed_paths=[],
        max_file_size=MAX_BODY_BYTES,
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        theme=gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=_FONT, font_mono=_MONO),
        css_paths=Path(__file__).with_name("page.css"),
    )


class Page(gr.Blocks):
    """A page that reads pictures uploaded to it, and nothing else that a request names.

    Gradio's own, asked by a forged request, copies any file of the server to where it can be fetched (in mounted
    pages: see `mount`) and downloads any URL. CVE-2024-12065 was this in LLaVA's page.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any) -> Any:
        for path in _paths(inputs):
            if not isinstance(path, str) or not Path(path).resolve().is_relative_to(_UPLOADS_FOLDER):
                raise gr.Error("only pictures uploaded to this page can be asked about", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *more, **named)


def _paths(value: Any) -> Iterator[Any]:
    """Every "path" anywhere in a request's data: so Gradio writes files."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths(item)


def build(desk: Desk, examples: Sequence[tuple[Path, str]] = ()) -> gr.Blocks:
    """The page itself. `examples` are (image file, question) pairs, offered while the conversation is empty."""
    name = html.escape(desk.engine.name)
    with Page(
        title="llavamed", fill_height=True, analytics_enabled=False, delete_cache=(60, KEEP_UPLOADS_SECONDS)
    ) as page:
        gr.HTML(
            f'<div class="line"><h1>llavamed</h1><span class="model">{name}</span></div>'
            f'<div class="notice" role="note">{NOTICE}</div>',
            elem_id="head",
        )
        talk = gr.State(Talk(), time_to_live=KEEP_TALK_SECONDS)
        chatbot = gr.Chatbot(
            elem_id="talk",
            show_label=False,
            scale=1,
            height="60vh",
            buttons=["copy_all"],
            feedback_options=None,
            placeholder="Attach a picture with the paper clip, then type a question.",
            examples=[
                {"icon": {"path": "", "url": _data_url(read(path))}, "text": question} for path, question in examples
            ],
        )
        box = gr.MultimodalTextbox(
            elem_id="box",
            show_label=False,
            file_types=["image"],
            file_count="multiple",
            placeholder="Ask about the picture",
            autofocus=True,
            max_plain_text_length=20_000,
        )
        with gr.Row(elem_id="foot"):
            clear = gr.Button("New conversation", size="sm", variant="secondary", elem_id="clear")

        async def ask(message: dict[str, Any], talk: Talk) -> AsyncIterator[Drawn]:
            files = [Path(path) for path in message["files"]]
            async for drawn in reply(desk, talk, message["text"].strip(), files):
                yield drawn

        async def ask_example(talk: Talk, event: gr.SelectData) -> AsyncIterator[Drawn]:
            path, question = examples[event.index]  # by its number: a path from the browser is not to be trusted
            async for drawn in reply(desk, talk, question, [path]):
                yield drawn

        # The desk keeps the order, so Gradio's own limit is off; and these functions are no public API.
        how: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        drawn = [box, chatbot, talk]
        asking = [box.submit(ask, [box, talk], drawn, **how), chatbot.example_select(ask_example, talk, drawn, **how)]
        box.stop(lambda: _box(), None, box, cancels=asking, **how)
        for gesture in (clear.click, chatbot.clear):
            gesture(lambda: (_box(value=None), [], Talk()), None, drawn, cancels=asking, **how)
    return page


def _box(*, answering: bool = False, **more: Any) -> Any:
    """The box with its one button: send, or stop while an answer is written. What is typed in it stays."""
    return gr.MultimodalTextbox(submit_btn=not answering, stop_btn=answering, **more)


async def reply(desk: Desk, talk: Talk, text: str, files: Sequence[Path]) -> AsyncIterator[Drawn]:
    """Answer one message: yields (the box, the page's view, the talk to keep) whenever there is more to see.

    Each yield is complete in itself, because the person may press stop after any of them: what they have seen is then
    what the model remembers. A message that cannot be answered leaves its reason on the page and nothing in the
    model's memory.
    """
    try:
        if not text:
            raise InputError(
                "Type a question about the picture, then send." if files else "Type a question, then send."
            )
        if len(talk.images) + len(files) > MAX_IMAGES:
            raise InputError(f"One conversation holds {MAX_IMAGES} pictures; begin a new one.")
        images = [open_image(path) for path in files]
    except InputError as error:
        talk = talk.show("user", _plain(" ".join([*(path.name for path in files), text]))).refused(error)
        yield _box(value=None), list(talk.shown), talk
        return

    talk = talk.show("user", *map(_picture, images), _plain(text))
    yield _box(answering=True, value=None), list(talk.shown), talk
    question = user(text, images=len(images))
    answer, last_shown = "", time.monotonic()
    job = None
    try:
        job = desk.submit(
            Request(messages=(*talk.messages, question), images=(*talk.images, *images), max_new_tokens=MAX_NEW_TOKENS)
        )
        async for piece in job:
            answer += piece
            if time.monotonic() - last_shown >= _SHOW_EVERY_SECONDS:
                last_shown = time.monotonic()
                so_far = talk.answered(question, images, answer)
                yield gr.skip(), list(so_far.shown), so_far
        if not answer.strip():
            raise InputError("The model gave an empty answer; ask in other words.")
        talk = talk.answered(question, images, answer)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the person who asked reads what it was
        talk = talk.answered(question, images, answer).refused(error)
    finally:
        if job is not None:
            desk.cancel(job)
    yield _box(), list(talk.shown), talk


def open_image(path: Path) -> Image.Image:
    """An uploaded file as RGB; errors name the file as the person knows it."""
    try:
        data = path.read_bytes()
    except OSError:  # it lay in the box for longer than uploads are kept
        raise InputError(f"{path.name}: the upload is no longer here; attach it again") from None
    return decode(data, path.name)


def _data_url(image: Image.Image) -> str:
    copy = image.copy()
    copy.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(image: Image.Image) -> str:
    return f'<img src="{_data_url(image)}" alt="the picture that was sent">'


def _plain(text: str) -> str:
    """Text for the page: Markdown stays, HTML is shown and not obeyed."""
    return html.escape(text, quote=False)
