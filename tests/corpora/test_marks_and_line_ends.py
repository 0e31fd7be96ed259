"""A byte order mark and CRLF change nothing, in every kind of corpus, packed or not, whatever the pieces are."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import tarfile
import zipfile

import pytest

from corpora import pieces
from corpora.documents import PASSAGE, DocumentReader
from corpora.plain_text import plain
from corpora.sources import open_source

MARK = codecs.BOM_UTF8
TEXT = "First line of it.\nSecond, naïve one.\n\nThird \ufeff one.\n"
WIKITEXT = " = Town = \n \n A town 's market . \n \n = River = \n \n It flows . \n"
ROWS = "".join(json.dumps({"text": text}) + "\n" for text in ("one\r\ntwo", "three", "four"))


def texts_in(kind, path, documents=None):
    corpus = open_source(kind, [path], documents)[0]
    return [text for piece in corpus.pieces() for text in DocumentReader(piece) if text.strip()]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gz", "bz2"])
@pytest.mark.parametrize(
    ("kind", "name", "content", "documents"),
    [
        ("text", "a.txt", TEXT, "line"),
        ("text", "a.txt", TEXT, "passage"),
        ("text", "a.txt", TEXT, "file"),
        ("jsonl", "a.jsonl", ROWS, "line"),
        ("wikitext", "wiki.train.tokens", WIKITEXT, "line"),
    ],
)
def test_nothing_changes(tmp_path, monkeypatch, kind, name, content, documents, pack, small):
    if documents == "file" and pack is not bytes:
        pytest.skip("files that are documents are not packed")
    if small:
        monkeypatch.setattr(pieces, "PIECE_BYTES", 8)
        monkeypatch.setattr(pieces, "_READ", 4)
    ending = {gzip.compress: ".gz", bz2.compress: ".bz2"}.get(pack, "")
    found = []
    for number, raw in enumerate((content.encode(), MARK + content.encode().replace(b"\n", b"\r\n"))):
        path = tmp_path / str(number) / (name + ending)
        path.parent.mkdir()
        path.write_bytes(pack(raw))
        found.append(texts_in(kind, path, documents))
    assert found[0] == found[1] and found[0]
    assert "\r" not in "".join(found[1]) or kind == "jsonl", "what a JSON string says is kept"


def test_members_of_archives(tmp_path):
    content = {"a.txt": MARK + b"one\r\ntwo\r\n", "b.txt": MARK + b"three"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, raw in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    assert texts_in("openwebtext", tmp_path / "a.tar") == ["one\ntwo\n", "three"]
    with zipfile.ZipFile(tmp_path / "wikitext-2-v1.zip", "w") as archive:
        archive.writestr("wikitext-2/wiki.train.tokens", MARK + WIKITEXT.encode().replace(b"\n", b"\r\n"))
    (tmp_path / "wiki.train.tokens").write_text(WIKITEXT, encoding="utf-8", newline="")
    of_zip, of_file = (texts_in("wikitext", tmp_path / name) for name in ("wikitext-2-v1.zip", "wiki.train.tokens"))
    assert of_zip == of_file and len(of_zip) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32-be"])
def test_utf_16_is_refused(tmp_path, encoding):
    mark = "\ufeff" if encoding != "utf-16" else ""
    (tmp_path / "a.txt").write_bytes((mark + TEXT).encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt: UTF-16 or UTF-32 text.*iconv"):
        texts_in("text", tmp_path / "a.txt")


def test_plain():
    assert plain(b"a\r\nb\rc\n\r") == b"a\nb\rc\n\r"
    assert plain(MARK + MARK) == MARK, "one mark is ignored"
    assert plain(b"") == b""


@pytest.mark.parametrize("small", [False, True])
def test_passages_end_at_a_blank_line_or_else_at_the_end_of_a_line(tmp_path, monkeypatch, small):
    if small:
        monkeypatch.setattr(pieces, "PIECE_BYTES", 3 * PASSAGE)
    paragraphs = "".join("A line of text.\n" * 40 + "\n" for _ in range(160))
    lines, one_line = "Line of a poem.\n" * 6400, "word " * 20_000
    for content, end in ((paragraphs, "\n\n"), (lines, "\n"), (one_line, "word ")):
        (tmp_path / "a.txt").write_text(content, encoding="utf-8")
        found = texts_in("text", tmp_path / "a.txt", "passage")
        assert "".join(found) == content
        inner = found[:-1] if not small else [text for text in found if len(text) >= PASSAGE]
        assert all(PASSAGE <= len(text) < 2 * PASSAGE for text in inner) or content is one_line
        if not small:
            assert all(text.endswith(end) for text in found) and (len(found) > 3 or content is one_line)
