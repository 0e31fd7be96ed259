"""Optimizers that PopTorch does not have, each with its own update rule.

An IPU refuses them by their class, as it does every optimizer but PopTorch's. The runtime in portable/ takes a class
that has a rule in its attribute `portable_update_rule`, which an IPU never reads: an object with `block`, `states` and
`update` (portable/README.md, Update rules of your own). Nothing of portable/ is imported for that.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence, Tuple

import poptorch
import torch
from torch import Tensor

# A state's shape and type.
StateForm = Tuple[torch.Size, torch.dtype]


class RuleOptimizer(poptorch.optim.Optimizer, torch.optim.Optimizer):
    """What these optimizers have in common; each class has its `portable_update_rule`.

    Args:
        groups: parameters in groups, as torch's optimizers take them.
        defaults: the numbers of a group that does not say otherwise.
        loss_scaling: factor on the loss before the backward pass, taken off the gradients again.
        max_grad_norm: the largest norm of all gradients together; None: any.
    """

    portable_update_rule: Any = None

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        defaults: Mapping[str, Any],
        loss_scaling: float = 1.0,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__()  # PopTorch's part, which keeps the device's state
        torch.optim.Optimizer.__init__(self, [dict(group) for group in groups], dict(defaults))
        self.loss_scaling = loss_scaling
        self.max_grad_norm = max_grad_norm
        self.accum_type = torch.float16

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of the host's parameters from their `.grad`, without an executor. Returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rule = self.portable_update_rule
        for group in self.param_groups:
            for parameter in (each for each in group["params"] if each.grad is not None):
                state = self.state[parameter]
                if not state:
                    for name, (shape, dtype) in rule.states(parameter.shape, group).items():
                        state[name] = torch.zeros(shape, dtype=dtype, device=parameter.device)
                    state["step"] = 0
                state["step"] += 1
                own = {name: tensor for name, tensor in state.items() if name != "step"}
                gradient, weight = parameter.grad.float().clone(), parameter.detach().float()
                rule.update(weight, gradient, own, group, state["step"], root_sum(gradient))
                parameter.copy_(weight)
        return loss


def root_sum(tensor: Tensor) -> Tensor:
    """The root of the sum of squares, 0-d."""
    return torch.linalg.vector_norm(tensor)


def root_mean(tensor: Tensor) -> Tensor:
    """The root of the mean of squares, 0-d."""
    return root_sum(tensor) / max(1, tensor.numel()) ** 0.5
