"""A recipe: everything that decides what a run makes, in one YAML file.

    extends: tiny                 # an experiment states only its differences
    train:
      instruct: {learning_rate: 1.0e-3}

`load("tiny")` reads a shipped recipe by name or any file by path, follows `extends`, applies
`--set a.b=value` overrides and validates the whole. An unknown key is an error that names the
nearest valid one: a misspelt `learning_rte` must never train silently with the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from llavamed.errors import InputError
from llavamed.printing import public_name

Part = Literal["projector", "language_model", "vision_tower"]
Control = Literal["real", "blank", "shuffled", "noise", "text-only", "rotated"]
OptimizerState = Literal["float32", "bfloat16", "int8"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """Which parts are joined. A part is a shipped name ("tiny"), a local folder, or a hub id."""

    vision_tower: str = "tiny"
    language_model: str = "tiny"
    init_from: str | None = None  # a finished LLaVA folder to go on from, instead of the two parts
    projector_layers: Literal[1, 2] = 2  # 1: v1.0's single linear layer; 2: v1.5's MLP with GELU
    projector_init: Literal["random", "mean_embedding"] = "random"  # v1.5 starts at zero + the mean token embedding
    feature_layer: int = -2  # the tower's layer whose patch features are used
    image_wrap: bool = False  # v1.0 wraps the image tokens in <im_start> ... <im_end>
    chat_template: Literal["mistral", "vicuna"] = "mistral"
    pad_to_square: bool = True


class CorpusSection(_Section):
    """Which pairs are kept."""

    articles: str | None = None  # folder of articles to build from
    licence: str = "commercial"  # commercial, noncommercial, any, or families by name: "commercial,CC-BY-ND"
    format: Literal["webdataset", "hf"] = "webdataset"  # tars, or Parquet with an Image feature
    min_side: int = Field(default=32, gt=0)  # pixels
    max_pixels: int = Field(default=40_000_000, gt=0)
    max_aspect: float = Field(default=8.0, ge=1)  # long side / short side
    min_caption_words: int = Field(default=3, ge=0)
    panels: bool = False  # also cut compound figures into panels, each with its part of the caption


class InstructSection(_Section):
    """How pairs become conversations."""

    teacher: str = "template"  # "template" (offline), an OpenAI-compatible base URL, or "env": LLAVAMED_TEACHER_URL
    teacher_model: str = ""  # the model's name at that endpoint
    prompt: str | None = (
        None  # 10k, 60k, 60k-im, detailed, closed or a .yaml file; default: 60k-im, 60k without mentions
    )
    sighted: bool = False  # the teacher gets the image too
    mentions: bool = True  # give the teacher the sentences that cite the figure (the paper's IM variant)
    domains: tuple[str, ...] = ("chest_xray", "ct_scan", "mri", "histology", "gross")
    count: int | None = Field(default=None, gt=0)  # conversations at most, balanced over the domains
    turns: int = Field(default=4, gt=0)  # questions per conversation at most
    max_cost: float | None = Field(default=None, gt=0)  # that the teacher's calls may come to; the rest is not asked
    price: tuple[float, float] | None = (
        None  # per million tokens in and out, where instruct/prices.yaml lacks the model
    )
    without: tuple[
        Literal["schema", "object", "usage", "seed", "max_tokens", "temperature", "stream"], ...
    ] = ()  # what the teacher's endpoint does not take; default: what prices.yaml says, and what the first call tells
    judge: str | None = None  # the base URL of a second model that scores a sample for groundedness
    judge_model: str = ""
    judge_sample: int = Field(default=50, gt=0)  # conversations
    max_concurrency: int = Field(default=256, gt=0)  # calls at once, however many the endpoint bears
    timeout_seconds: float = Field(default=300.0, gt=0)  # of silence, until the endpoint's own pace is known


class LoraSection(_Section):
    """Parts that train through low-rank adapters. The defaults are LLaVA's, whose rates are 2e-4, projector 2e-5."""

    parts: tuple[Literal["language_model", "vision_tower"], ...] = Field(default=("language_model",), min_length=1)
    rank: int = Field(default=128, gt=0)
    alpha: int = Field(default=256, gt=0)  # what an adapter adds is scaled by alpha / rank
    dropout: float = Field(default=0.05, ge=0, lt=1)  # of an adapter's input; 0 saves memory
    quantize: Literal["none", "nf4"] = "none"  # nf4: the language model's frozen layers are kept in 4 bits (QLoRA)

    @field_validator("quantize")
    @classmethod
    def _quantizes_what_is_adapted(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and "language_model" not in info.data.get("parts", ("language_model",)):
            raise ValueError("only the language model is quantised, and it is not in lora.parts")
        return value


class StageSection(_Section):
    """One training stage. `batch_size` counts examples per optimizer step over all ranks."""

    data: str | None = None  # conversations .jsonl; set by `llavamed run` when the recipe makes its own
    images: str | None = None  # a corpus folder, or a folder of image files
    lora: LoraSection | None = None  # its parts train by adapters
    trains: tuple[Part, ...] = ("projector",)  # in full
    learning_rate: float = Field(default=1e-3, gt=0)
    projector_learning_rate: float | None = Field(default=None, gt=0)  # default: learning_rate
    vision_tower_learning_rate: float | None = Field(default=None, gt=0)  # default: learning_rate
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=128, gt=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    loss: Literal["token", "example"] = "token"  # mean over the batch's tokens, or mean of per-example means

    @field_validator("trains")
    @classmethod
    def _trains_once(cls, value: tuple[Part, ...], info: ValidationInfo) -> tuple[Part, ...]:
        lora = info.data.get("lora")
        if lora is None:
            if not value and "lora" in info.data:
                raise ValueError("name at least one part")
            return value
        twice = [part for part in value if part in lora.parts]
        if twice:
            raise ValueError(f"{twice[0]} is in lora.parts too; leave it out here, it trains by its adapters")
        if "language_model" in value:
            raise ValueError("with the language model trained in full there is little to save; leave lora out")
        return value

    @property
    def trained_parts(self) -> tuple[Part, ...]:
        """Those that train, in full or by adapters."""
        return (*self.trains, *(self.lora.parts if self.lora else ()))


class ValidationSection(_Section):
    """What each stage measures on the way (train/validate.py). Held-out records are not trained on."""

    every: int = Field(default=0, ge=0)  # optimizer steps; 0: never
    held_out: int = Field(default=64, gt=0)  # records of each stage
    samples: int = Field(default=4, ge=0)  # of them, answered each time
    benchmark: str | None = None  # a small score on this benchmark ...
    data: str | None = None  # ... read from this folder ...
    questions: int = Field(default=64, gt=0)  # ... with so many of its questions, evenly spaced
    keep: Literal["last", "best"] = "last"  # which step's model the stage leaves, by held-out loss


class TrainSection(_Section):
    """The curriculum: the stages that are present run in this order."""

    align: StageSection | None = None
    instruct: StageSection | None = None
    finetune: StageSection | None = None
    max_tokens: int = Field(default=2048, gt=0)  # longest example, image tokens included
    tokens_per_pack: int = Field(default=8192, gt=0)  # tokens in one forward pass, of which a CPU may have several
    clip_grad_norm: float = Field(default=1.0, gt=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    checkpoint_in_background: bool | None = None  # by a thread; default: where the state is on a GPU (train/saver.py)
    validation: ValidationSection = ValidationSection()
    stuck_minutes: float = Field(default=10.0, gt=0)  # of several ranks: the run ends when one does nothing for so long
    dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer_state: OptimizerState = "float32"  # AdamW's two moments; "int8" needs the extra [fast]
    recompute: Literal["none", "selective", "full"] = "none"  # of activations, in the backward pass, to save memory
    compile: bool = False  # each layer by torch.compile
    fp8_frozen: bool = False  # stages that freeze the language model multiply with it in 8 bits
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()  # beside metrics.jsonl


class EvaluateSection(_Section):
    benchmarks: tuple[str, ...] = ()
    data: str | None = None  # folder of the benchmark's files
    controls: tuple[Control, ...] = get_args(Control)  # those that a benchmark cannot have are left out
    ablation: bool = True  # also score the untrained projector and the align-only model
    max_new_tokens: int | None = Field(default=None, gt=0)  # of an answer; default: the benchmark's
    batch_size: int = Field(default=32, gt=0)
    bootstrap: int = Field(default=1000, gt=0)


class DemoSection(_Section):
    """The phantom world's size; ignored by everything else."""

    articles: int = Field(default=1200, gt=0)
    questions: int = Field(default=600, gt=0)
    image_size: int = Field(default=160, ge=32)  # pixels


class Recipe(_Section):
    name: str = ""
    about: str = ""
    seed: int = 0
    model: ModelSection = ModelSection()
    corpus: CorpusSection = CorpusSection()
    instruct: InstructSection = InstructSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    demo: DemoSection = DemoSection()


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("llavamed") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """The validated recipe. Raises InputError naming the file, the key and the nearest valid key."""
    tree = _read(name_or_path, seen=())
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: write it as key=value, e.g. --set train.instruct.epochs=2")
        _put(tree, key.strip().split("."), _yaml(value, f"--set {override}"), override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"recipe {name_or_path}: {_explain(error)}") from None


def changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced: `changed(r, {"train.align.data": "x.jsonl"})`. Raises InputError."""
    tree = recipe.model_dump(mode="json")
    for key, value in values.items():
        _put(tree, key.split("."), value, f"{key}={value}")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"settings: {_explain(error)}") from None


def to_yaml(recipe: Recipe) -> str:
    """For files that others read: addresses lose the user name, password and query that they may hold."""
    return yaml.safe_dump(_public(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _public(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _public(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_public(value) for value in tree]
    return public_name(tree) if isinstance(tree, str) else tree


def _read(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name_or_path)
    is_file = path.suffix in {".yaml", ".yml"}
    name = str(path.resolve()) if is_file else name_or_path
    if name in seen:
        raise InputError(f"recipe {name_or_path}: extends itself ({' -> '.join((*seen, name))})")
    if is_file:
        if not path.is_file():
            raise InputError(f"recipe {path}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"recipe {path}: not UTF-8; save the file as UTF-8") from None
    else:
        names = shipped()
        if name not in names:
            raise InputError(
                f"recipe {name!r}: not shipped{_nearest(name, names)}; "
                f"give one of {', '.join(names)}, or the path of a .yaml file"
            )
        text = (resources.files("llavamed") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    tree = _yaml(text, f"recipe {name_or_path}")
    if not isinstance(tree, dict):
        raise InputError(f"recipe {name_or_path}: must be a mapping of sections, not {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    beside = path.parent / str(parent)
    base = _read(str(beside) if beside.suffix and beside.is_file() else str(parent), (*seen, name))
    return _merge(base, tree)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _put(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        child = tree.get(key)
        if child is None:
            child = tree[key] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {override}: {key!r} is a value, not a section")
        tree = child
    tree[keys[-1]] = value


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML ({' '.join(str(error).split())})") from None


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {where!r}{_nearest(where, list(_keys(Recipe)))}")
        else:
            problems.append(f"{where}: {item['msg']} (got {item.get('input')!r})")
    return "; ".join(problems)


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _keys(section: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, info in section.model_fields.items():
        key = f"{prefix}{name}"
        yield key
        for kind in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{key}.")
