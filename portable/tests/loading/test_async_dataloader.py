"""poptorch.DataLoader in the modes Async and AsyncRebatched, and AsynchronousDataAccessor (section 12)."""

from __future__ import annotations

import collections
import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loaders import FORK, contents, numbers, wait_until
from programs import Regression, make_options, regression_data
from torch.utils.data import BatchSampler, Dataset, IterableDataset, SequentialSampler, TensorDataset

import poptorch
from poptorch import AsynchronousDataAccessor, DataLoader, DataLoaderMode, Error, SharingStrategy
from poptorch.loading.batch_ring import Rebatched, put_together, taken_apart


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
    with pytest.raises(Error, match=r"same size along dim 0, got the shapes \[\(2,\), \(3,\)\]"):
        AsynchronousDataAccessor([(torch.zeros(2), torch.zeros(3))], rebatched_size=2, **FORK)


class Stream(IterableDataset):
    """0, 1, 2, …; counts in shared memory how many epochs were begun and samples given."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.begun, self.given = (torch.zeros(1, dtype=torch.int64).share_memory_() for _ in range(2))

    def __iter__(self):
        self.begun += 1
        return self._numbers()

    def _numbers(self):
        for number in range(self.length):
            self.given += 1
            yield number


def test_section12_streams(running):
    loader = DataLoader(make_options(3), Stream(7), mode=DataLoaderMode.Async, async_options=FORK)
    running.append(loader)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError):
        len(loader)
    with pytest.raises(Error, match="The Dataset is empty"):
        DataLoader(make_options(3), Stream(2), mode=DataLoaderMode.Async, async_options=FORK)


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
        assert list(accessor) == [0, 1]
    wait_until(lambda: ahead.begun.item() > 1)
    assert waiting.begun.item() == 1
    assert list(running[1]) == [0, 1] and waiting.begun.item() == 2


def test_section12_early_preload(running):
    early, late = Stream(5), Stream(5)
    for stream, preload in ((late, False), (early, True)):
        running.append(AsynchronousDataAccessor(stream, early_preload=preload, load_indefinitely=False, **FORK))
    assert late.given.item() == 1  # so that a broken data set fails at once
    wait_until(lambda: early.given.item() > 3)  # the ring is full
    assert late.given.item() == 1
    for accessor, stream in zip(running, (late, early), strict=True):
        assert list(accessor) == [0, 1, 2, 3, 4] and stream.begun.item() == 1


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


def test_section12_batch_samplers_and_streams_are_joined_too(running):
    batches = BatchSampler(SequentialSampler(range(14)), batch_size=2, drop_last=False)
    for mode in (DataLoaderMode.Async, DataLoaderMode.AsyncRebatched):
        loader = DataLoader(make_options(3), numbers(14), batch_sampler=batches, mode=mode, async_options=FORK)
        running.append(loader)
        assert contents(loader) == [list(range(6)), list(range(6, 12))]
    arguments = {"batch_size": 2, "rebatched_worker_size": 3, "drop_last": False, "async_options": FORK}
    loader = DataLoader(make_options(2), Stream(7), mode=DataLoaderMode.AsyncRebatched, **arguments)
    running.append(loader)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6]]
