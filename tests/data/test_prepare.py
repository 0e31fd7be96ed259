"""data/prepare.py: every kind of corpus to token ids, the same for any number of workers and interruptions."""

from __future__ import annotations

import bz2
import concurrent.futures.process
import functools
import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import pieces
from corpora.documents import DocumentReader
from corpora.pieces import HEADING, LINE, running
from corpora.sources import guess, open_source, passed_over
from data import prepare, prepare_flags
from data.building import assembly, parts
from data.building.duplicates import DROPPED, TRAIN, VALIDATION, DigestSet, Selector
from data.building.minhash import PERMUTATIONS, SimilarityIndex, bands, least_agreement, minhash_signatures
from data.building.parts import Encoder, Part, Recipe, encode, make_part, read_part
from data.megatron.files import MmapCorpus
from data.tfrecord.files import TFRecordFiles
from tokenizer import Tokenizer, train_bpe

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the of and history river naïve 数学 city was born 1984 in it's — “quoted” 😀 def x_y".split()


def documents(count, seed=0):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randrange(3, 60))) for _ in range(count)]


@functools.lru_cache(maxsize=1)
def small_tokenizer():
    """A vocabulary that is built in no time, unlike GPT-2's."""
    return train_bpe(documents(300, seed=9), 400)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "small" / "tokenizer.json"
    path.parent.mkdir()
    path.write_text(small_tokenizer().to_json(), encoding="utf-8")
    return path


def run(*arguments):
    """The command in this process; its exit status."""
    try:
        return prepare.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def ids_of(texts):
    return [[*small_tokenizer().encode(text), small_tokenizer().eot_id] for text in texts]


def texts_in(corpus):
    return [text for piece in corpus.pieces() for text in DocumentReader(piece) if text]


# ---- Sources -----------------------------------------------------------------------------------------------------

WIKITEXT = [
    " = Robert Boulter = \n \n Robert Boulter is an actor . \n \n = = Career = = \n \n He had a role . \n \n",
    " = 2 + 2 = 5 = \n \n A phrase . \n \n",
    " = Du Fu = \n \n Du Fu ( 712 – 770 ) was a poet . \n = = = Early = = = \n",
]


def pack(content, ending):
    return {"": lambda c: c, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending](content)


@pytest.fixture(params=[64, 4 << 20], ids=["small-pieces", "large-pieces"])
def piece_bytes(request, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", request.param)
    monkeypatch.setattr(pieces, "_READ", 32)
    return request.param


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
def test_text_one_document_a_line(tmp_path, piece_bytes, ending):
    texts = documents(40)
    content = "\n".join(texts[:20] + ["", "\r"] + texts[20:]).encode()
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(pack(content, ending))
    assert guess([path]) == "text"
    corpus, validation = open_source("text", [path])
    assert texts_in(corpus) == texts and validation is None
    plan = list(corpus.pieces())
    assert sum(piece.size for piece in plan) == corpus.size()
    assert len(plan) > 5 or piece_bytes > 64 or ending  # a small compressed file comes out in one block


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_json_lines(tmp_path, piece_bytes, ending):
    texts = documents(30)
    content = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(content.encode(), ending))
    assert guess([path]) == guess([tmp_path]) == "jsonl"
    assert texts_in(open_source("jsonl", [tmp_path])[0]) == texts


def test_text_one_document_a_file(tmp_path):
    for name, text in (("b.txt", "two\nlines\n"), ("a.txt", "first")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert texts_in(open_source("text", [tmp_path], "file")[0]) == ["first", "two\nlines\n"]


def test_what_is_passed_over_in_a_folder_is_told_in_a_line(tmp_path, tokenizer, capsys):
    """Other kinds, other packings of this kind and folders; not hidden files, and not what the program writes."""
    folder = tmp_path / "mixed"
    (folder / "more").mkdir(parents=True)
    for name in ("b.txt", "c.txt.gz", "d.txt.gz", "READ.me", "LICENSE", ".hidden", "more/e.jsonl"):
        (folder / name).write_text("a text\n", encoding="utf-8")
    (folder / "a.jsonl").write_text('{"text": "some words of it"}\n' * 3, encoding="utf-8")
    command = ["--input", folder, "--output", folder / "out", "--tokenizer", tokenizer, "--workers", 1]
    told = "passed over beside them: 2 .txt.gz, 1 .me, 1 .txt, 1 without an ending, 1 folder; --input FILE ... reads"
    for _ in range(2):
        assert run(*command) == 0
        source, said, *_ = capsys.readouterr().err.splitlines()
        assert source.startswith("jsonl: 1 files") and said.startswith(told)
    assert passed_over([folder / "a.jsonl"], [folder / "a.jsonl"]) == ""
    for number in range(9):
        (folder / f"x.{number}").touch()
    assert "1 .1, 1 .2, 1 .3, 1 .4, 7 others, 1 folder" in passed_over([folder], [folder / "a.jsonl", folder / "out"])


@pytest.mark.parametrize("packed", [False, True])
def test_wikitext(tmp_path, piece_bytes, packed):
    content = {
        part: (" \n" + "".join(articles)).encode() for part, articles in (("train", WIKITEXT), ("valid", WIKITEXT[:1]))
    }
    if packed:
        with zipfile.ZipFile(str(tmp_path / "wikitext-2-v1.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
            for part, data in content.items():
                archive.writestr(f"wikitext-2/wiki.{part}.tokens", data)
    else:
        for part, data in content.items():
            (tmp_path / f"wiki.{part}.tokens").write_bytes(data)
    for given_path in (tmp_path, next(tmp_path.glob("*train*" if not packed else "*.zip"))):
        assert guess([given_path]) == "wikitext"
        train, validation = open_source("wikitext", [given_path])
        assert passed_over([given_path], train.files) == ""
        stripped = [article.strip("\n") for article in WIKITEXT]
        # " = 2 + 2 = 5 = " has a sign inside: not taken for a heading of this level
        assert [t for t in texts_in(train) if t.strip()] == [stripped[0] + "\n" + stripped[1], stripped[2]]
        assert [t for t in texts_in(validation) if t.strip()] == stripped[:1]


def tar_of(members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        folder = tarfile.TarInfo("openwebtext")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def test_openwebtext(tmp_path, piece_bytes):
    """The archive of the corpus (a tar.xz of xz files that are tars of texts), its inner files, and a plain tar."""
    texts = [text + "\n\nsecond paragraph" for text in documents(9)]
    inner = [
        tar_of([(f"{i + j:07d}-hash.txt", texts[i + j].encode()) for j in range(3)], "w:xz") for i in range(0, 9, 3)
    ]
    whole = tar_of([(f"openwebtext/urlsf_subset00-{i}_data.xz", data) for i, data in enumerate(inner)], "w:xz")
    flat = tar_of([(f"{i}.txt", text.encode()) for i, text in enumerate(texts)])
    for folder, files in (
        ("outer", {"openwebtext.tar.xz": whole}),
        ("inner", {f"urlsf_subset00-{i}_data.xz": data for i, data in enumerate(inner)}),
        ("flat", {"texts.tar": flat}),
    ):
        (tmp_path / folder).mkdir()
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(data)
        assert guess([tmp_path / folder]) == "openwebtext"
        assert texts_in(open_source("openwebtext", [tmp_path / folder])[0]) == texts


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(["", "a", "word and more", " = A = ", " = = B = = ", " =  = ", "=", "\r", "é" * 9]), max_size=30
    ),
    size=st.integers(1, 40),
    end=st.booleans(),
)
def test_pieces_are_the_file_in_whole_documents(tmp_path_factory, lines, size, end):
    path = tmp_path_factory.mktemp("lines") / "f"
    raw = ("\n".join(lines) + "\n" * end).encode()
    path.write_bytes(raw)
    before = pieces.PIECE_BYTES, pieces._READ
    pieces.PIECE_BYTES, pieces._READ = size, 7
    try:
        for kind, boundary in (("lines", LINE), ("wikitext", HEADING)):
            plan = list(running(kind, boundary, [path]))
            assert b"".join(piece.read() for piece in plan) == raw
            whole = list(DocumentReader(pieces.Piece(kind, "f", (str(path),))))
            cut = [text for piece in plan for text in DocumentReader(piece)]
            assert [text for text in cut if text] == [text for text in whole if text]
    finally:
        pieces.PIECE_BYTES, pieces._READ = before


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), kind=st.sampled_from(["lines", "jsonl", "wikitext", "file", "archive"]))
def test_any_bytes_are_read_or_refused(content, kind):
    read_or_refused(content, kind)


