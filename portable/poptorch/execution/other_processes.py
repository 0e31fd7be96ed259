"""The other processes that run a program with this one: whether there are any, meeting them, what all must agree on."""

from __future__ import annotations

import torch

from ..device.policy import Policy
from ..engine.processes import group, watch
from ..engine.processes.layout import Layout
from ..engine.running.placement import ipus_of
from ..options import engine_options
from ..options.executor_options import Options
from .compilation import Compiled


def rank_among_others(options: Options, training: bool) -> int | None:
    """The number of this process, if others run the program with it."""
    layout = Layout.of(options)
    return layout.rank if layout.parts > 1 or (training and layout.processes > 1) else None


def meet_others(compiled: Compiled, options: Options, policy: Policy, training: bool) -> bool:
    """Join the other processes that run the program, if there are any, which is returned. Raises as group.join."""
    if rank_among_others(options, training) is None:
        return False
    layout = Layout.of(options)
    group.join(layout, policy.device, _holds(compiled, options, layout))
    return True


def _holds(compiled: Compiled, options: Options, layout: Layout) -> str:
    """What this process has of the model, for messages."""
    if layout.parts == 1:
        return watch.replicas(layout.process, compiled.counts.replicas)
    each = max(1, ipus_of(compiled.program, options) // layout.parts)
    stages = [str(stage.index) for stage in compiled.program.stages if stage.ipu // each == layout.part]
    return f"stages {', '.join(stages) or 'none'} of replica {layout.process}"


def facts(model: torch.nn.Module, compiled: Compiled, options: Options) -> dict[str, str]:
    """What all processes that train one model must have in common, in a few words each."""
    counts = compiled.counts
    whole = all(parameter.device.type != "meta" for parameter in model.parameters())
    weights = {name: _checksum(parameter.detach()) for name, parameter in model.named_parameters() if whole}
    return {
        "program": " ".join(f"{stage.ipu}:{','.join(stage.parameters)}" for stage in compiled.program.stages),
        "number of micro-batches": f"{counts.iterations} x {counts.accumulation} x {counts.replicas}",
        "report": "asked for" if engine_options.report_folder(options) is not None else "not asked for",
        "shape of inputs": f"{[list(shape) for shape in compiled.micro_batch]}",
        **{f"weight {name}": value for name, value in weights.items()},
    }


def _checksum(tensor: torch.Tensor) -> str:
    """Shape and sum of the bits: two weights that were drawn or read differently have another one."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.contiguous().view(width) if tensor.dim() else tensor.reshape(1).view(width)
    return f"{list(tensor.shape)} with checksum {bits.sum(dtype=torch.int64).item() % 2**32:08x}"
