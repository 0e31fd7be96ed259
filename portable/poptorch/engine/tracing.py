"""From a module to a graph: `forward` runs once, on one micro-batch, and is never run again.

torch.export records the operations; a TorchFunctionMode that is active during the call sees every torch function
first and does what the contract asks of tracing (losses, devices, types, refusals); the block, checkpoint and loop
markers say where things are (spec sections 1, 4, 8 and 14).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensor
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode

from ..poptorch_core import createPoptorchError
from . import functions, markers

# torch functions that are a loss by themselves (spec section 4).
LOSS_FUNCTIONS = frozenset(
    {
        F.nll_loss,
        F.cross_entropy,
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.kl_div,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.poisson_nll_loss,
        F.hinge_embedding_loss,
        F.margin_ranking_loss,
        F.soft_margin_loss,
        F.multilabel_soft_margin_loss,
        F.cosine_embedding_loss,
        F.triplet_margin_loss,
        F.ctc_loss,
    }
)
# torch wants int64 indices here, while on the device every integer has at most 32 bits.
_LONG_INDEX = {F.cross_entropy: 1, F.nll_loss: 1, F.one_hot: 0, torch.take_along_dim: 1}
# Parameters take the type of the activation (spec section 14).
_ACTIVATION_TYPED = {  # function: position of the activation
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d), 0),
    **dict.fromkeys((F.conv_transpose3d, F.layer_norm, F.group_norm), 0),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm), 0),
    **dict.fromkeys((torch.addmm, torch.baddbmm), 1),
}
# A value that only the device knows cannot steer Python.
_HOST_VALUES = {
    torch.Tensor.item: "item()",
    torch.Tensor.tolist: "tolist()",
    torch.Tensor.numpy: "numpy()",
    torch.Tensor.__bool__: "bool()",
    torch.Tensor.__int__: "int()",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__index__: "an index",
}
# What may be asked of a tensor anywhere: nothing is computed.
_METADATA = frozenset({torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.stride})
_METADATA |= {torch.Tensor.is_floating_point, torch.Tensor.__len__, torch.Tensor.storage_offset, torch.is_tensor}
# A host tensor becomes one of the device's by these.
_MOVES = frozenset({torch.Tensor.to, torch.Tensor.type_as, torch.as_tensor, torch.tensor})


@dataclasses.dataclass
class TraceContext:
    """What the contract's functions (Block, for_loop, …) need to know of the trace in progress."""

    training: bool
    blocks: Any  # contract: poptorch.blocks.BlockTracker
    loops: int = 0  # numbers given to loops so far
    functions: list[Any] = dataclasses.field(default_factory=list)  # torch.autograd.Functions met, in order


_active: TraceContext | None = None


def current() -> TraceContext | None:
    """The trace in progress, or None."""
    return _active


@dataclasses.dataclass
class TracedGraph:
    """One micro-batch's computation as a graph without state.

    Every parameter, buffer and constant is a placeholder. `inputs` are the placeholders of the user's tensors in
    order; `output_dtypes` are the types the program gave its output tensors. The arguments of the graph's output node
    are these tensors and, behind them, the loss if one was found.
    """

    graph: torch.fx.Graph
    parameters: dict[str, str]  # placeholder -> name in the module
    buffers: dict[str, str]
    constants: dict[str, torch.Tensor]
    inputs: list[str]
    output_dtypes: list[torch.dtype]
    buffer_values: dict[str, torch.Tensor]  # placeholder -> the host's tensor at compilation
    modules: dict[str, torch.nn.Module] = dataclasses.field(default_factory=dict)  # bodies of loops
    folded: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # buffers compiled in as constants

    @property
    def outputs(self) -> list[torch.fx.Node]:
        """The nodes of the output tensors, in order."""
        return self._results()[: len(self.output_dtypes)]

    @property
    def loss(self) -> torch.fx.Node | None:
        """The node to differentiate, in a training program."""
        results = self._results()
        return results[-1] if len(results) > len(self.output_dtypes) else None

    def set_loss(self, loss: torch.fx.Node) -> None:
        """Make `loss` a result of the graph, so that no pass drops it."""
        output = self.graph.output_node()
        output.args = ((*output.args[0], loss),)

    def _results(self) -> list[torch.fx.Node]:
        return list(self.graph.output_node().args[0])


