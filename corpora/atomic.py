"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO, Iterator

from corpora.termination import undivided

_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTORS = (Path("/dev/fd"), Path("/proc/self/fd"))  # the names in them are numbers


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Write to a unique temporary file beside `path`; rename it at the end, remove it after an error.

    An OSError without a file name, which is what a full disk gives, gets `path`. A device, a pipe and what /dev/stdout
    stands for are written to as they are: a file in their place would be in everybody's way.
    """
    path = Path(path)
    stream = _stream(path)
    if stream is not None:
        try:
            with stream:
                yield stream
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        return
    part = unique_beside(path)
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(str(part), str(path))
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise


def _stream(path: Path) -> BinaryIO | None:
    """A device or pipe, opened, and what this process has open under a name; None for a file, there or not.

    Raises OSError for the name of something that this process does not have open.
    """
    descriptor = _STANDARD.get(str(path), path.name if path.parent in _DESCRIPTORS else None)
    if descriptor is not None:
        if not path.exists():  # it is closed: a file would take the place of the name, for every program of the machine
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(path))
        return os.fdopen(os.dup(int(descriptor)), "wb")  # with the place in it that the program has
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return path.open("ab") if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


@contextlib.contextmanager
def atomic_files(*paths: str | Path) -> Iterator[list[BinaryIO]]:
    """As `atomic_file`, for files that belong together.

    They get their names one after the other, from the last to the first, which no signal breaks off.
    """
    with contextlib.ExitStack() as files:
        yield [files.enter_context(atomic_file(path)) for path in paths]
        with undivided():
            files.close()


@contextlib.contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """The folder is there, made with its parents if need be; after an error those made that are empty go again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first that is not empty, whose parents are not either
            for path in made:
                path.rmdir()
        raise


def unique_beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that no other process uses.

    The names of `tempfile` would do as well, but its files are private and stay so after the rename.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
