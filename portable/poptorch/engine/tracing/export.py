"""From a module to a graph: `forward` runs once, on one micro-batch, and is never run again.

recording.py records the operations, or else torch.export; ProgramMode, active during the call, sees every torch
function first and does what the contract asks of tracing; the block, checkpoint and loop markers say where things are
(spec section 1).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.fx import config as fx_config

from ...poptorch_core import Error, createPoptorchError, set_compiling
from .. import surroundings, without_dynamo
from . import devices, functions, lenient, members, native_names, opaque, subclasses
from .host_tensors import HostWrites
from .program_mode import ProgramMode, value_unknown
from .recording import NotRecorded, record
from .side_effects import PythonState, silent_repetition


@dataclasses.dataclass
class TraceContext:
    """What the contract's functions (Block, for_loop, …) need to know of the trace in progress."""

    training: bool
    blocks: Any  # contract: poptorch.operations.blocks.BlockTracker
    io_tiles: int = 0  # tiles set aside for transfers
    before_forward: Callable[[], None] = lambda: None  # called inside the trace
    around_forward: Callable[[], AbstractContextManager] = contextlib.nullcontext  # in force inside the trace
    functions: list[Any] = dataclasses.field(default_factory=list)  # torch.autograd.Functions met, in order
    at_end: list[Callable[[], None]] = dataclasses.field(default_factory=list)  # called when the trace is over
    input_ids: set[int] = dataclasses.field(default_factory=set)  # id() of the tensors that forward() is given
    overlapped: set[tuple[str, int]] = dataclasses.field(default_factory=set)  # (function, id() of its tensor)
    overlapped_outputs: list[torch.Tensor] = dataclasses.field(default_factory=list)
    convolutions: int = 0  # met so far
    left_behind: PythonState | None = None  # by forward(), once it has run to its end
    host_writes: HostWrites = dataclasses.field(default_factory=HostWrites)
    kept: list[torch.Tensor] = dataclasses.field(default_factory=list)  # alive, so that no id() is used again
    regions: int = 0

    def number(self) -> int:
        """A number for the next loop or conditional."""
        self.regions += 1
        return self.regions


_active: TraceContext | None = None
# What torch says where it would read a tensor of the trace.
_VALUE_WANTED = re.compile(r"its data is not allocated yet|must be .*\bints?\b.*FakeTensor|FakeTensor\.__format__")


def current() -> TraceContext | None:
    """The trace in progress, or None."""
    return _active


@dataclasses.dataclass
class TracedGraph:
    """One micro-batch's computation as a graph without state.

    Every parameter, buffer and constant is a placeholder. `inputs` are the placeholders of the user's tensors in
    order; `output_dtypes` are the types the program gave its output tensors. The arguments of the graph's output node
    are these tensors, those that are watched and, behind them, the loss if one was found.
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
    watched: dict[str, torch.fx.Node] = dataclasses.field(default_factory=dict)  # name -> intermediate tensor to keep
    scope_names: tuple[str, ...] = ()  # of intermediate tensors that could be

    @property
    def outputs(self) -> list[torch.fx.Node]:
        """The nodes of the output tensors, in order."""
        return self._results()[: len(self.output_dtypes)]

    @property
    def loss(self) -> torch.fx.Node | None:
        """The node to differentiate, in a training program."""
        results = self._results()
        return results[-1] if len(results) > len(self.output_dtypes) + len(self.watched) else None

    def set_loss(self, loss: torch.fx.Node) -> None:
        """Make `loss` a result of the graph, so that no pass drops it."""
        output = self.graph.output_node()
        output.args = ((*output.args[0], loss),)

    def _results(self) -> list[torch.fx.Node]:
        return list(self.graph.output_node().args[0])


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
        before = members.held_tensors(self.model)
        self._context.input_ids.clear()
        self._context.input_ids.update(map(id, leaves))
        self._context.before_forward()
        with (
            surroundings.without_autocast(),
            lenient.mixed_types(),
            lenient.unvalidated(),
            lenient.masks_taken_as_given(),
            lenient.without_backward_hooks(),
            subclasses.refused(),
            devices.host_constructors(),
            self._context.around_forward(),
            ProgramMode(self._context),
            functions.recorded(self._context.functions),
        ):
            try:
                outputs = tuple(self._call(self.model, list(leaves)))
            except (RuntimeError, TypeError) as error:
                if not _asks_for_a_value(error):
                    raise
                raise value_unknown("The value") from error
        returned = set(map(id, outputs))
        if any(id(tensor) not in returned for tensor in self._context.overlapped_outputs):
            raise createPoptorchError("poptorch.set_overlap_for_output applied on a node which is not a host output.")
        members.check_not_reassigned(self.model, before)
        if self._context.left_behind is None:
            self._context.left_behind = PythonState(self.model)
        return outputs


@contextlib.contextmanager
def _tracing(context: TraceContext) -> Iterator[None]:
    global _active
    if _active is not None:
        raise createPoptorchError("A PopTorch model cannot be compiled while another one is being compiled.")
    noisy = [logging.getLogger(name) for name in ("torch._subclasses.fake_tensor", "torch.fx.experimental")]
    levels = [logger.level for logger in noisy]
    # Nothing here reads where in the source a node was made, and finding that out took a fifth of the time of tracing.
    with_sources = getattr(fx_config, "do_not_emit_stack_traces", False)  # unknown to older torch
    fx_config.do_not_emit_stack_traces = True
    rng_state = torch.get_rng_state()  # torch.manual_seed in forward() acts on the real generator
    _active = context
    set_compiling(True)
    try:
        for logger in noisy:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            # What forward() reassigns is checked here; torch.nn.LSTM keeps its weights in a list, too.
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export", UserWarning)
            yield
    finally:
        _active = None
        set_compiling(False)
        fx_config.do_not_emit_stack_traces = with_sources
        opaque.forget()
        for callback in context.at_end:
            callback()
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
    members.check_not_scripted(model)
    if context.training:
        lenient.report_hooks_of_parameters(model)
    entry = _Entry(model, call, context)
    with _tracing(context), torch.enable_grad():
        # PopTorch never calls train() or eval(): each submodule is traced in the mode it is in.
        entry.training = model.training
        before = PythonState(model)
        try:
            traced = _recorded(entry, model, leaves, context, before)
        except Exception as error:
            if not _is_refusal(error, context):
                before.restore_attributes()
                raise  # the program's own error, or the contract's
            traced = _exported(entry, model, leaves, context, before)
        before.restore_attributes()  # so that none stays a tensor of the trace
        context.left_behind.restore()
        functions.replace_functions(traced.graph, traced.constants, context.functions)
        opaque.replace_calls(traced.graph)
    return traced


def _is_refusal(error: Exception, context: TraceContext) -> bool:
    """Whether `error` is the tracer's and not the program's or the contract's: a refusal of what forward() did."""
    if isinstance(error, Error):
        return isinstance(error, NotRecorded)
    no_kernel = "no fake impl" in str(error)  # a plain RuntimeError
    raised_by_torch = type(error).__module__.startswith("torch")
    return context.left_behind is not None or no_kernel or raised_by_torch or _is_machinery(error)


