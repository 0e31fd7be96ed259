"""corpora/origin.py: what files were made from. The programs' tests have what it is for."""

from __future__ import annotations

import json

import pytest

from corpora.origin import Origin


def origin(folder, **flags):
    path = folder / "out.txt"
    return Origin(folder / "made", {"--input": [folder]}, flags, lambda: [path] * path.exists(), "--output", False)


def write(folder, **flags):
    with origin(folder, **flags).kept():
        (folder / "out.txt").write_text(json.dumps(flags))


def test_what_was_made_from_the_same_may_be_made_again(tmp_path):
    origin(tmp_path, a=1).check()
    write(tmp_path, a=1)
    origin(tmp_path, a=1).check()
    with pytest.raises(ValueError, match=r"out.txt: is there already, made with a 1 \(now 2\); name another --output"):
        origin(tmp_path, a=2).check()
    with pytest.raises(ValueError, match=r"made without b and with a 1 \(now without\);"):
        origin(tmp_path, b=True).check()


@pytest.mark.parametrize(
    "content",
    ["", "{", "7", "[]", "{}", '{"made from": 7}', '{"made from": {}}', '{"made from": {"flags": ["a"]}}',
     '{"made from": {"flags": {"a": 1}}}', '{"made from": {"flags": {"a": [1]}}}', "\ud800"],
)  # fmt: skip
def test_a_record_that_is_none_says_nothing(tmp_path, content):
    (tmp_path / "out.txt").touch()
    (tmp_path / "made").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match="nothing says what it was made from; name another --output, or replace it"):
        origin(tmp_path, a=1).check()
    write(tmp_path, a=1)
    origin(tmp_path, a=1).check()


@pytest.mark.parametrize("stage", ["before", "after"])
def test_after_an_error_the_record_says_what_is_there(tmp_path, stage):
    write(tmp_path, a=1)
    with pytest.raises(KeyboardInterrupt), origin(tmp_path, a=2).kept():
        if stage == "after":
            (tmp_path / "out.txt").unlink()
            (tmp_path / "out.txt").write_text("half")
        raise KeyboardInterrupt
    origin(tmp_path, a=1).check()
    if stage == "after":
        origin(tmp_path, a=2).check()
    else:
        with pytest.raises(ValueError, match=r"made with a 1 \(now 2\)"):
            origin(tmp_path, a=2).check()


def test_an_error_before_there_is_anything_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), origin(tmp_path / "new", a=1).kept():
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_only_files_in_the_folder_are_removed(tmp_path):
    """Those of the command before that are not written again; whatever else a record names."""
    (tmp_path / "outside").touch()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "old").touch()
    files = ["old", "../outside", str(tmp_path / "outside"), "gone"]
    (folder / "made").write_text(json.dumps({"made from": {"flags": {"a": ["1"]}, "files": files}}))
    write(folder, a=2)
    assert sorted(path.name for path in folder.iterdir()) == ["made", "out.txt"] and (tmp_path / "outside").exists()
