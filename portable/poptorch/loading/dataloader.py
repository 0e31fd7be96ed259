"""poptorch.DataLoader: batches as large as one call of a model consumes. Spec: DataLoader (section 12).

Mode Sync is torch's loader with the combined batch size; in the other modes such a loader lives in the process of an
AsynchronousDataAccessor. The partition of a data set lives in the sampler: workers that persist see each epoch's order,
and a data set's `__getitems__` gets a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from ..checks import require
from ..enums import DataLoaderMode
from ..options.executor_options import Options, checked
from ..poptorch_core import createPoptorchError
from ..reports import auto_report
from . import batch_ring
from .async_data import AsynchronousDataAccessor
from .joined_batches import JoinedBatches, join, joined_length


class _SubDataset(Dataset):
    """One process's share of a data set: a contiguous slice of the epoch's global order, of the same length each time.

    With drop_last every process has the same number of whole combined batches; what is left over at the end of an
    epoch comes first in the next one (swap_range). Without it the processes' lengths differ by at most one.
    """

    def __init__(self, dataset: Any, options: Options, step: int, drop_last: bool, shuffle: bool = False) -> None:
        """`step` is the combined batch size. With `shuffle` Options.randomSeed() draws a new global permutation each
        epoch, the same in all processes.

        Raises AssertionError for an IterableDataset, and for `shuffle` without a random seed.
        """
        require(
            not isinstance(dataset, IterableDataset),
            "auto_distributed_partitioning must be False for an IterableDataset: each process selects its own data",
        )
        require(
            not shuffle or options.exists("random_seed"),
            "Options.randomSeed() must be set to shuffle a data set that is shared by several processes: "
            "all of them must draw the same order",
        )
        self._dataset = dataset
        self._total = len(dataset)
        self._seed = options.random_seed if shuffle else None
        self._epoch = 0
        self._rotation = 0
        processes, process = options.Distributed.numProcesses, options.Distributed.processId
        if drop_last:
            self._length = self._total // (processes * step) * step
            self._first = process * self._length
            self._left_over = self._total - processes * self._length
        else:
            share, rest = divmod(self._total, processes)
            self._length = share + (process < rest)
            self._first = process * share + min(process, rest)
            self._left_over = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self.indices()[index]]

    def swap_range(self) -> None:
        """Goes on to the next epoch: rotates the order, so that the elements left over are used first."""
        self._epoch += 1
        self._rotation = (self._rotation - self._left_over) % max(self._total, 1)

    def indices(self) -> Sequence[int]:
        """This epoch's indices into the data set, as many as this process has."""
        if self._seed is not None:
            generator = torch.Generator().manual_seed((self._seed + self._epoch) % 2**63)
            order = torch.randperm(self._total, generator=generator)
            return order[self._first : self._first + self._length].tolist()
        start = (self._rotation + self._first) % max(self._total, 1)
        if start + self._length <= self._total:
            return range(start, start + self._length)  # millions of samples are no list of numbers
        return [(start + i) % self._total for i in range(self._length)]


class _PartitionSampler(Sampler):
    """The indices of a process's share, a new epoch at each iteration; in the order of `local` (0 …) if given."""

    def __init__(self, share: _SubDataset, local: Any = None) -> None:
        self._share = share
        self._local = local
        self._started = False

    def __len__(self) -> int:
        return len(self._share) if self._local is None else len(self._local)

    def __iter__(self) -> Iterator[int]:
        if self._started:
            self._share.swap_range()
        self._started = True
        indices = self._share.indices()
        return iter(indices) if self._local is None else self._mapped(indices)

    def _mapped(self, indices: Sequence[int]) -> Iterator[int]:
        for index in self._local:
            if not 0 <= index < len(indices):
                raise createPoptorchError(
                    f"The sampler returned index {index}, but this process holds {len(indices)} elements of the "
                    "data set: sample from that many, or pass auto_distributed_partitioning=False"
                )
            yield indices[index]


