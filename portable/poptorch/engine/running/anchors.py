"""Tensors that a program asked for by name: parameters, gradients, inputs, outputs, intermediate ones (section 3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch

from ...checks import require
from ...device import split_weights
from ...enums import OutputMode
from ...poptorch_core import createPoptorchError
from ..stages import Program
from .outputs import OutputCollector
from .state import DeviceState

GRADIENT = "Gradient___"
UPDATED = "UpdatedVar___"
FINAL_LOSS_SCALE = "finalLossScale"


def tensor_names(
    program: Program,
    parameters: Mapping[str, bool],
    buffers: Collection[str],
    inputs: list[str],
    training: bool,
    scaled: bool = False,
) -> list[str]:
    """The names that can be anchored. `inputs` are the names of the program's inputs as the user knows them.

    `parameters` says of each whether it is trained. With `scaled`, automatic loss scaling, what the loss of a
    micro-batch is multiplied by is one of them.
    """
    names = [*inputs, *parameters, *buffers]
    names += [f"output_{position}" for position in range(len(program.outputs))]
    if training:
        trained = [name for name, requires_grad in parameters.items() if requires_grad]
        names += [GRADIENT + name for name in [*inputs, *trained]] + [UPDATED + name for name in trained] + ["loss"]
    return [*names, *([FINAL_LOSS_SCALE] if scaled else []), *program.scope_names]


class Anchors:
    """Collects anchored tensors over one call.

    Args:
        wanted: {short name: (long name, mode, period)}, with no mode Default.
        known: tensor_names().
        sizes: iterations, accumulation and replicas of a call.
        owner: the number of the process that has a tensor, where a replica lies over several and this is `part`.
    Raises poptorch.Error for a name that is not known.
    """

    def __init__(
        self,
        wanted: Mapping[str, tuple[str, OutputMode, int]],
        program: Program,
        state: DeviceState,
        inputs: list[str],
        known: list[str],
        sizes: tuple[int, int, int],
        owner: Callable[[str], int] = lambda name: 0,
        part: int = 0,
    ):
        for long_name, _, _ in wanted.values():
            if long_name not in known:
                raise createPoptorchError(
                    f"anchorTensor: the program has no tensor {long_name!r}. It has: {', '.join(known[:20])}"
                    f"{', … (getTensorNames() lists them all)' if len(known) > 20 else ''}."
                )
        self._owners = {short: owner(long_name) for short, (long_name, _, _) in wanted.items()}
        wanted = {short: each for short, each in wanted.items() if self._owners[short] == part}
        self._wanted = dict(wanted)
        self._program = program
        self._state = state
        self._inputs = inputs
        self._sizes = sizes
        self._gradients: dict[str, torch.Tensor] = {}
        self._shapes = dict(state.parameters)  # name -> what its gradient is like
        self._scale = 1.0
        self._collectors: dict[str, OutputCollector] = {}
        self._results: dict[str, torch.Tensor] = {}
        gradients = {name.removeprefix(GRADIENT) for name, _, _ in wanted.values() if name.startswith(GRADIENT)}
        of_parameters = gradients.intersection(state.parameters)
        self._watched_inputs = sorted(gradients - of_parameters)
        for name in of_parameters:
            self._watch(name, self._state.parameters[name])

    def _watch(self, name: str, tensor: torch.Tensor) -> None:
        def take(gradient: torch.Tensor) -> None:
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            found, before = gradient.detach() / self._scale, self._gradients.get(name)
            self._gradients[name] = found if before is None else before + found

        tensor.register_hook(take)

    def inputs(self, slices: list[torch.Tensor]) -> list[torch.Tensor]:
        """The inputs of a micro-batch, with gradients where these were asked for.

        Raises poptorch.Error for one that has none, because it holds no floating-point numbers.
        """
        for name in self._watched_inputs:
            position = self._inputs.index(name)
            if not slices[position].is_floating_point():
                raise createPoptorchError(f"anchorTensor: input {name} is of integers, which have no gradient.")
            leaf = slices[position].detach().requires_grad_()
            self._watch(name, leaf)
            self._shapes[name] = leaf
            slices[position] = leaf.clone()  # the program may write to its inputs, but not to a leaf
        return slices

    def begin(self, scale: float) -> None:
        """A call begins; `scale` is what gradients are multiplied by for the sake of the mean over micro-batches."""
        self._scale = scale
        self._collectors.clear()

    def micro_batch(self, s: int, a: int, r: int, values: Mapping[str, torch.Tensor]) -> None:
        """Micro-batch (s, a, r) is done.

        `values` holds its inputs, outputs, intermediate tensors, loss, and what that was scaled by.
        """
        for short, (long_name, mode, period) in self._wanted.items():
            if not long_name.startswith(UPDATED):
                self._add(short, mode, period, (s, a, r), self._sizes, self._read(long_name, values))
        self._gradients.clear()

    def updated(self, s: int, scale: float) -> None:
        """The weights were updated in iteration `s`; gradients are multiplied by `scale` from now on."""
        self._scale = scale
        iterations, _, replicas = self._sizes
        for short, (long_name, mode, period) in self._wanted.items():
            if long_name.startswith(UPDATED):
                value = split_weights.whole(self._state.parameters[long_name.removeprefix(UPDATED)])
                for r in range(replicas):
                    self._add(short, mode, period, (s, 0, r), (iterations, 1, replicas), value)

    def finish(self, share: Callable[[int, list[torch.Tensor]], list[torch.Tensor]] | None = None) -> None:
        """The call is over. `share(part, tensors)` gives all processes of a replica the tensors that one has."""
        self._results = {short: collector.result()[0] for short, collector in self._collectors.items()}
        for short, part in self._owners.items() if share is not None else ():
            for result in share(part, [self._results[short]] if short in self._results else []):
                self._results[short] = result

    def result(self, short_name: str) -> torch.Tensor:
        """The tensor anchored as `short_name` in the last call. AssertionError if there is none."""
        require(short_name in self._results, f"No tensor with name {short_name} found.")
        return self._results[short_name]

    def _read(self, long_name: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if long_name.startswith(GRADIENT):
            name = long_name.removeprefix(GRADIENT)
            gradient = self._gradients.get(name)
            return torch.zeros_like(self._shapes[name]) if gradient is None else gradient
        if long_name in self._state.parameters:
            return split_weights.whole(self._state.parameters[long_name])
        if long_name in self._state.buffers:
            return self._state.buffers[long_name]
        if long_name in ("loss", FINAL_LOSS_SCALE) or long_name in self._program.watched:
            return values[long_name]
        if long_name in self._inputs:
            return values[self._program.inputs[self._inputs.index(long_name)]]
        return values[self._program.outputs[int(long_name.removeprefix("output_"))]]

    def _add(
        self,
        short: str,
        mode: OutputMode,
        period: int,
        position: tuple[int, int, int],
        sizes: tuple[int, int, int],
        value: torch.Tensor,
    ) -> None:
        if short not in self._collectors:
            self._collectors[short] = OutputCollector(mode, period, [value.dtype], *sizes)
        self._collectors[short].add(*position, [value])
