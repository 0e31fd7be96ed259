"""The data sets behind --train-path, all with one interface.

A data set is a `SampleDataset` (data/batches.py): samples of max-len + 1 ids by number. A DataLoader takes it with
`collate_fn=collate` and `sampler=make_sampler(dataset, seed)`.
"""

from __future__ import annotations

from typing import Sequence

from data.batches import SampleDataset, collate
from data.loading.corpus_files import Cut, open_corpora
from data.loading.generated import GeneratedDataset
from data.loading.sampler import ALONE, OrderedSampler, ResumableSampler, Shard
from data.loading.several import SeveralDatasets
from data.loading.windows import WindowDataset
from data.megatron.dataset import MmapDataset, open_mmap

__all__ = [
    "Cut",
    "GeneratedDataset",
    "MmapDataset",
    "ResumableSampler",
    "SeveralDatasets",
    "Shard",
    "WindowDataset",
    "check_enough",
    "collate",
    "make_sampler",
    "open_dataset",
]


_REFERENCE = Cut()


def open_dataset(
    train_path: str,
    *,
    max_len: int,
    stride: int | None = None,
    cut: Cut = _REFERENCE,
    seed: int,
    val_num: int,
    real_vocab_size: int,
    num_samples: int,
    tfrecord_path: Sequence[str] = (),
    tar_paths: Sequence[str] = (),
    data_prefix: str = "",
    epochs: int = 1,
    ordered_samples: int | None = None,
    separate_last_epoch: bool = True,
    ordered_parts: Sequence[int] = (),
    further_paths: Sequence[str] = (),
    validation_paths: Sequence[str] = (),
    codes: Sequence[int] = (),
) -> tuple[SampleDataset, SampleDataset | None]:
    """Training and validation samples (None if `val_num` is 0) for --train-path: `generated`, `tfrecord` (the files
    of `tfrecord_path`), `webdataset` (of `tar_paths`), `dynamic` (Megatron's `data_prefix`) or a corpus `.pkl`.

    How a .pkl is cut `cut` says, and in its place `stride`; `further_paths`, `validation_paths` and `codes` are as for
    open_corpora (data/loading/corpus_files.py).

    `num_samples` is the size of the generated set, which a corpus ignores; `epochs`, `ordered_samples` (None: as many
    as the epochs have), `separate_last_epoch` and `ordered_parts` (MmapDataset.parts of the run that is resumed) shape
    Megatron's order (data/megatron/order.py). Raises ValueError naming flag and file for data that are missing,
    unreadable, empty, too short or outside the vocabulary.
    """
    if val_num < 0:
        raise ValueError(f"--val-num must be 0 or more, not {val_num}")
    if train_path == "generated":
        train = GeneratedDataset(num_samples, max_len, real_vocab_size, seed)
        if val_num == 0:
            return train, None
        return train, GeneratedDataset(val_num, max_len, real_vocab_size, seed, first=num_samples)
    if train_path == "tfrecord":
        from data.tfrecord.dataset import open_tfrecords  # its library for checksums is needed for nothing else

        return open_tfrecords(
            tfrecord_path, max_len=max_len, real_vocab_size=real_vocab_size, val_num=val_num, seed=seed
        )
    if train_path == "webdataset":
        from data.webdataset.rows import open_rows

        return open_rows(tar_paths, max_len=max_len, real_vocab_size=real_vocab_size, val_num=val_num, seed=seed)
    if train_path == "dynamic":
        return open_mmap(
            data_prefix,
            max_len=max_len,
            seed=seed,
            val_num=val_num,
            real_vocab_size=real_vocab_size,
            epochs=epochs,
            samples=ordered_samples,
            separate_last_epoch=separate_last_epoch,
            parts=ordered_parts,
        )
    return open_corpora(
        [train_path, *further_paths],
        cut if stride is None else cut._replace(stride=stride),
        max_len=max_len,
        val_num=val_num,
        seed=seed,
        real_vocab_size=real_vocab_size,
        codes=codes,
        validation_paths=validation_paths,
    )


def make_sampler(dataset: SampleDataset, seed: int, shard: Shard = ALONE) -> ResumableSampler:
    """The order of a data set's samples: its own if it has one, else a permutation from the seed for every epoch."""
    if isinstance(dataset, MmapDataset):
        return OrderedSampler(len(dataset), dataset.samples_a_pass, shard)
    return ResumableSampler(len(dataset), seed, shard)


def check_enough(dataset: SampleDataset, samples_a_call: int, flags: str) -> None:
    """Raise ValueError if one call takes more samples than there are; `flags` names what makes a call that large."""
    if len(dataset) < samples_a_call:
        raise ValueError(
            f"one call takes {samples_a_call:,} samples ({flags}), but there are {len(dataset):,}: "
            f"{dataset.summary()}. Lower one of these flags, or give more data (a smaller --max-len or --stride makes "
            "more samples of a corpus)"
        )
