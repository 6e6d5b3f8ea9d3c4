"""Training a 7B LLaVA on one CUDA GPU: is it right, how fast is it, what would the whole curriculum take.

    OUT=/tmp/out python benchmarks/train_gpu.py            under nine minutes
    python benchmarks/train_gpu.py --tiny --out /tmp/out   the same on a CPU with toy shapes: checks the script

Writes `train_gpu.md` and `train_gpu.json`, after every section anew. A section that fails says so in the
table and the next one goes on; one that does not fit into the time is left out and said to be.

Nothing is fetched: shapes are those of the published bases (`llavamed/model/bases.py`), weights are random and made
on the GPU. Speed does not depend on what the weights are, but for the GPU's power draw. It needs torch (2.11 or
later), transformers, numpy and this repository, and not pydantic or typer: it calls the parts of the trainer
that stand below the recipe.

Lengths follow LLaVA-Med's data: a caption has 120 tokens (deviation 1.1 times the mean, log-normal), a conversation
335 with its template (deviation a third of it), 121 and 225 of them supervised; 128 examples a step.

FLOPs are useful ones: 2N a token forward, 2N for the gradient of activations, 2N for that of weights where they
train; the output layer and the last layer's MLP at supervised positions alone; causal attention within documents;
the vision tower's 23 layers once. Padding, recomputation and logits nobody reads count for nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # packs differ in length

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llavamed.model.bases import BASES
from llavamed.train import speed
from llavamed.train.attention import packed, packed_attention
from llavamed.train.forward import Batch, collate, pack_loss
from llavamed.train.fp8 import Fp8Linear, quantise, quantise_tokens
from llavamed.train.optimizer import make_optimizer
from llavamed.train.pack import split

MEASURED_RATE, DATASHEET_RATE = 790.0, 989.0  # TFLOP/s in bfloat16: of an H200, measured at 8192^3; of its datasheet
GIB = 2**30
PAIRS, CONVERSATIONS, EPOCHS = 600_000, 60_000, 3
VOCABULARY, IMAGE_TOKEN = 32_064, 32_000  # as grown for <image>

# version -> tower, language model, projector's activation, tokens beside image tokens, on average: (stage 1, stage 2)
VERSIONS = {
    "v1.5": ("openai/clip-vit-large-patch14-336", "mistralai/Mistral-7B-Instruct-v0.2", "gelu", (140, 335)),
    "v1.0": ("openai/clip-vit-large-patch14", "lmsys/vicuna-7b-v1.3", "linear", (179, 367)),
}
SUPERVISED = (121, 225)
TOY_TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
}  # fmt: skip
TOY_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}

CAPTIONS = (
    "a chest x-ray of the lungs without a finding", "an mri of the brain with a large mass on the left",
    "a ct scan of the abdomen with two small nodules", "a histology slide with dense dark cells",
    "a photograph of a lesion on the right side", "a chest x-ray with an opacity in the lower right lung",
    "an mri of the brain without a finding", "a ct scan of the chest with a large nodule on the left",
)  # fmt: skip


class Bench:
    """What is known so far, and the clock."""

    def __init__(self, out: Path, tiny: bool, minutes: float) -> None:
        self.out, self.tiny, self.deadline = out, tiny, time.monotonic() + 60 * minutes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        assert tiny or self.device.type == "cuda", "no CUDA GPU; --tiny checks the script on a CPU"
        self.compiles = self.device.type == "cuda"
        self.machine: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []
        self.speeds: list[dict[str, Any]] = []
        self.troubles: list[dict[str, str]] = []

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        print(f"-- {name} ({self.left():.0f} s left)", flush=True)
        began = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001  a failure is a finding: it goes into the table
            traceback.print_exc()
            self.troubles.append(
                {"section": name, "what": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            )
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
        self.free()
        self.write()

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def enough_time(self, name: str, seconds: float) -> bool:
        if self.left() > seconds or self.tiny:
            return True
        self.troubles.append({"section": name, "what": f"left out: {self.left():.0f} s left, it takes {seconds:.0f}"})
        return False

    def check(self, what: str, found: float, allowed: float, note: str = "") -> None:
        ok = bool(found <= allowed)
        self.checks.append({"what": what, "found": found, "allowed": allowed, "ok": ok, "note": note})
        print(f"   {'ok ' if ok else 'BAD'} {what}: {found:.3g} (allowed {allowed:.3g}) {note}", flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        everything = {"machine": self.machine, "checks": self.checks, "speeds": self.speeds, "troubles": self.troubles}
        (self.out / "train_gpu.json").write_text(json.dumps(everything, indent=1) + "\n")
        (self.out / "train_gpu.md").write_text(page(everything))


def page(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = ["# Training on one GPU", "", ", ".join(f"{k} {v}" for k, v in machine.items()), "", "## Right?", ""]
    lines += ["| what | found | allowed | |", "|---|---|---|---|"]
    lines += [
        f"| {c['what']} | {c['found']:.3g} | {c['allowed']:.3g} | {'ok' if c['ok'] else 'NOT'} {c['note']} |"
        for c in found["checks"]
    ]
    lines += ["", "## Fast?", ""]
    lines += [
        "| what | tokens/s | examples/s | TFLOP/s | of 790 | of 989 | of this GPU's own | peak, GiB | pack | note |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    own = machine.get("bf16 TFLOP/s at 8192^3") or float("nan")
    for s in found["speeds"]:
        rate, speeds = s["tflops"], f"{s['tokens_per_second']:,.0f} | {s['examples_per_second']:.2f}"
        lines.append(
            f"| {s['version']} {s['what']} | {speeds} | {rate:.4g} "
            f"| {100 * rate / MEASURED_RATE:.1f} % | {100 * rate / DATASHEET_RATE:.1f} % | {100 * rate / own:.1f} % "
            f"| {s['peak_gib']:.1f} | {s['pack']} | {s['note']} |"
        )
    lines += ["", "## Hours for the whole curriculum on this GPU (projected from the rates above)", ""]
    lines += [f"Stage 1: {PAIRS:,} pairs once. Stage 2: {CONVERSATIONS:,} conversations, {EPOCHS} epochs.", ""]
    lines += ["| version | stage 1 | stage 2 | together |", "|---|---|---|---|"]
    for version in VERSIONS:
        rates = {s["what"]: s["full_examples_per_second"] for s in found["speeds"] if s["version"] == version}
        second = rates.get("stage 2, packed, compiled") or rates.get("stage 2, packed")
        for what, rate in rates.items():
            if what.startswith("stage 1"):
                one, two = PAIRS / rate / 3600, CONVERSATIONS * EPOCHS / second / 3600 if second else float("nan")
                lines.append(f"| {version}, {what} | {one:.2f} | {two:.2f} | {one + two:.2f} |")
    lines += ["", "## Trouble", ""]
    lines += [f"- {t['section']}: {t['what']}" for t in found["troubles"]] or ["- none"]
    return "\n".join(lines) + "\n"


# --- the machine ------------------------------------------------------------------------------------------------


def machine(bench: Bench) -> None:
    side = 256 if bench.tiny else 8192
    bench.machine = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(0)
        bench.machine |= {"GPU": card.name, "GiB": round(card.total_memory / GIB, 1)}
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    bench.machine["bf16 TFLOP/s at 8192^3"] = round(_rate(bench, lambda: a @ b, 2 * side**3), 3)
    if bench.device.type == "cuda":
        one = torch.ones((), device=bench.device)
        x, y = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        for fast in (True, False):

            def multiply(fast: bool = fast) -> torch.Tensor:
                return torch._scaled_mm(x, y.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=fast)

            name = f"fp8 TFLOP/s at 8192^3{', fast accumulation' if fast else ''}"
            bench.machine[name] = round(_rate(bench, multiply, 2 * side**3), 1)


def _rate(bench: Bench, body: Callable[[], Any], flops: float) -> float:
    """TFLOP/s, median of ten rounds of ten."""
    taken = []
    for _ in range(13):
        bench.wait()
        began = time.perf_counter()
        for _ in range(10):
            body()
        bench.wait()
        taken.append((time.perf_counter() - began) / 10)
    return flops / statistics.median(taken[3:]) / 1e12


# --- is it right? -----------------------------------------------------------------------------------------------


def attention(bench: Bench) -> None:
    """The packed kernel against a plain computation in float32, document by document; forward and backward."""
    lengths = [57, 1, 130, 16] if bench.tiny else [700, 1, 911, 128, 1300]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=bench.device)
    for heads, kv_heads in ((32, 8), (32, 32)):
        if bench.tiny:
            heads, kv_heads = heads // 8, kv_heads // 8
        generator = torch.Generator(bench.device).manual_seed(0)
        shapes = [(1, n, sum(lengths), 128) for n in (heads, kv_heads, kv_heads)]
        exact = [torch.randn(s, device=bench.device, generator=generator, requires_grad=True) for s in shapes]
        upstream = torch.randn(1, sum(lengths), heads, 128, device=bench.device, generator=generator)
        low = [x.detach().bfloat16().requires_grad_() for x in exact]
        also_low = [x.detach().bfloat16().requires_grad_() for x in exact]
        reference = _by_document(*exact, lengths)
        (reference * upstream).sum().backward()
        plain = _by_document(*also_low, lengths)
        (plain * upstream.bfloat16()).sum().backward()
        out, _ = packed_attention(
            torch.nn.Module(), *low, None, cu_seq_lens_q=ends, max_length_q=max(lengths), scaling=128**-0.5
        )
        (out * upstream.bfloat16()).sum().backward()
        name = f"packed attention, {heads} heads over {kv_heads}"
        rows = [("output", out, plain, reference)]
        rows += [(f"d{n}", a.grad, b.grad, c.grad) for n, a, b, c in zip("qkv", low, also_low, exact, strict=True)]
        for what, ours, theirs, truth in rows:
            bench.check(
                f"{name}: {what}", _away(ours, truth), max(1.5 * _away(theirs, truth), 1e-3), "plain bf16 x 1.5"
            )


def _by_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    out = []
    for qs, ks, vs in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True):
        ks, vs = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (ks, vs))
        scores = qs @ ks.transpose(2, 3) * q.shape[-1] ** -0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        out.append(scores.masked_fill(hidden, -torch.inf).float().softmax(-1).to(vs.dtype) @ vs)
    return torch.cat(out, 2).transpose(1, 2)


def _away(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Distance over the truth's length, in the Euclidean norm."""
    return ((found.float() - truth.float()).norm() / truth.float().norm()).item()


