"""AdamW with a learning rate per part, and its state as named tensors.

The projector is new and the language model is not, so a stage may give the projector a rate of its own
(`projector_learning_rate`). Matrices decay, vectors (norms and biases) do not. The rate at a step is a
function of the step alone, so a resumed run needs no scheduler state.

The moments are made before the first step, as zeros, which is what AdamW itself would do at that step: memory
that does not suffice and a checkpoint that cannot be written show up in the first minute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from llavamed.recipe import Part, StageSection

_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    parameters: Mapping[Part, Mapping[str, torch.nn.Parameter]], stage: StageSection, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """One group per part and kind (decaying or not); each group carries its `part` and `base_lr`."""
    groups = []
    for part, named in parameters.items():
        rate = stage.learning_rate
        if part == "projector" and stage.projector_learning_rate is not None:
            rate = stage.projector_learning_rate
        for decay, chosen in (
            (stage.weight_decay, [p for p in named.values() if p.ndim >= 2]),
            (0.0, [p for p in named.values() if p.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay, "part": part})
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
            }
    return optimizer


def rate_factor(step: int, total: int, stage: StageSection) -> float:
    """The share of the base rate in step 0, 1, ... `total` - 1: linear warm-up, then a cosine to 0, or flat."""
    warmup = math.ceil(stage.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if stage.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def set_rates(optimizer: torch.optim.AdamW, factor: float) -> dict[str, float]:
    """Set every group's rate; return the rate of each part."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["part"]: group["lr"] for group in optimizer.param_groups}


def training_state(
    parameters: Mapping[Part, Mapping[str, torch.nn.Parameter]], optimizer: torch.optim.AdamW
) -> dict[str, torch.Tensor]:
    """The live tensors of all that a step changes: `parameter/<name>`, `exp_avg/<name>`, ..."""
    tensors: dict[str, torch.Tensor] = {}
    for named in parameters.values():
        for name, parameter in named.items():
            tensors[f"parameter/{name}"] = parameter.data
            for key, value in optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
    return tensors
