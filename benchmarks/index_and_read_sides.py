"""The two sides of benchmarks/index_and_read.py, data/ and the megatron-core package, each in a process of its own."""

from __future__ import annotations

import functools
import sys
import time
import types
import warnings
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

VOCABULARY = 50257
SEED = 1
TRAINING_SHARE = 0.997
BATCH = 512  # samples asked for at once


def document_sizes(documents: int, mean: int) -> np.ndarray:
    """int32 (documents,): lengths from 1 to 2 mean - 1, all equally likely."""
    return np.random.default_rng(0).integers(1, 2 * mean, documents, dtype=np.int32)


def make_corpus(prefix: str, documents: int, mean: int) -> None:
    """A corpus of such documents: pieces of one random text."""
    from data.megatron.files import mmap_writer

    rng = np.random.default_rng(1)
    text = rng.integers(0, VOCABULARY, max(1 << 20, 4 * mean), dtype=np.uint16)
    with mmap_writer(prefix, VOCABULARY) as writer:
        for size in document_sizes(documents, mean).tolist():
            start = int(rng.integers(0, len(text) - size))
            writer.write(text[start : start + size])


def start(side: str) -> None:
    """Import what the side needs, before anything is timed. The machine's cores are left to others: one thread."""
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if side == "megatron":
        from megatron.core.datasets import gpt_dataset, helpers  # noqa: F401
    else:
        import poptorch  # noqa: F401

        from data.loading import datasets  # noqa: F401


# ---- The index ----------------------------------------------------------------------------------------------------


def build_index(side: str, documents: int, mean: int, max_len: int) -> dict[str, Any]:
    """One epoch's three index arrays in memory: seconds, memory beyond the documents' sizes at its peak, checksums."""
    sizes = document_sizes(documents, mean)
    tokens = int(sizes.sum(dtype=np.int64))
    _reset_peak()
    before, begin = _memory("VmRSS"), time.perf_counter()
    if side == "ours":
        from data.megatron.order import OrderRule, build_order

        order = build_order(sizes, range(documents), OrderRule(max_len, (tokens - 1) // max_len, SEED))
        arrays = order.documents, order.samples, order.shuffle
    else:
        from megatron.core.datasets.helpers import build_sample_idx

        # What GPTDataset does around its C++ helper, for one epoch.
        rng = np.random.RandomState(SEED)
        document_index = np.arange(documents, dtype=np.int32)
        rng.shuffle(document_index)
        sample_index = build_sample_idx(sizes, document_index, max_len, 1, tokens, True, True)
        shuffle_index = np.arange(len(sample_index) - 1, dtype=np.uint32)
        rng.shuffle(shuffle_index)
        arrays = document_index, sample_index, shuffle_index
    seconds = time.perf_counter() - begin
    peak = (_memory("VmHWM") - before) / 1e9
    return {"seconds": seconds, "peak_gb": peak, "checksums": [zlib.crc32(array) for array in arrays]}


def _memory(key: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM for the most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status\nHINT: the benchmark needs Linux")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# ---- Samples ------------------------------------------------------------------------------------------------------


def open_side(side: str, prefix: str, max_len: int, cache: str = "") -> Any:
    """The data set of one epoch over the training documents, its index from the cache if it is there."""
    if side == "ours":
        from data.megatron.dataset import open_mmap

        return open_mmap(
            prefix, max_len=max_len, seed=SEED, val_num=0, real_vocab_size=VOCABULARY, epochs=1, samples=None
        )[0]
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    tokenizer = types.SimpleNamespace(vocab_size=VOCABULARY, pad=-1, eod=VOCABULARY - 1, unique_identifiers={})
    config = GPTDatasetConfig(
        random_seed=SEED, sequence_length=max_len, split="997,3,0", path_to_cache=cache, tokenizer=tokenizer,
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    indexed = IndexedDataset(prefix, mmap=True)
    documents = np.arange(int(TRAINING_SHARE * (len(indexed.document_indices) - 1)), dtype=np.int32)
    return GPTDataset(indexed, prefix, documents, None, Split.train, config)


_opened = functools.lru_cache(maxsize=1)(open_side)


def time_opening(side: str, prefix: str, max_len: int, cache: str) -> dict[str, float]:
    """Seconds until the data set can be read."""
    begin = time.perf_counter()
    samples = len(open_side(side, prefix, max_len, cache))
    return {"seconds": time.perf_counter() - begin, "samples": samples}


def sample_order(dataset: Any, what: str) -> np.ndarray:
    """Sample numbers, int64: as a run reads them, or `sequential`, as they follow each other before their shuffle."""
    count = len(dataset)
    shuffle = dataset.order.shuffle if hasattr(dataset, "order") else dataset.shuffle_index
    return np.argsort(shuffle[:count], kind="stable") if what == "sequential" else np.arange(count)


def batches(side: str, dataset: Any, order: np.ndarray, workers: int) -> Any:
    """Inputs and labels (BATCH, T) at a time, by torch's DataLoader."""
    import torch

    from data.batches import collate

    def collate_theirs(samples: list[dict[str, Any]]) -> Any:
        return tuple(torch.stack([sample[key] for sample in samples]) for key in ("tokens", "labels"))

    return torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=order.tolist(),
        num_workers=workers,
        collate_fn=collate if side == "ours" else collate_theirs,
    )


def read_all(side: str, prefix: str, max_len: int, cache: str, what: str, workers: int, limit: int) -> dict[str, Any]:
    """Up to `limit` samples in batches: samples a second from the second batch on, a checksum of the first one."""
    dataset = _opened(side, prefix, max_len, cache)
    order = sample_order(dataset, what)[:limit]
    count, checksum, begin = 0, 0, 0.0
    for inputs, labels in batches(side, dataset, order, workers):
        if begin:
            count += len(inputs)
        else:
            checksum = zlib.crc32(labels.int().numpy().tobytes(), zlib.crc32(inputs.int().numpy().tobytes()))
            begin = time.perf_counter()
    return {"samples_per_second": count / (time.perf_counter() - begin), "checksum": checksum}


def wait_for_data(prefix: str, max_len: int, samples_a_call: int, rate: float, workers: int, calls: int) -> float:
    """The share of its time that a loop waits for the training program's loader.

    The step is a stand-in: it sleeps as long as a device of `rate` samples a second would take.
    """
    import poptorch

    from data.loading.datasets import collate, make_sampler

    dataset = _opened("ours", prefix, max_len, "")
    options = poptorch.Options()
    options.Training.gradientAccumulation(samples_a_call)
    loader = poptorch.DataLoader(
        options, dataset, batch_size=1, num_workers=workers, sampler=make_sampler(dataset, SEED), collate_fn=collate
    )
    waited, begin, source = 0.0, 0.0, iter(loader)
    next(source)  # starting the workers is no part of the loop
    begin = asked = time.perf_counter()
    for _ in range(min(calls, len(loader) - 1)):
        next(source)
        waited += time.perf_counter() - asked
        time.sleep(samples_a_call / rate)
        asked = time.perf_counter()
    return waited / (time.perf_counter() - begin)
