"""Optimizers that PopTorch does not have: refused, or updated by the rule that their class brings along."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_reference import SHAPES, device_optimizer, gradients, parameters

import poptorch
from poptorch.engine.updating import registered_rules
from poptorch.engine.updating.spread import Spread
from poptorch.extensions import register_update_rule


class Rule:
    """m = beta m + g / |g|;  w -= lr step m, with a count of updates for each block, or for the whole parameter."""

    def __init__(self, block):
        self.block = block

    def states(self, shape, group):
        entries = () if self.block is None else (-(-shape.numel() // self.block),)
        return {"velocity": (shape, group["dtype"]), "updates": (torch.Size(entries), torch.int32)}

    def update(self, weight, gradient, states, group, step, norm):
        if self.block is None:
            assert weight.shape == states["velocity"].shape
        m = states["velocity"].float().mul_(group["beta"]).add_(gradient / norm)
        states["velocity"].copy_(m)
        states["updates"].add_(1)
        weight.sub_(m, alpha=group["lr"] * step)


class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr=0.5, beta=0.75, dtype=torch.float32, loss_scaling=1.0):
        super().__init__(params, {"lr": lr, "beta": beta, "dtype": dtype})
        self.loss_scaling = loss_scaling


class Blocks(Mine):
    portable_update_rule = Rule(4)


class Whole(Mine):
    portable_update_rule = Rule(None)


class Single(Mine):
    portable_update_rule = Rule(1)


CLASSES = [Single, Blocks, Whole]


def by_hand(weights, steps, lr=0.5, beta=0.75):
    found = {name: weight.detach().double() for name, weight in weights.items()}
    velocities = {name: torch.zeros_like(weight) for name, weight in found.items()}
    for number, step in enumerate(steps, start=1):
        for name, gradient in gradients(step).items():
            gradient = gradient.double()
            velocities[name] = beta * velocities[name] + gradient / gradient.norm()
            found[name] = found[name] - lr * number * velocities[name]
    return found


def test_without_a_rule_the_class_is_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"Unsupported optimizer type.*this one is Mine"):
        poptorch.trainingModel(model, optimizer=Mine(model.parameters()))


def test_a_subclass_does_not_inherit_the_rule():
    class Further(Blocks):
        pass

    model = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="Unsupported optimizer type"):
        poptorch.trainingModel(model, optimizer=Further(model.parameters()))


def test_a_class_of_somebody_else_is_registered():
    class Theirs(Mine):
        pass

    register_update_rule(Theirs, Rule(1))
    model = torch.nn.Linear(2, 2)
    poptorch.trainingModel(model, optimizer=Theirs(model.parameters()))


@pytest.mark.parametrize("rule, lacks", [(object(), "states, update, block"), (Rule(0), "block"), (Rule(1.5), "block")])
def test_what_is_no_rule_is_refused(rule, lacks):
    class Theirs(Mine):
        pass

    with pytest.raises(TypeError, match=f"the update rule of Theirs lacks {lacks}"):
        register_update_rule(Theirs, rule)
    Theirs.portable_update_rule = rule
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=f"lacks {lacks}"):
        poptorch.trainingModel(model, optimizer=Theirs(model.parameters()))
    with pytest.raises(TypeError, match="is registered for a class"):
        register_update_rule(torch.nn.Linear, Rule(1))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_updates_are_those_of_the_rule(cls, apart):
    host = parameters()
    made, device = device_optimizer(cls(host.values(), loss_scaling=8.0), host, apart=apart)
    for step in range(3):
        made.step(gradients(step, 8.0))
    expected = by_hand(host, range(3))
    for name in SHAPES:
        torch.testing.assert_close(device[name].double(), expected[name], rtol=1e-5, atol=1e-6)
        assert (made.state_dict()["ipu_state"][f"updates___{name}"] == 3).all()


def test_pieces_of_whole_blocks_make_the_same_update(monkeypatch):
    """As of a parameter of more elements than are worked on at a time."""
    weights = {}
    for limit in (1000, 9):
        monkeypatch.setattr("poptorch.engine.updating.optimizer.chunk_elements", lambda device, limit=limit: limit)
        host = parameters(dtype=torch.float16)
        made, device = device_optimizer(Blocks(host.values()), host)
        for step in range(2):
            made.step(gradients(step, dtype=torch.float16))
        weights[limit] = device
    for name in SHAPES:
        torch.testing.assert_close(weights[9][name], weights[1000][name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cls", CLASSES)
def test_saved_and_loaded_goes_on_to_the_bit(cls, tmp_path):
    host = parameters()
    made, device = device_optimizer(cls(host.values(), dtype=torch.float16), host)
    for step in range(3):
        made.step(gradients(step))
    state = made.state_dict()
    assert {key.split("___")[0] for key in state["ipu_state"]} == {"velocity", "updates", "Step"}
    torch.save(state, tmp_path / "state.pt")
    copies = {name: weight.clone() for name, weight in device.items()}
    again, copies = device_optimizer(cls(host.values(), dtype=torch.float16), host, copies)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        made.step(gradients(step))
        again.step(gradients(step))
    assert all(torch.equal(device[name], copies[name]) for name in SHAPES)
    state["ipu_state"]["velocity___a"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"velocity___a has shape \(3,\), of a parameter of shape \(5, 7\)"):
        again.load_state_dict(state)


def test_new_numbers_reach_the_device():
    host = parameters()
    made, device = device_optimizer(Single(host.values()), host)
    made.set_optimizer(Single(host.values(), lr=0.0, beta=0.5))
    made.step(gradients(0))
    assert all(torch.equal(device[name], host[name]) for name in SHAPES)
    with pytest.raises(poptorch.Error, match="type may not change"):
        made.set_optimizer(Blocks(host.values()))


@given(st.integers(1, 4), st.integers(0, 300), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_shards_of_whole_blocks_cover_a_parameter_and_its_states(block, more, processes):
    """What processes have of a parameter and of a state with an entry for each block, without the processes."""
    elements = processes**2 * block + more
    rule, shape = Rule(block), torch.Size([elements])
    weights = torch.arange(elements)
    entries = torch.arange(-(-elements // block))
    found: dict[str, list[torch.Tensor]] = {"weights": [], "entries": []}
    for rank in range(processes):
        spread = Spread(block=block)
        spread._sizes, spread._processes, spread._rank = {"w": elements}, processes, rank
        own = spread.own("w", weights)
        assert len(own) > 0 and int(own[0]) % block == 0
        found["weights"].append(own)
        found["entries"].append(spread.own_entries("w", entries, block))
        forms = registered_rules.forms(rule, shape, len(own), {"dtype": torch.float32})
        assert forms["velocity"][0] == own.shape and forms["updates"][0] == found["entries"][-1].shape
        assert spread.owned("w", found["entries"][-1], entries.shape, block).start == int(found["entries"][-1][0])
    assert torch.equal(torch.cat(found["weights"]), weights)
    assert torch.equal(torch.cat(found["entries"]), entries)
