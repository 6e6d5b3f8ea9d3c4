"""Fixtures that several floors share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real articles, images and benchmark files that stands beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent: the tests on real articles and benchmarks need it")
    return SHARED_DATA
