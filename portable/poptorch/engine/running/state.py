"""The device's own copy of a model's parameters and buffers (spec section 9)."""

from __future__ import annotations

import torch

from ...device import split_weights
from ...device.policy import Policy
from ...poptorch_core import createPoptorchError
from ..stages import Program
from . import replica_groups


class DeviceState:
    """Parameters, buffers and constants of a program, by value name and by name in the module.

    A parameter that the module has under several names is one tensor here, known by the first of them. Each replica
    has its own copy of the buffers that the program writes to; the first one's is the one in `buffers`. Of those that
    do not keep what is written to them each micro-batch has a copy.

    Args:
        replicas: of this process, of which the first is number `first` of `all_replicas`.
        multiplied: values of the program in whose place weights of half may be held in two parts (split_weights.py).
    """

    def __init__(
        self,
        program: Program,
        model: torch.nn.Module,
        policy: Policy,
        training: bool,
        replicas: int = 1,
        first: int = 0,
        all_replicas: int = 1,
        multiplied: frozenset[str] = frozenset(),
    ):
        self._folded = program.folded
        self._groupings: dict[str, replica_groups.ReplicaGrouping] = {}  # of parameters, by name
        self._first, self._replicas = first, all_replicas
        host = dict(model.named_parameters(remove_duplicate=False))
        first_name: dict[int, str] = {}
        for name, parameter in host.items():
            first_name.setdefault(id(parameter), name)
        for name in first_name.values():  # those that other processes have are among them
            grouping = replica_groups.grouping_of(host[name], all_replicas)
            if grouping is not None:
                self._groupings[name] = grouping
        others = {first_name[id(host[name])] for value, name in program.parameters.items() if value not in multiplied}
        self.parameters: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = dict(program.constants)
        for value, name in program.parameters.items():
            parameter, name = host[name], first_name[id(host[name])]
            if name not in self.parameters:
                shape = parameter.shape
                if name in self._groupings:
                    shape = (self._groupings[name].groups(all_replicas), *shape[1:])
                dtype = policy.compute_dtype(parameter.dtype)
                half = parameter.dtype == torch.float16 and dtype == torch.float32 and name not in self._groupings
                if half and name not in others and split_weights.is_worth(shape):
                    tensor = split_weights.empty(shape)
                else:
                    tensor = torch.empty(shape, dtype=dtype, device=policy.device)
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
        self._grouped_values = {
            value: first_name[id(host[name])]
            for value, name in program.parameters.items()
            if first_name[id(host[name])] in self._groupings
        }
        self._copies = [
            {id(self.values[value]): self.values[value].clone() for value in program.written_buffers}
            for _ in range(1, replicas)
        ]
        self._buffer_values = {
            value: id(self.values[value])
            for value, name in program.buffers.items()
            if self._copies and id(self.values[value]) in self._copies[0]
        }
        self._has_weights = False  # the parameters' memory is first written by upload()
        restored = {id(self.values[value]) for value in program.restored_buffers}
        self._restored = [value for value in program.buffers if id(self.values[value]) in restored]

    def all_buffers(self) -> list[tuple[torch.Tensor, int]]:
        """Each buffer once, and how many of it the replicas of this process have together."""
        own = {id(buffer): buffer for buffer in self.buffers.values()}
        return [(buffer, len(self._everywhere(buffer))) for buffer in own.values()]

    @property
    def grouped(self) -> list[str]:
        """Names of the parameters that differ between groups of replicas."""
        return sorted(self._groupings)

    def replicated(self, states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """An optimizer's states as the host has them: where a parameter has entries for replicas, so have all of its.

        `states` are by role and name, `Accl1___weight`; those that are one number for a parameter become a vector.
        """
        return {key: self._entries(key, state, to_host=True) for key, state in states.items()}

    def grouped_states(self, states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What replicated() was given for these."""
        return {key: self._entries(key, state, to_host=False) for key, state in states.items()}

    def _entries(self, key: str, state: torch.Tensor, to_host: bool) -> torch.Tensor:
        role, _, name = key.partition("___")
        if name not in self._groupings:
            return state
        members = self._groupings[name].members(self._replicas)
        if role == "Step":
            return state.repeat(len(members)) if to_host else state.reshape(-1)[0]
        if to_host:
            return state[members]
        groups = self._groupings[name].groups(self._replicas)
        return state if len(members) != len(state) else state[[members.index(group) for group in range(groups)]]

    def values_of(self, replica: int) -> dict[str, torch.Tensor]:
        """`values` as one replica of this process has them. Gradients flow back to `parameters`."""
        values = dict(self.values)
        for value, name in self._grouped_values.items():
            values[value] = self.parameters[name][self._groupings[name].group_of(self._first + replica, self._replicas)]
        if replica:
            copies = self._copies[replica - 1]
            values.update((value, copies[buffer]) for value, buffer in self._buffer_values.items())
        fresh = {id(values[value]): values[value].clone() for value in self._restored}
        values.update((value, fresh[id(values[value])]) for value in self._restored)
        return values

    @torch.no_grad()
    def upload(self, model: torch.nn.Module, masters: dict[str, torch.Tensor] | None = None) -> None:
        """Host -> device: to be called before anything reads a parameter. `masters` are more precise copies of weights.

        Where such a copy (or else what the device has already) rounds to what the host holds, it is the better one;
        where it does not, the host's weights were changed since, and count.
        """
        host = dict(model.named_parameters())
        for name, tensor in self.parameters.items():
            parameter = host[name].detach()
            if name in self._groupings:
                members = self._groupings[name].members(self._replicas)
                parameter = parameter[[members.index(group) for group in range(tensor.shape[0])]]
            precise = (masters or {}).get(name, split_weights.whole(tensor) if self._has_weights else parameter)
            if precise.dtype == parameter.dtype or not torch.equal(precise.to(parameter.dtype).cpu(), parameter):
                precise = parameter
            if precise.data_ptr() != tensor.data_ptr():
                split_weights.assign(tensor, precise)
        self._has_weights = True
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
                for buffer in self._everywhere(self.buffers[name]):
                    buffer.copy_(host[name])

    def _everywhere(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """A buffer and the copies of it that the other replicas have."""
        return [buffer, *(copies[id(buffer)] for copies in self._copies if id(buffer) in copies)]

    @torch.no_grad()
    def download(self, model: torch.nn.Module) -> None:
        """Device -> host, into the memory the host's tensors have. Of buffers that differ, the first replica's."""
        host = dict(model.named_parameters())
        for name, tensor in self.parameters.items():
            found = split_weights.whole(tensor)
            if name in self._groupings:
                found = found[self._groupings[name].members(self._replicas)]
            host[name].detach().copy_(found)
        host_buffers = dict(model.named_buffers(remove_duplicate=False))
        for name in self.written_buffers:
            host_buffers[name].copy_(self.buffers[name])

    def masters(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The parameters that the device holds more precisely than the program sees them; some are in two parts."""
        host = dict(model.named_parameters())
        return {
            name: tensor
            for name, tensor in self.parameters.items()
            if host[name].dtype == torch.float16 and tensor.dtype == torch.float32
        }

    @torch.no_grad()
    def load_masters(self, masters: dict[str, torch.Tensor]) -> None:
        """Take these more precise copies where they are copies of the weights that the device has."""
        for name, precise in masters.items():
            tensor = self.parameters.get(name)
            if tensor is not None and torch.equal(precise.half(), split_weights.whole(tensor).half().cpu()):
                split_weights.assign(tensor, precise)
