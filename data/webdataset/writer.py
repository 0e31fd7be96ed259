"""Rows of token ids to tar files in webdataset's form."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Iterable

import numpy as np

from corpora.atomic import folder_made, unique_beside
from corpora.program import as_absolute
from corpora.termination import undivided

ROWS_A_TAR = 10_000


def _npy_head(row: np.ndarray) -> bytes:
    """What NumPy's format has before the values of such a row."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(row), allow_pickle=False)
    return content.getvalue()[: -row.nbytes]


class TarWriter:
    """Rows as members `000000000.input_id.npy`, int32 or uint16 as they come, in tars `<stem>-000000.tar`.

    The files get their names when all of them are whole.
    """

    def __init__(self, folder: Path, stem: str, rows_a_tar: int = ROWS_A_TAR) -> None:
        """ValueError if there are other tar files in `folder`."""
        self.folder, self.stem, self.rows_a_tar = folder, stem, rows_a_tar
        self.length = 0  # ids of a row
        others = [path.name for path in sorted(folder.glob("*.tar")) if not path.name.startswith(f"{stem}-")]
        if others:
            raise ValueError(
                f"{folder} has other tar files ({others[0]}), which '*.tar' would mix with these; remove them or name "
                "another folder"
            )

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        """Write these rows, each (length,). Returns the paths of the files. An error of `documents` passes through."""
        with folder_made(self.folder):
            work = unique_beside(self.folder / "unfinished-tars")
            work.mkdir()
            try:
                names = self._write(documents, work)
                with undivided():
                    for name in names:
                        os.replace(str(work / name), str(self.folder / name))
                    for left in self.there():  # of an earlier, longer corpus
                        if left.name not in names:
                            left.unlink()
            finally:
                shutil.rmtree(str(work), ignore_errors=True)
        return [self.folder / name for name in names]

    def _write(self, rows: Iterable[np.ndarray], work: Path) -> list[str]:
        names: list[str] = []
        tar: tarfile.TarFile | None = None
        shape: tuple[int, np.dtype] | None = None  # of the rows that `head` is for
        head = b""
        try:
            for number, row in enumerate(rows):
                if number % self.rows_a_tar == 0:
                    if tar is not None:
                        tar.close()
                    names.append(f"{self.stem}-{len(names):06d}.tar")
                    tar = tarfile.open(str(work / names[-1]), "w", format=tarfile.USTAR_FORMAT)
                if (len(row), row.dtype) != shape:
                    shape, head = (len(row), row.dtype), _npy_head(row)
                member = tarfile.TarInfo(f"{number:09d}.input_id.npy")
                content = head + row.tobytes()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                self.length = len(row)
        finally:
            if tar is not None:
                tar.close()
        return names

    def there(self) -> list[Path]:
        """The tars under its names that are there."""
        return sorted(self.folder.glob(f"{self.stem}-*.tar"))

    def summary(self) -> str:
        """Nothing: the rows were counted where they were made."""
        return ""

    def train_flags(self) -> str:
        """The flags of train_gpt2.py that read the files; rows may be cut into shorter samples."""
        pattern = as_absolute(self.folder / "*.tar")
        return f"--dataset webdataset --input-files {pattern} --max-len {self.length}"
