"""Where the rows of tar files are: found once, kept beside them, and found again when a file has changed."""

from __future__ import annotations

import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from data.webdataset import index
from data.webdataset.rows import RowTars


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Three files of 2, 1 and 3 rows of 4 ids, whose index is kept whatever their size."""
    monkeypatch.setattr(index, "_LEAST", 0)
    return [write(tmp_path / f"{name}.tar", rows) for name, rows in (("a", (0, 1)), ("b", (2,)), ("c", (3, 4, 5)))]


def write(path, rows):
    with tarfile.open(str(path), "w") as file:
        for row in rows:
            content = io.BytesIO()
            np.save(content, np.arange(4 * row, 4 * row + 4, dtype=np.uint16))
            member = tarfile.TarInfo(f"{row}.npy")
            member.size = len(content.getvalue())
            file.addfile(member, io.BytesIO(content.getvalue()))
    return path


def rows_of(tars):
    opened = RowTars(tars, 1000)
    return [opened.row(number).tolist() for number in range(len(opened))]


def expected(*rows):
    return [list(range(4 * row, 4 * row + 4)) for row in rows]


def kept(folder):
    return [path for path in folder.iterdir() if path.is_dir()]


def test_headers_are_read_once(tars, monkeypatch, capsys):
    assert rows_of(tars) == expected(*range(6))
    (folder,) = kept(tars[0].parent)
    assert folder.name.startswith("a.tar.rows-v") and "3 tar files" in capsys.readouterr().out
    monkeypatch.setattr(index, "row_places", lambda path: pytest.fail(f"the headers of {path} are read again"))
    assert rows_of(tars) == expected(*range(6))
    sent = pickle.dumps(RowTars(tars, 1000))
    assert b"starts" not in sent, "a loader process maps the arrays itself"
    assert pickle.loads(sent).row(5).tolist() == expected(5)[0]


def test_a_file_that_has_changed_is_read_again(tars):
    rows_of(tars)
    before = kept(tars[0].parent)
    write(tars[1], (7, 8))
    assert rows_of(tars) == expected(0, 1, 7, 8, 3, 4, 5)
    written = tars[2].stat().st_mtime_ns
    write(tars[2], (6, 5, 4))  # of the same size
    os.utime(str(tars[2]), ns=(written, written + 1))
    assert rows_of(tars) == expected(0, 1, 7, 8, 6, 5, 4)
    after = kept(tars[0].parent)
    assert len(after) == 1 and after != before, "one index is kept"
    tars[0].parent.rename(tars[0].parent.with_name("elsewhere"))
    moved = [path.parent.with_name("elsewhere") / path.name for path in tars]
    assert rows_of(moved) == expected(0, 1, 7, 8, 6, 5, 4) and [path.name for path in kept(moved[0].parent)] == [
        after[0].name
    ]


def test_small_files_and_folders_that_cannot_be_written_have_none(tars, monkeypatch):
    def nowhere(source, kind, key, build):
        raise RuntimeError("cannot write the cache")

    monkeypatch.setattr(index, "cache_folder", nowhere)
    assert rows_of(tars) == expected(*range(6))
    monkeypatch.undo()
    assert rows_of(tars) == expected(*range(6)) and not kept(tars[0].parent)
    opened = pickle.loads(pickle.dumps(RowTars(tars, 1000)))
    assert opened.row(2).tolist() == expected(2)[0]


def test_a_damaged_tar_leaves_no_index(tars):
    tars[2].write_bytes(tars[2].read_bytes()[:700])
    with pytest.raises(ValueError, match="c.tar"):
        rows_of(tars)
    assert not kept(tars[0].parent)


@pytest.mark.parametrize("name", ["meta.json", "starts.npy", "ends.npy", "kinds.npy"])
def test_a_damaged_index_is_refused_by_name(tars, name):
    rows_of(tars)
    (folder,) = kept(tars[0].parent)
    content = (folder / name).read_bytes()
    for damaged in (content[: len(content) - 9], b"", content[:-8] + bytes(8) if name == "ends.npy" else b"{}"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.tar\.rows-v.*damaged index of tar files.*remove that folder"):
            rows_of(tars)
