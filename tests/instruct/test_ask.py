"""Many calls: none is paid for twice, none takes its neighbours along, and the bill stays within its bound."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llavamed.errors import InputError
from llavamed.instruct import answer
from llavamed.instruct import ask as ask_module
from llavamed.instruct.ask import CUT, DECLINED, FAILED, NOT_IN_FORM, Outcome, ask
from llavamed.instruct.call import Call
from llavamed.instruct.endpoint import Reply, connect
from llavamed.instruct.journal import Journal
from llavamed.instruct.prices import Bill, Price
from llavamed.records import read_jsonl
from tests.instruct.conftest import Endpoint as Server
from tests.instruct.conftest import Said

SIMULATED = Path(__file__).resolve().parents[2] / "benchmarks" / "endpoint.py"


def _calls(count: int, url: str, max_tokens: int = 100) -> Iterator[Call]:
    for number in range(count):
        messages = [{"role": "user", "content": f"record {number}"}]
        body = {"model": "m", "messages": messages, "seed": 1, "temperature": 0.0, "max_tokens": max_tokens}
        yield Call(f"k{number}", url, body)


def _number(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].split()[1])


def _right(text: str) -> bool:
    return answer.read(text) is not None


def _ask(
    server: Server | str,
    path: Path,
    count: int,
    max_cost: float | None = None,
    timeout_seconds: float = 30.0,
    max_tokens: int = 100,
) -> Outcome:
    url = server if isinstance(server, str) else server.url
    with Journal(path) as journal:
        bill = Bill(journal, Price(10.0, 100.0) if max_cost else None, max_cost)
        made = connect(url, "m", "teacher", "LLAVAMED_TEACHER_KEY", timeout_seconds)
        asked = partial(_calls, count, made.where, max_tokens)
        return ask(asked, made, journal, _right, bill=bill, at_most=32, total=count)


def _answered(path: Path) -> list[str]:
    return [row["pair"] for row in read_jsonl(path) if "answer" in row and _right(row["answer"])]


def test_a_second_run_asks_nothing_and_a_larger_one_only_what_is_new(endpoint: Server, tmp_path: Path) -> None:
    assert _ask(endpoint, tmp_path / "j", 20).answered == 20
    again = _ask(endpoint, tmp_path / "j", 20)
    assert (again.answered, again.calls, len(endpoint.requests)) == (0, 0, 20)
    assert _ask(endpoint, tmp_path / "j", 25).calls == 5


def test_one_call_goes_out_alone_until_a_right_answer_has_come(endpoint: Server, tmp_path: Path) -> None:
    most = under_way = 0

    def reply(body: dict[str, Any]) -> Said:
        nonlocal most, under_way
        most = max(most, len(endpoint.requests)) if under_way == 0 else most
        under_way += 1
        return Said()

    endpoint.reply = reply
    _ask(endpoint, tmp_path / "j", 20)
    assert most == 1


def test_a_slow_first_answer_is_joined_by_three_calls_at_most(
    endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, before_the_first = 0, 0

    async def slow(self: object, body: object) -> Reply:
        nonlocal begun, before_the_first
        begun += 1
        await asyncio.sleep(0.6 if begun <= 4 else 0.0)
        before_the_first = before_the_first or begun
        return Reply(Said().text, (1, 1), True, "stop")

    monkeypatch.setattr(ask_module, "_ANOTHER_CANARY_SECONDS", 0.05)
    monkeypatch.setattr("llavamed.instruct.endpoint.Endpoint.ask", slow)
    assert _ask(endpoint, tmp_path / "j", 40).answered == 40
    assert 2 <= before_the_first <= 4


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (Said("x", 413), DECLINED),
        (Said("oops", 500), FAILED),
        (Said("prose, no JSON"), NOT_IN_FORM),
        (Said(finish="content_filter"), DECLINED),
        (Said(""), NOT_IN_FORM),
        (Said('{"turns": "none"}'), NOT_IN_FORM),
    ],
)
def test_defect_1_a_failing_record_is_counted_and_its_neighbours_are_kept(
    endpoint: Server, tmp_path: Path, said: Said, kind: str
) -> None:
    endpoint.reply = lambda body: said if _number(body) == 7 else Said()
    found = _ask(endpoint, tmp_path / "j", 20)
    assert {key: name for key, (name, _) in found.failed.items()} == {"k7": kind}
    assert sorted(_answered(tmp_path / "j")) == sorted(f"k{n}" for n in range(20) if n != 7)


@pytest.mark.parametrize(
    "said", [Said("slow down", 429, {"retry-after": "0.01"}), Said("oops", 503), Said("wait", 408)]
)
def test_what_another_try_may_mend_is_tried_again(endpoint: Server, tmp_path: Path, said: Said) -> None:
    seen: Counter[int] = Counter()

    def reply(body: dict[str, Any]) -> Said:
        seen[_number(body)] += 1
        return Said() if seen[_number(body)] == 2 else said

    endpoint.reply = reply
    assert _ask(endpoint, tmp_path / "j", 10).answered == 10
    assert set(seen.values()) == {2}


def test_what_another_try_cannot_mend_is_not_tried_again(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said("too large", 413) if _number(body) % 2 else Said()
    assert _ask(endpoint, tmp_path / "j", 10).calls == 10


def test_an_answer_in_another_form_is_kept_and_the_question_put_with_another_seed(
    endpoint: Server, tmp_path: Path
) -> None:
    endpoint.reply = lambda body: Said() if body["seed"] == 2 or _number(body) != 3 else Said("oops")
    assert _ask(endpoint, tmp_path / "j", 5).answered == 5
    asked = [(body["seed"], body["temperature"]) for body in endpoint.requests if _number(body) == 3]
    assert asked[0] == (1, 0.0)
    assert asked[1][0] == 2
    assert asked[1][1] > 0
    assert len(list(read_jsonl(tmp_path / "j"))) == 6
    assert _ask(endpoint, tmp_path / "j", 5).calls == 0


def test_a_record_that_was_never_right_is_not_paid_for_again(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said("oops") if _number(body) == 3 else Said()
    for calls in (7, 0):
        found = _ask(endpoint, tmp_path / "j", 5)
        assert (found.calls, found.failed["k3"][0]) == (calls, NOT_IN_FORM)


def test_an_answer_that_was_cut_is_paid_for_once_until_more_is_allowed(endpoint: Server, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Said:
        return Said('{"turns": [{"question": "Wh', finish="length") if _number(body) == 3 else Said()

    endpoint.reply = reply
    for calls in (5, 0):
        found = _ask(endpoint, tmp_path / "j", 5)
        assert (found.calls, found.failed["k3"][0]) == (calls, CUT)
        assert "longer than 100 tokens" in next(iter(found.reasons()))
    (row,) = [row for row in read_jsonl(tmp_path / "j") if row["finish"] == "length"]
    assert (row["pair"], row["max_tokens"]) == ("k3", 100)
    more = _ask(endpoint, tmp_path / "j", 5, max_tokens=200)  # cut again, and no other is asked again
    assert (more.calls, more.failed["k3"][0]) == (1, CUT)
    assert _ask(endpoint, tmp_path / "j", 5, max_tokens=200).calls == 0
    endpoint.reply = lambda body: Said()
    most = _ask(endpoint, tmp_path / "j", 5, max_tokens=300)
    assert (most.calls, most.answered, most.failed) == (1, 1, {})
    for max_tokens in (300, 100):
        assert _ask(endpoint, tmp_path / "j", 5, max_tokens=max_tokens).calls == 0


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (Said().text + " And another: {", True),  # a model that does not end
        ("Q1: What is it?\nA1: A CT scan of the ch", False),  # half a conversation looks like a whole one
        ("Q1: What is it?\nA1: A CT [axial] scan of the ch", False),
        (f"<think>Perhaps {Said().text}? It is a", False),  # a draft is no answer
        (f"<think>It is a scan.</think> {Said().text} And {{", True),
        ("", False),  # all of it was thought
    ],
)
def test_of_an_answer_that_was_cut_only_what_is_closed_is_taken(
    endpoint: Server, tmp_path: Path, text: str, whole: bool
) -> None:
    endpoint.reply = lambda body: Said(text, finish="length") if _number(body) == 3 else Said()
    for calls in (5, 0):
        found = _ask(endpoint, tmp_path / "j", 5)
        assert (found.calls, "k3" not in found.failed) == (calls, whole)


def test_a_model_that_is_always_cut_is_left_with_the_advice_and_no_doubt_of_the_endpoint(
    endpoint: Server, tmp_path: Path
) -> None:
    endpoint.reply = lambda body: Said("", finish="length")
    with pytest.raises(InputError, match=r"first 10 pairs .*longer than 100 tokens; give the prompt more\)$"):
        _ask(endpoint, tmp_path / "j", 50)
    assert len(endpoint.requests) == 10


def test_records_that_are_known_to_fail_do_not_look_like_an_endpoint_that_fails(
    endpoint: Server, tmp_path: Path
) -> None:
    endpoint.reply = lambda body: Said("oops") if 5 <= _number(body) < 20 else Said()
    assert len(_ask(endpoint, tmp_path / "j", 30).failed) == 15
    again = _ask(endpoint, tmp_path / "j", 40)
    assert (again.calls, again.answered, len(again.failed)) == (10, 10, 15)


def test_a_right_answer_that_comes_later_in_the_corpus_speaks_for_the_endpoint(
    endpoint: Server, tmp_path: Path
) -> None:
    """The first twelve are asked last, as after a batch file or a larger --count."""
    endpoint.reply = lambda body: Said("", finish="length") if _number(body) < 12 else Said()
    with Journal(tmp_path / "j") as journal:
        made = connect(endpoint.url, "m", "teacher", "LLAVAMED_TEACHER_KEY", 30.0)
        for call in list(_calls(20, made.where))[12:]:
            journal.keep(call.id, call.key, Said().text)
    for calls in (12, 0):
        found = _ask(endpoint, tmp_path / "j", 20)
        assert (found.calls, len(found.failed)) == (calls, 12)


def test_what_failed_in_an_earlier_run_ends_nothing_where_the_endpoint_was_mended(
    endpoint: Server, tmp_path: Path
) -> None:
    endpoint.reply = lambda body: Said("", finish="length")
    for calls in (10, 11):  # one more shows that it is as it was
        with pytest.raises(InputError, match=r"failed on each of the first 1[01] pairs"):
            _ask(endpoint, tmp_path / "j", 30)
        assert len(endpoint.requests) == calls
    endpoint.reply = lambda body: Said()
    found = _ask(endpoint, tmp_path / "j", 30)
    assert (found.answered, len(found.failed)) == (19, 11)


def test_an_endpoint_that_only_fails_is_left_with_the_reason(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said("I am a teapot", 413)
    with pytest.raises(InputError, match=r"first 10 pairs \(.*I am a teapot\)"):
        _ask(endpoint, tmp_path / "j", 100)
    assert len(endpoint.requests) == 10


def test_an_address_where_nobody_answers_is_left_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_module, "BACKOFF_SECONDS", 0.001)
    with pytest.raises(InputError, match=r"no answer \(.*\); is the address right, and is it up"):
        _ask("http://127.0.0.1:9/v1", tmp_path / "j", 100)


def test_what_would_fail_every_record_ends_it_at_the_first_call(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said("no", 401)
    with pytest.raises(InputError, match="key was refused"):
        _ask(endpoint, tmp_path / "j", 100)
    assert len(endpoint.requests) == 1


def test_credit_that_ends_in_the_middle_keeps_what_was_answered(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said() if len(endpoint.requests) <= 30 else Said("insufficient_quota", 429)
    with pytest.raises(InputError, match="no credit left"):
        _ask(endpoint, tmp_path / "j", 100)
    assert len(_answered(tmp_path / "j")) == 30
    endpoint.reply = lambda body: Said()
    assert _ask(endpoint, tmp_path / "j", 100).answered == 70


def test_an_endpoint_that_goes_down_is_left_and_one_that_says_tomorrow_too(
    endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask_module, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(ask_module, "TRIES", 1000)
    endpoint.reply = lambda body: Said() if len(endpoint.requests) <= 20 else Said("down", 503)
    with pytest.raises(InputError, match=r"50 calls in a row without an answer \(.*down"):
        _ask(endpoint, tmp_path / "j", 100)
    assert len(_answered(tmp_path / "j")) == 20
    endpoint.reply = lambda body: Said("come back", 429, {"retry-after": "36000"})
    with pytest.raises(InputError, match="come back in 1"):
        _ask(endpoint, tmp_path / "j", 100)


def test_the_bill_stays_within_its_bound_and_more_money_goes_on(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said(usage=(1000, 100))  # 0.02 a call, 0.0101 of it for the answer at most
    found = _ask(endpoint, tmp_path / "j", 100, max_cost=1.0)
    assert found.over_cost
    assert not found.failed
    with Journal(tmp_path / "j", writable=False) as journal:
        spent = Price(10.0, 100.0).of(*journal.tokens)
    assert 0.9 < spent <= 1.0
    more = _ask(endpoint, tmp_path / "j", 100, max_cost=3.0)
    assert not more.over_cost
    assert more.calls == 100 - found.calls


def test_ctrl_c_waits_for_what_is_paid_for_and_begins_nothing(tmp_path: Path) -> None:
    with _simulated(scale=0.2) as url:
        process = _process(tmp_path / "j", 200, url)
        while _size(tmp_path / "j") < 30:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert "waiting for" in output
        assert "KeyboardInterrupt" in output
        stats = _stats(url)
        assert stats["records"] == len(_answered(tmp_path / "j")) < 200
        assert "caller hung up" not in stats["calls"]


def test_killed_at_any_moment_nothing_is_asked_again_that_was_answered(tmp_path: Path) -> None:
    """The full proof, at full size and with the whole stage, is benchmarks/instruct.py."""
    rng = random.Random(3)
    with _simulated(scale=0.1) as url:
        for _ in range(2):
            before = _size(tmp_path / "j")
            process = _process(tmp_path / "j", 120, url)
            while _size(tmp_path / "j") < before + 10 and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.3))
            process.kill()
            process.communicate()
        assert _ask(url, tmp_path / "j", 120, timeout_seconds=2.0).calls > 0
        stats = _stats(url)
    requests = Counter(row["request"] for row in read_jsonl(tmp_path / "j") if "answer" in row)
    assert max(requests.values()) == 1
    assert sorted(_answered(tmp_path / "j")) == sorted(f"k{n}" for n in range(120))
    calls = Counter(stats["calls"])
    whole_and_lost = calls["answered"] + calls["malformed"] - len(requests)  # whole at the moment of a kill
    faults = sum(calls[name] for name in ("refused", "error", "hang", "malformed", "cut"))
    assert calls.total() == 120 + faults + calls["caller hung up"] + whole_and_lost
    assert 0 <= whole_and_lost <= 2 * stats["most"]


def test_a_process_that_slept_does_not_take_its_own_silence_for_the_endpoints(endpoint: Server, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Said:
        time.sleep(0.05)
        return Said()

    def right(text: str) -> bool:
        if len(endpoint.requests) == 5:
            time.sleep(2.5)  # longer than the limit, with others under way
        return True

    endpoint.reply = reply
    with Journal(tmp_path / "j") as journal:
        made = connect(endpoint.url, "m", "teacher", "LLAVAMED_TEACHER_KEY", 1.0)
        found = ask(partial(_calls, 40, made.where), made, journal, right, bill=Bill(journal, None), at_most=8)
    assert (found.answered, found.calls, dict(found.broken)) == (40, 40, {})


def test_a_disk_that_fails_ends_it_in_one_line(
    endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int) -> None:
        raise OSError(5, "Input/output error")

    def reply(body: dict[str, Any]) -> Said:
        if len(endpoint.requests) == 10:
            monkeypatch.setattr("os.fsync", broken)
        time.sleep(0.02)
        return Said()

    endpoint.reply = reply
    with pytest.raises(InputError, match=r"cannot be written .Input/output error"):
        _ask(endpoint, tmp_path / "j", 5000)
    monkeypatch.undo()
    assert 10 <= len(_answered(tmp_path / "j")) < 5000


def test_calls_that_break_when_half_is_paid_stay_within_the_bound_too(endpoint: Server, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Said:
        if len(endpoint.requests) <= 5:
            return Said(usage=(1000, 100))
        piece = {"choices": [{"index": 0, "delta": {"content": "word " * 75}, "finish_reason": None}]}
        return Said(events=[f"data: {json.dumps(piece)}"])  # and cut: about 0.01 each

    endpoint.reply = reply
    assert _ask(endpoint, tmp_path / "j", 100, max_cost=0.3).over_cost
    with Journal(tmp_path / "j", writable=False) as journal:
        assert journal.lost > 5
        assert 0.2 < Price(10.0, 100.0).of(*journal.tokens) <= 0.3


def test_an_endpoint_that_says_come_back_at_once_is_not_hammered(
    endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def backoff(tries: int) -> float:
        waits.append(0.02 * tries)
        return waits[-1]

    monkeypatch.setattr(ask_module, "_backoff", backoff)
    endpoint.reply = lambda body: Said() if len(endpoint.requests) > 5 else Said("no", 429, {"retry-after": "0"})
    began = time.monotonic()
    assert _ask(endpoint, tmp_path / "j", 1).calls == 6
    assert time.monotonic() - began >= sum(waits) > 0.25


def test_an_endpoint_that_declines_all_from_now_on_is_left_with_the_reason(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said() if len(endpoint.requests) <= 20 else Said("credit balance too low", 400)
    with pytest.raises(InputError, match=r"50 records in a row were declined \(.*credit balance too low.*is kept"):
        _ask(endpoint, tmp_path / "j", 400)
    assert len(_answered(tmp_path / "j")) == 20
    assert len(endpoint.requests) < 200


def test_records_that_are_declined_between_others_stop_nothing_and_say_why(endpoint: Server, tmp_path: Path) -> None:
    endpoint.reply = lambda body: Said("bad picture", 400) if _number(body) % 3 == 2 else Said()
    found = _ask(endpoint, tmp_path / "j", 200)
    ((reason, number),) = found.summary()["unanswered"].items()
    assert ("bad picture" in reason, number, found.answered) == (True, 66, 134)


def test_an_allowance_that_is_used_up_until_tomorrow_ends_it_in_one_line(endpoint: Server, tmp_path: Path) -> None:
    none_left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "23h59m"}
    endpoint.reply = lambda body: Said(headers=none_left)
    with pytest.raises(InputError, match=r"allows nothing more for 2\d\.\d hours; what was answered is kept"):
        _ask(endpoint, tmp_path / "j", 10)
    assert len(_answered(tmp_path / "j")) == 1


def test_a_long_wait_for_the_allowance_is_told(
    endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ask_module, "_TOLD_WAIT_SECONDS", 0.5)
    none_left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}
    endpoint.reply = lambda body: Said(headers=none_left)
    assert _ask(endpoint, tmp_path / "j", 2).answered == 2
    assert capsys.readouterr().err.count("allows the next call in 1 seconds") == 1


def test_it_runs_inside_a_loop_that_runs_already(endpoint: Server, tmp_path: Path) -> None:
    async def notebook() -> Outcome:
        return _ask(endpoint, tmp_path / "j", 5)

    assert asyncio.run(notebook()).answered == 5


# --- a process of its own ----------------------------------------------------------------------------------------


class _simulated:
    """The benchmark's endpoint with all its faults, in a process."""

    def __init__(self, scale: float) -> None:
        self._command = [sys.executable, str(SIMULATED), "--scale", str(scale)]

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        return f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _stats(url: str) -> dict[str, Any]:
    import urllib.request

    with urllib.request.urlopen(f"{url}/stats", timeout=10) as reply:
        body: dict[str, Any] = json.load(reply)
    return body


def _size(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _process(path: Path, count: int, url: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    arguments = f"{url!r}, pathlib.Path({str(path)!r}), {count}, timeout_seconds=2.0"
    code = f"import pathlib, tests.instruct.test_ask as t; t._ask({arguments})"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
