"""Protocol buffers' variable-length integers, many at once: 7 bits a byte, low ones first, the top bit says "goes on".

https://protobuf.dev/programming-guides/encoding/#varints
"""

from __future__ import annotations

import functools

import numpy as np

_LONGEST = 10  # bytes of a 64-bit number; a negative one always takes all of them


def encode(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of 0..2^31-1, shape (n,), as bytes: uint8 (total,) and the place of each number in them, int64 (n + 1,).

    Ids in a uint16 array take a third of the time.
    """
    bounds = np.zeros(len(ids) + 1, np.int64)
    if ids.dtype == np.uint16:
        data, used, lengths = _tables()
        np.cumsum(lengths.take(ids), out=bounds[1:])
        return np.compress(used.take(ids).view(bool), data.take(ids).view(np.uint8)), bounds
    lengths = np.ones(len(ids), np.int64)
    longer = []  # for the second byte and each further one: the numbers that have it
    rest = ids >> 7
    while rest.any():
        longer.append(np.flatnonzero(rest))
        lengths += rest != 0
        rest = ids >> 7 * len(longer) + 7
    np.cumsum(lengths, out=bounds[1:])
    data = np.empty(int(bounds[-1]), np.uint8)
    data[bounds[:-1]] = ids & 0x7F
    for byte, numbers in enumerate(longer, start=1):
        places = bounds[numbers] + byte
        data[places] = ids[numbers] >> 7 * byte & 0x7F
        data[places - 1] |= 0x80  # goes on
    return data, bounds


@functools.lru_cache(maxsize=None)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each 16-bit number its bytes, which of the four count (both as uint32), and how many do (int64)."""
    numbers = np.arange(1 << 16, dtype=np.int32)
    encoded, bounds = encode(numbers)
    lengths = np.diff(bounds)
    used = np.arange(4) < lengths[:, None]
    data = np.zeros((len(numbers), 4), np.uint8)
    data[used] = encoded
    return data.view(np.uint32)[:, 0], used.view(np.uint32)[:, 0], lengths


def decode(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every number in `data`, uint8 (total,), and the place of its last byte, int64, both (n,).

    Numbers are int32 if all are below 2^21, otherwise int64, two's complement as protocol buffers have them. Bytes
    after the last complete number are left over, which the caller sees by the last place. Raises ValueError for a
    number of more than 10 bytes.
    """
    goes_on = data.view(np.int8) >> 7  # the top bit is the sign: -1, all bits, where the number goes on, otherwise 0
    ends = np.flatnonzero(goes_on == 0)
    starts = np.zeros_like(ends)
    np.add(ends[:-1], 1, out=starts[1:])
    if len(data) > 2 and (goes_on[:-2] & goes_on[1:-1] & goes_on[2:]).any():
        return _decode_long(data, starts, ends), ends
    # Three bytes at most: the number that would begin at each byte, for all of them at once. Work on contiguous bytes
    # is cheaper than gathering the second and third byte of some of the numbers.
    mask = goes_on.astype(np.int32)
    numbers = (data & 0x7F).astype(np.int32)
    rest = numbers[1:] << 7
    rest[:-1] |= numbers[2:] << 14 & mask[1:-1]
    rest &= mask[:-1]
    numbers[:-1] |= rest
    return numbers[starts], ends


def _decode_long(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > _LONGEST:
        raise ValueError(f"a number of more than {_LONGEST} bytes")
    numbers = (data[starts] & 0x7F).astype(np.uint64)
    for byte in range(1, _LONGEST):
        longer = np.flatnonzero(lengths > byte)
        if not len(longer):
            break
        numbers[longer] |= (data[starts[longer] + byte] & 0x7F).astype(np.uint64) << np.uint64(7 * byte)
    return numbers.view(np.int64)
