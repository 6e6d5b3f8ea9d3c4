"""How much of a test split a model has already seen: images and questions shared with the training split.

An image is the same if its name is, or if its bytes are (sha256), since copies under other names
occur. A question is the same if it is asked on the same image in the same words, letter case and
spacing aside. Nothing is removed: the count is printed beside the score, and the reader judges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.records import Question


def overlap(train: Benchmark, test: Benchmark, read_image: Callable[[str], bytes] | None = None) -> dict[str, int]:
    """Counts of test images and questions that also occur in training.

    `read_image` gives the bytes of either split's image by its name; without it (images not on disk)
    images are compared by name alone and `images_by_sha256` is absent. An unreadable image is compared
    by name alone and counted.
    """
    digests: dict[str, str] = {}
    unreadable = 0
    if read_image is not None:
        for name in dict.fromkeys([*train.image_names, *test.image_names]):
            try:
                digests[name] = hashlib.sha256(read_image(name)).hexdigest()
            except (InputError, OSError):
                unreadable += 1
    train_names, test_names = set(train.image_names), test.image_names
    counts = {
        "test_images": len(test_names),
        "images_by_name": sum(name in train_names for name in test_names),
    }
    if digests:
        seen = {digests[name] for name in train_names if name in digests}
        counts["images_by_sha256"] = sum(digests.get(name) in seen for name in test_names)
    pairs = {_pair(question, digests) for question in train.questions}
    counts["test_questions"] = len(test.questions)
    counts["same_image_and_question"] = sum(_pair(question, digests) in pairs for question in test.questions)
    counts["unreadable_images"] = unreadable
    return counts


def _pair(question: Question, digests: dict[str, str]) -> tuple[str, str]:
    return digests.get(question.image, question.image), " ".join(question.question.casefold().split())
