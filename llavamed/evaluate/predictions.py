"""Answers in the files that people have, matched to a benchmark's questions.

Read are JSON lines (ours, LLaVA's answer files, POPE's), a JSON list or an object of id -> answer (VQA's and GQA's
results, MMMU's `total_val_output.json`, OmniMedVQA's `pred_dict`), CSV and TSV (PMC-VQA, MedMCQA's submission,
VLMEvalKit), and folders: `<Subject>/output.json` of MMMU, `<subtask>.txt` of MME, or pieces of any of these. What
stands under which key differs, so the keys are tables, in order of trust: in MMMU's files `answer` is the
reference, in VQA's it is the answer.

The hard thing is to lose nothing silently. Every question needs exactly one row: missing, repeated and unknown ids
are an error that names them all at once. Ids that are not the benchmark's are passed over, and that is said, only
where every row repeats what it was asked and these are all questions in their order: LLaVA-Med's answer files have
row numbers for ids, POPE's none. And an id may be another question's: POPE's three files all count from 1, and so does
every renumbered file. So whichever way rows are matched, what they say they were asked has to hold the question, in all
but a few of them; a prompt may put anything around it. An id that the benchmark knows under another name (`aliases`;
LLaVA's files name MME's and TextVQA's questions by picture, so the question's text is looked at too) is translated; one
of the same data that is not asked here (`beside`: SLAKE's other language) is passed over. Where a benchmark has files
that count alike (`parts`; POPE's three), a row is of the part that its `category` or the name of its file says.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.benchmarks.files import objects, read_json, read_table
from llavamed.manifest import file_sha256, fingerprint
from llavamed.records import Prediction, Question, read_jsonl

Row = Mapping[str, Any]
Rows = Iterable[Row | Prediction]

ID_KEYS = ("id", "question_id", "questionId", "qid", "index", "study_id")
TEXT_KEYS = ("text", "prediction", "model_pred", "response", "pred", "report", "answer")
_NUMBERED = "Prediction (correct option)"  # MedMCQA's submission: 1 is A
_QUESTION_KEYS = ("prompt", "question")  # where a file repeats what was asked
_FILE = "answers_file"  # the name of the file that a row of a folder was in
# columns of text beside an answer that are no prediction: ids, what was asked with, and who answered
_ANSWERER = ("answer_id", "model_id", "model")
_NO_TEXT = {*ID_KEYS, *TEXT_KEYS, *_QUESTION_KEYS, *_ANSWERER, _NUMBERED} | {
    *("image", "image_id", "image_name", "img_name", "img_id", "answer_type", "failed", "control", "category"),
    *(_FILE, "split", "dataset", "subject", "type", "question_type", "metadata", "label"),
}
# of the rows that repeat their question, how many may repeat another. A few: a prompt may have a question in other
# words. Not half: POPE's three files, all with the ids 1 to 3,000, share half of their questions
_ASTRAY = 0.1
_IMAGE_TAG = re.compile(r"<\s*(?:image|img)[^<>]*>", re.IGNORECASE)
_SUSPECT = 20  # answers; so many without one that differs in a letter from the reference are the references
_NO_ANSWER = "no answer in the file (null or NaN)"
_TOLD = 5  # ids of each kind in an error


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file or folder of answers. Raises InputError naming the file for what is none of the formats."""
    if not path.exists():
        raise InputError(f"{path}: no such file; give a file or folder of answers")
    if path.is_dir():
        pieces = [(file, _mme(file) if _is_mme(file) else read(file)) for file in _files(path)]
        return [{_FILE: file.stem, **row} for file, rows in pieces for row in rows]
    if path.suffix in (".csv", ".tsv"):
        return [{_usual(name): cell for name, cell in row.items()} for row in read_table(path)]
    if path.suffix == ".json" and _first(path) in "[{":
        lines = _json_lines(path)
        return lines if lines is not None else _json(path)
    if _first(path) == "[":  # a JSON list under another name
        return _json(path)
    return list(read_jsonl(path))


