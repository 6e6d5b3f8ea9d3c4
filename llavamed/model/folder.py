"""A model as a folder that anyone can load, and such a folder as a model.

Out: `save` writes a plain Hugging Face LLaVA folder: safetensors (in shards above 5 GB), `config.json`,
`generation_config.json` (greedy), processor, tokenizer and `chat_template.jinja`. It loads through
`AutoModelForImageTextToText` and `AutoProcessor` where llavamed is not installed.

In: `load` takes such a folder, a finished stage folder (it has `model/`) or a run folder (its last finished
stage counts), and is strict: a missing, unexpected or wrongly shaped tensor is an InputError that names it.

The hard thing is the tensors' names. transformers 5 renamed LLaVA's modules in memory (the tower lost its
`vision_model` level) and its `save_pretrained` writes whichever layout the model came from, one of them
readable by no server. So the names on disk are ours to write: the classic layout of the llava-hf
checkpoints, which transformers, vLLM and SGLang all read. The map is the table `NAMES`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llavamed import manifest
from llavamed.errors import InputError

SHARD_BYTES = 5_000_000_000

# in memory (transformers 5) -> on disk (classic llava-hf); the first prefix that fits is used
NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.vision_tower.", "vision_tower.vision_model."),
)

# other layouts that are read: what transformers 5 writes by itself; regular expression -> in memory
_OTHER_LAYOUTS = (
    (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^vision_tower\.", "model.vision_tower."),
    (r"^language_model\.(?!model\.|lm_head\.)", "model.language_model."),
)

# buffers that old checkpoints stored and that are computed today
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")

RECIPE = "recipe.yaml"  # of a run
ADAPTER_CONFIG = "adapter_config.json"  # peft's name for it
STAGES_LAST_FIRST = ("finetune", "instruct", "align")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass
class Assembled:
    """A model and all that turns people's text and images into its inputs."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    folder: Path | None = None  # where it was loaded from


def disk_name(name: str) -> str:
    """The classic llava-hf name of a tensor; `name` is the one in memory."""
    for memory, disk in NAMES:
        if name.startswith(memory):
            return disk + name.removeprefix(memory)
    raise AssertionError(f"no place on disk for {name}")


def memory_name(name: str) -> str:
    """The name in memory of a tensor on disk, in the classic layout or in transformers' own."""
    for memory, disk in NAMES:
        if name.startswith(disk):
            return memory + name.removeprefix(disk)
    for pattern, memory in _OTHER_LAYOUTS:
        renamed, count = re.subn(pattern, memory, name)
        if count:
            return renamed
    return name


