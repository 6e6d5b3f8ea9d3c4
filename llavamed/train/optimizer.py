"""AdamW with a learning rate per part, and its state as named tensors.

The projector is new and the language model is not, so a stage may give the projector a rate of its own
(`projector_learning_rate`), and the tower another. Matrices decay, vectors (norms and biases) do not. The rate at a
step is a function of the step alone, so a resumed run needs no scheduler state.

The moments are made before the first step, as zeros, which is what AdamW itself would do at that step: memory
that does not suffice and a checkpoint that cannot be written show up in the first minute.

The two moments in float32 are 8 bytes a parameter, 58 GB for 7B. `optimizer_state` makes them smaller:

    bfloat16    4 bytes. Reading, updating and the step itself stay in float32
    int8        2 bytes and a bit: torchao's AdamW8bit, one scale per 256 values

The trap in bfloat16 is the second moment. With beta2 = 0.999 it moves by a thousandth of the distance to g^2 a
step, and bfloat16 cannot tell apart numbers closer than 1/256: rounded to the nearest it would grow with every
large gradient and never shrink again. It is rounded at random instead, up or down with the odds that keep
the mean right (stochastic rounding). The odds are drawn from torch's generator, which the loop seeds by the
number of the step, so a resumed run draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from llavamed.errors import InputError

if TYPE_CHECKING:
    from llavamed.recipe import OptimizerState, Part, StageSection

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PACKED = ("codes", "scale")  # what an 8-bit moment of torchao consists of, but for a constant table
_CHUNK = 2**24  # elements updated at a time: 64 MB per float32 temporary


def make_optimizer(
    parameters: Mapping[Part, Mapping[str, torch.nn.Parameter]],
    stage: StageSection,
    betas: tuple[float, float],
    state: OptimizerState = "float32",
) -> torch.optim.Optimizer:
    """One group per part and kind (decaying or not); each group carries its `part` and `base_lr`.

    `state` is what the moments are kept in. Raises InputError if that needs torchao and it is not installed.
    """
    groups = []
    for part, named in parameters.items():
        own = {"projector": stage.projector_learning_rate, "vision_tower": stage.vision_tower_learning_rate}
        rate = own.get(part) or stage.learning_rate
        for decay, chosen in (
            (stage.weight_decay, [p for p in named.values() if p.ndim >= 2]),
            (0.0, [p for p in named.values() if p.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay, "part": part})
    make: dict[OptimizerState, Callable[..., torch.optim.Optimizer]] = {
        "float32": _float32, "bfloat16": AdamWBfloat16, "int8": _int8
    }  # fmt: skip
    return make[state](groups, betas)


def _float32(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    for parameter in _parameters(optimizer):
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
        }
    return optimizer


def _int8(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise InputError(f'train.optimizer_state=int8 needs torchao: pip install "llavamed[fast]" ({error})') from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=betas)
    for parameter in _parameters(optimizer):  # small tensors keep float32 moments, which torchao decides
        optimizer.state[parameter] = {
            "step": torch.zeros(()),
            **{
                moment: optimizer._new_buffer(parameter, signed)  # type: ignore[attr-defined]
                for moment, signed in zip(_MOMENTS, (True, False), strict=True)
            },
        }
    return optimizer


class AdamWBfloat16(torch.optim.Optimizer):
    """AdamW with moments in bfloat16 and all arithmetic in float32, for float32 parameters."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float = 1e-8) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": 0.0})
        for parameter in _parameters(self):
            self.state[parameter] = {
                "step": torch.zeros(()),
                **{moment: torch.zeros_like(parameter, dtype=torch.bfloat16) for moment in _MOMENTS},
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] += 1
                tensors = (parameter, parameter.grad.contiguous(), *(state[moment] for moment in _MOMENTS))
                chunks = [_local(tensor).view(-1).split(_CHUNK) for tensor in tensors]
                for p, g, m, v in zip(*chunks, strict=True):
                    _update(p, g, m, v, group, state["step"].item())


def _update(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    group: dict[str, Any],
    step: float,
) -> None:
    """Loshchilov & Hutter's algorithm 2 on flat tensors, in place."""
    beta1, beta2 = group["betas"]
    m = first.float().lerp_(gradient, 1 - beta1)
    v = second.float().lerp_(gradient.square(), 1 - beta2)
    first.copy_(m)
    second.copy_(round_at_random(v))
    denominator = v.sqrt_().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1**step))


def round_at_random(values: torch.Tensor) -> torch.Tensor:
    """float32 -> bfloat16, up or down with odds that make the mean exact: noise is added to the 16 bits that are
    cut off, and what it carries over is the rounding."""
    noise = torch.randint(2**16, values.shape, dtype=torch.int32, device=values.device)
    return (values.view(torch.int32) + noise).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a sharded tensor: the update looks at one element at a time."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def rate_factor(step: int, total: int, stage: StageSection) -> float:
    """The share of the base rate in step 0, 1, ... `total` - 1: linear warm-up, then a cosine to 0, or flat."""
    warmup = math.ceil(stage.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if stage.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's rate; return the rate of each part."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # torchao's, which is an input of compiled code
            group["lr"].fill_(group["base_lr"] * factor)
        else:
            group["lr"] = group["base_lr"] * factor
    return {group["part"]: group["base_lr"] * factor for group in optimizer.param_groups}


def training_state(
    parameters: Mapping[Part, Mapping[str, torch.nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The live tensors of all that a step changes: `parameter/<name>`, `exp_avg/<name>`, ...; an 8-bit moment as
    its two plain tensors, `exp_avg.codes/<name>` and `exp_avg.scale/<name>`."""
    tensors: dict[str, torch.Tensor] = {}
    for named in parameters.values():
        for name, parameter in named.items():
            tensors[f"parameter/{name}"] = parameter.data
            for key, value in optimizer.state[parameter].items():
                if hasattr(value, "codes"):
                    tensors |= {f"{key}.{inner}/{name}": getattr(value, inner) for inner in _PACKED}
                else:
                    tensors[f"{key}/{name}"] = value
    return tensors
