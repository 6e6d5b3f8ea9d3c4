"""The fake engine, and a live server around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from llavamed.serve.app import create_app

from .fake import FakeEngine, running


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def live(engine: FakeEngine) -> Callable[..., AbstractContextManager[str]]:
    """`with live(api_key=...) as url`: a server around the fake engine, with the chat page only where asked for."""
    return lambda **options: running(create_app(engine, **{"page": False, **options}))
