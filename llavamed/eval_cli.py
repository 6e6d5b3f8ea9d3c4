"""`llavamed eval ...`: the commands of the evaluation. `eval MODEL BENCHMARK...` is short for `eval run MODEL ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from llavamed.errors import InputError
from llavamed.printing import table

if TYPE_CHECKING:
    from llavamed.evaluate.judge import Plan


class _RunsByDefault(TyperGroup):
    """What is no command's name is the model of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Ask a model a benchmark's questions and score the answers: eval MODEL BENCHMARK... (short for eval run).",
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def judge(
    questions: Annotated[Path, typer.Argument(metavar="QUESTIONS", help="LLaVA-Med's visual-chat questions (.jsonl).")],
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="The answers to grade, with the questions' ids.")],
    endpoint: Annotated[str, typer.Option("--judge", help="URL#model of an OpenAI-compatible endpoint.")],
    protocol: Annotated[str, typer.Option(help="fair, or the paper's: llava_med, llava_med_v1.5")] = "fair",
    baseline: Annotated[Path | None, typer.Option(help="A fixed file of answers that the judge grades too.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("judge"),
    journal: Annotated[
        Path | None, typer.Option(help="Replies so far, to share (default: OUT/verdicts.jsonl).")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for the report.")] = None,
    price: Annotated[str, typer.Option(help="US dollars per million tokens, in and out: --price 2.5,10")] = "",
    max_cost: Annotated[float | None, typer.Option(min=0, help="Start if it costs at most this many dollars.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start whatever it costs.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one reply.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="Times a busy or silent endpoint is asked again.")] = 4,
    as_json: Json = False,
) -> None:
    """Have a language model grade open answers, beside a baseline that it grades too."""
    from llavamed.engine.remote import RemoteEngine
    from llavamed.evaluate import judge_report
    from llavamed.evaluate.judge import JOURNAL, Judge
    from llavamed.evaluate.verdict import protocol as find_protocol

    given = _price(price)
    wanted = find_protocol(protocol)
    url, _, model = endpoint.partition("#")
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--judge {endpoint!r}: give a URL, such as https://api.openai.com/v1#gpt-4.1")
    engine = RemoteEngine(url, model, timeout_seconds=timeout, max_retries=retries)
    asks = Judge(engine, wanted, journal or out / JOURNAL, given, concurrency)

    def approve(plan: Plan) -> None:
        print(plan.line(asks.engine.name), file=sys.stderr)
        _approve(plan, max_cost, yes)

    body = judge_report.evaluate_chat(questions, answers, out, asks, approve, baseline, images)
    if as_json:
        print(json.dumps(body, indent=1, ensure_ascii=False))
    else:
        table(*judge_report.table(body), False, f"graded by {body['judge']}, protocol {body['protocol']}")
        for note in judge_report.notes(body)[1:]:
            print(f"- {note}")
    print(f"report: {out / 'report.html'}", file=sys.stderr)


def _price(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--price {text!r}: give two numbers, dollars per million tokens in and out: 2.5,10") from None
    return price_in, price_out


def _approve(plan: Plan, max_cost: float | None, yes: bool) -> None:
    """Returns if the judge may be asked; raises InputError if not."""
    cost = plan.cost_at_most
    if yes or not plan.calls or cost == 0:
        return
    if cost is not None and max_cost is not None:
        if cost > max_cost:
            raise InputError(f"the judge may cost ${cost:.2f}, and --max-cost is ${max_cost:.2f}; nothing was asked")
        return
    if sys.stdin.isatty() and typer.confirm("Ask the judge?", err=True):
        return
    what = "--price IN,OUT with --max-cost" if cost is None else "--max-cost"
    raise InputError(f"nothing was asked: say --yes, or {what}")
