"""Native operators of the user's, found by name, domain and version (spec section 11).

A compiled library registers torch operators when it is loaded; `register_custom_op` takes a Python function instead,
for tests and prototypes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import torch

from .. import notices, popart_libraries
from ..engine.tracing import export as tracing
from ..engine.tracing import opaque
from ..poptorch_core import createPoptorchError

_FLOAT32_MAX = torch.finfo(torch.float32).max
_KERNELS: dict[tuple[str, str, int], Callable[..., Any]] = {}  # (name, domain, version) -> Python function


def register_custom_op(name: str, domain: str, domain_version: int = 1) -> Callable[[Callable], Callable]:
    """A decorator: `function(*inputs, **attributes)` is the kernel of this custom op (an addition of this runtime).

    It returns a tensor or several, made with torch operations, and is traced like a part of forward(): autograd
    differentiates it, or a torch.autograd.Function that it calls says how. It takes precedence over compiled kernels.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _KERNELS[name, domain, domain_version] = function
        return function

    return register


def custom_op(
    inputs: list[torch.Tensor] | tuple[torch.Tensor, ...],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: list[torch.Tensor] | tuple[torch.Tensor, ...],
    attributes: dict[str, Any] | None = None,
) -> list[torch.Tensor]:
    """Call the native operator `name` of `domain` and return its outputs as a list.

    The portable kernel is the one given to register_custom_op, or else the torch operator
    `<domain with _ for .>::<name>` (`<name>_v<N>` from version 2 on) that a compiled library registers when it is
    loaded; attributes are its keyword arguments. Where the kernel makes other shapes than those of the examples, they
    count. In a plain call outside an executor the result is zeros shaped like `example_outputs`.

    Raises:
        ValueError: attributes that are none (see the spec, section 11).
        poptorch.Error: no such kernel, or one with another number of outputs or other types than `example_outputs`.
    """
    attributes = _checked_attributes(attributes)
    if tracing.current() is None:
        return [torch.zeros_like(example) for example in example_outputs]
    label = f"{domain}.{name}"
    inputs = list(inputs)
    kernel, context = _KERNELS.get((name, domain, domain_version)), contextlib.nullcontext()
    if kernel is None:
        kernel = _compiled_kernel(name, domain, domain_version)
        context = opaque.shapes_known([(example.shape, example.dtype) for example in example_outputs])
        if tracing.current().training and not _has_gradient(kernel):
            notices.once(
                ("custom op without a gradient", kernel),
                f"The custom op {label} has no gradient (its library registers no autograd kernel): none passes it.",
            )
            inputs = [tensor.detach() for tensor in inputs]
    try:
        with context:
            outputs = _as_list(kernel(*inputs, **attributes))
    except (RuntimeError, TypeError) as error:
        raise createPoptorchError(f"The custom op {label} could not be traced: {error}") from error
    _compare(label, outputs, example_outputs)
    return outputs


def _compiled_kernel(name: str, domain: str, domain_version: int) -> Callable[..., Any]:
    operator_name = name if domain_version == 1 else f"{name}_v{domain_version}"
    namespace = re.sub(r"\W", "_", domain)
    try:
        return getattr(getattr(torch.ops, namespace), operator_name)
    except AttributeError as error:
        raise createPoptorchError(
            f"No kernel for the custom op {domain}.{name} version {domain_version}: no torch operator "
            f"{namespace}::{operator_name} is registered. Load the library that defines it first "
            f"(torch.ops.load_library).{popart_libraries.advice()}"
        ) from error


def _has_gradient(operator: torch._ops.OpOverloadPacket) -> bool:
    keys = ("Autograd", "AutogradCPU", "AutogradCUDA", "CompositeImplicitAutograd")
    return any(
        torch._C._dispatch_has_kernel_for_dispatch_key(getattr(operator, name).name(), key)
        for name in operator.overloads()
        for key in keys
    )


def _as_list(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def _compare(label: str, outputs: list[torch.Tensor], examples: Any) -> None:
    if len(outputs) != len(examples):
        raise createPoptorchError(
            f"The custom op {label} has {len(outputs)} outputs, but {len(examples)} example outputs were given."
        )
    for output, example in zip(outputs, examples, strict=True):
        if output.dtype != example.dtype:
            raise createPoptorchError(
                f"The custom op {label} returned {output.dtype}, but its example output is of {example.dtype}."
            )


def _checked_attributes(attributes: dict[str, Any] | None) -> dict[str, Any]:
    for key, value in (attributes or {}).items():
        if not isinstance(key, str) or not key.isascii():
            reason = "contains non-ASCII characters" if isinstance(key, str) else "is not a string"
            raise ValueError(f"The key {key!r} of custom_op's attributes {reason}.")
        items = value if isinstance(value, (list, tuple)) else [value]
        if not items or any(type(item) not in (float, int, str) or type(item) is not type(items[0]) for item in items):
            raise ValueError(f"Attribute {key} must be a float, an int, a str or a list of one of these.")
        if any(isinstance(item, str) and not item.isascii() for item in items):
            raise ValueError(f"Attribute {key} of custom_op contains non-ASCII characters.")
        for item in items:
            if isinstance(item, float) and _FLOAT32_MAX < abs(item) < float("inf"):
                bound = "low" if item < 0 else "high"
                raise createPoptorchError(f"{key}={item} is too {bound} for a Popart float attribute.")
    return dict(attributes or {})