def sha256(path: Path) -> str:
    """Of a file; of a folder, over its files."""
    if path.is_dir():
        return fingerprint([(str(file.relative_to(path)), file_sha256(file)) for file in _files(path)])
    return file_sha256(path)


def match(
    benchmark: Benchmark, rows: Rows, where: str, by_order: bool = False, control: str = "real"
) -> list[Prediction]:
    """One prediction a question, in the benchmark's order; with `by_order` ids are ignored.

    Raises InputError for rows without an answer or made under another control than `control`, for references given as
    answers, for missing, repeated or unknown ids, and if more than a few rows say they were asked something else.
    """
    rows = [row if isinstance(row, Prediction) else _without_nan(row) for row in rows]
    known = {question.id for question in benchmark.questions}
    rows = _by_parts(benchmark, rows, known)
    if by_order:
        named = [(f"row {n}", row, q) for n, (row, q) in enumerate(zip(rows, benchmark.questions, strict=False), 1)]
        _require_asked(benchmark, named, where, by_order=True)
    elif _ids_are_others(benchmark, rows, known) and all(_in_order(benchmark, rows)):
        by_order = True
        print(f"{where}: matched by order; its ids are not the benchmark's, but each row repeats its question",
              file=sys.stderr)  # fmt: skip
    answers = [_prediction(row, benchmark, known, where, number, by_order) for number, row in enumerate(rows, 1)]
    _made_under(control, answers, where)
    _no_references(benchmark, rows, answers, where)
    matched = _by_order(benchmark, answers, where) if by_order else _by_id(benchmark, known, answers, where)
    if not by_order:
        about = {question.id: question for question in benchmark.questions}
        given = zip(answers, rows, strict=True)
        named = [(f"id {answer.id}", row, about[answer.id]) for answer, row in given if answer.id in about]
        _require_asked(benchmark, named, where, by_order=False)
    asked = [question.question for question in benchmark.questions]
    if any(asked) and [prediction.text.strip() for prediction in matched] == asked:
        raise InputError(f"{where}: every answer is the question itself; give the answers, not the benchmark's file")
    return matched


def with_options(benchmark: Benchmark, rows: Sequence[Row | Prediction], where: str) -> Benchmark:
    """The benchmark with the options that MMMU's output files repeat, where its own data (the answer key) has none.

    Raises InputError if a row's reference is not the benchmark's: the files are of different versions then.
    """
    bare = {question.id: question for question in benchmark.questions if question.letter and not question.options}
    found: dict[str, Question] = {}
    for row in rows if bare else ():
        if isinstance(row, Prediction) or not isinstance(row.get("index2ans"), dict):
            continue
        question = bare.get(str(row.get("id")))
        if question is None:
            continue
        if row.get("answer") != question.letter:
            raise InputError(
                f"{where}: {question.id} has the reference {row.get('answer')!r}, the benchmark {question.letter!r}; "
                "they are of different versions"
            )
        texts = row["index2ans"]
        options = tuple(str(texts.get(letter, "")) for letter in ascii_uppercase[: len(texts)])
        found[question.id] = replace(question, options=options, answer=str(texts.get(question.letter, question.letter)))
    questions = tuple(found.get(question.id, question) for question in benchmark.questions)
    return replace(benchmark, questions=questions) if found else benchmark


# ---------------------------------------------------------------- files


