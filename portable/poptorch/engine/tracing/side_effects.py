"""What forward() left behind in Python when it ran the first time, so that a second run leaves nothing more."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses import FakeTensor

_CONTAINERS = (list, dict, set)


class PythonState:
    """What forward() left behind in Python when it ran the first time, so that a second run leaves nothing more.

    Attributes of modules, and the lists, dicts and sets in them or among the globals that a forward() names.
    """

    def __init__(self, model: torch.nn.Module):
        self._attributes = [
            (module, {k: v for k, v in vars(module).items() if not k.startswith("_")}) for module in model.modules()
        ]
        # Tensors of the trace are of no use to anybody afterwards: such attributes stay, or become, what they were.
        self._lost = [
            {k for k, v in attributes.items() if isinstance(v, FakeTensor)} for _, attributes in self._attributes
        ]
        held: list[Any] = [value for _, attributes in self._attributes for value in attributes.values()]
        for function in {getattr(type(module), "forward", None) for module in model.modules()}:
            code = getattr(function, "__code__", None)
            if code is not None:
                held += [function.__globals__.get(name) for name in code.co_names]
                held += [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        self._containers = [(value, type(value)(value)) for value in held if type(value) in _CONTAINERS]

    def restore(self) -> None:
        """Back to what was there."""
        self.restore_attributes()
        for container, contents in self._containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(contents)

    def restore_attributes(self) -> None:
        """The modules' attributes are what they were; what is in lists, dicts and sets stays."""
        for (module, attributes), lost in zip(self._attributes, self._lost, strict=True):
            for name in [name for name in vars(module) if not name.startswith("_")]:
                if name not in attributes or (name in lost and isinstance(vars(module)[name], FakeTensor)):
                    del vars(module)[name]
            vars(module).update({name: value for name, value in attributes.items() if name not in lost})


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def silent_repetition(state: PythonState) -> Iterator[None]:
    """Inside this context forward() runs a second time: nobody sees what it prints, or what it leaves in Python."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        state.restore()
