"""Where the records of a TFRecord file begin: from the index beside it, or by going through the file.

An index has one line for each record, `start length`, both in bytes, as tfrecord.tools.tfrecord2idx writes it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.tfrecord import records

_INDEX_CHUNK = 1 << 25  # bytes of an index parsed at once
_SCAN_CHUNK = 1 << 20  # bytes of records read at once


def index_line(start: int, length: int) -> bytes:
    """The line of a record of `length` bytes, its frame included."""
    return b"%d %d\n" % (start, length)


def index_beside(path: Path) -> Path | None:
    """The index of a file, NAME.index or NAME.tfindex for NAME.tfrecord; None if there is none."""
    for suffix in (".index", ".tfindex"):  # of tfrecord2idx by file and by folder
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    return None


def record_bounds(path: Path) -> tuple[np.ndarray, bool]:
    """Where each record begins, and the end of the last one: int64 (records + 1,); and whether an index told.

    Raises ValueError naming file and position for an index that does not belong to the file, and for a file that
    is damaged (with an index only the first and the last record are looked at here), empty or no TFRecord file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ValueError(f"{path}: the file is empty; leave it out, or write it again")
            index = index_beside(path)
            if index is None:
                return _scan(path, file, size), False
            bounds = _read_index(index, path, size)
            for record in {0, len(bounds) - 2}:
                file.seek(bounds[record])
                length = int(bounds[record + 1] - bounds[record])
                problem = head_problem(file.read(records.HEAD), length)
                if problem:
                    raise ValueError(f"{path}, record {record:,}, byte {bounds[record]:,}: {problem}")
            return bounds, True
    except OSError as error:
        raise ValueError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def head_problem(head: bytes, length: int) -> str | None:
    """What is wrong with the 12 bytes before the data of a record of `length` bytes, its frame included."""
    if head == records.record_head(length - records.FRAME):
        return None
    problem = _length_problem(head)
    if problem:
        return problem
    (data,) = struct.unpack_from("<Q", head)
    return (
        f"the record has {data + records.FRAME:,} bytes, and {length:,} by the index, which belongs to another file "
        "or the file to another index; make the index again with `python3 -m tfrecord.tools.tfrecord2idx`"
    )


def _length_problem(head: bytes) -> str | None:
    if len(head) < records.HEAD:
        return "the file ends in the middle of a record: truncated"
    (length,) = struct.unpack_from("<Q", head)
    if head != records.record_head(length):
        if head[:2] == b"\x1f\x8b":
            return "the file is compressed; run gunzip on it first"
        return "no record begins here (the CRC of its length does not match): damaged, or not a TFRecord file"
    return None


def _scan(path: Path, file: BinaryIO, size: int) -> np.ndarray:
    """Go from record to record; the length of each is checked against its CRC."""
    bounds = [0]
    begin, chunk = 0, b""  # what is in memory: bytes begin .. begin + len(chunk)
    place = 0
    while place < size:
        if place + records.HEAD > begin + len(chunk):
            file.seek(place)
            begin, chunk = place, file.read(_SCAN_CHUNK)
        head = chunk[place - begin : place - begin + records.HEAD]
        problem = _length_problem(head)
        if not problem:
            place += records.FRAME + struct.unpack_from("<Q", head)[0]
            if place > size:
                problem = f"{place - size:,} bytes of the record are missing: truncated"
        if problem:
            raise ValueError(f"{path}, record {len(bounds) - 1:,}, byte {bounds[-1]:,}: {problem}")
        bounds.append(place)
    return np.array(bounds, np.int64)


def _read_index(index: Path, path: Path, size: int) -> np.ndarray:
    """The bounds by an index, after a check that its records follow each other from the first to the last byte."""
    pieces = [np.zeros(1, np.int64)]
    lines = 0
    with index.open("rb") as file:
        while True:
            text = file.read(_INDEX_CHUNK)
            text += file.readline()  # to the end of a line
            if not text:
                break
            starts, lengths = _parse_lines(index, text, lines)
            before = np.concatenate([pieces[-1][-1:], starts[:-1] + lengths[:-1]])
            wrong = np.flatnonzero((starts != before) | (lengths < records.FRAME))
            if len(wrong):
                at = int(wrong[0])
                raise ValueError(
                    f"{index}, line {lines + at + 1:,}: a record of {lengths[at]:,} bytes at byte {starts[at]:,}, but "
                    f"one of {records.FRAME} or more at byte {before[at]:,} must follow; {_again(path, index)}"
                )
            pieces.append(starts + lengths)
            lines += len(starts)
    bounds = np.concatenate(pieces)
    if bounds[-1] != size:
        raise ValueError(
            f"{index}: its {lines:,} records make {bounds[-1]:,} bytes, but {path.name} has {size:,}: one of the two "
            f"is cut off or belongs to another file; if it is the index, {_again(path, index)}"
        )
    return bounds


def _parse_lines(index: Path, text: bytes, lines_before: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths, int64, of whole lines."""
    lines = text.count(b"\n")
    if text.translate(None, b"0123456789 \r\n") or text.count(b" ") != lines or text[-1:] != b"\n":
        numbers = np.empty(0, np.int64)
    else:
        numbers = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
    if len(numbers) != 2 * lines or lines == 0:
        raise ValueError(
            f"{index}, after line {lines_before:,}: not an index, whose lines are `start length`; make it again with "
            "`python3 -m tfrecord.tools.tfrecord2idx`"
        )
    return numbers[0::2], numbers[1::2]


def _again(path: Path, index: Path) -> str:
    return f"make it again: python3 -m tfrecord.tools.tfrecord2idx {path} {index}"