def read_or_refused(content, kind):
    try:
        for text in DocumentReader(pieces.Piece(kind, "the file", (), content=content)):
            text.encode("utf-8", "surrogatepass")
    except ValueError as error:
        assert "the file" in str(error)


VALID = {
    "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in documents(4)).encode(),
    "archive": tar_of([(f"{i}.txt", text.encode()) for i, text in enumerate(documents(3))], "w:xz"),
    "texts-tar": tar_of([(f"{i}.txt", text.encode()) for i, text in enumerate(documents(3))]),
}


@pytest.mark.parametrize("inner", [False, True], ids=["a tar of texts", "one inside another"])
@pytest.mark.parametrize("cut", [False, True], ids=["damaged", "cut off"])
def test_a_tar_does_not_end_at_a_header_that_is_damaged(tmp_path, inner, cut):
    """Nor in the middle of one: tarfile itself takes either for the end, and says nothing."""
    texts = [(f"{i}.txt", text.encode()) for i, text in enumerate(documents(6))]
    content = bytearray(tar_of(texts))
    header = content.index(b"3.txt")  # its name is where it begins
    if cut:
        del content[header + 100 :]
    else:
        content[header] ^= 1
    if inner:
        content = tar_of([("a_data.xz", lzma.compress(bytes(content)))])
    (tmp_path / "texts.tar").write_bytes(content)
    corpus, _ = open_source("openwebtext", [tmp_path / "texts.tar"], None)
    with pytest.raises(ValueError, match=r"texts\.tar.*: damaged, or not what its name says .* copy it again"):
        texts_in(corpus)


@pytest.mark.long
@settings(max_examples=10_000, deadline=None)
@given(data=st.data())
def test_mutations_of_valid_files_are_read_or_refused(data):
    """Never another exception, never without an end. Mutations leave the first 16 bytes alone in most cases."""
    name = data.draw(st.sampled_from(sorted(VALID)))
    content = bytearray(VALID[name])
    first = data.draw(st.sampled_from([0, 16, 16, 16]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(first, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(first, len(content))) :]
    read_or_refused(bytes(content), "archive" if "tar" in name else name)


# ---- Output ------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Lines in some twenty pieces."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    path = tmp_path / "in" / "corpus.txt"
    path.parent.mkdir()
    path.write_text("\n".join(documents(120)), encoding="utf-8")
    return path


def test_writes_documents_in_order(tmp_path, corpus, tokenizer, capsys):
    out = tmp_path / "out"
    assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1) == 0
    assert pickle.loads((out / "corpus.pkl").read_bytes()) == ids_of(documents(120))
    assert sorted(path.name for path in out.iterdir()) == ["corpus.pkl", "corpus.pkl.made-from", "tokenizer.json"]
    said = capsys.readouterr().err
    assert "text: 1 files" in said and "120 documents, 120 kept" in said and "MB/s, 0 s left" in said
    assert Tokenizer.from_folder(out).encode("x y") == small_tokenizer().encode("x y")


def test_a_folder_of_another_vocabulary_is_left_as_it_is(tmp_path, corpus, tokenizer, capsys):
    out = tmp_path / "out"
    assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    tokenizer.write_text(train_bpe(documents(300, seed=9), 300).to_json(), encoding="utf-8")
    assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1) == 2
    assert f"{out}: holds data of another vocabulary" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, corpus, tokenizer):
    outputs = []
    for workers in (1, 2, 3):
        out = tmp_path / f"out{workers}"
        assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", workers) == 0
        outputs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outputs[0] == outputs[1] == outputs[2]


