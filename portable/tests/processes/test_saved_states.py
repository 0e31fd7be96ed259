"""What leaves the device of several processes: executors in files, states of optimizers that outlive it."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from launch import together

import poptorch


class Model(torch.nn.Module):
    """(n, 8) -> the loss of a layer, 0-d."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x):
        return poptorch.identity_loss(self.layer(x).square(), "mean")


class Signs:
    """m += sign(g), kept as whole numbers of a byte;  w -= lr m / (largest |m| of a block of four + steps so far)."""

    block = 4

    def states(self, shape, group):
        return {"signs": (shape, torch.int8), "largest": (torch.Size([-(-shape.numel() // 4)]), torch.float32)}

    def update(self, weight, gradient, states, group, step, norm):
        signs = states["signs"].view(-1)
        signs.add_(gradient.view(-1).sign().to(torch.int8))
        states["largest"].copy_(signs.view(-1, 4).abs().amax(dim=1))
        divisor = states["largest"].repeat_interleave(4) + step
        weight.view(-1).sub_(group["lr"] * signs / divisor)


class Registered(torch.optim.Optimizer):
    """An optimizer with a rule of its own, which shares its states out in blocks of four."""

    portable_update_rule = Signs()

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})


def options(rank: int, processes: int) -> poptorch.Options:
    """Two replicas, in one process or two, whose optimizer's states are shared out."""
    made = poptorch.Options().replicationFactor(2 // processes)
    made.Distributed.configureProcessId(rank, processes)
    made.outputMode(poptorch.OutputMode.All)
    location = poptorch.TensorLocationSettings().useReplicatedTensorSharding(True)
    made.TensorLocations.setOptimizerLocation(location.minElementsForReplicatedTensorSharding(4))
    return made


def batch(call: int, rank: int, processes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(call)
    return torch.randn(2, 8, generator=generator).chunk(processes)[rank]


def place() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def saved_on_the_way(path: str, kind: type) -> list[torch.Tensor]:
    """Weights after four calls, and an executor in a file after the second."""
    rank, processes = place()
    model = Model()
    optimizer = kind(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, options(rank, processes), optimizer)
    for call in range(4):
        executor(batch(call, rank, processes))
        if call == 1:
            executor.save(path)
            assert os.path.getsize(path), "it is there when the first process, or another, goes on"
    return [weight.clone() for weight in model.state_dict().values()]


def loaded(path: str) -> list[torch.Tensor]:
    """Weights after the two calls that are left."""
    rank, processes = place()

    executor = poptorch.load(path, lambda options: options.Distributed.configureProcessId(rank, processes))
    for call in (2, 3):
        executor(batch(call, rank, processes))
    return [weight.clone() for weight in executor.model.state_dict().values()]


@pytest.mark.parametrize("kind", [poptorch.optim.AdamW, torch.optim.Adam, Registered])
def test_an_executor_in_a_file_goes_on_in_as_many_processes(tmp_path, kind):
    path = str(tmp_path / "executor.poptorch")
    expected = together(2, saved_on_the_way, path, kind)[0]
    assert os.listdir(tmp_path) == ["executor.poptorch"]
    for found in together(2, loaded, path):
        assert all(map(torch.equal, found, expected))


def trained() -> list[torch.Tensor]:
    rank, processes = place()
    model = Model()
    executor = poptorch.trainingModel(model, options(rank, processes), Registered(model.parameters(), lr=0.1))
    for call in range(4):
        executor(batch(call, rank, processes))
    return [weight.clone() for weight in model.state_dict().values()]


def test_states_of_a_registered_rule_are_shared_out():
    (expected,) = together(1, trained)
    for found in together(2, trained):
        torch.testing.assert_close(found, expected)


def not_saved(folder: str) -> str:
    rank, processes = place()
    executor = poptorch.trainingModel(Model(), options(rank, processes))
    executor(batch(0, rank, processes))
    with pytest.raises(Exception, match="No such file|does not exist|cannot be opened|failed") as caught:
        executor.save(os.path.join(folder, "nowhere", "executor.poptorch"))
    return str(caught.value)


def test_a_file_that_the_first_process_cannot_write_is_an_error_in_all(tmp_path):
    first, second = together(2, not_saved, str(tmp_path))
    assert "nowhere" in first and "process 0 failed: " in second and "nowhere" in second


def kept() -> list[torch.Tensor]:
    """Weights after six calls, the device left and taken again twice, the optimizer replaced by its copy."""
    rank, processes = place()
    model = Model()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, options(rank, processes), optimizer)
    for call in range(6):
        executor(batch(call, rank, processes))
        if call == 1:
            executor.detachFromDevice()
            assert not any(state.is_meta for state in optimizer.state_dict()["ipu_state"].values())
        elif call == 3:
            again = copy.deepcopy(optimizer)
            assert not any(state.is_meta for state in again.state_dict()["ipu_state"].values())
            model.destroy()
            executor = poptorch.trainingModel(model, options(rank, processes), optimizer)
        elif call == 4 and rank > 0:
            state = optimizer.state_dict()
            with pytest.raises(RuntimeError, match="the first alone has the values"):
                optimizer.load_state_dict(state)
        elif call == 4:
            optimizer.state_dict()
    return [weight.clone() for weight in model.state_dict().values()]


def test_a_process_that_leaves_its_device_keeps_what_it_goes_on_with():
    (expected,) = together(1, unbroken)
    for found in together(2, kept):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def unbroken() -> list[torch.Tensor]:
    rank, processes = place()
    model = Model()
    executor = poptorch.trainingModel(model, options(rank, processes), poptorch.optim.AdamW(model.parameters(), lr=0.1))
    for call in range(6):
        executor(batch(call, rank, processes))
    return [weight.clone() for weight in model.state_dict().values()]
