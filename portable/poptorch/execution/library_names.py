"""What libraries read of an executor though it is not published (PyTorch Lightning, optimum-graphcore, …)."""

from __future__ import annotations

import types

from ..engine.running import replica_groups
from ..enums import CommGroupType, VariableRetrievalMode
from .compilation import Compiled
from .executor_state import ExecutorState


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
    def per_replica_params(self) -> dict[str, tuple[CommGroupType, int, VariableRetrievalMode]]:
        """{parameter's name: the arguments of its replicaGrouping()}, of those that differ between groups."""
        return replica_groups.groupings(self._user_model)
