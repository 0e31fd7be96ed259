"""Context managers that tell the compiler something: hints, names, convolutions to plan together (spec section 11).

None of them changes a number; their arguments are checked all the same.
"""

from __future__ import annotations

from typing import Any

import torch

from ..checks import require
from ..engine.tracing import export as tracing
from ..enums import MultiConvPlanType
from ..poptorch_core import createPoptorchError

# Attribute dictionaries in force, outermost first.
attributes_lists: list[dict[str, Any]] = []


class Attribute:
    """`with poptorch.Attribute(__outline={…}):` — compiler hints. The same object may be entered many times."""

    def __init__(self, **kwargs: Any):
        self._attributes = kwargs

    def __enter__(self) -> None:
        attributes_lists.append(self._attributes)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if attributes_lists:
            attributes_lists.pop()


class NameScope:
    """`with poptorch.NameScope("name"):` — names for profiles. AssertionError unless the name is a string."""

    def __init__(self, name: str):
        require(isinstance(name, str), "Parameter to NameScope must be a string")
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        return None


class MultiConv:
    """`with poptorch.MultiConv():` — the convolutions inside are planned together.

    The setters return the object. Each takes one value for all convolutions, or a list or tuple with one for each.
    Raises poptorch.Error for a MultiConv inside another one, one without a convolution, or one that ends without having
    started.
    """

    _active: MultiConv | None = None

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}

    def __enter__(self) -> MultiConv:
        if tracing.current() is not None:
            if MultiConv._active is not None:
                raise createPoptorchError("Nested poptorch.MultiConv is not supported")
            MultiConv._active = self
            self._before = tracing.current().convolutions
            tracing.current().at_end.append(_leave)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if tracing.current() is None:
            return
        if type is None and MultiConv._active is not self:
            raise createPoptorchError("Unexpected end of poptorch.MultiConv: it was never started")
        MultiConv._active = None
        if type is None and tracing.current().convolutions == self._before:
            raise createPoptorchError(
                "There is no convolution inside poptorch.MultiConv: put the convolutions that are to be planned "
                "together there, or remove it."
            )

    def availableMemoryProportions(self, value: float | tuple[float, ...] | list[float]) -> MultiConv:
        """Share of a tile's memory for each convolution, from 0 to 1."""
        for share in self._store("availableMemoryProportions", value, (float, int)):
            require(0 <= share <= 1, f"availableMemoryProportions must be from 0 to 1, got {share}")
        return self

    def partialsTypes(self, value: torch.dtype | tuple[torch.dtype, ...] | list[torch.dtype]) -> MultiConv:
        """Type in which products are accumulated: torch.float16 or torch.float32."""
        items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        for dtype in items:
            if dtype not in (torch.float16, torch.float32):
                raise ValueError(f"partialsTypes must be torch.float16 or torch.float32, got {dtype!r}")
        self._settings["partialsTypes"] = items
        return self

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        """Side by side, or one after the other."""
        require(
            isinstance(value, MultiConvPlanType), f"planType expects a poptorch.MultiConvPlanType, got {type(value)}"
        )
        self._settings["planType"] = value
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Tiles reserved for each convolution in a parallel plan."""
        require(type(value) is int, f"perConvReservedTiles expects an int, got {type(value)}")
        self._settings["perConvReservedTiles"] = value
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        """How much slower a convolution may become for the sake of the others."""
        require(isinstance(value, float), f"cycleBackOff expects a float, got {type(value)}")
        self._settings["cycleBackOff"] = value
        return self

    def enableConvDithering(self, value: bool | tuple[bool, ...] | list[bool]) -> MultiConv:
        """Whether convolutions start on different tiles."""
        self._store("enableConvDithering", value, (bool,))
        return self

    def _store(self, name: str, value: Any, kinds: tuple[type, ...]) -> tuple:
        items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        for item in items:
            fits = isinstance(item, kinds) and isinstance(item, bool) == (bool in kinds)
            require(fits, f"{name} expects {' or '.join(kind.__name__ for kind in kinds)}, got {type(item)}")
        self._settings[name] = items
        return items


def _leave() -> None:
    MultiConv._active = None
