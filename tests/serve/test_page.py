"""The chat page in a real browser, and the function behind its box."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from gradio import processing_utils

from llavamed.serve.app import create_app
from llavamed.serve.desk import Desk
from llavamed.serve.page import Talk, reply

from .fake import WORDS, FakeEngine, png, running

TEXT = "".join(WORDS).replace("<", "&lt;")  # as the page writes it
CHROMIUM = {"chromium": Path("/usr/bin/chromium"), "chromium-driver": Path("/usr/bin/chromedriver")}


# --- the function behind the box ---


def replies(engine: FakeEngine, talk: Talk, text: str, *files: Path, stop_after: int | None = None) -> Talk:
    """The talk after a message; with `stop_after`, after that many updates of the page, as the stop button does it."""

    async def go() -> Talk:
        desk = Desk(engine)
        last = talk
        updates = reply(desk, talk, text, files)
        count = 0
        async for _, shown, last in updates:
            assert shown == list(last.shown)
            count += 1
            if count == stop_after:
                break
        await updates.aclose()  # type: ignore[attr-defined]
        return last

    return anyio.run(go)


def seen(talk: Talk) -> list[str]:
    return [row["content"] for row in talk.shown if not row["content"].startswith("<img")]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scan.png"
    path.write_bytes(png(24, 16))
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.png"
    path.write_bytes(png(300, 300)[:150])
    return path


def test_a_question_and_the_next_keep_the_picture_and_the_history(engine: FakeEngine, picture: Path) -> None:
    talk = replies(engine, Talk(), "What is shown?", picture)
    assert talk.shown[0]["content"].startswith('<img src="data:image/jpeg;base64,')
    assert seen(talk) == ["What is shown?", TEXT]
    talk = replies(engine, talk, "And <b>where</b>?")
    assert seen(talk)[2:] == ["And &lt;b&gt;where&lt;/b&gt;?", TEXT]
    assert [m.role for m in engine.requests[1].messages] == ["user", "assistant", "user"]
    assert engine.requests[1].messages[2].text == "And <b>where</b>?"
    assert len(engine.requests[1].images) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("wrong", "the question is too long; shorten it"), ("broken", "ZeroDivisionError"), ("", "Type a question")],
)
def test_what_goes_wrong_is_shown_in_its_own_words(text: str, words: str, engine: FakeEngine) -> None:
    talk = replies(engine, Talk(), text)
    assert talk.shown[-1]["role"] == "assistant"
    assert talk.shown[-1]["content"].startswith("**Error:** ")
    assert words in talk.shown[-1]["content"]


def test_a_damaged_image_is_one_sentence_and_leaves_nothing_behind(engine: FakeEngine, damaged: Path) -> None:
    talk = replies(engine, Talk(), "What?", damaged)
    assert talk.messages == ()
    assert talk.images == ()
    assert seen(talk)[-1].startswith("**Error:** damaged.png: ")
    assert engine.requests == []


def test_stop_keeps_what_was_said_and_frees_the_model(engine: FakeEngine) -> None:
    talk = replies(engine, Talk(), "slow", stop_after=3)
    assert talk.messages[-1].role == "assistant"
    assert talk.messages[-1].text.startswith("slowly")
    assert engine.closed.wait(5)


# --- over HTTP ---


@pytest.mark.parametrize("what", ["a picture", "a drawing", "a text", "a URL"])
@pytest.mark.parametrize("trusting", [False, True], ids=["as served", "without Gradio's own check"])
def test_the_page_reads_no_file_and_no_url_that_a_request_names(
    what: str, trusting: bool, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2024-12065: LLaVA's Gradio page let a request name any file of the server."""
    paths = {"a picture": "secret.png", "a drawing": "secret.svg", "a text": "secret.txt"}
    target = str(tmp_path / paths[what]) if what in paths else "http://127.0.0.1:9/x.png"
    if what in paths:
        Path(target).write_bytes(png())
    fetched: list[str] = []

    async def fetch(url: str, **_: Any) -> str:
        fetched.append(url)
        raise AssertionError("a URL was fetched")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    if trusting:
        monkeypatch.setattr(processing_utils, "_check_allowed", lambda *_: None)
    with running(create_app(engine)) as url, httpx.Client(base_url=url) as http:
        (asking,) = (row for row in http.get("/config").json()["dependencies"] if row["targets"][0][1] == "submit")
        forged = {"text": "What?", "files": [{"path": target, "meta": {"_type": "gradio.FileData"}}]}
        call = {"data": [forged, None], "fn_index": asking["id"], "session_hash": "forged"}
        assert http.post("/gradio_api/queue/join", json=call).status_code == 200
        with http.stream("GET", "/gradio_api/queue/data?session_hash=forged") as events:
            done = next(line for line in events.iter_lines() if "process_completed" in line)
        assert json.loads(done.removeprefix("data: "))["success"] is False
        assert http.get(f"/gradio_api/file={target}").status_code in (403, 404)
    assert engine.requests == []
    assert fetched == []


