"""From a model and the first call's arguments to the program that the engine runs."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses import FakeTensor

from .. import notices
from ..device import float32_products, native
from ..device import policy as device_policy
from ..device.policy import Policy
from ..engine import passes
from ..engine.numerics import Numerics
from ..engine.passes.dropout import draws
from ..engine.passes.float32_products import has_large_products
from ..engine.passes.half_products import mark_half
from ..engine.processes.layout import Layout
from ..engine.running import replica_groups
from ..engine.running.counts import Counts
from ..engine.stages import Program, build_program, ipu_switches
from ..engine.tracing import export as tracing
from ..engine.tracing import host_tensors, scope_names
from ..engine.tracing.losses import erase_marks, find_loss
from ..engine.tracing.regions import extract_regions
from ..enums import OutputMode
from ..operations.blocks import BlockTracker
from ..options.executor_options import Options
from ..poptorch_core import createPoptorchError
from ..structure import Structure
from . import compile_hooks
from .signature import BoundCall, split_sizes
from .substitutions import _OverwriteContextManager

MAX_IPUS = 64  # of one process


@dataclasses.dataclass
class Compiled:
    """A program, the call it was compiled for, and the shape of what it returns."""

    program: Program
    counts: Counts
    call: BoundCall
    micro_batch: list[torch.Size]
    output_structure: Structure
    input_names: list[str]
    products: device_policy.Products | None = None  # of half, where it is held in float32

    def bind(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call, which is checked against the compiled one."""
        leaves = self.call.same_tensors(model, args, kwargs, self.counts.fed, self.micro_batch)
        if leaves is None:
            call = BoundCall(model, args, kwargs, self.call)
            call.check_against(self.call, self.counts.fed, self.micro_batch)
            leaves = call.leaves
        return [
            _as_input(leaf, name in self.program.written_inputs)
            for leaf, name in zip(leaves, self.program.inputs, strict=True)
        ]

    def outputs(self, tensors: list[torch.Tensor]) -> Any:
        """The structure that forward() returned, with these tensors."""
        return self.output_structure.fill(tensors)


def _as_input(leaf: torch.Tensor, written: bool) -> torch.Tensor:
    """The values of an input. If the program writes to it, so it does to the caller's tensor, but for these cases."""
    if leaf.requires_grad:
        notices.once("input gradient", "Input tensor has requires_grad=True: it is detached, no gradient reaches it.")
    if written and not leaf.is_contiguous():
        notices.once("input copied", "Input tensor is not contiguous: it is copied, and changes are not written back.")
        return leaf.detach().contiguous()
    return _usual(leaf.detach())


