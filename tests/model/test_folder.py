from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.model import folder
from llavamed.model.chat import prompt
from llavamed.model.folder import Assembled, load, save
from llavamed.model.parts import build
from llavamed.recipe import ModelSection
from llavamed.records import user

# what llava-hf/llava-1.5-7b-hf has on disk
CLASSIC = {
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.norm.weight",
    "multi_modal_projector.linear_1.bias",
    "multi_modal_projector.linear_1.weight",
    "multi_modal_projector.linear_2.bias",
    "multi_modal_projector.linear_2.weight",
    "vision_tower.vision_model.embeddings.class_embedding",
    "vision_tower.vision_model.embeddings.patch_embedding.weight",
    "vision_tower.vision_model.embeddings.position_embedding.weight",
    "vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
    "vision_tower.vision_model.post_layernorm.weight",
    "vision_tower.vision_model.pre_layrnorm.weight",
}

ELSEWHERE = """
import sys
sys.modules["llavamed"] = None  # an import of it is an ImportError
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
image, question, *folders = sys.argv[1:]
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
for folder in folders:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=Image.open(image), text=text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    answer = model.generate(**inputs, max_new_tokens=12)
    torch.save({"logits": logits, "answer": answer, "pixels": inputs["pixel_values"]}, folder + "/out.pt")
"""


