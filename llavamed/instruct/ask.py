"""Many calls to one endpoint: one event loop, as many at once as the endpoint bears, every answer in the journal.

In: calls, made one after the other as they are needed, and a journal. Out: the journal holds their answers, and an
`Outcome` says what became of the rest. What is in the journal already is not asked.

* A call that is refused or breaks keeps its place and tries again: after the time it was told, or after a random one
  that grows. An error that another try cannot mend ends that record and no other.
* An answer in another form than the one asked for is paid for, so it is kept too; then the same is asked again with
  another seed and some temperature, twice at most. Whoever reads the journal later finds the one that is right.
* An answer that was cut because it reached `max_tokens` would be cut again: it is not asked a second time until a
  prompt allows more. `max_tokens` is no part of what a question is known by, so answers that are whole stay paid for.
* One call goes out alone until a right answer has come, and a second, third and fourth only where it takes long: a
  wrong key, a wrong address or a model that cannot do it costs one call and not a hundred. Ten records that fail, and
  none that did not, end it; before that is said the journal is searched for a right answer further on.
* Ctrl-C (and SIGTERM, which a cluster sends first) begins no call any more and waits for those under way, for they
  are paid for; a second one drops them. So does an error that would fail every record, and a bill that would grow over
  its bound.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from llavamed.errors import InputError
from llavamed.instruct.call import VARIANTS, Call, closed, known_answer
from llavamed.instruct.endpoint import LENGTH, Busy, Declined, Endpoint, Faltered, Reply
from llavamed.instruct.journal import Journal
from llavamed.instruct.pace import Pace
from llavamed.instruct.prices import Bill
from llavamed.progress import Progress

TRIES = 6  # of a call that breaks
BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 60.0
LONGEST_WAIT_SECONDS = 900.0  # an endpoint that says to come back later than this is left for today
_TOLD_WAIT_SECONDS = 20.0  # what the endpoint's allowance makes us wait longer is told
FAILURES_BEFORE_GIVING_UP = 10  # from the first record on: then it is the endpoint, not the records
IN_A_ROW, SILENT_SECONDS = 50, 120.0  # so many failures without an answer between them, for so long: it is down
DECLINED_IN_A_ROW = 50  # records without an answer between them: it is not the records
UNPROVEN_IN_A_ROW = 8  # calls that broke, before the first answer of all
_ANOTHER_CANARY_SECONDS, _CANARIES = 2.0, 4
_TICK_SECONDS, _LATE_SECONDS = 0.1, 0.5

NOT_IN_FORM, DECLINED, FAILED, OVER_COST = "not_in_form", "declined", "failed", "over_max_cost"
CUT = "cut_at_max_tokens"


@dataclass
class Outcome:
    """What became of the calls that were not in the journal."""

    answered: int = 0  # records
    calls: int = 0  # sent, those that failed included
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)  # pair -> (kind, why)
    broken: Counter[str] = field(default_factory=Counter)  # calls that were refused or broke, by kind
    over_cost: bool = False

    def summary(self) -> dict[str, Any]:
        unanswered = {"unanswered": self.reasons()} if self.failed else {}
        return {"calls": self.calls, "answered": self.answered, "broken": dict(self.broken), **unanswered}

    def reasons(self, most: int = 5) -> dict[str, int]:
        """Why pairs have no answer, the commonest reasons first."""
        why = Counter(kind if kind == NOT_IN_FORM else f"{kind}: {said}" for kind, said in self.failed.values())
        return dict(why.most_common(most))


def ask(
    calls: Callable[[], Iterable[Call]],
    endpoint: Endpoint,
    journal: Journal,
    right: Callable[[str], bool],
    *,
    bill: Bill,
    at_most: int,
    total: int | None = None,
    title: str = "asking",
) -> Outcome:
    """Ask those of `calls()` that the journal lacks, at most `at_most` at once. Raises InputError for what would fail
    every record, and KeyboardInterrupt after Ctrl-C; what was answered until then is in the journal."""
    with Progress(title, total, "records") as progress:
        work = _Work(calls, endpoint, journal, right, bill, Pace(at_most), progress)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work.run())
        with ThreadPoolExecutor(1) as thread:  # a notebook has a loop of its own
            return thread.submit(asyncio.run, work.run()).result()


class _Work:
    def __init__(
        self,
        calls: Callable[[], Iterable[Call]],
        endpoint: Endpoint,
        journal: Journal,
        right: Callable[[str], bool],
        bill: Bill,
        pace: Pace,
        progress: Progress,
    ) -> None:
        self.calls, self.endpoint, self.journal, self.right = calls, endpoint, journal, right
        self.bill, self.pace, self.progress = bill, pace, progress
        self.outcome = Outcome()
        self.tasks: set[asyncio.Task[None]] = set()
        self.changed, self.stop = asyncio.Event(), asyncio.Event()
        self.fatal: BaseException | None = None
        self.last_answer = time.monotonic()
        self.in_a_row = self.declined_in_a_row = 0
        self.quiet_until = 0.0  # the wait was told
        self.seen_right = False  # a right answer, in the journal or now
        self.known_before = len(journal)

    async def run(self) -> Outcome:
        ticker = asyncio.create_task(self._tick())
        signals = self._catch_signals()
        try:
            await self._feed()
            while self.tasks:
                await asyncio.wait(self.tasks)
        finally:
            ticker.cancel()
            for number in signals:
                asyncio.get_running_loop().remove_signal_handler(number)
            self.journal.sync()
            await self.endpoint.close()
        if self.fatal is not None:
            raise self.fatal
        return self.outcome

    async def _feed(self) -> None:
        self.last_answer = time.monotonic()
        for count, call in enumerate(self.calls()):
            text, number, cut = known_answer(call, self.journal, self.right)
            if text is not None:
                self.seen_right = True
                self._done()
                if count % 100 == 0:
                    await asyncio.sleep(0)
                continue
            if number is None:
                why = _too_long(call) if cut else (NOT_IN_FORM, "in the journal, and never right")
                self._fail(call, *why, asked=False)
                continue
            if not await self._room(call) or self.stop.is_set():
                return
            self.bill.reserve(call.id, call.tokens, call.max_tokens)
            task = asyncio.create_task(self._record(call, number))
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    async def _room(self, call: Call) -> bool:
        """Wait until one more call may begin; False if none may any more."""
        began = time.monotonic()
        while not self.stop.is_set():
            now = time.monotonic()
            canaries = min(_CANARIES, 1 + (now - began) // _ANOTHER_CANARY_SECONDS)
            limit = self.pace.limit if self.outcome.answered else canaries
            fits = self.bill.fits(call.tokens, call.max_tokens)
            held_back = self._held_back(call.tokens, now)
            if held_back > LONGEST_WAIT_SECONDS and not self.tasks:  # nothing is under way that could bring better news
                why = f"allows nothing more for {held_back / 3600:.1f} hours; what was answered is kept"
                self._halt(InputError(f"{self.endpoint.where}: {why}"))
                return False
            if held_back > _TOLD_WAIT_SECONDS and now > self.quiet_until:
                print(f"\n{self.endpoint.where}: allows the next call in {held_back:.0f} seconds", file=sys.stderr)
                self.quiet_until = now + held_back
            if len(self.tasks) < int(limit) and fits and held_back <= 0:
                self.endpoint.requests.take(1, now)
                self.endpoint.tokens.take(call.tokens, now)
                return True
            if not fits and not self.tasks:
                self.outcome.over_cost = True
                return False
            self.changed.clear()
            await self.changed.wait()
        return False

    def _held_back(self, tokens: int, now: float) -> float:
        return max(self.endpoint.requests.wait(1, now), self.endpoint.tokens.wait(tokens, now))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.changed.set()
        if not task.cancelled() and task.exception() is not None:  # a defect of ours: end cleanly, then show it
            self._halt(task.exception())

    # --- one record -----------------------------------------------------------------------------------------------

    async def _record(self, call: Call, number: int) -> None:
        said = ""
        try:
            while number < VARIANTS:
                variant = call.variant(number)
                reply = await self._reply(variant, call)
                if reply is None:
                    return
                if reply.counted:
                    self.bill.learn(call.tokens, reply.tokens[0])
                about: dict[str, Any] = {"model": str(call.body.get("model", "")), "finish": reply.finish}
                if reply.finish == LENGTH:
                    about["max_tokens"] = call.max_tokens
                if not reply.counted:
                    about["estimated"] = True
                self.journal.keep(variant.id, call.key, reply.text, reply.tokens, **about)
                if self.right(closed(reply.text, reply.finish)):
                    self.outcome.answered += 1
                    self.seen_right = True
                    self._done()
                    return
                if reply.finish == LENGTH:  # the same again would be cut again
                    self.outcome.broken["cut at max_tokens"] += 1
                    self._fail(call, *_too_long(call))
                    return
                number, said = number + 1, reply.text
                self.outcome.broken["not in the form asked for"] += 1
                if self.bill.over:
                    self.outcome.over_cost = True
                    return
                if self.stop.is_set():
                    return
            self._fail(call, NOT_IN_FORM, f"not the form asked for: {said[:80]!r}")
        finally:
            self.bill.release(call.id)

    async def _reply(self, variant: Call, call: Call) -> Reply | None:
        """The answer, after as many tries as may help; None if there is none, which is then counted."""
        breaks = refusals = 0
        while not self.stop.is_set():
            try:
                body = variant.sent
            except InputError as error:
                self._fail(call, FAILED, str(error))
                return None
            self.outcome.calls += 1
            try:
                reply = await self.endpoint.ask(body)
            except Busy as error:
                refusals += 1
                self.pace.refused(time.monotonic())
                # at least as long as without a word: some say "0" and refuse again
                wait = max(_backoff(refusals), (error.wait or 0.0) * random.uniform(1.0, 1.1))
                self._broke("refused", str(error))
                if wait > LONGEST_WAIT_SECONDS:
                    self._halt(InputError(f"{self.endpoint.where}: asks to come back in {wait / 3600:.1f} hours"))
            except Faltered as error:
                breaks += 1
                self.pace.ended(time.monotonic())
                wait = _backoff(breaks)
                self._broke("broke", str(error))
                if any(error.tokens):
                    self.journal.lose(variant.id, call.key, str(error), error.tokens)
                    if self.bill.over:
                        self.outcome.over_cost = True
                        return None
                if breaks == TRIES:
                    self._fail(call, FAILED, str(error))
                    return None
            except Declined as error:
                self.pace.ended(time.monotonic())
                self._fail(call, DECLINED, str(error))
                self.declined_in_a_row += 1
                if self.declined_in_a_row >= DECLINED_IN_A_ROW:
                    why = f"{DECLINED_IN_A_ROW} records in a row were declined ({error}); what was answered is kept"
                    self._halt(InputError(f"{self.endpoint.where}: {why}"))
                return None
            except InputError as error:
                self._halt(error)
                return None
            else:
                self.pace.ended(time.monotonic())
                self.last_answer, self.in_a_row, self.declined_in_a_row = time.monotonic(), 0, 0
                return reply
            try:
                await asyncio.wait_for(self.stop.wait(), wait)
            except TimeoutError:
                continue
        return None

    def _broke(self, kind: str, why: str) -> None:
        self.outcome.broken[kind] += 1
        self.in_a_row += 1
        if kind == "broke" and not self.endpoint.proven and self.in_a_row >= UNPROVEN_IN_A_ROW:
            self._halt(InputError(f"{self.endpoint.where}: no answer ({why}); is the address right, and is it up?"))
        if self.in_a_row >= IN_A_ROW and time.monotonic() - self.last_answer > SILENT_SECONDS:
            self._halt(InputError(f"{self.endpoint.where}: {self.in_a_row} calls in a row without an answer ({why})"))

    def _fail(self, call: Call, kind: str, why: str, asked: bool = True) -> None:
        """`asked`: now. What failed in an earlier run is counted with the others, but ends nothing: the endpoint may
        have been mended since."""
        self.outcome.failed[call.key] = (kind, why)
        self._done()
        if asked and len(self.outcome.failed) >= FAILURES_BEFORE_GIVING_UP and not self._ever_right():
            doubt = "; is it an OpenAI-compatible endpoint, is it up, and can its model do this?"
            self._halt(
                InputError(
                    f"{self.endpoint.where}: failed on each of the first {len(self.outcome.failed):,} pairs ({why})"
                    f"{'' if kind == CUT else doubt}"
                )
            )

    def _ever_right(self) -> bool:
        if not self.seen_right and self.known_before:  # an earlier run, or a batch file, may know one that comes later
            answers = (known_answer(call, self.journal, self.right).text for call in self.calls())
            self.seen_right = any(text is not None for text in answers)
        return self.seen_right

    # --- the whole --------------------------------------------------------------------------------------------------

    def _halt(self, why: BaseException | None) -> None:
        self.fatal = self.fatal or why
        self.stop.set()
        self.changed.set()

    def _done(self) -> None:
        note = f"{len(self.tasks)} at once"
        if self.bill.known:
            note += f", {self.bill.spent:.2f} {self.bill.currency}"
        self.progress.advance(note=note)

    async def _tick(self) -> None:
        ticks, before = 0, time.monotonic()
        syncing: asyncio.Future[None] | None = None
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            ticks, now = ticks + 1, time.monotonic()
            late = now - before - _TICK_SECONDS
            if late > _LATE_SECONDS:  # a laptop that slept, a machine with too much to do: the silence was ours
                self.endpoint.forgive(late)
                self.last_answer += late
            before = now
            self.endpoint.end_silent()
            self.changed.set()
            if syncing is not None and syncing.done():
                if error := syncing.exception():
                    self._halt(error)
                syncing = None
            if ticks % 10 == 0 and syncing is None:  # in a thread: a busy disk must not hold up the calls
                syncing = asyncio.get_running_loop().run_in_executor(None, self.journal.sync)

    def _catch_signals(self) -> tuple[int, ...]:
        if threading.current_thread() is not threading.main_thread():
            return ()
        caught = (signal.SIGINT, signal.SIGTERM)
        for number in caught:
            asyncio.get_running_loop().add_signal_handler(number, self._interrupted)
        return caught

    def _interrupted(self) -> None:
        if self.stop.is_set():
            for task in self.tasks:
                task.cancel()
            return
        print(f"\nwaiting for {len(self.tasks)} calls under way; again to drop them", file=sys.stderr)
        self._halt(KeyboardInterrupt())


def _too_long(call: Call) -> tuple[str, str]:
    return CUT, f"the answer, thoughts included, is longer than {call.max_tokens:,} tokens; give the prompt more"


def _backoff(tries: int) -> float:
    """Seconds before the next try: random, so that many do not come back at once, and longer each time."""
    return random.uniform(0.0, min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**tries))