def test_mmap_format(tmp_path, corpus, tokenizer):
    out = tmp_path / "out"
    command = ["--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1, "--format", "mmap"]
    assert run(*command, "--validation-fraction", 0.2) == 0
    found = []
    for name in ("corpus", "corpus-valid"):
        written = MmapCorpus(out / f"{name}_text_document")
        assert written.dtype == np.uint16
        found += [written.document(number).tolist() for number in range(len(written))]
    assert sorted(found) == sorted(ids_of(documents(120)))
    assert len(list(out.iterdir())) == 6


def test_tfrecord_format(tmp_path, corpus, tokenizer, capsys):
    out = tmp_path / "out"
    command = ["--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1, "--format", "tfrecord"]
    assert run(*command, "--seq-length", 9, "--stride", 8, "--num-output", 2, "--validation-fraction", 0.1) == 0
    assert "articles in records" in capsys.readouterr().err
    files = sorted(path.name for path in (out / "corpus").iterdir())
    assert files == [f"corpus-0000{i}-of-00002.{ending}" for i in range(2) for ending in ("index", "tfrecord")]
    documents_of = ids_of(documents(120))
    for folder in ("corpus", "corpus-valid"):
        records = TFRecordFiles(sorted((out / folder).glob("*.tfrecord")), 8, 400)
        assert len(records)
        for row in records.read(np.arange(len(records))).tolist():
            ids = [i for i in row if i >= 0]
            assert any(ids == document[at : at + len(ids)] for document in documents_of for at in range(len(document)))


@pytest.mark.parametrize("workers", [1, 2])
def test_goes_on_where_it_stopped(tmp_path, corpus, tokenizer, monkeypatch, workers):
    """The disk is full after some pieces; what they gave is not made again."""
    out = tmp_path / "out"
    command = ["--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", workers]

    original = assembly.Progress.add
    seen = []

    def full(self, part, there_already):
        seen.append(there_already)
        original(self, part, there_already)
        if len(seen) == 8:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(assembly.Progress, "add", full)
    assert run(*command) == 2
    assert not (out / "corpus.pkl").exists()
    (folder,) = out.glob(".corpus.pkl.parts-*")
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(made) >= 8
    monkeypatch.setattr(assembly.Progress, "add", lambda self, part, old: (seen.append(old), original(self, part, old)))
    seen.clear()
    damaged = folder / sorted(made)[2]
    damaged.write_bytes(damaged.read_bytes()[:-7])  # as a crash of the machine may leave it
    assert run(*command) == 0
    assert seen[:8] == [True, True, False, True, True, True, True, True] and not all(seen)
    assert pickle.loads((out / "corpus.pkl").read_bytes()) == ids_of(documents(120))
    assert sorted(path.name for path in out.iterdir()) == ["corpus.pkl", "corpus.pkl.made-from", "tokenizer.json"]


def test_the_rate_of_a_resumed_run_is_of_what_it_makes_itself(monkeypatch):
    """Nothing is said of a rate while there is none: it was 0.0 MB/s, and 0 s left."""
    now = [100.0]
    monkeypatch.setattr(assembly.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = assembly.Progress(12_000_000, stream)
    part = types.SimpleNamespace(counts={"documents": 5, "broken": 0, "size": 4_000_000})
    now[0] += 3.0
    progress.add(part, there_already=True)
    progress.show()
    now[0] += 4.0
    progress.add(part, there_already=False)
    progress.show()
    first, second = stream.getvalue().splitlines()
    assert first == "5 documents, 0 kept, 0 tokens, 4.0 of 12.0 MB (4.0 by an earlier start)"
    assert second == first.replace("5", "10", 1).replace(" 4.0 of", " 8.0 of") + ", 1.0 MB/s, 4 s left"


@pytest.mark.skipif(sys.version_info < (3, 9), reason="the pool's own thread has another name")
def test_workers_that_the_same_signal_killed_leave_no_traceback(tmp_path, corpus, tokenizer, monkeypatch):
    """A scheduler's SIGTERM ends the workers too; the pool learns of it when its owner has let go of what waits."""
    let_go, failures, pools = threading.Event(), [], []
    pool_class, manager = concurrent.futures.ProcessPoolExecutor, concurrent.futures.process._ExecutorManagerThread
    shutdown, broken = pool_class.shutdown, manager.terminate_broken
    monkeypatch.setattr(pool_class, "shutdown", lambda *args, **kwargs: (let_go.set(), shutdown(*args, **kwargs)))
    monkeypatch.setattr(manager, "terminate_broken", lambda *args: (let_go.wait(), broken(*args)))
    monkeypatch.setattr(threading, "excepthook", failures.append)
    worker_pool, submit = assembly.worker_pool, pool_class.submit

    def pool_of_one(_workers, *args):
        pools.append(worker_pool(1, *args))
        return pools[0]

    def first_only(pool, function, *args):  # the others are still to do when the signal comes
        first = not pool._pending_work_items and not pool._queue_count
        return submit(pool, function, *args) if first else submit(pool, time.sleep, 600)

    monkeypatch.setattr(assembly, "worker_pool", pool_of_one)
    monkeypatch.setattr(pool_class, "submit", first_only)

    def end(*_):
        for process in pools[0]._processes.values():
            process.terminate()
        raise KeyboardInterrupt

    monkeypatch.setattr(assembly.Progress, "add", end)
    assert run("--input", corpus, "--output", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 2) == 130
    assert not failures


def test_other_input_or_flags_start_anew(corpus):
    source = open_source("text", [corpus])[0]
    keys = {source.key("{}", Recipe()), source.key("{ }", Recipe()), source.key("{}", Recipe(min_length=5))}
    os.utime(str(corpus), ns=(1, 1))
    keys.add(source.key("{}", Recipe()))
    assert len(keys) == 4


def start(*arguments, **options):
    code = (
        "import sys, corpora.pieces, data.prepare; corpora.pieces.PIECE_BYTES = 1 << 16; sys.exit(data.prepare.main())"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=str(ROOT), stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def children(pid):
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listing.stdout.split()]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_then_finished(tmp_path, tokenizer, ending):
    """Ctrl-C and a scheduler's SIGTERM reach the whole group, SIGKILL the parent alone: no process is left, and the
    next run goes on."""
    path = tmp_path / "big.txt"
    path.write_text("\n".join(documents(40_000)), encoding="utf-8")
    out = tmp_path / "out"
    command = ["--input", path, "--output", out, "--tokenizer", tokenizer, "--workers", 2]
    process = start(*command)
    while not list(out.glob(".corpus.pkl.parts-*/*.npz")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    workers = children(process.pid)
    assert workers
    if ending == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, ending)
    said = process.communicate(timeout=300)[1]
    if process.returncode == 0:
        pytest.skip("it was faster than the signal")
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[ending]
    assert "Traceback" not in said
    if ending != signal.SIGKILL:
        name = "Ctrl-C" if ending == signal.SIGINT else "SIGTERM"
        told = rf"data\.prepare: {name}: interrupted; \d+ parts of the corpus are done and kept in {out}/\.corpus\S*; "
        assert re.fullmatch(told + "the same command goes on", said.splitlines()[-1]), said
        left = {path.name for path in out.iterdir() if "parts-" not in path.name}
        assert left == {"corpus.pkl.made-from"}
    deadline = time.monotonic() + 200
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)
    assert not (out / "corpus.pkl").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob(".corpus.pkl.parts-*/*.npz")}
    assert kept
    process = start(*command, "--min-length", 3)  # would make others, and remove these
    assert "parts-" in (said := process.communicate(timeout=300)[1]) and "--overwrite" in said
    assert process.returncode == 2 and all(path.exists() for path in kept)
    process = start(*command)
    assert process.communicate(timeout=300)[1].count("wrote") == 1
    assert sorted(path.name for path in out.iterdir()) == ["corpus.pkl", "corpus.pkl.made-from", "tokenizer.json"]
    assert len(pickle.loads((out / "corpus.pkl").read_bytes())) == 40_000


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_two_at_once_are_refused(tmp_path, corpus, tokenizer, capsys):
    out = tmp_path / "out"
    source, everything = open_source("text", [corpus])[0], Selector("none", 0, 0, 0)
    held = assembly.Assembly(source, small_tokenizer(), Recipe(), everything, out, "corpus.pkl", 1, sys.stderr)
    with held:
        assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1) == 2
        assert "another process" in capsys.readouterr().err
    assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1) == 0


