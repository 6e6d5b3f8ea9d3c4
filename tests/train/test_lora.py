"""Adapters: what trains is what is named, and what is merged, moved or resumed answers as before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from llavamed import recipe
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import folder as model_folder
from llavamed.model import gpus
from llavamed.model.parts import build
from llavamed.model.plan import plan
from llavamed.recipe import LoraSection, ModelSection, StageSection, TrainSection
from llavamed.train import loop, lora
from llavamed.train.attention import packed
from llavamed.train.data import Pixels, make_batch, read_examples, step_weights
from llavamed.train.forward import pack_loss
from llavamed.train.loop import run_stage
from llavamed.train.run import train
from llavamed.train.validate import read_rows

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

LORA = LoraSection(rank=4, alpha=8)
TRAIN = TrainSection(max_tokens=128, tokens_per_pack=64)
Run = Callable[..., Manifest]


@pytest.fixture(scope="session")
def base(parts: ModelSection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    model_folder.save(build(parts, 0), folder)
    return folder


@pytest.fixture
def run(parts: ModelSection, base: Path, data: Path, images: Path) -> Run:
    def make(out: Path, settings: LoraSection = LORA, dtype: str = "float32", **stage: Any) -> Manifest:
        keys = {"trains": ("projector",), "learning_rate": 1e-2, "epochs": 5, "batch_size": 4, **stage}
        section = StageSection.model_validate({"data": str(data), "images": str(images), "lora": settings, **keys})
        assembled = model_folder.load(base, getattr(torch, dtype))
        pixels = Pixels(images, assembled.processor)
        examples = read_examples(data, pixels, assembled.processor, TRAIN.max_tokens)
        train = TRAIN.model_copy(update={"dtype": dtype})
        made_from = Manifest(
            "stage", settings={"name": "instruct", **section.model_dump()}, extra={"model": parts.model_dump()}
        )
        return run_stage(assembled, examples, pixels, "instruct", section, train, out, 0, made_from)

    return make


def _logits(model: Any) -> torch.Tensor:
    """Of eight tokens, four of them an image's."""
    generator = torch.Generator().manual_seed(0)
    image = model.config.image_token_id
    ids = torch.tensor([[1, image, image, image, image, 40, 41, 42]])
    pixels = torch.randn(1, 3, 32, 32, generator=generator).to(model.dtype)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=ids, pixel_values=pixels).logits
    return logits


