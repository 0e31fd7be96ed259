"""A replica over two processes: what its weights and states become in files, and how much memory that takes."""

from __future__ import annotations

import os

import pytest
import torch
from launch import together
from scarce_memory import room_for

import popdist.poptorch
import poptorch

WEIGHTS = 6
N = 4 << 20  # elements of a large weight, 16 MiB in float32


class Model(torch.nn.Module):
    """(1,) -> 0-d, half of the weights on each of two IPUs; `tied` is the first weight under another name."""

    def __init__(self, size: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.weights = torch.nn.ParameterList([torch.full((size,), 0.5 + index) for index in range(WEIGHTS)])
        self.tied = self.weights[WEIGHTS - 1]
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        total = x * self.scale
        for index, weight in enumerate(self.weights):
            with poptorch.Block(f"block {index}", ipu_id=2 * index // WEIGHTS):
                total = (weight * total).mean()
        with poptorch.Block("loss", ipu_id=1):
            return poptorch.identity_loss(total + self.tied.mean(), "sum")


def compiled(size: int):
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    options = popdist.poptorch.Options(ipus_per_replica=2)
    options.Training.gradientAccumulation(4)
    model = Model(size)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, poptorch.trainingModel(model, options, optimizer)


def saved(folder: str) -> list:
    """Weights after two calls more than those after which they, and the executor, went into files."""
    model, optimizer, executor = compiled(4)
    executor(torch.ones(4))
    path = os.path.join(folder, f"executor_{os.environ['WORLD_SIZE']}")
    executor.save(path)
    weights, state = model.state_dict(), optimizer.state_dict()
    assert all(weight.is_meta == (int(os.environ["RANK"]) > 0) for name, weight in weights.items() if "s.0" in name)
    if os.environ["RANK"] == "0":
        assert weights["tied"].data_ptr() == weights[f"weights.{WEIGHTS - 1}"].data_ptr(), "ties are kept"
        torch.save({"weights": weights, "optimizer": state}, path + ".pt")
    executor(torch.ones(4))
    executor.copyWeightsToHost()
    return [weight.detach().clone() for weight in model.parameters() if not weight.is_meta]


def test_files_are_those_of_one_process(tmp_path):
    two, one = (together(processes, saved, str(tmp_path)) for processes in (2, 1))
    assert len(two[0]) == WEIGHTS and len(two[1]) == WEIGHTS // 2
    torch.testing.assert_close(two[0], one[0])
    first, second = (torch.load(tmp_path / f"executor_{processes}.pt", weights_only=True) for processes in (2, 1))
    assert list(first["weights"]) == list(second["weights"])
    torch.testing.assert_close(first["weights"], second["weights"])
    for key in ("ipu_state", "ipu_param"):
        assert first["optimizer"][key].keys() == second["optimizer"][key].keys()
        torch.testing.assert_close(
            dict(sorted(first["optimizer"][key].items())), dict(sorted(second["optimizer"][key].items()))
        )


def grouped() -> dict[str, torch.Tensor]:
    """States of two replicas of a model of which the last weight, on the second IPU, has a value for each."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "2"
    options = popdist.poptorch.Options(ipus_per_replica=2)
    options.Training.gradientAccumulation(4)
    model = Model()
    del model.tied
    model.tied = torch.nn.Parameter(torch.ones(2, 4))
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01)
    executor = poptorch.trainingModel(model, options, optimizer)
    every = poptorch.VariableRetrievalMode.AllReplicas
    model.tied.replicaGrouping(poptorch.CommGroupType.NoGrouping, 0, every)
    executor(torch.arange(4.0 * options.replication_factor))
    return optimizer.state_dict()["ipu_state"]


def test_weights_of_single_replicas():
    (expected,), found = together(1, grouped), together(4, grouped)
    assert expected["Accl1___tied"].shape == (2, 4) and expected["Step___tied"].shape == (2,)
    assert {name: state.shape for name, state in found[0].items()} == {
        name: state.shape for name, state in expected.items()
    }


def in_bounds(folder: str) -> None:
    model, optimizer, executor = compiled(N)
    executor(torch.ones(4))
    executor.copyWeightsToHost()
    executor(torch.ones(4))
    with room_for(2 * 4 * N):
        executor.copyWeightsToHost()
        state = optimizer.state_dict()
        if os.environ["RANK"] == "0":
            torch.save([list(model.parameters()), state], os.path.join(folder, "state.pt"))
        del state
        executor.save(os.path.join(folder, "executor"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_saving_takes_no_more_memory_than_two_tensors(tmp_path):
    together(2, in_bounds, str(tmp_path))
    weights, state = torch.load(tmp_path / "state.pt", weights_only=False, mmap=True)
    assert [weight.shape for weight in weights] == [(N,)] * WEIGHTS and len(state["ipu_state"]) == 3 * WEIGHTS
