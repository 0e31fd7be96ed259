"""What several processes own of some tensors, whole in the first one, without room in memory for it."""

from __future__ import annotations

import errno
import math
import os
import resource
import tempfile

import pytest
import torch
from launch import together
from scarce_memory import room_for

import poptorch
from poptorch.engine.processes import collecting, group
from poptorch.engine.processes.collecting import Owned
from poptorch.engine.processes.layout import Layout


def tensors() -> dict[str, torch.Tensor]:
    """Of many types and sizes; `long` takes several windows."""
    generator = torch.Generator().manual_seed(0)
    made = {
        "cut": torch.randn(7, 5, generator=generator),
        "long": torch.randn(3 * collecting._WINDOW // 4, generator=generator),
        "half": torch.randn(6, 4, generator=generator).half(),
        "brain": torch.randn(9, generator=generator).bfloat16(),
        "flags": torch.rand(11, generator=generator) > 0.5,
        "of the first": torch.randn(3, generator=generator),
        "of the last": torch.randn(2, 3, generator=generator),
        "of all": torch.arange(5),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(2.5, dtype=torch.float64),
    }
    return made


def pieces(rank: int, processes: int) -> dict[str, Owned]:
    """Shares of some, all of others; the last process has what no other has."""
    owned = {}
    for name, tensor in tensors().items():
        if name in ("of all", "empty", "number") or (name == "of the first" and rank == 0):
            owned[name] = Owned.whole(tensor)
        elif name == "of the last" and rank == processes - 1:
            owned[name] = Owned.whole(tensor)
        elif not name.startswith("of "):
            each = -(-tensor.numel() // processes)
            piece = tensor.view(-1)[rank * each : (rank + 1) * each]
            owned[name] = Owned(tensor.shape, piece, rank * each)
    return owned


def join() -> tuple[int, int, torch.distributed.ProcessGroup]:
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    layout = Layout(rank, processes)
    group.join(layout, torch.device("cpu"), "nothing")
    return rank, processes, group.replicas(layout)


def collected() -> list[dict[str, torch.Tensor]]:
    rank, processes, members = join()
    owned = pieces(rank, processes)
    return [collecting.collect(owned, members), collecting.collect(owned, members, everywhere=True)]


@pytest.mark.parametrize("processes", [2, 3])
def test_pieces_become_whole(processes):
    whole = tensors()
    for rank, (first, everywhere) in enumerate(together(processes, collected)):
        for found in (everywhere, first) if rank == 0 else (everywhere,):
            assert set(found) == set(whole)
            for name, tensor in whole.items():
                assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        if rank > 0:
            assert first["number"] == 2.5
            described = {name: (tensor.shape, tensor.dtype) for name, tensor in whole.items()}
            assert {name: (tensor.shape, tensor.dtype) for name, tensor in first.items()} == described
            assert all(tensor.is_meta for name, tensor in first.items() if name != "number")


def own_numbers() -> dict[str, torch.Tensor]:
    rank, _, members = join()
    mine = {f"{name}_{rank}": torch.tensor(0.1 * (rank + 1), dtype=torch.float64) for name in ("rate", "decay")}
    return collecting.union(mine, members)


def test_numbers_of_all_processes():
    first, second = together(2, own_numbers)
    assert {name: float(number) for name, number in first.items()} == {
        "rate_0": 0.1,
        "decay_0": 0.1,
        "rate_1": 0.2,
        "decay_1": 0.2,
    }
    assert first["rate_1"].data_ptr() == first["decay_1"].data_ptr(), "equal ones are stored once"
    assert set(second) == {"rate_1", "decay_1"}


def refused(reason: str) -> str:
    rank, processes, members = join()
    owned = pieces(rank, processes)
    if reason == "missing" and rank == 1:
        del owned["cut"]
    elif reason == "room" and rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    with pytest.raises(poptorch.Error) as caught:
        collecting.collect(owned, members)
    return str(caught.value)


def test_a_piece_that_nobody_has_is_named():
    for message in together(2, refused, "missing"):
        assert "no process has element 18 of cut, of shape [7, 5]" in message


def test_a_folder_without_room_is_named_before_anything_is_sent():
    for message in together(2, refused, "room"):
        assert f"process 0: {tempfile.gettempdir()} cannot take the " in message and "TMPDIR" in message


def test_copies_are_in_memory_where_the_disk_has_no_room(monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = tensors()
    owned = {name: Owned.whole(tensor) for name, tensor in whole.items()}
    for room in (True, False):
        if not room:
            monkeypatch.setattr(os, "posix_fallocate", full)
        found = collecting.copies_on_disk(owned)
        assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
        assert all(found[name].data_ptr() != tensor.data_ptr() for name, tensor in whole.items() if tensor.numel())


@pytest.mark.parametrize("lacks", ["support", "the call"])
def test_room_is_written_where_it_cannot_be_reserved(lacks, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if lacks == "support":
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    else:
        monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(collecting, "_WINDOW", 100)  # bytes, in several parts
    found = collecting.on_disk({"a": (torch.Size([7, 9]), torch.float32), "b": (torch.Size([3]), torch.int64)})
    assert not any(tensor.any() for tensor in found.values())
    found["a"].fill_(1.0)
    assert found["a"].sum() == 63 and not found["b"].any()


N = 4 << 20  # elements of a weight, 16 MiB in float32
WEIGHTS = 6


class Wide(torch.nn.Module):
    """The loss of some large weights, (1,) -> 0-d."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.full((N,), 0.5 + index) for index in range(WEIGHTS)])

    def forward(self, x):
        return poptorch.identity_loss(sum((weight * x).sum() for weight in self.weights), "sum")


def saved_in_bounds(folder: str, shared: bool) -> None:
    """Saves the 12 states where there is room in memory for two."""
    rank = int(os.environ["RANK"])
    options = poptorch.Options()
    options.Distributed.configureProcessId(rank, 2)
    location = poptorch.TensorLocationSettings().useReplicatedTensorSharding(shared)
    options.TensorLocations.setOptimizerLocation(location)
    model = Wide()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=1e-3)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor(torch.ones(1))
    optimizer.state_dict()  # its threads and buffers are there from now on
    with room_for(2 * 4 * N):
        state = optimizer.state_dict()
        if rank == 0:
            torch.save(state, os.path.join(folder, "state.pt"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
@pytest.mark.parametrize("shared", [True, False])
def test_saving_takes_no_more_memory_than_two_tensors(tmp_path, shared):
    together(2, saved_in_bounds, str(tmp_path), shared)
    state = torch.load(tmp_path / "state.pt", weights_only=True, mmap=True)["ipu_state"]
    for index in range(WEIGHTS):
        # m = (1 - 0.9) g and v = (1 - 0.999) g^2 with g = 1
        for role, value in (("Accl1", 0.1), ("Accl2", 0.001)):
            moment = state[f"{role}___weights.{index}"]
            assert moment.shape == (N,) and math.isclose(float(moment.double().mean()), value, rel_tol=1e-5)
