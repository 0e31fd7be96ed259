"""Gradient accumulation over the micro-batches of one weight update (spec section 5)."""

from __future__ import annotations

import torch


class GradientAccumulator:
    """Sums, or keeps the running mean of, the gradients of micro-batches.

    A parameter whose accumulator has its own type lets autograd add into `.grad`. Otherwise each gradient goes into an
    accumulator of the type asked for as soon as it is complete, and is freed.

    Args:
        parameters: leaf tensors by name.
        dtypes: the accumulator's type by name.
        micro_batches: gradients in one update, A times the replicas.
        mean: divide by that number.
        running: keep a running mean, which cannot overflow a half accumulator where a sum would.
    """

    def __init__(
        self,
        parameters: dict[str, torch.Tensor],
        dtypes: dict[str, torch.dtype],
        micro_batches: int,
        mean: bool,
        running: bool,
    ):
        self._parameters = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
        self._accumulators: dict[str, torch.Tensor] = {}
        self._running = running and mean
        self._count = 0
        # Dividing the loss divides the gradients: no pass over them is needed at the end. Half gradients would
        # underflow: these are divided once they are accumulated.
        narrow = any(tensor.dtype != torch.float32 for tensor in self._parameters.values())
        divide = mean and not self._running and micro_batches > 1
        self.loss_factor = 1.0 / micro_batches if divide and not narrow else 1.0
        self._divisor = micro_batches if divide and narrow else 1
        self._hooks = []
        for name, tensor in self._parameters.items():
            if dtypes[name] != tensor.dtype or self._running:
                accumulator = torch.zeros(tensor.shape, dtype=dtypes[name], device=tensor.device)
                self._accumulators[name] = accumulator
                self._hooks.append(tensor.register_post_accumulate_grad_hook(self._take(accumulator)))
        self._received: set[int] = set()

    def _take(self, accumulator: torch.Tensor):
        def take(parameter: torch.Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            first = id(accumulator) not in self._received
            self._received.add(id(accumulator))
            with torch.no_grad():
                if first:
                    accumulator.copy_(gradient if not self._running else gradient / (self._count + 1))
                elif self._running:
                    # m_k = m_{k-1} * k / (k + 1) + g / (k + 1)
                    accumulator.mul_(self._count / (self._count + 1)).add_(gradient, alpha=1 / (self._count + 1))
                else:
                    accumulator.add_(gradient)

        return take

    def micro_batch_done(self) -> None:
        """The backward pass of one more micro-batch is over."""
        self._count += 1

    def gradients(self) -> dict[str, torch.Tensor]:
        """The reduced gradients, of the parameters that have one. To be asked for once an update."""
        found = {}
        for name, parameter in self._parameters.items():
            accumulator = self._accumulators.get(name)
            if accumulator is None:
                if parameter.grad is not None:
                    found[name] = parameter.grad
            elif id(accumulator) in self._received:
                found[name] = accumulator
        if self._divisor != 1 and found:
            torch._foreach_div_(list(found.values()), self._divisor)
        return found

    def seen(self) -> dict[str, torch.Tensor]:
        """What has been accumulated so far, not reduced yet."""
        found = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        return {**found, **{n: a for n, a in self._accumulators.items() if id(a) in self._received}}

    def clear(self) -> None:
        """Begin the next update."""
        for parameter in self._parameters.values():
            parameter.grad = None
        self._received.clear()
        self._count = 0

    def release(self) -> None:
        """Give the accumulators' memory back and take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._accumulators.clear()
