"""Where the rows of many tar files are: gone through once, and then kept beside them.

A tar has no table of contents. Its headers are read one by one, some 35,000 a second, which for the 25 million rows of
a large corpus are minutes before each start.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from data.cache_folder import cache_folder, map_array, remove_others
from data.webdataset.tars import row_places

_KIND = "rows-v1"  # the number is that of the format
_LEAST = 1 << 28  # bytes of tar files that are worth it: fewer are gone through in a few seconds
_ARRAYS = {"starts": np.dtype("<i8"), "sizes": np.dtype("<i8"), "kinds": np.dtype("i1"), "ends": np.dtype("<i8")}


class RowIndex:
    """The rows of several tar files, one after the other. Make one with `row_index`.

    `starts`, `sizes` int64 (rows,) and `kinds` int8 (rows,) are those of RowPlaces; `ends` int64 (files,) counts the
    rows up to and with each file.
    """

    def __init__(self, arrays: dict[str, np.ndarray], cache: Path | None = None) -> None:
        self.starts, self.sizes, self.kinds, self.ends = (arrays[name] for name in _ARRAYS)
        self._cache = cache

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader process that is spawned maps the files itself.
        if self._cache is not None:
            return (_mapped, (self._cache,))
        return (RowIndex, ({name: getattr(self, name) for name in _ARRAYS},))


def row_index(paths: Sequence[Path]) -> RowIndex:
    """The rows of these files: from the index beside the first one, which is made if there is none for their sizes and
    times; of small files, and where nothing can be written, by going through them.

    Raises ValueError naming file and member for a tar that is damaged or holds no row, and for a damaged index.
    """
    lines, size = [], 0
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        size += stat.st_size
        lines.append(f"{os.path.relpath(str(path), str(paths[0].parent))} {stat.st_size} {stat.st_mtime_ns}\n")
    if size < _LEAST:
        return RowIndex(_gone_through(paths))
    found: list[dict[str, np.ndarray]] = []

    def build(folder: Path) -> None:
        files = f"{len(paths):,} tar file{'s'[: len(paths) != 1]} ({size / 1e9:,.1f} GB)"
        print(f"going through the headers of {files}, once: {folder.parent} keeps where the rows are", flush=True)
        found.append(_gone_through(paths))
        _write(found[0], folder)

    key = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    try:
        cache = cache_folder(paths[0], _KIND, key, build)
    except RuntimeError:  # neither there nor in the temporary folder
        return RowIndex(found[0] if found else _gone_through(paths))
    remove_others(paths[0], cache, _KIND)
    return _mapped(cache)


def _gone_through(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    places = [row_places(path) for path in paths]
    arrays = {name: np.concatenate([getattr(each, name) for each in places]) for name in ("starts", "sizes", "kinds")}
    arrays["ends"] = np.cumsum([len(each.starts) for each in places])
    return {name: arrays[name].astype(dtype) for name, dtype in _ARRAYS.items()}


def _write(arrays: dict[str, np.ndarray], folder: Path) -> None:
    for name, array in arrays.items():
        np.save(str(folder / f"{name}.npy"), array)
    content = {"rows": len(arrays["starts"]), "files": len(arrays["ends"]), "crc32": zlib.crc32(arrays["ends"])}
    (folder / "meta.json").write_text(json.dumps(content), encoding="utf-8")


def _mapped(cache: Path) -> RowIndex:
    """What `_write` left. How many rows there are is checked; where each is shows when it is read."""
    try:
        meta = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: map_array(cache / f"{name}.npy") for name in _ARRAYS}
        shapes = {**dict.fromkeys(_ARRAYS, (meta["rows"],)), "ends": (meta["files"],)}
        whole = all((arrays[name].dtype, arrays[name].shape) == (_ARRAYS[name], shapes[name]) for name in _ARRAYS)
        whole = whole and zlib.crc32(arrays["ends"]) == meta["crc32"] and int(arrays["ends"][-1]) == meta["rows"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{cache}: damaged index of tar files ({error}); remove that folder and start again"
        ) from error
    if not whole:
        raise ValueError(f"{cache}: damaged index of tar files; remove that folder and start again")
    return RowIndex(arrays, cache)