def switches(bench: Bench) -> None:
    """Every way of running the layers against the plain one: loss, and the projector's gradient."""
    text = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    rows = ["trimmed", "selective", "full"] + ["compiled", "compiled, selective"] * bench.compiles
    for what in rows:
        model = small_model(bench, text if bench.device.type == "cuda" else TOY_TEXT)
        stage = stage_of(2)
        freeze(model, stage)
        batch = toy_batch(model, 0).to(bench.device)
        plain = _loss_and_gradient(bench, model, batch)
        recompute = "selective" if "selective" in what else "full" if what == "full" else "none"
        speed.prepare(model, train_of(recompute=recompute, compile="compiled" in what), stage)
        found = _loss_and_gradient(bench, model, batch)
        low = bench.device.type == "cuda"
        bench.check(f"{what}: loss", abs(found[0] - plain[0]) / plain[0], 2e-3 if low else 1e-6, "against plain layers")
        bench.check(f"{what}: projector's gradient", _away(found[1], plain[1]), 3e-2 if low else 1e-4)
        torch._dynamo.reset()


def _loss_and_gradient(bench: Bench, model: Any, batch: Batch) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    with packed(model):
        with bench.autocast():
            loss = pack_loss(model, batch)
        loss.backward()
    return loss.item(), model.model.multi_modal_projector.linear_1.weight.grad.clone()


