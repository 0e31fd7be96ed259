"""The corpus .pkl: what is written is a plain pickle, what is read is checked, and code in it never runs."""

from __future__ import annotations

import contextlib
import copyreg
import io
import json
import multiprocessing
import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import cache_folder
from data.articles import corpus as pickle_corpus
from data.articles.corpus import open_corpus
from data.articles.pickle_file import read_articles, write_articles

VOCAB = 50257
IDS = st.lists(st.integers(0, VOCAB - 1) | st.sampled_from([0, 255, 256, 65535, 65536, 2**31 - 1]), max_size=30)


def lists(path):
    return [ids.tolist() for ids in read_articles(path)]


def written(articles, largest_id):
    file = io.BytesIO()
    write_articles(file, articles, largest_id)
    return file.getvalue()


@settings(max_examples=150, deadline=None)
@given(articles=st.lists(IDS, max_size=12), protocol=st.integers(1, 5))
def test_reads_every_binary_protocol(tmp_path_factory, articles, protocol):
    path = tmp_path_factory.mktemp("corpus") / "c.pkl"
    copies = [list(ids) for ids in articles]  # hypothesis may draw one object twice
    path.write_bytes(pickle.dumps(copies, protocol=protocol))
    assert lists(path) == articles
    path.write_bytes(pickletools.optimize(pickle.dumps(copies, protocol=protocol)))
    assert lists(path) == articles


@settings(max_examples=100, deadline=None)
@given(articles=st.lists(IDS, max_size=12))
def test_writes_a_plain_pickle(tmp_path_factory, articles):
    content = written(articles, 2**31 - 1)
    assert pickle.loads(content) == articles
    small = [[i % 65536 for i in ids] for ids in articles]
    assert pickle.loads(written(small, 65535)) == small
    assert pickle.loads(written([[65536]], 65536)) == [[65536]]
    path = tmp_path_factory.mktemp("corpus") / "c.pkl"
    path.write_bytes(content)
    assert lists(path) == articles


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_long_articles_and_many_of_them(tmp_path, protocol):
    """More than pickle's batch of 1,000 items and its frame of 64 KiB, and lists of one item."""
    generator = np.random.default_rng(0)
    sizes = [200_000, 1, 0, 1000, 1001, 2000, 2001, *generator.integers(0, 5, 2500)]
    articles = [generator.integers(0, VOCAB, size).tolist() for size in sizes]
    for content in (pickle.dumps(articles, protocol=protocol), written(articles, VOCAB - 1)):
        (tmp_path / "c.pkl").write_bytes(content)
        assert lists(tmp_path / "c.pkl") == articles


