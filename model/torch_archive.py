"""The archives of torch.save: whether their parts are as they were written, and which tensor each of them is.

An archive is an uncompressed zip file: `data.pkl`, a pickle that says of each tensor its shape and the number of its
part; `data/0`, `data/1`, …, the bytes; and at the end the list of all parts with their CRCs, without which no reader
opens it. torch compares none of the CRCs.
"""

from __future__ import annotations

import mmap
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, Mapping, Sequence

_BEGINNING = b"PK\x03\x04"  # of the archive, and of the header before each part
_AT_ONCE = 1 << 20  # bytes that are compared together
_PART = re.compile(r"[^/]+/data/(\d+)")
_HEADER = re.compile(_BEGINNING + rb".{26}([^/\0]{1,200}/data/\d+)", re.DOTALL)  # of the part of a tensor
_LIST = b"PK\x01\x02"  # the beginning of an entry in the list of parts


class StandIn:
    """In the place of an object of another program: what it was made of, and none of its code."""

    def __new__(cls, *arguments: Any, **named: Any) -> StandIn:
        made = object.__new__(cls)
        made.__dict__["arguments"] = arguments
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _Anything(StandIn):
    """An object that a pickle may add to, as to a list or a dict, to no effect."""

    def append(self, item: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Mapping(dict):
    """A state dict; the attributes that it may have are passed over."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(str):
    """The number of a tensor's part."""


class _Names(pickle.Unpickler):
    """Reads the pickle for its names alone: whatever it asks for, nothing is imported or run."""

    def find_class(self, module: str, name: str) -> Any:
        return _Mapping if (module, name) == ("collections", "OrderedDict") else _Anything

    def persistent_load(self, identity: Any) -> Any:
        return _Storage(identity[2])  # ("storage", its type, its number, its device, its length)


def _tensor_names(pickled: IO[bytes], whole: str = "") -> dict[str, str]:
    """The number of a part -> the first tensor that lies in it; none of a pickle that is damaged.

    Names of dicts in dicts have dots; `whole` is the name of what is pickled.
    """
    try:
        return _names_in(_Names(pickled).load(), whole)
    except Exception:  # whatever damage makes of the unpickler; the parts are then told by their own names
        return {}


def _names_in(content: Any, whole: str) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting, seen = [(whole, content)], set()
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:  # lists of one list many times, each of one list many times, …
            continue
        seen.add(id(value))
        before = f"{name}." if name else ""
        if isinstance(value, StandIn):  # a tensor, made of its storage, or a parameter, made of its tensor
            waiting += [(name, each) for each in value.__dict__["arguments"][:1]]
        elif isinstance(value, _Storage):
            found.setdefault(str(value), name)
        elif isinstance(value, Mapping):
            waiting += [(f"{before}{key}", each) for key, each in reversed(list(value.items()))]
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{before}{place}", each) for place, each in reversed(list(enumerate(value)))]
    return found


def is_archive(path: Path) -> bool:
    """Whether a file ends as an archive does, a damaged one included."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several disks, by an end that was changed
        return True


def check_parts(archive: Path | IO[bytes], path: Path, within: Sequence[str] = (), whole: str = "") -> None:
    """Compares the bytes of all parts with their CRCs.

    Args:
        archive: a file, or one in memory; `path` is what errors name.
        within: the first words of the names of the tensors that are compared; not given: all.
        whole: the name of what the archive holds, if that is a tensor.

    Raises:
        ValueError: naming the file, and the tensor that was changed.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except Exception as error:  # whatever damage makes of the reader
        raise ValueError(f"{path}: the list of its parts cannot be read ({error}); is the file complete?") from error
    with opened as parts:
        # Without a CRC: torch.utils.serialization.config.save.compute_crc32 False. torch compresses nothing.
        entries = [each for each in parts.infolist() if each.CRC and each.compress_type == zipfile.ZIP_STORED]
        if sum(entry.file_size for entry in entries) > parts.start_dir:
            raise ValueError(f"{path}: its parts lie over each other; it is damaged, copy or download it again")
        names: dict[str, str] = {}
        for entry in entries:
            match = _PART.fullmatch(entry.filename)
            tensor = names.get(match.group(1), entry.filename) if match else entry.filename
            if not within or not match or tensor.split(".")[0] in within:
                _compare(parts, entry, f"{path}: the bytes of {tensor}")
            if entry.filename.endswith("/data.pkl"):
                with parts.open(entry) as part:
                    names = _tensor_names(part, whole)


def _compare(parts: zipfile.ZipFile, entry: zipfile.ZipInfo, what: str) -> None:
    try:
        with parts.open(entry) as part:
            while part.read(_AT_ONCE):
                pass
    except Exception as error:  # another CRC, or whatever damage makes of the reader
        raise ValueError(
            f"{what} are not those that were written ({error}); the file is damaged, copy or download it again"
        ) from error


def refuse_cut(path: Path) -> None:
    """Raises ValueError for a file that begins as an archive and has no list of parts, with the tensor it ends in."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[: len(_BEGINNING)] != _BEGINNING:
                return
            sizes = struct.unpack("<HH", content[26:30])  # of the first part's name, and of what is behind it
            file.seek(30 + sum(sizes))
            names = _tensor_names(file)
            last = max(_HEADER.finditer(content), key=re.Match.start, default=None)
            behind = last is None or any(content.find(mark, last.end()) >= 0 for mark in (_BEGINNING, _LIST))
            part = "" if last is None else last.group(1).decode("utf-8", "replace")
    except (OSError, ValueError, struct.error):  # empty, or not to be read: torch says why
        return
    place = "before the list of its parts" if behind else f"within {names.get(part.rpartition('/')[2], part)}"
    raise ValueError(f"{path}: ends {place}; is the file complete? Copy or download it again")
