"""Join a vision tower, a projector and a language model into one LLaVA.

In: the recipe's model section, which names the parts: "tiny" (shipped), a local folder or a hub id.
Out: `Assembled`: a plain `LlavaForConditionalGeneration` with a pretrained tower, a pretrained language
model and a fresh projector, and its processor.

    image -> tower (frozen) -> patch features of layer -2 -> projector -> image tokens -+
                                                    text -> tokenizer -> embedding -----+-> language model

What is hard is keeping to the classes that everyone else can load, and still being LLaVA-Med:

- One linear projector (v1.0): Hugging Face's projector always has two layers, so the second is the
  identity with activation "linear" and is never trained (`trainable_parameters`); exact, not close.
- Padding to a square (v1.5): `LlavaImageProcessor` pads with the mean colour when `do_pad` is set, as the
  original's expand2square does, so the folder itself carries the choice to every later loader.
- Wrapped image tokens (v1.0): `<im_start>` and `<im_end>` are written by the chat template.
- New tokens start at the mean of the old embedding rows, which is deterministic and harmless.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionModel,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llavamed.errors import InputError
from llavamed.model import chat, folder
from llavamed.model.folder import Assembled
from llavamed.recipe import ModelSection, Part

__all__ = [
    "Assembled",
    "build",
    "clip",
    "init_folder",
    "linear_layers",
    "llava_config",
    "locate",
    "processor",
    "text_config",
    "tower",
    "tower_config",
    "trainable_parameters",
]

# model_type of a checkpoint -> (tower class, its tokens beside the patches); the pair is CLIP's class token
TOWERS = {
    "clip": (CLIPVisionModel, 1),
    "clip_vision_model": (CLIPVisionModel, 1),
    "siglip": (SiglipVisionModel, 0),
    "siglip_vision_model": (SiglipVisionModel, 0),
}

# where each part lives in the model
PREFIXES: dict[Part, tuple[str, ...]] = {
    "projector": ("model.multi_modal_projector.",),
    "language_model": ("model.language_model.", "lm_head."),
    "vision_tower": ("model.vision_tower.",),
}

_BIG_VOCABULARY = 8192  # from here on rows are padded to a multiple of 64, which GPUs multiply faster


def build(section: ModelSection, seed: int, dtype: torch.dtype = torch.float32) -> Assembled:
    """The model that the section names, on the CPU. The same seed gives the same projector, bit for bit.

    Raises InputError if a part cannot be had or is of a kind that LLaVA cannot use.
    """
    if section.init_from is not None:
        return folder.load(init_folder(section), dtype)
    tower = _load(TOWERS[tower_config(section.vision_tower).model_type][0], section.vision_tower, "vision_tower", dtype)
    language_model = _load(AutoModelForCausalLM, section.language_model, "language_model", dtype)
    if not hasattr(language_model, "lm_head") or not hasattr(language_model, "model"):
        raise InputError(
            f"language_model {section.language_model!r}: a {type(language_model).__name__} cannot be joined; "
            "use a Llama, Mistral or Qwen2 checkpoint"
        )
    tokenizer = _tokenizer(section)
    _grow_vocabulary(language_model, len(tokenizer))
    processing = _processor(section, tokenizer, tower.config)
    config = llava_config(section, tower.config, language_model.config, processing.image_token_id)
    config.dtype = dtype
    with torch.device("meta"):  # no memory for weights that are replaced in the next lines
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = language_model.model
    model.lm_head = language_model.lm_head
    model.model.multi_modal_projector = _projector(section, config, language_model, seed).to(dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return Assembled(model.eval(), processing)


def trainable_parameters(
    model: LlavaForConditionalGeneration, parts: Collection[Part]
) -> dict[Part, dict[str, nn.Parameter]]:
    """Freeze everything but `parts` and return what is left, by part and by name in memory.

    The second layer of a one-layer projector is the identity and stays frozen. A tied output layer is
    listed once, as the embedding.
    """
    chosen: dict[Part, dict[str, nn.Parameter]] = {part: {} for part in PREFIXES if part in parts}
    one_layer = model.config.projector_hidden_act == "linear"
    for name, parameter in model.named_parameters():
        part = next(part for part, prefixes in PREFIXES.items() if name.startswith(prefixes))
        identity = one_layer and name.startswith("model.multi_modal_projector.linear_2.")
        trains = part in chosen and not identity
        parameter.requires_grad_(trains)
        if trains:
            chosen[part][name] = parameter
    return chosen


def linear_layers(model: LlavaForConditionalGeneration, part: Part) -> dict[str, nn.Linear]:
    """The linear layers in a part's transformer blocks (attention and MLP) by name in memory: what LoRA adapts."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and name.startswith(PREFIXES[part])
    }


