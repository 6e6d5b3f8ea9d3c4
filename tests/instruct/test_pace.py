"""The pace on a clock of its own: an endpoint of numbers, in which an hour takes a second."""

from __future__ import annotations

import heapq
import random
from itertools import count

import pytest

from llavamed.instruct.pace import START, Allowance, Pace, Patience, seconds


def _share_of_ideal(
    slots: int, queues: bool, records: int, seed: int, refuse_always: float = 0.02
) -> tuple[float, float]:
    """What a Pace makes of an endpoint: (answers a second of what the slots could give, share of calls refused). Times
    are log-normal, some calls are refused at any load, and what is too much is queued or refused, to come again
    after a second."""
    rng, pace, tie = random.Random(seed), Pace(most=256), count()
    now, busy, done, started, refused, calls, service = 0.0, 0, 0, 0, 0, 0, 0.0
    events: list[tuple[float, int, str]] = []
    waiting = 0

    def begin() -> None:
        nonlocal busy, service
        busy += 1
        taken = 2 * rng.lognormvariate(0, 0.5)
        service += taken
        heapq.heappush(events, (now + taken, next(tie), "done"))

    def send() -> None:
        nonlocal calls, refused, waiting
        calls += 1
        if rng.random() < refuse_always or (busy >= slots and not queues):
            refused += 1
            pace.refused(now)
            heapq.heappush(events, (now + 1, next(tie), "again"))
        elif busy >= slots:
            waiting += 1
        else:
            begin()

    under_way = 0
    while done < records:
        while under_way < int(pace.limit) and started < records:
            started, under_way = started + 1, under_way + 1
            send()
        now, _, what = heapq.heappop(events)
        if what == "again":
            send()
            continue
        busy, done, under_way = busy - 1, done + 1, under_way - 1
        pace.ended(now)
        if waiting:
            waiting -= 1
            begin()
    return service / slots / now, refused / calls


@pytest.mark.parametrize("queues", [True, False])
@pytest.mark.parametrize("slots", [8, 64])
def test_an_endpoint_is_kept_full_whether_it_queues_or_refuses(slots: int, queues: bool) -> None:
    found = [_share_of_ideal(slots, queues, 100 * slots, seed) for seed in range(6)]
    assert min(share for share, _ in found) > 0.9
    # what is refused in the beginning, until the number is found, weighs more where few calls follow
    assert max(refused for _, refused in found) < (0.05 if queues else 0.4 if slots == 8 else 0.2)


def test_refusals_at_random_do_not_throttle() -> None:
    """Halving at each refusal, as TCP does, would end near sqrt(1.5 / 0.02) = 9 calls at once."""
    assert _share_of_ideal(64, True, 6000, 0, refuse_always=0.04)[0] > 0.9


def test_where_more_calls_bring_nothing_half_more_are_tried_and_ever_more_rarely() -> None:
    pace, limits = Pace(most=256), [START]
    for n in range(20_000):
        pace.ended(n / 28)  # as many a second whatever is under way: the rest waits in a queue
        if pace.limit != limits[-1]:
            limits.append(int(pace.limit))
    assert limits[:5] == [32, 64, 40, 60, 40]
    assert set(limits[2:]) == {40, 60}
    assert len(limits) < 25


def test_nothing_but_refusals_ends_at_one_call_at_a_time() -> None:
    pace = Pace(most=64)
    assert pace.limit == START
    for _ in range(2000):
        pace.refused(0.0)
    assert pace.limit == 1


def test_it_never_asks_for_more_than_allowed() -> None:
    pace = Pace(most=40)
    for n in range(5000):
        pace.ended(n / 1000)
        assert pace.limit <= 40
    assert Pace(most=3).limit == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        ("1.5s", 1.5),
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1h2m3s", 3723),
        ("soon", None),
        ("", None),
        (None, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_times_in_headers(text: str | None, value: float | None) -> None:
    assert seconds(text) == value


def test_what_an_endpoint_says_is_left_of_a_minute_is_spread_over_it() -> None:
    tokens = Allowance()
    assert tokens.wait(1e9, 0.0) == 0
    headers = {
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "3000",
        "x-ratelimit-reset-tokens": "30s",
    }
    tokens.heard(headers, "tokens", now=10.0)
    assert tokens.wait(3000, 10.0) == 0
    tokens.take(3000, 10.0)
    assert tokens.wait(500, 10.0) == pytest.approx(5)  # 100 a second come back
    assert tokens.wait(500, 15.0) == 0
    tokens.heard({"x-ratelimit-remaining-tokens": "unknown"}, "tokens", now=16.0)
    assert tokens.wait(500, 15.0) == 0


def test_patience_follows_the_silences_and_grows_again_when_the_endpoint_slows_down() -> None:
    patience = Patience(most=300, least=5)
    for _ in range(19):
        patience.ended(0.5)
    assert patience.limit == 300
    patience.ended(0.5)
    assert patience.limit == 5
    for _ in range(3):  # one in a hundred hangs: no reason to wait longer
        patience.cut()
        for _ in range(97):
            patience.ended(0.5)
    assert patience.limit == 5
    for _ in range(60):  # all are cut: it is the endpoint
        patience.cut()
    assert patience.limit > 100
    for _ in range(300):
        patience.ended(40.0)
    assert patience.limit == 120