class _ProgramMode(TorchFunctionMode):
    """Sees every torch function that `forward` calls, before torch does."""

    def __init__(self, context: TraceContext):
        super().__init__()
        self._context = context

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _HOST_VALUES:
            raise createPoptorchError(
                f"{_HOST_VALUES[func]} of a tensor was asked for in forward(), but the value is only known when the "
                "compiled program runs. Use tensor operations (torch.where, poptorch.cond) instead."
            )
        if func is torch._C._set_grad_enabled:
            # torch.no_grad() in forward(): recorded it would become a submodule, out of reach of blocks and losses.
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__" or func in _METADATA:
            return func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload):  # a step of tracing itself, or a native operator
            return func(*args, **kwargs)
        result = self._call(func, args, kwargs)
        return result if torch.is_grad_enabled() else _detached(result, args)

    def _call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        self._context.blocks.check_active()
        if func not in _MOVES:
            _check_on_device(func, args, kwargs)
        args = tuple(_host_device(value) for value in args)
        if "device" in kwargs:
            kwargs["device"] = _host_device(kwargs["device"])
        if func in _LONG_INDEX:
            args, kwargs = _with_long_index(_LONG_INDEX[func], args, kwargs)
        elif func in _ACTIVATION_TYPED and len(args) > _ACTIVATION_TYPED[func]:
            args, kwargs = _with_activation_type(args[_ACTIVATION_TYPED[func]], args, kwargs)
        if func in LOSS_FUNCTIONS:
            if func in (F.nll_loss, F.cross_entropy) and (kwargs.get("weight") is not None or _weight(args)):
                raise createPoptorchError(f"The class weights of {func.__name__} are not supported by PopTorch.")
            result = functions.ctc_loss(*args, **kwargs) if func is F.ctc_loss else func(*args, **kwargs)
            markers.MARK_LOSS(result, str(kwargs.get("reduction", "mean")))
            return result
        result = func(*args, **kwargs)
        if func in _MOVES and isinstance(result, torch.Tensor) and not isinstance(result, FakeTensor):
            return result.clone()  # which makes a constant of a host tensor that was there already
        return result


def _weight(args: tuple) -> bool:
    return len(args) > 2 and args[2] is not None


