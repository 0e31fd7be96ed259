"""A model of which this process holds a part: other processes of the replica have the other stages' weights.

Once a program is compiled the host's copy of a weight that is held elsewhere gives its memory back: it is a tensor on
the meta device, with a shape and no values, until weights are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist

from ..device.policy import Policy
from ..engine.processes import group
from ..engine.processes.channels import Channels, Edge
from ..engine.processes.collecting import Owned, collect
from ..engine.processes.layout import Layout
from ..engine.processes.links import Links
from ..engine.running.anchors import FINAL_LOSS_SCALE, GRADIENT, UPDATED
from ..engine.running.placement import Placement, first_names, ipus_of, place
from ..options.executor_options import Options
from ..poptorch_core import createPoptorchError
from .compilation import Compiled

_ELSEWHERE = "_poptorch_elsewhere"  # in the __dict__ of a parameter of which another process has the values


class Parts:
    """The placement of a program on the processes of a replica, and the way to them.

    Raises poptorch.Error where the program cannot be shared out so.
    """

    def __init__(self, compiled: Compiled, model: torch.nn.Module, options: Options, layout: Layout, policy: Policy):
        program = compiled.program
        self._layout, self._program, self._inputs = layout, program, compiled.input_names
        self.placement: Placement = place(program, model, layout.part, layout.parts, ipus_of(program, options))
        self._ranks = group.ranks_of(layout, layout.process)
        spans = [span.part for span in self.placement.spans]
        ties = {name: group.parts(layout, which) for name, which in self.placement.shared.items()}
        self.links = Links(
            Channels(self._ranks, spans, policy.device, self._edge_groups(policy.device)),
            group.parts(layout),
            self._ranks,
            layout.part,
            {name: found for name, found in ties.items() if found is not None},
        )
        self._whole = False

    def _edge_groups(self, device: torch.device) -> dict[Edge, dist.ProcessGroup]:
        """NCCL knows no tags, and keeps the order of all messages of a group: each edge has its own."""
        if device.type == "cpu":
            return {}
        spans, found = self.placement.spans, {}
        for span in spans:
            for target in span.sends:
                if span.part != spans[target].part:
                    for edge in (Edge(span.index, target), Edge(target, span.index, gradient=True)):
                        ends = (spans[edge.source].part, spans[edge.target].part)
                        # A new group for every edge: the same two processes may share several.
                        found[edge] = [
                            dist.new_group([group.ranks_of(self._layout, process)[end] for end in ends])
                            for process in range(self._layout.processes)
                        ][self._layout.process]
        return found

    def owner(self, long_name: str) -> int:
        """The number of the process that has an anchored tensor.

        Raises poptorch.Error for a gradient that several have a share of.
        """
        placement = self.placement
        name = long_name.removeprefix(GRADIENT).removeprefix(UPDATED)
        if long_name.startswith(GRADIENT) and name in placement.shared:
            raise createPoptorchError(
                f"anchorTensor: {long_name} is a sum over IPUs of several processes, which is not available one "
                "micro-batch at a time: start fewer processes for each replica"
            )
        if name in self._inputs or name == FINAL_LOSS_SCALE:
            return 0
        if name in placement.owners:
            return placement.owners[name]
        if name == "loss":
            return placement.spans[placement.loss_span].part
        for span in placement.spans:
            if name in span.watched or any(name == f"output_{position}" for position in span.outputs):
                return span.part
        return 0

    # -- the host's weights --------------------------------------------------------------------------------------

    def release(self, model: torch.nn.Module) -> None:
        """Weights that other processes hold take no memory here any more."""
        here = self.placement.local.parameters.values()
        host = dict(model.named_parameters(remove_duplicate=False))
        kept = {id(host[name]) for name in here}
        for name in self._program.parameters.values():
            if id(host[name]) not in kept and host[name].device.type != "meta":  # tied ones come twice
                host[name].__dict__[_ELSEWHERE] = True
                _move(host[name], torch.empty_like(host[name], device="meta"))
        self._whole = False

    def released_again(self, model: torch.nn.Module) -> None:
        """The same after gather()."""
        if self._whole:
            self.release(model)

    @torch.no_grad()
    def gather(self, model: torch.nn.Module, everywhere: bool = False) -> None:
        """The first process, or each, has all weights, in a mapped file as in collecting.collect. All must call it."""
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        names = first_names(model)
        written = {names[self._program.buffers[value]] for value in self._program.written_buffers}
        owners = self.placement.owners
        missing = [n for n, owner in owners.items() if (owner or everywhere) and n in {*parameters, *written}]
        tensors = {name: parameters.get(name, buffers.get(name)) for name in missing}
        here = {name for name, owner in owners.items() if owner == self.placement.part}
        owned = {name: Owned.whole(tensor) for name, tensor in tensors.items() if name in here}
        found = collect(owned, group.everybody(), everywhere=everywhere)
        if self._layout.rank and not everywhere:
            return
        for name, tensor in tensors.items():
            if name in here:
                continue
            if name in parameters:
                _move(tensor, found[name])
            else:
                tensor.copy_(found[name])
        self._whole = True


def _move(parameter: torch.nn.Parameter, values: torch.Tensor) -> None:
    """The same object with other values, perhaps on another device."""
    kind, attributes = type(parameter), dict(parameter.__dict__)
    parameter.__class__ = torch.nn.Parameter
    torch.utils.swap_tensors(parameter, torch.nn.Parameter(values, parameter.requires_grad))
    parameter.__class__ = kind
    parameter.__dict__.update(attributes)


@contextlib.contextmanager
def present(model: torch.nn.Module) -> Iterator[None]:
    """Inside this context weights that other processes hold have memory, which tracing does not touch."""
    gone = [p for p in model.parameters() if _ELSEWHERE in p.__dict__ and p.device.type == "meta"]
    for parameter in gone:
        _move(parameter, torch.empty_like(parameter, device="cpu"))
    try:
        yield
    finally:
        for parameter in gone:
            _move(parameter, torch.empty_like(parameter, device="meta"))
