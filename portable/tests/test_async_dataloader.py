"""poptorch.DataLoader in the modes Async and AsyncRebatched, and AsynchronousDataAccessor (section 12)."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Regression, make_options, regression_data
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import poptorch
from poptorch import AsynchronousDataAccessor, DataLoader, DataLoaderMode, Error, SharingStrategy
from poptorch.batch_ring import Rebatched, put_together, taken_apart

FORK = {"sharing_strategy": SharingStrategy.Fork}  # starts in milliseconds


@pytest.fixture
def running():
    """Loaders and accessors put in here are terminated after the test, and no process may be left."""
    started: list = []
    yield started
    accessors = [getattr(item, "_accessor", item) for item in started]
    processes = [accessor._process for accessor in accessors if accessor is not None]
    for item in started:
        item.terminate()
    for process in processes:
        with pytest.raises(ValueError, match="closed"):  # ended and waited for
            process.is_alive()


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def contents(loader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("strategy", SharingStrategy)
def test_section12_batches_are_those_of_mode_sync(running, strategy):
    loader = DataLoader(
        make_options(2),
        numbers(11),
        batch_size=2,
        mode=DataLoaderMode.Async,
        async_options={"sharing_strategy": strategy},
    )
    running.append(loader)
    assert loader.combinedBatchSize == 4 and len(loader) == 2
    for _ in range(3):
        assert contents(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_section12_shuffled_epochs_are_those_of_mode_sync(running):
    def loader(**arguments) -> DataLoader:
        generator = torch.Generator().manual_seed(5)
        return DataLoader(make_options(2), numbers(16), batch_size=2, shuffle=True, generator=generator, **arguments)

    for mode in (DataLoaderMode.Async, DataLoaderMode.AsyncRebatched):
        sync, asynchronous = loader(), loader(mode=mode)
        running.append(asynchronous)
        epochs = [contents(sync) for _ in range(2)]
        assert [contents(asynchronous) for _ in range(2)] == epochs and epochs[0] != epochs[1]


@settings(deadline=None, max_examples=15)
@given(
    batch_size=st.integers(1, 3),
    iterations=st.integers(1, 3),
    length=st.integers(1, 40),
    worker_size=st.integers(1, 9),
    drop_last=st.booleans(),
    mode=st.sampled_from([DataLoaderMode.Async, DataLoaderMode.AsyncRebatched]),
)
def test_section12_rebatching_joins_what_workers_make(batch_size, iterations, length, worker_size, drop_last, mode):
    options = make_options(iterations)
    arguments = {"batch_size": batch_size, "drop_last": drop_last}
    expected = contents(DataLoader(options, numbers(length), **arguments))
    combined = batch_size * iterations
    arguments |= {"mode": mode, "async_options": FORK, "rebatched_worker_size": min(worker_size, combined)}
    if not expected:
        with pytest.raises(Error, match="The Dataset is empty"):
            DataLoader(options, numbers(length), **arguments)
        return
    loader = DataLoader(options, numbers(length), **arguments)
    assert len(loader) == len(expected) and contents(loader) == expected == contents(loader)
    loader.terminate()


@pytest.mark.parametrize("mode", [DataLoaderMode.Async, DataLoaderMode.AsyncRebatched])
def test_section12_workers_of_the_loading_process(running, mode):
    loader = DataLoader(
        make_options(4), numbers(25), num_workers=2, mode=mode, rebatched_worker_size=3, async_options=FORK
    )
    running.append(loader)
    assert contents(loader) == contents(loader) == [list(range(i, i + 4)) for i in range(0, 24, 4)]


def test_section12_a_batch_is_valid_until_the_next_one(running):
    accessor = AsynchronousDataAccessor(
        list(torch.arange(5).split(1)), buffer_size=3, sharing_strategy=SharingStrategy.Fork
    )
    running.append(accessor)
    batches = list(accessor)
    assert len(accessor) == 5 and len({batch.data_ptr() for batch in batches}) == 3
    assert all(batch.is_shared() for batch in batches)
    assert [batch.item() for batch in accessor] == list(range(5))


Pair = collections.namedtuple("Pair", "left right")


class StartMethod(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        return multiprocessing.get_start_method()


def test_workers_of_the_loading_process_are_started_as_in_this_one(running):
    """The loading process comes from a fork server; a server of its own for its workers would take seconds."""
    loader = DataLoader(make_options(), StartMethod(), batch_size=None, mode=DataLoaderMode.Async)
    running.append(loader)
    assert list(loader) == [multiprocessing.get_start_method()]


def test_section12_the_sleeping_time_has_no_effect_and_that_is_said_once(running, capsys, monkeypatch):
    monkeypatch.setattr(poptorch.notices, "_said", set())
    for _ in range(2):
        running.append(AsynchronousDataAccessor([1], miss_sleep_time_in_ms=3, **FORK))
    assert capsys.readouterr().err.count("miss_sleep_time_in_ms of AsynchronousDataAccessor has no effect") == 1


class Structured(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        tensors = Pair(torch.full((index + 1,), index), torch.tensor(index))
        return {"pair": tensors, "text": f"number {index}", "nothing": None, "array": np.arange(index)}


def test_section12_any_structure_of_any_shape(running):
    loader = DataLoader(make_options(), Structured(), batch_size=None, mode=DataLoaderMode.Async, async_options=FORK)
    running.append(loader)
    for index, element in enumerate(loader):
        assert type(element["pair"]) is Pair and element["pair"].left.tolist() == [index] * (index + 1)
        assert element["pair"].right.shape == () and element["pair"].right.item() == index
        assert element["text"] == f"number {index}" and element["nothing"] is None and len(element["array"]) == index


def test_a_structure_taken_apart_and_put_together():
    shared = torch.arange(3)
    skeleton, tensors = taken_apart([shared, (shared, {"x": torch.ones(2)})])
    assert len(tensors) == 2
    first, (second, rest) = put_together(skeleton, [torch.zeros(3), torch.zeros(2)])
    assert first is second and not first.any() and not rest["x"].any()


@pytest.mark.parametrize("drop_last", [False, True])
def test_section12_rebatched_size_of_an_accessor(running, drop_last):
    inner = torch.utils.data.DataLoader(numbers(11), batch_size=1, drop_last=drop_last)
    accessor = AsynchronousDataAccessor(inner, rebatched_size=4, sharing_strategy=SharingStrategy.Fork)
    running.append(accessor)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]][: 2 if drop_last else 3]
    assert contents(accessor) == expected and len(accessor) == len(expected)


def test_rebatching_what_cannot_be_joined():
    batches = [(torch.zeros(2), "a"), (torch.zeros(2), "b")]
    accessor = AsynchronousDataAccessor(Rebatched(batches, 4, True), sharing_strategy=SharingStrategy.Fork)
    with pytest.raises(Error, match="differ in nothing but their tensors"):
        next(accessor)
    accessor = AsynchronousDataAccessor([(torch.zeros(2), torch.zeros(3))], rebatched_size=2, **FORK)
    with pytest.raises(Error, match=r"same size along dim 0, got the shapes \[\(2,\), \(3,\)\]"):
        next(accessor)


class Stream(IterableDataset):
    """0, 1, 2, …; counts how many epochs were begun in shared memory."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.begun = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __iter__(self):
        self.begun += 1
        return iter(range(self.length))


