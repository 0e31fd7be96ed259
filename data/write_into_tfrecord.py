#!/usr/bin/env python3
"""A corpus .pkl to TFRecord files with their indexes: the samples that --train-path tfrecord reads.

    cd <folder of preprocessed files>; mkdir tfrecords; python <repository>/data/write_into_tfrecord.py

A record is a window of --seq-length token ids over one article; all windows of an article are in one file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Iterator, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found (data/ has a datasets.py, like
    # the well-known package).
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402

from data import tfrecord, varint  # noqa: E402
from data.atomic import unique_beside  # noqa: E402
from data.tfrecord_index import index_line  # noqa: E402

if TYPE_CHECKING:
    from data.pickle_corpus import PickleCorpus

_LARGEST_ID = 2**31 - 1  # any corpus will do: which model it fits is the loader's to say
_CHUNK = 1 << 18  # ids encoded at once
_BUFFER = 1 << 20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; dashes and underscores are the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name, kind, default, text in (
        ("input-file-path", Path, "wikicorpus_en_one_article_per_line.pkl", "the corpus"),
        ("output-file-path", Path, "tfrecords", "folder for the files"),
        ("seq-length", int, 1025, "ids a record, --max-len of the training + 1"),
        ("stride", int, 128, "step of the window over a longer article; --max-len: windows that do not overlap"),
        ("num-output", int, 4, "number of files"),
    ):
        parser.add_argument(
            *dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}")),
            type=kind,
            default=kind(default),
            metavar="PATH" if kind is Path else "N",
            help=f"{text} (default: {default})",
        )
    args = parser.parse_args(argv)
    for name, least in (("seq_length", 3), ("stride", 1), ("num_output", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be {least} or more, not {getattr(args, name)}")
    if args.output_file_path.exists() and not args.output_file_path.is_dir():
        parser.error(f"--output-file-path {args.output_file_path}: not a folder")
    return args


class Progress:
    """Counts records, and says so now and then with the rate and the time left."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total, self.stream, self.records, self.bytes = total, stream, 0, 0
        self.interval = 1.0 if stream.isatty() else 10.0
        self.begin = self.shown = time.monotonic()

    def add(self, records: int, size: int) -> None:
        """So much more is written."""
        self.records += records
        self.bytes += size
        if time.monotonic() - self.shown >= self.interval:
            self.show("\r" if self.stream.isatty() else "\n")

    def show(self, end: str = "\n") -> None:
        """Print where it stands."""
        self.shown = time.monotonic()
        seconds = max(self.shown - self.begin, 1e-9)
        rate = self.records / seconds
        left = (self.total - self.records) / rate if rate else 0.0
        self.stream.write(
            f"{self.records:,} of {self.total:,} records, {self.bytes / 1e6:,.1f} MB, {rate:,.0f} records/s, "
            f"{self.bytes / 1e6 / seconds:,.1f} MB/s, {left:.0f} s left{end}"
        )
        self.stream.flush()


def shard_bounds(counts: np.ndarray, shards: int) -> np.ndarray:
    """First article of each shard, and the end: int64 (shards + 1,). Articles stay whole, shards about equal.

    `counts` are the records of each article. Raises ValueError if there are not as many articles with records.
    """
    used = np.flatnonzero(counts)
    if len(used) < shards:
        raise ValueError(
            f"--num-output {shards}: only {len(used):,} articles are long enough for a record, and one stays in one "
            "file; lower --num-output or --seq-length"
        )
    ends = np.cumsum(counts[used])
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, shards) // shards, side="left") + 1
    for shard in range(len(cuts)):  # a long article may span several cuts: each shard gets one article at least
        cuts[shard] = max(cuts[shard], cuts[shard - 1] + 1 if shard else 1)
    for shard in range(len(cuts) - 1, -1, -1):
        cuts[shard] = min(cuts[shard], len(used) - (len(cuts) - shard))
    return np.concatenate([[0], used[cuts], [len(counts)]]).astype(np.int64)


def examples(corpus: PickleCorpus, first: int, last: int, window: int, stride: int) -> Iterator[bytes]:
    """The serialized Examples of articles first..last-1, in order. An article is encoded once for all its windows."""
    offsets = corpus.offsets
    while first < last:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _CHUNK, side="right")) - 1)
        end = min(end, last)
        base = int(offsets[first])
        data, bounds = varint.encode(corpus.tokens[base : int(offsets[end])])
        encoded = data.tobytes()
        starts = (offsets[first : end + 1] - base).tolist()
        for begin, stop in zip(starts, starts[1:]):
            length = stop - begin
            if length >= window:
                places = np.append(np.arange(0, length - window, stride), length - window) + begin
                for low, high in zip(bounds[places].tolist(), bounds[places + window].tolist()):
                    yield tfrecord.example_head(high - low) + encoded[low:high]
            elif 2 * length >= window:
                payload = encoded[bounds[begin] : bounds[stop]] + tfrecord.PADDING_BYTES * (window - length)
                yield tfrecord.example_head(len(payload)) + payload
        first = end


