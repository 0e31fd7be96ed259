"""What a program's tensors take, by kind and by stage: counted while it runs, not estimated.

Weights, buffers (constants with them), gradients and the optimizer's states are the tensors that the device has.
Activations are what the backward pass of one micro-batch keeps (those that run as one count as one), multiplied by as
many as were under way at the same time; in inference, what a stage hands on. Recomputed is what the largest segment
that is computed again holds until its backward pass is done. A tensor that several stages use counts for the first of
them.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..engine import recomputation

KINDS = ("weights", "buffers", "gradients", "optimizer", "activations", "recomputed")


class MemoryMeter:
    """Counts bytes by stage and kind for one executor.

    Args:
        stages: of the program, those of other processes included.
    """

    def __init__(self, stages: Sequence[Any]):
        self._stages = stages
        self._held: dict[int, dict[str, int]] = {}  # by stage, kind
        self._passing: dict[int, dict[str, int]] = {}
        # Stage that a storage was first seen in. Such a reference keeps the key from being used again.
        self._first: dict[int, tuple[int, StorageWeakRef | None]] = {}
        self._flying: dict[int, int] = {}  # micro-batches of a stage that have not come back
        self._most_flying: dict[int, int] = {}
        self.together = 1  # micro-batches that the activations are of
        self._measured: set[int] = set()

    # -- activations -----------------------------------------------------------------------------------------------

    def begin(self, together: int) -> None:
        """The next forward passes are of the micro-batches that are to be measured, `together` of them as one."""
        self.together = together
        self._measured.clear()

    @contextlib.contextmanager
    def forward(self, stage: Any, values: Mapping[str, Any], known: Sequence[torch.Tensor]) -> Iterator[None]:
        """Around the forward pass of a stage. `known` are tensors that are no activations."""
        if stage.index in self._measured:  # they did not run as one after all
            self.together = 1
        self._measured.add(stage.index)
        found: dict[int, tuple[int, StorageWeakRef | None]] = {}  # bytes
        others = {_place(tensor) for tensor in known}
        self._passing[stage.index] = kinds = {"activations": 0, "recomputed": 0}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if _place(tensor) not in others:
                found[_place(tensor)] = _bytes(tensor), _weak(tensor)
            return tensor

        def again() -> _Made:
            return _Made(lambda made: kinds.update(recomputed=max(kinds["recomputed"], made)))

        if torch.is_grad_enabled():
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), recomputation.watched(again):
                yield
        else:
            yield
            for name in stage.outputs:
                for tensor in pytree.tree_leaves(values.get(name)):
                    if isinstance(tensor, torch.Tensor) and _place(tensor) not in others:
                        found[_place(tensor)] = _bytes(tensor), _weak(tensor)
        for place, (size, reference) in found.items():
            if self._first.setdefault(place, (stage.index, reference))[0] == stage.index:
                kinds["activations"] += size

    def sent(self, stage: int) -> None:
        """A micro-batch has gone through `stage`, in training."""
        self._flying[stage] = self._flying.get(stage, 0) + 1
        self._most_flying[stage] = max(self._most_flying.get(stage, 0), self._flying[stage])

    def back(self, stages: Sequence[int]) -> None:
        """A micro-batch has come back through these stages."""
        for stage in stages:
            self._flying[stage] = max(0, self._flying.get(stage, 0) - 1)

    def call_ended(self) -> None:
        """What was under way is not any more, even if the call was broken off."""
        self._flying.clear()
        self._first.clear()

    # -- what stays ------------------------------------------------------------------------------------------------

    def holds(
        self, state: Any, gradients: Mapping[str, torch.Tensor], states: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        """Count what the device holds: parameters and buffers of a DeviceState, gradients and states by parameter."""
        stage_of: dict[int, int] = {}
        for stage in reversed(self._stages):
            for segment in stage.segments:
                stage_of.update(
                    (id(state.values[name]), stage.index) for name in segment.inputs if name in state.values
                )
        first = self._stages[0].index
        self._held = {}

        def add(kind: str, stage: int, size: int) -> None:
            kinds = self._held.setdefault(stage, {})
            kinds[kind] = kinds.get(kind, 0) + size

        for name, parameter in state.parameters.items():
            stage = stage_of.get(id(parameter), first)
            add("weights", stage, _bytes(parameter))
            if name in gradients:
                add("gradients", stage, _bytes(gradients[name]))
            for tensor in states.get(name, {}).values():
                add("optimizer", stage, _bytes(tensor))
        for buffer, copies in state.all_buffers():
            add("buffers", stage_of.get(id(buffer), first), _bytes(buffer) * copies)
        counted = {_place(tensor) for tensor in (*state.parameters.values(), *state.buffers.values())}
        for tensor in state.values.values():  # constants: tensors that the model has, but did not register
            if isinstance(tensor, torch.Tensor) and _place(tensor) not in counted:
                counted.add(_place(tensor))
                add("buffers", stage_of.get(id(tensor), first), _bytes(tensor))

    def record(self, stages: Sequence[int]) -> list[dict[str, int]]:
        """Bytes by kind of each of these stages, and their sum; `in_flight` counts micro-batches, `together` as one."""
        rows = []
        for stage in stages:
            kinds = {**self._held.get(stage, {}), **self._passing.get(stage, {})}
            flying = max(1, self._most_flying.get(stage, 1))
            kinds["activations"] = kinds.get("activations", 0) * flying
            sizes = {kind: kinds.get(kind, 0) for kind in KINDS}
            rows.append({"stage": stage, "in_flight": flying, **sizes, "total": sum(sizes.values())})
        return rows


def peak(device: torch.device) -> dict[str, Any]:
    """The most memory so far: allocated on a CUDA device, resident of the process on a CPU."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "allocated on the device"}
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"bytes": used, "of": "resident, of the process with Python and torch"}


class _Made(TorchDispatchMode):
    """Tells `tell` how many bytes of what was made inside are still used at the end."""

    def __init__(self, tell: Any):
        super().__init__()
        self._tell = tell
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self._given |= {_cdata(tensor) for tensor in _dense((args, kwargs))} - self._made.keys()
        for tensor in _dense(result):
            if _cdata(tensor) not in self._made and _cdata(tensor) not in self._given:
                # Such a reference keeps the address from being used again.
                self._made[_cdata(tensor)] = (StorageWeakRef(tensor.untyped_storage()), _bytes(tensor))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._tell(sum(size for storage, size in self._made.values() if not storage.expired()))


def _dense(values: Any) -> list[torch.Tensor]:
    return [each for each in pytree.tree_leaves(values) if isinstance(each, torch.Tensor) and _has_storage(each)]


def _has_storage(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _cdata(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place(tensor: torch.Tensor) -> int:
    return _cdata(tensor) if _has_storage(tensor) else id(tensor)


def _weak(tensor: torch.Tensor) -> StorageWeakRef | None:
    return StorageWeakRef(tensor.untyped_storage()) if _has_storage(tensor) else None


def _bytes(tensor: torch.Tensor) -> int:
    """Of all the memory that a tensor keeps, as of a view all that it is a view of."""
    if not _has_storage(tensor):
        return tensor.numel() * tensor.element_size()
    return tensor.untyped_storage().nbytes()
