"""Names of PopTorch's inside that libraries import: a wrapped model without its wrapping, and the executor.

optimum-graphcore evaluates by generation with the very model that a training executor has wrapped, and Graphcore's
applications make executors of their own.
"""

from __future__ import annotations

import torch

from .execution.executor import PoplarExecutor
from .execution.hosting import rewrapModelIfNecessary, unwrapModelIfNecessary

__all__ = ["PoplarExecutor", "rewrapModelIfNecessary", "unwrapIfWrapped", "unwrapModelIfNecessary"]


def unwrapIfWrapped(model: torch.nn.Module) -> torch.nn.Module:
    """`model` after unwrapModelIfNecessary(model); as it is, if no executor trains it (any more)."""
    unwrapModelIfNecessary(model)
    return model
