"""`llavamed corpus ...`: the commands that make figure-caption pairs of articles, and look into them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llavamed.errors import InputError
from llavamed.printing import funnel, rows_in_full, table

app = typer.Typer(no_args_is_help=True, help="Articles -> figure-caption pairs.", rich_markup_mode=None)

Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Place = Annotated[str, typer.Argument(help="Folder, or s3://bucket/folder and whatever fsspec knows.")]
Set = Annotated[list[str], typer.Option("--set", help="Override one key of the recipe: --set corpus.min_side=64")]
Json = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]
Licence = Annotated[str, typer.Option(help='commercial, noncommercial, any, or by name: "commercial,CC-BY-ND"')]


@app.command("fetch")
def fetch_command(
    out: Out = Path("articles"),
    ids: Annotated[
        Path | None, typer.Option(help="A file with one PMCID a line; PMC7236913.2 for that version.")
    ] = None,
    query: Annotated[str, typer.Option(help="An ESearch query, as in PubMed Central's search box.")] = "",
    inventory: Annotated[
        str,
        typer.Option(help='The bucket\'s inventory: "latest", a date, a .csv.gz, or a folder of all its files.'),
    ] = "",
    urls: Annotated[Path | None, typer.Option(help="LLaVA-Med's own list, llava_med_image_urls.jsonl.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Of these only so many, drawn by --seed.")] = None,
    seed: int = 0,
    every_version: Annotated[bool, typer.Option("--every-version", help="Not only the latest.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what the bucket has no more, even if it is much of the folder.")
    ] = False,
    licence: Licence = "commercial",
    base_url: Annotated[str | None, typer.Option(help="A mirror of the bucket.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 16,
    as_json: Json = False,
) -> None:
    """Fetch articles and their figures from PubMed Central; stop it whenever you like and run it again."""
    from llavamed.corpus.bucket import BASE_URL
    from llavamed.corpus.fetch import Request, fetch

    request = Request(
        ids=ids,
        query=query,
        inventory=inventory,
        urls=urls,
        sample=sample,
        seed=seed,
        every_version=every_version,
        prune=prune,
        licence=licence,
        base_url=base_url or BASE_URL,
        concurrency=concurrency,
    )
    made = fetch(out, request)
    funnel({**made.counts, **made.extra["changes"]}, made.funnel, as_json)
    print(f"report: {out / 'report.html'}", file=sys.stderr)


@app.command("build")
def build_command(
    articles: Annotated[Path, typer.Argument(help="Folder of JATS articles with images, or a zip.")],
    out: Annotated[str, typer.Option(help="Folder to write, or s3://bucket/folder and whatever fsspec knows.")] = (
        "corpus"
    ),
    licence: Licence = "commercial",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes (on Ray: processors); default: one a processor.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: a cluster, or this machine.")] = "local",
    fmt: Annotated[str, typer.Option("--format", help="webdataset (tars), or hf (Parquet with an Image feature).")] = (
        "webdataset"
    ),
    overrides: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Read articles, keep the figure-caption pairs that are whole and licensed. Stopped, it goes on where it was."""
    from llavamed import recipe
    from llavamed.corpus.build import build

    section = recipe.load("tiny", [f"corpus.licence={licence}", f"corpus.format={fmt}", *overrides]).corpus
    made = build(articles, out, section, workers, engine)
    funnel(made.counts, made.funnel, as_json)
    print(f"report: {out}/report.html", file=sys.stderr)


@app.command("audit")
def audit_command(
    corpus: Path,
    names: Annotated[str, typer.Option("--against", help="Benchmarks, comma-separated: vqa-rad,slake,...")],
    data: Annotated[list[str], typer.Option(help="Where a benchmark's official files are: vqa-rad=FOLDER.")],
    keep: Annotated[bool, typer.Option("--keep", help="Only tell; take nothing out.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a processor.")] = None,
    as_json: Json = False,
) -> None:
    """Find benchmarks' images (altered ones too) and questions in a corpus, and take these pairs out."""
    from llavamed.corpus import audit
    from llavamed.evaluate.leakage import against

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    folders = audit.read_data(data, wanted)
    body = audit.audit(corpus, [against(name, folder) for name, folder in folders.items()], keep, workers)
    table(*audit.table(body), as_json)
    if not keep:
        print(f"report: {corpus / audit.PAGE}", file=sys.stderr)


@app.command("show")
def show_command(
    corpus: Place,
    key: Annotated[str | None, typer.Argument(help="Of one pair; without it the first ones.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Print pairs: caption, mentions, licence, domain."""
    from llavamed.corpus.show import show

    rows_in_full(show(corpus, key, limit), as_json)


@app.command("train-domain")
def train_domain(
    corpus: Path,
    out: Annotated[Path, typer.Option(help="Folder to write the probe to.")] = Path("domain-probe"),
    tower: Annotated[str, typer.Option(help='CLIP or SigLIP: "tiny", a folder or a hub id.')] = "tiny",
    least_score: Annotated[float, typer.Option(min=0, max=1, help="Taught are pairs whose words are as sure.")] = 0.9,
    as_json: Json = False,
) -> None:
    """Teach a linear probe on a vision tower to tell a picture's domain, from a corpus's surest pairs."""
    from llavamed.corpus import opinion

    made = opinion.train(corpus, out, tower, least_score)
    table(["domain", "held out", "agree with the words", "share"], opinion.tables({"extra": made.extra}), as_json)
    print(f"probe: {out / opinion.PROBE}", file=sys.stderr)


@app.command("domains")
def domains(
    corpus: Path,
    probe: Annotated[Path | None, typer.Option(help="A folder that `corpus train-domain` made.")] = None,
    clip: Annotated[str | None, typer.Option(help="Or a CLIP with its text half, zero-shot.")] = None,
    out: Annotated[Path, typer.Option(help="File to write, one pair a line.")] = Path("domains.jsonl"),
    as_json: Json = False,
) -> None:
    """Ask the pixels for a second opinion on every pair's domain; the corpus stays as it is."""
    from llavamed.corpus import opinion

    if (probe is None) == (clip is None):
        raise InputError("give --probe FOLDER (see `corpus train-domain`) or --clip MODEL")
    said = opinion.write(opinion.opinions(corpus, probe, clip), out)
    table(["words", "pixels", "pairs"], [[*pair, count] for pair, count in said.most_common()], as_json)
    print(f"opinions: {out}", file=sys.stderr)


@app.command("stats")
def stats_command(corpus: Place, as_json: Json = False) -> None:
    """Print what a corpus holds: funnel, domains, licences, lengths, panels, as its report.html has them."""
    from llavamed.corpus.show import stats

    table(["", "what", "count"], stats(corpus, readable=not as_json), as_json)
