"""Names of PopTorch's inside that libraries import: a wrapped model without its wrapping, for a while.

optimum-graphcore evaluates by generation with the very model that a training executor has wrapped.
"""

from .execution.hosting import rewrapModelIfNecessary, unwrapModelIfNecessary

__all__ = ["rewrapModelIfNecessary", "unwrapModelIfNecessary"]