def processor(section: ModelSection) -> LlavaProcessor:
    """The processor alone, as `build` would make it: no weights are read."""
    if section.init_from is not None:
        return folder.load_processor(init_folder(section))
    return _processor(section, _tokenizer(section), tower_config(section.vision_tower))


def init_folder(section: ModelSection) -> Path:
    """The model folder that `init_from` means. Raises InputError if other keys of the section are set beside it:
    that folder decides them all, and a wish that is not granted must be told."""
    assert section.init_from is not None
    beside = section.model_dump(exclude={"init_from"}, exclude_defaults=True)
    if beside:
        told = ", ".join(f"model.{key}={value}" for key, value in beside.items())
        raise InputError(f"{told}: without effect beside model.init_from={section.init_from}; leave one of them out")
    return folder.find(Path(section.init_from).expanduser())


def llava_config(section: ModelSection, vision_config: Any, text_config: Any, image_token_id: int) -> LlavaConfig:
    """The joined model's config from those of its parts."""
    layers = vision_config.num_hidden_layers
    if not -layers - 1 <= section.feature_layer <= layers:
        raise InputError(f"model.feature_layer {section.feature_layer}: the tower has {layers} layers")
    return LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=image_token_id,
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        projector_hidden_act="gelu" if section.projector_layers == 2 else "linear",
        vision_feature_select_strategy="default" if TOWERS[vision_config.model_type][1] else "full",
        vision_feature_layer=section.feature_layer,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def locate(name: str, part: Part) -> str:
    """What transformers should load for a part: a folder's path, or the hub id unchanged."""
    if name == "tiny":
        shipped = Path(str(resources.files("llavamed") / "demo" / "base" / part))
        if not shipped.is_dir():
            raise InputError(f"{shipped}: the shipped tiny parts are missing; install llavamed again")
        return str(shipped)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{part} {name!r}: no such folder; give a folder, a hub id (owner/name) or 'tiny'")
    return name


def tower(name: str) -> tuple[Any, Any]:
    """A pretrained vision tower (float32, for inference) and its own image processor."""
    kind = TOWERS[tower_config(name).model_type][0]
    return _load(kind, name, "vision_tower", torch.float32).eval(), _image_processor(name)


def clip(name: str) -> tuple[Any, Any, Any]:
    """A whole CLIP or SigLIP (float32, for inference), its image processor and its tokenizer. Raises InputError for
    one that is only a tower."""
    config = _ask(lambda place: AutoConfig.from_pretrained(place), name, "vision_tower")
    if config.model_type not in ("clip", "siglip"):
        raise InputError(
            f"{name!r}: model_type {config.model_type!r} has no text half to compare pictures with; give a CLIP or "
            "SigLIP with both, or train a probe on the tower with `llavamed corpus train-domain`"
        )
    tokenizer = _ask(lambda place: AutoTokenizer.from_pretrained(place), name, "vision_tower")
    return _load(AutoModel, name, "vision_tower", torch.float32).eval(), _image_processor(name), tokenizer


def tower_config(name: str) -> Any:
    """The tower's own config; of a whole CLIP or SigLIP, that of its vision half."""
    config = _ask(lambda place: AutoConfig.from_pretrained(place), name, "vision_tower")
    if config.model_type not in TOWERS:
        raise InputError(
            f"vision_tower {name!r}: model_type {config.model_type!r} cannot serve as a tower; "
            f"use one of {', '.join(TOWERS)}"
        )
    return getattr(config, "vision_config", config)


def text_config(name: str) -> Any:
    """The language model's own config."""
    return _ask(lambda place: AutoConfig.from_pretrained(place), name, "language_model")