def test_section12_streams(running):
    loader = DataLoader(make_options(3), Stream(7), mode=DataLoaderMode.Async, async_options=FORK)
    running.append(loader)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError):
        len(loader)
    empty = DataLoader(make_options(3), Stream(2), mode=DataLoaderMode.Async, async_options=FORK)
    running.append(empty)
    with pytest.raises(Error, match="The Dataset is empty"):
        next(iter(empty))


def test_section12_an_empty_data_set():
    for dataset in (numbers(0), numbers(3)):  # fewer than a combined batch
        with pytest.raises(Error, match="The Dataset is empty"):
            DataLoader(make_options(4), dataset, mode=DataLoaderMode.Async)
    with pytest.raises(Error, match="The Dataset is empty"):
        AsynchronousDataAccessor([])


def test_section12_load_indefinitely_begins_the_next_epoch(running):
    ahead, waiting = Stream(2), Stream(2)
    for stream, indefinitely in ((ahead, True), (waiting, False)):
        accessor = AsynchronousDataAccessor(stream, load_indefinitely=indefinitely, **FORK)
        running.append(accessor)
        assert stream.begun.item() == 0  # no early preload
        assert list(accessor) == [0, 1]
    wait_until(lambda: ahead.begun.item() > 1)
    assert waiting.begun.item() == 1
    assert list(running[1]) == [0, 1] and waiting.begun.item() == 2


