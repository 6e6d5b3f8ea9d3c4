from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llavamed import recipe
from llavamed.model import gpus, plan
from llavamed.recipe import StageSection
from llavamed.train import meter
from llavamed.train.data import Examples
from llavamed.train.meter import Meter, in_words
from llavamed.train.pack import Schedule

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # a name: no CUDA is called where the GPU is made up
ALIGN = StageSection(trains=("projector",), batch_size=128)
INSTRUCT = StageSection(trains=("projector", "language_model"), batch_size=128)


def make_examples(lengths: list[int], targets: int, images: int = 1) -> Examples:
    count = len(lengths)
    return Examples(
        ids=[str(number) for number in range(count)],
        images=[("image",) * images] * count,
        input_ids=[],
        supervised=[],
        lengths=np.array(lengths),
        targets=np.full(count, targets),
    )


def make_meter(name: str, stage: StageSection, examples: Examples, device: torch.device = CPU, **more: Any) -> Meter:
    schedule = Schedule(examples.lengths, stage.batch_size, 8192, seed=0, epochs=1)
    config = plan.meta_model(recipe.load(name).model).config
    return Meter(config, examples, schedule, stage, device=device, **{"dtype": "bfloat16", **more})


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "at_hand", lambda: gpus.named("h200"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 70 * 2**30)


# tokens per second on one H200 at 60 % of a measured 790 TFLOP/s, counted by hand: what MFU of the datasheet's 989 is
# that?
@pytest.mark.parametrize(
    ("name", "stage", "tokens", "supervised", "tokens_per_second"),
    [
        ("llava-med-v1.0", ALIGN, 435, 121, 17_675),
        ("llava-med-v1.0", INSTRUCT, 623, 225, 11_858),
        ("llava-med-v1.5", ALIGN, 716, 121, 16_194),
        ("llava-med-v1.5", INSTRUCT, 911, 225, 10_925),
    ],
)
@pytest.mark.usefixtures("h200")
def test_mfu_agrees_with_the_hand_count(
    name: str, stage: StageSection, tokens: int, supervised: int, tokens_per_second: int
) -> None:
    found = make_meter(name, stage, make_examples([tokens] * 128, supervised), CUDA)
    row = found.measure(1, (tuple(range(128)),), 128 * tokens / tokens_per_second)
    assert row["tokens_per_second"] == pytest.approx(tokens_per_second, rel=1e-3)
    assert row["tflops_per_second"] == pytest.approx(0.6 * 790, rel=0.01)
    assert row["mfu"] == pytest.approx(0.6 * 790 / 989, rel=0.01)
    assert row["peak"] == "989 TFLOP/s, the datasheet's for h200 in bfloat16"
    assert row["peak_memory_mb"] == 70 * 1024
    assert f"MFU {row['mfu']:.1%} of 989 TFLOP/s, 70.0 GiB" in in_words({"loss": 1.0, **row})


@pytest.mark.usefixtures("h200")
def test_the_peak_of_several_gpus_is_their_sum_and_float32_has_none() -> None:
    examples = make_examples([911] * 128, 225)
    step = (tuple(range(128)),)
    one = make_meter("tiny", INSTRUCT, examples, CUDA).measure(1, step, 1e-3)
    eight = make_meter("tiny", INSTRUCT, examples, CUDA, processes=8).measure(1, step, 1e-3)
    assert eight["mfu"] == pytest.approx(one["mfu"] / 8, rel=1e-3)
    assert eight["peak"].startswith("8 x 989 TFLOP/s")
    assert make_meter("tiny", INSTRUCT, examples, CUDA, dtype="float32").measure(1, step, 1e-3)["mfu"] is None


def test_on_a_cpu_no_share_is_claimed_but_the_work_is() -> None:
    row = make_meter("tiny", INSTRUCT, make_examples([50] * 8, 9)).measure(1, (tuple(range(8)),), 0.5)
    assert (row["mfu"], row["peak"]) == (None, None)
    assert row["tflops_per_second"] > 0
    assert row["peak_memory_mb"] > 50
    assert "MFU" not in in_words({"loss": 1.0, **row})


def test_rates_are_of_the_step_and_fill_is_beside_its_fullest_pack() -> None:
    found = make_meter("tiny", INSTRUCT, make_examples([100, 50, 30, 60], 10))
    row = found.measure(1, ((0, 1), (2, 3)), 2.0)
    assert (row["examples"], row["tokens"], row["supervised_tokens"], row["packs"]) == (4, 240, 40, 2)
    rates = (row["tokens_per_second"], row["supervised_tokens_per_second"], row["examples_per_second"])
    assert rates == (120, 20, 2)
    assert row["fill"] == 0.8  # 240 of 2 x 150


def test_attention_is_counted_by_the_length_of_each_example() -> None:
    """One long example costs more than two halves; the difference is that of the attention alone."""
    found = make_meter("tiny", INSTRUCT, make_examples([200, 100, 100], 10, images=0))
    long, halves = found.measure(1, ((0,),), 1e-6), found.measure(1, ((1, 2),), 1e-6)
    text = plan.meta_model(recipe.load("tiny").model).config.text_config
    pairs = 200**2 - 2 * 100**2
    attention = 3.5 * 2 * text.hidden_size * text.num_hidden_layers * pairs
    head = 10 * 6 * text.vocab_size * text.hidden_size  # the halves have twice the supervised tokens
    difference = (long["tflops_per_second"] - halves["tflops_per_second"]) * 1e12 * 1e-6
    assert difference == pytest.approx(attention - head, rel=1e-3)


def test_the_time_left_is_judged_by_the_last_steps() -> None:
    found = make_meter("tiny", StageSection(batch_size=2), make_examples([50] * 100, 9))
    assert found.measure(1, ((0, 1),), 60.0)["seconds_left"] == 49 * 60.0  # it compiled
    for done in range(2, 2 + meter._RECENT):
        row = found.measure(done, ((0, 1),), 1.0)
    assert row["seconds_left"] == 50 - done
    assert found.measure(50, ((0, 1),), 1.0)["seconds_left"] == 0