def test_with_a_key_the_page_asks_for_it(engine: FakeEngine) -> None:
    with running(create_app(engine, api_key="s3cret")) as url, httpx.Client(base_url=url) as http:
        assert http.get("/config").status_code == 401
        assert http.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
        assert http.post("/login", data={"username": "me", "password": "s3cret"}).status_code == 200
        assert http.get("/config").status_code == 200
        assert http.get("/v1/models").status_code == 401  # the page's cookie opens the page alone


# --- in a browser ---


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    for package, program in CHROMIUM.items():
        if not program.exists():
            pytest.skip(f"{program} is absent: apt-get install {package}")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM["chromium"])
    for flag in (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --window-size=1200,900 --user-data-dir={tmp_path / 'profile'}"
    ).split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(CHROMIUM["chromium-driver"])))
    try:
        yield driver
    finally:
        driver.quit()


def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """The first true value of `condition`; elements that are being redrawn count as not yet."""
    from selenium.common.exceptions import WebDriverException

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (WebDriverException, IndexError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def test_a_person_uploads_asks_reads_stops_and_sees_errors(
    browser: Any, engine: FakeEngine, picture: Path, damaged: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    def find(css: str) -> Any:
        return browser.find_elements("css selector", css)[0]

    def attach(file: Path) -> None:
        find("#box input[type=file]").send_keys(str(file))
        until(lambda: find("#box .thumbnail-item, #box .thumbnail-image"), f"{file.name} in the box")

    def ask(text: str) -> None:
        until(lambda: find("#box textarea").is_enabled() and find("#box .submit-button"), "the box to be open")
        find("#box textarea").send_keys(text, Keys.ENTER)

    def says(text: str) -> Callable[[], bool]:
        return lambda: text in find("#talk").text

    with running(create_app(engine, examples=[(picture, "What is this?")])) as url:
        browser.get(url)
        until(lambda: find("#box textarea"), "the page")
        text = find("body").text
        assert "For research; not for clinical use." in text
        assert "fake-model" in text

        attach(picture)
        ask("What is shown?")
        until(says("".join(WORDS).strip()), "the answer")
        assert engine.requests[0].images[0].size == (24, 16)
        shown = find("#talk .message img")
        assert browser.execute_script("return arguments[0].naturalWidth", shown) == 24

        ask("slow, please")
        until(says("slowly slowly"), "an answer while it is written")
        assert not engine.closed.is_set()
        find("#box .stop-button").click()
        assert engine.closed.wait(5)

        find("#clear").click()
        until(lambda: not says("slowly")(), "an empty conversation")
        until(lambda: find("#talk button.example"), "the example").click()
        until(says("".join(WORDS).strip()), "the answer about the example")
        assert engine.requests[-1].images[0].size == (24, 16)
        assert len(engine.requests[-1].messages) == 1

        browser.refresh()
        until(lambda: find("#box textarea"), "the page again")
        attach(damaged)
        ask("What is shown?")
        until(says("Error: damaged.png: "), "the error's own words")
        ask("And now?")
        until(says("".join(WORDS).strip()), "the answer after the error")

        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = {row["params"]["request"]["url"] for row in asked if row["method"] == "Network.requestWillBeSent"}
        assert any(name.startswith(url) for name in urls)
        elsewhere = [name for name in urls if not name.startswith((url, "data:", "blob:", "chrome:", "chrome-"))]
        assert elsewhere == []
    assert not list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.png"))  # deleted with the server's end
