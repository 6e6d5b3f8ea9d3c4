"""The judge against a real HTTP server that answers, misbehaves, and counts what it was asked."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llavamed import eval_cli, manifest
from llavamed.engine.remote import RemoteEngine
from llavamed.errors import InputError
from llavamed.evaluate import chat_questions, judge_report, price, results, verdict
from llavamed.evaluate.judge import Judge, Plan
from llavamed.evaluate.verdict import Unreadable, protocol

MENTIONS: list[Any] = [
    None,
    [
        {
            "tokens": "It's seen ( Fig. 3 ) .",
            "entities": [{"type": "figure", "entity_id": "3", "start_tok": 9, "end_tok": 11}],
        }
    ],
    "One plain text.",
]
ON = (("histology", "gross"), ("mri",), ("ct_scan", "chest_xray"))
# sha256 of what LLaVA-Med's own code sends as the user's message for these rows (conv_to_str at v1.0.0, at its head)
OFFICIAL = {
    "llava_med": """
    bf9520a2ee994afe f75b9208e4dc47fe 580b438bdf6c93ea 4ebe2281879a4dbd 97ea6a44b489a091 964c8176af5d5949""",
    "llava_med_v1.5": """
    8b56e8632712de8c d9fabc12e11b0cfa 8a9a3edfa9c22947 626d6eef53e74334 fa0155f610df4c4a 9d3ef14f12685f6e""",
}
GRADES = ("8 6", "9 9", "7 3.5", "10 1", "5 8", "6 2")
# what its summarize_gpt_review.py makes of these grades: score, n, mean grade of the reference and of the answer
OFFICIAL_SUMMARY = {
    "conversation": (79.0, 5, 7.8, 5.5),
    "overall": (71.38888888888889, 6, 7.5, 4.916666666666667),
    "histology": (87.5, 2, 8.5, 7.5),
    "mri": (30.0, 2, 8.5, 2.25),
    "chest_xray": (96.66666666666667, 2, 5.5, 5.0),
    "detailed_description": (33.33333333333333, 1, 6.0, 2.0),
}


def row(i: int) -> dict[str, Any]:
    """In the form of LLaVA-Med's file, with its three forms of a mention; every second text has the image's mark."""
    domains = ("chest_xray", "mri", "ct_scan", "histology", "gross")
    return {
        "question_id": i,
        "image": f"{i // 2}.jpg",
        "pair_id": f"p{i // 2}",
        "text": f"What is shown, {i}?" + ("\n<image>" if i % 2 == 0 else ""),
        "gpt4_answer": f"A {{first}} reference number {i}.",
        "fig_caption": f"Caption {i // 2} with {{second}} and 0.1–0.2 ml.",
        "in_text_mention": MENTIONS[i // 2],
        "domain": {name: name in ON[i // 2] for name in domains},
        "type": "detailed_description" if i == 5 else "conversation",
        "fig_label": f"Fig. {i // 2}",
    }


class Endpoint:
    """`reply(prompt)` gives the judge's text, or (status, body). Prompts and headers are what came in."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.reply: Callable[[str], Any] = lambda prompt: GRADES[number(prompt)] + "\nBecause."
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                return

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                endpoint.bodies.append(body)
                endpoint.prompts.append(prompt)
                said = endpoint.reply(prompt)
                if isinstance(said, str):
                    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                    head = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage}
                    said = (200, json.dumps({**head, "choices": [choice]}))
                status, text = said
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return  # a client that gave up waiting

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def number(prompt: str) -> int:
    found = re.search(r"What is shown, (\d)", prompt)
    assert found
    return int(found[1])