def write_shard(examples: Iterator[bytes], data: BinaryIO, index: BinaryIO, progress: Progress) -> None:
    """Write the records and, in the same pass, their index."""
    place = 0
    records, lines, size = [], [], 0
    for example in examples:
        record = tfrecord.record(example)
        lines.append(index_line(place + size, len(record)))
        records.append(record)
        size += len(record)
        if size >= _BUFFER:
            data.write(b"".join(records))
            index.write(b"".join(lines))
            progress.add(len(records), size)
            place += size
            records, lines, size = [], [], 0
    data.write(b"".join(records))
    index.write(b"".join(lines))
    progress.add(len(records), size)
    for file in (data, index):
        file.flush()
        os.fsync(file.fileno())


def write_corpus(source: Path, folder: Path, window: int, stride: int, shards: int, stream: TextIO) -> list[Path]:
    """Write the corpus as `shards` files into a folder; returns their paths.

    They get their names when all of them are whole. Raises ValueError for a corpus that cannot be read or has no
    article long enough, and for a folder with other TFRecord files.
    """
    from data.pickle_corpus import open_corpus
    from data.windows import windows_per_article  # brings torch, which --help need not wait for

    corpus = open_corpus(source, _LARGEST_ID + 1)
    lengths = np.diff(corpus.offsets)
    counts = windows_per_article(lengths, window - 1, stride)
    if not counts.any():
        raise ValueError(
            f"--input-file-path {source}: none of its {len(corpus):,} articles has {-(-window // 2)} ids, half of "
            f"--seq-length {window}; nothing written"
        )
    bounds = shard_bounds(counts, shards)
    names = [f"{source.stem}-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in folder.glob("*.tfrecord") if path.stem not in names)
    if others:
        raise ValueError(
            f"--output-file-path {folder}: it has other TFRecord files ({others[0]}{', …' * (len(others) > 1)}), which "
            "'*.tfrecord' would mix with these; remove them or name another folder"
        )
    progress = Progress(int(counts.sum()), stream)
    work = unique_beside(folder / "tfrecords")
    work.mkdir()
    try:
        for name, first, last in zip(names, bounds.tolist(), bounds[1:].tolist()):
            with (work / f"{name}.tfrecord").open("xb") as data, (work / f"{name}.index").open("xb") as index:
                write_shard(examples(corpus, first, last, window, stride), data, index, progress)
        for name in names:
            for suffix in (".tfrecord", ".index"):
                os.replace(str(work / (name + suffix)), str(folder / (name + suffix)))
    finally:
        shutil.rmtree(str(work), ignore_errors=True)
    progress.show()
    stream.write(summary(lengths, counts, window, stride) + "\n")
    stream.write(
        f"wrote {folder / names[0]}.tfrecord{f' and {shards - 1:,} more' if shards > 1 else ''}, with indexes\n"
    )
    return [folder / f"{name}.tfrecord" for name in names]


def summary(lengths: np.ndarray, counts: np.ndarray, window: int, stride: int) -> str:
    """What became of the articles, in one line."""
    padded = (counts > 0) & (lengths < window)
    # Of an article of several windows the ids are in a record (records x window) / length times.
    kept = int(lengths[counts > 0].sum())
    times = (int(counts.sum()) * window - int((window - lengths[padded]).sum())) / kept
    return (
        f"{int((counts > 0).sum()):,} articles in records; {int(padded.sum()):,} of them padded by "
        f"{int((window - lengths[padded]).sum()):,} ids; {int((counts == 0).sum()):,} articles too short, "
        f"{int(lengths[counts == 0].sum()):,} ids dropped; with --stride {stride} an id is in {times:.1f} records on "
        f"average (--stride {window - 1}: in one)"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)
    name = "write_into_tfrecord.py"
    try:
        write_corpus(
            args.input_file_path, args.output_file_path, args.seq_length, args.stride, args.num_output, sys.stderr
        )
    except (ValueError, RuntimeError) as error:
        message = str(error).replace("--train-path", "--input-file-path")  # the corpus knows it as that flag
        print(f"{name}: {message}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error.filename or args.output_file_path}: {error.strerror}; nothing written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
