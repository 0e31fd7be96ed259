"""Weights that differ between groups of replicas: `model.weight.replicaGrouping(...)` (spec section 5).

The host's tensor has a leading dimension, an entry for each group (or, with VariableRetrievalMode.AllReplicas, for
each replica); `forward` sees one entry. On the device it is one tensor with an entry for each group, of which a
replica's program gets a view: its gradient is then zero for the other groups, and adds up within its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch

from ...enums import CommGroupType, VariableRetrievalMode
from ...poptorch_core import createPoptorchError

_KEY = "_poptorch_grouping"  # in the __dict__ of the parameter


@dataclasses.dataclass(frozen=True)
class ReplicaGrouping:
    """How the replicas form groups that share a weight; `group_size` replicas make a group."""

    kind: CommGroupType
    group_size: int
    retrieval: VariableRetrievalMode

    def groups(self, replicas: int) -> int:
        """How many groups there are. Raises poptorch.Error if they do not come out even."""
        if self.kind is CommGroupType.All:
            return 1
        if self.kind is CommGroupType.NoGrouping:
            return replicas
        if replicas % self.group_size:
            raise createPoptorchError(
                f"replicaGrouping: groups of {self.group_size} replicas do not divide the replication factor {replicas}"
            )
        return replicas // self.group_size

    def group_of(self, replica: int, replicas: int) -> int:
        """The group that a replica is in."""
        groups = self.groups(replicas)
        return replica % groups if self.kind is CommGroupType.Orthogonal else replica // (replicas // groups)

    def members(self, replicas: int) -> list[int]:
        """The group of each entry of the host's tensor."""
        if self.retrieval is VariableRetrievalMode.AllReplicas:
            return [self.group_of(replica, replicas) for replica in range(replicas)]
        return list(range(self.groups(replicas)))


def set_grouping(parameter: torch.nn.Parameter, grouping: ReplicaGrouping) -> None:
    """Groups of replicas shall have a value of `parameter` each. Raises poptorch.Error for a scalar."""
    if not parameter.dim():
        raise createPoptorchError("replicaGrouping: a scalar has no dimension for the groups of replicas")
    parameter.__dict__[_KEY] = grouping


def grouping_of(parameter: torch.Tensor, replicas: int) -> ReplicaGrouping | None:
    """The grouping of a parameter, None if all replicas share it.

    The documentation leaves open whether `shards` are the replicas in a group or the groups. It is the former, as for
    input groups, unless the weight's first dimension fits the latter only.
    """
    grouping = parameter.__dict__.get(_KEY)
    sized = grouping is not None and grouping.kind in (CommGroupType.Consecutive, CommGroupType.Orthogonal)
    if sized and grouping.retrieval is VariableRetrievalMode.OnePerGroup:
        groups, rest = divmod(replicas, grouping.group_size)
        if groups > 1 and parameter.shape[0] == grouping.group_size != groups and not rest:
            grouping = dataclasses.replace(grouping, group_size=groups)
    return None if grouping is None or grouping.groups(replicas) == 1 else grouping


def groupings(model: torch.nn.Module) -> dict[str, tuple[CommGroupType, int, VariableRetrievalMode]]:
    """{name: what set_grouping() was given} of the parameters for which it was called."""
    found = {name: parameter.__dict__.get(_KEY) for name, parameter in model.named_parameters()}
    return {name: (each.kind, each.group_size, each.retrieval) for name, each in found.items() if each is not None}


def forget(parameter: torch.Tensor) -> None:
    """All replicas share `parameter` again."""
    parameter.__dict__.pop(_KEY, None)


def check(model: torch.nn.Module, replicas: int) -> None:
    """Raises poptorch.Error if the first dimension of a grouped parameter is not the number of its entries."""
    for name, parameter in model.named_parameters():
        grouping = grouping_of(parameter, replicas)
        if grouping is not None and parameter.shape[0] != len(grouping.members(replicas)):
            raise createPoptorchError(
                f"replicaGrouping: parameter {name} of shape {list(parameter.shape)} needs a first dimension of size "
                f"{len(grouping.members(replicas))}, an entry for each "
                f"{'replica' if grouping.retrieval is VariableRetrievalMode.AllReplicas else 'group of replicas'}"
            )


@contextlib.contextmanager
def one_entry(model: torch.nn.Module, replicas: int) -> Iterator[None]:
    """Inside this context grouped parameters of `model` are what one replica sees, for tracing."""
    entries: dict[int, torch.nn.Parameter] = {}
    replaced = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and grouping_of(parameter, replicas) is not None:
                replaced.append((module._parameters, name, parameter))
                if id(parameter) not in entries:
                    entry = torch.nn.Parameter(parameter.detach()[0].clone(), parameter.requires_grad)
                    entries[id(parameter)] = entry
    try:
        for members, name, parameter in replaced:
            members[name] = entries[id(parameter)]
        yield
    finally:
        for members, name, parameter in replaced:
            members[name] = parameter