def _loss(model: Any, processor: Any, data: Path, images: Path, step: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """Of all eight conversations, packed as `step` says."""
    pixels = Pixels(images, processor)
    examples = read_examples(data, pixels, processor, max_tokens=128)
    weights, token_id = step_weights(examples, step, "token"), model.config.image_token_id
    with packed(model):
        losses = [pack_loss(model, make_batch(examples, pixels, pack, weights, token_id)) for pack in step]
    return torch.stack(losses).sum()


def _changed(base: Path, out: Path) -> set[str]:
    before, after = model_folder.load(base).model.state_dict(), model_folder.load(out).model.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("trains", [("projector",), ()])
def test_only_the_adapted_layers_and_what_is_named_change(
    run: Run, base: Path, data: Path, images: Path, tmp_path: Path, quantize: str, trains: tuple[str, ...]
) -> None:
    """And the merged model has learned, and its folder is as plain as any."""
    made = run(tmp_path, LoraSection(rank=4, alpha=8, quantize=quantize), trains=trains)  # type: ignore[arg-type]
    changed = _changed(base, tmp_path)
    blocks = {name for name in changed if name.startswith("model.language_model.layers.")}
    assert len(blocks) == 2 * 7  # q, k, v, o, gate, up, down in two layers
    rest = {name for name in changed - blocks if "projector" not in name}
    assert not rest
    assert bool(changed - blocks) == bool(trains)
    merged = model_folder.load(tmp_path)
    learned = _loss(merged.model, merged.processor, data, images, (tuple(range(8)),)).item()
    assert learned < made.extra["first_loss"] - 0.2
    assert made.counts["trainable_parameters"] < 30_000
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert type(loaded) is LlavaForConditionalGeneration
    assert {type(m).__module__.partition(".")[0] for m in loaded.modules()} <= {"torch", "transformers"}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("parts_", [("language_model",), ("language_model", "vision_tower")])
def test_merged_logits_are_those_of_base_and_adapters(
    run: Run, base: Path, tmp_path: Path, quantize: str, parts_: tuple[str, ...]
) -> None:
    """By our own loader, by plain peft on the plain base, and as the stage's own `model/`."""
    run(tmp_path, LoraSection(rank=4, alpha=8, quantize=quantize, parts=parts_))  # type: ignore[arg-type]
    stage = _logits(model_folder.load(tmp_path).model)
    assert not torch.allclose(stage, _logits(model_folder.load(base).model), atol=1e-2)
    theirs = peft.PeftModel.from_pretrained(model_folder.load(base).model, tmp_path / "adapter")
    assert torch.allclose(_logits(theirs), stage, atol=1e-5)
    ours = lora.apply(tmp_path)
    assert torch.allclose(_logits(ours.model), stage, atol=1e-5)
    lora.merge(ours)
    assert torch.equal(_logits(ours.model), stage)
    assert torch.allclose(_logits(theirs.merge_and_unload()), stage, atol=1e-5)


def test_a_tower_trained_in_full_beside_adapters_travels_with_them(run: Run, base: Path, tmp_path: Path) -> None:
    run(tmp_path, trains=("projector", "vision_tower"))
    assert any("vision_tower" in name for name in _changed(base, tmp_path))
    theirs = peft.PeftModel.from_pretrained(model_folder.load(base).model, tmp_path / "adapter")
    stage = _logits(model_folder.load(tmp_path).model)
    assert torch.allclose(_logits(theirs), stage, atol=1e-5)
    assert torch.allclose(_logits(lora.apply(tmp_path / "adapter").model), stage, atol=1e-5)


def test_only_the_language_models_linear_layers_are_quantised(base: Path) -> None:
    assembled = model_folder.load(base, torch.bfloat16)
    stage = StageSection(lora=LoraSection(rank=4, quantize="nf4", parts=("language_model", "vision_tower")))
    chosen = lora.trainable(assembled, stage, 0)
    small = {n for n, m in assembled.model.to("cpu").named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert len(small) == 14
    assert all(name.startswith("model.language_model.layers.") for name in small)
    assert {p.dtype for n, p in assembled.model.named_parameters() if n.removesuffix(".weight") in small} == {
        torch.uint8
    }
    assert set(chosen) == {"projector", "language_model", "vision_tower"}
    assert {p.dtype for part in ("language_model", "vision_tower") for p in chosen[part].values()} == {torch.float32}


def test_the_shared_folder_is_rebuilt_from_the_recipes_parts_and_refuses_another_base(
    run: Run, parts: ModelSection, base: Path, tmp_path: Path
) -> None:
    run(tmp_path / "stage")
    shared = shutil.copytree(tmp_path / "stage" / "adapter", tmp_path / "some" / "where" / "else")
    stage = _logits(model_folder.load(tmp_path / "stage").model)
    assert torch.allclose(_logits(lora.apply(shared).model), stage, atol=1e-5)
    assert torch.allclose(_logits(lora.apply(shared, base).model), stage, atol=1e-5)
    with pytest.raises(InputError, match=r"not trained on the language_model of .*--base"):
        lora.apply(shared, tmp_path / "stage")  # merged already
    about = json.loads((shared / "llavamed.json").read_text())
    assert about["base"]["model"]["language_model"] == parts.language_model
    about["base"]["model"] = None
    (shared / "llavamed.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"its base is not at .*--base"):
        lora.apply(shared)
    assert "llavamed merge" in (shared / "README.md").read_text()
    with pytest.raises(InputError, match=r"an adapter, not a model.*llavamed merge"):
        model_folder.load(shared)


def test_the_merge_command_writes_the_stages_own_weights_and_says_how_close(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llavamed import cli

    run(tmp_path / "stage")
    command = ["llavamed", "merge", str(tmp_path / "stage"), "--out", str(tmp_path / "merged"), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    (row,) = json.loads(capsys.readouterr().out)
    assert row["adapters"] == 14
    assert row["logits differ by"] <= 1e-5
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "stage" / "model" / name).read_bytes(), name
    with pytest.raises(SystemExit) as again:  # nothing is overwritten
        cli.main()
    assert again.value.code == 2


def test_bfloat16_keeps_float32_adapters_and_merges_once(run: Run, tmp_path: Path) -> None:
    run(tmp_path, dtype="bfloat16")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for n, t in tensors.items() if ".lora_" in n} == {torch.float32}
    assert {t.dtype for n, t in tensors.items() if "projector" in n} == {torch.bfloat16}
    assert {p.dtype for p in model_folder.load(tmp_path).model.parameters()} == {torch.bfloat16}
    lora.merge_folder(tmp_path, tmp_path / "merged")
    again = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_stage_resumed_in_the_middle_ends_as_one_that_was_not_interrupted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str
) -> None:
    settings = LoraSection(rank=4, alpha=8, quantize=quantize)  # type: ignore[arg-type]
    run(tmp_path / "straight", settings)
    original = loop._Run.step

    def step(self: Any, number: int, *rest: Any) -> dict[str, Any]:
        row = original(self, number, *rest)
        if number + 1 == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(loop._Run, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", settings)
    monkeypatch.undo()
    assert len(read_rows(tmp_path / "resumed" / "metrics.jsonl")) == 5
    run(tmp_path / "resumed", settings)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_the_loss_and_its_gradient_do_not_depend_on_the_packs(
    base: Path, data: Path, images: Path, quantize: str
) -> None:
    assembled = model_folder.load(base)
    model = assembled.model
    section = LoraSection(rank=4, alpha=8, dropout=0.0, quantize=quantize)  # type: ignore[arg-type]
    chosen = lora.trainable(assembled, StageSection(lora=section), 0)
    torch.manual_seed(0)
    for name, parameter in chosen["language_model"].items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to("cpu").train()
    found = []
    for step in ((tuple(range(8)),), tuple((index,) for index in range(8))):
        model.zero_grad(set_to_none=True)
        loss = _loss(model, assembled.processor, data, images, step)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in chosen["language_model"].items()}))
    (one, gradients), (eight, by_document) = found
    assert one == pytest.approx(eight, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, by_document[name], atol=1e-5), name


