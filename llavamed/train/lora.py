"""Low-rank adapters: a part is trained by what is added to its matrices, in a fraction of the memory.

LoRA (Hu et al., arXiv:2106.09685) freezes a matrix W and trains W + (alpha / rank) B A, where A has `rank` rows and
B `rank` columns and starts at zero: gradients and moments are kept for A and B alone. QLoRA (Dettmers et al.,
arXiv:2305.14314) keeps the frozen W in 4 bits ("nf4") besides. Here peft puts the adapters on every linear layer of
the part's attention and MLP, and bitsandbytes quantises those of the language model, never the vision tower or the
projector, which are small. Both libraries run on CUDA and on the CPU; the tests ran on the CPU alone.

In: an assembled model and the stage's section. Out, beside the stage's `model/`:

    adapter/adapter_config.json, adapter_model.safetensors    as peft writes them; PeftModel.from_pretrained reads them
    adapter/llavamed.json                                     the base: where it is, what it is made of, its sha256
    adapter/README.md, the processor's files

The hard thing is that an adapter means nothing without its base, and that people move and share it alone. So
the folder holds all but the base: the projector whether or not it trained (in peft's terms a module to save), the
tokenizer, the chat template. The sha256 is over the base's tensors and not its files: a base in other shards
or put together again from the hub is recognised, and a wrong one is refused, naming the part.

`model/` has the adapters merged in: a plain folder, which later stages, `eval` and `serve` use as any other. The sum
is taken in float32 and rounded once. After QLoRA it goes into the unquantised W, read again from the folder that
the stage started from, so that the adapter fits the published base; that is not quite the model that was trained
(docs/experiments.md has the difference).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llavamed.errors import InputError
from llavamed.manifest import Manifest, write_atomic
from llavamed.model import folder as model_folder
from llavamed.model.chat import prompt
from llavamed.model.folder import ADAPTER_CONFIG, Assembled
from llavamed.model.parts import PREFIXES, build, linear_layers, trainable_parameters
from llavamed.recipe import LoraSection, ModelSection, Part, StageSection
from llavamed.records import user

FOLDER = "adapter"  # in a stage's folder
_WEIGHTS = "adapter_model.safetensors"
_ABOUT = "llavamed.json"
_PEFT = "base_model.model."  # peft's prefix of every tensor it stores
_NAME = "default"  # of the adapter in memory; peft leaves it out on disk
_MODULES: dict[Part, str] = {"projector": "multi_modal_projector", "vision_tower": "vision_tower"}


def require(lora: LoraSection | None) -> None:
    """Raises InputError with the command to install what `lora` needs."""
    for module, needed in (("peft", lora is not None), ("bitsandbytes", lora is not None and lora.quantize != "none")):
        if needed:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise InputError(
                    f'adapters need {module}, which cannot be imported ({error}); pip install "llavamed[lora]"'
                ) from None


def trainable(assembled: Assembled, stage: StageSection, seed: int) -> dict[Part, dict[str, nn.Parameter]]:
    """Attach the stage's adapters, freeze all that does not train and return the rest, by part and name in memory.

    The same seed gives the same adapters. Layers are quantised when the model is next moved to a device.
    """
    model = assembled.model
    if stage.lora is None:
        return trainable_parameters(model, stage.trains)
    require(stage.lora)
    config = _peft_config(model, stage.lora)
    if stage.lora.quantize == "nf4":
        assert assembled.folder is not None, "the unquantised weights are read again at the end"
        _quantize(model)
    _inject(model, config, seed)
    chosen = trainable_parameters(model, stage.trains)
    for part in stage.lora.parts:
        chosen[part] = {
            name: parameter.requires_grad_(True)
            for name, parameter in model.named_parameters()
            if ".lora_" in name and name.startswith(PREFIXES[part])
        }
    return chosen


def finish(assembled: Assembled, stage: StageSection, out: Path, made_from: Manifest) -> None:
    """Write the adapter folder `out` and merge the adapters into `assembled`, which is a plain model again."""
    assert stage.lora is not None
    model = assembled.model
    dtype = model.lm_head.weight.dtype  # of a part that is never trained in full here
    model.to("cpu")
    for part in stage.trains:
        model.get_submodule(f"model.{_MODULES[part]}").to(dtype)
    adapters = _detach(assembled)
    config = _peft_config(model, stage.lora)
    config.inference_mode = True
    config.base_model_name_or_path = assembled.folder and str(assembled.folder.resolve())
    whole: list[Part] = ["projector", *(part for part in stage.trains if part != "projector")]
    config.modules_to_save = [_MODULES[part] for part in whole]
    tensors = {f"{_PEFT}{name}": tensor for name, tensor in adapters.items()}
    tensors |= {
        f"{_PEFT}{name}": tensor
        for name, tensor in model.state_dict().items()
        if any(name.startswith(PREFIXES[part]) for part in whole)
    }
    about = {
        "llavamed": version("llavamed"),
        "stage": made_from.settings.get("name"),
        "fingerprint": made_from.fingerprint,
        "trains": list(stage.trains),
        "lora": stage.lora.model_dump(mode="json"),
        "base": {
            "folder": assembled.folder and os.path.relpath(assembled.folder, out),
            "model": made_from.extra.get("model"),
            "dtype": str(dtype).removeprefix("torch."),
            "sha256": {part: part_sha256(model, part) for part in PREFIXES if part not in whole},
        },
    }
    with model_folder.replaced(out) as aside:
        config.save_pretrained(aside)
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, aside / _WEIGHTS, {"format": "pt"})
        model_folder.write_processor(assembled.processor, aside)
        write_atomic(aside / _ABOUT, json.dumps(about, indent=1) + "\n")
        write_atomic(aside / "README.md", _readme(stage, about))
    _merge(model, adapters, config.lora_alpha / config.r)


def apply(path: Path, base: Path | None = None) -> Assembled:
    """The adapter of a folder (or of a finished stage) on its base, on the CPU, for inference.

    `base` is a model folder; without it the one the adapter was trained on, or, where that is gone, the recipe's
    parts joined again. Raises InputError if it is not the same base, naming the part.
    """
    require(LoraSection())
    import peft

    folder = _find(path)
    about, tensors = _read_about(folder), _read_tensors(folder)
    assembled = _base(folder, about["base"], base)
    model = assembled.model
    for part, expected in about["base"]["sha256"].items():
        if part_sha256(model, part) != expected:
            raise InputError(
                f"{folder}: was not trained on the {part} of {assembled.folder or 'the recipe'}; "
                "give its own base with --base"
            )
    config = peft.PeftConfig.from_pretrained(str(folder))
    config.modules_to_save = None  # they are put in place here
    with torch.no_grad():
        _inject(model, config, seed=0)
        live = model.state_dict()
        missing = {name for name in live if ".lora_" in name}
        for name, tensor in tensors.items():
            where = re.sub(r"\.(lora_[AB])\.weight$", rf".\1.{_NAME}.weight", name)
            if where not in live or live[where].shape != tensor.shape:
                raise InputError(f"{folder / _WEIGHTS}: tensor {name!r} does not fit the base; copy the adapter again")
            live[where].copy_(tensor)
            missing.discard(where)
    if missing:
        raise InputError(f"{folder / _WEIGHTS}: no tensor for {min(missing)!r}; copy the adapter again")
    model.requires_grad_(False)
    return Assembled(model.eval(), model_folder.read_processor(folder), assembled.folder)


def merge(assembled: Assembled) -> None:
    """Add the adapters that `apply` attached to the weights they stand beside: a plain model remains."""
    config = assembled.model.peft_config[_NAME]
    _merge(assembled.model, _detach(assembled), config.lora_alpha / config.r)


@dataclass(frozen=True)
class Merged:
    """`difference` is the largest between the logits of the merged model and of the base with its adapters."""

    base: str
    adapters: int  # matrices
    difference: float
    largest: float  # logit, to compare `difference` with


def merge_folder(path: Path, out: Path, base: Path | None = None) -> Merged:
    """Write the adapter merged into its base to `out`, a plain model folder, and prove on a probe that both agree.

    In float32 they must to 1e-5 of the largest logit; in bfloat16 the merged weights are rounded, and the difference
    is told.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: there is something already; give a new folder")
    assembled = apply(path, base)
    adapters = sum(name.endswith(f".lora_A.{_NAME}.weight") for name in assembled.model.state_dict())
    before = _probe(assembled)
    merge(assembled)
    after = _probe(assembled)
    merged = Merged(
        str(assembled.folder or "the recipe's parts"),
        adapters,
        float((after - before).abs().max()),
        float(before.abs().max()),
    )
    if assembled.model.dtype == torch.float32 and not merged.difference <= 1e-5 * max(1.0, merged.largest):
        raise RuntimeError(f"{path}: merged logits differ by {merged.difference:.1e} from the adapter's")
    model_folder.save(assembled, out)
    return merged