class Reduced:
    """What an attacker would write: loading it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


class Extended:
    pass


OPENINGS = [b"", b"\x80\x02", b"\x80\x04]", b"\x80\x02](", b"\x80\x02](]", b"\x80\x02](](K\x01", b"](](M\x01\x00e"]
CODE = {
    "GLOBAL": b"cos\nsystem\n",
    "STACK_GLOBAL": b"\x93",
    "REDUCE": b"R",
    "INST": b"ios\nsystem\n",
    "OBJ": b"o",
    "NEWOBJ": b"\x81",
    "NEWOBJ_EX": b"\x92",
    "BUILD": b"b",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Px\n",
    "BINPERSID": b"Q",
}


@pytest.mark.parametrize("opcode", sorted(CODE))
@pytest.mark.parametrize("opening", OPENINGS)
def test_code_is_refused_wherever_it_stands(tmp_path, opening, opcode):
    (tmp_path / "c.pkl").write_bytes(opening + CODE[opcode] + b"(S'touch owned'\ntR.")
    with pytest.raises(ValueError, match=f"run code .{opcode}., which is refused"):
        lists(tmp_path / "c.pkl")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: [[1, 2, x]], lambda x: [[1], [2], x]])
def test_objects_are_refused_and_nothing_runs(tmp_path, protocol, wrap):
    attack = Reduced(tmp_path / "owned")
    others = [Extended, Extended(), np.int64(3), np.arange(3), "text", 1.5, None, True, (1, 2), {1}]
    copyreg.add_extension(Extended.__module__, "Extended", 200)
    try:
        for item in [attack, *others]:
            (tmp_path / "c.pkl").write_bytes(pickle.dumps(wrap(item), protocol=protocol))
            with pytest.raises(ValueError, match="c.pkl"):
                lists(tmp_path / "c.pkl")
    finally:
        copyreg.remove_extension(Extended.__module__, "Extended", 200)
    assert not attack.folder.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not a pickle", "not a pickle"),
        (b"corpus of many texts\nand lines\n", "byte 0: not a pickle of articles. A corpus"),  # c: GLOBAL
        (b"Rivers run to the sea.\n" * 999, "not a pickle"),  # R: REDUCE
        (b"Q. Why? b. So.", "not a pickle"),  # Q: BINPERSID, followed by STOP
        (b"quick brown fox", "not a pickle"),  # q and a byte: a memo, then INST
        (b"\x81\x04" + bytes(range(256)) * 9, "not a pickle"),
        (b"PK\x03\x04 a zip", "not a pickle"),
        (b"cos\nsystem\n" * 2000, "run code"),
        (b"\x89HDF\r\n", "not a pickle"),
        (pickle.dumps([[1]], protocol=0), "protocol 0"),
        (pickle.dumps([1, 2]), "article is not a list"),
        (pickle.dumps(7), "top is not a list"),
        (pickle.dumps([[1, [2]]]), "not an id"),
        (pickle.dumps([[2**70]]), "not an id"),
        (pickle.dumps([[1]]) + b"x", "1 bytes follow"),
        (pickle.dumps([[1]]) * 2, "follow the end"),
        (b"\x80\x07].", "top is not a list"),
        (b"\x80\x02]" * 100_000, "not a list|holds something else"),  # deep nesting
        (b"\x80\x02" + b"](" * 100_000, "not an id"),
        (b"\x80\x02" + b"(" * 100_000 + b"]", "top is not a list"),
        (b"\x80\x02](]r\xff\xff\xff\x7f(K\x01ee", "truncated"),  # a memo of 2 ** 31 entries
        (b"\x80\x02](]q\x01(K\x01e" + b"h\x01" * 1000 + b"e.", "one list appears twice"),  # memo bomb
        (b"\x80\x02](]\x94(K\x01e" + b"j\x01\0\0\0" * 9 + b"e.", "one list appears twice"),
        (b"\x80\x02](]" + b"0" * 9 + b"e.", "found POP"),
        (b"\x80\x02](]2222e.", "found DUP"),
        (b"\x80\x02](]K\x01ee.", "an id is not appended"),
        (b"\x80\x02]](K\x01e.", "an article is not appended"),
        (b"\x80\x04](\x8e" + b"\xff" * 7 + b"\x7f", "found BINBYTES8"),  # 2 ** 63 bytes
        (b"\x80\x04\x95" + b"\xff" * 8 + b"](](\x8b\xff\xff\xff\x7f", "found LONG4"),
        (b"\x80\x04" + b"\x94" * 100_000 + b"].", "top is not a list"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    (tmp_path / "c.pkl").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as error:
        lists(tmp_path / "c.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "c.pkl" in str(error.value)
    assert peak < 10_000_000


def test_refusals_name_the_article(tmp_path):
    (tmp_path / "c.pkl").write_bytes(pickle.dumps([[1], [2], [3, "x"], [4]]))
    with pytest.raises(ValueError, match="article 2, byte"):
        lists(tmp_path / "c.pkl")


@pytest.mark.parametrize("protocol", [2, 4])
def test_every_truncation_is_refused(tmp_path, protocol):
    content = pickle.dumps([[1, 300, 70000, 2**40], [], [5]], protocol=protocol)
    for length in range(1, len(content)):
        (tmp_path / "c.pkl").write_bytes(content[:length])
        with pytest.raises(ValueError, match="c.pkl.*(truncated|not a pickle of articles)") as error:
            lists(tmp_path / "c.pkl")
        assert length < 2 or "truncated" in str(error.value), (length, str(error.value))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_reads_as_pickle_would_or_is_refused(tmp_path_factory, data):
    articles = data.draw(st.lists(st.lists(st.integers(0, 70000), max_size=5), max_size=4))
    content = bytearray(pickle.dumps(articles, protocol=data.draw(st.integers(1, 5))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("corpus") / "c.pkl"
    path.write_bytes(bytes(content))
    try:
        read = lists(path)
    except ValueError:
        return
    # What got through is made of integers and lists alone, so that pickle's own machine is safe to ask; it may
    # refuse what ours does not look at (frame lengths), but must not read something else.
    try:
        expected = pickle.loads(bytes(content))
    except (pickle.UnpicklingError, ValueError, EOFError, OverflowError, MemoryError):
        return
    assert read == expected


@pytest.fixture
def corpus(tmp_path):
    articles = [[1, 2, 3], [], [50256], list(range(1000, 1100))]
    path = tmp_path / "corpus [1].pkl"
    path.write_bytes(pickle.dumps(articles))
    return path, articles


def as_lists(corpus):
    return [corpus.tokens[a:b].tolist() for a, b in zip(corpus.offsets, corpus.offsets[1:])]


def caches(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_open_builds_a_cache_once(corpus):
    path, articles = corpus
    first = open_corpus(path, VOCAB)
    assert as_lists(first) == articles
    assert (first.tokens.dtype, first.offsets.dtype, len(first)) == (np.int32, np.int64, 4)
    assert isinstance(first.tokens.base, np.memmap)
    assert len(caches(path.parent)) == 1
    stamp = (first.cache / "tokens.npy").stat().st_mtime_ns
    again = open_corpus(path, VOCAB)
    assert as_lists(again) == articles
    assert (again.cache, (again.cache / "tokens.npy").stat().st_mtime_ns) == (first.cache, stamp)
    assert np.load(str(again.cache / "tokens.npy")).tolist() == sum(articles, [])


def test_a_changed_file_gets_a_new_cache(corpus):
    path, _ = corpus
    old = open_corpus(path, VOCAB)
    path.write_bytes(pickle.dumps([[9, 8], [7]]))
    os.utime(str(path), ns=(1, 1))
    assert as_lists(open_corpus(path, VOCAB)) == [[9, 8], [7]]
    assert len(caches(path.parent)) == 1
    assert old.tokens[:3].tolist() == [1, 2, 3]  # still mapped
    path.write_bytes(pickle.dumps([[9, 9], [7]]))  # same size
    assert as_lists(open_corpus(path, VOCAB)) == [[9, 9], [7]]


def test_read_only_folder_uses_the_temporary_one(corpus, monkeypatch, tmp_path):
    path, articles = corpus
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    mkdir = Path.mkdir

    def refuse(self, *args, **kwargs):
        if self.parent == path.parent:
            raise PermissionError(13, "Permission denied", str(self))
        return mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    opened = open_corpus(path, VOCAB)
    assert as_lists(opened) == articles
    assert tmp_path / "tmp" in opened.cache.parents
    assert caches(path.parent) == ["tmp"]
    assert open_corpus(path, VOCAB).cache == opened.cache
    monkeypatch.setattr(cache_folder, "_private_folder", lambda path: [])
    path.write_bytes(pickle.dumps([[1]]))
    with pytest.raises(RuntimeError, match="Permission denied(.|\n)*HINT"):
        open_corpus(path, VOCAB)


def test_disk_full_leaves_nothing(corpus, monkeypatch):
    path, _ = corpus

    def full(source, folder, real_vocab_size):
        (folder / "tokens.npy").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pickle_corpus, "_write_arrays", full)
    with pytest.raises(RuntimeError, match="No space left(.|\n)*HINT"):
        open_corpus(path, VOCAB)
    assert caches(path.parent) == []


def _open_in_process(path, results):
    opened = open_corpus(path, VOCAB)
    results.put((len(opened), int(opened.tokens.sum())))


def test_several_processes_at_once(tmp_path):
    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps([list(range(100))] + [[i] * 50 for i in range(2000)]))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open_in_process, args=(path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=300)
    assert answers == [(2001, 4950 + 50 * 1999 * 1000)] * 4
    assert len(caches(tmp_path)) == 1


def test_another_process_finished_first(corpus, monkeypatch):
    """Where the file system has no locks two may build at once."""
    monkeypatch.setattr(cache_folder, "_locked", lambda folder: contextlib.nullcontext())
    path, articles = corpus
    build = pickle_corpus._write_arrays
    nested = []

    def slow(source, folder, real_vocab_size):
        build(source, folder, real_vocab_size)
        if not nested:
            nested.append(True)
            open_corpus(path, VOCAB)

    monkeypatch.setattr(pickle_corpus, "_write_arrays", slow)
    assert as_lists(open_corpus(path, VOCAB)) == articles
    assert nested and len(caches(path.parent)) == 1


def test_pickling_sends_paths_not_arrays(corpus):
    path, articles = corpus
    sent = pickle.dumps(open_corpus(path, VOCAB))
    assert len(sent) < 1000
    assert as_lists(pickle.loads(sent)) == articles


@pytest.mark.parametrize(
    ("articles", "message"),
    [
        ([[1], [2, 3, 50257]], "article 1: token id 50257 .*0..50256"),
        ([[], [1], [], [60000, 1], [70000]], "article 3: token id 60000"),
        ([[1], [-1, 5]], "article 1: -1 is not"),
        ([[2**31]], "article 0: 2147483648 is not"),
        ([[-(2**63)]], "article 0: -9223372036854775808 is not"),
        ([], "no token in 0 articles"),
        ([[], []], "no token in 2 articles"),
    ],
)
def test_bad_ids(tmp_path, articles, message):
    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps(articles))
    with pytest.raises(ValueError, match=message) as error:
        open_corpus(path, VOCAB)
    assert "c.pkl" in str(error.value)
    assert os.listdir(str(tmp_path)) == ["c.pkl"]


def test_ids_outside_a_smaller_vocabulary_than_the_cache_was_built_for(tmp_path):
    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps([[5], [6, 700]]))
    open_corpus(path, VOCAB)
    with pytest.raises(ValueError, match=r"c.pkl, article 1: token id 700 .* 0\.\.699"):
        open_corpus(path, 700)


def test_missing_files(tmp_path):
    for path in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(ValueError, match=f"--train-path {path}"):
            open_corpus(path, VOCAB)


def test_damaged_cache(corpus):
    path, _ = corpus
    cache = open_corpus(path, VOCAB).cache
    good = (cache / "tokens.npy").read_bytes()
    for name, content in [
        ("tokens.npy", good[:-4]),
        ("tokens.npy", b"junk"),
        ("meta.json", b"{}"),
        ("meta.json", b"["),
    ]:
        saved = (cache / name).read_bytes()
        (cache / name).write_bytes(content)
        with pytest.raises(ValueError, match="damaged cache.*remove"):
            open_corpus(path, VOCAB)
        (cache / name).write_bytes(saved)
    meta = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
    (cache / "meta.json").write_text(json.dumps(dict(meta, articles=7)), encoding="utf-8")
    with pytest.raises(ValueError, match="the checksum differs"):
        open_corpus(path, VOCAB)
