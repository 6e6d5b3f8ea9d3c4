"""Fixtures that several floors share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from llavamed import cli

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real articles, images and benchmark files that stands beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent: the tests on real articles and benchmarks need it")
    return SHARED_DATA


@pytest.fixture
def llavamed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`llavamed ...` as it is typed; returns its exit code."""

    def typed(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["llavamed", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    return typed