def _check_on_device(func: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    for value in torch.utils._pytree.tree_leaves((args, kwargs)):
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            raise createPoptorchError(
                f"Expected an IPU tensor but got tensor(device=cpu) of shape {tuple(value.shape)} in "
                f"{getattr(func, '__name__', func)}. A tensor that forward() takes from outside the model is not on "
                'the device: pass it as an input, register it as a buffer, or move it with .to("ipu").'
            )


def _detached(result: Any, args: tuple) -> Any:
    """What was computed under torch.no_grad() passes no gradient on; a tensor changed in place stays itself."""
    inputs = {id(value) for value in torch.utils._pytree.tree_leaves(args)}

    def detach(value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) and id(value) not in inputs else value

    return torch.utils._pytree.tree_map(detach, result)


def _host_device(value: Any) -> Any:
    """`device="ipu"` as user programs write it; the engine moves the graph to its device later."""
    if isinstance(value, str) and (value == "ipu" or value.startswith("ipu:")):
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "ipu" else value


def _with_long_index(position: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def long(value: Any) -> Any:
        narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8)
        return value.long() if narrow else value

    if len(args) > position:
        return args[:position] + (long(args[position]),) + args[position + 1 :], kwargs
    return args, {
        key: long(value) if key in ("target", "tensor", "indices") else value for key, value in kwargs.items()
    }


def _with_activation_type(activation: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    dtype = activation.dtype if isinstance(activation, torch.Tensor) else None
    if dtype not in (torch.float16, torch.float32, torch.bfloat16):
        return args, kwargs

    def cast(value: Any) -> Any:
        other = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype
        return value.to(dtype) if other else value

    return tuple(cast(value) for value in args), {key: cast(value) for key, value in kwargs.items()}


class _Entry(torch.nn.Module):
    """Takes the tensor leaves and nothing else; what the call made besides them is left in `box`."""

    def __init__(self, model: torch.nn.Module, call: Callable[[Any, list], list], context: TraceContext):
        super().__init__()
        self.model = model
        self._call = call
        self._context = context

    def forward(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Callables of module attributes may not keep state across export (it rolls attributes back), so `_call`
        # writes what it learns into its own closure.
        before = _tensors(self.model)
        with _ProgramMode(self._context), functions.recorded(self._context.functions):
            outputs = tuple(self._call(self.model, list(leaves)))
        _check_not_reassigned(self.model, before)
        return outputs


@contextlib.contextmanager
def _tracing(context: TraceContext) -> Iterator[None]:
    global _active
    if _active is not None:
        raise createPoptorchError("A PopTorch model cannot be compiled while another one is being compiled.")
    noisy = [logging.getLogger(name) for name in ("torch._subclasses.fake_tensor", "torch.fx.experimental")]
    levels = [logger.level for logger in noisy]
    rng_state = torch.get_rng_state()  # torch.manual_seed in forward() acts on the real generator
    _active = context
    try:
        for logger in noisy:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        _active = None
        torch.set_rng_state(rng_state)
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def trace(
    model: torch.nn.Module,
    call: Callable[[torch.nn.Module, list[torch.Tensor]], list[torch.Tensor]],
    leaves: list[torch.Tensor],
    context: TraceContext,
) -> TracedGraph:
    """Run `call(model, leaves)` once and return its graph.

    `leaves` are the tensors of one micro-batch; `call` returns the output tensors. Errors of the contract that
    `forward` meets pass through; anything else torch cannot trace becomes a poptorch.Error that says where.
    """
    entry = _Entry(model, call, context)
    with _tracing(context), torch.enable_grad():
        # PopTorch never calls train() or eval(): each submodule is traced in the mode it is in.
        entry.training = model.training
        try:
            exported = torch.export.export(entry, tuple(leaves), strict=False)
        except Exception as error:
            if not type(error).__module__.startswith("torch"):
                raise  # the program's own error, or the contract's
            raise createPoptorchError(
                f"forward() of {type(model).__name__} could not be traced: {type(error).__name__}: {error}"
            ) from error
    traced = _lifted(exported, model)
    functions.replace_functions(traced.graph, traced.constants, context.functions)
    return traced


def _tensors(model: torch.nn.Module) -> dict[str, tuple[str, torch.Tensor]]:
    """{name: (kind, tensor)} of what forward() may not reassign; BatchNorm's statistics are its own affair."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            continue
        for kind, members in (("Parameter", module._parameters), ("Buffer", module._buffers)):
            for name, tensor in members.items():
                if tensor is not None:
                    found[f"{prefix}.{name}" if prefix else name] = (kind, tensor)
    return found


def _check_not_reassigned(model: torch.nn.Module, before: dict[str, tuple[str, torch.Tensor]]) -> None:
    """Export would turn `self.buffer = …` silently into a copy: refuse it, as the contract does (section 9)."""
    after = _tensors(model)
    for name, (kind, tensor) in before.items():
        if name not in after:
            raise createPoptorchError(f"{kind} {name} is removed from the model when calling the forward method.")
        if after[name][1] is not tensor:
            raise createPoptorchError(
                f"{kind} {name} is reassigned within the model when calling the forward method. This is not "
                f"supported. Consider using self.{name}.copy_(src) to copy data from a source tensor, where src is "
                "the name of the source tensor."
            )


def _lifted(exported: torch.export.ExportedProgram, model: torch.nn.Module) -> TracedGraph:
    """The exported graph with its placeholders told apart."""
    signature, graph = exported.graph_signature, exported.graph_module.graph
    parameters, buffers, constants, inputs = {}, {}, {}, []
    for spec in signature.input_specs:
        name = spec.arg.name
        target = (spec.target or "").removeprefix("model.")
        if spec.kind == InputKind.PARAMETER:
            parameters[name] = target
        elif spec.kind == InputKind.BUFFER:
            buffers[name] = target
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            constants[name] = exported.constants[spec.target]
        elif spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
        else:
            raise createPoptorchError(
                f"forward() captures an object that cannot be compiled: {spec.kind} {spec.target}."
            )
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op == "get_attr":  # the body of a higher-order operator
            user = next(iter(node.users), node)
            raise createPoptorchError(f"forward() uses {user.target}, which cannot be compiled: remove it.")
    dtypes = [node.meta["val"].dtype for node in graph.output_node().args[0]]
    host_buffers = dict(model.named_buffers(remove_duplicate=False))
    values = {placeholder: host_buffers[name].detach() for placeholder, name in buffers.items()}
    return TracedGraph(graph, parameters, buffers, constants, inputs, dtypes, values)
