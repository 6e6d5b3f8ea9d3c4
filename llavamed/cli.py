"""The command line: one Typer app, a command a stage.

Each command imports what it needs when it runs, so that `llavamed --help` answers at once. What a
person can mend is one line on standard error and exit code 2; anything else is a defect of ours and
shows its traceback with exit code 1.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llavamed.corpus_cli import app as corpus_app
from llavamed.errors import InputError
from llavamed.eval_cli import AGAINST, find_leakage
from llavamed.eval_cli import app as eval_app
from llavamed.printing import funnel, rows_in_full
from llavamed.printing import records as _records
from llavamed.printing import table as _table
from llavamed.progress import SPEAKS

app = typer.Typer(
    name="llavamed",
    help="Open-access biomedical literature in, a vision-language assistant and its proof out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
instruct_app = typer.Typer(no_args_is_help=True, help="Pairs -> conversations.", rich_markup_mode=None)
app.add_typer(corpus_app, name="corpus")
app.add_typer(instruct_app, name="instruct")
app.add_typer(eval_app, name="eval")

_FREE = "free some space or give another place, and run it again: what is finished is kept"
_PERMIT = "give a place that you may read and write"
_MENDED_BY = {  # what the system refuses -> what to do about it
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or give another place, and run it again",
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.EROFS: _PERMIT,
}

Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Set = Annotated[list[str], typer.Option("--set", help="Override one key of the recipe: --set train.instruct.epochs=2")]
Json = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (tiny, ...) or a .yaml file.")]
Against = Annotated[list[str], typer.Option(help=AGAINST)]
Images = Annotated[Path | None, typer.Option(help="Images of these conversations: a folder or a corpus.")]
Split = Annotated[str | None, typer.Option(help="Default: the one that the field reports.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder or an endpoint URL.")]


@app.command()
def demo(
    out: Out = Path("demo-run"),
    serve: Annotated[bool, typer.Option(help="Open the chat page's server at the end.")] = True,
    port: int = 8000,
    overrides: Set = [],  # noqa: B006 - typer wants a literal default
    as_json: Json = False,
) -> None:
    """The whole pipeline on the built-in phantom world, then the chat page."""
    from llavamed import recipe
    from llavamed.demo.run import demo as run_demo

    outcome = run_demo(recipe.load("tiny", overrides), out)
    _finish(outcome, as_json)
    if serve and outcome.model:
        from llavamed.serve.app import serve as run_server

        pictures = sorted((out / "world" / "benchmark" / "images").glob("*.png"))[:4]
        run_server(str(outcome.model), port=port, examples=[(p, "What does this image show?") for p in pictures])


@app.command()
def run(name: RecipeName, out: Out = Path("run"), overrides: Set = [], as_json: Json = False) -> None:  # noqa: B006
    """All stages that the recipe names."""
    from llavamed import pipeline, recipe

    _finish(pipeline.run(recipe.load(name, overrides), out), as_json)


@instruct_app.command("generate")
def instruct_generate(
    corpus: Path,
    out: Out = Path("instruct"),
    teacher: Annotated[
        str | None, typer.Option(help='"template" (offline), an OpenAI-compatible base URL, or "env"')
    ] = None,
    teacher_model: Annotated[str | None, typer.Option(help="The model's name at that endpoint.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="10k, 60k, 60k-im, detailed, closed, or a .yaml file of your own.")
    ] = None,
    sighted: Annotated[bool | None, typer.Option("--sighted/--blind", help="Show the teacher the image too.")] = None,
    mentions: Annotated[
        bool | None,
        typer.Option("--with-mentions/--without-mentions", help="Show the teacher the sentences that cite the figure."),
    ] = None,
    domains: Annotated[
        str | None, typer.Option(help="Comma-separated: chest_xray,ct_scan,mri,histology,gross,other")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Conversations at most, balanced over domains.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop before the calls cost more than this.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Calls, tokens and cost; nothing is sent.")] = False,
    export_batch: Annotated[
        Path | None, typer.Option(help="Write the calls as OpenAI batch files into this new folder; ask nothing.")
    ] = None,
    import_batch: Annotated[
        list[Path], typer.Option(help="A result file of a batch (may be repeated); nothing is asked for.")
    ] = [],  # noqa: B006
    judge: Annotated[str | None, typer.Option(help="Base URL of a second model that scores a sample.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    judge_sample: Annotated[int | None, typer.Option(min=1, help="Conversations that it scores.")] = None,
    seed: int = 0,
    overrides: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Write alignment examples and conversations from a corpus."""
    from llavamed import recipe
    from llavamed.instruct import offline
    from llavamed.instruct.generate import generate

    values = {
        "teacher": teacher,
        "teacher_model": teacher_model,
        "prompt": prompt,
        "sighted": sighted,
        "mentions": mentions,
        "domains": domains.split(",") if domains else None,
        "count": count,
        "max_cost": max_cost,
        "judge": judge,
        "judge_model": judge_model,
        "judge_sample": judge_sample,
    }
    given = {f"instruct.{key}": value for key, value in values.items() if value is not None}
    section = recipe.changed(recipe.load("tiny", overrides), given).instruct
    if dry_run:
        names, rows = offline.plan(corpus, out, section, seed).table()
        _table(names, [[n, f"{v:,}" if isinstance(v, int) and not as_json else v] for n, v in rows], as_json)
        return
    if export_batch is not None:
        files, number = offline.export_batch(corpus, out, section, seed, export_batch)
        _table(["file"], [[str(path)] for path in files], as_json)
        print(f"{number:,} requests; bring the results back with --import-batch FILE", file=sys.stderr)
        return
    if import_batch:
        counts, missing = offline.import_batch(corpus, out, section, seed, import_batch)
        print(f"results: {', '.join(f'{n:,} {what}' for what, n in counts.items()) or 'none'}", file=sys.stderr)
        if missing:
            raise InputError(
                f"{out}: {missing:,} calls are still without an answer; run it again without --import-batch to ask "
                "them now, or with --export-batch for another round"
            )
    made = generate(corpus, out, section, seed)
    funnel(made.counts, made.funnel, as_json)
    print(f"report: {out / 'report.html'}", file=sys.stderr)


