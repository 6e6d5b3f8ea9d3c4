"""How much of a test split a model has already seen: images and questions shared with the training split.

An image is the same if its bytes are (sha256), since copies under other names occur, and since two
splits with an image folder each may use one name for two pictures. A name alone counts only within one
folder. A question is the same if it is asked on the same image in the same words, letter case and
spacing aside. Nothing is removed: the count is printed beside the score, and the reader judges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.records import Question

ReadImage = Callable[[str], bytes]


def overlap(
    train: Benchmark, test: Benchmark, read_train: ReadImage | None = None, read_test: ReadImage | None = None
) -> dict[str, int]:
    """Counts of test images and questions that also occur in training.

    `read_train` and `read_test` give the bytes of a split's image by its name; without one (images not on
    disk) that split's images are known by folder and name alone, and without either `images_by_sha256` is
    absent, as is `images_by_name` where the splits have folders of their own. An unreadable image is
    counted and compared by name.
    """
    contents: dict[tuple[Path, str], str] = {}  # folder and name -> sha256, or "" where unreadable
    for benchmark, read in ((train, read_train), (test, read_test)):
        if read is not None:
            new = (name for name in benchmark.image_names if (benchmark.images, name) not in contents)
            contents.update({(benchmark.images, name): _sha256(read, name) for name in new})
    counts = {"test_images": len(test.image_names)}
    if train.images == test.images:
        counts["images_by_name"] = len(set(train.image_names) & set(test.image_names))
    if any(contents.values()):
        seen = {contents.get((train.images, name)) for name in train.image_names} - {"", None}
        counts["images_by_sha256"] = sum(contents.get((test.images, name)) in seen for name in test.image_names)
    pairs = {_pair(train, question, contents) for question in train.questions}
    counts["test_questions"] = len(test.questions)
    counts["same_image_and_question"] = sum(_pair(test, question, contents) in pairs for question in test.questions)
    counts["unreadable_images"] = sum(not content for content in contents.values())
    return counts


def _sha256(read: ReadImage, name: str) -> str:
    try:
        return hashlib.sha256(read(name)).hexdigest()
    except (InputError, OSError):
        return ""


def _pair(benchmark: Benchmark, question: Question, contents: dict[tuple[Path, str], str]) -> tuple[object, str]:
    place = (benchmark.images, question.image)
    return contents.get(place) or place, " ".join(question.question.casefold().split())
