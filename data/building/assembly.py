"""A corpus in pieces to token ids in order: worker processes, restart after an interruption, progress.

Every piece becomes a file in a hidden folder beside the output. They are read in the order of the pieces, whoever
made them and when, so that the output does not depend on the number of workers nor on interruptions.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import re
import shutil
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO, Iterator, TextIO

import numpy as np

from corpora import pieces
from corpora.atomic import folder_made
from corpora.pieces import Corpus, Piece
from corpora.termination import undivided
from data.building.duplicates import TRAIN, VALIDATION, Selector
from data.building.parts import Encoder, Part, Recipe, make_part, read_part
from data.building.worker_pool import worker_pool
from tokenizer import Tokenizer


class Progress:
    """Counts what passes, and says so now and then with the rate and the time left."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total, self.stream = total, stream
        self.documents = self.kept = self.tokens = self.done = self.broken = 0
        self._skipped = 0  # bytes that an earlier run has done: they say nothing about the rate
        self._interval = 1.0 if stream.isatty() else 10.0
        self._begin = self._shown = time.monotonic()

    def add(self, part: Part, there_already: bool) -> None:
        """A part has been read."""
        self.documents += part.counts["documents"]
        self.broken += part.counts["broken"]
        self.done += part.counts["size"]
        if there_already:
            self._skipped += part.counts["size"]
        if self.done == self._skipped:
            self._begin = time.monotonic()  # nothing has been made yet
        if time.monotonic() - self._shown >= self._interval:
            self.show("\r" if self.stream.isatty() else "\n")

    def show(self, end: str = "\n") -> None:
        """Print where it stands; on a terminal the same line again."""
        self._shown = time.monotonic()
        made = self.done - self._skipped
        before = f" ({self._skipped / 1e6:,.1f} by an earlier start)" if self._skipped else ""
        rate = made / max(self._shown - self._begin, 1e-9)
        pace = f", {rate / 1e6:.1f} MB/s, {(self.total - self.done) / rate:.0f} s left" if made else ""
        self.stream.write(
            f"{self.documents:,} documents, {self.kept:,} kept, {self.tokens:,} tokens, {self.done / 1e6:,.1f} of "
            f"{self.total / 1e6:,.1f} MB{before}{pace}{end}"
        )
        self.stream.flush()


_ONE_DOCUMENT = (
    "the input is one document, and documents are held out as a whole; split it with --documents passage, or hold out "
    "samples in training, with train_gpt2.py --val-num. Nothing written"
)


