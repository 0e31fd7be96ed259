"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import BinaryIO, Iterator

from corpora.termination import undivided


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Write to a unique temporary file beside `path`; rename it at the end, remove it after an error.

    An OSError without a file name, which is what a full disk gives, gets `path`.
    """
    path = Path(path)
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