def test_section12_early_preload(running):
    stream = Stream(2)
    running.append(AsynchronousDataAccessor(stream, early_preload=True, load_indefinitely=False, **FORK))
    wait_until(lambda: stream.begun.item() == 1)
    assert list(running[0]) == [0, 1] and stream.begun.item() == 1


def test_an_epoch_that_is_not_used_up_is_given_up(running):
    loader = DataLoader(make_options(), numbers(9), mode=DataLoaderMode.Async, async_options=FORK)
    running.append(loader)
    for _ in range(3):
        assert contents(itertools.islice(loader, 2)) == [[0], [1]]
    assert len(contents(loader)) == 9
    iterator = iter(loader)
    assert len(list(iterator)) == 9 and next(iterator, None) is None


class Draws(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([torch.rand(()).item(), np.random.rand()])


def test_the_process_continues_the_callers_random_numbers(running):
    def drawn() -> torch.Tensor:
        torch.manual_seed(4)
        np.random.seed(4)
        running.append(AsynchronousDataAccessor([Draws()], **FORK))
        return next(running[-1])[0]

    first, again = drawn(), drawn()
    assert torch.equal(first, again)


@pytest.mark.parametrize("mode", DataLoaderMode)
def test_section12_processes_get_their_parts(running, mode):
    for process, epochs in ((0, [[0, 1, 2, 3], [8, 9, 10, 0]]), (1, [[4, 5, 6, 7], [1, 2, 3, 4]])):
        options = make_options(2)
        options.Distributed.configureProcessId(process, 2)
        loader = DataLoader(options, numbers(11), mode=mode, async_options=FORK)
        if mode is not DataLoaderMode.Sync:
            running.append(loader)
        assert [sum(contents(loader), []) for _ in epochs] == epochs


def test_training_with_batches_from_shared_memory(running):
    x, y = regression_data(24)
    trained = []
    for mode in DataLoaderMode:
        model = Regression()
        loader = DataLoader(make_options(2, 2), TensorDataset(x, y), batch_size=3, mode=mode, async_options=FORK)
        if mode is not DataLoaderMode.Sync:
            running.append(loader)
        executor = poptorch.trainingModel(model, make_options(2, 2), torch.optim.SGD(model.parameters(), lr=0.1))
        losses = [executor(*batch)[1] for _ in range(3) for batch in loader]
        trained.append((torch.stack(losses), model.first.weight.detach().clone()))
    for losses, weight in trained[1:]:
        assert torch.equal(losses, trained[0][0]) and torch.equal(weight, trained[0][1])


# -- what goes wrong ---------------------------------------------------------------------------------------------


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
    loader = DataLoader(make_options(), Odd(), mode=DataLoaderMode.Async, async_options=FORK)
    with pytest.raises(Error, match="sample 0 is odd") as caught:
        list(loader)
    assert caught.value.__cause__ is None


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
    assert capfd.readouterr().err == ""  # nothing is told of how they ended
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
    done = subprocess.run(
        [sys.executable, program, strategy], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
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
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 1 and "worker thread failed to start (Check above for details)" in done.stderr
    assert "__main__" in done.stderr  # Python says what to do
