"""Operations that reach the host while the program runs: a Python callback, and printing (spec section 11)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from ..engine.tracing import export as tracing
from ..engine.tracing import opaque
from ..poptorch_core import createPoptorchError
from ..structure import Structure
from . import print_format


class CPU:
    """Calls `layer_to_call` on the host in the middle of a program. No gradient passes through it.

    Args:
        layer_to_call: a function or module; it takes and returns tensors in any structure, on the CPU. The shapes and
            types of what it returns are found with a first call on ones, when the model is compiled.
        ID: a name, for messages.
    """

    def __init__(self, layer_to_call: Callable[..., Any], ID: str):
        self._layer_to_call = layer_to_call
        self._id = ID
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        """The layer's result. Outside an executor this is a plain call."""
        if tracing.current() is None:
            return self._layer_to_call(*input, **kwargs)
        tensors, structure = Structure.of((input, kwargs))
        if not tensors:
            raise createPoptorchError(f"poptorch.CPU {self._id!r} was called without a tensor.")
        examples, result = Structure.of(opaque.on_ones(lambda *ones: self._run(structure, list(ones)), tensors))
        shapes = [(example.shape, example.dtype) for example in examples]

        def call(*inputs: torch.Tensor) -> list[torch.Tensor]:
            with torch.no_grad():
                self.inputs = [tensor.detach().cpu() for tensor in inputs]
                self.outputs = Structure.of(self._run(structure, self.inputs))[0]
            device = inputs[0].device
            return [tensor.detach().clone().to(device) for tensor in self.outputs]

        return result.fill(opaque.record(call, tensors, shapes))

    def _run(self, structure: Structure, tensors: list[torch.Tensor]) -> Any:
        args, kwargs = structure.fill(tensors)
        return self._layer_to_call(*args, **kwargs)

    def execute(self) -> None:
        """Call the layer once more on the last inputs that the program gave it."""
        self.outputs = Structure.of(self._layer_to_call(*self.inputs))[0]

    def registerPersistentData(self) -> None:
        """Without effect here: the callback's data lives as long as the program."""


class _Printed(torch.autograd.Function):
    """The identity, which prints what passes through it in either direction."""

    DROPPED_UNUSED = True  # by the engine: what it gives must be used

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, title: str, print_gradient: bool, layout: Any) -> torch.Tensor:
        ctx.title, ctx.print_gradient, ctx.layout = title, print_gradient, layout
        if tracing.current() is None:
            _print(title, tensor, layout)
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.print_gradient:
            _print(f"{ctx.title}_gradient", gradient, ctx.layout)
        return gradient, None, None, None


def _print(title: str, tensor: torch.Tensor, layout: print_format.Layout) -> None:
    sys.stderr.write(f"{title}: {print_format.render(tensor.detach(), layout)}\n")
    sys.stderr.flush()


def ipu_print_tensor(
    tensor: torch.Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> torch.Tensor:
    """`tensor`, whose value is printed to stderr whenever the program comes by, and so is its gradient.

    Args:
        title: printed before the value; the gradient's is `<title>_gradient`.
        summarise_threshold: more elements than that are shown by their edges; 0 shows all.
        edge_items: elements shown at either end.
        max_line_width: longer lines are broken; 0 never breaks one.
        digits: significant digits of a number; 0 aligns nothing.
        float_format: "auto", "fixed", "scientific" or "none".
        separator, open_bracket, close_bracket: between and around the elements of a dimension.
    Outside an executor nothing is printed. Use the result: an operation without users is dropped.
    Raises ValueError for an argument that is none of these.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"ipu_print_tensor expects a torch.Tensor, got {type(tensor)}.")
    if not isinstance(title, str):
        raise ValueError(f"The title of ipu_print_tensor must be a string, got {type(title)}.")
    layout = print_format.Layout(
        summarise_threshold, edge_items, max_line_width, digits, float_format, separator, open_bracket, close_bracket
    )
    if tracing.current() is None:
        return tensor
    return _Printed.apply(tensor, title or "print", print_gradient, layout)