@pytest.mark.parametrize("limit", [2_000, 12_000])
def test_full_disk(tmp_path, corpus, tokenizer, limit):
    """A limit on the size of files stands for the disk: of the parts, and of the output alone."""
    out = tmp_path / "out"
    code = "import sys, corpora.pieces, data.prepare; corpora.pieces.PIECE_BYTES = 4000; sys.exit(data.prepare.main())"
    command = [
        sys.executable,
        "-c",
        code,
        "--input",
        corpus,
        "--output",
        out,
        "--tokenizer",
        tokenizer,
        "--workers",
        "1",
    ]
    done = subprocess.run(
        list(map(str, command)),
        cwd=str(ROOT),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr and str(out) in done.stderr and "Traceback" not in done.stderr
    left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert left == ({"corpus.pkl.made-from"} if list(out.glob(".corpus.pkl.parts-*/*.npz")) else set())
    assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1) == 0


def test_wikitexts_own_validation_set(tmp_path, tokenizer):
    for part, articles in (("train", WIKITEXT), ("valid", WIKITEXT[:1])):
        (tmp_path / f"wiki.{part}.tokens").write_text("".join(articles), encoding="utf-8")
    out = tmp_path / "out"
    assert run("--input", tmp_path, "--output", out, "--tokenizer", tokenizer, "--workers", 1, "--name", "w2") == 0
    names = ["tokenizer.json", "w2-valid.pkl", "w2.pkl", "w2.pkl.made-from"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert pickle.loads((out / "w2-valid.pkl").read_bytes()) == ids_of([WIKITEXT[0].strip("\n")])


def test_detokenized_wikitext(tmp_path, tokenizer, capsys):
    text = " = Du Fu = \n \n Du Fu ( 712 – 770 ) was a well @-@ known poet , they said . \n"
    (tmp_path / "wiki.train.tokens").write_text(text, encoding="utf-8")
    command = ["--input", tmp_path / "wiki.train.tokens", "--tokenizer", tokenizer, "--workers", 1, "--detokenize"]
    assert run(*command, "--output", tmp_path / "out") == 0
    (ids,) = pickle.loads((tmp_path / "out" / "corpus.pkl").read_bytes())
    assert "Du Fu (712 – 770) was a well-known poet, they said." in small_tokenizer().decode(ids)
    assert run(*command, "--output", tmp_path / "out", "--source", "text") == 2
    assert "--detokenize is for WikiText" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_validation_split_by_document(tmp_path, corpus, tokenizer, workers):
    texts = documents(120)
    corpus.write_text("\n".join(texts + texts[:30]), encoding="utf-8")
    out = tmp_path / "out"
    command = ["--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", workers]
    assert run(*command, "--validation-fraction", 0.2) == 0
    train, valid = (pickle.loads((out / name).read_bytes()) for name in ("corpus.pkl", "corpus-valid.pkl"))
    assert 10 < len(valid) < 50
    assert sorted(train + valid) == sorted(ids_of(texts + texts[:30]))
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in valid}, "equal texts are on one side"
    assert run(*command, "--validation-fraction", 0.2, "--seed", 5, "--overwrite") == 0
    assert pickle.loads((out / "corpus-valid.pkl").read_bytes()) != valid


# ---- Duplicates --------------------------------------------------------------------------------------------------


def test_exact_duplicates(tmp_path, corpus, tokenizer, capsys):
    texts = list(dict.fromkeys(documents(60)))
    corpus.write_text("\n".join(texts + [texts[3], texts[3] + " ", texts[5]]), encoding="utf-8")
    out = tmp_path / "out"
    assert (
        run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 2, "--deduplicate", "exact") == 0
    )
    assert pickle.loads((out / "corpus.pkl").read_bytes()) == ids_of(texts + [texts[3] + " "])
    assert "dropped 2 exact duplicates" in capsys.readouterr().err


