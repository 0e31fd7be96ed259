"""Tar files in webdataset's form: which members are rows of token ids, and where they begin. Nothing is unpacked.

A member is `KEY.FIELD.npy` (NumPy's format) or `KEY.FIELD.pth` (torch's), one row a key; members of other kinds are
passed over. https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.bad_data import BadData

BLOCK = 512  # of a tar file, which ends in blocks of zeros
NPY, PTH = 0, 1
_ZEROS = bytes(BLOCK)
_KINDS = {".npy": NPY, ".pth": PTH, ".pt": PTH}


class RowPlaces(NamedTuple):
    """The rows of a tar file in its order: first byte, size and kind of each, int64 (rows,) three times."""

    starts: np.ndarray
    sizes: np.ndarray
    kinds: np.ndarray


def row_places(path: Path) -> RowPlaces:
    """The rows in a tar file, found by its headers alone.

    Raises ValueError naming file and member for a file that is no plain tar, is cut off, or has no row or two of a key.
    """
    rows: list[tuple[int, int, int]] = []
    last, key, behind = "its beginning", "", 0
    try:
        end = path.stat().st_size
        usual = _usual_rows(path, end)
        if usual is not None:
            return RowPlaces(*usual)
        with tarfile.open(str(path), "r:") as tar:
            for member in tar:
                last, behind = member.name, member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.isfile() and member.offset_data + member.size > end:
                    raise ValueError(f"{path}, member {last}: the file ends in it: cut off; copy it again")
                kind = _kind(member.name)
                if not member.isfile() or kind is None:
                    continue
                before, key = key, _key(member.name)
                if key == before:
                    raise ValueError(f"{path}, member {last}: a second row under the key {key}; one is expected")
                rows.append((member.offset_data, member.size, kind))
                tar.members = []  # of a tar with millions of rows tarfile would keep them all
        with path.open("rb") as file:  # tarfile takes a header that is damaged, but for the first one, for the end
            file.seek(behind)
            mark = file.read(BLOCK)
        if mark != _ZEROS:
            what = "cut off" if len(mark) < BLOCK else "damaged"
            raise ValueError(
                f"{path}, behind member {last}: no mark of the end and no further member: {what}; copy it again"
            )
    except tarfile.TarError as error:
        packed = path.suffix in (".gz", ".bz2", ".xz") or ".tar." in path.name
        remedy = "unpack it first" if packed else "damaged, or no tar file; copy it again"
        raise ValueError(f"{path}, after {last}: {remedy} ({error})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise ValueError(f"{path}: no member NAME.npy or NAME.pth in it; rows of token ids are expected")
    return RowPlaces(*np.array(rows, np.int64).T)


def _usual_rows(path: Path, end: int) -> np.ndarray | None:
    """The rows of a tar whose members are all files with short names, one a key, int64 (3, rows); else None.

    What tarfile does, in a tenth of its time, for files of millions of rows. What is not whole is left to tarfile too.
    """
    rows: list[tuple[int, int, int]] = []
    place, key = 0, ""
    with path.open("rb") as file:
        while place + BLOCK <= end:
            file.seek(place)
            head = file.read(BLOCK)
            if head == _ZEROS:
                return np.array(rows, np.int64).T if rows else None
            name = head[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
            kind = _kind(name)
            if head[156:157] not in b"0\0" or head[345]:  # no plain file, or a name in two parts
                return None
            try:
                size, told = (int(field.split(b"\0", 1)[0].strip(), 8) for field in (head[124:136], head[148:156]))
            except ValueError:
                return None
            # The checksum is of the header with blanks in its own place.
            if told != sum(head) - sum(head[148:156]) + 8 * 32 or place + BLOCK + size > end:
                return None
            if kind is not None:
                before, key = key, _key(name)
                if key == before:
                    return None
                rows.append((place + BLOCK, size, kind))
            place += BLOCK + -(-size // BLOCK) * BLOCK
    return None


def _kind(name: str) -> int | None:
    return _KINDS.get(name[name.rfind(".") :])


def _key(name: str) -> str:
    """Folder and name up to the first point, as webdataset has it."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".")[0]


def row_ids(raw: bytes, kind: int) -> np.ndarray:
    """The token ids of a member, int64 (n,). Raises ValueError saying what is wrong with it.

    Of a .pth nothing but tensors is unpickled.
    """
    if kind == NPY:
        values = _npy(raw)
    else:
        try:
            tensor = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"not a tensor that torch.load reads without running code ({_first_line(error)})"
            ) from error
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"a {type(tensor).__name__}, where a tensor of token ids is expected")
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise ValueError(f"a tensor of {tensor.dtype}, where token ids are expected")
        values = tensor.numpy()
    if values.ndim > 1 and max(values.shape) == values.size:  # (1, n)
        values = values.reshape(-1)
    if values.ndim != 1:
        raise ValueError(f"of shape {tuple(values.shape)}, where one row of token ids is expected")
    return values.astype(np.int64)


def _npy(raw: bytes) -> np.ndarray:
    """An array in NumPy's format, of integers. The header is held against the bytes that are there before anything."""
    file = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"not an .npy file ({_first_line(error)})") from error
    if dtype.kind not in "iu":
        raise ValueError(f"an array of {dtype}, where token ids are expected")
    count = 1
    for side in shape:
        count *= int(side)
    if count * dtype.itemsize != len(raw) - file.tell():
        raise ValueError(f"{len(raw) - file.tell():,} bytes behind a header that promises {count * dtype.itemsize:,}")
    values = np.frombuffer(raw, dtype, count, file.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def bad_row(path: Path, number: int, problem: str) -> BadData:
    """The error of a row that turns out to be bad when it is read; its member is looked up now."""
    name, row, key = "", -1, ""
    with tarfile.open(str(path), "r:") as tar:
        for member in tar:
            if member.isfile() and _kind(member.name) is not None:
                key, row = _key(member.name), row + 1
                if row == number:
                    name = member.name
                    break
    return BadData(f"{path}, member {name or key}: {problem}")
