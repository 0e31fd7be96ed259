"""The device's own copy of a model's parameters and buffers (spec section 9)."""

from __future__ import annotations

import torch

from ..device.policy import Policy
from ..poptorch_core import createPoptorchError
from .stages import Program


class DeviceState:
    """Parameters, buffers and constants of a program, by value name and by name in the module.

    A parameter that the module has under several names is one tensor here, known by the first of them.
    """

    def __init__(self, program: Program, model: torch.nn.Module, policy: Policy, training: bool):
        self._folded = program.folded
        host = dict(model.named_parameters(remove_duplicate=False))
        first_name: dict[int, str] = {}
        for name, parameter in host.items():
            first_name.setdefault(id(parameter), name)
        self.parameters: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = dict(program.constants)
        for value, name in program.parameters.items():
            parameter, name = host[name], first_name[id(host[name])]
            if name not in self.parameters:
                tensor = torch.zeros(parameter.shape, dtype=policy.compute_dtype(parameter.dtype), device=policy.device)
                self.parameters[name] = tensor.requires_grad_(training and parameter.requires_grad)
            self.values[value] = self.parameters[name]
        host_buffers = dict(model.named_buffers(remove_duplicate=False))
        by_identity: dict[int, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self.written_buffers = frozenset(program.buffers[value] for value in program.written_buffers)
        for value, name in program.buffers.items():
            buffer = host_buffers[name]
            if id(buffer) not in by_identity:
                by_identity[id(buffer)] = policy.place(buffer).clone()
            self.buffers[name] = self.values[value] = by_identity[id(buffer)]

    @torch.no_grad()
    def upload(self, model: torch.nn.Module, masters: dict[str, torch.Tensor] | None = None) -> None:
        """Host -> device. `masters` are more precise copies of weights.

        Where such a copy (or else what the device has already) rounds to what the host holds, it is the better one;
        where it does not, the host's weights were changed since, and count.
        """
        host = dict(model.named_parameters())
        for name, tensor in self.parameters.items():
            parameter = host[name].detach()
            precise = (masters or {}).get(name, tensor.detach())
            if precise.dtype == parameter.dtype or not torch.equal(precise.to(parameter.dtype).cpu(), parameter):
                precise = parameter
            if precise.data_ptr() != tensor.data_ptr():
                tensor.copy_(precise)
        self.upload_buffers(model, self.buffers)

    @torch.no_grad()
    def upload_buffers(self, model: torch.nn.Module, names: object) -> None:
        """Host -> device for the buffers in `names`."""
        host = dict(model.named_buffers(remove_duplicate=False))
        for name, value in self._folded.items():
            if not torch.equal(host[name].cpu(), value):
                raise createPoptorchError(
                    f"Buffer {name} was compiled into the program as a constant and has changed since. Call destroy() "
                    "and compile the model again."
                )
        for name in names:
            if name in self.buffers:
                self.buffers[name].copy_(host[name])

    @torch.no_grad()
    def download(self, model: torch.nn.Module) -> None:
        """Device -> host, into the memory the host's tensors have."""
        host = dict(model.named_parameters())
        for name, tensor in self.parameters.items():
            host[name].detach().copy_(tensor.detach())
        host_buffers = dict(model.named_buffers(remove_duplicate=False))
        for name in self.written_buffers:
            host_buffers[name].copy_(self.buffers[name])

    def masters(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Copies of the parameters that the device holds more precisely than the program sees them."""
        host = dict(model.named_parameters())
        return {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in self.parameters.items()
            if host[name].dtype == torch.float16 and tensor.dtype == torch.float32
        }

    @torch.no_grad()
    def load_masters(self, masters: dict[str, torch.Tensor]) -> None:
        """Take these more precise copies where they are copies of the weights that the device has."""
        for name, precise in masters.items():
            tensor = self.parameters.get(name)
            if tensor is not None and torch.equal(precise.half(), tensor.detach().half().cpu()):
                tensor.copy_(precise)