class Assembly:
    """The documents of a corpus as token ids: `training()`, and after it `validation()`. Use it as a context.

    The folder of parts is locked for one process. It stays after an interruption or an error of the system (a full
    disk), and goes when the block ends well or the input is at fault.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        recipe: Recipe,
        selector: Selector,
        folder: Path,
        name: str,
        workers: int,
        stream: TextIO,
    ) -> None:
        self.corpus, self.recipe, self.selector = corpus, recipe, selector
        self.encoder, self.tokenizer_json = Encoder(tokenizer), tokenizer.to_json()
        self.settings_json = tokenizer.settings_json()
        # Starting a process takes as long as a piece.
        self.workers = max(1, min(workers, corpus.size() // pieces.PIECE_BYTES))
        self.progress = Progress(corpus.size(), stream)
        self._prefix = f".{name}.parts-"
        self._lock_path = folder / f".{name}.lock"
        self.name = name
        self.folder = folder / (self._prefix + corpus.key(self.tokenizer_json, self.settings_json, recipe))
        self._held_out: dict[int, np.ndarray] = {}  # rows of the parts that have any
        self._made_folders = contextlib.ExitStack()
        self._lock: Any = None

    def __enter__(self) -> Assembly:
        """Raises ValueError if another process is at it."""
        self._made_folders.enter_context(folder_made(self.folder.parent))
        self._lock = _locked(self._lock_path)
        self._remove_leftovers()
        self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        parts = list(self.folder.glob("*.npz"))
        interrupted = isinstance(error, KeyboardInterrupt)
        if error is None or isinstance(error, ValueError) or (interrupted and not parts):
            shutil.rmtree(str(self.folder), ignore_errors=True)
        elif interrupted:
            error.args = (f"{len(parts):,} parts of the corpus are done and kept in {self.folder}",)
        with contextlib.suppress(OSError):
            self._lock_path.unlink()
        self._lock.close()
        self._made_folders.__exit__(kind, error, trace)

    def _remove_leftovers(self) -> None:
        """What a process that was killed, or one with other flags, has left under this name."""
        for left in self.folder.parent.glob(f".{self.name.split('.')[0]}*"):
            unfinished = re.search(r"\.(\d+)-[0-9a-f]{8}\.part$", left.name)
            if left.name.startswith(self._prefix) and left != self.folder:
                shutil.rmtree(str(left), ignore_errors=True)
            elif unfinished and not Path(f"/proc/{unfinished.group(1)}").exists():
                left.unlink()

    def training(self) -> Iterator[np.ndarray]:
        """Ids of each training document, uint16 or int32 (length,). Raises ValueError if one of the sides is empty."""
        progress = self.progress
        for number, part, there_already in self._parts():
            verdicts = self.selector.verdicts(part)
            rows = verdicts == VALIDATION
            if rows.any():
                self._held_out[number] = rows
            documents = part.documents(verdicts == TRAIN)
            progress.kept += len(documents)
            progress.tokens += sum(map(len, documents))
            progress.add(part, there_already)
            yield from documents
        if progress.kept == 0 and self._held_out:
            raise ValueError(
                f"{progress.documents:,} documents, all held out for validation; hold out fewer. Nothing written"
                if progress.documents > 1
                else _ONE_DOCUMENT
            )
        if progress.kept == 0:
            raise ValueError(
                f"{progress.documents:,} documents, none of --min-length {self.recipe.min_length} ids or more is left "
                "for training; nothing written"
            )
        if self.selector.validation and not self._held_out:
            raise ValueError(
                f"none of {progress.documents:,} documents was drawn for validation; raise --validation-fraction. "
                "Nothing written"
                if progress.documents > 1
                else _ONE_DOCUMENT
            )

    def validation(self) -> Iterator[np.ndarray]:
        """Ids of each document that is held out, after `training` has ended."""
        for number, rows in self._held_out.items():
            part = read_part(self._path(number))
            if part is None:
                raise RuntimeError(f"{self._path(number)}: gone or damaged\nHINT: the same command goes on")
            yield from part.documents(rows)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:07d}.npz"

    def _parts(self) -> Iterator[tuple[int, Part, bool]]:
        """Number and content of each part, and whether it was there already, in order."""
        if self.workers == 1:
            for number, piece in enumerate(self.corpus.pieces()):
                part = read_part(self._path(number))
                there_already = part is not None
                yield number, part or self._made(number, piece), there_already
            return
        pool = worker_pool(self.workers, _start_worker, self.recipe, self.encoder)
        waiting: collections.deque[tuple[int, Piece, Any]] = collections.deque()
        try:
            for number, piece in enumerate(self.corpus.pieces()):
                future = None
                if not self._path(number).exists():
                    with undivided():  # it may start a process, and the server of those must not be left half-told
                        future = pool.submit(_make_part, piece, self._path(number))
                waiting.append((number, piece, future))
                if len(waiting) > 3 * self.workers:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, perhaps for want of memory\nHINT: the same command goes on where it "
                f"stopped; with fewer --workers than {self.workers} it takes less memory"
            ) from error
        finally:
            # The pool cancels what waits itself: a future cancelled from here would raise in the pool's own thread
            # where a signal to the whole group has killed the workers too (CPython 3.11's terminate_broken).
            pool.shutdown(wait=True, **({"cancel_futures": True} if sys.version_info >= (3, 9) else {}))

    def _finished(self, number: int, piece: Piece, future: Any) -> tuple[int, Part, bool]:
        if future is not None:
            future.result()
        part = read_part(self._path(number))
        return number, part or self._made(number, piece), future is None and part is not None

    def _made(self, number: int, piece: Piece) -> Part:
        make_part(piece, self.recipe, self.encoder, self._path(number))
        part = read_part(self._path(number))
        if part is None:
            raise RuntimeError(f"{self._path(number)}: gone or damaged\nHINT: the same command goes on")
        return part


def _locked(path: Path) -> BinaryIO:
    """The file, open and locked until it is closed. Raises ValueError if another process has it."""
    while True:
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(f"{path.parent}: another process is writing these files; wait, or end it") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else its last owner has just removed it
                return file
        file.close()


_of_worker: tuple[Recipe, Encoder] | None = None  # sent once: it holds the whole vocabulary


def _make_part(piece: Piece, path: Path) -> None:
    assert _of_worker is not None, "the initializer has run"
    make_part(piece, *_of_worker, path)


def _start_worker(recipe: Recipe, encoder: Encoder) -> None:
    """One thread each is enough."""
    global _of_worker
    _of_worker = recipe, encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
