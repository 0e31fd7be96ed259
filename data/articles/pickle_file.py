"""The corpus `.pkl`: one pickled list of articles, each a list of token ids. Written and read as a stream.

A pickle is a program for a small stack machine, and the general machine can be told to import and call anything, or
to fill the memory from a few bytes. The reader here knows one shape only, lists of lists of integers, and refuses
every other instruction, so that a corpus from elsewhere can do no more than be wrong.
"""

from __future__ import annotations

import contextlib
import mmap
import pickle
import pickletools
import re
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, NoReturn, Pattern, Sequence

import numpy as np

# An integer, as protocols 1 to 5 write it: two bytes, one byte, four bytes signed, or up to eight with their count.
_INT = rb"M..|K.|J....|\x8a(?:%s)" % b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(9))
# A run is bounded so that the regular expression's own memory is; pickle.dump ends one after 1,000 anyway.
_INTS = re.compile(rb"(?:%s){1,4096}" % _INT, re.DOTALL)
_ONE_INT = re.compile(_INT, re.DOTALL)
# Frame headers and memo entries say nothing about the content.
_FILLER = re.compile(rb"(?:\x95.{8}|\x94|q.|r.{4}){0,4}", re.DOTALL)
_PROTOCOL = re.compile(rb"(?:\x80[\x01-\x05])?", re.DOTALL)
_RUNS_CODE = frozenset(
    ["GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"]
    + ["PERSID", "BINPERSID"]
)
_BATCH = 1000


def write_articles(file: BinaryIO, articles: Iterable[Sequence[int]], largest_id: int) -> None:
    """Write articles as the pickle (protocol 2) of a list of lists of ints, holding one article at a time.

    Ids are 0..largest_id. Two bytes and an opcode a token where that is enough, otherwise four.
    """
    opcode, width = (pickle.BININT2, "<u2") if largest_id < 1 << 16 else (pickle.BININT, "<i4")
    layout = np.dtype([("opcode", "S1"), ("id", width)])  # packed
    file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
    file.write(pickle.MARK)
    for number, article in enumerate(articles):
        if number and number % _BATCH == 0:  # the loading machine holds a batch on its stack
            file.write(pickle.APPENDS + pickle.MARK)
        items = np.empty(len(article), layout)
        items["opcode"] = opcode
        items["id"] = article
        file.write(pickle.EMPTY_LIST + pickle.MARK + items.tobytes() + pickle.APPENDS)
    file.write(pickle.APPENDS + pickle.STOP)


def read_articles(path: str | Path) -> Iterator[np.ndarray]:
    """Yield each article of a pickle as int64 ids (length,), one in memory at a time.

    Raises ValueError naming the file, the article and the byte for anything but a list of lists of integers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ValueError(f"{path}: the file is empty; make it with data/wikipedia_preprocess.py")
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    return _Reader(path, data).articles()


class _Reader:
    """A descent over the instructions of `[[int, ...], ...]`; `pos` is the byte of the next one."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.pos = 0
        self.article = 0
        self.opened = False  # whether the list of articles has begun

    def articles(self) -> Iterator[np.ndarray]:
        self.take(_PROTOCOL)
        if self.op() == b"(" and self.data[self.pos : self.pos + 2] == b"(l":
            self.refuse("text protocol 0; write it again with pickle.dump(corpus, file, protocol=2)")
        self.expect(b"]", "the top is not a list")
        self.opened = True
        while True:
            op = self.op()
            if op == b"(":
                self.pos += 1
                while self.op() != b"e":
                    yield self.one()
                self.pos += 1
            elif op == b"]":
                yield self.one()
                self.expect(b"a", "an article is not appended")
            else:
                break
        self.expect(b".", "the list of articles holds something else")
        if self.pos != self.size:
            self.refuse(f"{self.size - self.pos:,} bytes follow the end of the pickle")

    def one(self) -> np.ndarray:
        self.expect(b"]", "an article is not a list")
        pieces: list[np.ndarray] = []
        while True:
            op = self.op()
            if op == b"(":
                self.pos += 1
                while self.op() != b"e":
                    pieces.append(self.ints(_INTS))
                self.pos += 1
            elif op in b"KMJ\x8a":
                pieces.append(self.ints(_ONE_INT))
                self.expect(b"a", "an id is not appended")
            else:
                break
        self.article += 1
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def ints(self, pattern: Pattern[bytes]) -> np.ndarray:
        run = self.take(pattern)
        if not run:
            self.refuse("an article holds something that is not an id")
        # The run is nothing but integers: pickle's own machine turns it into a list at C speed.
        return np.array(pickle.loads(pickle.MARK + run + pickle.LIST + pickle.STOP), dtype=np.int64)

    def op(self) -> bytes:
        self.take(_FILLER)
        if self.pos >= self.size:
            self.refuse("the file ends in the middle: truncated")
        return self.data[self.pos : self.pos + 1]

    def take(self, pattern: Pattern[bytes]) -> bytes:
        match = pattern.match(self.data, self.pos)
        if match is None:
            return b""
        self.pos = match.end()
        return match.group()

    def expect(self, op: bytes, problem: str) -> None:
        if self.op() != op:
            self.refuse(problem)
        self.pos += 1

    def refuse(self, problem: str) -> NoReturn:
        code: pickletools.OpcodeInfo | None = None
        if self.pos < self.size:
            code = pickletools.code2op.get(self.data[self.pos : self.pos + 1].decode("latin-1"))
        if code is not None and self._lacks_argument(code):
            problem = "the file ends in the middle: truncated"
        runs_code = code is not None and code.name in _RUNS_CODE
        if self.pos == 0 and not runs_code:
            problem = f"not a pickle of articles ({problem})"
        elif runs_code and not self.opened and not self._is_pickle():
            problem = "not a pickle of articles"
        elif runs_code:
            problem = f"it wants to load objects or run code ({code.name}), which is refused"
        elif code is not None and code.name in ("GET", "BINGET", "LONG_BINGET"):
            problem = f"one list appears twice ({code.name}); copy the article before pickling"
        elif code is not None and "truncated" not in problem:
            problem = f"{problem} (found {code.name})"
        raise ValueError(
            f"{self.path}, article {self.article}, byte {self.pos:,}: {problem}. A corpus is a "
            "list of lists of token ids, as data/wikipedia_preprocess.py writes it"
        )

    def _is_pickle(self) -> bool:
        """Whether these are instructions up to the end, or a thousand: every other letter of a text looks like one."""
        with contextlib.suppress(ValueError, UnicodeError):
            for number, (instruction, _, at) in enumerate(pickletools.genops(self.data[: 1 << 20])):
                if instruction.name == "STOP":
                    return at == self.size - 1
                if number == 1000:
                    return True
        return False

    def _lacks_argument(self, code: pickletools.OpcodeInfo) -> bool:
        """Whether the file ends within this instruction."""
        if code.arg is None:
            return False
        left = self.size - self.pos - 1
        if code.name == "LONG1":  # its first byte counts the others
            return left == 0 or left - 1 < self.data[self.pos + 1]
        return 0 < code.arg.n > left
