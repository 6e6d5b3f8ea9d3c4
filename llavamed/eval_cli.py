"""`llavamed eval ...`: the commands of the evaluation. `eval MODEL BENCHMARK...` is short for `eval run MODEL ...`."""

from __future__ import annotations

import json
import math
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

AGAINST = "Training data: a corpus folder, a .jsonl or .json of conversations, or BENCHMARK:SPLIT=FOLDER."
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
        raise InputError(
            "--judge: not a URL (it may hold a password and is not shown); give one, such as https://api.openai.com/v1#gpt-4.1"
        )
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


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders of `eval` or `score`; NAME=FOLDER names one.")
    ],
    data: Annotated[
        list[str], typer.Option(help="The benchmark's folder, for pictures; BENCHMARK=FOLDER for several.")
    ] = [],  # noqa: B006
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("compare"),
    as_json: Json = False,
) -> None:
    """Runs beside each other and beside published rows: which difference is real, and where models fail."""
    from llavamed.evaluate import compare as comparison
    from llavamed.evaluate import compare_page

    found = comparison.load(runs)
    folders = _folders(data, list(found))
    bodies = []
    for benchmark, members in found.items():
        folder = out / benchmark if len(found) > 1 else out
        bodies.append(compare_page.write(members, folder, folders.get(benchmark)))
        if not as_json:
            for warning in bodies[-1]["warnings"]:
                print(f"warning: {warning}", file=sys.stderr)
            for title, (columns, rows) in compare_page.tables(bodies[-1]):
                table(columns, rows, False, title)
        print(f"report: {folder / 'report.html'}", file=sys.stderr)
    if as_json:
        print(json.dumps(bodies if len(bodies) > 1 else bodies[0], indent=1, ensure_ascii=False))


@app.command()
def leakage(
    name: Annotated[str, typer.Argument(metavar="BENCHMARK")],
    data: Annotated[Path, typer.Option(help="Folder of the benchmark's official files.")],
    against: Annotated[list[str], typer.Option(help=AGAINST)],
    images: Annotated[Path | None, typer.Option(help="Images of the conversations: a folder or a corpus.")] = None,
    looks: Annotated[
        bool, typer.Option("--looks", help="Find scaled, recompressed, cut and brightened copies too (slower).")
    ] = False,
    run: Annotated[list[Path], typer.Option(help="Folder of `eval` or `score` to store the finding in.")] = [],  # noqa: B006
    split: Annotated[str | None, typer.Option(help="Default: the one that the field reports.")] = None,
    as_json: Json = False,
) -> None:
    """Which images and questions of a benchmark stand in training data; with --run, what that does to its score."""
    bodies = find_leakage(name, data, split, against, run, images, looks, quiet=as_json)
    if as_json:
        print(json.dumps(bodies if len(bodies) > 1 else bodies[0], indent=1, ensure_ascii=False))


def find_leakage(
    name: str,
    data: Path,
    split: str | None,
    against: list[str],
    runs: list[Path],
    images: Path | None = None,
    looks: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """What is found, with each run's score beside it and in its folder; printed unless `quiet`."""
    from llavamed.evaluate import benchmarks
    from llavamed.evaluate import leakage as leaks

    benchmark = benchmarks.load(name, data, split)
    for folder in runs:  # before everything is read
        leaks.require_run(folder, benchmark.name, benchmark.split, dict(benchmark.sha256))
    body = leaks.check(benchmark, against, images, looks)
    bodies = [leaks.beside(folder, body) for folder in runs]
    if not quiet:
        table(*leaks.table(body), False, f"{body['benchmark']}, {body['split']}: seen in training")
        for folder, stored in zip(runs, bodies, strict=True):
            table(*leaks.scores_table(stored), False, f"{folder}: the score on images that were seen, and not")
        print(body["told"])
    return bodies or [body]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Answers of lmms-eval, VLMEvalKit or others.")],
    benchmark: Annotated[str, typer.Option(help="The benchmark that they answer.")],
    data: Annotated[Path, typer.Option(help="Folder of the benchmark's official files.")],
    out: Annotated[Path, typer.Option("--out", help="The .jsonl to write.")] = Path("predictions.jsonl"),
    split: Annotated[str | None, typer.Option(help="Default: the one that the field reports.")] = None,
    as_json: Json = False,
) -> None:
    """Turn another tool's answers into predictions for `llavamed score`, each matched to its question."""
    from llavamed.evaluate import benchmarks, results
    from llavamed.records import write_jsonl

    questions = benchmarks.load(benchmark, data, split).questions
    predictions, how = results.match(results.read(source), questions, str(source))
    if out.is_dir():
        raise InputError(f"{out}: a folder; give the .jsonl file to write")
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = sum(bool(prediction.failed) for prediction in predictions)
    row = [str(out), write_jsonl(out, predictions), failed, how]
    table(["file", "answers", "of them failed", "matched"], [row], as_json)


def _folders(data: list[str], names: list[str]) -> dict[str, Path]:
    """--data by benchmark; a folder without a name is that of the only benchmark."""
    found = {}
    for entry in data:
        name, _, rest = entry.partition("=")
        if rest and name in names:
            found[name] = Path(rest)
        elif len(names) == 1:
            found[names[0]] = Path(entry)
        else:
            raise InputError(f"--data {entry}: the runs are of {', '.join(names)}; say which: --data {names[0]}=FOLDER")
    return found


def _price(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split(","))
    except ValueError:
        price_in = price_out = math.nan
    if not all(0 <= price < math.inf for price in (price_in, price_out)):
        raise InputError(f"--price {text!r}: give two numbers, dollars per million tokens in and out: 2.5,10")
    return price_in, price_out


def _approve(plan: Plan, max_cost: float | None, yes: bool) -> None:
    """Returns if the judge may be asked; raises InputError if not."""
    cost = plan.cost_at_most
    if yes or not plan.calls or cost == 0:
        return
    if cost is not None and max_cost is not None:
        if not cost <= max_cost:  # nan is no limit
            raise InputError(f"the judge may cost ${cost:.2f}, and --max-cost is ${max_cost:.2f}; nothing was asked")
        return
    if sys.stdin.isatty() and typer.confirm("Ask the judge?", err=True):
        return
    what = "--price IN,OUT with --max-cost" if cost is None else "--max-cost"
    raise InputError(f"nothing was asked: say --yes, or {what}")
