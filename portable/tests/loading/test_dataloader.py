"""poptorch.DataLoader: combined batches and partitions, mode Sync (section 12)."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, Dataset, IterableDataset, SequentialSampler, TensorDataset

from poptorch import inferenceModel
from poptorch.enums import CommGroupType, DataLoaderMode
from poptorch.loading import dataloader
from poptorch.loading.dataloader import AsynchronousDataAccessor, DataLoader
from poptorch.options.executor_options import Options
from poptorch.poptorch_core import Error


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def contents(loader: DataLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def shaped(iterations: int = 1, replicas: int = 1, accumulation: int = 1, group: int = 1) -> Options:
    options = Options().deviceIterations(iterations).replicationFactor(replicas)
    options.inputReplicaGrouping(group, CommGroupType.Consecutive)
    options.Training.gradientAccumulation(accumulation)
    return options


def test_signatures():
    parameters = inspect.signature(DataLoader).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert list(parameters) == ["options", "dataset", *defaults, "kwargs"]
    assert defaults == {
        "batch_size": 1,
        "shuffle": None,
        "num_workers": 0,
        "drop_last": True,
        "persistent_workers": None,
        "auto_distributed_partitioning": True,
        "mode": DataLoaderMode.Sync,
        "async_options": None,
        "rebatched_worker_size": None,
        "batch_sampler": None,
    }
    accessor = [str(p.name) for p in inspect.signature(AsynchronousDataAccessor).parameters.values()]
    assert accessor == [
        "dataset",
        "buffer_size",
        "miss_sleep_time_in_ms",
        "load_indefinitely",
        "early_preload",
        "sharing_strategy",
        "rebatched_size",
    ]


@settings(deadline=None, max_examples=40)
@given(
    batch_size=st.integers(1, 3),
    iterations=st.integers(1, 3),
    groups=st.integers(1, 2),
    group=st.integers(1, 2),
    accumulation=st.integers(1, 3),
    length=st.integers(0, 80),
    drop_last=st.booleans(),
)
def test_section12_combined_batches(batch_size, iterations, groups, group, accumulation, length, drop_last):
    options = shaped(iterations, groups * group, accumulation, group)
    loader = DataLoader(options, numbers(length), batch_size=batch_size, drop_last=drop_last)
    combined = batch_size * iterations * groups * accumulation
    assert loader.combinedBatchSize == combined
    expected = [list(range(i, min(i + combined, length))) for i in range(0, length, combined)]
    if drop_last:
        expected = [batch for batch in expected if len(batch) == combined]
    assert contents(loader) == expected and len(loader) == len(expected)


def test_section12_the_options_are_frozen_and_shared():
    options = shaped(2)
    loader = DataLoader(options, numbers(4))
    assert loader.options is options
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        options.deviceIterations(3)
    for wrong in (None, {}, 4):
        with pytest.raises(Error, match="Invalid type: 'options' is of type"):
            DataLoader(wrong, numbers(4))


def test_section12_without_batching():
    loader = DataLoader(shaped(3), numbers(5), batch_size=None)
    assert loader.combinedBatchSize is None and len(loader) == 5
    assert [element[0].item() for element in loader] == list(range(5))


def test_section12_torch_arguments_pass_through():
    generator = torch.Generator().manual_seed(3)
    reference = torch.utils.data.DataLoader(
        numbers(12), 4, shuffle=True, generator=torch.Generator().manual_seed(3), drop_last=True
    )
    loader = DataLoader(shaped(2), numbers(12), batch_size=2, shuffle=True, generator=generator)
    assert contents(loader) == contents(reference)
    loader = DataLoader(
        shaped(2), numbers(6), sampler=[5, 4, 3, 2], collate_fn=lambda items: [torch.stack([item[0] for item in items])]
    )
    assert contents(loader) == [[5, 4], [3, 2]]


class WholeBatches(Dataset):
    """Counts how it is asked."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.calls: list[list[int]] = []

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        self.calls.append(list(indices))
        return [torch.tensor(index) for index in indices]

    def __getitem__(self, index: int) -> torch.Tensor:
        raise AssertionError("asked for a single element")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_data_set_gets_one_call_for_a_combined_batch(processes):
    dataset = WholeBatches(24)
    options = shaped(2, 1, 3)
    options.Distributed.configureProcessId(0, processes)
    loader = DataLoader(options, dataset, batch_size=2)
    assert [batch.tolist() for batch in loader] == dataset.calls
    assert [len(call) for call in dataset.calls] == [12] * (2 // processes)


def test_section12_workers_persist_by_default_and_terminate():
    loader = DataLoader(shaped(2), numbers(8), num_workers=1, prefetch_factor=3)
    assert loader.persistent_workers and loader.prefetch_factor == 3
    assert not DataLoader(shaped(), numbers(8)).persistent_workers
    assert contents(loader) == contents(loader) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    workers = loader._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    loader.terminate()
    for worker in workers:
        worker.join(100)
    assert not any(worker.is_alive() for worker in workers)
    assert contents(loader)[0] == [0, 1]
    loader.terminate()


def test_section12_batch_samplers_are_combined():
    def sampler() -> BatchSampler:
        return BatchSampler(SequentialSampler(range(14)), batch_size=2, drop_last=False)

    options = shaped(2, 2, 3, 2)  # 6 batches of 2 together, of the 7
    loader = DataLoader(options, numbers(14), batch_sampler=sampler())
    assert contents(loader) == [list(range(12))] and len(loader) == 1
    loader = DataLoader(options, numbers(14), batch_sampler=sampler(), drop_last=False)
    assert contents(loader) == [list(range(12)), [12, 13]] and len(loader) == 2
    for arguments in ({"batch_size": 2}, {"shuffle": True}):
        with pytest.raises(Error, match="mutually exclusive"):
            DataLoader(shaped(), numbers(4), batch_sampler=sampler(), **arguments)
    options = shaped()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(Error, match="mutually exclusive"):
        DataLoader(options, numbers(4), batch_sampler=sampler())
    loader = DataLoader(options, numbers(14), batch_sampler=sampler(), auto_distributed_partitioning=False)
    assert len(contents(loader)) == 7


class Ragged(Dataset):
    """Sample i is i + 1 ones."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.ones(index + 1)


def padded_to_four(samples):
    """Rows and columns padded: (4, 12), and how many samples there were."""
    PADDED.append(len(samples))
    rows = torch.zeros(4, 12)
    for row, sample in enumerate(samples):
        rows[row, : len(sample)] = sample
    return {"rows": rows, "names": [f"{len(sample)}" for sample in samples]}


PADDED: list[int] = []


def test_each_batch_of_a_batch_sampler_is_collated_by_itself(running):
    batches = [[0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10]]
    for mode in (DataLoaderMode.Sync, DataLoaderMode.Async, DataLoaderMode.AsyncRebatched):
        PADDED.clear()
        loader = DataLoader(shaped(2), Ragged(), batch_sampler=batches, collate_fn=padded_to_four, mode=mode)
        running.append(loader)
        found = [{"rows": batch["rows"].clone(), "names": list(batch["names"])} for batch in loader]
        assert len(loader) == 2 and [tuple(batch["rows"].shape) for batch in found] == [(8, 12), (8, 12)]
        assert found[0]["rows"].sum(1).tolist() == [1, 2, 3, 0, 4, 5, 0, 0]
        assert found[1]["rows"].sum(1).tolist() == [6, 7, 8, 9, 10, 11, 0, 0]
        assert found[0]["names"] == list("12345")
        if mode is DataLoaderMode.Sync:
            assert PADDED == [3, 2, 4, 2]


def test_batches_of_a_batch_sampler_that_do_not_fit_together():
    loader = DataLoader(shaped(2), Ragged(), batch_sampler=[[0], [1]])
    with pytest.raises(Error, match=r"shapes are \(1, 1\), \(1, 2\).*collate_fn"):
        next(iter(loader))


def process_loader(process: int, processes: int, length: int, **arguments) -> DataLoader:
    options = shaped(2).randomSeed(7)
    options.Distributed.configureProcessId(process, processes)
    return DataLoader(options, numbers(length), **arguments)


@settings(deadline=None, max_examples=40)
@given(processes=st.integers(2, 4), length=st.integers(0, 60), batch_size=st.integers(1, 3), drop_last=st.booleans())
def test_section12_processes_get_contiguous_slices(processes, length, batch_size, drop_last):
    slices = []
    for process in range(processes):
        loader = process_loader(process, processes, length, batch_size=batch_size, drop_last=drop_last)
        batches = contents(loader)
        assert len(batches) == len(loader)
        slices.append([index for batch in batches for index in batch])
    flat = [index for part in slices for index in part]
    assert flat == list(range(len(flat)))
    if drop_last:
        step = 2 * batch_size
        assert {len(part) for part in slices} == {length // (step * processes) * step}
    else:
        assert len(flat) == length and max(map(len, slices)) - min(map(len, slices)) <= 1


def test_section12_what_is_left_over_comes_first_in_the_next_epoch():
    # 11 elements, 2 processes, combined batches of 2: 4 for each process and 3 left over.
    loaders = [process_loader(process, 2, 11) for process in range(2)]
    epochs = [[sum(contents(loader), []) for loader in loaders] for _ in range(3)]
    assert epochs[0] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert epochs[1] == [[8, 9, 10, 0], [1, 2, 3, 4]]
    assert epochs[2] == [[5, 6, 7, 8], [9, 10, 0, 1]]


def test_section12_shuffled_partitions_share_one_permutation():
    loaders = [process_loader(process, 3, 24, shuffle=True) for process in range(3)]
    epochs = [sum((sum(contents(loader), []) for loader in loaders), []) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(24)) and epoch != sorted(epoch)
    assert epochs[0] != epochs[1]
    again = [process_loader(process, 3, 24, shuffle=True) for process in range(3)]
    assert sum((sum(contents(loader), []) for loader in again), []) == epochs[0]
    options = shaped()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(AssertionError, match="randomSeed"):
        DataLoader(options, numbers(8), shuffle=True)


def test_persistent_workers_see_each_epochs_order():
    inline = process_loader(1, 2, 16, shuffle=True)
    worker = process_loader(1, 2, 16, shuffle=True, num_workers=1)
    for _ in range(2):
        assert contents(inline) == contents(worker)
    worker.terminate()


def test_a_programs_sampler_counts_within_its_process():
    assert contents(process_loader(1, 2, 8, sampler=[3, 2, 1, 0])) == [[7, 6], [5, 4]]
    with pytest.raises(Error, match="index 4, but this process holds 4"):
        contents(process_loader(1, 2, 8, sampler=[0, 4]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(6))


def test_section12_streams_are_not_partitioned():
    options = shaped(2)
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(AssertionError, match="auto_distributed_partitioning"):
        DataLoader(options, Stream())
    loader = DataLoader(options, Stream(), auto_distributed_partitioning=False)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
    assert len(list(DataLoader(shaped(3), Stream()))) == 2


def test_section12_a_share_covers_everything_over_the_epochs():
    options = shaped()
    options.Distributed.configureProcessId(0, 1)
    share = dataloader._SubDataset(list("abcdefghij"), options, step=4, drop_last=True)
    assert len(share) == 8 and "".join(share) == "abcdefgh"
    share.swap_range()
    assert "".join(share[i] for i in range(len(share))) == "ijabcdef"


def test_section12_an_incomplete_last_batch_does_not_fit_the_program():
    options = shaped(2)
    executor = inferenceModel(torch.nn.Identity(), options.clone())
    batches = list(DataLoader(options, torch.ones(7, 1), batch_size=2, drop_last=False))
    executor(batches[0])
    with pytest.raises(Error, match=r"Shape mismatch.*\[4, 1\]\) but got .*\[3, 1\]"):
        executor(batches[1])
