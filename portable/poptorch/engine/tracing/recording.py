"""How forward() becomes a graph: its operations are recorded one by one, as they meet fake tensors.

A mode of torch's dispatcher sees each operation before autograd does and before composite ones are taken apart: the
graph is the one that torch.export makes in its non-strict way, which records likewise, but without what export does
around it (for every node a line of the program, its module's and its function's names and checks; a signature; guards),
which is most of its time. What this mode does not know (operators of higher order, shapes that depend on values,
torch.vmap) it refuses with NotRecorded, and export is asked.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ...poptorch_core import Error
from .fakes import FakeMode

ENTRY = "model"  # the traced model's name in the module that is traced
_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class NotRecorded(Error):
    """forward() does something that this way of tracing does not follow."""


class _Recorder(ProxyTorchDispatchMode):
    """Sees every operation that forward() runs and adds it to a graph.

    torch lets no other class than ProxyTorchDispatchMode see operations this early; only its place is used here.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self._mode_key = torch._C._TorchDispatchModeKey.PROXY
        self.enter_stack: list[Any] = []
        self.graph = torch.fx.Graph()
        self.graph.owning_module = torch.nn.Module()
        self.constants: dict[str, torch.Tensor] = {}
        self.path = ENTRY  # of the module that runs
        # Weakly held: torch's factories copy what somebody else holds, and the copy would be unknown.
        self._nodes = WeakTensorKeyDictionary()
        self._layouts: list[tuple[torch.fx.Node, _Layout]] = []
        # By memory, held so that no other gets its address: what autograd keeps of a result is a new tensor.
        self._in_memory: dict[int, tuple[torch.UntypedStorage, list[tuple[torch.fx.Node, int, _Layout]]]] = {}
        self._last_placeholder: torch.fx.Node | None = None

    def placeholder(self, name: str, tensor: torch.Tensor) -> torch.fx.Node:
        """A placeholder for `tensor`, behind those that there are."""
        with self.graph.inserting_after(self._last_placeholder):  # None: the beginning
            self._last_placeholder = self.graph.placeholder(name.replace(".", "_"))
        self._track(tensor, self._last_placeholder)
        return self._last_placeholder

    def node_of(self, tensor: torch.Tensor) -> torch.fx.Node:
        """The node that makes `tensor`; a tensor from outside becomes a constant of the graph."""
        node = self._nodes.get(tensor)
        if node is not None:
            return node
        if isinstance(tensor, FakeTensor):
            node = self._kept_by_autograd(tensor)
            if node is not None:
                return node
            raise NotRecorded(f"a tensor of shape {tuple(tensor.shape)} has an origin that tracing cannot follow")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or _is_wrapped(tensor):
            raise NotRecorded(f"a tensor of the class {type(tensor).__name__}")
        node = self.placeholder(f"c_{len(self.constants)}", tensor)
        self.constants[node.name] = tensor
        return node

    def _kept_by_autograd(self, tensor: torch.Tensor) -> torch.fx.Node | None:
        """What torch.autograd.grad() reads, as a node through which gradients pass on, if that is known.

        It is a result that autograd has kept, in a tensor of its own, or an operand that a product has transposed.
        """
        _, made = self._in_memory.get(tensor.untyped_storage()._cdata, (None, []))
        shape, stride, dtype = _layout_of(tensor)
        for node, offset, layout in reversed(made):
            if offset == tensor.storage_offset() and layout == (shape, stride, dtype):
                return node
            if offset == tensor.storage_offset() and layout == (shape[::-1], stride[::-1], dtype) and len(shape) == 2:
                transposed = self.graph.call_function(torch.ops.aten.t.default, (node,))
                transposed.meta["nn_module_stack"] = {"": (self.path, "")}
                self._track(tensor, transposed)
                return transposed
        return None

    def finish(self, outputs: tuple[torch.Tensor, ...]) -> None:
        """End the graph with these outputs; every node says what its tensor is like."""
        self.graph.output(tuple(map(self.node_of, outputs)))
        for node, (shape, stride, dtype) in self._layouts:
            node.meta["val"] = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        for node in reversed(list(self.graph.nodes)):  # what autograd did for itself
            if node.target is torch.ops.aten.detach.default and not node.users:
                self.graph.erase_node(node)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:  # of torch.tensor(...): forward() may write to what it made
            func = torch.ops.aten.lift_fresh_copy.default
        node_args, node_kwargs = self._as_nodes(args), self._as_nodes(kwargs)
        result = func(*args, **kwargs)
        name = self.graph._target_to_str(func.overloadpacket.__name__)
        node = self.graph.create_node("call_function", func, node_args, node_kwargs, name=name)
        node.meta["nn_module_stack"] = {"": (self.path, "")}
        self._track_result(result, node)
        return result

    def _as_nodes(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        if isinstance(value, (list, tuple)):
            return type(value)([self._as_nodes(item) for item in value])
        if isinstance(value, dict):
            return {key: self._as_nodes(item) for key, item in value.items()}
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise NotRecorded("a number that depends on values")
        return value

    def _track_result(self, result: Any, node: torch.fx.Node) -> None:
        if isinstance(result, torch.Tensor):
            self._track(result, node)
        elif isinstance(result, (list, tuple)):
            for position, item in enumerate(result):
                if isinstance(item, (torch.Tensor, list, tuple)):
                    part = self.graph.call_function(operator.getitem, (node, position))
                    part.meta["nn_module_stack"] = node.meta["nn_module_stack"]
                    self._track_result(item, part)
                elif item is not None:
                    raise NotRecorded(f"{node.target} gives a {type(item).__name__}")
        elif result is not None:
            raise NotRecorded(f"{node.target} gives a {type(result).__name__}")

    def _track(self, tensor: torch.Tensor, node: torch.fx.Node) -> None:
        if tensor.layout is not torch.strided or _is_wrapped(tensor):
            raise NotRecorded(f"{node.target} gives a tensor of the layout {tensor.layout}")
        self._nodes[tensor] = node
        layout = _layout_of(tensor)
        self._layouts.append((node, layout))
        if node.target is not torch.ops.aten.detach.default:
            memory = tensor.untyped_storage()
            self._in_memory.setdefault(memory._cdata, (memory, []))[1].append((node, tensor.storage_offset(), layout))


def _layout_of(tensor: torch.Tensor) -> _Layout:
    return tensor.shape, tensor.stride(), tensor.dtype


def _is_wrapped(tensor: torch.Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def record(
    entry: torch.nn.Module, model: torch.nn.Module, leaves: list[torch.Tensor]
) -> tuple[torch.fx.Graph, dict[str, str], dict[str, str], dict[str, torch.Tensor], list[str]]:
    """Run `entry(*leaves)` once, `model` being a part of it with fake parameters and buffers.

    Returns the graph; placeholder -> name in `model` for parameters and for buffers; placeholder -> value for
    constants; the placeholders of the leaves. Raises NotRecorded for what only torch.export follows.
    """
    recorder, mode = _Recorder(), FakeMode()
    fakes: dict[int, torch.Tensor] = {}  # by id() of the parameter or buffer: a tied one is one tensor
    found: tuple[dict[str, str], dict[str, str]] = ({}, {})
    members = (model.named_parameters(), model.named_buffers())
    for placeholders, prefix, named in zip(found, ("p_", "b_"), members, strict=True):
        for name, tensor in named:
            fakes[id(tensor)] = mode.from_tensor(tensor)
            placeholders[recorder.placeholder(prefix + name, fakes[id(tensor)]).name] = name
    inputs = [mode.from_tensor(leaf) for leaf in leaves]
    names = [recorder.placeholder(f"leaves_{index}", leaf).name for index, leaf in enumerate(inputs)]
    with mode, _held_instead(model, fakes), _said_to_compile(), _paths(recorder, model):
        with enable_python_dispatcher(), recorder:
            outputs = entry(*inputs)
    recorder.finish(outputs)
    return recorder.graph, *found, recorder.constants, names


@contextlib.contextmanager
def _held_instead(model: torch.nn.Module, tensors: dict[int, torch.Tensor]) -> Iterator[None]:
    """Inside this context the modules hold `tensors` in the places of their parameters and buffers, given by id()."""
    held = [members for module in model.modules() for members in (module._parameters, module._buffers)]
    before = [dict(members) for members in held]
    try:
        for members in held:
            members.update({name: tensors.get(id(value), value) for name, value in members.items()})
        yield
    finally:
        for members, own in zip(held, before, strict=True):
            members.clear()
            members.update(own)


@contextlib.contextmanager
def _said_to_compile() -> Iterator[None]:
    """Inside this context torch.compiler.is_compiling() and is_exporting() are true, as they are while exporting.

    Libraries ask before they look at values.
    """
    before = torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag
    torch.compiler._is_compiling_flag = torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag = before


@contextlib.contextmanager
def _paths(recorder: _Recorder, model: torch.nn.Module) -> Iterator[None]:
    """Inside this context the recorder knows which module runs."""
    paths = {id(module): f"{ENTRY}.{name}" if name else ENTRY for name, module in model.named_modules()}
    original = torch.nn.Module.__call__

    def called(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        before, recorder.path = recorder.path, paths.get(id(module), recorder.path)
        try:
            return original(module, *args, **kwargs)
        finally:
            recorder.path = before

    torch.nn.Module.__call__ = called
    try:
        yield
    finally:
        torch.nn.Module.__call__ = original