@pytest.fixture
def saved(assembled: Assembled, tmp_path: Path) -> Path:
    save(assembled, tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def test_the_folder_has_the_classic_names_and_the_files_that_servers_read(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        assert tensors.metadata() == {"format": "pt"}
    assert names >= CLASSIC
    prefixes = (
        "language_model.model.",
        "language_model.lm_head.",
        "multi_modal_projector.",
        "vision_tower.vision_model.",
    )
    assert all(name.startswith(prefixes) for name in names)
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["model_type"] == "llava"
    assert config["image_token_index"] == 4
    assert config["image_seq_length"] == 9
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert not {"temperature", "top_p", "top_k"} & set(generation)
    preprocessor = json.loads((saved / "preprocessor_config.json").read_text())
    assert preprocessor["image_processor_type"] == "LlavaImageProcessor"
    processor = json.loads((saved / "processor_config.json").read_text())
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (16, 1)
    assert "{%- generation -%}" in (saved / "chat_template.jinja").read_text()


def test_saving_what_was_loaded_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save(load(saved), tmp_path / "again")
    files = sorted(p.name for p in saved.iterdir())
    assert files == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in files:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_loads_where_llavamed_cannot_be_imported_with_the_same_logits_and_answer(
    build_small: Callable[..., Assembled], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    question = "What is shown?"
    models = {
        tmp_path / "v15": build_small(),
        tmp_path / "v10": build_small(chat_template="vicuna", image_wrap=True, projector_layers=1, pad_to_square=False),
    }
    for path, assembled in models.items():
        save(assembled, path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    image.save(tmp_path / "scan.png")
    (tmp_path / "script.py").write_text(ELSEWHERE)
    done = subprocess.run(
        [sys.executable, "-I", "script.py", "scan.png", question, *map(str, models)],
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: another number of threads sums in another order
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    for path, assembled in models.items():
        theirs = torch.load(path / "out.pt", weights_only=True)
        text = prompt(assembled.processor, (user(question, images=1),))
        inputs = assembled.processor(images=image, text=text, add_special_tokens=False, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], theirs["pixels"])
        with torch.no_grad():
            torch.testing.assert_close(assembled.model(**inputs).logits, theirs["logits"], rtol=0, atol=1e-5)
        assert torch.equal(assembled.model.generate(**inputs, max_new_tokens=12), theirs["answer"])


def test_shards_and_their_index_load_the_same(assembled: Assembled, tmp_path: Path) -> None:
    save(assembled, tmp_path / "model", shard_bytes=100_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 3
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in assembled.model.state_dict().values())
    again = load(tmp_path / "model")
    for name, value in assembled.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    (tmp_path / "model" / files[1]).unlink()
    with pytest.raises(InputError, match=f"{files[1]}: missing"):
        load(tmp_path / "model")


def test_tied_embeddings_are_written_once_and_tied_again(
    tower: Path, write_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    tied = write_language_model(tmp_path / "tied", tied=True)
    joined = build(ModelSection(vision_tower=str(tower), language_model=str(tied)), seed=0)
    save(joined, tmp_path / "model")
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    again = load(tmp_path / "model").model
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again.lm_head.weight, joined.model.lm_head.weight)


def test_dtype_is_the_folders_unless_asked_for(build_small: Callable[..., Assembled], tmp_path: Path) -> None:
    half = build_small()
    half.model.to(torch.bfloat16)
    save(half, tmp_path / "model")
    assert load(tmp_path / "model").model.dtype == torch.bfloat16
    assert {p.dtype for p in load(tmp_path / "model", torch.float32).model.parameters()} == {torch.float32}


def test_transformers_own_layout_is_read_too(assembled: Assembled, saved: Path) -> None:
    names = {folder.disk_name(name): name for name in assembled.model.state_dict()}

    def to_memory_names(tensors: dict[str, torch.Tensor]) -> None:
        for disk, memory in names.items():
            tensors[memory] = tensors.pop(disk)

    change(saved, to_memory_names)
    again = load(saved)
    for name, value in assembled.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_names_on_disk_and_in_memory_are_inverse(assembled: Assembled) -> None:
    for name in assembled.model.state_dict():
        assert folder.memory_name(folder.disk_name(name)) == name
        assert folder.memory_name(name) == name


def test_a_run_a_stage_or_a_model_folder_may_be_given(assembled: Assembled, tmp_path: Path) -> None:
    _write_run(assembled, tmp_path, "align", "instruct")
    assert folder.find(tmp_path) == tmp_path / "instruct" / "model"
    assert folder.find(tmp_path / "align") == tmp_path / "align" / "model"
    assert folder.find(tmp_path / "align" / "model") == tmp_path / "align" / "model"


def test_a_stage_that_an_earlier_recipe_left_is_not_the_runs(assembled: Assembled, tmp_path: Path) -> None:
    _write_run(assembled, tmp_path, "align", "instruct", "finetune")
    (tmp_path / "recipe.yaml").write_text("train: {align: {}, instruct: {}, finetune: null}\n")
    assert folder.find(tmp_path) == tmp_path / "instruct" / "model"


def test_an_unfinished_stage_is_not_taken_for_a_model(assembled: Assembled, tmp_path: Path) -> None:
    _write_run(assembled, tmp_path, "align", "instruct")
    manifest.begin(tmp_path / "instruct", "stage")  # it is being trained again
    assert folder.find(tmp_path) == tmp_path / "align" / "model"
    with pytest.raises(InputError, match="instruct: an unfinished stage"):
        folder.find(tmp_path / "instruct")
    manifest.begin(tmp_path / "align", "stage")
    with pytest.raises(InputError, match="a run without a finished stage"):
        folder.find(tmp_path)


def _write_run(assembled: Assembled, path: Path, *stages: str) -> None:
    for stage in stages:
        save(assembled, path / stage / "model")
        manifest.Manifest("stage").write(path / stage)
    (path / "recipe.yaml").write_text("train: {" + ", ".join(f"{stage}: {{}}" for stage in stages) + "}\n")


def test_saving_replaces_a_folder_whole_and_leaves_nothing_aside(assembled: Assembled, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")
    (tmp_path / ".model.tmp").mkdir()  # of a save that was killed
    save(assembled, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "old.txt").exists()


LOST = "multi_modal_projector.linear_2.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: change(p, lambda t: t.pop(LOST)), f"'{LOST}' missing"),
        (lambda p: change(p, lambda t: t.update({LOST: t[LOST][:5].clone()})), f"'{LOST}' has shape"),
        (lambda p: change(p, lambda t: t.update({"extra.weight": torch.zeros(2)})), "unexpected tensor 'extra.weight'"),
        (lambda p: (p / "model.safetensors").write_bytes(b"\x10\x00"), "damaged safetensors"),
        (
            lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-100]),
            "damaged safetensors",
        ),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"), "pytorch_model.bin: a pickle"),
        (lambda p: (p / "config.json").unlink(), "no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "not JSON"),
        (lambda p: (p / "config.json").write_text('{"model_type": "gpt2"}'), "not 'llava'"),
        (lambda p: (p / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda p: (p / "tokenizer.json").write_text("{}"), "cannot be read"),
        (lambda p: (p / "chat_template.jinja").unlink(), "no chat_template.jinja"),
        (lambda p: (p / "processor_config.json").unlink(), "no processor_config.json"),
        (lambda p: shutil.rmtree(p), "no such folder"),
    ],
)
def test_a_damaged_folder_is_one_line_that_names_what_is_wrong(
    saved: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(saved)
    with pytest.raises(InputError, match=words) as raised:
        load(saved)
    assert "\n" not in str(raised.value)
    assert "model" in str(raised.value)