def part_sha256(model: Any, part: Part) -> str:
    """Over names, types and bytes of a part's tensors, however the files that they came in were cut."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(PREFIXES[part]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _peft_config(model: Any, lora: LoraSection) -> Any:
    """For a model without adapters."""
    import peft

    patterns = []
    for part in lora.parts:
        leaves = sorted({name.rpartition(".")[2] for name in linear_layers(model, part)})
        patterns.append(rf"{re.escape(PREFIXES[part][0])}(.+\.)?layers\.\d+\.(.+\.)?({'|'.join(leaves)})")
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join(patterns),
        task_type="CAUSAL_LM",
    )


def _inject(model: Any, config: Any, seed: int) -> None:
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model, _NAME)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # also beside bfloat16


def _quantize(model: Any) -> None:
    """The language model's linear layers as nf4, with double quantisation: 4.13 bits a weight."""
    import bitsandbytes as bnb

    for name, layer in linear_layers(model, "language_model").items():
        small = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=False,
            compute_dtype=layer.weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=small
        )
        small.bias = layer.bias
        model.set_submodule(name, small)
    model.is_loaded_in_4bit = True  # where peft looks to choose its layer


def _detach(assembled: Assembled) -> dict[str, torch.Tensor]:
    """Take the adapters out, by name on disk, and leave the plain base, unquantised."""
    from peft.tuners.lora import LoraLayer

    model: Any = assembled.model
    quantized = getattr(model, "is_loaded_in_4bit", False)
    plain: Any = None
    if quantized:
        assert assembled.folder is not None
        plain = model_folder.load(assembled.folder, model.lm_head.weight.dtype).model
        del model.is_loaded_in_4bit
    adapters: dict[str, torch.Tensor] = {}
    for name, layer in [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]:
        for matrix in ("lora_A", "lora_B"):
            adapters[f"{name}.{matrix}.weight"] = getattr(layer, matrix)[_NAME].weight.detach().float()
        base = layer.get_base_layer()
        model.set_submodule(name, base if type(base) is nn.Linear else plain.get_submodule(name))
    del model.peft_config
    return adapters