def test_near_duplicates(tmp_path, corpus, tokenizer, capsys):
    generator = random.Random(2)
    vocabulary = ["".join(generator.choices("abcdefghij", k=5)) for _ in range(400)]
    texts = [" ".join(generator.choices(vocabulary, k=150)) for _ in range(12)]
    similar = texts[4].replace(texts[4].split()[70], "changed", 1)
    corpus.write_text("\n".join([*texts, similar, texts[0]]), encoding="utf-8")
    out = tmp_path / "out"
    command = ["--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1]
    assert run(*command, "--deduplicate", "near") == 0
    assert pickle.loads((out / "corpus.pkl").read_bytes()) == ids_of(texts)
    assert "1 exact duplicates, 1 near ones" in capsys.readouterr().err
    # The pair has a similarity of 0.979: near enough to 0.98 to be found, as 95 % of those at a threshold have to be.
    assert run(*command, "--deduplicate", "near", "--near-threshold", 0.995, "--overwrite") == 0
    assert len(pickle.loads((out / "corpus.pkl").read_bytes())) == 13


def pair_of_similarity(generator, similarity, length=900):
    """Two documents of ids; changing one id in 12 or so changes five of their 5-grams."""
    first = generator.integers(0, 50_000, length)
    windows = length - 4
    changes = round(windows * (1 - similarity) / (1 + similarity) / 5)
    second = first.copy()
    at = np.linspace(4, length - 5, changes).astype(int)
    second[at] += 1 + generator.integers(0, 100, changes)
    of_first, of_second = ({tuple(ids[i : i + 5].tolist()) for i in range(windows)} for ids in (first, second))
    assert abs(len(of_first & of_second) / len(of_first | of_second) - similarity) < 0.005
    return first, second


@pytest.mark.parametrize(
    ("threshold", "similarity", "least", "most"),
    [
        (0.8, 0.8, 0.95, 1),
        (0.8, 0.85, 0.99, 1),
        (0.8, 0.7, 0, 0.1),
        (0.8, 0.5, 0, 0),
        (0.5, 0.5, 0.95, 1),
        (0.5, 0.3, 0, 0),
    ],
)
def test_near_duplicates_are_found_from_the_threshold_on(threshold, similarity, least, most):
    generator, pairs, found = np.random.default_rng(3), 150, 0
    for _ in range(pairs):
        documents = pair_of_similarity(generator, similarity)
        signatures = minhash_signatures(np.concatenate(documents), np.array([len(ids) for ids in documents]))
        index = SimilarityIndex(threshold)
        assert index.add(signatures[0])
        found += not index.add(signatures[1])
    assert least <= found / pairs <= most


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3, 0.5, 0.65, 0.8, 0.9, 0.99, 0.9999])
def test_bands_and_estimate_together_miss_less_than_5_percent_at_the_threshold(threshold):
    count, rows = bands(threshold)
    assert count * rows <= PERMUTATIONS
    draws = np.random.default_rng(0).random((4000, PERMUTATIONS)) < threshold  # the rows that agree, pair by pair
    shares_a_band = draws[:, : count * rows].reshape(4000, count, rows).all(axis=2).any(axis=1)
    is_found = shares_a_band & (draws.sum(axis=1) >= least_agreement(threshold))
    assert is_found.mean() >= 0.95
    assert PERMUTATIONS * threshold - least_agreement(threshold) <= 3 * (PERMUTATIONS * threshold) ** 0.5 + 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=20), max_size=12))
def test_digest_set_is_a_set(groups):
    digests, known = DigestSet(), set()
    for group in groups:
        new = digests.add(np.array(group, dtype=np.uint64))
        for value, is_new in zip(group, new.tolist()):
            assert is_new == (value not in known)
            known.add(value)


def test_selector_draws_a_share():
    part = Part(
        np.empty(0),
        np.ones(20_000),
        np.random.default_rng(0).integers(0, 1 << 63, 20_000).astype(np.uint64),
        np.empty(0),
        {},
    )
    verdicts = Selector("none", 0.0, 0.05, 1).verdicts(part)
    assert set(verdicts.tolist()) == {TRAIN, VALIDATION} and DROPPED == 0
    assert 800 < (verdicts == VALIDATION).sum() < 1200


