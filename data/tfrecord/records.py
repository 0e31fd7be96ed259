"""The TFRecord format, without TensorFlow: records that each hold a tf.train.Example with one list of token ids.

A file is a sequence of records: length of the data (uint64), its CRC, the data, their CRC (each uint32, all little
endian). The CRCs are CRC-32C (Castagnoli), rotated and shifted by a constant.
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details

The data are a protocol buffer (tensorflow/core/example/{example,feature}.proto):
`Example{features(1): Features{feature(1): map<string, Feature{bytes_list(1) | float_list(2) | int64_list(3)}>}}`.
"""

from __future__ import annotations

import functools
import struct
from typing import Iterator

import crc32c
import numpy as np

from data.tfrecord import varint

FEATURE = b"input_ids"
PAIR = (b"inputs", b"labels")  # of lm-training-research-project: labels are the inputs, shifted by one
HEAD = 12  # bytes of length and CRC before the data
FRAME = 16  # bytes of a record that are not data
PADDING_BYTES = b"\x9c" + b"\xff" * 8 + b"\x01"  # the varint -100, which stands for no id, at the end of a record
_MASK_DELTA = 0xA282EAD8


def masked_crc(data: bytes | memoryview) -> int:
    """The CRC as a record has it: CRC-32C rotated right by 15 bits, plus a constant, modulo 2^32."""
    crc: int = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


@functools.lru_cache(maxsize=1 << 16)
def record_head(length: int) -> bytes:
    """The 12 bytes before data of that length. Records have few different lengths, hence the cache."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc(packed))


def record(data: bytes) -> bytes:
    """Data framed as a record."""
    return b"".join((record_head(len(data)), data, struct.pack("<I", masked_crc(data))))


# ---- Examples as everybody writes them: one feature, ids packed --------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def example_head(payload: int) -> bytes:
    """What an Example of the one feature `input_ids` has before its packed ids of that many bytes."""
    head = b""
    # Inside out: Int64List.value, Feature.int64_list, the map entry's value, Features.feature, Example.features
    for tag in (b"\x0a", b"\x1a", b"\x0a" + _size(len(FEATURE)) + FEATURE + b"\x12", b"\x0a", b"\x0a"):
        head = tag + _size(len(head) + payload) + head
    return head


@functools.lru_cache(maxsize=1 << 16)
def usual_head(length: int) -> bytes | None:
    """`example_head` of the Example that is `length` bytes long in all; None if there is no such one."""
    shortest = len(example_head(0))
    for size in range(shortest, min(length, shortest + 5 * 9) + 1):  # each of five sizes takes 1 to 10 bytes
        head = example_head(length - size)
        if len(head) == size:
            return head
    return None


@functools.lru_cache(maxsize=1 << 16)
def usual_start(length: int) -> bytes:
    """What a record of an Example of `length` bytes starts with, up to its packed ids, if it is written as usual."""
    return record_head(length) + (usual_head(length) or b"")


def pair_example(inputs: bytes, labels: bytes) -> bytes:
    """An Example of the two features `inputs` and `labels`, from their packed ids."""
    features = b""
    for name, payload in zip(PAIR, (inputs, labels)):
        # Int64List.value, Feature.int64_list; the map entry's key and value; Features.feature
        feature = _field(b"\x1a", _field(b"\x0a", payload))
        features += _field(b"\x0a", _field(b"\x0a", name) + _field(b"\x12", feature))
    return _field(b"\x0a", features)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _size(len(content)) + content


def _size(number: int) -> bytes:
    """One varint."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


# ---- Any other Example -------------------------------------------------------------------------------------------


def int64_feature(example: bytes) -> np.ndarray:
    """The ids of a serialized Example, int64 (n,): its list `input_ids`, or those of `inputs` and `labels` together.

    The labels are the inputs shifted by one, so that n is one more than either has. Whatever the format allows: fields
    in any order and in pieces, other features, ids packed or one by one. Raises ValueError saying what is wrong with
    the Example.
    """
    found = {}  # of several with one name the last one counts
    for entry in _messages(b"".join(_messages(example, 1)), 1):
        found[b"".join(_messages(entry, 1)[-1:])] = b"".join(_messages(entry, 2))
    if FEATURE in found:
        return _int64_list(found[FEATURE], FEATURE)
    if not set(PAIR) <= set(found):
        names = [key.decode("utf-8", "replace") for key in found]
        has = f"; it has {', '.join(repr(name) for name in names[:5])}" if names else ""
        raise ValueError(f"not an Example with a feature 'input_ids', or with 'inputs' and 'labels'{has}")
    inputs, labels = (_int64_list(found[name], name) for name in PAIR)
    if len(inputs) != len(labels) or not len(inputs):
        raise ValueError(f"{len(inputs):,} 'inputs' and {len(labels):,} 'labels', where as many of each are expected")
    wrong = np.flatnonzero(inputs[1:] != labels[:-1])
    if len(wrong):
        raise ValueError(f"its 'labels' are not its 'inputs' shifted by one: they differ at position {wrong[0]}")
    return np.append(inputs, labels[-1])


def _int64_list(found: bytes, name: bytes) -> np.ndarray:
    """The values of a serialized Feature, which must be int64."""
    values = None
    for number, _, value in _fields(found):
        if number in (1, 2, 3) and isinstance(value, bytes):  # one of the three: the last one counts
            values = (values or b"") + value if number == 3 else None
    if values is None:
        raise ValueError(f"the feature {name.decode()!r} is not a list of int64")
    return _values(values)


def _values(data: bytes) -> np.ndarray:
    """The `value`s of a serialized Int64List."""
    numbers, ends = _all_numbers(data)
    if len(numbers) % 2 == 0 and (numbers[0::2] == 8).all():  # one by one: field 1 as a number, before each of them
        return numbers[1::2]
    pieces = [np.empty(0, np.int64)]
    for number, wire, value in _fields(data):
        if number == 1 and isinstance(value, bytes) and wire == 2:
            pieces.append(_all_numbers(value)[0])
        elif number == 1 and wire == 0:
            pieces.append(np.array([value], np.uint64).view(np.int64))
    return np.concatenate(pieces)


def _all_numbers(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    numbers, ends = varint.decode(np.frombuffer(data, np.uint8))
    if len(data) != (int(ends[-1]) + 1 if len(ends) else 0):
        raise ValueError("a list of int64 that ends in the middle of a number")
    return numbers.astype(np.int64), ends


def _messages(data: bytes, wanted: int) -> list[bytes]:
    """The values of the field `wanted` that are bytes."""
    return [value for number, _, value in _fields(data) if number == wanted and isinstance(value, bytes)]


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type and value of each field of a message."""
    place = 0
    while place < len(data):
        tag, place = _number(data, place)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise ValueError("not a protocol buffer")
        if wire == 0:
            value, place = _number(data, place)
            yield number, wire, value
            continue
        if wire == 2:
            size, place = _number(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("not a protocol buffer, or one with groups")
        if place + size > len(data):
            raise ValueError("a field that is longer than what is left of the Example")
        yield number, wire, data[place : place + size]
        place += size


def _number(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("an Example that ends in the middle of a field")
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, place
    raise ValueError("a number of more than 10 bytes")
