"""Against simulated endpoints, in simulated time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from email.utils import format_datetime, parsedate_to_datetime

import numpy as np
import pytest

from llavamed.engine.pace import Pace, retry_after, wait_seconds


class Slots:
    """So many at a time; more are refused. `unlucky`: the share that is refused at any load."""

    def __init__(self, slots: int, asks_to_wait: float | None = None, unlucky: float = 0.0) -> None:
        self.slots, self.asks_to_wait, self.unlucky, self.busy = slots, asks_to_wait, unlucky, 0
        self.chance = random.Random(1)

    def takes(self, now: float) -> bool:
        if self.busy >= self.slots or self.chance.random() < self.unlucky:
            return False
        self.busy += 1
        return True

    def wait(self, now: float) -> float | None:
        return self.asks_to_wait


class Quota(Slots):
    """So many requests begun a minute; more are refused until the minute is over."""

    def __init__(self, a_minute: int) -> None:
        super().__init__(10**9)
        self.a_minute, self.begun = a_minute, dict[int, int]()

    def takes(self, now: float) -> bool:
        minute = int(now // 60)
        self.begun[minute] = self.begun.get(minute, 0) + 1
        return self.begun[minute] <= self.a_minute and super().takes(now)

    def wait(self, now: float) -> float:
        return 60 - now % 60


def simulated(server: Slots, requests: int, latency: Callable[[], float], pace: Pace) -> tuple[float, int]:
    """Seconds until all are answered, and how many were refused; a refusal takes 10 ms."""
    chance = random.Random(0)
    now, waiting, refused = 0.0, requests, 0
    ends: list[tuple[float, bool]] = []  # (when, answered)
    again: list[float] = []
    while waiting or ends or again:
        while pace.may_start(now) and (waiting or (again and again[0] <= now)):
            if again and again[0] <= now:
                heapq.heappop(again)
            else:
                waiting -= 1
            pace.started()
            assert pace.under_way <= pace.ceiling
            taken = server.takes(now)
            heapq.heappush(ends, (now + (latency() if taken else 0.01), taken))
        due = again[0] if again and not waiting else now
        if not ends or (due > now and due < ends[0][0] and pace.may_start(due)):
            now = max(due, pace.shut_until)
            continue
        now, taken = heapq.heappop(ends)
        if taken:
            server.busy -= 1
            pace.answered()
        else:
            refused += 1
            pace.refused(now, server.wait(now))
            heapq.heappush(again, now + wait_seconds(1, server.wait(now), chance))
    return now, refused


def ideal(slots: int, requests: int) -> float:
    latency, free = drawn(), [0.0] * slots
    for _ in range(requests):
        heapq.heappush(free, heapq.heappop(free) + latency())
    return max(free)


def drawn() -> Callable[[], float]:
    rng = np.random.default_rng(0)
    return lambda: float(rng.lognormal(0, 0.5))


@pytest.mark.parametrize("asks_to_wait", [None, 0.0, 1.0, 5.0])
@pytest.mark.parametrize("slots", [1, 5, 64, 100])
def test_an_endpoints_places_are_found_and_kept_busy(slots: int, asks_to_wait: float | None) -> None:
    requests = 50 * slots
    seconds, refused = simulated(Slots(slots, asks_to_wait), requests, drawn(), Pace())
    assert ideal(slots, requests) / seconds > 0.93
    assert refused < 60 + requests / 11


@pytest.mark.parametrize(("slots", "unlucky", "share"), [(64, 0.02, 0.95), (10**6, 0.02, 0.95), (64, 0.05, 0.8)])
def test_an_endpoint_that_refuses_some_at_any_load_is_kept_busy(slots: int, unlucky: float, share: float) -> None:
    seconds, _ = simulated(Slots(slots, 1.0, unlucky), 4000, drawn(), Pace())
    assert ideal(min(slots, 128), 4000) / seconds > share


def test_an_endpoint_without_bounds_gets_the_ceiling() -> None:
    pace = Pace(ceiling=40)
    simulated(Slots(10**9), 1000, drawn(), pace)
    assert pace.limit == 40


def test_a_spent_quota_is_not_hammered() -> None:
    seconds, refused = simulated(Quota(200), 1000, drawn(), Pace())
    assert seconds < 5.5 * 60
    assert refused < 5 * 128, "each minute those under way fail once, and then nothing is sent"


def test_nothing_is_sent_while_the_endpoint_asks_for_quiet_and_then_one() -> None:
    pace = Pace(start=2)
    pace.started()
    pace.started()
    pace.refused(10.0, 30.0)
    assert not pace.may_start(10.0), "the one under way is all that it takes"
    pace.refused(10.1, 30.0)
    assert not pace.may_start(39.0)
    assert pace.may_start(40.2)
    pace.started()
    assert not pace.may_start(40.2)


def test_running_out_of_time_halves_the_limit_once_for_those_sent_together() -> None:
    pace = Pace(start=32)
    for size in (32, 16):
        assert pace.limit == size
        for _ in range(size):
            pace.started()
        for _ in range(size):
            pace.ran_out_of_time()
    assert pace.limit == 8


def test_other_failures_leave_the_pace_as_it_is() -> None:
    pace = Pace(start=4)
    pace.started()
    pace.failed()
    assert (pace.limit, pace.under_way) == (4, 0)


def test_waits_double_with_a_random_part_and_never_undercut_what_is_asked() -> None:
    chance = random.Random(1)
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (20, 60)):
        waits = [wait_seconds(attempt, None, chance) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(set(waits)) == 200
    waits = [wait_seconds(1, 8.0, chance) for _ in range(200)]
    assert 8 <= min(waits) < max(waits) <= 10.1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "x"}, 9.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 59.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:00:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    now = parsedate_to_datetime("Fri, 31 Dec 1999 23:59:00 GMT")
    assert format_datetime(now, usegmt=True) == "Fri, 31 Dec 1999 23:59:00 GMT"
    assert retry_after(headers, now.timestamp()) == seconds
