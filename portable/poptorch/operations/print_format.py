"""Text of a tensor in the form of PopART's PrintTensor: a row a line, aligned numbers, summaries, line breaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

_FORMATS = ("auto", "fixed", "scientific", "none")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arguments of ipu_print_tensor of the same names. Raises ValueError for one out of range."""

    summarise_threshold: int = 1000
    edge_items: int = 3
    max_line_width: int = 80
    digits: int = 4
    float_format: str = "auto"
    separator: str = ", "
    open_bracket: str = "("
    close_bracket: str = ")"

    def __post_init__(self) -> None:
        for name in ("summarise_threshold", "edge_items", "max_line_width", "digits"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} of ipu_print_tensor must be an integer of at least 0, got {value!r}.")
        if self.float_format not in _FORMATS:
            raise ValueError(f"float_format of ipu_print_tensor must be one of {_FORMATS}, got {self.float_format!r}.")


def render(tensor: torch.Tensor, layout: Layout) -> str:
    """`tensor` of any shape as text; a 0-d tensor is a bare number."""
    tensor = tensor.cpu()
    summarise = 0 < layout.summarise_threshold < tensor.numel()
    shown = _edges(tensor, layout.edge_items) if summarise else tensor
    text = _number(shown, layout)
    width = max((len(text(value)) for value in shown.flatten().tolist()), default=0) if layout.digits else 0
    return _nested(tensor, layout, summarise, lambda value: text(value).rjust(width), 0)


def _edges(tensor: torch.Tensor, count: int) -> torch.Tensor:
    for dim, size in enumerate(tensor.shape):
        if size > 2 * count:
            tensor = torch.cat([tensor.narrow(dim, 0, count), tensor.narrow(dim, size - count, count)], dim)
    return tensor


def _number(shown: torch.Tensor, layout: Layout) -> Callable[[float], str]:
    if not shown.is_floating_point():
        return lambda value: str(int(value))
    kind, digits = layout.float_format, layout.digits
    if kind == "none" or not digits:
        return lambda value: f"{value:.6g}"
    finite = shown.double().abs()
    finite = finite[finite.isfinite() & (finite > 0)]
    largest, smallest = (float(finite.max()), float(finite.min())) if finite.numel() else (1.0, 1.0)
    if kind == "auto":  # numbers that are too large or too small for that many digits need an exponent
        kind = "scientific" if largest >= 10.0**digits or smallest < 10.0**-digits else "fixed"
    # `digits` counts significant ones, in fixed form those of the largest number.
    before_point = 1 if kind == "scientific" else len(str(int(largest)))
    return lambda value: f"{value:.{max(digits - before_point, 0)}{'e' if kind == 'scientific' else 'f'}}"


def _nested(tensor: torch.Tensor, layout: Layout, summarise: bool, text: Callable[[float], str], depth: int) -> str:
    """`tensor` at this depth of brackets; its first line is not indented."""
    if tensor.dim() == 0:
        return text(tensor.item())
    size, edge = tensor.shape[0], layout.edge_items
    skip = summarise and size > 2 * edge
    indices = [*range(edge), None, *range(size - edge, size)] if skip else range(size)
    items = ["..." if i is None else _nested(tensor[i], layout, summarise, text, depth + 1) for i in indices]
    if tensor.dim() > 1:
        rows = "".join(f"\n{' ' * (depth + 1)}{item}" for item in items)
        return f"{layout.open_bracket}{rows}\n{' ' * depth}{layout.close_bracket}"
    return layout.open_bracket + _row(items, layout, depth) + layout.close_bracket


def _row(items: list[str], layout: Layout, depth: int) -> str:
    """Numbers side by side, in as many lines as max_line_width asks for."""
    lines, line = [], ""
    for item in items:
        candidate = line + layout.separator + item if line else item
        if line and 0 < layout.max_line_width < depth + len(layout.open_bracket) + len(candidate):
            lines.append(line + layout.separator.rstrip())
            candidate = item
        line = candidate
    return ("\n" + " " * (depth + 2)).join([*lines, line])
