"""From a Wikipedia dump to the corpus .pkl: the two scripts and the preprocessing."""

from __future__ import annotations

import bz2
import http.server
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from corpora.wikipedia import ArticleReader, wiki_files
from data.wikipedia_preprocess import OUTPUT_NAME
from tokenizer import EOT, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
PREPROCESS = ROOT / "data" / "wikipedia_preprocess.py"

PAGE = """  <page>
    <title>{title}</title>
    <ns>0</ns>
    <id>{number}</id>
    <revision>
      <id>{number}00</id>
      <text xml:space="preserve">{text}</text>
    </revision>
  </page>
"""


def dump_of(pages):
    body = "".join(PAGE.format(title=title, number=i + 1, text=text) for i, (title, text) in enumerate(pages))
    site = "  <siteinfo><base>https://en.wikipedia.org/wiki/Main_Page</base>\n  <namespaces>\n    "
    site += '<namespace key="10" case="first-letter">Template</namespace>\n  </namespaces>\n  </siteinfo>\n'
    return "<mediawiki>\n" + site + body + "</mediawiki>\n"


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env=dict(os.environ, PYTHON=sys.executable, **environment),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def download(*arguments, **environment):
    return run([ROOT / "data" / "wikipedia_download.sh", *arguments], **environment)


def extract(*arguments):
    return run([ROOT / "data" / "wikipedia_extract.sh", *arguments])


def preprocess(*arguments):
    return run([sys.executable, PREPROCESS, *arguments])


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def extracted(tmp_path):
    """A folder as WikiExtractor leaves it, with what the text rule has to cope with."""
    folder = tmp_path / "extracted"
    words = " ".join(["word"] * 12)
    files = {
        "AB/wiki_00": doc("Last", "The last article " + words),
        "AA/wiki_10": doc("Third", "Third article\u2028same line " + words),
        "AA/wiki_09": doc("Second", "tab\tkept \r\n\n   \n  indented " + EOT + " " + words + "\t \n"),
        "AA/wiki_00": "stray line\n" + doc("First", "First line " + words + "\n\nSecond line.") + doc("Short", "Tiny."),
        "AA/notes.txt": doc("No", words),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode("utf-8"))
    texts = [
        "First line " + words + " Second line.",
        "Tiny.",
        "tab\tkept   indented " + EOT + " " + words,
        "Third article\u2028same line " + words,
        "The last article " + words,
    ]
    return folder, texts


def doc(title, body):
    return f'<doc id="7" url="u" title="{title}">\n{title}\n\n{body}\n\n</doc>\n'


def test_article_texts(extracted):
    folder, texts = extracted
    reader = ArticleReader(wiki_files(folder))
    assert list(reader) == texts
    assert reader.bytes_read == sum(path.stat().st_size for path in wiki_files(folder))
    assert reader.broken_lines == 0


def test_preprocess_writes_the_reference_format(extracted, tmp_path):
    folder, texts = extracted
    out = tmp_path / "deep" / "out"
    done = preprocess("--input-file-path", folder, "--output-file-path", out)
    assert done.returncode == 0, done.stderr
    gpt2 = Tokenizer.gpt2()
    articles = pickle.loads((out / OUTPUT_NAME).read_bytes())
    assert articles == [[*gpt2.encode(text), 50256] for text in texts if text != "Tiny."]
    assert "5 documents, 4 kept" in done.stderr
    names = ["tokenizer.json", OUTPUT_NAME, f"{OUTPUT_NAME}.made-from", "write_into_tfrecord.py"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert Tokenizer.from_folder(out).encode(texts[0]) == articles[0][:-1]


@pytest.mark.parametrize(("least", "kept"), [(4, 5), (5, 4)])
def test_min_length_counts_the_end_of_text(extracted, tmp_path, least, kept):
    folder, _ = extracted
    assert len(Tokenizer.gpt2().encode("Tiny.")) == 3
    done = preprocess("--input_file_path", folder, "--output_file_path", tmp_path, "--min-length", least)
    assert done.returncode == 0, done.stderr
    assert len(pickle.loads((tmp_path / OUTPUT_NAME).read_bytes())) == kept


def test_use_bpe_trains_and_uses_its_own_vocabulary(extracted, tmp_path):
    folder, texts = extracted
    outputs = []
    for name in "ab":
        out = tmp_path / name
        assert preprocess("--input-file-path", folder, "--output-file-path", out, "--use-bpe").returncode == 0
        outputs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outputs[0] == outputs[1]
    tokenizer = Tokenizer.from_folder(tmp_path / "a")
    assert tokenizer.vocab_size < 1000
    articles = pickle.loads(outputs[0][OUTPUT_NAME])
    assert articles == [
        ids for ids in ([*tokenizer.encode(text), tokenizer.eot_id] for text in texts) if len(ids) >= 10
    ]


def test_broken_utf8_is_replaced_and_counted(tmp_path):
    (tmp_path / "AA").mkdir()
    (tmp_path / "AA" / "wiki_00").write_bytes(doc("T", "good\nXX bad").encode().replace(b"XX", b"\xff\xe2\x82"))
    reader = ArticleReader(wiki_files(tmp_path))
    assert list(reader) == ["good \ufffd\ufffd bad"]
    assert reader.broken_lines == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no files wiki_NN"),
        (doc("A", "b").replace("</doc>", ""), "wiki_00, line 1: .*no </doc>"),
        (doc("A", "b").replace("</doc>", "") + doc("C", "d"), "line 1: .*no </doc>"),
        ("no articles\n", "0 documents, none"),
        (doc("A", "b"), "1 documents, none of --min-length 10"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path, content, message):
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "AA").mkdir(parents=True)
    if content is not None:
        (source / "AA" / "wiki_00").write_text(content, encoding="utf-8")
    done = preprocess("--input-file-path", source, "--output-file-path", out)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert not out.exists()


