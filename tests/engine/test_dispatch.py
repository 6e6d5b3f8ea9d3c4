from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from llavamed.engine.dispatch import LONGEST_WAIT_SECONDS, Trouble, dispatch
from llavamed.engine.pace import Pace


class Busy(Exception):
    pass


class Endpoint:
    """Doubles a number in 10 ms, so many at a time; `troubles` are raised first, by number."""

    def __init__(self, slots: int = 8, troubles: dict[int, list[Exception]] | None = None) -> None:
        self.slots, self.troubles, self.lock = slots, troubles or {}, threading.Lock()
        self.busy = self.most = self.refused = 0
        self.asked: list[int] = []

    def send(self, number: int) -> int:
        with self.lock:
            self.asked.append(number)
            if self.troubles.get(number):
                raise self.troubles[number].pop(0)
            if self.busy >= self.slots:
                self.refused += 1
                raise Busy
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.01)
        with self.lock:
            self.busy -= 1
        return 2 * number


def trouble(error: Exception) -> Trouble:
    if isinstance(error, Busy):
        return Trouble("busy", float(error.args[0]) if error.args else 0.02)
    return Trouble({TimeoutError: "late", ConnectionError: "lost"}.get(type(error), "final"), 0.0)  # type: ignore[arg-type]


def outcomes(
    endpoint: Endpoint, items: object, retries: int = 2, pace: Pace | None = None
) -> Iterator[tuple[int, object]]:
    return dispatch(items, endpoint.send, trouble, pace or Pace(), retries, random.Random(0))  # type: ignore[arg-type]


def test_every_item_has_its_outcome_and_refusals_are_tried_until_they_are_taken() -> None:
    endpoint = Endpoint(slots=5)
    assert dict(outcomes(endpoint, range(150))) == {number: 2 * number for number in range(150)}
    assert endpoint.most == 5
    assert 0 < endpoint.refused < 75


def test_what_gets_lost_is_tried_again_and_what_is_final_is_not() -> None:
    endpoint = Endpoint(
        troubles={
            1: [ConnectionError()],
            2: [ConnectionError(), TimeoutError()],
            3: [ConnectionError()] * 3,
            4: [KeyError()],
        }
    )
    found = dict(outcomes(endpoint, range(6)))
    assert {place: value for place, value in found.items() if isinstance(value, int)} == {0: 0, 1: 2, 2: 4, 5: 10}
    assert isinstance(found[3], ConnectionError)
    assert isinstance(found[4], KeyError)
    assert [endpoint.asked.count(number) for number in range(6)] == [1, 2, 3, 3, 1, 1]


def test_being_refused_counts_only_while_nobody_is_answered() -> None:
    endpoint = Endpoint(slots=0)
    found = dict(outcomes(endpoint, range(3)))
    assert [type(value) for value in found.values()] == [Busy] * 3
    assert len(endpoint.asked) == 9
    endpoint = Endpoint(slots=1, troubles={7: [Busy()] * 6})
    assert dict(outcomes(endpoint, range(60), pace=Pace(start=1))) == {number: 2 * number for number in range(60)}


def test_who_waits_gives_up_its_place() -> None:
    endpoint = Endpoint(troubles={0: [ConnectionError()]})
    waits = dispatch(
        range(30), endpoint.send, lambda _: Trouble("lost", 0.3), Pace(ceiling=1), 2, random.Random(0)
    )  # with one place, and the first waiting for 0.3 s
    order = [place for place, _ in waits]
    assert sorted(order) == list(range(30))
    assert order.index(0) > 5


def test_an_endpoint_that_asks_for_an_hour_is_not_waited_for() -> None:
    began = time.monotonic()
    endpoint = Endpoint(troubles={0: [Busy(LONGEST_WAIT_SECONDS + 1)]})
    assert isinstance(dict(outcomes(endpoint, [0]))[0], Busy)
    assert time.monotonic() - began < 2


def test_what_the_items_raise_comes_after_the_answers_that_were_under_way() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("a damaged image")

    coming = outcomes(Endpoint(), items())
    assert dict(next(coming) for _ in range(5)) == {number: 2 * number for number in range(5)}
    with pytest.raises(ValueError, match="a damaged image"):
        next(coming)


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    coming = outcomes(Endpoint(), items(), pace=Pace(ceiling=4))
    next(coming)
    assert len(taken) < 40
    assert len(dict(coming)) == 199


def test_nothing_to_send_is_no_wait() -> None:
    pace = Pace()
    pace.shut_until = time.monotonic() + 100
    assert list(outcomes(Endpoint(), [], pace=pace)) == []
