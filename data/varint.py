"""Protocol buffers' variable-length integers, many at once: 7 bits a byte, low ones first, the top bit says "goes on".

https://protobuf.dev/programming-guides/encoding/#varints
"""

from __future__ import annotations

import numpy as np

_LONGEST = 10  # bytes of a 64-bit number; a negative one always takes all of them


def encode(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of 0..2^31-1, shape (n,), as bytes: uint8 (total,) and the place of each number in them, int64 (n + 1,)."""
    width = 1
    while len(ids) and int(ids.max()) >> 7 * width:
        width += 1
    columns = np.empty((len(ids), width), np.uint8)
    used = np.ones((len(ids), width), bool)
    for byte in range(width):
        columns[:, byte] = ids >> 7 * byte & 0x7F
        if byte:
            used[:, byte] = ids >> 7 * byte != 0
            columns[:, byte - 1] |= used[:, byte].view(np.uint8) << 7
    bounds = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(used.sum(axis=1), out=bounds[1:])
    return columns[used], bounds


def decode(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every number in `data`, uint8 (total,), and the place of its last byte, int64, both (n,).

    Numbers are int32 if all are below 2^21, otherwise int64, two's complement as protocol buffers have them. Bytes
    after the last complete number are left over, which the caller sees by the last place. Raises ValueError for a
    number of more than 10 bytes.
    """
    goes_on = data >> 7
    ends = np.flatnonzero(goes_on == 0)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    if len(data) > 3 and (goes_on[:-2] & goes_on[1:-1] & goes_on[2:]).any():
        return _decode_long(data, starts, ends), ends
    # Three bytes at most: the number that would begin at each byte, for all of them at once. That is two multiply-adds
    # over contiguous bytes, cheaper than gathering the second and third byte of some of the numbers.
    bits = (data & 0x7F).astype(np.int32)
    if len(data) > 1:
        rest = bits[1:] << 7
        if len(data) > 2:
            rest[:-1] += (bits[2:] << 14) * goes_on[1:-1]
        rest *= goes_on[:-1]
        bits[:-1] += rest
    return bits[starts], ends


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