class DataLoader(torch.utils.data.DataLoader):
    """torch's DataLoader, giving one call's worth of data at a time.

    Args:
        options: of the model that the data is for; frozen from here on.
        dataset: any torch data set.
        batch_size: micro-batch size. None turns batching off. One element of the loader holds
            batch_size x deviceIterations x (replicationFactor / input group size) x gradientAccumulation samples.
        shuffle, num_workers, persistent_workers, kwargs: as torch's; persistent_workers defaults to True with workers.
        drop_last: True by default, because a model is compiled for one shape.
        auto_distributed_partitioning: give each process its own part of the data set.
        mode: Sync loads in this process and its num_workers. Async loads in the process of an
            AsynchronousDataAccessor and its num_workers: a batch is valid until the next one is asked for.
            AsyncRebatched does too, and its workers make batches of rebatched_worker_size samples, which are joined.
            Async without drop_last rebatches as well.
        async_options: keyword arguments of the AsynchronousDataAccessor, but for rebatched_size.
        rebatched_worker_size: by default the combined batch size, which is the largest possible.
        batch_sampler: gives micro-batches; excludes batch_size and shuffle. Each is collated by itself, and those of a
            call are then concatenated.
    Raises:
        poptorch.Error: no Options; a batch_sampler with what it excludes; an empty data set, or one that cannot be
            sent to another process, in an asynchronous mode.
        AssertionError: an IterableDataset to be partitioned; shuffled partitions without Options.randomSeed();
            a rebatched size that does not fit.
    """

    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: bool | None = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: dict[str, Any] | None = None,
        rebatched_worker_size: int | None = None,
        batch_sampler: Any = None,
        **kwargs: Any,
    ) -> None:
        self._options = checked(options)
        options.freeze()  # the user's object: what was combined into a batch must not change afterwards
        self._combined_batch_size = None
        if batch_sampler is None and batch_size is not None:
            self._combined_batch_size = batch_size * options.input_batch_multiplier
        _check_mode(mode, async_options, rebatched_worker_size, self._combined_batch_size)
        self._joins: tuple[int, bool] | None = None  # of a batch_sampler: batches a call, drop_last
        self._accessor: AsynchronousDataAccessor | None = None
        self._asynchronous = None
        partitioned = auto_distributed_partitioning and options.Distributed.numProcesses > 1
        if batch_sampler is not None:
            _check_batch_sampler(batch_size, shuffle, partitioned)
            self._joins = (options.input_batch_multiplier, drop_last)
            batching = {"batch_sampler": batch_sampler}
        else:
            # torch: without batching there is nothing to drop
            drop_last = drop_last and batch_size is not None
            batching = {"batch_size": self._combined_batch_size, "drop_last": drop_last}
            if partitioned:
                share = _SubDataset(dataset, options, self._combined_batch_size or 1, drop_last, bool(shuffle))
                batching["sampler"] = _PartitionSampler(share, kwargs.pop("sampler", None))
            elif shuffle is not None:
                batching["shuffle"] = shuffle
        if persistent_workers is None:
            persistent_workers = num_workers > 0
        kwargs.update(num_workers=num_workers, persistent_workers=persistent_workers)
        super().__init__(dataset, **batching, **kwargs)
        if mode is not DataLoaderMode.Sync:
            source = self._loaded_elsewhere(mode, rebatched_worker_size, batching, kwargs)
            self._asynchronous = (source, dict(async_options or {}))
            self._accessor = AsynchronousDataAccessor(source, **self._asynchronous[1])

    def __iter__(self) -> Iterator[Any]:
        if self._asynchronous is None:
            batches = super().__iter__()
            batches = batches if self._joins is None else join(batches, *self._joins)
            return auto_report.watched(batches, self._options)
        if self._accessor is None:  # after terminate()
            source, async_options = self._asynchronous
            self._accessor = AsynchronousDataAccessor(source, **async_options)
        return auto_report.watched(iter(self._accessor), self._options)

    def __len__(self) -> int:
        """Elements of an epoch: calls."""
        batches = super().__len__()
        return batches if self._joins is None else joined_length(batches, *self._joins)

    @property
    def combinedBatchSize(self) -> int | None:
        """Samples in one element of the loader; None without batching or with a batch_sampler."""
        return self._combined_batch_size

    @property
    def options(self) -> Options:
        """The (frozen) options given."""
        return self._options

    def terminate(self) -> None:
        """Ends the worker processes, if there are any. The loader can be iterated again, with new ones."""
        if self._accessor is not None:
            self._accessor.terminate()
            self._accessor = None
        # torch ends the workers of an iterator when it is collected, and keeps the one of persistent workers here.
        self._iterator = None

    def _loaded_elsewhere(
        self, mode: DataLoaderMode, worker_size: int | None, batching: dict[str, Any], kwargs: dict[str, Any]
    ) -> Any:
        """What the accessor's process iterates: a loader like this one, or one of smaller batches to be joined."""
        _refuse_empty(self)
        combined = self._combined_batch_size
        if self._joins is not None:
            return JoinedBatches(torch.utils.data.DataLoader(self.dataset, **batching, **kwargs), *self._joins)
        if combined is None or (mode is DataLoaderMode.Async and self.drop_last):
            return torch.utils.data.DataLoader(self.dataset, **batching, **kwargs)
        smaller = {**batching, "batch_size": worker_size or combined, "drop_last": False}
        loader = torch.utils.data.DataLoader(self.dataset, **smaller, **kwargs)
        return batch_ring.Rebatched(loader, combined, self.drop_last)


def _check_mode(
    mode: DataLoaderMode, async_options: dict[str, Any] | None, worker_size: int | None, combined: int | None
) -> None:
    """Raises AssertionError for asynchronous arguments that contradict."""
    require(isinstance(mode, DataLoaderMode), f"mode must be a poptorch.DataLoaderMode, got {mode!r}")
    require("rebatched_size" not in (async_options or {}), "rebatched_size is set by the DataLoader: remove it")
    if worker_size is not None and combined is not None:
        require(
            worker_size <= combined,
            f"rebatched_worker_size ({worker_size}) must not exceed the combined batch size ({combined})",
        )


def _refuse_empty(loader: DataLoader) -> None:
    """Raises poptorch.Error if it is known that there is not a single batch."""
    try:
        batches = len(loader)
    except TypeError:
        return
    if not batches:
        raise createPoptorchError(
            "The Dataset is empty: it has fewer samples than one combined batch, whose incomplete rest is dropped"
            if loader.drop_last and len(loader.dataset)
            else "The Dataset is empty"
        )


def _check_batch_sampler(batch_size: int | None, shuffle: bool | None, partitioned: bool) -> None:
    """Raises poptorch.Error if something is given that a batch_sampler excludes."""
    if batch_size not in (1, None) or shuffle:
        raise createPoptorchError("DataLoader: batch_sampler and batch_size or shuffle are mutually exclusive")
    if partitioned:
        raise createPoptorchError(
            "DataLoader: batch_sampler and auto_distributed_partitioning are mutually exclusive when there are "
            "several processes: pass auto_distributed_partitioning=False and let the sampler choose"
        )