def _files(folder: Path) -> list[Path]:
    """The files of answers in a folder, by the first of these layouts that is there."""
    for pattern in ("*/output.json", "*/parsed_output.json", "*.txt", "*.jsonl", "*.json", "*.csv", "*.tsv"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise InputError(
        f"{folder}: holds no answers; give a .jsonl, .json or .csv file, or a folder of them, of MMMU's "
        "<Subject>/output.json or of MME's <subtask>.txt"
    )


def _is_mme(path: Path) -> bool:
    """MME's results are .txt; JSON lines may be too."""
    return path.suffix == ".txt" and _first(path) not in "[{"


def _usual(name: str) -> str:
    """A column's name as it is known here: sheets have `Prediction`, `ID`, `Pred`."""
    known = {key.casefold(): key for key in (*ID_KEYS, *TEXT_KEYS, *_QUESTION_KEYS)}
    return name if name in known.values() else known.get(name.casefold(), name)


def _first(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as text:
        return text.read(64).lstrip()[:1] or " "


def _json_lines(path: Path) -> list[dict[str, Any]] | None:
    """The rows of JSON lines under the name .json, as POPE has them; None if the file is one JSON value."""
    with path.open(encoding="utf-8-sig", errors="replace") as text:
        try:
            first = json.loads(text.readline())
        except json.JSONDecodeError:
            return None
        more = any(line.strip() for line in text)
    return list(read_jsonl(path)) if more and isinstance(first, dict) else None


def _json(path: Path) -> list[dict[str, Any]]:
    body = read_json(path)
    if isinstance(body, dict):
        inner = next(
            (body[key] for key in ("pred_dict", "results", "answers") if isinstance(body.get(key), list)), None
        )
        if inner is None and any(key in body for key in ID_KEYS):
            return [body]  # one row alone
        if inner is None:
            return [{"id": id, **row} if isinstance(row, dict) else {"id": id, "text": row} for id, row in body.items()]
        body = inner
    return objects(body, f"{path}: must be a list of objects, or an object of id: answer")


def _mme(path: Path) -> list[dict[str, Any]]:
    """MME's result files: picture, question, reference and answer with tabs between, a file a subtask."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n"), 1):
        cells = line.split("\t", 3)
        if len(cells) != 4:
            raise InputError(
                f"{path}:{number}: {len(cells)} cells; MME's results have picture, question, reference, answer"
            )
        rows.append({"id": f"{path.stem}/{cells[0]}", "question": cells[1], "text": cells[3]})
    return rows


# ---------------------------------------------------------------- rows


def _by_parts(benchmark: Benchmark, rows: list[Row | Prediction], known: set[str]) -> list[Row | Prediction]:
    """The rows with ids of the form PART/NUMBER and in the parts' order, if every row tells its part."""
    found = [(part, row) for row in rows if not isinstance(row, Prediction) and (part := _part(benchmark, row))]
    if len(found) < len(rows):
        return rows
    renamed: list[tuple[int, Row]] = []
    for part, row in found:
        key = next((key for key in ID_KEYS if row.get(key) is not None), None)
        named = f"{part}/{_id(row[key])}" if key else ""
        renamed.append((benchmark.parts.index(part), {**row, key: named} if key and named in known else row))
    return [row for _, row in sorted(renamed, key=lambda pair: pair[0])]


def _part(benchmark: Benchmark, row: Row) -> str:
    said, file = str(row.get("category") or "").casefold(), str(row.get(_FILE, "")).casefold()
    named = [part for part in benchmark.parts if part in file]
    return said if said in benchmark.parts else named[0] if len(named) == 1 else ""


def _prediction(
    row: Row | Prediction, benchmark: Benchmark, known: set[str], where: str, number: int, by_order: bool
) -> Prediction:
    if isinstance(row, Prediction):
        return row
    id_key = next((key for key in ID_KEYS if row.get(key) is not None), None)
    if id_key is None and not by_order:
        raise InputError(f"{where}: row {number} has no id ({', '.join(ID_KEYS)}); add it, or match with --by-order")
    text = _text(row, where, number)
    return Prediction(
        id=_own_id(row, _id(row[id_key]), benchmark, known) if id_key else str(number),
        text=text or "",
        failed=str(row.get("failed") or ("" if text is not None else _NO_ANSWER)),
        control=str(row.get("control") or "real"),
    )


def _id(value: Any) -> str:
    """As text; whoever wrote it by way of a table may have 11.0 for 11."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _asked(row: Row | Prediction) -> str:
    """What a row says it was asked; "" where it does not say."""
    if isinstance(row, Prediction):
        return ""
    return "\n".join(str(row[key]) for key in _QUESTION_KEYS if isinstance(row.get(key), str | list | dict))


def _plain(text: str) -> str:
    """The words alone, in lower case: line ends, stops and the places of images differ from tool to tool."""
    text = unicodedata.normalize("NFKC", _IMAGE_TAG.sub(" ", text))
    return " ".join(re.findall(r"\w+", text.casefold()))


def _in_order(benchmark: Benchmark, rows: Sequence[Row | Prediction]) -> list[bool]:
    """Row by row, whether it says that it was asked the question in its place."""
    pairs = zip(rows, benchmark.questions, strict=False)
    return [bool(_plain(question.question)) and _agree(row, question) for row, question in pairs]


def _agree(row: Row | Prediction, question: Question) -> bool:
    return _plain(question.question) in _plain(_asked(row))


def _ids_are_others(benchmark: Benchmark, rows: Sequence[Row | Prediction], known: set[str]) -> bool:
    """There are as many rows as questions, none has the id of another, and some ids are not the benchmark's."""
    told = [row for row in rows if not isinstance(row, Prediction)]
    if not len(told) == len(rows) == len(benchmark.questions):
        return False
    given = [
        _own_id(row, _id(row[key]), benchmark, known)
        for row in told
        for key in [next((key for key in ID_KEYS if row.get(key) is not None), None)]
        if key is not None
    ]
    return len(set(given)) == len(given) and not (len(given) == len(rows) and set(given) == known)


def _require_asked(
    benchmark: Benchmark, pairs: Sequence[tuple[str, Row | Prediction, Question]], where: str, by_order: bool
) -> None:
    """Raises InputError if of the (name, row, question) in `pairs` more than `_ASTRAY` say that they were asked
    something else. Where all questions are one (write the report), each model is asked in words of its own."""
    if len({question.question for question in benchmark.questions}) < 2:
        return
    telling = [pair for pair in pairs if _plain(_asked(pair[1])) and _plain(pair[2].question)]
    apart = [pair for pair in telling if not _agree(pair[1], pair[2])]
    if len(apart) <= _ASTRAY * len(telling):
        return
    name, row, question = apart[0]
    rows = [row for _, row, _ in pairs]
    if by_order:
        todo = "they are not in the same order: leave out --by-order if their ids are the benchmark's"
    elif len(rows) == len(benchmark.questions) and all(_in_order(benchmark, rows)):
        todo = "their ids are others, but each row repeats the question in its place: match with --by-order"
    else:
        todo = f"check --split and --data: these may be answers to another file than {benchmark.split}'s"
    said = " ".join(_asked(row).split())
    raise InputError(
        f"{where}: {name} was asked {said[:80]!r}, but the question of {benchmark.name} {benchmark.split} there is "
        f"{question.question[:80]!r}, and so with {len(apart):,} of {len(telling):,} rows; {todo}; if they were asked "
        f"the same in other words, take {' and '.join(_QUESTION_KEYS)} out of the rows"
    )


def _made_under(control: str, answers: Sequence[Prediction], where: str) -> None:
    """A row that does not say how it was asked counts as real; controls made elsewhere need not say it."""
    others = Counter(answer.control for answer in answers if answer.control not in (control, "real"))
    if others:
        name, count = others.most_common(1)[0]
        raise InputError(
            f"{where}: {count} answers were made under the control {name!r} and are given as {control!r}; give them "
            f"with --control {name}=FILE"
        )


def _no_references(
    benchmark: Benchmark, rows: Sequence[Row | Prediction], answers: Sequence[Prediction], where: str
) -> None:
    """`answer` is the reference in many files: where another column could be the prediction, or all of them are to
    the letter what is right and no model is named, it is not taken for the answers."""
    told = [row for row in rows if not isinstance(row, Prediction) and _text_key(row) == "answer"]
    if not told:
        return
    columns = sorted({key for row in told for key, value in row.items() if isinstance(value, str)} - _NO_TEXT)
    if columns:
        raise InputError(
            f"{where}: the answers may stand under 'answer' or under {', '.join(map(repr, columns))}; rename the "
            f"predictions' column to {TEXT_KEYS[0]!r}"
        )
    if len(told) < max(len(rows), _SUSPECT) or any(row.get(key) for row in told for key in _ANSWERER):
        return
    right = {question.id: {question.answer, *question.references, question.letter} for question in benchmark.questions}
    if all(answer.text in right.get(answer.id, ()) for answer in answers):
        raise InputError(
            f"{where}: every text under 'answer' is the reference itself; if these are predictions, rename the column "
            f"to {TEXT_KEYS[0]!r}"
        )


def _without_nan(row: Row) -> Row:
    """NaN is what pandas makes of nothing: None here, wherever it stands."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _text_key(row: Row) -> str | None:
    """The key of the answer: the first that holds something, else the first that is there. Beside an empty one of the
    others `answer` is the reference."""
    there = [key for key in TEXT_KEYS if key in row]
    sure = [key for key in there if key != "answer"] or there
    return next((key for key in sure if row[key] is not None), sure[0] if sure else None)


def _text(row: Row, where: str, number: int) -> str | None:
    """The answer; None where its place is empty, for a request that failed."""
    numbered = str(row.get(_NUMBERED, "")).strip()
    if numbered in tuple("12345678"):
        return ascii_uppercase[int(numbered) - 1]
    key = _text_key(row)
    if key is None and row.get("failed"):
        return None
    if key is None:
        raise InputError(f"{where}: row {number} has no answer; put it under one of {', '.join(TEXT_KEYS)}")
    text = row[key]
    if isinstance(text, list) and len(text) == 1:
        (text,) = text
    if isinstance(text, list | dict):
        raise InputError(f"{where}: row {number}: {key} is a {type(text).__name__}; it must be the answer's text")
    return None if text is None else str(text)


def _own_id(row: Row, id: str, benchmark: Benchmark, known: set[str]) -> str:
    if id in known or id in benchmark.beside or not benchmark.aliases:
        return id
    lines = str(next((row[key] for key in _QUESTION_KEYS if row.get(key)), "")).strip().splitlines()
    asked = lines[0].strip() if lines else ""
    return benchmark.aliases.get(id) or benchmark.aliases.get(f"{id}\n{asked}".casefold()) or id


def _by_order(benchmark: Benchmark, answers: Sequence[Prediction], where: str) -> list[Prediction]:
    if len(answers) != len(benchmark.questions):
        raise InputError(
            f"{where}: {len(answers)} rows, but {benchmark.name} {benchmark.split} has {len(benchmark.questions)} "
            "questions; by order there must be one row for each"
        )
    return list(answers)


def _by_id(benchmark: Benchmark, known: set[str], answers: Sequence[Prediction], where: str) -> list[Prediction]:
    by_id: dict[str, Prediction] = {}
    repeated: list[str] = []
    for answer in answers:
        if answer.id in benchmark.beside:
            continue
        if answer.id in by_id:
            repeated.append(answer.id)
        by_id[answer.id] = answer
    problems = {
        "missing": [question.id for question in benchmark.questions if question.id not in by_id],
        "repeated": repeated,
        "unknown": [id for id in by_id if id not in known],
    }
    found = [
        f"{len(ids)} {kind} ids (first: {', '.join(ids[:_TOLD])})"
        for kind, ids in problems.items()
        if ids  # each kind is a different mistake, and all are told at once
    ]
    if found:
        raise InputError(
            f"{where}: {'; '.join(found)}; {benchmark.name} {benchmark.split} needs exactly one answer for each of its "
            f"{len(known)} questions (check the split, or match by position with --by-order)"
        )
    return [by_id[question.id] for question in benchmark.questions]