def test_the_same_seed_gives_the_same_adapters(base: Path) -> None:
    stage = StageSection(lora=LORA)
    first, second, other = (
        lora.trainable(model_folder.load(base), stage, seed)["language_model"] for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_plan_counts_what_is_trained(base: Path) -> None:
    settings = recipe.load(
        "tiny", ["train.instruct.trains=[projector]", "train.instruct.lora={parts: [language_model, vision_tower]}"]
    )
    assert settings.train.instruct is not None
    found = plan(settings, gpus.named("h200")).stages[-1]
    chosen = lora.trainable(build(settings.model, 0), settings.train.instruct, 0)
    assert found.trainable == sum(p.numel() for named in chosen.values() for p in named.values())
    assert found.trains == ("projector", "LoRA on language_model", "LoRA on vision_tower")


def test_four_bits_save_what_qlora_says() -> None:
    qlora = plan(recipe.load("llava-med-v1.5-24gb"), gpus.named("h200"))
    lora_ = plan(recipe.load("llava-med-v1.5-24gb", ["train.instruct.lora.quantize=none"]), gpus.named("h200"))
    assert qlora.stages[-1].trainable == 335_544_320 + 20_979_712  # rank 128 on Mistral-7B's linear layers
    saved = lora_.stages[-1].memory["weights"] - qlora.stages[-1].memory["weights"]
    assert saved == pytest.approx(6_979_321_856 * (2 - 4.127 / 8))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora={parts: [projector]}", r"lora\.parts.*'language_model' or 'vision_tower'"),
        ("trains=[projector, language_model]", r"trains.*language_model is in lora\.parts too; leave it out"),
        ("lora={parts: [vision_tower], quantize: nf4}", "only the language model is quantised"),
    ],
)
def test_a_part_trains_in_one_way(override: str, message: str) -> None:
    both = ["train.instruct.trains=[projector]", "train.instruct.lora={rank: 8}", f"train.instruct.{override}"]
    with pytest.raises(InputError, match=message):
        recipe.load("tiny", both)


def test_without_peft_the_command_that_installs_it_is_named_before_anything_is_made(
    parts: ModelSection, data: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    stage = StageSection(data=str(data), images=str(images), lora=LORA)
    settings = recipe.Recipe(name="x", model=parts, train=TRAIN.model_copy(update={"instruct": stage}))
    with pytest.raises(InputError, match=r'pip install "llavamed\[lora\]"'):
        train(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_from_the_merged_model(parts: ModelSection, data: Path, images: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"data": str(data), "images": str(images), "batch_size": 4}
    stages = {"instruct": StageSection(**keys, lora=LORA), "finetune": StageSection(**keys, lora=LORA)}
    settings = recipe.Recipe(name="x", model=parts, train=TRAIN.model_copy(update=stages))
    train(settings, tmp_path)
    about = json.loads((tmp_path / "finetune" / "adapter" / "llavamed.json").read_text())
    assert about["base"]["folder"] == "../../instruct/model"
    assert about["base"]["model"]["language_model"] == parts.language_model
    assert torch.allclose(
        _logits(lora.apply(tmp_path / "finetune").model), _logits(model_folder.load(tmp_path).model), atol=1e-5
    )
    assert "LoRA on language model" in (tmp_path / "report.html").read_text()
    made = train(settings, tmp_path)  # finished: nothing is made again
    assert made.seconds > 0