def save(assembled: Assembled, path: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the folder aside and rename it into place; a folder already there is replaced whole."""
    with replaced(Path(path)) as aside:
        _write_weights(assembled.model, aside, shard_bytes)
        _write_config(assembled, aside)
        write_processor(assembled.processor, aside)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """An empty folder to write; at the end of the block it is on the disk and in the place of `path`."""
    aside, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (aside, old):  # of a save that was killed
        if leftover.exists():
            shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    yield aside
    for file in aside.iterdir():
        _flush(file)
    if path.exists():
        path.rename(old)
        aside.rename(path)
        shutil.rmtree(old)
    else:
        aside.rename(path)
    _flush(path.parent)


def find(path: Path) -> Path:
    """The model folder that `path` means: itself, a finished stage's `model/`, or that of a run's last finished stage.

    A run's stages are those of its `recipe.yaml`: the folder may still hold one that an earlier recipe made.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give a model, stage or run folder")
    if (path / "config.json").is_file():
        return path
    if (path / RECIPE).is_file():
        finished = [stage for stage in _stages(path / RECIPE) if _is_finished(path / stage)]
        if not finished:
            raise InputError(f"{path}: a run without a finished stage; go on with `llavamed train ... --resume`")
        return path / finished[0] / "model"
    if (path / "model" / "config.json").is_file():
        if not _is_finished(path):
            raise InputError(f"{path}: an unfinished stage; train on, or give its model folder to use it as it is")
        return path / "model"
    if (path / ADAPTER_CONFIG).is_file():
        raise InputError(f"{path}: an adapter, not a model; make one of it with `llavamed merge {path}`")
    raise InputError(f"{path}: no config.json, so no model is here; give a model, stage or run folder")


def _stages(recipe: Path) -> list[str]:
    """The stages that a run's recipe trains, the last one first."""
    try:
        tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{recipe}: damaged ({_line(error)}); give a stage folder") from None
    sections = tree.get("train") if isinstance(tree, dict) else None
    return [stage for stage in STAGES_LAST_FIRST if isinstance(sections, dict) and sections.get(stage) is not None]


def _is_finished(stage: Path) -> bool:
    return manifest.read(stage) is not None and (stage / "model" / "config.json").is_file()


def load(path: Path, dtype: torch.dtype | None = None) -> Assembled:
    """The model of a folder, on the CPU, in evaluation mode. `dtype` None keeps the folder's own.

    Raises InputError naming file and tensor if anything is missing, unexpected, damaged or misshapen.
    """
    folder = find(path)
    config = read_config(folder)
    processor = load_processor(folder)
    _check_weights(folder, config)
    with quiet():
        model, info = LlavaForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=dtype or config.dtype or torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    problems = {kind: names for kind, names in info.items() if names and kind != "unexpected_keys"}
    assert not problems, problems  # _check_weights has looked already
    rows = model.get_input_embeddings().num_embeddings
    if len(processor.tokenizer) > rows:
        raise InputError(
            f"{folder}: its tokenizer has {len(processor.tokenizer)} tokens, its embedding {rows} rows; "
            "the two are not of one model"
        )
    return Assembled(model.eval(), processor, folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading without transformers' bars and reports: what they would say is checked here and raised."""
    logs = transformers.logging
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()


def _write_weights(model: LlavaForConditionalGeneration, folder: Path, shard_bytes: int) -> None:
    tensors = {disk_name(name): tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["language_model.lm_head.weight"]  # the loader ties it to the embedding
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = total = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # a clone where memory is shared or strided: safetensors stores each tensor whole
        save_file({k: v.detach().cpu().contiguous() for k, v in shard.items()}, folder / file, {"format": "pt"})
        where.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_config(assembled: Assembled, folder: Path) -> None:
    model, tokenizer = assembled.model, assembled.processor.tokenizer
    config = model.config.to_dict()
    config["architectures"] = ["LlavaForConditionalGeneration"]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    for section in (config, config["text_config"], config["vision_config"]):
        section.pop("_name_or_path", None)
        section.pop("torch_dtype", None)
    for section in (config["text_config"], config["vision_config"]):
        section["dtype"] = config["dtype"]
    _write_json(folder / "config.json", config)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    ).save_pretrained(folder)


def write_processor(processor: LlavaProcessor, folder: Path) -> None:
    """The files that `read_processor` reads, and those that other loaders do."""
    processor.save_pretrained(folder)
    settings = _read_json(folder / "tokenizer_config.json")
    for key in ("is_local", "local_files_only", "name_or_path"):  # how it was loaded here, not what it is
        settings.pop(key, None)
    _write_json(folder / "tokenizer_config.json", settings)
    # vLLM and older transformers read the image part from a file of its own
    processor.image_processor.save_pretrained(folder)


def read_config(folder: Path) -> LlavaConfig:
    """The config of a model folder (as `find` gives it)."""
    body = _read_json(folder / "config.json")
    if body.get("model_type") != "llava":
        raise InputError(
            f"{folder / 'config.json'}: model_type is {body.get('model_type')!r}, not 'llava'; "
            "only LlavaForConditionalGeneration folders are read"
        )
    return LlavaConfig.from_pretrained(folder, local_files_only=True)


def load_processor(path: Path) -> LlavaProcessor:
    """The processor of a folder as `load` gives it, without reading weights."""
    return read_processor(find(path))


def read_processor(folder: Path) -> LlavaProcessor:
    """The processor whose files lie in exactly this folder."""
    for file, hint in (
        ("processor_config.json", "copy it from where the model was made"),
        ("tokenizer.json", "save the tokenizer with transformers' AutoTokenizer, which writes it"),
        ("chat_template.jinja", "copy one of llavamed/model/templates that fits the language model"),
    ):
        if not (folder / file).is_file():
            raise InputError(f"{folder}: no {file}; {hint}")
    settings = _read_json(folder / "processor_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # the PIL backend everywhere: torchvision's resampling differs in the last bits
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except Exception as error:  # noqa: BLE001 - tokenizers raises no narrower kind for a damaged file
        raise InputError(f"{folder}: its tokenizer or image processor cannot be read: {_line(error)}") from None
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=settings.get("patch_size"),
        vision_feature_select_strategy=settings.get("vision_feature_select_strategy"),
        num_additional_image_tokens=settings.get("num_additional_image_tokens", 0),
        chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def _check_weights(folder: Path, config: LlavaConfig) -> None:
    """Compare the names and shapes in the files' headers with those the config asks for."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    found: set[str] = set()
    for file in _weight_files(folder):
        for name, shape in _shapes(file):
            known = memory_name(name)
            if known in expected and shape != expected[known]:
                raise InputError(
                    f"{file}: tensor {name!r} has shape {shape}, the config asks for {expected[known]}; "
                    "weights and config.json are not of one model"
                )
            if known not in expected and not _COMPUTED.search(name):
                raise InputError(f"{file}: unexpected tensor {name!r}; weights and config.json are not of one model")
            found.add(known)
    missing = sorted(set(expected) - found - optional)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{folder}: tensor {disk_name(missing[0])!r}{more} missing from its safetensors; "
            "the checkpoint is incomplete: copy or export it again"
        )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    else:
        files = [folder / "model.safetensors"]
    absent = [file for file in files if not file.is_file()]
    if not absent and files:
        return files
    pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: a pickle, which can run code when it is opened, and is not read; "
            "convert it to safetensors where you trust it"
        )
    raise InputError(
        f"{absent[0] if absent else index}: missing; the checkpoint is incomplete: copy or export it again"
    )


def _shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tuple(tensors.get_slice(name).get_shape())
    except (SafetensorError, struct.error) as error:
        raise InputError(f"{file}: damaged safetensors ({_line(error)}); copy or export it again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({_line(error)}); copy or export the model again") from None
    if not isinstance(body, dict):
        raise InputError(f"{path}: a {type(body).__name__}, not an object; copy or export the model again")
    return body


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """To the disk itself, so that the rename never outlives the bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
