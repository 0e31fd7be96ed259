"""What the optimizers of poptorch.optim have in common (spec section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .checks import require
from .engine.without_dynamo import guarded_later

_ACCUM_TYPES = (
    "accum_type",
    "first_order_momentum_accum_type",
    "second_order_momentum_accum_type",
    "velocity_accum_type",
)
# What these optimizers have, and a pickle keeps, besides torch's own defaults, state and groups.
ATTRIBUTES = (
    "loss_scaling",
    "max_grad_norm",
    "bias_correction",
    "use_combined_accum",
    "use_tf_variant",
    *_ACCUM_TYPES,
    "variable_attrs",
    "given_attributes",
)
_torch = torch.optim.Optimizer
guarded_later(_torch.add_param_group, _torch.zero_grad, _torch.state_dict, _torch.load_state_dict)


class VariableAttributes:
    """Which attributes of an optimizer may change after compilation.

    Args:
        variable_attributes: names of the variable ones.
        allowed_attributes: names of all that can be variable.
    """

    def __init__(self, variable_attributes: Iterable[str], allowed_attributes: Iterable[str]):
        self._allowed = tuple(allowed_attributes)
        self._variable: set[str] = set()
        for attr in variable_attributes:
            self.markAsVariable(attr)

    def isConstant(self, attr: str) -> bool:
        """Whether `attr` may not change after compilation."""
        return attr not in self._variable

    def markAsConstant(self, attr: str) -> None:
        """Compile the value of `attr` in. Raises AssertionError for an unknown attribute."""
        self._check(attr)
        self._variable.discard(attr)

    def markAsVariable(self, attr: str) -> None:
        """Let setOptimizer() change `attr`. Raises AssertionError for an unknown attribute."""
        self._check(attr)
        self._variable.add(attr)

    def _check(self, attr: str) -> None:
        require(attr in self._allowed, f"Unknown attribute {attr!r}: it must be one of {list(self._allowed)}")


class Optimizer:
    """What the optimizers here have in common: variable attributes, and the device's state in the state dict.

    The device's state is {"ipu_state": …, "ipu_param": …}: None before compilation, then kept here whenever an executor
    leaves it, or read from the executor while one is linked.
    """

    def __init__(self) -> None:
        self._device_state: dict[str, Any] = {"ipu_state": None, "ipu_param": None}
        self._read_device: Callable[[], dict[str, Any]] | None = None
        self._write_device: Callable[[dict[str, Any]], None] | None = None
        self._keep_device: Callable[[], dict[str, Any]] | None = None

    def _configure(
        self, allowed: tuple[str, ...], dtypes: dict[str, torch.dtype | None], numbers: dict[str, Any]
    ) -> None:
        """Set the attributes that all kinds have. `numbers`: constructor arguments by name, None = not given."""
        Optimizer.__init__(self)
        self.given_attributes = frozenset(given(**numbers, **dtypes))
        for name, dtype in dtypes.items():
            dtype = torch.float32 if dtype is None else dtype
            require(
                dtype in (torch.float16, torch.float32), f"{name} must be torch.float16 or torch.float32, not {dtype}"
            )
            setattr(self, name, dtype)
        loss_scaling = numbers["loss_scaling"]
        self.loss_scaling = 1.0 if loss_scaling is None else float(loss_scaling)
        require(self.loss_scaling > 0.0, f"loss_scaling must be positive, not {loss_scaling}")
        self.variable_attrs = VariableAttributes([name for name in allowed if numbers.get(name) is not None], allowed)

    def has_state(self) -> bool:
        """Whether there is a state of the device: an executor has left one, or one was loaded."""
        return self._read_device is not None or self._device_state["ipu_state"] is not None

    def get_state_dict(self) -> dict[str, Any]:
        """The device's part of the state: {"ipu_state": …, "ipu_param": …}."""
        return self._device_state if self._read_device is None else self._read_device()

    def set_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the device's part of the state that is kept here; a linked executor is not told."""
        self._device_state = dict(state)

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict and the device's part: CPU tensors under PopART's names, None before compilation.

        Where several processes have parts of the state all must ask while an executor is linked. The first gets the
        values, in a file of the temporary folder, the others shapes and types (device "meta") and all numbers.
        """
        host = super().state_dict() if isinstance(self, torch.optim.Optimizer) else {}
        return {**host, **self.get_state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what state_dict() returned: groups, and the device's part for the executor to continue from.

        Raises:
            RuntimeError: an empty state, one from before compilation, one without values, which state_dict() gives
                to all but the first of several processes, or a state of a plain torch optimizer.
        """
        if not state:
            raise RuntimeError("Cannot load the optimizer state: it is empty.")
        if "ipu_state" not in state or "ipu_param" not in state:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        if state["ipu_state"] is None or state["ipu_param"] is None:
            raise RuntimeError(
                "Cannot load the optimizer state: it is empty, having been read before the model was compiled."
            )
        if any(tensor.is_meta for tensor in state["ipu_state"].values()):
            raise RuntimeError(
                "Cannot load the optimizer state: of several processes the first alone has the values of state_dict(). "
                "Let it write them to a file, and load that in all of them."
            )
        host = {key: state[key] for key in ("state", "param_groups") if key in state}
        device = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
        if len(host) == 2:
            super().load_state_dict(host)
        if self._write_device is not None:
            self._write_device(device)
        else:
            self._device_state = device

    def _link_device(
        self,
        read: Callable[[], dict[str, Any]],
        write: Callable[[dict[str, Any]], None],
        keep: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """From now on the state lives in an executor that `read` and `write` reach.

        `keep` reads what this process needs to go on by itself; `read`, if there is only one process.
        """
        self._read_device, self._write_device = read, write
        self._keep_device = read if keep is None else keep
        self._device_state = {"ipu_state": None, "ipu_param": None}

    def _unlink_device(self) -> None:
        """Bring the state back from the executor and keep it here."""
        if self._keep_device is not None:
            self._device_state = self._keep_device()
        self._read_device = self._write_device = self._keep_device = None

    @contextmanager
    def _linked_to(self, state: dict[str, Any]) -> Iterator[None]:
        """Inside this context that is the executor's state, for who writes it down."""
        keep, self._keep_device = self._keep_device, lambda: state
        try:
            yield
        finally:
            self._keep_device = keep

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: self.__dict__[name] for name in ATTRIBUTES if name in self.__dict__}
        kept["_device_state"] = self._device_state if self._keep_device is None else self._keep_device()
        host = super().__getstate__() if isinstance(self, torch.optim.Optimizer) else {}
        return {**host, **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_read_device" not in self.__dict__:  # torch calls this for load_state_dict() too, on a whole object
            Optimizer.__init__(self)
        if isinstance(self, torch.optim.Optimizer):
            super().__setstate__(state)
        else:
            self.__dict__.update(state)


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None: torch's defaults hold for the others."""
    return {name: value for name, value in arguments.items() if value is not None}
