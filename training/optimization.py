"""Optimizers with their parameter groups, and learning-rate schedules."""

from __future__ import annotations

import math
import warnings
from typing import Any, Sequence

import poptorch
import torch
from torch import nn

from training.adafactor import Adafactor
from training.adam_variants import AdamW8bit, TensorClippedAdam, TensorClippedAdamW
from training.rule_optimizer import RuleOptimizer

BETAS = (0.9, 0.999)  # PopTorch's
SGD_MOMENTUM = 0.9
RULES = ("Adafactor", "AdafactorNoScaling", "AdamW8bit")  # each with an update rule of its own
# GPT-127* and its kin leave out what has bias, ln or wpe in its name; the norm after the last block is called `norm`
# there, and so its weight decays.
_WITHOUT_DECAY = ("bias", ".ln_1.", ".ln_2.", "wpe")


def parameter_groups(model: nn.Module, weight_decay: float, by: str = "matrices") -> list[dict[str, Any]]:
    """Parameters with weight decay, and without, in two groups.

    By "matrices" those with more than one dimension decay: biases and layer norms do not. By "gpt-star", the rule that
    GPT-127*, GPT-303* and GPT-1B* were trained with, biases, the layer norms of blocks and position embeddings do not;
    the last layer norm's weight does.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if by == "matrices":
        decays = {name: parameter.dim() > 1 for name, parameter in named}
    else:
        decays = {name: not any(part in name for part in _WITHOUT_DECAY) for name, _ in named}
    return [
        {"params": [parameter for name, parameter in named if decays[name]], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if not decays[name]], "weight_decay": 0.0},
    ]


def in_bits(groups: Sequence[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The groups divided again: moments of embeddings stay in 32 bits, others are to have 8 (Dettmers et al. 2022)."""
    embeddings = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    found = []
    for group in groups:
        for bits in (8, 32):
            own = [parameter for parameter in group["params"] if (id(parameter) in embeddings) == (bits == 32)]
            found += [{**group, "params": own, "bits": bits}] if own else []
    return found


def make_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    loss_scaling: float,
    eps: float = 1e-6,
    betas: Sequence[float] = BETAS,
    gradient_clipping: float | None = None,
    tensor_clipping: float | None = None,
    sgd_momentum: float = SGD_MOMENTUM,
    decay_groups: str = "matrices",
) -> torch.optim.Optimizer:
    """The optimizer of that --optimizer; without further arguments with the reference's numerics.

    Gradients and the first moment are kept in half, the second moment in float32: squares of gradients leave half's
    range first. So does the velocity of SGD, which is kept multiplied by the loss scale.

    Args:
        betas: of the two moments. PopTorch makes those that it is given variables of the compiled program, and its
            own, which are the default, constants.
        gradient_clipping: the largest norm that the gradient of all parameters together may have, without the loss
            scale; None: any. LAMB has no such thing in PopTorch.
        tensor_clipping: the same for the gradient of each parameter by itself, of Adam, AdamW and AdamW8bit.
        decay_groups: which parameters decay: see parameter_groups.
    """
    groups = parameter_groups(model, weight_decay, decay_groups)
    if name in RULES or tensor_clipping is not None:
        return _make_rule_optimizer(
            name, model, groups, learning_rate, loss_scaling, eps, betas, gradient_clipping, tensor_clipping
        )
    common: dict[str, Any] = dict(lr=learning_rate, loss_scaling=loss_scaling, accum_type=torch.float16)
    if name == "SGD":
        if gradient_clipping is not None:  # PopTorch measures gradients that are still multiplied by the loss scale
            common["max_grad_norm"] = gradient_clipping * loss_scaling
        return poptorch.optim.SGD(groups, momentum=sgd_momentum, velocity_accum_type=torch.float32, **common)
    common.update(
        eps=eps,
        first_order_momentum_accum_type=torch.float16,
        second_order_momentum_accum_type=torch.float32,
    )
    if tuple(betas) != BETAS:
        common["betas"] = tuple(betas)
    if gradient_clipping is not None:
        common["max_grad_norm"] = gradient_clipping
    if name == "AdamW":
        # The SDK accepts bias_correction=False here and corrects all the same.
        return poptorch.optim.AdamW(groups, bias_correction=False, **common)
    if name == "Adam":
        return poptorch.optim.Adam(groups, **common)
    return poptorch.optim.LAMB(groups, bias_correction=name == "LAMB", **common)


def _make_rule_optimizer(
    name: str,
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    learning_rate: float,
    loss_scaling: float,
    eps: float,
    betas: Sequence[float],
    gradient_clipping: float | None,
    tensor_clipping: float | None,
) -> RuleOptimizer:
    """Those that PopTorch does not have."""
    common: dict[str, Any] = dict(lr=learning_rate, loss_scaling=loss_scaling, max_grad_norm=gradient_clipping)
    if name.startswith("Adafactor"):
        return Adafactor(groups, scale_parameter=name == "Adafactor", **common)
    common.update(betas=tuple(betas), eps=eps, max_tensor_norm=tensor_clipping)
    if name == "AdamW8bit":
        return AdamW8bit(in_bits(groups, model), **common)
    return (TensorClippedAdam if name == "Adam" else TensorClippedAdamW)(groups, **common)


def schedule_factor(kind: str, step: int, warmup_steps: int, decay_steps: int, floor: float = 0.0) -> float:
    """The learning rate of call `step` (from 0) as a share of the highest one.

    Linear rise over `warmup_steps`, then "constant", "linear" to `floor` at `decay_steps`, or "cosine" to it there.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
    left = 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return floor + (1.0 - floor) * left


def warmup_length(fraction: float, steps: int | None, decay_steps: int) -> int:
    """Calls of warm-up: `steps` if given, else that fraction of the decay steps."""
    return steps if steps is not None else int(fraction * decay_steps + 1e-9)  # 0.29 x 100 is 28.999…


def last_rate(min_learning_rate: float) -> str:
    """The rate at the end of a falling schedule, and what that means for a run that goes on there."""
    return f"{min_learning_rate:g}" if min_learning_rate else "0, which changes no weight"


def course_note(kind: str, decay_steps: int, calls: int, min_learning_rate: float) -> str | None:
    """What a run of `calls` says if its schedule ends before it does: one that was extended, or was given a length."""
    if kind == "constant" or calls <= decay_steps:
        return None
    rate = last_rate(min_learning_rate)
    return f"the learning rate ends its {kind} course at step {decay_steps:,}; after that it stays {rate}"


class _Factor:
    """`schedule_factor` with its arguments, in a form that torch's scheduler can be saved with."""

    def __init__(self, kind: str, warmup_steps: int, decay_steps: int, floor: float) -> None:
        self.kind, self.warmup_steps, self.decay_steps, self.floor = kind, warmup_steps, decay_steps, floor

    def __call__(self, step: int) -> float:
        return schedule_factor(self.kind, step, self.warmup_steps, self.decay_steps, self.floor)


def make_schedule(
    optimizer: torch.optim.Optimizer, kind: str, warmup_steps: int, decay_steps: int, floor: float = 0.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """torch's scheduler for this schedule; the program steps it once a call and then calls setOptimizer."""
    # The device runs the optimizer, so its step() is never called here. torch takes that for a mistake.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step", UserWarning)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, _Factor(kind, warmup_steps, decay_steps, floor))
