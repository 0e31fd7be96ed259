"""What goes wrong in asynchronous loaders: errors within seconds, and no process is left (section 12)."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import textwrap
import threading

import pytest
import torch
from launch import run_program
from loaders import FORK, contents, lives, numbers, wait_until
from programs import make_options
from torch.utils.data import Dataset

from poptorch import AsynchronousDataAccessor, DataLoader, DataLoaderMode, Error, SharingStrategy


def test_section12_arguments():
    with pytest.raises(AssertionError, match="rebatched_worker_size"):
        DataLoader(make_options(2), numbers(4), batch_size=2, rebatched_worker_size=5)
    with pytest.raises(AssertionError, match="rebatched_size"):
        DataLoader(make_options(2), numbers(4), async_options={"rebatched_size": 1})
    with pytest.raises(AssertionError, match="mode must be a poptorch.DataLoaderMode"):
        DataLoader(make_options(2), numbers(4), mode="async")
    with pytest.raises(AssertionError, match="buffer_size"):
        AsynchronousDataAccessor(numbers(4), buffer_size=0)
    with pytest.raises(AssertionError, match="sharing_strategy"):
        AsynchronousDataAccessor(numbers(4), sharing_strategy="fork")
    with pytest.raises(TypeError, match="unknown"):
        DataLoader(make_options(2), numbers(4), mode=DataLoaderMode.Async, async_options={"unknown": 1})


@pytest.mark.parametrize("strategy", [SharingStrategy.ForkServer, SharingStrategy.FileSystem])
def test_section12_a_data_set_that_cannot_be_sent(strategy):
    with pytest.raises(Error, match="AsynchronousDataAccessor worker thread failed to start .*Fork") as caught:
        AsynchronousDataAccessor([lambda: 0], sharing_strategy=strategy)
    assert isinstance(caught.value.__cause__, (pickle.PicklingError, AttributeError))


class Failing(Dataset):
    """Fails at index 2 in the way given: by an exception, or a signal to its process."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2 and self.how == "raise":
            raise ValueError("sample 2 is damaged")
        if index == 2 and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([index])


@pytest.mark.parametrize(
    ("how", "workers", "text"),
    [
        ("raise", 0, "sample 2 is damaged"),
        ("raise", 1, "sample 2 is damaged"),
        ("kill", 0, "signal SIGKILL"),
        ("kill", 1, "loading data failed"),  # torch says it in several ways, depending on what it was waiting for
    ],
)
def test_section12_a_process_that_fails_or_dies(how, workers, text):
    loader = DataLoader(
        make_options(), Failing(how), mode=DataLoaderMode.Async, num_workers=workers, async_options=FORK
    )
    with pytest.raises(Error, match=text) as caught:
        list(loader)
    assert how == "kill" or isinstance(caught.value.__cause__, ValueError)
    assert not loader._accessor._finalizer.still_active()
    with pytest.raises(Error, match="has been terminated"):
        iter(loader)


