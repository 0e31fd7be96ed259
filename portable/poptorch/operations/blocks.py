"""Blocks: which operations belong together, and on which IPU (spec section 8).

Outside a trace every function here is without effect on the computation. While a model is traced the tracker of the
trace turns the beginning of a block into a marker in the graph, from which the engine cuts its stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..engine.tracing import export as tracing
from ..engine.tracing import markers
from ..enums import AutoStage
from ..poptorch_core import createPoptorchError

BlockId = str | int | None


class BlockTracker:
    """The blocks met while one model is traced."""

    def __init__(self, strategy: Any):
        self._strategy = strategy
        self._numbers: dict[str, int] = {}  # block id -> position among those entered so far
        self._closed = False
        self._first_auto_id = _auto_id
        self.met: list[tuple[str, int]] = []  # (block id, ipu) of every beginning, in order

    def begin(self, user_id: BlockId, ipu_id: int | None) -> None:
        """Start a block: resolve its IPU by the strategy and leave a marker."""
        block_id = _next_auto_id() if user_id is None else str(user_id)
        ipu = self._ipu(block_id, ipu_id)
        self._closed = False
        self.met.append((block_id, ipu))
        markers.BEGIN_BLOCK(block_id, ipu)

    def forget(self) -> None:
        """The trace begins again."""
        global _auto_id
        _auto_id = self._first_auto_id
        self._numbers.clear()
        self._closed = False
        self.met.clear()

    def close(self) -> None:
        """Leave a `with` block: from here on no block is active, not even an outer one."""
        self._closed = True

    def check_active(self) -> None:
        """Refuse an operation outside every block, in a model that has blocks."""
        if self._closed:
            raise createPoptorchError("No active Block, all the ops must belong to a Block")

    def _ipu(self, block_id: str, ipu_id: int | None) -> int:
        auto = self._strategy.auto_stage
        if auto is AutoStage.SameAsIpu and ipu_id is None:
            raise AssertionError(
                f"poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {block_id}"
            )
        if auto is not None:  # a stage for each id under AutoIncrement, and an IPU for each stage without one
            number = self._numbers.setdefault(block_id, len(self._numbers))
            return number if ipu_id is None else ipu_id
        stage, stage_ipu = self._strategy.lookup(block_id)
        return next(ipu for ipu in (stage_ipu, ipu_id, stage) if ipu is not None)


_auto_id = 0


def _next_auto_id() -> str:
    global _auto_id
    _auto_id += 1
    return str(_auto_id - 1)


def _begin(user_id: BlockId, ipu_id: int | None) -> None:
    trace = tracing.current()
    if trace is not None:
        trace.blocks.begin(user_id, ipu_id)


class Block:
    """`with poptorch.Block("id", ipu_id=0):` puts the operations inside it into one block."""

    def __init__(self, user_id: BlockId = None, ipu_id: int | None = None):
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __enter__(self) -> Block:
        _begin(self._user_id, self._ipu_id)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        trace = tracing.current()
        if trace is not None and type is None:
            trace.blocks.close()

    @staticmethod
    def start(user_id: BlockId = None, ipu_id: int | None = None) -> None:
        """Begin a block that lasts until the next one begins."""
        _begin(user_id, ipu_id)

    @staticmethod
    def useAutoId() -> None:
        """Number the blocks without an id from "0" again."""
        global _auto_id
        _auto_id = 0


class _BlockHook:
    """The forward pre-hook that BeginBlock leaves on a module."""

    def __init__(self, user_id: BlockId, ipu_id: int | None):
        self.user_id = user_id
        self.ipu_id = ipu_id

    def __call__(self, module: torch.nn.Module, inputs: Any) -> None:
        _begin(self.user_id, self.ipu_id)

    def describe(self) -> str:
        """As shown by module_repr."""
        return f"BeginBlock(user_id={self.user_id}, ipu_id={self.ipu_id})"


def block_hook(module: torch.nn.Module) -> _BlockHook | None:
    """The block that begins at `module`, if one does."""
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _BlockHook)), None)


class LegacyBeginBlockFn:
    """A function before whose call a block begins."""

    def __init__(self, layer_to_call: Callable, user_id: BlockId = None, ipu_id: int | None = None):
        self._layer_to_call = layer_to_call
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        _begin(self._user_id, self._ipu_id)
        return self._layer_to_call(*input, **kwargs)


def BeginBlock(layer_to_call: Any, user_id: BlockId = None, ipu_id: int | None = None) -> Any:
    """Let a block begin whenever `layer_to_call` is called; it lasts until the next block begins.

    A module is returned itself, with a hook; a function is returned wrapped. Raises poptorch.Error if the module
    begins a block already, or if `layer_to_call` is neither.
    """
    if isinstance(layer_to_call, torch.nn.Module):
        if block_hook(layer_to_call) is not None:
            raise createPoptorchError("module has already been assigned to a block.")
        layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
        return layer_to_call
    if callable(layer_to_call):
        return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
    raise createPoptorchError(f"BeginBlock needs a torch.nn.Module or a function, not {type(layer_to_call)}.")


def BlockFunction(user_id: BlockId = None, ipu_id: int | None = None) -> Callable:
    """A decorator: the operations of the function form a block."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def inside_block(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return inside_block

    return decorate


def removeBlocks(module: torch.nn.Module) -> None:
    """Take every block off `module` and its submodules."""
    if not isinstance(module, torch.nn.Module):
        raise createPoptorchError(f"removeBlocks needs a torch.nn.Module, not {type(module)}.")
    for layer in module.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, _BlockHook):
                del layer._forward_pre_hooks[key]


def module_repr(m: torch.nn.Module) -> str:
    """repr(m) with each block shown at the module where it begins, before the name of its class."""
    blocks = {id(layer): hook.describe() for layer in m.modules() if (hook := block_hook(layer)) is not None}
    if not blocks:
        return repr(m)

    def text(layer: torch.nn.Module) -> str:
        prefix = f"{blocks[id(layer)]} " if id(layer) in blocks else ""
        if not any(id(inner) in blocks for inner in layer.modules() if inner is not layer):
            return prefix + repr(layer)
        own = layer.extra_repr()
        parts = [own] * bool(own) + [f"({name}): {text(child)}" for name, child in layer.named_children()]
        return f"{prefix}{layer._get_name()}(\n  " + "\n".join(parts).replace("\n", "\n  ") + "\n)"

    return text(m)