def _merge(model: Any, adapters: Mapping[str, torch.Tensor], scaling: float) -> None:
    for name, a in adapters.items():
        if name.endswith(".lora_A.weight"):
            layer = model.get_submodule(name.removesuffix(".lora_A.weight"))
            b = adapters[name.replace(".lora_A.", ".lora_B.")]
            layer.weight.data = (layer.weight.data.float() + scaling * (b @ a)).to(layer.weight.dtype)
            layer.weight.requires_grad_(False)


def _find(path: Path) -> Path:
    for folder in (Path(path), Path(path) / FOLDER):
        if (folder / ADAPTER_CONFIG).is_file():
            return folder
    raise InputError(f"{path}: no {ADAPTER_CONFIG}, so no adapter is here; give an adapter folder or a stage's")


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / _ABOUT
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no {_ABOUT}, so llavamed did not make it; merge it with peft itself") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy the adapter again") from None
    if not isinstance(body, dict) or not {"folder", "model", "dtype", "sha256"} <= body.get("base", {}).keys():
        raise InputError(f"{path}: does not say what the base is; copy the adapter again")
    return body


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """By name in memory, without the adapter's."""
    try:
        stored = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / _WEIGHTS}: cannot be read ({error}); copy the adapter again") from None
    return {name.removeprefix(_PEFT): tensor for name, tensor in stored.items()}


def _base(folder: Path, about: Mapping[str, Any], given: Path | None) -> Assembled:
    dtype: torch.dtype = getattr(torch, about["dtype"])
    if given is not None:
        return model_folder.load(given, dtype)
    beside = folder / about["folder"] if about["folder"] else None
    if beside is not None and (beside / "config.json").is_file():
        return model_folder.load(beside, dtype)
    if about["model"] is None:
        raise InputError(f"{folder}: its base is not at {beside}; give it with --base")
    try:
        return build(ModelSection.model_validate(about["model"]), 0, dtype)
    except InputError as error:
        raise InputError(f"{folder}: its base is not at {beside}; give it with --base (or: {error})") from None


@torch.no_grad()
def _probe(assembled: Assembled) -> torch.Tensor:
    """Logits (tokens, vocabulary) of a question about a noise image."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    text = prompt(assembled.processor, [user("What is shown in this image?", images=1)])
    inputs = assembled.processor(images=noise, text=text, return_tensors="pt", add_special_tokens=False)
    inputs["pixel_values"] = inputs["pixel_values"].to(assembled.model.dtype)
    logits: torch.Tensor = assembled.model(**inputs).logits[0].float()
    return logits


def _readme(stage: StageSection, about: Mapping[str, Any]) -> str:
    assert stage.lora is not None
    base, model = about["base"], about["base"]["model"] or {}
    made_of = "".join(
        f"- {part.replace('_', ' ')}: `{model[part]}`\n" for part in ("vision_tower", "language_model") if part in model
    )
    also = ", ".join(_MODULES[part] for part in stage.trains)
    return f"""---
library_name: peft
---
# Adapters of the stage {about["stage"]!r}

Rank {stage.lora.rank}, alpha {stage.lora.alpha}, on: {", ".join(stage.lora.parts)}.
Trained in full beside them: {also or "nothing"}.
The projector, the tokenizer and the chat template are in this folder; the base is not:

- a LLaVA folder (`LlavaForConditionalGeneration`), {base["dtype"]}; at first it was `{base["folder"]}`, seen from here
{made_of}
`llavamed.json` has the sha256 of its tensors. To make a plain model of both, and check that it answers alike:

    llavamed merge THIS_FOLDER --out merged [--base LLAVA_FOLDER]

Or with peft: `PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(LLAVA_FOLDER), THIS_FOLDER)`.
"""
