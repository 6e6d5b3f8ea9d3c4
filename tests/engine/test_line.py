"""A batch that fails: memory, and a row at fault."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from llavamed.engine.decode import Row
from llavamed.engine.line import run


class FakeBatch:
    """Memory is for `fits` rows; the row with the prompt [13] breaks the step to its third token."""

    made = 0

    def __init__(self, fits: int) -> None:
        self.fits, self.rows = fits, list[Row]()
        FakeBatch.made += 1

    @property
    def alive(self) -> int:
        return sum(not row.ended for row in self.rows)

    def enter(self, new: Sequence[Row]) -> list[Row]:
        self.rows = [row for row in self.rows if not row.ended]
        for row in new:
            row.tokens, row.ended = [], False
        self.check(new)
        self.rows += new
        return self.take(new)

    def step(self) -> list[Row]:
        self.check([])
        return self.take(self.rows)

    def check(self, new: Sequence[Row]) -> None:
        if len(self.rows) + len(new) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(row.prompt[0] == 13 and len(row.tokens) == 2 for row in self.rows):
            raise IndexError("index 13 is out of range")

    def take(self, rows: Sequence[Row]) -> list[Row]:
        going = [row for row in rows if not row.ended]
        for row in going:
            row.tokens.append(len(row.tokens))
            row.ended = len(row.tokens) >= row.max_new_tokens
        return [row for row in going if row.ended]


def ran(prompts: Sequence[int], fits: int, size: int) -> list[Row]:
    rows = [Row(place, np.array([prompt]), max_new_tokens=1 + prompt % 5) for place, prompt in enumerate(prompts)]
    return list(run(iter(rows), size, lambda: FakeBatch(fits), threading.Lock(), "engine"))  # type: ignore[arg-type]


def test_every_row_ends_once_with_all_its_tokens() -> None:
    rows = ran(range(20, 70), fits=8, size=8)
    assert sorted(row.place for row in rows) == list(range(50))
    assert all(row.tokens == list(range(row.max_new_tokens)) and row.error is None for row in rows)


@pytest.mark.parametrize(("fits", "told"), [(16, []), (8, [8]), (5, [8, 4]), (1, [8, 4, 2, 1])])
def test_without_memory_half_as_many_go_together_and_that_is_said(
    fits: int, told: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ran([4] * 40, fits, size=16)
    assert sorted(row.place for row in rows) == list(range(40))
    assert all(row.tokens == list(range(5)) and row.error is None for row in rows)
    assert capsys.readouterr().err.splitlines() == [
        f"engine: out of memory; {size} requests together from now on" for size in told
    ]


def test_a_row_without_memory_for_itself_alone_gets_the_error() -> None:
    rows = ran([1, 2, 3], fits=0, size=4)
    assert [type(row.error) for row in rows] == [torch.OutOfMemoryError] * 3


def test_a_row_at_fault_is_found_and_the_others_have_their_answers() -> None:
    FakeBatch.made = 0
    rows = ran([*range(5, 25), *range(35, 50)], fits=8, size=8)
    assert len(rows) == 35
    by_prompt = {int(row.prompt[0]): row for row in rows}
    assert isinstance(by_prompt.pop(13).error, IndexError)
    assert all(row.error is None and row.tokens == list(range(row.max_new_tokens)) for row in by_prompt.values())
    assert FakeBatch.made == 3  # the first, one after the batch failed, one after the row failed


def test_a_row_that_comes_with_an_error_is_handed_on() -> None:
    rows = [Row(0, np.array([1]), error=ValueError("too long")), Row(1, np.array([1]))]
    ended = list(run(iter(rows), 4, lambda: FakeBatch(4), threading.Lock(), "engine"))  # type: ignore[arg-type, return-value]
    assert {row.place: str(row.error) for row in ended} == {0: "too long", 1: "None"}


def test_a_defect_of_ours_is_not_blamed_on_a_row() -> None:
    class Defect(FakeBatch):
        def check(self, new: Sequence[Row]) -> None:
            raise AssertionError("shapes differ")

    with pytest.raises(AssertionError, match="shapes differ"):
        list(run(iter([Row(0, np.array([1]))]), 4, lambda: Defect(4), threading.Lock(), "engine"))  # type: ignore[arg-type, return-value]
