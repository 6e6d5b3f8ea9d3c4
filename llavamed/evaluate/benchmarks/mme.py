"""MME (Fu et al. 2023): two yes/no questions on each picture, the right answer of one yes and of the other no.

A subtask's score is its accuracy plus the share of pictures with *both* right, together 200 at most: who always says
yes has 50 + 0. Ten subtasks are perception (2,000 at most, the number people quote), four are cognition (800).

The release is a folder a subtask. In some, pictures and questions lie together (`0001.jpg`, `0001.txt`), in others in
`images/` and `questions_answers_YN/`. A text file has two lines, question and answer with a tab between. Every
question ends in "Please answer yes or no.", for which LLaVA, and we, put its short-answer prompt. Ids do not exist:
here they are `<subtask>/<picture>#1` and `#2`. LLaVA's answer files name the picture alone, so a row is known by it and
its question.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import LLAVA_15, SHORT_ANSWER, Benchmark, Published
from llavamed.evaluate.benchmarks.files import sha256_of
from llavamed.evaluate.metrics.mme import COGNITION, PERCEPTION
from llavamed.records import Question

NAME = "mme"
SPLITS = ("test",)
SPLIT = "test"
ORIGIN = "MME_Benchmark_release_version, asked for at github.com/BradyFU/Awesome-Multimodal-Large-Language-Models"
SIGNS = (("existence/*.txt", "yes or no"), ("*/existence/*.txt", "yes or no"), ("existence/*/*.txt", "yes or no"))

PUBLISHED = tuple(
    Published(f"LLaVA-1.5-{size}", {"perception_official": value}, "perception, of 2,000", LLAVA_15)
    for size, value in (("7B", 1510.7), ("13B", 1531.3))
)

_ASKS = "Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg")


def read(data: Path, split: str) -> Benchmark:
    root = next((folder for folder in (data, *sorted(data.glob("*/"))) if (folder / "existence").is_dir()), None)
    if root is None:
        raise InputError(f"{data}: {'no such folder' if not data.is_dir() else 'holds no folder existence'}; {ORIGIN}")
    absent = [subtask for subtask in (*PERCEPTION, *COGNITION) if not (root / subtask).is_dir()]
    if absent:
        raise InputError(f"{root}: holds no folder {', '.join(absent)}; MME needs all fourteen, {ORIGIN}")
    questions: list[Question] = []
    texts: list[Path] = []
    for subtask in (*PERCEPTION, *COGNITION):
        inner = root / subtask / "questions_answers_YN"
        found = sorted((inner if inner.is_dir() else root / subtask).glob("*.txt"))
        texts += found
        for path in found:
            questions += _questions(path, subtask, root)
    if not questions:
        raise InputError(f"{root}: no .txt file of questions in any subtask; {ORIGIN}")
    return Benchmark(
        NAME,
        split,
        tuple(questions),
        root,
        sha256_of(texts, data),
        prompt=SHORT_ANSWER,
        family="mme",
        max_new_tokens=128,
        published=PUBLISHED,
        aliases={alias: question.id for question in questions for alias in _aliases(question)},
    )


def _questions(path: Path, subtask: str, root: Path) -> list[Question]:
    image = _picture(path, root)
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(lines) != 2:
        raise InputError(f"{path}: {len(lines)} lines; a picture of MME has two questions")
    questions = []
    for number, line in enumerate(lines, 1):
        text, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise InputError(f"{path}:{number}: {answer.strip()[:40]!r}; a line is a question, a tab, and Yes or No")
        questions.append(
            Question(
                id=f"{subtask}/{Path(image).name}#{number}",
                image=image,
                question=text.strip().removesuffix(_ASKS).strip(),
                answer=answer.strip().lower(),
                closed=True,
                options=("yes", "no"),
                groups={"subtask": subtask},
            )
        )
    return questions


def _aliases(question: Question) -> Iterator[str]:
    """How LLaVA's answers and MME's own result files name a question: subtask, picture (perhaps in `images/`), text."""
    subtask, stem = question.groups["subtask"], Path(question.image).stem
    for folder in ("", "images/"):
        for suffix in _PICTURES:
            for asks in ("", f" {_ASKS}"):
                yield f"{subtask}/{folder}{stem}{suffix}\n{question.question}{asks}".casefold()


def _picture(path: Path, root: Path) -> str:
    """The picture of a text file, below `root`. Where there is none on this disk the name that it would have."""
    folder = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
    found = (folder / f"{path.stem}{suffix}" for suffix in _PICTURES)
    picture = next((candidate for candidate in found if candidate.is_file()), folder / f"{path.stem}.jpg")
    return str(picture.relative_to(root))
