"""What torch checks or does in Python, and not while a model is traced (spec sections 1 and 14)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.hooks import RemovableHandle

from ... import notices


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Inside this context torch.distributions do not check their arguments: that would ask for values."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def mixed_types() -> Iterator[None]:
    """Inside this context recurrent layers take inputs of another type than their weights', as every layer does."""
    check = torch.nn.RNNBase.check_input

    def checked(self: torch.nn.RNNBase, tensor: torch.Tensor, batch_sizes: torch.Tensor | None) -> None:
        check(self, tensor.to(self._flat_weights[0].dtype), batch_sizes)

    torch.nn.RNNBase.check_input = checked
    try:
        yield
    finally:
        torch.nn.RNNBase.check_input = check


@contextlib.contextmanager
def masks_taken_as_given() -> Iterator[None]:
    """torch.nn.Transformer and its parts do not look whether a mask's values make it a causal one.

    Values are not known while tracing; the mask itself is applied either way.
    """
    module, name = torch.nn.modules.transformer, "_detect_is_causal_mask"
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    setattr(module, name, lambda mask, is_causal=None, size=None: is_causal is True)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextlib.contextmanager
def without_backward_hooks() -> Iterator[None]:
    """Inside this context the backward hooks of modules are left alone: no backward pass of Python's is ever run."""
    kind = torch.utils.hooks.BackwardHook
    before = kind.setup_input_hook, kind.setup_output_hook

    def ignored(self: torch.utils.hooks.BackwardHook, values: Any) -> Any:
        notices.once("backward hook", "Backward hooks of modules have no effect in a PopTorch model.")
        return values

    kind.setup_input_hook = kind.setup_output_hook = ignored
    try:
        yield
    finally:
        kind.setup_input_hook, kind.setup_output_hook = before


def report_hooks_of_parameters(model: torch.nn.Module) -> None:
    """Says so if hooks wait for the gradients of parameters: those of the device's copies never reach them."""
    if any(each._backward_hooks or each._post_accumulate_grad_hooks for each in model.parameters()):
        _report_hooks()


def _report_hooks() -> None:
    notices.once(
        "gradient hook",
        "Hooks on the gradients of tensors have no effect in a PopTorch model: use a torch.autograd.Function.",
    )


def _register_hook(tensor: torch.Tensor, hook: Callable[[torch.Tensor], Any]) -> RemovableHandle:
    _report_hooks()
    return tensor.register_hook(hook)


def _gaussian_nll_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    var: torch.Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> torch.Tensor:
    """torch's gaussian_nll_loss without its look at whether a variance is negative (Nix and Weigend, 1994)."""
    if not isinstance(var, torch.Tensor):
        var = torch.full_like(input, var)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    var = var + (var.clamp(min=eps) - var).detach()  # clamped, but its gradient is not
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return {"mean": torch.mean, "sum": torch.sum, "none": torch.clone}[reduction](loss)


def _random_(
    tensor: torch.Tensor, *limits: int | None, generator: torch.Generator | None = None, **named: int | None
) -> torch.Tensor:
    """Tensor.random_(from, to), whose overload has a name that no generated code can hold, by way of torch.randint."""
    if len(limits) == 1 and "to" not in named:
        limits = (named.get("from"), *limits)  # one alone is the upper one
    low, high = (*limits, *[named.get(name) for name in ("from", "to")[len(limits) :]])
    if low is None:
        return tensor.random_(generator=generator) if high is None else tensor.random_(high, generator=generator)
    if high is None:  # up to what the type holds exactly
        high = 2 / torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    return tensor.copy_(torch.randint(int(low), int(high), tensor.shape, device=tensor.device, generator=generator))


def _bincount(values: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    """(N,) integers -> (minlength,) counts, or sums of `weights`, of 0 … minlength - 1; larger values are not counted.

    Without minlength torch's own, whose result has as many entries as the values need.
    """
    if minlength <= 0:
        return torch.bincount(values, weights, minlength)
    outside = (values < 0) | (values >= minlength)
    index = torch.where(outside, minlength, values).long()
    counted = torch.ones_like(index) if weights is None else weights
    return counted.new_zeros(minlength + 1).scatter_add(0, index, counted)[:minlength]


# Functions of torch that look at values, cannot be recorded or have no effect, and what tracing calls in their places.
REPLACED = {
    torch.Tensor.register_hook: _register_hook,
    F.gaussian_nll_loss: _gaussian_nll_loss,
    torch.Tensor.random_: _random_,
    torch.bincount: _bincount,
    torch.Tensor.bincount: _bincount,
}
