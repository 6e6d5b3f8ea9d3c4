"""How many calls at once, how fast, and how long to wait for one: what an endpoint can bear, learned while asking.

In: what became of each call (answered, refused with 429, failed) and the limits that the endpoint states in its
headers. Out: how many calls may be under way, how long the next has to wait, and after which silence a call is
given up. No clock is read here: the caller says what time it is, so a test can run an hour in a second.

Three things are hard.

* **Where the endpoint is full.** One kind refuses what is too much (429), the other queues it and only gets slower;
  latency alone does not tell a queue from a large batch that still pays. So the number is doubled as long as a
  doubling brings more answers a second; a while later half as many more are tried again.
* **A refusal is no proof that it is full.** Hosted endpoints refuse some calls at any load; to halve at each, as TCP
  does, would leave most of the endpoint idle. A call that is refused keeps its place while it waits as long as it
  was told, which is pressure enough, and the number falls only when more than a tenth are refused.
* **When silence means that nothing will come.** Answers take from half a second to minutes, depending on the model.
  The limit is a multiple of the longest silences that ended well; one that is cut off counts as longer than the limit,
  so an endpoint that got slower is given more time again.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

START = 32  # calls at once in the beginning: few enough for any hosted endpoint
REFUSED_TOO_OFTEN, REFUSED_SELDOM = 0.10, 0.05  # of the calls in a round
WORTH_MORE = 1.2  # times the answers a second
_LEAST_IN_A_ROUND = 32
_COUNTS_LITTLE = 0.1
_FIRST_STEP = 0.05
_LATER = 1.5  # times the number, in place of twice, once a trial was in vain: the queue it makes is shorter
_LOOK_AGAIN = (4, 64)  # rounds at one number before a larger one is tried again: at first, and at last


@dataclass
class Pace:
    """How many calls may be under way: `limit`, from 1 to `most`.

    After each change as many calls as are under way come back uncounted, for they tell of the number before. As many
    again make a round, at whose end the next number is chosen."""

    most: int
    limit: float = 0.0  # 0: START
    _uncounted: float = 0.0  # calls that still come back before the round begins
    _began: float | None = None  # when it did
    _ended: int = 0  # calls of this round that came back and were not refused
    _refused: int = 0
    _here: float = 0.0  # calls a second at this number, the mean of its rounds
    _rate: float = 0.0  # calls a second before the number under trial
    _fallback: float = 0.0  # the number to go to if a larger one is in vain; 0: none is under trial
    _step: float = 0.0  # share to add in the next calm round, once the endpoint has refused too often; 0: it has not
    _factor: float = 2.0  # of the next trial
    _rounds: int = 0  # at this number
    _look_again: int = _LOOK_AGAIN[0]

    def __post_init__(self) -> None:
        self._set(float(min(self.limit or START, self.most)))
        self._fallback, self._uncounted = self.limit, 0.0

    def ended(self, now: float) -> None:
        """A call came back, with an answer or with an error that is no refusal."""
        self._back(now, refused=False)

    def refused(self, now: float) -> None:
        """A call was refused: too many."""
        self._back(now, refused=True)

    def _back(self, now: float, refused: bool) -> None:
        if self._uncounted > 0:
            # with a smaller number, those that are too many go on being refused until as many others have ended
            self._uncounted -= _COUNTS_LITTLE if refused else 1.0
            return
        self._began = now if self._began is None else self._began
        self._ended += not refused
        self._refused += refused
        count = self._ended + self._refused
        if count < max(_LEAST_IN_A_ROUND, self.limit):
            return
        share = self._refused / count
        self._rounds += 1
        self._here += (self._ended / max(now - self._began, 1e-9) - self._here) / self._rounds
        number = self.limit
        if share > REFUSED_TOO_OFTEN:
            self._step, self._fallback = _FIRST_STEP, 0.0
            number *= 1 - share / 2
        elif self._step:
            calm = share < REFUSED_SELDOM
            number += max(1.0, self._step * number) if calm else 0.0
            self._step = min(2 * self._step, 1.0) if calm else _FIRST_STEP
        elif self._fallback and self._here < self._rate * WORTH_MORE:
            number, self._fallback, self._factor = self._fallback, 0.0, _LATER
        elif (self._fallback or self._rounds >= self._look_again) and number < self.most:
            if self._fallback:  # it was worth it; what will gain less than WORTH_MORE is full before 1.25 times
                self._fallback = 1.25 * number
            else:
                self._fallback, self._look_again = number, min(2 * self._look_again, _LOOK_AGAIN[1])
            self._rate, number = self._here, self._factor * number
        self._ended, self._refused, self._began = 0, 0, None
        if number != self.limit:
            self._set(number)

    def _set(self, limit: float) -> None:
        self.limit = min(float(self.most), max(1.0, limit))
        self._uncounted, self._rounds, self._here = self.limit, 0, 0.0


@dataclass
class Allowance:
    """What the endpoint says it will still take of one kind (requests or tokens) before a minute is over: `left`, and
    how fast that grows again. Nothing is held back as long as it says nothing."""

    left: float = float("inf")
    per_second: float = float("inf")
    _heard: float = 0.0

    def heard(self, headers: Mapping[str, str], kind: str, now: float) -> None:
        """Read `x-ratelimit-{limit,remaining,reset}-<kind>`, as OpenAI, Azure, Groq, vLLM's gateways and others write
        them. The reset is the time until all is there again."""
        limit, left = (_number(headers.get(f"x-ratelimit-{name}-{kind}")) for name in ("limit", "remaining"))
        if left is None:
            return
        reset = seconds(headers.get(f"x-ratelimit-reset-{kind}"))
        if limit is not None:
            self.per_second = (limit - left) / reset if reset and limit > left else limit / 60
        elif reset:
            self.per_second = max(left, 1.0) / reset
        self.left, self._heard = left, now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much may be sent; what is larger than the whole allowance waits for what there is."""
        missing = amount - self._now(now)
        return 0.0 if missing <= 0 else missing / max(self.per_second, 1e-9)

    def take(self, amount: float, now: float) -> None:
        self.left, self._heard = self._now(now) - amount, now

    def _now(self, now: float) -> float:
        if self.left == float("inf"):
            return self.left
        return self.left + (now - self._heard) * self.per_second


@dataclass
class Patience:
    """After how many seconds of silence a call is given up: `limit`."""

    most: float  # never longer; and so long until enough was heard
    least: float = 5.0  # a garbage collection, a hiccup of the network
    times: float = 3.0  # of the silence that 95 of 100 calls stay under
    _silences: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    limit: float = 0.0

    def __post_init__(self) -> None:
        self.limit = self.most

    def ended(self, silence: float) -> None:
        """A call came to its end; `silence` was its longest."""
        self._heard(silence)

    def cut(self) -> None:
        """A call was given up: its silence would have been longer than the limit."""
        self._heard(2 * self.limit)

    def _heard(self, silence: float) -> None:
        self._silences.append(silence)
        count = len(self._silences)
        if count >= 20:
            usual = sorted(self._silences)[int(0.95 * (count - 1))]
            self.limit = min(self.most, max(self.least, self.times * usual))


def seconds(text: str | None) -> float | None:
    """What a header says: "20", "1.5s", "6m0s", "120ms", "1h2m3s"; None for anything else."""
    if text is None:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