def test_bad_flags(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for arguments, message in [
        (["--input-file-path", tmp_path / "none", "--output-file-path", tmp_path / "o"], "no such folder"),
        (["--input-file-path", tmp_path, "--output-file-path", tmp_path / "file"], "not a folder"),
        (["--input-file-path", tmp_path, "--output-file-path", tmp_path, "--min-length", "-1"], "--min-length"),
        (["--input-file-path", tmp_path], "--output-file-path"),
    ]:
        done = preprocess(*arguments)
        assert done.returncode == 2
        assert message in done.stderr


def test_an_interrupted_run_keeps_the_previous_corpus(extracted, tmp_path):
    folder, _ = extracted
    out = tmp_path / "out"
    assert preprocess("--input-file-path", folder, "--output-file-path", out).returncode == 0
    before = (out / OUTPUT_NAME).read_bytes()
    (folder / "AC").mkdir()
    (folder / "AC" / "wiki_00").write_text("<doc id=1>\ncut off\n", encoding="utf-8")
    assert preprocess("--input-file-path", folder, "--output-file-path", out).returncode == 2
    assert (out / OUTPUT_NAME).read_bytes() == before
    assert len(list(out.iterdir())) == 4


def test_another_corpus_does_not_take_the_place_of_one_that_is_there(extracted, tmp_path):
    folder, _ = extracted
    out = tmp_path / "out"
    command = ("--input-file-path", folder, "--output-file-path", out)
    assert preprocess(*command).returncode == 0
    before = (out / OUTPUT_NAME).read_bytes()
    done = preprocess(*command, "--min-length", 2)
    assert (
        done.returncode == 2 and f"{OUTPUT_NAME}: is there already, made with --min-length 10 (now 2); " in done.stderr
    )
    assert (out / OUTPUT_NAME).read_bytes() == before
    assert preprocess(*command).returncode == 0
    assert preprocess(*command, "--min-length", 2, "--overwrite").returncode == 0
    assert (out / OUTPUT_NAME).read_bytes() != before


@pytest.mark.parametrize("first", [(), ("--use-bpe",)])
def test_another_vocabulary_is_refused_before_one_is_learnt(extracted, tmp_path, first):
    """--overwrite was what the refusal named, and refused in turn when the vocabulary had been learnt."""
    folder, _ = extracted
    command = ("--input-file-path", folder, "--output-file-path", tmp_path)
    assert preprocess(*command, *first).returncode == 0
    for further in ((), ("--overwrite",)):
        done = preprocess(*command, *further, *([] if first else ["--use-bpe"]))
        assert done.returncode == 2 and "holds data of another vocabulary" in done.stderr
        assert "name another folder" in done.stderr and "trained a" not in done.stderr
    assert preprocess(*command, *first).returncode == 0


@pytest.mark.parametrize("suffix", [".xml", ".xml.bz2"])
def test_extract(tmp_path, suffix):
    pages = [("One", "'''One''' is the [[first]] number.\n\nIt is odd."), ("Two", "Two &amp; more."), ("R", "Three.")]
    content = dump_of(pages).encode("utf-8")
    dump, out = tmp_path / ("wiki dump" + suffix), tmp_path / "out folder"
    dump.write_bytes(content if suffix == ".xml" else bz2.compress(content))
    done = extract(dump, out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [".extracted-from", "AA"]
    texts = list(ArticleReader(wiki_files(out)))
    assert texts[0] == "One is the first number. It is odd."
    assert len(texts) == 3
    written = (out / "AA" / "wiki_00").stat().st_mtime_ns
    assert "nothing to do" in extract(dump, out).stdout
    assert (out / "AA" / "wiki_00").stat().st_mtime_ns == written
    (tmp_path / "elsewhere").mkdir()
    moved = dump.rename(tmp_path / "elsewhere" / dump.name)
    assert "nothing to do" in extract(moved, out).stdout
    other = tmp_path / "other.xml"
    other.write_bytes(content)
    os.utime(str(other), (0, 0))
    refused = extract(other, out)
    assert refused.returncode == 2 and f"holds the text of another dump ({dump.name}, " in refused.stderr
    os.utime(str(moved), (2**33, 2**33))  # newer than the text
    assert extract(moved, out).returncode == 2


def test_extract_refuses(tmp_path):
    (tmp_path / "empty.xml").write_text("", encoding="utf-8")
    (tmp_path / "dump.txt").write_text("x", encoding="utf-8")
    (tmp_path / "none.xml").write_text("<mediawiki>\n</mediawiki>\n", encoding="utf-8")
    for arguments, message in [
        ([], "usage"),
        ([tmp_path / "missing.xml", tmp_path / "out"], "no such file"),
        ([tmp_path / "empty.xml", tmp_path / "out"], "is empty"),
        ([tmp_path / "dump.txt", tmp_path / "out"], "expected a name ending"),
        ([tmp_path / "none.xml", tmp_path / "out"], "no article"),
    ]:
        done = extract(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_download_bad_usage(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for arguments in [[], ["--sample"], [tmp_path, "--smaple"], [tmp_path, tmp_path], [tmp_path / "file", "--sample"]]:
        done = download(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert "wikipedia_download.sh:" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_download_skips_what_is_there(tmp_path):
    (tmp_path / "wikidump.xml").write_text("kept", encoding="utf-8")
    assert "nothing to do" in download(tmp_path, "--sample").stdout
    assert (tmp_path / "wikidump.xml").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize(("there", "flags"), [("the sample", ()), ("the whole dump", ("--sample",))])
def test_download_does_not_take_one_for_the_other(tmp_path, there, flags):
    (tmp_path / "wikidump.xml").write_text("<mediawiki/>")
    (tmp_path / ".wikidump-is").write_text(there + "\n")
    done = download(tmp_path, *flags)
    assert done.returncode == 2 and f"is there already and is {there}, not" in done.stderr
    assert (tmp_path / "wikidump.xml").read_text() == "<mediawiki/>"


def test_sample_with_other_content_is_refused(tmp_path):
    """A stand-in for pip that delivers a wheel with another file in the excerpt's place."""
    member = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with zipfile.ZipFile(str(tmp_path / "fake.whl"), "w") as wheel:
        wheel.writestr(member, bz2.compress(b"<mediawiki/>"))
    script = (
        'if [ "$2" = pip ]; then while [ "$1" != --dest ]; do shift; done; cp "{}" "$2/"; else exec "{}" "$@"; fi\n'
    )
    fake = program(tmp_path / "bin" / "python", script.format(tmp_path / "fake.whl", sys.executable))
    out = tmp_path / "out"
    command = ["env", f"PYTHON={fake}", ROOT / "data" / "wikipedia_download.sh", out, "--sample"]
    done = run(command)
    assert done.returncode == 1
    assert "wrong sha256" in done.stderr
    assert list(out.iterdir()) == []


def stand_in_for_wget(folder, script):
    """`script` runs in place of a download: $f is the file to write. --spider gives the size in $size."""
    head = 'for a in "$@"; do case $a in --output-document=*) f=${a#*=} ;; --spider) spider=1 ;; esac; done\n'
    head += f'size=$(cat "{folder}/size"); [ -z "$spider" ] || {{ echo "  Content-Length: $size" >&2; exit 0; }}\n'
    program(folder / "bin" / "wget", head + script)
    return "{}:{}".format(folder / "bin", os.environ["PATH"])


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "dump.bz2"
    path.write_bytes(bz2.compress(os.urandom(5000)))
    (tmp_path / "size").write_text(str(path.stat().st_size), encoding="utf-8")
    return path


def test_full_dump_goes_on_after_an_interruption(tmp_path, packed):
    """A stand-in for wget that delivers half of the dump, fails, and later goes on from what is there."""
    out, half = tmp_path / "out", packed.stat().st_size // 2
    script = f'if [ -s "$f" ]; then tail -c +{half + 1} "{packed}" >>"$f"; '
    script += f'else head -c {half} "{packed}" >"$f"; exit 4; fi\n'
    path = stand_in_for_wget(tmp_path, script)
    first = download(out, PATH=path)
    assert first.returncode == 1
    assert "the same command goes on" in first.stderr and str(out) in first.stdout
    name = "enwiki-latest-pages-articles.xml.bz2"
    assert sorted(file.name for file in out.iterdir()) == [name + ".part", name + ".part.size"]
    assert download(out, PATH=path).returncode == 0
    assert (out / "wikidump.xml").read_bytes() == bz2.decompress(packed.read_bytes())
    assert sorted(file.name for file in out.iterdir()) == [".wikidump-is", name, "wikidump.xml"]


def test_a_dump_of_another_size_is_refused(tmp_path, packed):
    """Too short although the download said it was done, and a newer dump in place of the one that was begun."""
    out = tmp_path / "out"
    path = stand_in_for_wget(tmp_path, f'head -c 99 "{packed}" >"$f"\n')
    done = download(out, PATH=path)
    assert done.returncode == 1
    assert f"has 99 bytes, the dump has {packed.stat().st_size}" in done.stderr
    (tmp_path / "size").write_text("123456", encoding="utf-8")
    done = download(out, PATH=path)
    assert done.returncode == 2 and "another dump" in done.stderr
    assert not (out / "wikidump.xml").exists()


@pytest.mark.parametrize("fetch", ["wget", "curl"])
def test_from_a_server(tmp_path, packed, fetch):
    """The real programs go on in the middle of a file, from a server on this machine."""
    if shutil.which(fetch) is None:
        pytest.skip(f"no {fetch} here")
    content, ranges = packed.read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(200, content, body=False)

        def do_GET(self):
            ranges.append(self.headers.get("Range"))
            start = int(ranges[-1].split("=")[1].split("-")[0]) if ranges[-1] else 0
            self.answer(206 if start else 200, content[start:], start)

        def answer(self, status, data, start=0, body=True):
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    out = tmp_path / "out"
    out.mkdir()
    (out / "dump.xml.bz2.part").write_bytes(content[:2000])
    (out / "dump.xml.bz2.part.size").write_text(str(len(content)), encoding="utf-8")
    tools = tmp_path / "tools"  # a PATH without the other program
    tools.mkdir()
    for name in (fetch, *"bash sh dirname basename mkdir cat wc tr awk mv rm".split()):
        (tools / name).symlink_to(shutil.which(name))
    try:
        url = f"http://127.0.0.1:{server.server_port}/dump.xml.bz2"
        done = download(out, PATH=str(tools), DUMP_URL=url)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert ranges == ["bytes=2000-"]
    assert (out / "wikidump.xml").read_bytes() == bz2.decompress(content)


def test_ctrl_c_ends_the_extraction(tmp_path):
    """A stand-in for WikiExtractor whose processes wait for ever and do not care about Ctrl-C."""
    dump, out = tmp_path / "dump.xml", tmp_path / "out"
    dump.write_text(dump_of([("One", "x")]), encoding="utf-8")
    started = tmp_path / "started"
    script = 'case "$*" in *WikiExtractor*) trap "" INT; sleep 600 & echo $$ $! >"{}"; wait; sleep 600 ;; esac\n'
    fake = program(tmp_path / "bin" / "python", script.format(started))
    process = subprocess.Popen(
        [str(ROOT / "data" / "wikipedia_extract.sh"), str(dump), str(out)],
        env=dict(os.environ, PYTHON=str(fake)),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not started.exists() or not started.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert "interrupted, nothing written" in said
    assert list(out.iterdir()) == []
    for pid in started.read_text().split():
        assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("fails", [True, False])
def test_a_process_of_the_extractor_that_fails_ends_the_others(tmp_path, fails):
    """As on a full disk: WikiExtractor's first process then waits for ever. For one that is done it waits in order."""
    (tmp_path / "wikiextractor").mkdir()
    (tmp_path / "wikiextractor" / "__init__.py").touch()
    error = 'raise OSError(28, "No space left on device")' if fails else "pass"
    (tmp_path / "wikiextractor" / "WikiExtractor.py").write_text(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', '{error}'])\n"
        f"time.sleep({600 if fails else 4})\n"
    )
    (tmp_path / "dump.xml").write_text("<mediawiki>")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHON": sys.executable, "EXTRACT_PATIENCE": "1"}
    words = [str(ROOT / "data" / "wikipedia_extract.sh"), str(tmp_path / "dump.xml"), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    if fails:
        assert done.returncode == 1 and "No space left on device" in done.stderr
        assert f"has failed (see above) on {tmp_path / 'dump.xml'}; nothing written" in done.stderr
    else:
        assert done.returncode == 2 and "holds no article" in done.stderr, done.stderr
    assert list((tmp_path / "out").iterdir()) == []