def test_ftfy(tmp_path, corpus, tokenizer):
    corpus.write_text("The Mona Lisa doesnâ€™t have eyebrows, schÃ¶n and so on", encoding="utf-8")
    out = tmp_path / "out"
    assert run("--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1, "--fix-text") == 0
    assert pickle.loads((out / "corpus.pkl").read_bytes()) == ids_of(
        ["The Mona Lisa doesn’t have eyebrows, schön and so on"]
    )


@pytest.mark.parametrize(
    ("broken", "fixed"),
    [
        ("a < b\nAT&amp;T &lt;3", "a < b\nAT&T <3"),  # line by line: a < does not end the repair
        ("<p>AT&amp;T</p>\nR&amp;D", "<p>AT&amp;T</p>\nR&D"),  # a line of HTML keeps its entities
        ("“Curly” ‘quotes’ — ﬁne ﬂow ＬＯＵＤ ①", None),  # style, not damage
        ("e\u0301 \u00c5 \u212b", None),
        ("sch\u00c3\u00b6n\r\ncaf\u00c3\u00a9", "schön\r\ncafé"),
        ("bell\u0007 and \u0085", "bell and …"),
    ],
)
def test_ftfy_repairs_what_is_broken_and_nothing_else(broken, fixed):
    assert parts._cleaner(Recipe(fix_text=True))(broken) == (broken if fixed is None else fixed)


@pytest.mark.parametrize("library, flags", [("ftfy", ["--fix-text"]), ("datasketch", ["--deduplicate", "near"])])
def test_a_missing_library_is_named(tmp_path, corpus, tokenizer, capsys, monkeypatch, library, flags):
    monkeypatch.setitem(sys.modules, library, None)
    assert run("--input", corpus, "--output", tmp_path / "out", "--tokenizer", tokenizer, *flags) == 2
    said = capsys.readouterr().err
    assert f"{library} is not installed; run: pip install -r requirements-corpora.txt" in said
    assert not (tmp_path / "out").exists()


def test_a_part_comes_back_from_its_file(tmp_path):
    piece = pieces.Piece("lines", "f", (), content="\n".join(documents(20)).encode() + b"\nbad \xff\n\nx", size=7)
    recipe, encoder = Recipe(min_length=3, digests=True), Encoder(small_tokenizer())
    make_part(piece, recipe, encoder, tmp_path / "p.npz")
    again, part = read_part(tmp_path / "p.npz"), encode(piece, recipe, encoder)
    for name in ("ids", "lengths", "digests"):
        np.testing.assert_array_equal(getattr(again, name), getattr(part, name))
    assert again.counts == part.counts == {"documents": 22, "short": 1, "broken": 1, "size": 7}
    assert part.ids.dtype == np.uint16
    (tmp_path / "p.npz").write_bytes(b"PK")
    assert read_part(tmp_path / "p.npz") is None


# ---- Bad input ---------------------------------------------------------------------------------------------------


BAD = [
    ("a.jsonl", b'{"text": "good"}\n{"text": 1}\n', [], "a.jsonl, line 2: no text under 'text'"),
    ("a.jsonl", b'{"text": "good"}\n\n{"body"\n', [], "a.jsonl, line 3: not JSON"),
    ("a.jsonl", b'{"body": "good"}\n', [], "--json-key"),
    ("a.jsonl", b"[1]\n", [], "line 1"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "good one"}\n' * 99, mtime=0)[:-20], [], "a.jsonl.gz: damaged"),
    ("a.txt.xz", lzma.compress(b"some text\n" * 99)[:-9], [], "a.txt.xz: damaged"),
    ("a.txt.bz2", b"no bz2", [], "a.txt.bz2: damaged"),
    ("a.tar.xz", lzma.compress(b"no tar" * 999), [], "a.tar.xz: damaged"),
    ("a.tar", tar_of([("a.xz", b"no archive")]), [], "member a.xz: damaged"),
    ("wikitext-2-v1.zip", b"PK no zip", [], "wikitext-2-v1.zip: damaged"),
    ("a.txt", b"", [], "empty"),
    ("a.txt", b"\n\n\n", [], "0 documents, none"),
    ("a.txt", b"few\n", ["--min-length", "50"], "1 documents, none of --min-length 50"),
    ("a.dat", b"x", [], "--source"),
    ("a.txt", b"x y z\nx y\n", ["--validation-fraction", "0.000001"], "raise --validation-fraction"),
    ("a.txt", b"x y z\n", ["--validation-fraction", "0.000001"], "--documents passage, or hold out samples"),
    ("a.txt", b"x y z\n", ["--validation-fraction", "0.999999"], "--documents passage, or hold out samples"),
    ("a.txt", b"x y z\n", ["--validation-fraction", "1"], "--validation-fraction must be in"),
    ("a.txt", b"x y z\n", ["--workers", "-1"], "--workers must be 0 or more"),
    ("a.txt", b"x y z\n", ["--name", "../x"], "--name"),
    ("a.txt", b"x y z\n", ["--tokenizer", "/nowhere"], "/nowhere: no tokenizer there"),
    ("a.txt", b"x y z\n", ["--vocab-file", "v.json"], "--merge-file"),
]  # fmt: skip


def refused(tmp_path, capsys, tokenizer, name, content, flags):
    path, out = tmp_path / name, tmp_path / "out"
    path.write_bytes(content)
    if "--tokenizer" not in flags and "--vocab-file" not in flags:
        flags = ["--tokenizer", tokenizer, *flags]
    if "--workers" not in flags:
        flags = ["--workers", 1, *flags]
    assert run("--input", path, "--output", out, *flags) == 2
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("case", range(len(BAD)), ids=[f"{row[0]}-{i}" for i, row in enumerate(BAD)])
def test_bad_input(tmp_path, capsys, tokenizer, case):
    name, content, flags, message = BAD[case]
    assert message in refused(tmp_path, capsys, tokenizer, name, content, flags)


def test_bad_input_found_by_a_worker(tmp_path, capsys, tokenizer, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 15)
    name, content, _, message = BAD[0]
    assert message in refused(tmp_path, capsys, tokenizer, name, content, ["--workers", 2])


def test_a_folder_takes_what_is_made_of_the_files_in_it(tmp_path, tokenizer, capsys):
    """The second start took the tokenizer.json that the first had left for JSON lines."""
    (tmp_path / "a.json").write_text('{"text": "the river"}\n', encoding="utf-8")
    for _ in range(2):
        assert run("--input", tmp_path, "--output", tmp_path, "--tokenizer", tokenizer, "--workers", 1) == 0
        assert "jsonl: 1 files" in capsys.readouterr().err
    assert pickle.loads((tmp_path / "corpus.pkl").read_bytes()) == ids_of(["the river"])


def test_a_file_that_is_named_twice_is_refused(tmp_path, tokenizer, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the river"}\n', encoding="utf-8")
    for inputs in ([path, path], [tmp_path, path]):
        assert run("--input", *inputs, "--output", tmp_path / "out", "--tokenizer", tokenizer) == 2
        assert f"--input: names {path} twice, and its text would count twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_no_empty_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert run("--input", tmp_path / "pipe", "--source", "text", "--output", tmp_path / "out") == 2
    assert "pipe: a pipe or a device, and no file; write what comes from it into one" in capsys.readouterr().err


def test_missing_input(tmp_path, capsys):
    assert run("--input", tmp_path / "none.txt", "--output", tmp_path / "out") == 2
    assert "no such file" in capsys.readouterr().err
    assert run("--input", tmp_path, "--source", "jsonl", "--output", tmp_path / "out") == 2
    assert "no jsonl in this folder" in capsys.readouterr().err
    (tmp_path / "f").write_text("x", encoding="utf-8")
    assert run("--input", tmp_path, "--output", tmp_path / "f") == 2
    assert "not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "flags"),
    [
        ("pkl", "--train-path {}/corpus.pkl"),
        ("mmap", "--train-path dynamic --data-prefix {}/corpus_text_document"),
        ("tfrecord", "--train-path tfrecord --tfrecord-path '{}/corpus/*.tfrecord' --max-len 8"),
    ],
)
def test_the_last_line_is_the_command_that_trains_on_it(tmp_path, corpus, tokenizer, capsys, monkeypatch, form, flags):
    """From any folder: its paths are whole, though those of this command are not."""
    monkeypatch.chdir(tmp_path)
    command = ["--input", corpus, "--output", "out", "--tokenizer", tokenizer, "--workers", 1, "--format", form]
    assert run(*command, "--seq-length", 9, "--num-output", 1) == 0
    train = f"train on it: {sys.executable} {ROOT / 'train_gpt2.py'}"
    assert capsys.readouterr().err.splitlines()[-1] == f"{train} {flags.format(tmp_path / 'out')}"


@pytest.mark.parametrize("folder", [True, False])
def test_that_command_names_the_model_of_the_tokenizer(tmp_path, corpus, tokenizer, capsys, folder):
    config = tokenizer.with_name("config.json")
    config.write_text("{}", encoding="utf-8")
    named = tokenizer.parent if folder else tokenizer
    assert run("--input", corpus, "--output", tmp_path / "out", "--tokenizer", named, "--workers", 1) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"/corpus.pkl --config {config}")