class Busy(Dataset):
    """The number of the loading process; from `index` on it never comes back."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= self.index:
            threading.Event().wait()
        return torch.tensor([os.getpid()])


class Unknown(Exception):
    """Pickled, it is an exception that only the loading process can make."""

    main = os.getpid()

    def __reduce__(self):
        return _only_elsewhere, ()


def _only_elsewhere() -> Exception:
    if os.getpid() == Unknown.main:
        raise ImportError("no such class here")
    return Unknown("sample 0 is odd")


class Odd(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise Unknown("sample 0 is odd")


def test_an_exception_that_cannot_be_sent_is_told_as_text():
    with pytest.raises(Error, match="sample 0 is odd") as caught:
        DataLoader(make_options(), Odd(), mode=DataLoaderMode.Async, async_options=FORK)
    assert caught.value.__cause__ is None


class Broken(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        raise KeyError("broken")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("strategy", [SharingStrategy.Fork, SharingStrategy.ForkServer])
def test_a_broken_data_set_is_told_when_the_accessor_is_made(workers, strategy):
    loader = torch.utils.data.DataLoader(Broken(), num_workers=workers)
    text = r"worker thread failed to start \(Check above for details\)(.|\n)*broken"
    with pytest.raises(Error, match=text) as caught:
        AsynchronousDataAccessor(loader, sharing_strategy=strategy)
    assert isinstance(caught.value.__cause__, KeyError)


def test_section12_a_process_killed_from_outside(running):
    loader = DataLoader(make_options(), numbers(9), mode=DataLoaderMode.Async)
    iterator = iter(loader)
    next(iterator)
    os.kill(loader._accessor._process.pid, signal.SIGKILL)
    with pytest.raises(Error, match="has ended unexpectedly .signal SIGKILL"):
        list(iterator)


@pytest.mark.parametrize(
    ("workers", "index"),
    [
        (0, 2),
        (2, 2),  # the loading process waits for a worker
        (2, 3),  # it waits for room in the ring, its workers are busy
    ],
)
def test_section12_terminate_ends_a_loader_that_is_busy(workers, index, capfd, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest's keeps what destructors raise
    loader = DataLoader(
        make_options(),
        Busy(index),
        mode=DataLoaderMode.Async,
        num_workers=workers,
        persistent_workers=False,
        async_options={**FORK, "buffer_size": 1},
    )
    batches = iter(loader)
    pids = {loader._accessor._process.pid, *(next(batches).item() for _ in range(2))}
    assert len(pids) == workers + 1
    loader.terminate()
    wait_until(lambda: not any(map(lives, pids)))
    assert "Exception" not in capfd.readouterr().err  # nothing is told of how they ended
    with pytest.raises(Error, match="has been terminated"):  # not the end of an epoch
        next(batches)
    loader.terminate()  # nothing left to do


def test_section12_terminated_when_collected():
    loader = DataLoader(make_options(), numbers(9), mode=DataLoaderMode.Async, async_options=FORK)
    pid = loader._accessor._process.pid
    assert lives(pid)
    del loader
    assert not lives(pid)


def test_a_terminated_loader_begins_anew(running):
    loader = DataLoader(make_options(), numbers(3), mode=DataLoaderMode.Async, async_options=FORK)
    running.append(loader)
    assert contents(loader) == [[0], [1], [2]]
    loader.terminate()
    assert contents(loader) == [[0], [1], [2]]


PROGRAM = """
    import os, signal, sys, torch, poptorch

    class Pids(torch.utils.data.Dataset):
        def __len__(self):
            return 100
        def __getitem__(self, index):
            return torch.tensor([os.getpid()])

    if __name__ == "__main__":
        loader = poptorch.DataLoader(
            poptorch.Options(), Pids(), mode=poptorch.DataLoaderMode.Async, num_workers=2,
            async_options={"sharing_strategy": poptorch.SharingStrategy[sys.argv[1]]},
        )
        batches = iter(loader)
        pids = {loader._accessor._process.pid, *(next(batches).item() for _ in range(4))}
        print(*pids, flush=True)
        END
"""


@pytest.mark.parametrize(
    ("strategy", "end", "code"),
    [
        ("Fork", "raise KeyError('the main process')", 1),
        ("ForkServer", "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_section12_no_process_outlives_the_main_one(tmp_path, strategy, end, code):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).replace("END", end))
    done = run_program(program, strategy)
    pids = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == code and len(pids) == 3
    wait_until(lambda: not any(map(lives, pids)))


def test_section12_a_main_program_without_protection(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import poptorch, torch\n"
        "data = torch.utils.data.TensorDataset(torch.arange(4))\n"
        "poptorch.DataLoader(poptorch.Options(), data, mode=poptorch.DataLoaderMode.Async)\n"
    )
    done = run_program(program, own_server=True)
    assert done.returncode == 1 and "worker thread failed to start (Check above for details)" in done.stderr
    assert "__main__" in done.stderr  # Python says what to do
