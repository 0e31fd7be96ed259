"""What libraries read of an executor though it is not published (PyTorch Lightning, optimum-graphcore, …)."""

from __future__ import annotations

import types
from collections.abc import Iterator, MutableMapping

import torch

from ..engine.running import replica_groups
from ..enums import CommGroupType, VariableRetrievalMode
from ..poptorch_core import createPoptorchError
from .compilation import Compiled
from .executor_state import ExecutorState

Grouping = tuple[CommGroupType, int, VariableRetrievalMode]


class PerReplicaParameters(MutableMapping[str, Grouping]):
    """The arguments of replicaGrouping() by a parameter's name; setting an entry calls it.

    Args:
        model: of an executor. Setting or deleting an entry raises what replicaGrouping() raises, and KeyError for
            another name than one of its parameters.
    """

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def __getitem__(self, name: str) -> Grouping:
        return replica_groups.groupings(self._model)[name]

    def __setitem__(self, name: str, grouping: Grouping) -> None:
        if not isinstance(grouping, (tuple, list)) or len(grouping) != 3:
            raise createPoptorchError(
                f"per_replica_params[{name!r}] takes (poptorch.CommGroupType, shards, poptorch.VariableRetrievalMode), "
                f"got {grouping!r}."
            )
        dict(self._model.named_parameters())[name].replicaGrouping(*grouping)

    def __delitem__(self, name: str) -> None:
        parameter, (_, _, retrieval) = dict(self._model.named_parameters())[name], self[name]
        parameter.replicaGrouping(CommGroupType.All, 0, retrieval)
        replica_groups.forget(parameter)

    def __iter__(self) -> Iterator[str]:
        return iter(replica_groups.groupings(self._model))

    def __len__(self) -> int:
        return len(replica_groups.groupings(self._model))

    def __repr__(self) -> str:
        return repr(dict(self))


class LibraryNames(ExecutorState):
    """The part of PoplarExecutor that has these names; each leads to something that is there anyway."""

    @property
    def _executable(self) -> Compiled | None:
        """The compiled program, None before compilation and after destroy(): isCompiled() is the published way."""
        return self._compiled

    @property
    def _executable_inputs(self) -> types.SimpleNamespace | None:
        """What the program was compiled for, None without one: `args`, in the order of forward()'s parameters.

        Tensors have the shapes of a whole call, and no values.
        """
        if self._compiled is None:
            return None
        return types.SimpleNamespace(args=list(self._compiled.call.arguments.values()), kwargs={})

    @property
    def _is_attached(self) -> bool:
        """isAttachedToDevice()."""
        return self._session is not None

    @property
    def per_replica_params(self) -> PerReplicaParameters:
        """{parameter's name: the arguments of its replicaGrouping()}, of those that differ between groups."""
        return PerReplicaParameters(self._user_model)