@pytest.mark.parametrize("form", prepare_flags.FORMATS)
def test_folders_that_an_error_leaves_empty_go_again(tmp_path, tokenizer, form):
    (tmp_path / "a.txt").write_text("too short\n", encoding="utf-8")
    command = ["--input", tmp_path / "a.txt", "--tokenizer", tokenizer, "--workers", 1, "--format", form]
    command += ["--min-length", 99]
    assert run(*command, "--output", tmp_path / "new" / "deep") == 2
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    assert run(*command, "--output", tmp_path / "mine") == 2
    assert list((tmp_path / "mine").iterdir()) == [], "a folder that was there stays"


def test_placeholders_are_dropped_where_there_are_any(tmp_path, corpus, tokenizer, capsys):
    (tmp_path / "wiki" / "AA").mkdir(parents=True)
    text = '<doc id="1" url="u" title="T">\nT\n\nthe river, formula_1, and\nformula_2\n\n</doc>\n'
    (tmp_path / "wiki" / "AA" / "wiki_00").write_text(text, encoding="utf-8")
    common = ["--output", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 1]
    for flags, kept in (([], "the river, formula_1, and formula_2"), (["--drop-placeholders"], "the river, and")):
        assert run("--input", tmp_path / "wiki", *common, *flags, "--overwrite") == 0
        assert pickle.loads((tmp_path / "out" / "corpus.pkl").read_bytes()) == ids_of([kept])
    assert run("--input", corpus, *common, "--drop-placeholders") == 2
    assert "--drop-placeholders is for extracted Wikipedia, and this is text" in capsys.readouterr().err


# ---- What is there already ---------------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", prepare_flags.FORMATS)
def test_another_corpus_does_not_take_the_place_of_one_that_is_there(tmp_path, corpus, tokenizer, capsys, form):
    """It replaced it without a word. The same command may be given again, with any number of workers."""
    out, other = tmp_path / "out", tmp_path / "other.txt"
    other.write_text("\n".join(documents(150, seed=3)), encoding="utf-8")
    command = ["--output", out, "--tokenizer", tokenizer, "--format", form]
    command += ["--seq-length", 9, "--num-output", 3] if form == "tfrecord" else []
    command += ["--seq-length", 9] if form == "webdataset" else []
    first = [*command, "--input", corpus, "--validation-fraction", 0.2]
    assert run(*first, "--workers", 1) == 0
    before = contents(out)
    assert run(*first, "--workers", 2) == 0
    assert contents(out) == before
    remedy = "name another --output or --name, or replace it with --overwrite"
    for flags, told in (
        (["--input", other, "--validation-fraction", 0.2], f"made with --input {corpus} (now {other}); {remedy}"),
        (["--input", corpus], f"made with --validation-fraction 0.2 (now without); {remedy}"),
        (["--input", corpus, "--validation-fraction", 0.2, "--fix-text"], f"made without --fix-text; {remedy}"),
        (
            ["--input", corpus, "--validation-fraction", 0.3, "--min-length", 5],
            f"made without --min-length 5 and with --validation-fraction 0.2 (now 0.3); {remedy}",
        ),
    ):
        capsys.readouterr()
        assert run(*command, "--workers", 1, *flags) == 2
        said = capsys.readouterr().err
        assert "is there already, " in said and told in said, said
        assert contents(out) == before
    assert run(*command, "--workers", 1, "--input", other, "--overwrite") == 0
    assert contents(out) != before
    assert not [name for name in contents(out) if "-valid" in str(name)], "the validation set was of the corpus before"
    assert run(*command, "--workers", 1, "--input", other) == 0, "now it is the corpus of these flags"


