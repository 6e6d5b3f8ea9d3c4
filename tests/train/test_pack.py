from __future__ import annotations

import numpy as np
import pytest

from llavamed.train.pack import Schedule, plan_epoch

# (examples, batch size, tokens per pack, shortest, longest): few and many, tight and roomy, longer than a pack
CASES = [
    (1, 8, 100, 10, 11),
    (7, 8, 100, 10, 60),
    (64, 8, 100, 10, 60),
    (200, 32, 4096, 60, 400),
    (65, 16, 50, 20, 80),
    (128, 128, 300, 100, 300),
]


@pytest.fixture(params=[(case, seed) for case in CASES for seed in range(3)], ids=str)
def planned(request: pytest.FixtureRequest) -> tuple[np.ndarray, int, int, list]:
    (count, batch_size, tokens, low, high), seed = request.param
    lengths = np.random.default_rng(seed).integers(low, high, count)
    return lengths, batch_size, tokens, plan_epoch(lengths, batch_size, tokens, seed, epoch=0)


def test_every_example_comes_exactly_once_an_epoch(planned: tuple) -> None:
    lengths, _, _, steps = planned
    assert sorted(i for step in steps for pack in step for i in pack) == list(range(len(lengths)))


def test_every_batch_but_the_last_has_the_batch_size(planned: tuple) -> None:
    lengths, batch_size, _, steps = planned
    sizes = [sum(map(len, step)) for step in steps]
    assert all(size == batch_size for size in sizes[:-1])
    assert sizes[-1] == (len(lengths) - 1) % batch_size + 1


def test_no_pack_is_over_the_limit_unless_it_is_one_long_example(planned: tuple) -> None:
    lengths, _, tokens, steps = planned
    for step in steps:
        for pack in step:
            assert pack
            assert len(pack) == 1 or lengths[list(pack)].sum() <= tokens


def test_packs_of_a_step_are_balanced_to_within_the_longest_example(planned: tuple) -> None:
    lengths, _, _, steps = planned
    for step in steps:
        sums = [lengths[list(pack)].sum() for pack in step]
        assert max(sums) - min(sums) <= lengths.max()


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lanes_have_as_many_packs_each_and_none_is_empty(case: tuple[int, ...], lanes: int) -> None:
    count, batch_size, tokens, low, high = case
    lengths = np.random.default_rng(0).integers(low, high, count)
    steps = plan_epoch(lengths, batch_size, tokens, seed=0, epoch=0, lanes=lanes)
    assert sorted(i for step in steps for pack in step for i in pack) == list(range(count))
    for step in steps:
        assert all(step)
        assert len(step) % lanes == 0 or len(step) == sum(map(len, step))  # or an example a pack
        assert all(len(pack) == 1 or lengths[list(pack)].sum() <= tokens for pack in step)


def test_real_lengths_fill_nearly_all_of_the_fewest_packs() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.5, 12_800).astype(int), 40, 2000) + 576
    steps = plan_epoch(lengths, 128, 32_768, seed=0, epoch=0)
    sums = [[int(lengths[list(pack)].sum()) for pack in step] for step in steps]
    fewest = [-(-sum(step) // 32_768) for step in sums]
    assert sum(map(len, steps)) <= 1.02 * sum(fewest)
    assert all(sum(step) / (len(step) * max(step)) > 0.99 for step in sums)


def test_the_plan_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    lengths = np.full(50, 10)
    same = [plan_epoch(lengths, 8, 40, 1, 2) for _ in range(2)]
    assert same[0] == same[1]
    assert plan_epoch(lengths, 8, 40, 1, 3) != same[0] != plan_epoch(lengths, 8, 40, 2, 2)


@pytest.mark.parametrize(("epochs", "total"), [(1, 7), (3, 21), (0.5, 4), (2.5, 18), (0.01, 1)])
def test_a_fraction_of_an_epoch_is_its_first_steps(epochs: float, total: int) -> None:
    lengths = np.full(50, 10)
    schedule = Schedule(lengths, 8, 40, seed=1, epochs=epochs)
    whole = [step for epoch in range(3) for step in plan_epoch(lengths, 8, 40, 1, epoch)]
    assert schedule.total == total
    assert [schedule[number] for number in range(total)] == whole[:total]


def test_any_step_can_be_asked_for_first_and_examples_are_counted_up_to_it() -> None:
    lengths = np.full(50, 10)
    schedule, other = (Schedule(lengths, 8, 40, seed=1, epochs=3) for _ in range(2))
    assert schedule[17] == [other[number] for number in range(18)][17]
    counted = 0
    for number in range(schedule.total):
        assert schedule.examples_before(number) == counted
        counted += sum(map(len, schedule[number]))
    assert schedule.examples_before(schedule.total) == counted == 150