def _usual(leaf: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd takes, in the same memory: one made in torch.inference_mode() it does not."""
    if not leaf.is_inference():
        return leaf
    usual = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
    return usual.set_(leaf.untyped_storage(), leaf.storage_offset(), leaf.shape, leaf.stride())


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector rests.

    What tracing imports and makes mostly stays, and the collector would go through it again and again.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def compile_model(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    training: bool,
    policy: Policy,
    numerics: Numerics,
) -> Compiled:
    """Trace `model` on the first micro-batch of these arguments and cut the graph into stages.

    What is to be chosen for it is settled in `numerics`.

    Raises poptorch.Error or AssertionError for what the contract refuses.
    """
    call = BoundCall(model, args, kwargs)
    layout = Layout.of(options)
    counts = Counts(
        options.device_iterations,
        options.Training.gradient_accumulation if training else 1,
        options.replication_factor,
        options.input_group_size,
        options.input_cgt,
        layout.processes,
        layout.process,
    )
    explanation = (
        f"Options.deviceIterations({counts.iterations}) * (Options.replicationFactor({counts.replicas}) / "
        f"Options.inputReplicaGrouping.input_group_size({counts.input_group_size})) * "
        f"Options.Training.gradientAccumulation({counts.accumulation})"
    )
    micro_batch = split_sizes(call.leaves, counts.fed, explanation)
    leaves = [_first_micro_batch(leaf, shape) for leaf, shape in zip(call.leaves, micro_batch, strict=True)]
    blocks = BlockTracker(options.execution_strategy)
    locations = options.TensorLocations
    context = tracing.TraceContext(
        training=training,
        blocks=blocks,
        io_tiles=locations.toDict().get("numIOTiles", 0),
        before_forward=compile_hooks.run_before,
        around_forward=_OverwriteContextManager,
    )
    structure: list[Structure] = []

    def run(traced_model: torch.nn.Module, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        rebuilt_args, rebuilt_kwargs = call.rebuild(tensors)
        result = traced_model(*rebuilt_args, **rebuilt_kwargs)
        found, shape = Structure.of(result, _on_device, objects=True, other=host_tensors.snapshot)
        structure.append(shape)
        return found

    replica_groups.check(model, counts.all_replicas)
    with replica_groups.one_entry(model, counts.all_replicas), no_collection():
        traced = tracing.trace(model, run, leaves, context)
    check_stages(blocks.met, options, counts, training)
    extract_regions(traced)
    scope_names.watch(traced, [long_name for long_name, _, _ in options.anchored_tensors.values()])
    if training:
        find_loss(traced)
    else:
        erase_marks(traced.graph)
    products = products_of_half(traced, policy, numerics)
    philox = training and has_philox(traced, policy, numerics)
    kernel_products = training and has_kernel_products(traced, policy, numerics, products)
    passes.run(traced, training, policy, products, philox, kernel_products)
    program = build_program(traced)
    if options.execution_strategy.kind == "pipelined" and len(program.stages) > 1:
        _check_not_every_n(options)
    _check_writes(program, options, counts)
    names = call.tensor_names()
    _check_updatable(model, options)
    call.forget_values()
    return Compiled(program, counts, call, micro_batch, structure[-1], names, products)


def products_of_half(traced: tracing.TracedGraph, policy: Policy, numerics: Numerics) -> device_policy.Products | None:
    """How the program's matrix products of half are computed; None if it has none, or half is half here."""
    if not policy.half_as_float or not mark_half(traced):
        return None
    chosen = numerics.settle(
        "products of half",
        device_policy.type_of_products,
        possible=device_policy.is_type,
        asked=device_policy.asked_by(),
    )
    return device_policy.products_of(chosen)


def has_philox(traced: tracing.TracedGraph, policy: Policy, numerics: Numerics) -> bool:
    """Whether the program's dropout, if there is any, has the CPU's kernels and their generator."""
    if policy.device.type != "cpu" or not draws(traced):
        return False
    chosen = numerics.settle(
        "generator of dropout",
        native.generator,
        possible=lambda name: name in (native.TORCH, native.generator()),
        asked=native.asked_by(),
    )
    return chosen == native.PHILOX


def has_kernel_products(
    traced: tracing.TracedGraph, policy: Policy, numerics: Numerics, half: device_policy.Products | None
) -> bool:
    """Whether the program's large products of float32, if there are any, are the CPU's kernels'."""
    half_too = half is not None and half.dtype == torch.float32
    if policy.device.type != "cpu" or not has_large_products(traced, half_too):
        return False
    chosen = numerics.settle(
        "products of float32",
        float32_products.choice,
        possible=lambda name: name == float32_products.TORCH or float32_products.available(),
        asked=float32_products.asked_by(),
    )
    return chosen == float32_products.KERNELS


def _on_device(leaf: torch.Tensor) -> bool:
    """Whether an output comes from the program; a host tensor that forward() returns is a constant."""
    if isinstance(leaf, FakeTensor):
        return True
    notices.logger.warning("Output expected to be on the IPU but is on %s", leaf.device)
    return False


def _check_not_every_n(options: Options) -> None:
    if options.output_mode is OutputMode.EveryN:
        raise createPoptorchError(
            "OutputMode.EveryN is not supported with poptorch.PipelinedExecution over several stages: use another "
            "output mode, or poptorch.ShardedExecution."
        )


def _first_micro_batch(leaf: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The tensor that tracing sees: the first micro-batch, in a type the device has."""
    leaf = leaf.detach()
    leaf = leaf.narrow(0, 0, shape[0]) if leaf.dim() else leaf
    if 0 in leaf.shape:
        raise createPoptorchError(f"Zero-sized tensors are unsupported (Got shape {list(leaf.shape)})")
    leaf = _usual(leaf)
    return leaf.to(torch.float32) if leaf.dtype == torch.float64 else leaf


def check_stages(blocks: list[tuple[str, int]], options: Options, counts: Counts, training: bool) -> None:
    """The numbers of stages and IPUs that PopTorch insists on (spec section 8)."""
    forward_stages = ipu_switches(blocks)
    ipus = max((ipu for _, ipu in blocks), default=0) + 1
    if options.execution_strategy.kind == "pipelined" and ipus > 1:
        stages = 2 * forward_stages - 1 if training else forward_stages
        if training and counts.accumulation < stages:
            raise createPoptorchError(
                "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of "
                f"pipeline stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with "
                f"{forward_stages} pipeline stages in PopTorch will have an additional {forward_stages - 1} stages "
                "when training."
            )
        if not training and counts.iterations < stages:
            raise createPoptorchError(
                "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
                f"({stages}) when using PopTorch.PipelinedExecution."
            )
    if _rounded(ipus) * counts.replicas > MAX_IPUS:
        raise createPoptorchError(
            f"Too many IPUs requested ({_rounded(ipus) * counts.replicas}). Experiments that need more than 64 IPUs "
            "require distributed execution."
        )


def _rounded(ipus: int) -> int:
    """The next power of two."""
    return 1 << (ipus - 1).bit_length()


def check_reserved(program: Program, options: Options) -> None:
    """poptorch.Error if the device to be acquired for `program` has more IPUs than it uses, unless that is wanted."""
    ipus = max(stage.ipu for stage in program.stages) + 1
    if _rounded(ipus) != ipus and not options.auto_round_num_ipus:
        raise createPoptorchError(
            f"The model specifies the use of {ipus} IPUs, however PopTorch must reserve a minimum of {_rounded(ipus)} "
            "in order to allow the model to run, because PopTorch must reserve a power of 2 or a multiple of 64 IPUs. "
            "Please reconfigure your model to use a different number of IPUs or set "
            "poptorch.Options().autoRoundNumIPUs(True)."
        )


def _check_writes(program: Program, options: Options, counts: Counts) -> None:
    if program.written_parameters:
        raise createPoptorchError(
            f"forward() changes the parameter {sorted(program.written_parameters)[0]} in place. Only the optimizer "
            "changes parameters: register a tensor that forward() updates as a buffer."
        )
    if program.shared_writes and counts.all_replicas > 1 and options.broadcast_buffers:
        raise createPoptorchError(
            "PopTorch does not support broadcasting buffers. If your model is able to tolerate buffers becoming "
            "out of sync between replicas, you can disable buffer broadcasting using "
            "poptorch.Options.broadcastBuffers(False)."
        )


def _check_updatable(model: torch.nn.Module, options: Options) -> None:
    names = dict(model.named_buffers(remove_duplicate=False))
    unknown = [name for name in options.updatable_named_buffers if name not in names]
    if unknown:
        raise createPoptorchError(
            f"Options.updatableNamedBuffers: the model has no buffer {unknown[0]!r}; it has {sorted(names)}"
        )
