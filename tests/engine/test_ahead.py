from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from llavamed.engine.ahead import ahead


def wait_for(what: object, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_items_come_in_order_and_only_so_many_are_made_before() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    coming = ahead(items(), 3)
    assert made == []
    assert next(coming) == 0
    wait_for(lambda: len(made) >= 4)
    time.sleep(0.05)
    assert len(made) <= 5
    assert list(coming) == list(range(1, 20))


def test_what_the_iterator_raises_is_raised_after_what_it_gave() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("no such image")

    coming = ahead(items(), 4)
    assert next(coming) == 1
    with pytest.raises(KeyError, match="no such image"):
        next(coming)
    assert list(coming) == []


def test_closing_it_ends_the_thread() -> None:
    before = threading.active_count()
    coming = ahead(iter(range(1000)), 2)
    next(coming)
    assert threading.active_count() == before + 1
    coming.close()
    wait_for(lambda: threading.active_count() == before)