@instruct_app.command("import")
def instruct_import(
    source: Annotated[Path, typer.Argument(help="A LLaVA .json, a .jsonl of messages, a table, a benchmark's folder.")],
    out: Annotated[Path, typer.Option("--out", help="The .jsonl to write.")],
    fmt: Annotated[
        str,
        typer.Option("--format", help="llava; llavamed (messages); table (.json, .csv, .tsv); a benchmark"),
    ],
    images: Annotated[Path | None, typer.Option(help="Folder or corpus that must hold every image.")] = None,
    columns: Annotated[
        str, typer.Option(help="What a table calls them: image=scan,question=q,answer=a,id=n,conversation=talk")
    ] = "",
    split: Annotated[str, typer.Option(help="The benchmark's split.")] = "train",
    as_json: Json = False,
) -> None:
    """Turn other people's files into conversations; every problem is listed before anything is written."""
    from llavamed.evaluate import benchmarks
    from llavamed.instruct import formats
    from llavamed.records import write_jsonl

    if out.is_dir():
        raise InputError(f"{out}: a folder; give the .jsonl file to write")
    if fmt in formats.FORMATS:
        pairs = (part.partition("=") for part in columns.split(",") if part)
        conversations = formats.import_file(source, fmt, images, {name.strip(): of.strip() for name, _, of in pairs})
    else:
        benchmark = benchmarks.load(fmt, source, split)
        benchmark.require_questions()
        if benchmark.embedded is not None:
            raise InputError(
                f"{source}: the images of {benchmark.name} are inside its files; training reads loose ones"
            )
        conversations = list(formats.from_questions(benchmark.questions, benchmark.ask))
        images = benchmark.images
    out.parent.mkdir(parents=True, exist_ok=True)
    row = [str(out), write_jsonl(out, conversations), str(images or "")]
    _table(["file", "conversations", "images"], [row], as_json)


