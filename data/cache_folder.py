"""Folders of arrays computed once from a file of data and kept beside it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Iterator

import numpy as np

from corpora.atomic import unique_beside

_META = "meta.json"  # written last: a folder with it is whole


def cache_folder(source: Path, kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder `<source name>.<kind>-<key>` beside `source`, or in the temporary folder where that is read-only.

    If there is none yet, `build(folder)` fills an empty one with meta.json and whatever else, and it gets its name when
    it is whole. Of several processes that ask at once the first builds while the others wait; should it die, the next
    one builds. `kind` ends in the version of the format.

    What `build` raises passes through. Raises RuntimeError with a HINT if the cache cannot be written.
    """
    name = f"{source.name}.{kind}-{key}"
    places = [source.resolve().parent, *_private_folder(source)]
    for place in places:
        if os.access(str(place / name / _META), os.R_OK):
            return place / name
    problem = "no folder to write to"
    for place in places:
        try:
            place.mkdir(exist_ok=True)
            with _locked(place):
                return _build(place / name, build)
        except OSError as error:
            problem = f"{place}: {error.strerror}"
    raise RuntimeError(
        f"cannot write the cache of {source} ({problem})\nHINT: free space or make the folder of the data writable, "
        "or set TMPDIR to a roomy folder"
    )


def _build(final: Path, build: Callable[[Path], None]) -> Path:
    if (final / _META).is_file():  # another process built it while this one waited
        return final
    work = unique_beside(final)
    work.mkdir()
    try:
        build(work)
        os.rename(str(work), str(final))
    except OSError:
        if not (final / _META).is_file():  # else a process that could not lock was first, with the same content
            raise
    finally:
        shutil.rmtree(str(work), ignore_errors=True)
    return final


def remove_others(source: Path, folder: Path, kind: str) -> None:
    """Remove what `cache_folder` made of this kind beside `folder` for earlier contents of `source`."""
    for stale in folder.parent.iterdir():
        if stale.name.startswith(f"{source.name}.{kind.split('-v')[0]}-v") and stale != folder:
            shutil.rmtree(str(stale), ignore_errors=True)


def map_array(path: Path) -> np.ndarray:
    """A .npy file, mapped. Raises OSError or ValueError if it is damaged."""
    try:
        # As a plain array: slices of numpy.memmap cost several times more.
        return np.load(str(path), mmap_mode="r").view(np.ndarray)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged header makes of numpy's parser
        raise ValueError(f"{path.name}: {str(error) or type(error).__name__}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time, unless the file system has no locks. The lock of a process that dies ends."""
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _private_folder(path: Path) -> list[Path]:
    """The second choice, in the temporary folder; none if it would be in somebody else's hands."""
    key = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    ours = Path(tempfile.gettempdir()) / f"gpt2-data-cache-{os.getuid()}"
    try:
        ours.mkdir(mode=0o700, exist_ok=True)
        if ours.stat().st_uid != os.getuid():
            return []
    except OSError:  # no second choice then; that only matters, and is reported, if the first one fails
        return []
    return [ours / key]
