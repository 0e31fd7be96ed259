"""Mutations of valid files, and a runner that neither a crash nor a hang of a reader escapes.

Used by the fuzz tests of the readers (tests/test_fuzz_*.py). A case is a function of its number: a failure says which.
"""

from __future__ import annotations

import contextlib
import random
import signal
from typing import Callable, Iterator

SECONDS = 10.0  # for one case; files are of a few hundred bytes


def mutated(rng: random.Random, data: bytes, times: int = 3) -> bytes:
    """`data` after one to `times` random changes of bits, bytes and ranges."""
    for _ in range(rng.randint(1, times)):
        data = rng.choice(_MUTATIONS)(rng, data)
    return data


def _range(rng: random.Random, data: bytes) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 1, 2, 4, 8, 16, 64)))


def _random(rng: random.Random, size: int) -> bytes:
    return bytes(rng.getrandbits(8) for _ in range(size))


def _flip(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    begin, end = _range(rng, data)
    kind = rng.randrange(4)
    if kind == 0:
        new = bytes(end - begin)
    elif kind == 1:
        new = b"\xff" * (end - begin)
    elif kind == 2:
        new = b"\x80" * (end - begin)  # the numbers of protocol buffers that never end
    else:
        new = _random(rng, end - begin)
    return data[:begin] + new + data[end:]


def _delete(rng: random.Random, data: bytes) -> bytes:
    begin, end = _range(rng, data)
    return data[:begin] + data[end:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    begin, end = _range(rng, data)
    return data[:end] + data[begin:end] + data[end:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    begin, end = _range(rng, data)
    return data[:begin] + _random(rng, end - begin) + data[begin:]


def _move(rng: random.Random, data: bytes) -> bytes:
    begin, end = _range(rng, data)
    rest = data[:begin] + data[end:]
    to = rng.randrange(len(rest) + 1)
    return rest[:to] + data[begin:end] + rest[to:]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _count(rng: random.Random, data: bytes) -> bytes:
    """A little-endian number somewhere becomes a near or an extreme one."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return data
    place = rng.randrange(len(data) - size + 1)
    number = int.from_bytes(data[place : place + size], "little")
    new = rng.choice((number + 1, number - 1, number * 2, 0, 1 << 8 * size - 1, (1 << 8 * size) - 1))
    return data[:place] + (new % (1 << 8 * size)).to_bytes(size, "little") + data[place + size :]


_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip, _flip, _overwrite, _delete, _repeat, _insert, _move, _truncate, _count, _count,
)  # fmt: skip


@contextlib.contextmanager
def _alarm(case: int) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise AssertionError(f"case {case}: no answer in {SECONDS:g} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def run_cases(count: int, case: Callable[[random.Random], tuple[bool, int]]) -> tuple[int, int]:
    """Runs `case` for random generators 0 .. count - 1.

    A case opens a mutated file, says whether it could be opened and how many samples it gave, and asserts that each
    is right; only ValueError may come out of the reader, which the case turns into its answer. Returns the number of
    files that could be opened, and of samples.
    """
    opened = samples = 0
    for number in range(count):
        try:
            with _alarm(number):
                could_open, read = case(random.Random(number))
        except Exception as error:
            raise AssertionError(f"case {number}: {type(error).__name__}: {error}") from error
        opened += could_open
        samples += read
    return opened, samples