def _is_machinery(error: Exception) -> bool:
    """Whether torch's dispatcher says that it does not know what to do, as for operators of higher order."""
    if not isinstance(error, (AssertionError, AttributeError, NotImplementedError)):
        return False
    frame = traceback.extract_tb(error.__traceback__)[-1].filename.replace("\\", "/")
    return frame.endswith(("torch/_ops.py", "tracing/recording.py")) or "torch/_higher_order_ops" in frame


def _asks_for_a_value(error: RuntimeError | TypeError) -> bool:
    """Whether a function of torch's looked at a value itself: to make a tensor, a size or a text of it."""
    guarded = type(error).__name__ == "GuardOnDataDependentSymNode"  # whose module takes long to import
    return guarded or _VALUE_WANTED.search(str(error)) is not None


def _recorded(
    entry: _Entry, model: torch.nn.Module, leaves: list[torch.Tensor], context: TraceContext, before: PythonState
) -> TracedGraph:
    """The graph as recording.py makes it; once more, with torch._dynamo loaded, if forward() needs that."""
    try:
        with without_dynamo.kept_out():
            graph, *placeholders = record(entry, model, leaves)
    except without_dynamo.Needed:
        importlib.import_module("torch._dynamo")  # here: forward() runs with parts of torch replaced
        _rewind(context, before)
        graph, *placeholders = record(entry, model, leaves)
    _drop_idle(graph)
    return _traced(graph, *placeholders, model)


def _exported(
    entry: _Entry, model: torch.nn.Module, leaves: list[torch.Tensor], context: TraceContext, before: PythonState
) -> TracedGraph:
    """The graph of a program that cannot be recorded, by torch.export; Python's side effects are seen once."""
    ran = context.left_behind
    _rewind(context, before)
    try:
        with contextlib.nullcontext() if ran is None else silent_repetition(ran):
            return _lifted(torch.export.export(entry, tuple(leaves), strict=False), model)
    except Exception as error:
        if not _is_refusal(error, context):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error) else repr(error)
        if "a fake tensor in the exported program" in reason:
            reason = (
                "an operation reads a tensor that none of its operations has made, as torch.autograd.grad() does where "
                "it goes through a normalisation, attention or a recurrent layer: compute these by plain operations"
            )
        raise createPoptorchError(f"forward() of {type(model).__name__} could not be traced: {reason}") from error


def _rewind(context: TraceContext, before: PythonState) -> None:
    """As if forward() had not run yet."""
    before.restore()
    context.host_writes.take_back()
    context.functions.clear()
    context.overlapped.clear()
    context.overlapped_outputs.clear()
    context.blocks.forget()
    opaque.forget()


def _lifted(exported: torch.export.ExportedProgram, model: torch.nn.Module) -> TracedGraph:
    """The exported graph with its placeholders told apart."""
    from torch.export.graph_signature import InputKind  # torch.export is loaded where it is needed

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
            raise NotRecorded(f"forward() captures an object that cannot be compiled: {spec.kind} {spec.target}.")
    _drop_idle(graph)
    return _traced(graph, parameters, buffers, constants, inputs, model)


def _drop_idle(graph: torch.fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default or node.target in native_names.IDLE:
            graph.erase_node(node)
        elif node.op == "get_attr":  # the body of a higher-order operator
            user = next(iter(node.users), node)
            raise NotRecorded(f"forward() uses {user.target}, which cannot be compiled: remove it.")


def _traced(
    graph: torch.fx.Graph,
    parameters: dict[str, str],
    buffers: dict[str, str],
    constants: dict[str, torch.Tensor],
    inputs: list[str],
    model: torch.nn.Module,
) -> TracedGraph:
    values = [node.meta["val"] for node in graph.output_node().args[0]]
    for position, value in enumerate(values):
        if not all(isinstance(size, int) for size in value.shape):
            raise createPoptorchError(
                f"The shape of output {position} of forward() depends on the values of tensors, as after indexing with "
                "a mask or nonzero(). The shapes of a compiled program are fixed: use torch.where, for instance."
            )
    dtypes = [value.dtype for value in values]
    host_buffers = dict(model.named_buffers(remove_duplicate=False))
    buffer_values = {placeholder: host_buffers[name].detach() for placeholder, name in buffers.items()}
    return TracedGraph(graph, parameters, buffers, constants, inputs, dtypes, buffer_values)