@instruct_app.command("export")
def instruct_export(
    data: Annotated[Path, typer.Argument(help="An instruct folder or a .jsonl of conversations.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    fmt: Annotated[
        str,
        typer.Option("--format", help="llava; strings (<image> in the text, as ms-swift has it); llavamed (TRL)"),
    ] = "llava",
    images: Annotated[Path | None, typer.Option(help="Write the images as files into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Write conversations for other trainers."""
    from llavamed.instruct.export import export

    count, files = export(data, out, fmt, images)
    _table(["file", "conversations", "images written"], [[str(out), count, files]], as_json)


@instruct_app.command("show")
def instruct_show(
    data: Annotated[Path, typer.Argument(help="An instruct folder or a .jsonl of conversations.")],
    key: Annotated[str | None, typer.Argument(help="Only the one with this id, or about this pair.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 3,
    pictures: Annotated[
        str,
        typer.Option("--images", help="kitty, sixel or none; auto asks the environment, in doubt it prints paths"),
    ] = "auto",
    save: Annotated[Path | None, typer.Option(help="Write the images shown as files into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Print conversations beside their image and the text they were made from."""
    from llavamed.imaging.decode import decode
    from llavamed.instruct import terminal
    from llavamed.instruct.show import images, show

    if pictures not in ("auto", "kitty", "sixel", "none"):
        raise InputError(f"--images {pictures}: give auto, kitty, sixel or none")
    how = terminal.protocol(is_terminal=sys.stdout.isatty()) if pictures == "auto" else pictures
    rows, image = show(data, limit, key, save), images(data)
    if as_json or how == "none" or image is None:
        rows_in_full(rows, as_json)
        return
    for row in rows:
        for name in filter(None, row["images"].split(", ")):
            print(terminal.encode(decode(image(name), name), how))  # type: ignore[arg-type]
        rows_in_full([row], False)


@app.command()
def train(
    name: RecipeName,
    out: Out = Path("train"),
    overrides: Set = [],  # noqa: B006
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Parameters, memory, steps and hours; nothing is loaded.")
    ] = False,
    gpu: Annotated[
        str, typer.Option("--gpu", help="Plan for this GPU (a100-40g, h200, ...), not the one at hand.")
    ] = "",
    gpu_gb: Annotated[float | None, typer.Option("--gpu-gb", min=1, help="Plan for this much memory.")] = None,
    fp8_frozen: Annotated[
        bool, typer.Option("--fp8-frozen", help="Stages that freeze the language model multiply with it in 8 bits.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The recipe's curriculum: align, then instruct, then finetune."""
    from llavamed import recipe

    settings = recipe.load(name, [*overrides, *(["train.fp8_frozen=true"] if fp8_frozen else [])])
    if dry_run:
        from llavamed.model import gpus
        from llavamed.model.plan import plan

        tables = plan(settings, gpus.to_plan_for(gpu, gpu_gb)).tables()
        if as_json:
            print(json.dumps({title: _records(columns, rows) for title, columns, rows in tables}, indent=1))
            return
        for title, columns, rows in tables:
            _table(columns, rows, False, title)
        return
    from llavamed.train.run import train as run_training

    validation, score = settings.train.validation, None
    if validation.benchmark is not None and validation.every:
        from llavamed.evaluate.run import small_score

        if validation.data is None:
            raise InputError(f"train.validation.benchmark is {validation.benchmark}; set train.validation.data too")
        score = small_score(validation.benchmark, Path(validation.data), validation.questions)
    made = run_training(settings, out, resume, score)
    if SPEAKS:
        funnel(made.counts, {}, as_json)
        print(f"report: {out / 'report.html'}", file=sys.stderr)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, or the stage that made it.")],
    out: Out = Path("merged"),
    base: Annotated[Path | None, typer.Option(help="The model it was trained on, where it is not found.")] = None,
    as_json: Json = False,
) -> None:
    """Put an adapter into its base: a plain model folder, with the proof that both answer alike."""
    from llavamed.train.lora import merge_folder

    made = merge_folder(adapter, out, base)
    row = [str(out), made.base, made.adapters, made.difference, made.largest]
    _table(["model", "base", "adapters", "logits differ by", "largest logit"], [row], as_json)


@eval_app.command("run")
def evaluate(
    model: ModelName,
    names: Annotated[list[str], typer.Argument(metavar="BENCHMARK...")],
    data: Annotated[
        Path, typer.Option(help="Folder of the benchmark's official files, or of one such folder for each by name.")
    ],
    out: Out = Path("eval"),
    split: Split = None,
    controls: Annotated[
        str, typer.Option(help="Comma-separated; those that a benchmark cannot have are left out.")
    ] = "real,blank,shuffled,noise,text-only,rotated",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; default: the benchmark's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    seed: int = 0,
    against: Against = [],  # noqa: B006
    against_images: Images = None,
    as_json: Json = False,
) -> None:
    """Ask a model a benchmark's questions, with and without the right image, and score the answers.

    `llavamed benchmarks` lists the benchmarks and says where their files come from.
    """
    from llavamed import recipe
    from llavamed.evaluate import show
    from llavamed.evaluate.leakage import require_sources
    from llavamed.evaluate.run import check
    from llavamed.evaluate.run import evaluate as run_evaluation

    wanted = [
        f"evaluate.{key}={value}"
        for key, value in (
            ("controls", f"[{controls}]"),
            ("max_new_tokens", max_new_tokens or "null"),
            ("batch_size", batch_size),
        )
    ]
    section = recipe.load("tiny", wanted).evaluate
    folders = {name: data / name if (data / name).is_dir() else data for name in names}
    if len(names) > 1 or against:  # before the first is asked
        for name, files in folders.items():
            check(name, files, split)
    if against:
        require_sources(against)
    bodies = []
    for name, files in folders.items():
        folder = out / name if len(names) > 1 else out
        run_evaluation(model, name, files, folder, section, seed, split)
        bodies.append(show.read(folder))
        if not as_json:
            _scores(bodies[-1])
        if against:
            found = find_leakage(name, files, split, against, [folder], against_images, quiet=as_json)
            bodies[-1]["leakage"] = found[0]
        print(f"report: {folder / 'report.html'}", file=sys.stderr)
    if as_json:
        print(json.dumps(bodies if len(names) > 1 else bodies[0], indent=1))


@app.command()
def score(
    name: Annotated[str, typer.Argument(metavar="BENCHMARK")],
    predictions: Annotated[
        Path,
        typer.Argument(help="Answers: .jsonl, .json, .csv or .tsv with the benchmark's ids, or its result folder."),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the benchmark's official files.")],
    out: Out = Path("score"),
    control: Annotated[
        list[str],
        typer.Option(
            help="Answers of the same model without the image: blank=FILE, shuffled, noise, text-only, rotated."
        ),
    ] = [],  # noqa: B006
    radiology: Annotated[
        str, typer.Option(help="For reports: f1chexbert,radgraph,green, by RadEval, which fetches their models.")
    ] = "",
    by_order: Annotated[bool, typer.Option("--by-order", help="Match by position, not by id.")] = False,
    split: Split = None,
    against: Against = [],  # noqa: B006
    against_images: Images = None,
    as_json: Json = False,
) -> None:
    """Score a file of predictions: no model, no GPU."""
    from llavamed.evaluate import show
    from llavamed.evaluate.run import evaluate_predictions

    clinical = [part.strip() for part in radiology.split(",") if part.strip()]
    evaluate_predictions(name, predictions, data, out, by_order, split, _controls(control), clinical)
    body = show.read(out)
    if not as_json:
        _scores(body)
    if against:
        body["leakage"] = find_leakage(name, data, split, against, [out], against_images, quiet=as_json)[0]
    if as_json:
        print(json.dumps(body, indent=1))
    print(f"report: {out / 'report.html'}", file=sys.stderr)


@app.command("benchmarks")
def list_benchmarks(as_json: Json = False) -> None:
    """The benchmarks that eval and score know, their splits, and where their files come from."""
    from llavamed.evaluate import benchmarks

    _table(["name", "splits (default first)", "files"], benchmarks.table(), as_json)


@app.command()
def chat(
    model: ModelName,
    image: Annotated[Path | None, typer.Option(help="The image to talk about.")] = None,
    ask: Annotated[str | None, typer.Option(help="One question, one answer.")] = None,
) -> None:
    """A terminal conversation about an image."""
    from llavamed.engine import connect
    from llavamed.serve import terminal

    engine = connect(model)
    if ask is not None:
        terminal.ask(engine, image, ask, sys.stdout)
    else:
        terminal.chat(engine, [image] if image else [], sys.stdout)


@app.command()
def serve(
    model: ModelName,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LLAVAMED_API_KEY", help="Bearer key that clients must send.")
    ] = None,
    page: Annotated[bool, typer.Option(help="The chat page at /.")] = True,
) -> None:
    """OpenAI-compatible API and chat page, one process."""
    from llavamed.serve.app import serve as run_server

    run_server(model, host, port, api_key, page=page)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do; what is missing and the command that installs it."""
    from llavamed.doctor import examine

    _table(["what", "found", "what to do"], examine(), as_json)


def main() -> None:
    try:
        app()
    except InputError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in _MENDED_BY:
            raise
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}; {_MENDED_BY[error.errno]}"
    else:
        return
    print(f"llavamed: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _finish(outcome: Any, as_json: bool) -> None:
    columns, rows = outcome.table()
    if as_json:
        _table(columns, rows, as_json)
    else:
        _table(columns, rows, as_json, "strict scores, % (95 % interval)")
        _table(["stage", "seconds"], [[k, f"{v:.1f}"] for k, v in outcome.seconds.items()], as_json)
    print(f"report: {outcome.out / 'report.html'}", file=sys.stderr)
    if outcome.model:
        print(f"model:  {outcome.model}", file=sys.stderr)


def _controls(given: list[str]) -> dict[str, Path]:
    """--control NAME=FILE, by name."""
    from llavamed.evaluate.controls import CONTROLS

    found: dict[str, Path] = {}
    for entry in given:
        name, _, file = entry.partition("=")
        if name not in CONTROLS or name == "real" or not file:
            names = ", ".join(each for each in CONTROLS if each != "real")
            raise InputError(f"--control {entry}: give NAME=FILE, and as name one of {names}")
        if name in found:
            raise InputError(f"--control {name}: given twice; give one file")
        found[name] = Path(file)
    return found


def _scores(body: dict[str, Any]) -> None:
    from llavamed.evaluate import show

    for title, (columns, rows) in (
        (f"{body['benchmark']}, {body['split']}, n = {body['n']}", show.headline(body)),
        ("strict and official", show.rules(body)),
        ("what the image is worth", show.gaps(body)),
        ("the order of the options", show.orders(body)),
    ):
        if rows:
            _table(columns, rows, False, title)
    for line in filter(None, (show.readable(body), *show.notes(body))):
        print(line)
    print(show.verdict(body))


if __name__ == "__main__":
    main()
