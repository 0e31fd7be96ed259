"""A second way to a graph, for programs that torch.export refuses though nothing is wrong with them.

Operations are recorded one by one, as they meet fake tensors, without export's rules on what a program may capture,
return or leave behind. Parameters and buffers are placeholders here too, and composite operations stay whole.
Export is torch's documented way and comes first.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module

from ...poptorch_core import createPoptorchError

_CONTAINERS = (list, dict, set)


def record(
    entry: torch.nn.Module, model: torch.nn.Module, leaves: list[torch.Tensor]
) -> tuple[torch.fx.GraphModule, dict[str, str], dict[str, str], dict[str, torch.Tensor], list[str]]:
    """Run `entry(*leaves)` once, `model` being a part of it with fake parameters and buffers.

    Returns the graph; placeholder -> name in `model` for parameters and for buffers; placeholder -> value for
    constants; the placeholders of the leaves.
    """
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    names = [*parameters, *buffers]
    first = {id(tensor): name for name, tensor in {**parameters, **buffers}.items()}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]

    def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state, inputs = dict(zip(names, tensors, strict=False)), tensors[len(names) :]
        with _reparametrize_module(model, {name: state[first[id(tensor)]] for name, tensor in every}):
            return entry(*inputs)

    tensors = [*parameters.values(), *buffers.values(), *leaves]
    module = make_fx(flat, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(*tensors)
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    known = dict(zip(placeholders, names, strict=False))
    return (
        module,
        {placeholder: name for placeholder, name in known.items() if name in parameters},
        {placeholder: name for placeholder, name in known.items() if name in buffers},
        _lift_constants(module),
        placeholders[len(names) :],
    )


def _lift_constants(module: torch.fx.GraphModule) -> dict[str, torch.Tensor]:
    """Tensors that the graph holds itself become placeholders."""
    constants: dict[str, torch.Tensor] = {}
    first = next(iter(module.graph.nodes))
    placeholders: dict[str, torch.fx.Node] = {}
    for node in list(module.graph.nodes):
        value = getattr(module, node.target, None) if node.op == "get_attr" else None
        if not isinstance(value, torch.Tensor):
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise createPoptorchError("torch.vmap in forward() goes only with what torch.export accepts.")
        if isinstance(value, FakeTensor):  # it has no values to make a constant of
            raise createPoptorchError(
                f"forward() uses a tensor of shape {tuple(value.shape)} whose origin tracing cannot follow."
            )
        if node.target not in placeholders:
            with module.graph.inserting_before(first):
                placeholders[node.target] = module.graph.placeholder(node.target)
            placeholders[node.target].meta["val"] = value
            constants[placeholders[node.target].name] = value
        node.replace_all_uses_with(placeholders[node.target])
        module.graph.erase_node(node)
    return constants


class PythonState:
    """What forward() left behind in Python when it ran the first time, so that a second run leaves nothing more.

    Attributes of modules, and the lists, dicts and sets in them or among the globals that a forward() names.
    """

    def __init__(self, model: torch.nn.Module):
        self._attributes = [
            (module, {k: v for k, v in vars(module).items() if not k.startswith("_")}) for module in model.modules()
        ]
        # Tensors of the trace are of no use to anybody afterwards: such attributes stay, or become, what they were.
        self._lost = [
            {k for k, v in attributes.items() if isinstance(v, FakeTensor)} for _, attributes in self._attributes
        ]
        held: list[Any] = [value for _, attributes in self._attributes for value in attributes.values()]
        for function in {getattr(type(module), "forward", None) for module in model.modules()}:
            code = getattr(function, "__code__", None)
            if code is not None:
                held += [function.__globals__.get(name) for name in code.co_names]
                held += [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        self._containers = [(value, type(value)(value)) for value in held if type(value) in _CONTAINERS]

    def restore(self) -> None:
        """Back to what was there."""
        for (module, attributes), lost in zip(self._attributes, self._lost, strict=True):
            for name in [name for name in vars(module) if not name.startswith("_")]:
                if name not in attributes or (name in lost and isinstance(vars(module)[name], FakeTensor)):
                    del vars(module)[name]
            vars(module).update({name: value for name, value in attributes.items() if name not in lost})
        for container, contents in self._containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(contents)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def silent_repetition(state: PythonState) -> Iterator[None]:
    """Inside this context forward() runs a second time: nobody sees what it prints, or what it leaves in Python."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        state.restore()