def fp8_product(bench: Bench) -> None:
    """The 8-bit kernel against the same 8-bit numbers multiplied in float32; forward and backward."""
    rows, wide, narrow = (64, 128, 64) if bench.tiny else (4096, 14336, 4096)
    torch.manual_seed(0)
    linear = torch.nn.Linear(narrow, wide, bias=False, device=bench.device, dtype=torch.bfloat16).requires_grad_(False)
    codes, scale = quantise(linear.weight, linear.weight.abs().max())
    exact = codes.float() * scale
    weight = linear.weight.float()
    layer = Fp8Linear(linear)
    x = torch.randn(rows, narrow, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(rows, wide, device=bench.device, dtype=torch.bfloat16)
    upstream *= torch.logspace(-6, 0, rows, device=bench.device, dtype=torch.bfloat16)[:, None]
    out = layer(x)
    out.backward(upstream)
    x8, upstream8 = (c.float() * s for c, s in (quantise_tokens(x.detach()), quantise_tokens(upstream)))
    bench.check("fp8 product against its emulation", _away(out, x8 @ exact.T), 1e-2)
    assert x.grad is not None
    per_token = [((a - b).norm(dim=1) / b.norm(dim=1)).max().item() for a, b in ((x.grad.float(), upstream8 @ exact),)]
    bench.check("fp8 gradient against its emulation, worst token", per_token[0], 2e-2, "tokens of sizes 1e-6 to 1")
    bench.check("fp8 product against the exact one", _away(out, x.detach().float() @ weight.T), 0.05)


def fp8_curve(bench: Bench) -> None:
    """Two mean loss curves, exact and in fp8, of `align` from several seeds.

    One seed will not do: a difference of 1e-6 decides to which of two neighbours fp8 rounds a number between them,
    and two curves in fp8 that begin so are as far from each other as from the exact one (docs/experiments.md). Where
    they all lie to one side of it, the mean does too.
    """
    steps, seeds = (20 if bench.tiny else 40), range(8)
    exact, found = (np.mean([_curve(bench, seed, steps, fp8) for seed in seeds], axis=0) for fp8 in (False, True))
    apart, end, exact_end = abs(found - exact) / exact, found[-10:].mean(), exact[-10:].mean()
    bench.machine["fp8 curve"] = f"loss {exact[0]:.3f} -> {exact_end:.3f} exact, {end:.3f} in fp8"
    what = f"fp8 loss curve, {steps} steps, mean of {len(seeds)} seeds"
    bench.check(f"{what}: largest step apart", apart.max(), 0.1)
    bench.check(f"{what}: mean distance", apart.mean(), 0.02)
    bench.check(f"{what}: end", abs(end - exact_end) / exact_end, 0.05)


def _curve(bench: Bench, seed: int, steps: int, fp8: bool) -> list[float]:
    """`align`'s losses, [steps], with the shipped tiny parts on eight made-up pictures."""
    base = Path(__file__).resolve().parents[1] / "llavamed" / "demo" / "base"
    tokenizer = AutoTokenizer.from_pretrained(base / "language_model")
    ids = [np.array(tokenizer(c)["input_ids"] + [tokenizer.eos_token_id]) for c in CAPTIONS]
    torch.manual_seed(seed)
    tower = CLIPVisionModel.from_pretrained(base / "vision_tower", dtype=torch.float32)
    text = AutoModelForCausalLM.from_pretrained(base / "language_model", dtype=torch.float32)
    image_token = text.config.vocab_size - 1
    config = LlavaConfig(vision_config=tower.config, text_config=text.config, image_token_index=image_token)
    model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower, model.model.language_model, model.lm_head = tower, text.model, text.lm_head
    stage = stage_of(1, learning_rate=1e-3)
    if bench.device.type == "cuda":
        model.bfloat16()
    model.to(bench.device)
    parameters = freeze(model, stage)
    speed.prepare(model, train_of(fp8_frozen=fp8), stage)
    optimizer = make_optimizer({"projector": parameters}, stage, (0.9, 0.999))
    side, tokens = tower.config.image_size, (tower.config.image_size // tower.config.patch_size) ** 2
    rng = np.random.default_rng(seed)
    pictures = rng.standard_normal((len(ids), 3, 8, 8)).repeat(side // 8, 2).repeat(side // 8, 3).astype(np.float32)
    losses = []
    with packed(model):
        for _ in range(steps):
            order = rng.permutation(len(ids))
            noisy = pictures[order] + 0.3 * rng.standard_normal((len(ids), 3, side, side)).astype(np.float32)
            documents = [np.concatenate([[1], [image_token] * tokens, ids[i]]) for i in order]
            supervised = [np.arange(len(d)) > tokens for d in documents]
            weights = np.full(len(ids), 1 / sum(len(i) for i in ids))
            batch = collate(documents, supervised, weights, noisy, image_token).to(bench.device)
            with bench.autocast():
                loss = pack_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def small_model(bench: Bench, text: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=AutoConfig.for_model(**TOY_TOWER),
        text_config=AutoConfig.for_model("mistral", vocab_size=512, num_key_value_heads=2, sliding_window=None, **text),
        image_token_index=511,
    )
    return LlavaForConditionalGeneration(config).to(bench.device).train()


def toy_batch(model: Any, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    ids = [np.concatenate([[1], [511] * 16, rng.integers(3, 500, n)]) for n in rng.integers(12, 90, 6)]
    supervised = [np.arange(len(i)) > 22 for i in ids]
    pixels = rng.standard_normal((6, 3, 56, 56)).astype(np.float32)
    return collate(ids, supervised, np.full(6, 1 / sum(s.sum() for s in supervised)), pixels, 511)


# --- is it fast? ------------------------------------------------------------------------------------------------


def stage_of(number: int, learning_rate: float = 2e-5) -> Any:
    """What the trainer's parts read of a stage's section."""
    trains = ("projector",) if number == 1 else ("projector", "language_model")
    rates = {"learning_rate": learning_rate, "projector_learning_rate": None, "vision_tower_learning_rate": None}
    return SimpleNamespace(trains=trains, trained_parts=trains, lora=None, weight_decay=0.0, **rates)


def train_of(recompute: str = "none", compile: bool = False, fp8_frozen: bool = False) -> Any:
    """What `speed.prepare` reads of the train section."""
    return SimpleNamespace(
        recompute=recompute, compile=compile, fp8_frozen=fp8_frozen, align=None, instruct=None, finetune=None
    )


def freeze(model: Any, stage: Any) -> dict[str, torch.nn.Parameter]:
    """Leave what the stage trains, in float32, as the trainer does; returns it by name."""
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(
            ".multi_modal_projector." in name
            or ("language_model" in stage.trains and ("language_model." in name or name.startswith("lm_head.")))
        )
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained[name] = parameter
    return trained


def build(bench: Bench, version: str) -> Any:
    """The version's model with random weights, made where it is used."""
    tower, text, activation, _ = VERSIONS[version]
    vision_config = AutoConfig.for_model(**(TOY_TOWER if bench.tiny else BASES[tower]))
    shape = {**BASES[text], **({**TOY_TEXT, "num_key_value_heads": 2} if bench.tiny else {}), "vocab_size": VOCABULARY}
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=AutoConfig.for_model(**shape),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        projector_hidden_act=activation,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if bench.device.type == "cuda" else torch.float32)
    try:
        with torch.device(bench.device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.train()
    model.model.vision_tower.eval()
    return model


def examples(bench: Bench, model: Any, version: str, stage: int, count: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Token ids and supervised masks of `count` examples, of the lengths that the docstring gives."""
    rng = np.random.default_rng([stage, 0])
    image, text, supervised = model.config.image_seq_length, VERSIONS[version][3][stage - 1], SUPERVISED[stage - 1]
    rest, shrink = text - supervised, 8 if bench.tiny else 1
    made = []
    for _ in range(count):
        if stage == 1:
            sigma = np.sqrt(np.log(1 + 1.1**2))
            answers = [int(np.clip(rng.lognormal(np.log(supervised) - sigma**2 / 2, sigma), 8, 1000))]
        else:
            total = np.clip(rng.normal(supervised, supervised / 3), 40, 1000)
            answers = [int(total // 4)] * 4
        asked = max(2, rest // len(answers) // shrink)
        parts = [np.zeros(1 + image, bool)]
        for length in answers:
            parts += [np.zeros(asked, bool), np.ones(max(2, length // shrink), bool)]
        flags = np.concatenate(parts)
        ids = rng.integers(3, IMAGE_TOKEN, len(flags))
        ids[0], ids[1 : 1 + image] = 1, IMAGE_TOKEN
        made.append((ids, flags))
    return made


def useful_flops(model: Any, stage: int, tokens: int, supervised: int, layers: int) -> float:
    """Of one example with one image, forward and backward, in a language model of `layers` layers."""
    text, vision = model.config.text_config, model.config.vision_config
    block = model.model.language_model.layers[0]
    one = sum(p.numel() for p in _weights(block) if p.ndim == 2)
    mlp = sum(p.numel() for p in _weights(block.mlp) if p.ndim == 2)
    head = VOCABULARY * text.hidden_size
    products = 2 * ((one * layers - mlp) * tokens + (mlp + head) * supervised)
    attended = 2 * text.hidden_size * tokens**2 * layers
    total = products * (2 if stage == 1 else 3) + attended * 3.5
    patches, used = model.config.image_seq_length + 1, vision.num_hidden_layers - 1
    tower_layer = sum(p.numel() for p in model.model.vision_tower.encoder.layers[0].parameters() if p.ndim == 2)
    total += 2 * tower_layer * used * patches + 4 * vision.hidden_size * patches**2 * used
    projector = sum(p.numel() for p in model.model.multi_modal_projector.parameters() if p.ndim == 2)
    return float(total + 2 * 2 * projector * model.config.image_seq_length)


def _weights(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from (child.codes for child in module.modules() if isinstance(child, Fp8Linear))


def batch_of(model: Any, chosen: list[tuple[NDArray[Any], NDArray[Any]]], supervised: int) -> Batch:
    side = model.config.vision_config.image_size
    pixels = np.random.default_rng(0).standard_normal((len(chosen), 3, side, side), dtype=np.float32)
    weights = np.full(len(chosen), 1 / supervised)
    return collate([ids for ids, _ in chosen], [f.copy() for _, f in chosen], weights, pixels, IMAGE_TOKEN)


def measure(
    bench: Bench, model: Any, version: str, stage: int, compiled: bool, fp8: bool = False, layers: int | None = None
) -> None:
    """Packed training steps of 128 examples, after warm-up, for some twelve seconds; memory permitting."""
    section = stage_of(stage)
    parameters = freeze(model, section)
    whole = len(model.model.language_model.layers)
    kept = layers or whole
    if kept < whole:
        model.model.language_model.layers = model.model.language_model.layers[:kept]
        model.config.text_config.num_hidden_layers = model.model.language_model.config.num_hidden_layers = kept
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        bench.free()
    speed.prepare(model, train_of(compile=compiled, fp8_frozen=fp8), section)
    state = "bfloat16" if stage == 2 else "float32"
    optimizer = make_optimizer({"projector": parameters}, section, (0.9, 0.999), state)  # type: ignore[arg-type]
    bench.free()
    data = examples(bench, model, version, stage, 16 if bench.tiny else 256)
    step_size = 8 if bench.tiny else 128
    limit = 400 if bench.tiny else pack_limit(stage, compiled, kept, parameters)
    what = f"stage {stage}, packed{', compiled' * compiled}{', fp8' * fp8}"
    found = None
    try:
        for _ in range(4):
            with suppress(torch.OutOfMemoryError):
                found = _measure_packs(bench, model, optimizer, data, step_size, limit)
            if found is not None:
                break
            optimizer.zero_grad()
            bench.free()
            limit = int(limit * 0.75)
            print(f"   out of memory: packs of {limit} tokens", flush=True)
        if found is None:
            raise RuntimeError("out of memory even with the smallest packs")
    finally:
        speed.restore(model)
        torch._dynamo.reset()
    counts = [(len(ids), int(flags.sum())) for ids, flags in data]
    flops = statistics.mean(useful_flops(model, stage, t, s, kept) for t, s in counts)
    all_flops = statistics.mean(useful_flops(model, stage, t, s, whole) for t, s in counts)
    tokens = statistics.mean(t for t, _ in counts)
    note = f"moments in {state}" if stage == 2 else ""
    if kept < whole:
        note += f"; the first {kept} of {whole} layers fit, hours scaled by FLOPs"
    record(bench, version, what, found, flops, all_flops, tokens, note)


def _measure_packs(
    bench: Bench, model: Any, optimizer: torch.optim.Optimizer, data: list[Any], step_size: int, limit: int
) -> dict[str, float]:
    lengths = np.array([len(ids) for ids, _ in data])
    steps = []
    for first in range(0, len(data), step_size):
        chosen = np.arange(first, min(first + step_size, len(data)))
        supervised = int(sum(data[i][1].sum() for i in chosen))
        packs = split(chosen, lengths, limit)
        steps.append([batch_of(model, [data[i] for i in pack], supervised) for pack in packs])

    def run(packs: list[Batch]) -> None:
        for batch in packs:
            moved = batch.to(bench.device)
            with bench.autocast():
                loss = pack_loss(model, moved)
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with packed(model):
        began = time.perf_counter()
        run(steps[0][:2])
        run(steps[1][:2])
        bench.wait()
        warm = time.perf_counter() - began
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began, done = time.perf_counter(), 0
        while done == 0 or (time.perf_counter() - began < (1 if bench.tiny else 12) and done < 6):
            run(steps[done % len(steps)])
            bench.wait()
            done += 1
        seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / GIB if bench.device.type == "cuda" else 0.0
    return {"seconds": seconds / done / step_size, "peak_gib": peak, "pack": limit, "warm": warm}


def pack_limit(stage: int, compiled: bool, layers: int, parameters: dict[str, torch.nn.Parameter]) -> int:
    """Tokens that fit beside what is allocated, by the KiB that a layer of 7B keeps per token."""
    kib = {(1, True): 93, (1, False): 137, (2, True): 137, (2, False): 197}[stage, compiled]
    free, total = torch.cuda.mem_get_info()
    free -= int(0.06 * total)
    if stage == 2:  # gradients in float32, and the copy in bfloat16 that autocast multiplies with
        free -= 6 * sum(p.numel() for p in parameters.values())
    return int(min(32_768, max(2_048, free / (kib * 1024 * layers * 1.1)))) // 128 * 128


def layers_that_fit(bench: Bench, model: Any) -> int:
    """Of stage 2 in 14 bytes a parameter (float32 weight and gradient, bfloat16 copy and two moments)."""
    layers = model.model.language_model.layers
    if bench.tiny:
        return len(layers) - 1
    one = sum(p.numel() for p in layers[0].parameters())
    rest = 2 * VOCABULARY * model.config.text_config.hidden_size
    room = 0.93 * torch.cuda.get_device_properties(0).total_memory - 14 * rest - 3 * GIB
    return min(len(layers), int(room / (14 * one + 4096 * 150 * 1024)))


def padded(bench: Bench, model: Any, version: str) -> None:
    """The peer: the model's own forward on padded batches of eight, with mask, labels and SDPA."""
    parameters = freeze(model, stage_of(1))
    optimizer = torch.optim.AdamW(parameters.values(), lr=2e-5, fused=True)
    data = examples(bench, model, version, 1, 16 if bench.tiny else 64)
    side = model.config.vision_config.image_size
    batches = []
    for first in range(0, len(data), 8):
        rows = data[first : first + 8]
        width = max(len(ids) for ids, _ in rows)
        ids, mask, labels = np.zeros((8, width), int), np.zeros((8, width), int), np.full((8, width), -100)
        for row, (tokens, flags) in enumerate(rows):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, : len(tokens)] = np.where(flags, tokens, -100)
        pixels = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
        batches.append([torch.from_numpy(x).to(bench.device) for x in (ids, mask, labels, pixels)])

    def run(batch: list[torch.Tensor]) -> None:
        ids, mask, labels, pixels = batch
        with bench.autocast():
            out = model(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=pixels, use_cache=False)
        out.loss.backward()

    run(batches[0])
    run(batches[1])
    bench.wait()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began, done = time.perf_counter(), 0
    while done < 2 or (time.perf_counter() - began < (1 if bench.tiny else 12) and done < 64):
        run(batches[done % len(batches)])
        bench.wait()
        done += 1
    optimizer.step()
    seconds = (time.perf_counter() - began) / done / 8
    peak = torch.cuda.max_memory_allocated() / GIB if bench.device.type == "cuda" else 0.0
    counts = [(len(ids), int(flags.sum())) for ids, flags in data]
    flops = statistics.mean(useful_flops(model, 1, t, s, len(model.model.language_model.layers)) for t, s in counts)
    fill = sum(t for t, _ in counts) / sum(b[0].numel() for b in batches)
    found = {"seconds": seconds, "peak_gib": peak, "pack": 8, "warm": 0.0}
    tokens = statistics.mean(t for t, _ in counts)
    note = f"transformers' own forward, 8 rows, {100 * fill:.0f} % of them tokens"
    record(bench, version, "stage 1, padded", found, flops, flops, tokens, note)


def record(
    bench: Bench,
    version: str,
    what: str,
    found: dict[str, float],
    flops: float,
    all_flops: float,
    tokens: float,
    note: str,
) -> None:
    rate = 1 / found["seconds"]
    row = {
        "version": version,
        "what": what,
        "examples_per_second": rate,
        "full_examples_per_second": rate * flops / all_flops,
        "tokens_per_second": rate * tokens,
        "tflops": rate * flops / 1e12,
        "peak_gib": found["peak_gib"],
        "pack": int(found["pack"]),
        "warm_up_seconds": found["warm"],
        "note": note,
    }
    bench.speeds.append(row)
    print(
        f"   {version} {what}: {row['tokens_per_second']:,.0f} tokens/s, {row['tflops']:.4g} TFLOP/s {note}", flush=True
    )


def fp8_of_7b(bench: Bench, model: Any, version: str) -> None:
    """Loss and the projector's gradient of one pack of real shapes, in bfloat16 and with fp8."""
    section = stage_of(1)
    freeze(model, section)
    data = examples(bench, model, version, 1, 4)
    batch = batch_of(model, data, sum(int(f.sum()) for _, f in data)).to(bench.device)
    exact = _loss_and_gradient(bench, model, batch)
    speed.prepare(model, train_of(fp8_frozen=True), section)
    try:
        found = _loss_and_gradient(bench, model, batch)
    finally:
        speed.restore(model)
    bench.check(f"{version} fp8: loss of random weights", abs(found[0] - exact[0]) / exact[0], 0.01)
    cosine = F.cosine_similarity(found[1].flatten(), exact[1].flatten(), 0).item()
    bench.check(f"{version} fp8: 1 - cosine of the projector's gradient", 1 - cosine, 0.2, "through all layers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy shapes: checks the script, also on a CPU")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/train_gpu")))
    parser.add_argument("--minutes", type=float, default=8.8)
    parser.add_argument("--versions", nargs="*", choices=list(VERSIONS), default=list(VERSIONS))
    chosen = parser.parse_args()
    bench = Bench(chosen.out, chosen.tiny, chosen.minutes)
    bench.write()
    c = bench.compiles
    for check in (machine, attention, switches, fp8_product, fp8_curve):
        with bench.section(check.__name__):
            check(bench)
    for version in chosen.versions:
        model: Any = None
        with bench.section(f"{version}: build"):
            model = build(bench, version)
        if model is None:
            continue
        rows: list[tuple[str, float, Callable[[], None]]] = [
            ("stage 1", 75, lambda m=model, v=version: measure(bench, m, v, 1, c)),
        ]
        if version == "v1.5":
            rows += [
                ("fp8 of 7B", 30, lambda m=model, v=version: fp8_of_7b(bench, m, v)),
                ("stage 1 in fp8", 80, lambda m=model, v=version: measure(bench, m, v, 1, c, fp8=True)),
                ("stage 1, padded", 25, lambda m=model, v=version: padded(bench, m, v)),
            ]
            if c:
                rows.append(("stage 1, not compiled", 25, lambda m=model, v=version: measure(bench, m, v, 1, False)))
        rows.append(
            ("stage 2", 90, lambda m=model, v=version: measure(bench, m, v, 2, c, layers=layers_that_fit(bench, m)))
        )
        for name, seconds, body in rows:
            if bench.enough_time(f"{version}: {name}", seconds):
                with bench.section(f"{version}: {name}"):
                    body()
        del model, rows, body
        bench.free()
    bench.write()
    print((bench.out / "train_gpu.md").read_text())


if __name__ == "__main__":
    main()
