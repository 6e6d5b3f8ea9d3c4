"""The data tables of this floor: words, questions, cleaning rules and prompts live in YAML beside the code.

A reader who wants another wording edits a table, not a function. Because the tables decide what is
written, their hash is part of every stage's fingerprint: an edited table makes the stage run again.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def load(name: str) -> dict[str, Any]:
    """The parsed table `name`, e.g. "lexicon.yaml". Treat it as read-only."""
    table = yaml.safe_load(_text(name))
    assert isinstance(table, dict), f"{name} must be a mapping"
    return table


def sha(*names: str) -> str:
    """One hash, 16 hex digits, over the bytes of the named tables in that order."""
    return hashlib.sha256("\0".join(_text(name) for name in names).encode()).hexdigest()[:16]


def _text(name: str) -> str:
    return resources.files("llavamed.instruct").joinpath(name).read_text(encoding="utf-8")
