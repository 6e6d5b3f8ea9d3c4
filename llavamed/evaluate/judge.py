"""A language model grades open answers: asked of any OpenAI-compatible endpoint, written down, never paid for twice.

In: LLaVA-Med's visual-chat questions, a model's answers, a judge. Out: for every question the judge's grades of the
answer beside those of the reference, or the reason why there are none.

Judges are retired and change their taste, so a grade means something only beside another of the same judge. Hence a
*baseline*: a fixed file of answers that the same judge grades by the same prompt; models are compared by what they
gain over it. Judge, prompt hash and the file's hash stand in the result.

What goes wrong is counted and shown, never filled in: a reply that is not of the form asked for is asked for again
once and then excluded, an endpoint that does not answer is excluded and asked by the next run. Every reply is
appended to `verdicts.jsonl` as it came, readable or not, before the next is looked at; a run that was stopped
goes on there, and the grades can be read again from the file without asking anybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavamed.engine import Request
from llavamed.engine.remote import RemoteEngine, RemoteError, Reply
from llavamed.errors import InputError
from llavamed.evaluate import price as prices
from llavamed.evaluate.chat_questions import ChatQuestion
from llavamed.evaluate.price import Price
from llavamed.evaluate.results import Answer
from llavamed.evaluate.verdict import Order, Protocol, Unreadable, Verdict
from llavamed.instruct.journal import Journal
from llavamed.manifest import fingerprint
from llavamed.progress import Progress

JOURNAL = "verdicts.jsonl"


@dataclass(frozen=True)
class Graded:
    """One answer with a verdict for each order of the protocol, or the reasons why one is absent."""

    question: ChatQuestion
    answer: Answer
    verdicts: Mapping[Order, Verdict]
    failures: Mapping[Order, str]

    @property
    def counts(self) -> bool:
        """Whether every order has its verdict; otherwise the question is excluded and reported."""
        return not self.failures

    @property
    def reference(self) -> float:
        """The reference's grade, 1-10, mean over the orders."""
        return sum(v.reference for v in self.verdicts.values()) / len(self.verdicts)

    @property
    def candidate(self) -> float:
        return sum(v.candidate for v in self.verdicts.values()) / len(self.verdicts)

    @property
    def relative(self) -> float:
        """The answer's grade in per cent of the reference's."""
        return 100 * self.candidate / self.reference

    @property
    def better(self) -> str | None:
        """Who is better by all orders; "tie" where they disagree; None where the protocol does not ask."""
        said = {verdict.better for verdict in self.verdicts.values()}
        return said.pop() if len(said) == 1 else "tie"


@dataclass(frozen=True)
class Plan:
    """What is still to be asked. The upper bounds take every reply for as long as it may be, and all of `attempts`."""

    calls: int
    calls_at_most: int
    tokens_in: int  # about
    tokens_out_at_most: int
    price: Price | None

    @property
    def cost_at_most(self) -> float | None:
        """US dollars; None where the price is not known."""
        return None if self.price is None else self.price.cost(self.tokens_in, self.tokens_out_at_most)

    def line(self, judge: str) -> str:
        """What a person is told before the start."""
        if not self.calls:
            return f"{judge}: every verdict is in the journal, nothing to ask"
        cost = self.cost_at_most
        told = "price not known" if cost is None or self.price is None else f"at most ${cost:.2f} ({self.price.source})"
        return (
            f"{judge}: {self.calls:,} calls (at most {self.calls_at_most:,}, where a reply must be asked for again), "
            f"at most {self.tokens_in:,} tokens in and {self.tokens_out_at_most:,} out, {told}"
        )


