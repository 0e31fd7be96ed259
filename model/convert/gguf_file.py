"""GGUF, llama.cpp's format of a file: header, keys with values, a list of tensors, and the tensors.

Version 3, little-endian; version 2 differs in nothing that matters here. Extents of a tensor stand in the file in
reverse: the last one, along which memory is contiguous, first. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

A block of Q8_0 is 32 values of a row: their scale as float16, then 32 int8.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from model.convert.raw_file import RawFile
from model.convert.sink import as_bytes, pieces
from model.convert.source import Weight

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
BLOCK = 32  # values of a block of Q8_0
_BLOCK_BYTES = 2 + BLOCK

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
UINT32, INT32, FLOAT32 = 4, 5, 6
# Types of tensors that are read; of the others the names that messages give.
TYPES = {"float32": 0, "float16": 1, "q8_0": 8, "bfloat16": 30}
_PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
_Q8_0 = 8
_OTHERS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K"}
_OTHERS[14] = "Q6_K"
_LONGEST = 1 << 24  # bytes of a string


class _Cursor:
    """Reads the head of a file from its beginning. Raises ValueError naming the file where it makes no sense."""

    def __init__(self, file: RawFile) -> None:
        self.file, self.place = file, 0

    def take(self, count: int) -> bytes:
        if self.place + count > self.file.size:
            raise ValueError(f"{self.file.path}: ends within its header; the file is cut short")
        raw = self.file.content[self.place : self.place + count].numpy().tobytes()
        self.place += count
        return raw

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        length = self.number("Q")
        if length > min(_LONGEST, self.file.size):
            raise ValueError(f"{self.file.path}: has a text of {length:,} bytes in its header; it is damaged")
        # Tokens of other programs need not be whole characters.
        return self.take(length).decode("utf-8", "surrogateescape")

    def name(self) -> str:
        """A tensor's, as it can be printed."""
        return self.string().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"{self.file.path}: has a value of the unknown type {kind} in its header; it is damaged")
        inner, count = self.number("I"), self.number("Q")
        if count > self.file.size - self.place:  # each takes a byte at least
            raise ValueError(f"{self.file.path}: has a list of {count:,} values in its header; it is damaged")
        if inner == _ARRAY:
            raise ValueError(f"{self.file.path}: has a list of lists in its header, which no GPT-2 has")
        if inner in _SCALARS:
            code = f"{count}{_SCALARS[inner]}"
            return list(struct.unpack("<" + code, self.take(struct.calcsize("<" + code))))
        return [self.value(inner) for _ in range(count)]


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Weight]]:
    """The keys with their values, and the tensors by name. Raises ValueError naming the file and the tensor."""
    cursor = _Cursor(RawFile(path))
    if cursor.take(4) != MAGIC:
        raise ValueError(f"{path}: is no GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"{path}: is of version {version} of GGUF; 2 and 3, little-endian, are known")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    if max(tensor_count, key_count) > cursor.file.size:
        raise ValueError(f"{path}: counts {max(tensor_count, key_count):,} entries in its header; it is damaged")
    values = {}
    for _ in range(key_count):
        key = cursor.string()
        values[key] = cursor.value(cursor.number("I"))
    entries = []
    for _ in range(tensor_count):
        name, extents = cursor.name(), cursor.number("I")
        if extents > 4:
            raise ValueError(f"{path}: the tensor {name} has {extents} dimensions; the file is damaged")
        shape = tuple(reversed([cursor.number("Q") for _ in range(extents)]))
        entries.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise ValueError(f"{path}: general.alignment {alignment!r} is no power of two from 8 on")
    start = -(-cursor.place // alignment) * alignment
    return values, {name: _weight(cursor.file, name, shape, kind, start + at) for name, shape, kind, at in entries}


def _weight(file: RawFile, name: str, shape: tuple[int, ...], kind: int, place: int) -> Weight:
    if kind in _PLAIN:
        return file.weight(name, place, shape, _PLAIN[kind])
    if kind != _Q8_0:
        known = ", ".join(name.upper() for name in ("float32", "float16", "bfloat16", "q8_0"))
        raise ValueError(
            f"{file.path}: the tensor {name} is of the type {_OTHERS.get(kind, kind)}; {known} are read, so convert "
            "from such a file of this model"
        )
    if not shape or shape[-1] % BLOCK:
        raise ValueError(f"{file.path}: the tensor {name} {shape} is of Q8_0 and its rows are no multiple of {BLOCK}")
    raw = file.bytes(name, place, math.prod(shape) // BLOCK * _BLOCK_BYTES)

    def read() -> Tensor:
        blocks = raw.view(-1, _BLOCK_BYTES)
        scales = blocks[:, :2].contiguous().view(torch.float16).float()  # (n, 1)
        return blocks[:, 2:].contiguous().view(torch.int8).float().mul_(scales).view(shape)

    return Weight(shape, torch.float32, read)


class GGUFWriter:
    """Collects keys and the list of tensors; `write` then takes the tensors themselves, one after the other."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._entries: list[tuple[str, tuple[int, ...], str]] = []

    def add(self, key: str, value: Any, kind: int = UINT32) -> None:
        """A text, a number of the type `kind`, or a list of either."""
        packed = _packed(key)
        if isinstance(value, (list, tuple)):
            inner = _STRING if value and isinstance(value[0], str) else kind
            packed += struct.pack("<IIQ", _ARRAY, inner, len(value))
            packed += b"".join(_packed(item, inner) for item in value)
        else:
            inner = _STRING if isinstance(value, str) else kind
            packed += struct.pack("<I", inner) + _packed(value, inner)
        self._keys.append(packed)

    def add_tensor(self, name: str, shape: Sequence[int], dtype: str) -> None:
        """A tensor that `write` will be given, of a dtype of TYPES."""
        self._entries.append((name, tuple(shape), dtype))

    def write(self, file: BinaryIO, tensors: Mapping[str, Weight]) -> None:
        """The whole file. Raises ValueError naming a tensor whose values do not fit."""
        head = MAGIC + struct.pack("<IQQ", VERSION, len(self._entries), len(self._keys)) + b"".join(self._keys)
        place = 0
        for name, shape, dtype in self._entries:
            extents = tuple(reversed(shape))
            head += _packed(name) + struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
            head += struct.pack("<IQ", TYPES[dtype], place)
            place = _aligned(place + _bytes_of(shape, dtype))
        file.write(head.ljust(_aligned(len(head)), b"\0"))
        for name, shape, dtype in self._entries:
            for piece in _encoded(tensors[name].read(), dtype, name):
                file.write(piece)
            count = _bytes_of(shape, dtype)
            file.write(b"\0" * (_aligned(count) - count))


def _packed(value: Any, kind: int = _STRING) -> bytes:
    if kind != _STRING:
        return struct.pack("<" + _SCALARS[kind], value)
    raw = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT


def _bytes_of(shape: Sequence[int], dtype: str) -> int:
    count = math.prod(shape)
    if dtype == "q8_0":
        return count // BLOCK * _BLOCK_BYTES
    return count * torch.empty(0, dtype=_PLAIN[TYPES[dtype]]).element_size()


def _encoded(tensor: Tensor, dtype: str, name: str) -> Iterator[memoryview]:
    plain = torch.float32 if dtype == "q8_0" else _PLAIN[TYPES[dtype]]
    for piece in pieces(tensor, plain, name):
        yield as_bytes(quantized(piece, name) if dtype == "q8_0" else piece)


def quantized(values: Tensor, name: str) -> Tensor:
    """float32 (rows, n) to blocks of Q8_0, uint8 (rows * n / 32, 34). Raises ValueError naming the tensor.

    The scale is the largest magnitude / 127; quotients are rounded to the nearest integer, halves away from zero.
    """
    blocks = values.reshape(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    stored = scales.half()
    if not torch.isfinite(stored).all():
        raise ValueError(f"{name}: has values that are too large for Q8_0, or none; choose --dtype float32")
    inverse = torch.where(scales == 0, scales, 1 / scales)
    quotients = blocks * inverse
    whole = torch.trunc(quotients + torch.copysign(torch.full_like(quotients, 0.5), quotients)).to(torch.int8)
    return torch.cat((stored.view(torch.uint8), whole.view(torch.uint8)), 1)
