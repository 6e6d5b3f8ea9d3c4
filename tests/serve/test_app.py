"""The command: what it refuses before it loads a model, what it prints, how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from llavamed.errors import InputError
from llavamed.serve.app import create_app, listen, serve

from .fake import FakeEngine


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_address_without_a_key_is_refused_before_loading(host: str) -> None:
    with pytest.raises(InputError, match="--api-key"):
        serve("no-such-model", host=host)
    listen(host, 0, "key").close()


def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(InputError, match="empty"):
        listen("0.0.0.0", 0, " ")


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"127.0.0.1:{port}: .*in use.*--port"):
            serve("no-such-model", port=port)


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="not an address"):
        listen("no host", 8000, None)


def test_without_the_extra_the_pip_command_is_told(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(InputError, match=re.escape("pip install 'llavamed[serve]'")):
        create_app(engine)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=re.escape("pip install 'llavamed[serve]'")):
        serve("no-such-model")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_where_it_is_and_ends_in_good_order(how: signal.Signals) -> None:
    program = """
import llavamed.engine
from serve.fake import FakeEngine
class Engine(FakeEngine):
    def close(self): print("engine closed", flush=True)
llavamed.engine.connect = lambda model: Engine()
from llavamed.serve.app import serve
serve("a-model", port=0, page=False)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = line.split()[1]
            assert "fake-model" in line
            assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "fake-model"
            began = time.monotonic()
            process.send_signal(how)
            rest, _ = process.communicate(timeout=15)
        finally:
            process.kill()
    assert process.returncode == 0
    assert rest == "engine closed\n"
    assert time.monotonic() - began < 5
