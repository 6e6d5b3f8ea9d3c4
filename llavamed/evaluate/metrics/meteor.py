"""METEOR 1.5 (Denkowski & Lavie, WMT 2014) for generated reports, by its authors' own program.

The literature's METEOR is the Java program that `pycocoevalcap` carries, with its English paraphrase
table; nltk's function of that name is another metric. So there is none of ours: where Java and the jar
are, they are asked over a pipe, line by line, and where they are not, `missing()` says what to install
and nothing stands in for the number.

The jar is looked for in LLAVAMED_METEOR_JAR and in an installed `pycocoevalcap`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from llavamed.errors import InputError

SCORER = "meteor-1.5.jar -l en -norm"

_JAR = "meteor-1.5.jar"
_VARIABLE = "LLAVAMED_METEOR_JAR"
_INSTALL = f"install a Java runtime and pycocoevalcap, or set {_VARIABLE} to {_JAR}"
_FAILED = f"METEOR is not computed: {_JAR} ended early; run `java -jar {_JAR}` beside its data folder to see why"
_SILENT = "METEOR is not computed: {jar} gave no answer in {seconds:.0f} s; run it alone to see why"
_PATIENCE = 600.0  # seconds for the program to start, and one more a report
_LONGEST = 2_000  # words; the aligner's time grows with the square, and a report has some hundred


class Scores(NamedTuple):
    """Each 0-1. The corpus' score is computed from the items' counts, it is not the mean of `items`."""

    corpus: float
    items: tuple[float, ...]


def jar() -> Path | None:
    """The jar with its data folder beside it, or None."""
    places = [Path(os.environ[_VARIABLE])] if os.environ.get(_VARIABLE) else []
    package = importlib.util.find_spec("pycocoevalcap")
    if package is not None:
        places += [Path(place) / "meteor" / _JAR for place in package.submodule_search_locations or ()]
    return next((place for place in places if place.is_file()), None)


def missing() -> str | None:
    """Why METEOR cannot be computed here and what to do, in one line; None if it can."""
    if shutil.which("java") is None:
        return f"METEOR is not computed: no java on this machine; {_INSTALL}"
    if jar() is None:
        return f"METEOR is not computed: no {_JAR}; {_INSTALL}"
    return None


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Texts are tokens between blanks (`report.clean` or `report.plain`); of a longer answer the first 2,000 words.

    Raises InputError with the line of `missing()` where it cannot be computed, or if the program fails.
    """
    if reason := missing():
        raise InputError(reason)
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references; give one each")
    with _program(_PATIENCE + len(predictions)) as program:
        counts = [
            _ask(program, " ||| ".join(("SCORE", *map(_one_line, given), _one_line(prediction))))
            for prediction, given in zip(predictions, references, strict=True)
        ]
        first = _number(_ask(program, " ||| ".join(("EVAL", *counts))))
        each = [first, *(_number(_read(program)) for _ in predictions[1:])]
        return Scores(_number(_read(program)), tuple(each))


def _one_line(text: str) -> str:
    """The protocol is one request a line, its fields between "|||"."""
    return " ".join(text.replace("|||", " ").split(maxsplit=_LONGEST)[:_LONGEST])


@contextmanager
def _program(seconds: float) -> Iterator[subprocess.Popen[str]]:
    """The program, ended after so many seconds: what it does not say by then it never will."""
    path = jar()
    assert path is not None
    command = ["java", "-Xmx2G", "-jar", path.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe, late = subprocess.PIPE, threading.Event()

    def end() -> None:
        late.set()
        program.kill()

    try:
        program = subprocess.Popen(
            command, cwd=path.parent, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"METEOR is not computed: java does not start ({error.strerror}); {_INSTALL}") from None
    watch = threading.Timer(seconds, end)
    watch.daemon = True
    assert program.stdin is not None
    with program:
        watch.start()
        try:
            yield program
        except InputError:
            raise InputError(_SILENT.format(jar=_JAR, seconds=seconds) if late.is_set() else _FAILED) from None
        finally:
            watch.cancel()
            program.kill()
            with suppress(OSError):  # what it has not read is lost
                program.stdin.close()


def _ask(program: subprocess.Popen[str], line: str) -> str:
    assert program.stdin is not None
    try:
        program.stdin.write(f"{line}\n")
        program.stdin.flush()
    except BrokenPipeError:
        raise InputError(_FAILED) from None
    return _read(program)


def _number(line: str) -> float:
    try:
        return float(line)
    except ValueError:  # a message in place of a score
        raise InputError(_FAILED) from None


def _read(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    if not (line := program.stdout.readline().strip()):
        raise InputError(_FAILED)
    return line