def rubric(a: int, b: int, better: str) -> str:
    def grades(overall: int) -> dict[str, int]:
        return dict.fromkeys(("accuracy", "relevance", "helpfulness", "detail"), 5) | {"overall": overall}

    return json.dumps({"reason": "So it is.", "A": grades(a), "B": grades(b), "better": better})


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("LLAVAMED_API_KEY", "secret-key")
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Six questions, the answers of a model, and a baseline that gives the same answer to question 0."""
    rows = [row(i) for i in range(6)]
    made = {name: tmp_path / f"{name}.jsonl" for name in ("questions", "answers", "baseline")}
    made["questions"].write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in ("answers", "baseline"):
        texts = [f"{'answer' if i == 0 else name[:-1] if name == 'answers' else 'base'} {i}" for i in range(6)]
        made[name].write_text(
            "".join(json.dumps({"question_id": i, "text": text}) + "\n" for i, text in enumerate(texts))
        )
    return made


def judge(
    endpoint: Endpoint, files: dict[str, Path], name: str = "llava_med", *, baseline: bool = False, timeout: float = 5.0
) -> dict[str, Any]:
    folder = files["questions"].parent
    engine = RemoteEngine(endpoint.url, "m", timeout_seconds=timeout, max_retries=1)
    asks = Judge(engine, protocol(name), folder / "verdicts.jsonl", concurrency=3)
    given = files["baseline"] if baseline else None
    return judge_report.evaluate_chat(
        files["questions"], files["answers"], folder / "out", asks, lambda plan: None, given, draws=200
    )


@pytest.mark.parametrize("name", ["llava_med", "llava_med_v1.5"])
def test_the_published_prompt_is_sent_to_the_letter(endpoint: Endpoint, files: dict[str, Path], name: str) -> None:
    judge(endpoint, files, name)
    sent = {number(prompt): hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in endpoint.prompts}
    assert [sent[i] for i in range(6)] == OFFICIAL[name].split()
    system = endpoint.bodies[0]["messages"][0]["content"]
    assert system == "'You are a helpful and precise assistant for checking the quality of the answer."
    assert {body["temperature"] for body in endpoint.bodies} == {0.0}
    assert "response_format" not in endpoint.bodies[0]


def test_the_summary_is_that_of_the_original(endpoint: Endpoint, files: dict[str, Path]) -> None:
    groups = judge(endpoint, files)["answers"]["groups"]
    found = {name: (g["value"], g["n"], g["reference"], g["grade"]) for name, g in groups.items()}
    assert found.keys() == OFFICIAL_SUMMARY.keys()
    for name, expected in OFFICIAL_SUMMARY.items():
        assert found[name] == pytest.approx(expected, abs=1e-4), name
    assert groups["overall"]["low"] < groups["overall"]["value"] < groups["overall"]["high"]


@pytest.mark.parametrize(
    ("first", "grades"),
    [
        ("8 9", (8, 9)),
        ("8, 9", (8, 9)),
        ("  8.5   9 ", (8.5, 9)),
        ("**7 10**", (7, 10)),
        ("8 and 9", (8, 9)),
        ("Assistant 1: 8, Assistant 2: 9", (8, 9)),
        ("Assistant 1: 8/10 | Assistant 2: 9/10", (8, 9)),
        ("8/10 9/10", (8, 9)),
        ("<think>1 2 3</think>\n8 9", (8, 9)),
    ],
)
def test_two_numbers_are_read_however_they_are_set(first: str, grades: tuple[float, float]) -> None:
    found = protocol("llava_med").read(f"{first}\nAn explanation with 3 4.", "reference_first")
    assert (found.reference, found.candidate) == grades


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Both are good.\n8 9",
        "8",
        "8/10",
        "8 9 10",
        "0 9",
        "8 11",
        "I give 8 to the first and 9 to the second.",
        "[]",
    ],
)
def test_what_is_not_two_grades_is_no_verdict(reply: str) -> None:
    with pytest.raises(Unreadable):
        protocol("llava_med").read(reply, "reference_first")


def test_a_rubric_is_read_from_json_alone_and_turned_back() -> None:
    fair = protocol("fair")
    found = fair.read(rubric(9, 4, "A"), "candidate_first")
    assert (found.candidate, found.reference, found.better) == (9, 4, "candidate")
    fenced = fair.read(f"```json\n{rubric(9, 4, 'tie')}\n```", "reference_first")
    assert (fenced.candidate, fenced.reference, fenced.better) == (4, 9, "tie")
    for reply in ("8 9", rubric(11, 4, "A"), rubric(9, 4, "C"), rubric(9, 4, "A")[:-5], '{"better": "A"}'):
        with pytest.raises(Unreadable, match="not the JSON"):
            fair.read(reply, "reference_first")


def test_the_fair_protocol_shows_both_orders_and_does_not_say_which_is_the_reference(
    endpoint: Endpoint, files: dict[str, Path]
) -> None:
    """A judge that favours whatever stands first, by two grades, and prefers it."""
    endpoint.reply = lambda prompt: rubric(8, 6, "A")
    body = judge(endpoint, files, "fair")
    assert len(endpoint.prompts) == 12
    assert not any("reference" in prompt.replace("reference number", "") for prompt in endpoint.prompts)
    assert endpoint.bodies[0]["response_format"]["json_schema"]["schema"]["required"][0] == "reason"
    part = body["answers"]
    assert part["groups"]["overall"]["value"] == 100.0  # the liking cancels
    assert part["first_shown_gains"] == 2.0  # and is measured
    assert part["preference"] == {"better": 0, "worse": 0, "tie": 6, "turned": 6}


def test_a_judge_that_knows_better_says_the_same_in_both_orders(endpoint: Endpoint, files: dict[str, Path]) -> None:
    def honest(prompt: str) -> str:
        reference_first = "reference number" in prompt.partition("(end of answer A)")[0]
        return rubric(8, 4, "A") if reference_first else rubric(4, 8, "B")

    endpoint.reply = honest
    part = judge(endpoint, files, "fair")["answers"]
    assert part["groups"]["overall"]["value"] == 50.0
    assert part["first_shown_gains"] == 0
    assert part["preference"] == {"better": 0, "worse": 6, "tie": 0, "turned": 0}


def test_failures_are_excluded_and_told_and_never_filled(endpoint: Endpoint, files: dict[str, Path]) -> None:
    told = {0: "8, 6\nA comma.", 1: "Both answers are fine.", 2: (200, '{"choices": [{"ind'), 4: (500, "{}"), 5: "6 2"}
    busy = iter([(429, '{"error": {"message": "busy"}}')])
    endpoint.reply = lambda prompt: next(busy, "10 1") if number(prompt) == 3 else told[number(prompt)]
    body = judge(endpoint, files)
    part = body["answers"]
    assert part["groups"]["overall"]["n"] == 3
    assert part["groups"]["overall"]["value"] == pytest.approx((75 + 10 + 100 / 3) / 3, abs=1e-3)
    assert part["excluded"] == 3
    assert {kind: failure["count"] for kind, failure in part["failures"].items()} == {
        "the judge's reply was not readable": 1,
        "the judge did not answer": 2,
    }
    asked = [number(prompt) for prompt in endpoint.prompts]
    assert asked.count(1) == 2  # an unreadable reply is asked for once more, under another seed
    assert [body.get("seed") for body in endpoint.bodies if number(body["messages"][-1]["content"]) == 1] == [None, 1]
    page = (files["questions"].parent / "out" / "report.html").read_text()
    assert "3 of 6" in page
    assert "Both answers are fine." in page
    items = [json.loads(line) for line in (files["questions"].parent / "out" / "items.jsonl").open()]
    assert [item["relative"] is None for item in items] == [False, True, True, False, True, False]


def test_nothing_is_paid_twice(endpoint: Endpoint, files: dict[str, Path]) -> None:
    endpoint.reply = lambda prompt: "No." if number(prompt) == 1 else (500, "{}") if number(prompt) == 2 else "8 6"
    first = judge(endpoint, files, baseline=True)
    asked = len(endpoint.prompts)
    endpoint.reply = lambda prompt: "4 2"
    journal = files["questions"].parent / "verdicts.jsonl"
    second = judge(endpoint, files, baseline=True)
    again = [number(prompt) for prompt in endpoint.prompts[asked:]]
    assert sorted(again) == [2, 2]  # what was read, and what could not be read, is kept; what failed is asked again
    assert second["answers"]["groups"]["overall"]["n"] == 5
    assert first["answers"]["groups"]["overall"]["n"] == 4
    assert second["tokens"] == {
        "in": 100 * len(journal.open().readlines()),
        "out": 10 * len(journal.open().readlines()),
    }
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # as kill -9 leaves it
    judge(endpoint, files, baseline=True)
    assert len(endpoint.prompts) == asked + 3
    assert b"secret-key" not in journal.read_bytes()


def test_the_baseline_is_graded_by_the_same_judge_and_an_equal_answer_once(
    endpoint: Endpoint, files: dict[str, Path]
) -> None:
    endpoint.reply = lambda prompt: "8 4" if "base " in prompt else "8 6"
    body = judge(endpoint, files, baseline=True)
    assert len(endpoint.prompts) == 11
    assert body["baseline"]["groups"]["overall"]["value"] == pytest.approx((75 + 5 * 50) / 6, abs=1e-3)
    gain = body["difference"]["overall"]
    assert gain["value"] == pytest.approx(5 * 25 / 6, abs=1e-3)
    assert gain["n"] == 6
    assert gain["images"] == 3
    assert body["sha256"].keys() == {"questions", "answers", "baseline"}
    assert body["prompt_hash"] == protocol("llava_med").hash != protocol("fair").hash


def test_a_journal_that_cannot_be_written_is_told_before_anything_is_asked(
    endpoint: Endpoint, files: dict[str, Path], tmp_path: Path
) -> None:
    engine = RemoteEngine(endpoint.url, "m")
    questions = chat_questions.read(files["questions"])
    answers = results.by_id(files["answers"], [q.id for q in questions])
    with pytest.raises(InputError, match="cannot be written"):
        Judge(engine, protocol("llava_med"), tmp_path).ask(questions, [answers])
    assert endpoint.prompts == []
    Judge(engine, protocol("llava_med"), tmp_path / "new" / "v.jsonl").ask(questions, [answers])
    assert len((tmp_path / "new" / "v.jsonl").read_text().splitlines()) == 6


def test_a_judge_that_hangs_is_a_failure_and_not_a_wait(endpoint: Endpoint, files: dict[str, Path]) -> None:
    release = threading.Event()
    endpoint.reply = lambda prompt: (release.wait(5) and "1 1") or "1 1" if number(prompt) == 0 else "8 6"
    began = time.monotonic()
    body = judge(endpoint, files, timeout=0.2)
    release.set()
    assert time.monotonic() - began < 4
    assert body["answers"]["excluded"] == 1
    assert "timed out" in body["answers"]["failures"]["the judge did not answer"]["example"]


def test_a_judge_that_refuses_is_asked_no_further(endpoint: Endpoint, files: dict[str, Path]) -> None:
    endpoint.reply = lambda prompt: (401, '{"error": {"message": "bad key secret-key"}}')
    with pytest.raises(InputError, match=r"refuses to answer.*\[key\]"):
        judge(endpoint, files, "fair")
    assert len(endpoint.prompts) <= 3
    assert manifest.read(files["questions"].parent / "out") is None


@pytest.mark.parametrize("stop", ["refusal", "ctrl-c"])
def test_replies_under_way_are_kept_when_the_run_is_stopped(
    endpoint: Endpoint, files: dict[str, Path], stop: str
) -> None:
    """Three are under way; one is refused, or Ctrl-C comes, while the other two are still being answered."""

    def reply(prompt: str) -> Any:
        if number(prompt) != 0:
            time.sleep(0.3)
            return "8 6"
        while len(endpoint.prompts) < 3:
            time.sleep(0.01)
        if stop == "refusal":
            return 401, '{"error": {"message": "revoked"}}'
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return "8 6"

    endpoint.reply = reply
    with pytest.raises(InputError if stop == "refusal" else KeyboardInterrupt):
        judge(endpoint, files)
    asked = len(endpoint.prompts)
    assert asked in (3, 4)  # the reply to 0 may come before the signal
    kept = len((files["questions"].parent / "verdicts.jsonl").read_text().splitlines())
    assert kept == asked - (stop == "refusal")
    endpoint.reply = lambda prompt: "8 6"
    judge(endpoint, files)
    assert len(endpoint.prompts) == asked + 6 - kept


def test_a_reply_without_a_text_is_paid_for_and_not_asked_again_by_each_run(
    endpoint: Endpoint, files: dict[str, Path]
) -> None:
    choice = {"index": 0, "finish_reason": "content_filter", "message": {"role": "assistant", "content": None}}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    empty = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage, "choices": [choice]}
    endpoint.reply = lambda prompt: (200, json.dumps(empty)) if number(prompt) == 1 else "8 6"
    body = judge(endpoint, files)
    assert body["answers"]["failures"]["the judge's reply was not readable"]["count"] == 1
    assert body["tokens"] == {"in": 700, "out": 5 * 10 + 2 * 7}
    assert len(endpoint.prompts) == 7
    judge(endpoint, files)
    assert len(endpoint.prompts) == 7


def test_if_there_is_no_verdict_there_is_no_result(endpoint: Endpoint, files: dict[str, Path]) -> None:
    endpoint.reply = lambda prompt: "I would rather not."
    with pytest.raises(InputError, match="not one verdict"):
        judge(endpoint, files)
    assert not (files["questions"].parent / "out" / "judge.json").exists()


def test_the_cost_is_known_before_the_start(files: dict[str, Path]) -> None:
    questions = chat_questions.read(files["questions"])
    answers = results.by_id(files["answers"], [q.id for q in questions])
    engine = RemoteEngine("https://api.openai.com", "gpt-4.1-2025-04-14", "k")
    asks = Judge(engine, protocol("fair"), files["questions"].parent / "none.jsonl")
    plan = asks.plan(questions, [answers, answers])
    assert (plan.calls, plan.calls_at_most, plan.tokens_out_at_most) == (12, 24, 24 * 1024)
    letters = sum(
        len(message.text)
        for question in questions
        for order in protocol("fair").orders
        for message in protocol("fair").request(question, answers[question.id].text, order).messages
    )
    schema = len(json.dumps(protocol("fair").response_format))
    assert schema > 1000
    assert 2 * (letters + 12 * schema) / 4 < plan.tokens_in < 2 * (letters + 12 * schema) / 2
    assert plan.cost_at_most == pytest.approx((plan.tokens_in * 2 + plan.tokens_out_at_most * 8) / 1e6)
    assert "12 calls" in plan.line("m")
    assert f"at most ${plan.cost_at_most:.2f} (price list of 2026-04)" in plan.line("m")


def test_prices_are_for_a_name_at_a_host() -> None:
    assert price.of("https://api.openai.com/v1", "gpt-5-pro") is None
    assert price.of("https://elsewhere.org/v1", "gpt-4.1") is None
    assert price.of("https://elsewhere.org/v1", "gpt-4.1", (1, 2)) == price.Price(1, 2, "the price given")
    for url in ("http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:8/v1"):
        here = price.of(url, "anything")
        assert here is not None
        assert here.cost(10**9, 10**9) == 0
    newer = price.of("https://api.openai.com/v1", "gpt-5-2025-08-07")
    assert newer is not None
    assert newer.body["max_tokens"] is None  # that family refuses the field
    given = price.of("https://api.openai.com/v1", "gpt-5", (0.1, 0.2))
    assert given is not None
    assert (given.input, given.body) == (0.1, newer.body)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpt4_answer": None}, "row 3 has no gpt4_answer"),
        ({"domain": "mri"}, "row 3 has no domain"),
        ({"question_id": 0}, "row 3 repeats the question_id '0'"),
    ],
)
def test_a_file_that_is_not_the_questions_names_the_row(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    rows = [row(0), row(1), {**row(2), **change}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(InputError, match=said):
        chat_questions.read(tmp_path / "q.jsonl")


def test_mentions_are_sentences_whatever_their_form(files: dict[str, Path]) -> None:
    found = [question.mentions_as_sentences for question in chat_questions.read(files["questions"])]
    assert found[::2] == ["(none)", "- It's seen ( Fig. 3 ) .", "- One plain text."]


def test_every_published_number_stands_where_the_paper_has_it() -> None:
    assert all(len(values) == 8 for values in judge_report.PUBLISHED.values())
    assert judge_report.PUBLISHED["LLaVA-Med 60K-IM"][-1] == 50.2
    assert set(verdict.protocols()) == {"llava_med", "llava_med_v1.5", "fair"}


def test_the_command_says_what_it_costs_and_asks_first(
    endpoint: Endpoint, files: dict[str, Path], llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    arguments = [files["questions"], files["answers"], "--judge", f"{endpoint.url}#m", "--out", tmp_path / "o"]
    paper = [*arguments, "--protocol", "llava_med", "--baseline", files["baseline"]]
    assert llavamed("eval", "judge", *paper, "--price", "10,10", "--max-cost", "0.01") == 2
    err = capsys.readouterr().err
    assert "11 calls (at most 22, where a reply must be asked for again)" in err
    assert "--max-cost is $0.01; nothing was asked" in err
    assert llavamed("eval", "judge", *paper, "--price", "10,10") == 2
    assert "nothing was asked: say --yes, or --max-cost" in capsys.readouterr().err
    assert endpoint.prompts == []
    assert not (tmp_path / "o").exists()
    assert llavamed("eval", "judge", *paper, "--price", "10,10", "--max-cost", "1") == 0
    out = capsys.readouterr()
    assert "71.4" in out.out
    assert "gain over it" in out.out
    assert llavamed("eval", "judge", *paper, "--json") == 0
    assert json.loads(capsys.readouterr().out)["answers"]["groups"]["overall"]["n"] == 6
    assert len(endpoint.prompts) == 11
    assert llavamed("eval", "judge", *arguments, "--protocol", "unfair") == 2
    assert "give one of llava_med, llava_med_v1.5, fair" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["nan,1", "1,-2", "inf,1", "1", "a,b"])
def test_a_price_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="give two numbers"):
        eval_cli._price(given)


def test_a_plan_with_nothing_to_ask_says_so() -> None:
    assert "nothing to ask" in Plan(0, 0, 0, 0, None).line("m")