def test_a_corpus_of_unknown_origin_is_kept(tmp_path, corpus, tokenizer, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "corpus-valid.pkl").write_bytes(b"mine")
    command = ["--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1]
    assert run(*command, "--validation-first", 5) == 2
    assert "corpus-valid.pkl: is there already, and nothing says what it was made from" in capsys.readouterr().err
    assert list(contents(out).values()) == [b"mine"]
    (out / "corpus.pkl.made-from").write_bytes(b'{"made from": 7, "\xff"')  # nor does this
    assert run(*command, "--validation-first", 5) == 2
    assert run(*command) == 0, "a corpus without a validation set beside it is no question"
    assert (out / "corpus-valid.pkl").read_bytes() == b"mine"
    assert run(*command, "--validation-first", 5, "--overwrite") == 0


def test_text_that_has_changed_is_prepared_again(tmp_path, corpus, tokenizer):
    command = ["--input", corpus, "--output", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 1]
    assert run(*command) == 0
    corpus.write_text("\n".join(documents(7)), encoding="utf-8")
    assert run(*command) == 0
    assert pickle.loads((tmp_path / "out" / "corpus.pkl").read_bytes()) == ids_of(documents(7))


def test_an_error_between_corpus_and_validation_set_is_no_obstacle(tmp_path, corpus, tokenizer, monkeypatch):
    """The training file has its name already, and the record says that the same command is at it."""
    out = tmp_path / "out"
    command = ["--input", corpus, "--output", out, "--tokenizer", tokenizer, "--workers", 1]
    original = assembly.Assembly.validation

    def full(self):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(assembly.Assembly, "validation", full)
    assert run(*command, "--validation-first", 5) == 2
    assert (out / "corpus.pkl").exists()
    assert run(*command) == 2, "but not another one"
    monkeypatch.setattr(assembly.Assembly, "validation", original)
    assert run(*command, "--validation-first", 5) == 0
    # In the place of another one: what was there is named after an error only as long as it is there.
    made = (out / "corpus.pkl.made-from").read_bytes()
    (tmp_path / "short.txt").write_text("the\n" * 9, encoding="utf-8")
    short = ["--input", tmp_path / "short.txt", *command[2:], "--overwrite", "--min-length", 99]
    assert run(*short) == 2
    assert (out / "corpus.pkl.made-from").read_bytes() == made
    monkeypatch.setattr(assembly.Assembly, "validation", full)
    assert run(*command, "--validation-first", 9, "--overwrite") == 2
    assert run(*command, "--validation-first", 7) == 2, "half of it is of 9"
    monkeypatch.setattr(assembly.Assembly, "validation", original)
    for first in (5, 9, 9):
        assert run(*command, "--validation-first", first) == (0 if first == 5 else 2)


# ---- Flags without effect ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--stride", 64], "--stride 64 has no effect: it is for --format tfrecord with --records windows"),
        (["--stride", 64, "--format", "mmap"], "--stride 64 has no effect"),
        (["--stride", 64, "--format", "webdataset", "--seq-length", 9], "--stride 64 has no effect"),
        (
            ["--stride", 64, "--format", "tfrecord", "--records", "stream", "--num-output", 1, "--seq-length", 9],
            "--stride 64 has no effect",
        ),
        (["--seq-length", 65], "--seq-length 65 has no effect: it is for --format tfrecord or webdataset"),
        (["--seq-length", 65, "--format", "mmap"], "--seq-length 65 has no effect"),
        (["--records", "windows"], "--records windows has no effect: it is for --format tfrecord or webdataset"),
        (["--features", "input_ids"], "--features input_ids has no effect: it is for --format tfrecord"),
        (["--num-output", 2], "--num-output 2 has no effect: it is for --format tfrecord"),
        (["--num-output", 2, "--format", "webdataset", "--seq-length", 9], "--num-output 2 has no effect"),
        (["--near-threshold", 0.5], "--near-threshold 0.5 has no effect: it is for --deduplicate near"),
        (["--near-threshold", 0.5, "--deduplicate", "exact"], "--near-threshold 0.5 has no effect"),
        (["--seed", 7], "--seed 7 has no effect: it is for --validation-fraction"),
        (["--seed", 7, "--validation-first", 3], "--seed 7 has no effect"),
    ],
)
def test_flags_without_effect_are_told(tmp_path, corpus, tokenizer, capsys, flags, told):
    """And do not make a corpus another one."""
    command = ["--input", corpus, "--output", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 1]
    assert run(*command, *flags) == 0
    assert f"note: {told}" in capsys.readouterr().err
    assert run(*command, *flags[2:]) == 0
    assert "note: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--json-key", "text"], "--json-key text is for JSON lines, and this is text"),
        (["--tokenizer-type", 1], "no gpt2-vocab.json and gpt2-merges.txt in it, which --tokenizer-type 1 reads"),
        (["--vocab-file", "v", "--merge-file", "m"], "--tokenizer contradicts --vocab-file and --merge-file"),
        (["--features", "inputs-labels"], "--features inputs-labels is for --format tfrecord, not pkl"),
    ],
)
def test_flags_whose_neglect_would_give_another_corpus_are_refused(tmp_path, corpus, tokenizer, capsys, flags, told):
    command = ["--input", corpus, "--output", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 1]
    assert run(*command, *flags) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "unit"), [("jsonl", "line"), ("openwebtext", "file"), ("wikipedia", "article")])
def test_documents_that_end_where_the_source_says_are_not_cut_otherwise(tmp_path, tokenizer, capsys, kind, unit):
    """--documents was passed over in silence."""
    folder = tmp_path / "in"
    (folder / "AA").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "the river"}\n', encoding="utf-8")
    (folder / "a.tar").write_bytes(tar_of([("a.txt", b"the river")]))
    (folder / "AA" / "wiki_00").write_text('<doc id="1" title="T">\nT\n\nthe river\n\n</doc>\n', encoding="utf-8")
    command = ["--input", folder, "--source", kind, "--output", tmp_path / "out", "--tokenizer", tokenizer]
    assert run(*command, "--workers", 1, "--documents", "passage") == 2
    assert f"--documents passage: of {kind} they are {unit}" in capsys.readouterr().err
    assert run(*command, "--workers", 1, "--documents", unit) == 0
    assert run(*command, "--workers", 1) == 0, "it says what is so anyway"


def test_placeholders_of_json_lines_that_are_no_wikipedia_are_not_dropped(tmp_path, tokenizer, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "formula_1 is it"}\n', encoding="utf-8")
    command = ["--input", tmp_path / "a.jsonl", "--output", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 1]
    assert run(*command, "--drop-placeholders") == 2
    assert "--drop-placeholders is for extracted Wikipedia, and this is jsonl" in capsys.readouterr().err
    assert run(*command) == 0


def test_the_tokenizer_type_of_no_tokenizer_is_told(tmp_path, corpus, capsys):
    command = ["--input", corpus, "--output", tmp_path / "out", "--workers", 1]
    assert run(*command, "--tokenizer-type", 1) == 0
    told = "note: --tokenizer-type 1 has no effect: it says which files of --tokenizer are read"
    assert told in capsys.readouterr().err