@dataclass
class Judge:
    """Asks `engine` by `protocol`. `journal` is the file of replies."""

    engine: RemoteEngine
    protocol: Protocol
    journal: Path
    given_price: tuple[float, float] | None = None
    concurrency: int = 8
    attempts: int = 2  # at each verdict, while replies cannot be read
    _kept: Journal = field(init=False)
    _failed: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._kept = Journal(self.journal, writable=False)
        self.price = prices.of(self.engine.url, self.engine.model, self.given_price)

    def plan(self, questions: Sequence[ChatQuestion], files: Sequence[Mapping[str, Answer]]) -> Plan:
        """What `grade` of all `files` (answers by question id) would ask now."""
        pending = self._pending(questions, files)
        further = [request for place in pending.values() for request in place.further]
        return Plan(
            calls=len(pending),
            calls_at_most=len(further),
            tokens_in=prices.tokens_in(further, json.dumps(self._more)),  # a reply's schema is read with each request
            tokens_out_at_most=len(further) * self._max_tokens,
            price=self.price,
        )

    def ask(self, questions: Sequence[ChatQuestion], files: Sequence[Mapping[str, Answer]]) -> None:
        """Ask what is not in the journal. Raises InputError where the endpoint refuses every request, or the journal
        cannot be written: a reply that could not be kept would be paid for and lost."""
        self._kept.close()
        try:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self._kept = Journal(self.journal)
        except OSError as error:
            raise InputError(f"{self.journal}: cannot be written ({error.strerror}); give another --journal") from None
        try:
            self._ask_pending(questions, files)
        finally:
            self._kept.close()
            self._kept = Journal(self.journal, writable=False)

    def _ask_pending(self, questions: Sequence[ChatQuestion], files: Sequence[Mapping[str, Answer]]) -> None:
        while pending := self._pending(questions, files):
            with Progress("judge", len(pending), "verdicts") as progress:
                self._ask_each(list(pending.values()), progress)

    def grade(self, questions: Sequence[ChatQuestion], answers: Mapping[str, Answer]) -> list[Graded]:
        """The verdicts in the journal, in the order of the questions; asks nobody."""
        graded = []
        for question in questions:
            answer = answers[question.id]
            found: dict[Order, Verdict] = {}
            failures: dict[Order, str] = {}
            for order in self.protocol.orders:
                outcome = self._look_up(question, answer, order)
                if isinstance(outcome, Verdict):
                    found[order] = outcome
                else:
                    failures[order] = outcome.reason or self._failed.get(outcome.key, "not asked")
            graded.append(Graded(question, answer, found, failures))
        return graded

    def tokens(self, questions: Sequence[ChatQuestion], files: Sequence[Mapping[str, Answer]]) -> tuple[int, int]:
        """What the endpoint counted for all replies to these answers, in and out, those of earlier runs too."""
        rows = {}
        for question, answer, order in self._places(questions, files):
            for attempt in range(self.attempts):
                asked = self._asked(self._request(question, answer, order, attempt))
                row = self._kept.row(asked)
                if row is not None:
                    rows[row["request"]] = row.get("tokens", (0, 0))
        return sum(a for a, _ in rows.values()), sum(b for _, b in rows.values())

    def _pending(self, questions: Sequence[ChatQuestion], files: Sequence[Mapping[str, Answer]]) -> dict[str, _Place]:
        """By their key: two files with the same answer ask once."""
        places = {}
        for question, answer, order in self._places(questions, files):
            outcome = self._look_up(question, answer, order)
            if isinstance(outcome, _Place) and outcome.further and outcome.key not in self._failed:
                places[outcome.key] = outcome
        return places

    def _places(
        self, questions: Sequence[ChatQuestion], files: Sequence[Mapping[str, Answer]]
    ) -> Iterator[tuple[ChatQuestion, Answer, Order]]:
        for answers in files:
            for question in questions:
                for order in self.protocol.orders:
                    yield question, answers[question.id], order

    def _look_up(self, question: ChatQuestion, answer: Answer, order: Order) -> Verdict | _Place:
        """The first reply that can be read; else what is left to ask, and why the last reply could not be."""
        reason = ""
        for attempt in range(self.attempts):
            row = self._kept.row(self._asked(self._request(question, answer, order, attempt)))
            if row is None:
                further = [self._request(question, answer, order, a) for a in range(attempt, self.attempts)]
                return _Place(f"{question.id} {order}", further, self._asked(further[0]), "")
            try:
                return self.protocol.read(row["answer"], order)
            except Unreadable as error:
                reason = f"unreadable after {self.attempts} attempts: {error}"
                if row.get("finish_reason") == "length":
                    reason += f" (cut off at {self._max_tokens} tokens)"
        return _Place(f"{question.id} {order}", [], "", reason)

    def _request(self, question: ChatQuestion, answer: Answer, order: Order, attempt: int) -> Request:
        return self.protocol.request(question, answer.text, order, attempt)

    @property
    def _more(self) -> dict[str, Any]:
        """What the body holds beyond the request."""
        return {**(self.price.body if self.price else {}), "response_format": self.protocol.response_format}

    @property
    def _max_tokens(self) -> int:
        return int(self._more.get("max_completion_tokens", self.protocol.max_new_tokens))

    def _asked(self, request: Request) -> str:
        """The hash of all that decides the reply: the journal's key."""
        return fingerprint({"url": self.engine.url, "model": self.engine.model, "more": self._more, **_plain(request)})

    def _keep(self, place: _Place, reply: Reply) -> None:
        self._kept.keep(
            self._asked(place.further[0]),
            place.about,
            reply.text,
            (reply.prompt_tokens, reply.completion_tokens),
            model=self.engine.model,
            finish_reason=reply.finish_reason,
        )
        self._kept.sync()  # a verdict is paid for, and comes seldom enough

    def _ask_each(self, places: Sequence[_Place], progress: Progress) -> None:
        """At the first refusal, or Ctrl-C, nothing more is sent; replies under way are paid for: they are kept."""
        waiting = iter(places)
        under_way: dict[Future[Reply], _Place] = {}
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    while len(under_way) < self.concurrency and (place := next(waiting, None)) is not None:
                        under_way[pool.submit(self.engine.complete, place.further[0], self._more)] = place
                    if not under_way:
                        return
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        self._take(under_way[future], future)
                        del under_way[future]  # not before it is kept: Ctrl-C comes at any moment
                        progress.advance(1, f"{len(self._failed)} failed" if self._failed else "")
            except BaseException:
                for future, place in under_way.items():
                    self._take(place, future, ending=True)
                raise

    def _take(self, place: _Place, future: Future[Reply], ending: bool = False) -> None:
        """Wait for the reply and keep it. Raises what went wrong, unless the run is `ending` for another reason."""
        error = future.exception()
        if error is None:
            self._keep(place, future.result())
        elif isinstance(error, RemoteError) and error.billed is not None:
            self._keep(place, error.billed)
        elif ending:
            return
        elif not isinstance(error, RemoteError):
            raise error
        elif error.refused:
            raise InputError(f"the judge refuses to answer: {error}; check its key and its name")
        else:
            self._failed[place.key] = str(error)


@dataclass(frozen=True)
class _Place:
    """A verdict that is not there yet: the requests still to be tried, the journal's key of the first, and why not."""

    about: str
    further: Sequence[Request]
    key: str
    reason: str


def _plain(request: Request) -> dict[str, Any]:
    return {
        "messages": [message.to_json() for message in request.messages],
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
