"""Token ids out of TFRecord files: any record by its number, checked on every read."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Sequence

import numpy as np

from data.bad_data import BadData
from data.batches import NOTHING
from data.open_files import OpenFiles
from data.tfrecord import varint
from data.tfrecord.index import head_problem, record_bounds
from data.tfrecord.records import FRAME, HEAD, PADDING_BYTES, int64_feature, masked_crc, usual_start

_CHUNK = 1 << 15  # ids decoded at once: the arrays between the steps stay in the cache


class TFRecordFiles:
    """The records of several files in a row, each a sample of max_len + 1 ids, or of max_len (older files).

    Attributes: `paths`, `bounds` (for each file int64 (records + 1,), where its records begin), `ends` (records up to
    and with each file, int64), `scanned` (files without an index).
    """

    def __init__(self, paths: Sequence[Path], max_len: int, real_vocab_size: int) -> None:
        """Open the files. Raises ValueError naming file and position for files that are damaged or empty."""
        self.paths, self.max_len, self.real_vocab_size = list(paths), max_len, real_vocab_size
        self.bounds: list[np.ndarray] = []
        self.scanned: list[Path] = []
        for path in self.paths:
            bounds, indexed = record_bounds(path)
            self.bounds.append(bounds)
            if not indexed:
                self.scanned.append(path)
        self.ends = np.cumsum([len(bounds) - 1 for bounds in self.bounds], dtype=np.int64)
        self._files = OpenFiles(self.paths)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, records: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The ids of these records, int64 (n,), as int32 (n, max_len + 1), -100 where a record has none.

        Raises BadData naming file, record and byte for damaged records, ids outside the vocabulary, and records of
        another length.
        """
        window = self.max_len + 1
        if out is None:
            out = np.empty((len(records), window), np.int32)
        step = max(1, _CHUNK // window)
        for first in range(0, len(records), step):
            chunk = records[first : first + step]
            self._decode(chunk, self._payloads(chunk), out[first : first + step])
        return out

    # ---- Bytes ---------------------------------------------------------------------------------------------------

    def _locate(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """File, first byte and end of each record."""
        files = np.searchsorted(self.ends, records, side="right")
        begins, ends = np.empty_like(records), np.empty_like(records)
        for file in np.unique(files):
            rows = files == file
            inside = records[rows] - (self.ends[file - 1] if file else 0)
            begins[rows], ends[rows] = self.bounds[file][inside], self.bounds[file][inside + 1]
        return files, begins, ends

    def _payloads(self, records: np.ndarray) -> list[bytes | memoryview]:
        """The packed ids of each record, after both CRCs were checked."""
        files, begins, ends = self._locate(records)
        # Neighbours in a file are read at once.
        new_run = np.ones(len(records), bool)
        new_run[1:] = (files[1:] != files[:-1]) | (begins[1:] != ends[:-1])
        runs = np.flatnonzero(new_run).tolist() + [len(records)]
        begins_list, lengths = begins.tolist(), (ends - begins).tolist()
        payloads: list[bytes | memoryview] = []
        for first, last in zip(runs, runs[1:]):
            size = sum(lengths[first:last])
            data = self._files.pread(int(files[first]), begins_list[first], size)
            view, place = memoryview(data), 0
            for row in range(first, last):
                begin, place = place, place + lengths[row]
                end = place - 4
                start = usual_start(lengths[row] - FRAME)
                usual = len(start) > HEAD and data.startswith(start, begin)
                if not usual:
                    problem = head_problem(data[begin : begin + HEAD], lengths[row])
                    if problem:
                        self._refuse(int(records[row]), problem)
                example = view[begin + HEAD : end]
                if data[end:place] != masked_crc(example).to_bytes(4, "little"):
                    missing = len(data) < place
                    self._refuse(
                        int(records[row]),
                        "the file ends in it: truncated" if missing else "its CRC does not match: the data are damaged",
                    )
                payloads.append(view[begin + len(start) : end] if usual else self._unusual(int(records[row]), example))
        return payloads

    def _unusual(self, record: int, example: memoryview) -> bytes:
        """The ids of an Example with other features, or written in another way, packed again."""
        try:
            ids = int64_feature(bytes(example))
        except ValueError as error:
            self._refuse(record, str(error))
        self._check(record, ids)
        real = ids[ids != NOTHING]
        return varint.encode(real)[0].tobytes() + PADDING_BYTES * (len(ids) - len(real))

    # ---- Ids -----------------------------------------------------------------------------------------------------

    def _decode(self, records: np.ndarray, payloads: list[bytes | memoryview], out: np.ndarray) -> None:
        """Packed ids to rows (n, max_len + 1) of `out`."""
        padding = [0] * len(payloads)
        for row, payload in enumerate(payloads):
            if payload[-1:] == b"\x01" and payload[-10:] == PADDING_BYTES:
                data = bytes(payload)
                count = data.count(PADDING_BYTES)
                if data.endswith(PADDING_BYTES * count):
                    padding[row], payloads[row] = count, data[: len(data) - count * len(PADDING_BYTES)]
        joined = np.frombuffer(b"".join(payloads), np.uint8)
        bounds = np.cumsum([len(payload) for payload in payloads])
        try:
            ids, ends = varint.decode(joined)
        except ValueError:  # which record it is shows when they are decoded one by one
            if len(payloads) == 1:
                self._refuse(int(records[0]), "its ids are no packed numbers")
            for row in range(len(payloads)):
                one_padding = PADDING_BYTES * padding[row]
                self._decode(records[row : row + 1], [bytes(payloads[row]) + one_padding], out[row : row + 1])
            return
        last = np.searchsorted(ends, bounds)  # ids up to and with each record ...
        whole = (ends[last - 1] if len(ends) else -1) == bounds - 1  # ... whose last byte ends one
        whole |= (last == 0) & (bounds == 0)
        if not whole.all():
            self._refuse(int(records[np.flatnonzero(~whole)[0]]), "its ids end in the middle of a number")
        counts = np.diff(last, prepend=0)
        window = out.shape[1]
        # Negative ids are the largest ones without a sign.
        in_vocabulary = not len(ids) or int(ids.view(f"u{ids.itemsize}").max()) < self.real_vocab_size
        for length in (window, window - 1):
            if in_vocabulary and length > 1 and not any(padding) and (counts == length).all():
                out[:, :length], out[:, length:] = ids.reshape(len(out), length), NOTHING
                return
        begin = 0
        for row, record in enumerate(records.tolist()):
            real = ids[begin : begin + counts[row]]
            begin += counts[row]
            if not in_vocabulary:
                self._check(record, real)
            total = len(real) + padding[row]
            if total not in (window, window - 1):
                self._refuse_length(record, total)
            if len(real) < 2:
                self._refuse(record, "it has fewer than two ids that are not padding, so nothing to predict")
            out[row, : len(real)], out[row, len(real) :] = real, NOTHING

    def _check(self, record: int, ids: np.ndarray) -> None:
        """Ids are of the vocabulary; padding follows the last one."""
        real = len(ids)
        while real and ids[real - 1] == NOTHING:
            real -= 1
        wrong = np.flatnonzero((ids[:real] < 0) | (ids[:real] >= self.real_vocab_size))
        if len(wrong):
            self._refuse(
                record,
                f"token id {int(ids[wrong[0]])} at position {int(wrong[0])} is outside the model's vocabulary "
                f"0..{self.real_vocab_size - 1}; preprocess the text with the model's tokenizer, or use a --model of "
                "that vocabulary",
            )

    def _refuse_length(self, record: int, total: int) -> NoReturn:
        self._refuse(
            record,
            f"it has {total:,} ids, and --max-len {self.max_len} takes records of {self.max_len + 1:,} or "
            f"{self.max_len:,}; write them with write_into_tfrecord.py --seq-length {self.max_len + 1}"
            + (f", or use --max-len {total - 1}" if total > 2 else ""),
        )

    def _refuse(self, record: int, problem: str) -> NoReturn:
        file = int(np.searchsorted(self.ends, record, side="right"))
        inside = record - (int(self.ends[file - 1]) if file else 0)
        raise BadData(f"{self.paths[file]}, record {inside:,}, byte {self.bounds[file][inside]:,}: {problem}")
