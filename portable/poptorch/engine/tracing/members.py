"""What forward() may not do to the parameters and buffers of its modules (spec section 9)."""

from __future__ import annotations

import torch

from ...poptorch_core import createPoptorchError


def check_not_scripted(model: torch.nn.Module) -> None:
    """poptorch.Error for a module of TorchScript: there is no Python left to trace."""
    scripted = [
        name or "itself" for name, part in model.named_modules() if type(part) is torch.jit.RecursiveScriptModule
    ]
    if scripted:
        raise createPoptorchError(
            f"{type(model).__name__}: a module of TorchScript ({scripted[0]}) cannot be compiled. Pass the module that "
            "it was scripted from."
        )


def held_tensors(model: torch.nn.Module) -> dict[str, tuple[str, torch.Tensor]]:
    """{name: (kind, tensor)} of what forward() may not reassign; BatchNorm's statistics are its own affair."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            continue
        for kind, members in (("Parameter", module._parameters), ("Buffer", module._buffers)):
            for name, tensor in members.items():
                if tensor is not None:
                    found[f"{prefix}.{name}" if prefix else name] = (kind, tensor)
    return found


def check_not_reassigned(model: torch.nn.Module, before: dict[str, tuple[str, torch.Tensor]]) -> None:
    """Export would turn `self.buffer = …` silently into a copy: refuse it, as the contract does (section 9)."""
    after = held_tensors(model)
    for name, (kind, tensor) in before.items():
        if name not in after:
            raise createPoptorchError(f"{kind} {name} is removed from the model when calling the forward method.")
        if not _same_memory(after[name][1], tensor):
            raise createPoptorchError(
                f"{kind} {name} is reassigned within the model when calling the forward method. This is not "
                f"supported. Consider using self.{name}.copy_(src) to copy data from a source tensor, where src is "
                "the name of the source tensor."
            )


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are the same values in the same place: `self.buffer = torch.mul(x, y, out=self.buffer)`."""
    if one is other:
        return True
    layout = [(t.untyped_storage()._cdata, t.dtype, t.shape, t.stride(), t.storage_offset()) for t in (one, other)]
    return layout[0] == layout[1]
