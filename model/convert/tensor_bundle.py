"""TensorFlow's checkpoints of version 2, without TensorFlow: model.ckpt.index and model.ckpt.data-00000-of-00001.

The index is a table of LevelDB: sorted keys in blocks, the place of each block in a last one, whose own place is in the
last 48 bytes of the file. Its values are protocol buffers: under the empty key the BundleHeaderProto, under a tensor's
name a BundleEntryProto with type, shape, shard, place, size and CRC of the bytes in the data file.
tensorflow/core/protobuf/tensor_bundle.proto; https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Iterator, NamedTuple

import torch
from torch import Tensor

from data.tfrecord.records import masked_crc
from model.convert.raw_file import RawFile
from model.convert.source import Weight

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # after a block: the kind of compression, a byte, and a CRC
_TYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}  # of tensorflow/core/framework


class Entry(NamedTuple):
    """A tensor of the index."""

    kind: int
    shape: tuple[int, ...]
    shard: int
    place: int
    size: int
    crc: int


class _Damaged(ValueError):
    """The bytes are none that TensorFlow writes."""


def read_bundle(index: Path) -> dict[str, Weight]:
    """The tensors by TensorFlow's names, float32 and other floating point types alone.

    Raises ValueError naming the file and the tensor where they are damaged or cut short; the CRC of a tensor is
    compared when it is read.
    """
    table = RawFile(index).content.numpy().tobytes()
    try:
        entries = {key.decode("utf-8"): value for key, value in _table(table)}
        header = dict(_fields(entries.pop("")))
        shards = int(header.get(1, 1))
        tensors = {name: _entry(value) for name, value in entries.items()}
    except (_Damaged, KeyError, struct.error, UnicodeDecodeError, TypeError, IndexError) as error:
        raise ValueError(f"{index}: is damaged or no index of TensorFlow's; copy or download it again") from error
    if header.get(2, 0) != 0:
        raise ValueError(f"{index}: was written by a big-endian machine, which is not read")
    stem = str(index)[: -len(".index")]
    files: dict[int, RawFile] = {}
    weights = {}
    for name, entry in tensors.items():
        if entry.kind not in _TYPES:  # such as the number of the step
            continue
        if entry.shard not in files:
            path = Path(f"{stem}.data-{entry.shard:05d}-of-{shards:05d}")
            if not path.is_file():
                raise ValueError(f"{path}: is missing, and holds {name}")
            files[entry.shard] = RawFile(path)
        weights[name] = _weight(files[entry.shard], name, entry)
    return weights


def _weight(file: RawFile, name: str, entry: Entry) -> Weight:
    plain = file.weight(name, entry.place, entry.shape, _TYPES[entry.kind])
    count = math.prod(entry.shape) * torch.empty(0, dtype=plain.dtype).element_size()
    if count != entry.size:
        raise ValueError(f"{file.path}: {name} {entry.shape} takes {count:,} bytes, its index says {entry.size:,}")

    def read() -> Tensor:
        if masked_crc(memoryview(file.bytes(name, entry.place, entry.size).numpy())) != entry.crc:
            raise ValueError(f"{file.path}: the bytes of {name} have another CRC than the index says; it is damaged")
        return plain.read()

    return Weight(plain.shape, plain.dtype, read)


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table."""
    if len(content) < _FOOTER or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise _Damaged
    _, _, at = _handle(content, len(content) - _FOOTER)
    place, size, _ = _handle(content, at)
    for _, handle in _block(content, place, size):
        inner, inner_size, _ = _handle(handle, 0)
        yield from _block(content, inner, inner_size)


def _handle(content: bytes, at: int) -> tuple[int, int, int]:
    """Place and size of a block, and where the next one begins."""
    place, at = _varint(content, at)
    size, at = _varint(content, at)
    return place, size, at


def _block(content: bytes, place: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block: each key has what it shares with the one before, the rest, and the value."""
    if place + size + _TRAILER > len(content) or size < 4:
        raise _Damaged
    kind, crc = struct.unpack_from("<BI", content, place + size)
    if kind != 0 or masked_crc(content[place : place + size + 1]) != crc:  # TensorFlow does not compress its index
        raise _Damaged
    block = content[place : place + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]  # the places where a key shares nothing
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + rest + length > end:
            raise _Damaged
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _Damaged


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value: int | bytes
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif tag & 7 == 5:
            value, at = struct.unpack_from("<I", message, at)[0], at + 4
        elif tag & 7 == 1:
            value, at = struct.unpack_from("<Q", message, at)[0], at + 8
        else:
            raise _Damaged
        if at > len(message):
            raise _Damaged
        yield tag >> 3, value


def _entry(message: bytes) -> Entry:
    """A BundleEntryProto: dtype 1, shape 2, shard_id 3, offset 4, size 5, crc32c 6."""
    values: dict[int, int] = {}
    shape: list[int] = []
    for number, value in _fields(message):
        if number == 2 and isinstance(value, bytes):  # TensorShapeProto: dim 2, each with its size 1
            dims = [dim for inner, dim in _fields(value) if inner == 2 and isinstance(dim, bytes)]
            shape = [int(dict(_fields(dim)).get(1, 0)) for dim in dims]
        elif isinstance(value, int):
            values[number] = value
    return Entry(values.get(1, 0), tuple(shape), values.get(3, 0), values.get(4, 0), values.get(5, 0), values.get(6, 0))
