"""Samples from Megatron-LM's memory-mapped corpus, in the order of its GPTDataset."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from data.bad_data import BadData
from data.batches import SampleDataset
from data.cache_folder import cache_folder, map_array
from data.megatron import native
from data.megatron.files import MmapCorpus
from data.megatron.order import Order, OrderRule, build_order

_KIND = "order.cache-v1"  # the number is that of the format
_ARRAYS = ("documents", "samples", "shuffle")
_ROWS = 64  # samples read at once, so that 8 bytes a token of positions stay in the cache
TRAINING_SHARE = 0.997  # of the documents: the first ones, the rest are Megatron's validation and test documents


def cached_order(corpus: MmapCorpus, documents: range, rule: OrderRule) -> Order:
    """`build_order`, kept in a folder beside the .idx and mapped from there.

    The folder's name is a hash of all that shapes an order: the documents of the split, the rule, and the identity of
    the two files (sizes, times of change, a checksum of the .idx's ends). The arrays' checksums are kept
    with them. Raises ValueError for an index that is damaged.
    """
    shaping = [_identity(corpus), documents.start, documents.stop, *dataclasses.astuple(rule)]
    name = hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:20]

    def build(folder: Path) -> None:
        order = build_order(corpus.sizes, documents, rule)
        checksums = {}
        for array in _ARRAYS:
            values = getattr(order, array)
            np.save(str(folder / f"{array}.npy"), values)
            checksums[array] = zlib.crc32(values)
        (folder / "meta.json").write_text(json.dumps({"key": name, "crc32": checksums}), encoding="utf-8")

    folder = cache_folder(corpus.idx_path, _KIND, name, build)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {array: map_array(folder / f"{array}.npy") for array in _ARRAYS}
        whole = meta == {"key": name, "crc32": {array: zlib.crc32(arrays[array]) for array in _ARRAYS}}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: damaged index ({error}); remove that folder and start again") from error
    if not whole:
        raise ValueError(f"{folder}: this index does not belong to its data; remove that folder and start again")
    return Order(**arrays)


def _identity(corpus: MmapCorpus) -> list[Any]:
    facts: list[Any] = []
    for path in (corpus.bin_path, corpus.idx_path):
        stat = path.stat()
        facts += [stat.st_size, stat.st_mtime_ns]
    with corpus.idx_path.open("rb") as file:
        head = file.read(1 << 16)
        file.seek(max(0, facts[2] - (1 << 16)))
        return [*facts, zlib.crc32(head), zlib.crc32(file.read())]


class MmapDataset(SampleDataset):
    """The samples of some documents of a corpus, in their final order: sample i is the i-th of the run.

    All passes over the data are in the order already; `samples_a_pass` says how many samples one of them has.

    Megatron's order is that of a number of samples: with another number it is another order from the first sample on. A
    run that is extended therefore keeps its order, and a further one follows it. `parts` has the samples of each.
    """

    def __init__(
        self, corpus: MmapCorpus, documents: range, rule: OrderRule, real_vocab_size: int, parts: Sequence[int]
    ) -> None:
        """The samples of the orders of `parts`; of each the rule is `rule` but for the number of samples and, from the
        second part on, the seed, which is one more than that before it.

        Raises ValueError if the documents have no whole sample.
        """
        self.corpus, self.max_len, self.real_vocab_size = corpus, rule.max_len, real_vocab_size
        self._documents, self.parts = documents, tuple(parts)
        self.tokens = corpus.count_tokens(documents.stop) - corpus.count_tokens(documents.start)
        if self.tokens <= rule.max_len:
            raise ValueError(
                f"--data-prefix {corpus.prefix}: {len(documents):,} documents with {self.tokens:,} tokens make no "
                f"sample of --max-len {rule.max_len} + 1; lower --max-len"
            )
        self.samples_a_pass = (self.tokens - 1) // rule.max_len
        seeds = ((rule.seed + number) % 2**32 for number in range(len(parts)))
        self._rules = [dataclasses.replace(rule, samples=n, seed=seed) for n, seed in zip(parts, seeds)]
        self._orders = [cached_order(corpus, documents, rule) for rule in self._rules]
        self._steps = self._found = None

    @property
    def order(self) -> Order:
        """Of the first part."""
        return self._orders[0]

    def __len__(self) -> int:
        return sum(self.parts)

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1)).

        Raises BadData naming sample and token for an id outside the vocabulary, or a file that has become shorter.
        """
        self.corpus.check_size()
        if len(self.parts) == 1:
            self._read_part(self.order, indices, ids, 0)
            return
        first = 0
        for order, count in zip(self._orders, self.parts):
            rows = np.flatnonzero((indices >= first) & (indices < first + count))
            if len(rows):
                found = np.empty((len(rows), ids.shape[1]), dtype=np.int32)
                self._read_part(order, indices[rows] - first, found, first)
                ids[rows] = found
            first += count

    def _read_part(self, order: Order, indices: np.ndarray, ids: np.ndarray, first: int) -> None:
        """As `read`, of one part, whose samples are counted from 0; `first` is its first one's number in all."""
        corpus = self.corpus
        begins = order.samples[order.shuffle[indices]].astype(np.int64)
        arrays = (corpus.tokens, corpus.sizes, corpus.pointers, order.documents, begins)
        if native.read_samples(*arrays, self.real_vocab_size, ids):
            return
        for start in range(0, len(indices), _ROWS):
            rows = slice(start, start + _ROWS)
            self._read_rows(order, indices[rows], ids[rows], first)

    def _read_rows(self, order: Order, indices: np.ndarray, ids: np.ndarray, part_begins: int) -> None:
        tokens, length = self.corpus.tokens, self.max_len + 1
        if self._steps is None:  # kept: fresh memory would cost more than the reading
            self._steps = np.empty(_ROWS * length, dtype=np.int64)
            self._found = np.empty(_ROWS * length, dtype=tokens.dtype)
        slots = order.shuffle[indices].astype(np.int64)
        first, last = order.samples[slots].astype(np.int64), order.samples[slots + 1, 0]
        begins = self.corpus.starts(order.documents[first[:, 0]]) + first[:, 1]
        if (first[:, 0] == last).all():  # each in one document: a row of adjacent tokens
            found = np.lib.stride_tricks.sliding_window_view(tokens, length)[begins]
        else:
            found = self._found[: len(indices) * length]
            # The positions are right by construction; clipping spares numpy a copy of the result.
            np.take(tokens, self._positions(order, first[:, 0], last, begins), out=found, mode="clip")
            found = found.reshape(-1, length)
        if (found.dtype.kind == "i" and found.min() < 0) or found.max() >= self.real_vocab_size:
            row, column = (int(axis[0]) for axis in np.nonzero((found < 0) | (found >= self.real_vocab_size)))
            sample = part_begins + int(indices[row])
            raise BadData(
                f"{self.corpus.bin_path}, sample {sample}: token id {int(found[row, column])} is outside "
                f"the vocabulary 0..{self.real_vocab_size - 1}; preprocess the text with the model's tokenizer, or use "
                "a --model of that vocabulary"
            )
        ids[:] = found

    def _positions(self, order: Order, first: np.ndarray, last: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Where the tokens of n samples lie, over several documents each: int64 (n (T + 1),), until the next call.

        Sample r begins at token `begins[r]`, in document position `first[r]`, and ends in position `last[r]`.
        """
        length = self.max_len + 1
        spans = last - first + 1  # documents of each sample
        heads = np.cumsum(spans) - spans  # the first piece of each sample among all pieces
        pieces = np.arange(int(spans.sum())) - np.repeat(heads - first, spans)  # positions in `documents`
        numbers = order.documents[pieces]
        starts = self.corpus.starts(numbers)
        sizes = self.corpus.sizes[numbers].astype(np.int64)
        sizes[heads] -= begins - starts[heads]
        starts[heads] = begins
        # The last piece of a sample ends where T + 1 tokens are full.
        tails = heads + spans - 1
        sizes[tails] = 0
        sizes[tails] = length - np.add.reduceat(sizes, heads)
        some = sizes > 0
        starts, sizes = starts[some], sizes[some]
        # Steps from each token to the next: 1 inside a piece, a jump to the next one.
        steps = self._steps[: len(begins) * length]
        steps[:] = 1
        steps[0] = starts[0]
        steps[np.cumsum(sizes)[:-1]] = starts[1:] - (starts[:-1] + sizes[:-1] - 1)
        return np.cumsum(steps, out=steps)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__, _steps=None, _found=None, _orders=None)  # a loader process maps the order itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._orders = [cached_order(self.corpus, self._documents, rule) for rule in self._rules]

    def check_document_ends(self, end_id: int) -> None:
        """Raise ValueError if one of up to 1,000 documents, spread over all, does not end in `end_id`."""
        count = len(self._documents)
        numbers = self._documents.start + np.unique(np.linspace(0, count - 1, min(count, 1000)).astype(np.int64))
        sizes = self.corpus.sizes[numbers]
        numbers, sizes = numbers[sizes > 0], sizes[sizes > 0]
        last = self.corpus.tokens[self.corpus.starts(numbers) + sizes - 1]
        wrong = np.flatnonzero(last != end_id)
        if len(wrong):
            raise ValueError(
                f"--document-boundaries isolated: document {numbers[wrong[0]]} of {self.corpus.prefix} ends in id "
                f"{last[wrong[0]]} and not in {end_id}, <|endoftext|>, so that documents cannot be told apart; "
                "preprocess the text with --append-eod"
            )

    def summary(self) -> str:
        """One line for the start of a run."""
        count, further = len(self), len(self) - self.parts[0]
        extended = f"; the last {further:,} extend the order of the run before" if further else ""
        return self._summary(count) + extended

    def identity(self) -> tuple[str, int]:
        """The first part alone: what a run began with stays, however far it is extended."""
        return self._summary(self.parts[0]), self.parts[0]

    def _summary(self, count: int) -> str:
        left = self.tokens - 1 - self.samples_a_pass * self.max_len
        return (
            f"{count:,} samples of {self.max_len + 1} ids from {len(self._documents):,} documents with "
            f"{self.tokens:,} tokens, {count / self.samples_a_pass:.2f} passes over them; none is padded, the "
            f"{left:,} tokens after the last sample of a pass begin the next"
        )


def open_mmap(
    prefix: str,
    *,
    max_len: int,
    seed: int,
    val_num: int,
    real_vocab_size: int,
    epochs: int,
    samples: int | None,
    separate_last_epoch: bool = True,
    parts: Sequence[int] = (),
) -> tuple[MmapDataset, MmapDataset | None]:
    """Training and validation samples (None if `val_num` is 0) of `<prefix>.bin` and `<prefix>.idx`.

    Training documents are the first int(0.997 D) of D. `val_num` samples come from the others, in their own order; if
    those are too few, from the last of the training documents, which are then left out of training. `samples`: how many
    are trained on, None: `epochs` passes. `parts` are those of the run that is resumed; if they have fewer samples, one
    more makes up for it. Raises ValueError naming flag and file.
    """
    corpus = MmapCorpus(prefix)
    train, total = int(TRAINING_SHARE * len(corpus)), len(corpus)
    if val_num:
        train = _room_for(corpus, train, val_num * max_len + 1)
    if train == 0:
        why = f"--val-num {val_num} holds all of them out" if total > 1 else "the last 0.3 % are kept for validation"
        raise ValueError(
            f"--data-prefix {prefix}: {total:,} documents with {corpus.count_tokens(total):,} tokens leave nothing to "
            f"train on ({why}); give more data, or documents that are shorter"
        )
    held_out = None
    if val_num:
        rule = OrderRule(max_len, val_num, seed, separate_last_epoch)
        held_out = MmapDataset(corpus, range(train, total), rule, real_vocab_size, [val_num])
    wanted = samples or epochs * max(0, (corpus.count_tokens(train) - 1) // max_len)
    rule = OrderRule(max_len, wanted, seed, separate_last_epoch)
    missing = wanted - sum(parts)
    parts = [*parts, missing] if missing > 0 else parts
    return MmapDataset(corpus, range(train), rule, real_vocab_size, parts), held_out


def _room_for(corpus: MmapCorpus, train: int, tokens: int) -> int:
    """The most training documents, `train` at most, that leave `tokens` tokens to the rest."""
    total = corpus.count_tokens(len(corpus))
    low, high = 0, train
    while low < high:
        middle = (low + high + 1) // 2
        if total - corpus.count_tokens(middle) >= tokens:
            low = middle
        else:
            high = middle - 1
    return low
