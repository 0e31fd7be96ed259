"""Files that are read at places, as many of them open as a process may have."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any, Sequence

from data.bad_data import BadData

_MOST = 64  # shards can be thousands, open files of a process often not


class OpenFiles:
    """Files by their number in `paths`, opened when they are asked for; those longest unused are closed.

    Not mapped: a file that shrinks, or a disk that fails, is an error then and not the end of the process.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._open: collections.OrderedDict[int, int] = collections.OrderedDict()  # file number: descriptor

    def __getstate__(self) -> dict[str, Any]:
        # A loader process that is spawned opens the files itself.
        return {**self.__dict__, "_open": collections.OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.pop("_open", {}).values():
            os.close(descriptor)

    def pread(self, file: int, begin: int, size: int) -> bytes:
        """Up to `size` bytes from byte `begin` on, fewer at the end. Raises BadData naming the file."""
        try:
            if file not in self._open:
                if len(self._open) >= _MOST:
                    os.close(self._open.popitem(last=False)[1])
                self._open[file] = os.open(str(self.paths[file]), os.O_RDONLY)
            self._open.move_to_end(file)
            return os.pread(self._open[file], size, begin)
        except OSError as error:
            raise BadData(f"{self.paths[file]}: cannot be read: {error.strerror}") from error