def _load(kind: Any, name: str, part: Part, dtype: torch.dtype) -> Any:
    """A pretrained part; a tensor that it lacks is an error here, where transformers would draw it at random."""
    model, info = _ask(
        lambda place: kind.from_pretrained(
            place, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        ),
        name,
        part,
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            what, first = problem.replace("_keys", " tensors"), min(map(str, info[problem]))
            raise InputError(f"{part} {name!r}: {what}, first {first!r}; the checkpoint is damaged: fetch it again")
    return model


def _ask(call: Any, name: str, part: Part) -> Any:
    place = locate(name, part)
    try:
        with folder.quiet():
            return call(place)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        if Path(place).is_dir():
            advice = "the folder must hold config.json, safetensors weights and the tokenizer or preprocessor files"
        else:
            advice = f"fetch it where there is a network with `hf download {name}`, or give a local folder"
        raise InputError(f"{part} {name!r} cannot be loaded; {advice} ({reason})") from None


def _tokenizer(section: ModelSection) -> Any:
    """The language model's tokenizer with `<image>` and a pad token."""
    tokenizer = _ask(lambda place: AutoTokenizer.from_pretrained(place), section.language_model, "language_model")
    if not tokenizer.is_fast:
        raise InputError(
            f"language_model {section.language_model!r}: no tokenizer.json; supervised tokens are found by its "
            "offsets. Load and save it once with transformers' AutoTokenizer (needs sentencepiece)"
        )
    if tokenizer.eos_token is None:
        raise InputError(f"language_model {section.language_model!r}: its tokenizer has no end-of-text token")
    wanted = [chat.IMAGE_TOKEN, *((chat.IMAGE_START, chat.IMAGE_END) if section.image_wrap else ())]
    tokenizer.add_special_tokens({"additional_special_tokens": wanted}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.padding_side = "left"  # answers are generated at the right end
    return tokenizer


def _grow_vocabulary(language_model: Any, tokens: int) -> None:
    """Rows for new tokens, each at the mean of the old rows; none if there are enough."""
    rows = language_model.get_input_embeddings().num_embeddings
    if tokens <= rows:
        return
    multiple = 64 if tokens >= _BIG_VOCABULARY else None
    language_model.resize_token_embeddings(tokens, pad_to_multiple_of=multiple, mean_resizing=False)
    for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        with torch.no_grad():
            layer.weight[rows:] = layer.weight[:rows].float().mean(0).to(layer.weight.dtype)


def _image_processor(name: str) -> Any:
    return _ask(lambda place: AutoImageProcessor.from_pretrained(place, backend="pil"), name, "vision_tower")


def _processor(section: ModelSection, tokenizer: Any, vision_config: Any) -> LlavaProcessor:
    """Images to the tower's square, by the tower's own mean, deviation and resampling."""
    own = _image_processor(section.vision_tower)
    side = vision_config.image_size
    # CLIP keeps the shape and cuts the middle out; SigLIP squeezes (its own size is already height and width)
    squeezes = not getattr(own, "do_center_crop", False)
    image_processor = LlavaImageProcessorPil(
        do_pad=section.pad_to_square,
        size={"height": side, "width": side} if squeezes or section.pad_to_square else {"shortest_edge": side},
        do_center_crop=not squeezes,
        crop_size={"height": side, "width": side},
        resample=own.resample,
        image_mean=list(own.image_mean),
        image_std=list(own.image_std),
        do_convert_rgb=True,
    )
    additional = TOWERS[vision_config.model_type][1]
    template = chat.template(section.chat_template, section.image_wrap)
    tokenizer.chat_template = template
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy="default" if additional else "full",
        num_additional_image_tokens=additional,
        chat_template=template,
    )


def _projector(section: ModelSection, config: LlavaConfig, language_model: Any, seed: int) -> LlavaMultiModalProjector:
    """A fresh projector in float32, drawn as torch draws its linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = LlavaMultiModalProjector(config)
    with torch.no_grad():
        if section.projector_layers == 1:
            nn.init.eye_(projector.linear_2.weight)
            nn.init.zeros_(projector.linear_2.bias)
        if section.projector_init == "mean_embedding":
            last = projector.linear_1 if section.projector_layers == 1 else projector.linear_2
            last.weight.zero_()
            last.bias.copy_(language_model.get_input_embeddings().weight.float().mean(0))
    return projector
