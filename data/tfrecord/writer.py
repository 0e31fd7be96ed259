"""Articles as token ids to TFRecord files and their indexes, in one pass and in bounded memory."""

from __future__ import annotations

import fcntl
import heapq
import os
import re
import shutil
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np

from corpora.atomic import folder_made, unique_beside
from corpora.program import as_absolute
from corpora.termination import undivided
from data.tfrecord import records, varint
from data.tfrecord.index import index_line

_CHUNK = 1 << 18  # ids encoded at once
_BUFFER = 1 << 20  # bytes written at once, of all files together
_WORK = "unfinished-tfrecords"  # in the name of the hidden folder that files are written in


class TFRecordWriter:
    """Cuts articles into windows and writes each as a record, padded with -100 (the rule: data/loading/windows.py).

    All windows of an article go to one file, that with the fewest records so far, one after the other. The files
    get their names, `<stem>-00000-of-00004.tfrecord` and `.index`, when all of them are whole; those of an earlier
    corpus of that stem in another number of files go then.

    Attributes, for what has been written: `records`, `bytes`, `articles` (in records), `padded_articles`,
    `padded_ids`, `dropped_articles` (shorter than half a window), `dropped_ids`, `kept_ids`.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        window: int,
        stride: int,
        shards: int,
        report: Callable[[], object] = lambda: None,
        pairs: bool = False,
    ) -> None:
        """`window` ids a record; `report` is called now and then. ValueError if there are other files in `folder`.

        `pairs`: features `inputs` and `labels` of window - 1 ids each in place of `input_ids`; for articles that are
        not shorter than a window.
        """
        self.pairs = pairs
        self.folder, self.window, self.stride, self._report = folder, window, stride, report
        self.names = [f"{stem}-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
        self._own = re.compile(re.escape(stem) + r"-\d{5}-of-\d{5}")
        self.records = self.bytes = self.articles = self.padded_articles = self.padded_ids = 0
        self.dropped_articles = self.dropped_ids = self.kept_ids = 0
        others = sorted(path.name for path in folder.glob("*.tfrecord") if not self._own.fullmatch(path.stem))
        if others:
            raise ValueError(
                f"{folder} has other TFRecord files ({others[0]}{', …' * (len(others) > 1)}), which '*.tfrecord' would "
                "mix with these; remove them or name another folder"
            )

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        """Write these articles, each ids of 0..2^31-1 (length,). Returns the paths of the files.

        Raises ValueError if there are fewer articles with a record than files. An error of `documents` passes through;
        nothing is there under a final name before everything is written.
        """
        with folder_made(self.folder):
            return self._write(documents)

    def _write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        _remove_abandoned(self.folder)
        work = unique_beside(self.folder / _WORK)
        work.mkdir()
        lock = _locked(work)
        try:
            shards = [_Shard(work / name) for name in self.names]
            fewest = [(0, number) for number in range(len(shards))]  # records of each file, a heap
            flushed = 0
            for examples in self._articles(documents):
                shard = shards[fewest[0][1]]
                before = shard.records
                for example in examples:
                    self.bytes += shard.add(example)
                    if self.bytes - flushed >= _BUFFER:
                        for each in shards:
                            each.flush()
                        flushed = self.bytes
                        self._report()
                self.records += shard.records - before
                heapq.heapreplace(fewest, (shard.records, fewest[0][1]))
            self._check(shards)
            for shard in shards:
                shard.flush(finish=True)
            with undivided():
                for name in [f"{name}.{suffix}" for name in self.names for suffix in ("tfrecord", "index")]:
                    os.replace(str(work / name), str(self.folder / name))
                for left in self.there():
                    if left.stem not in self.names:
                        left.unlink()
        finally:
            shutil.rmtree(str(work), ignore_errors=True)
            if lock is not None:
                os.close(lock)
        return [self.folder / f"{name}.tfrecord" for name in self.names]

    def there(self) -> list[Path]:
        """The files under its names that are there."""
        found = (path for suffix in ("tfrecord", "index") for path in self.folder.glob(f"*.{suffix}"))
        return sorted(path for path in found if self._own.fullmatch(path.stem))

    def summary(self) -> str:
        """What became of the articles, in one line."""
        times = (self.records * self.window - self.padded_ids) / max(self.kept_ids, 1)
        once = "" if self.stride == self.window - 1 else f" (--stride {self.window - 1}: in about one)"
        return (
            f"{self.articles:,} articles in records; {self.padded_articles:,} of them padded by {self.padded_ids:,} "
            f"ids; {self.dropped_articles:,} articles too short, {self.dropped_ids:,} ids dropped; with --stride "
            f"{self.stride} an id is in {times:.1f} records on average{once}"
        )

    def train_flags(self) -> str:
        """The flags of train_gpt2.py that read the files."""
        pattern = as_absolute(self.folder / "*.tfrecord")
        return f"--train-path tfrecord --tfrecord-path {pattern} --max-len {self.window - 1}"

    def _check(self, shards: list[_Shard]) -> None:
        if not self.records:
            raise ValueError(
                f"none of the {self.dropped_articles:,} articles has {-(-self.window // 2)} ids, half of --seq-length "
                f"{self.window}; nothing written"
            )
        if not all(shard.records for shard in shards):
            raise ValueError(
                f"--num-output {len(shards)}: only {self.articles:,} articles are long enough for a record, and one "
                "stays in one file; lower --num-output or --seq-length; nothing written"
            )

    def _articles(self, documents: Iterable[np.ndarray]) -> Iterator[Iterator[bytes]]:
        """For each article that has any, in order, its serialized Examples."""
        for group in _groups(documents):
            if len(group) == 1 and len(group[0]) > _CHUNK:
                self._count(len(group[0]))
                yield self._long_article(group[0])
                continue
            # Short articles are encoded together.
            data, bounds = varint.encode(np.concatenate(group))
            encoded, begin = data.tobytes(), 0
            for length in map(len, group):
                if self._count(length):
                    starts = begin + window_starts(length, self.window, self.stride)
                    yield self._examples(encoded, bounds, starts, begin + length)
                begin += length

    def _count(self, length: int) -> bool:
        """Take note of an article; whether it has a record."""
        if 2 * length < self.window:
            self.dropped_articles += 1
            self.dropped_ids += length
            return False
        self.articles += 1
        self.kept_ids += length
        if length < self.window:
            self.padded_articles += 1
            self.padded_ids += self.window - length
        return True

    def _examples(self, encoded: bytes, bounds: np.ndarray, starts: np.ndarray, end: int) -> Iterator[bytes]:
        """The Examples of windows at `starts` into ids whose varints are at `bounds`; the article goes to `end`."""
        ends = np.minimum(starts + self.window, end)
        padding = records.PADDING_BYTES * int(self.window - (ends[0] - starts[0]))
        if self.pairs:
            marks = (bounds[starts], bounds[starts + 1], bounds[ends - 1], bounds[ends])
            for low, second, last, high in zip(*(mark.tolist() for mark in marks)):
                yield records.pair_example(encoded[low:last], encoded[second:high])
            return
        for low, high in zip(bounds[starts].tolist(), bounds[ends].tolist()):
            payload = encoded[low:high] + padding
            yield records.example_head(len(payload)) + payload

    def _long_article(self, ids: np.ndarray) -> Iterator[bytes]:
        """An article of any length, encoded a stretch of it at a time."""
        starts = window_starts(len(ids), self.window, self.stride)
        while len(starts):
            some = starts[: max(1, int(np.searchsorted(starts, starts[0] + _CHUNK)))]
            begin, end = int(some[0]), int(some[-1]) + self.window
            data, bounds = varint.encode(np.asarray(ids[begin:end]))
            yield from self._examples(data.tobytes(), bounds, some - begin, end - begin)
            starts = starts[len(some) :]


def window_starts(length: int, window: int, stride: int) -> np.ndarray:
    """Where windows over an article of `length` ids start, int64: 0, stride ... below the last one, which ends it."""
    last = max(0, length - window)
    return np.append(np.arange(0, last, stride), last)


def _groups(documents: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Articles in order, together until they have about `_CHUNK` ids; one of more is alone."""
    group: list[np.ndarray] = []
    size = 0
    for ids in documents:
        if size + len(ids) > _CHUNK and group:
            yield group
            group, size = [], 0
        group.append(np.asarray(ids))
        size += len(ids)
    if group:
        yield group


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder, None if another process has it. The lock ends with its process."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or the file system has no locks: nobody's folder is taken away then
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed have left of their work."""
    for left in folder.glob(f".{_WORK}.*.part"):
        lock = _locked(left)
        if lock is not None:
            shutil.rmtree(str(left), ignore_errors=True)
            os.close(lock)


class _Shard:
    """One file and its index; closed between writes, so that there can be any number of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, 0
        self._place = 0
        self._data: list[bytes] = []
        self._lines: list[bytes] = []

    def add(self, example: bytes) -> int:
        """Keep a record for the next `flush`; its size."""
        record = records.record(example)
        self._lines.append(index_line(self._place, len(record)))
        self._data.append(record)
        self._place += len(record)
        self.records += 1
        return len(record)

    def flush(self, finish: bool = False) -> None:
        for suffix, pieces in ((".tfrecord", self._data), (".index", self._lines)):
            with open(f"{self.path}{suffix}", "ab") as file:
                file.write(b"".join(pieces))
                if finish:
                    file.flush()
                    os.fsync(file.fileno())
            pieces.clear()
