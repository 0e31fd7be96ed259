"""Options.enableSyntheticData: made-up inputs instead of the program's, to measure without transfers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..options.executor_options import Options

# popart.SyntheticDataMode; 0 is Off.
_MAKERS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    1: torch.zeros_like,
    2: torch.randn_like,
    3: torch.rand_like,
}


def replaced(leaves: list[torch.Tensor], options: Options) -> list[torch.Tensor]:
    """`leaves`, or tensors like them: zeros, normal or uniform numbers as the option says, and 0 for integers."""
    maker = _MAKERS.get(int(options._Popart.get("syntheticDataMode", 0)))
    if maker is None:
        return leaves
    return [maker(leaf) if leaf.is_floating_point() else torch.zeros_like(leaf) for leaf in leaves]
