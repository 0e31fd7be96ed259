"""`python get_wikitext.py 103_raw` and `bash benchmark.sh`, as the documents that give them write them."""

import functools
import http.server
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import tiny_checkpoint
import transformers
import warm_process

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    "train": " \n = A river = \n \n The river flows to the sea . \n It is wet . \n \n = = Course = = \n",
    "valid": " \n = A town = \n The town has a market . \n",
    "test": " \n = A hill = \n The hill is high . \n",
}


def archive(path: Path, folder: str = "wikitext-103-raw", ending: str = "raw") -> bytes:
    with zipfile.ZipFile(str(path), "w") as packed:
        for part, text in TEXTS.items():
            packed.writestr(f"{folder}/wiki.{part}.{ending}", text)
    return path.read_bytes()


def get(folder: Path, *words: str, mirror: str = "file:///nowhere") -> subprocess.CompletedProcess:
    """`python get_wikitext.py …` in this folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "get_wikitext.py"), *words],
        cwd=folder,
        env={**os.environ, "MIRROR": mirror, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


def expected(folder: Path, part: str) -> list:
    """Each line by itself, by transformers, blank ones left out."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return [tokenizer.encode(line) for line in TEXTS[part].split("\n") if line.strip()]


def test_wikitext_from_an_archive_that_is_there(tmp_path):
    archive(tmp_path / "wikitext-103-raw-v1.zip")
    done = get(tmp_path, "103_raw")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "wikitext-103-raw"
    for part, text in TEXTS.items():
        assert (folder / f"wiki.{part}.raw").read_text(encoding="utf-8") == text
    prepared = folder / "prepared"
    for name, part in (("corpus.pkl", "train"), ("corpus-valid.pkl", "valid")):
        with (prepared / name).open("rb") as file:
            assert [list(ids) for ids in pickle.load(file)] == expected(prepared, part)
    assert (tmp_path / "wikitext-103-raw-v1.zip").is_file()  # somebody put it there

    (folder / "wiki.test.raw").write_text("mine\n", encoding="utf-8")
    again = get(tmp_path, "103_raw", "--download-only")
    assert again.returncode == 0 and (folder / "wiki.test.raw").read_text(encoding="utf-8") == "mine\n"


def test_wikitext_prepared_by_an_earlier_version_is_replaced_if_asked_for(tmp_path):
    """Nothing says what such files were made from: the refusal named a flag that this program had not."""
    archive(tmp_path / "wikitext-103-raw-v1.zip")
    corpus = tmp_path / "wikitext-103-raw" / "prepared" / "corpus.pkl"
    corpus.parent.mkdir(parents=True)
    corpus.write_bytes(b"earlier")
    done = get(tmp_path, "103_raw")
    assert done.returncode == 2 and "replace it with --overwrite" in done.stderr
    assert corpus.read_bytes() == b"earlier"
    done = get(tmp_path, "103_raw", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert corpus.read_bytes() != b"earlier" and get(tmp_path, "103_raw").returncode == 0


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_wikitext_from_a_mirror(tmp_path, scheme):
    site, work = tmp_path / "site", tmp_path / "work"
    site.mkdir(), work.mkdir()
    archive(site / "wikitext-2-v1.zip", "wikitext-2", "tokens")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}" if scheme == "http" else site.as_uri()
    try:
        done = get(work, "2", "--download-only", mirror=url)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["wikitext-2"]
    assert (work / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8") == TEXTS["valid"]


def test_what_cannot_be_fetched_is_told_with_what_to_do(tmp_path):
    done = get(tmp_path, "103_raw", mirror=(tmp_path / "no-site").as_uri())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "HINT: fetch wikitext-103-raw-v1.zip elsewhere and put it into" in done.stderr and "MIRROR" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["cut", "no zip", "of something else"])
def test_a_wrong_archive_is_refused_by_name(tmp_path, content):
    path = tmp_path / "wikitext-103-raw-v1.zip"
    if content == "of something else":
        archive(path, "wikitext-2-raw")
    else:
        whole = archive(path)
        path.write_bytes(whole[: len(whole) // 2] if content == "cut" else b"<html>no</html>")
    done = get(tmp_path, "103_raw")
    assert done.returncode == 2 and "wikitext-103-raw-v1.zip: not the published archive" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "wikitext-103-raw").exists()


@pytest.mark.parametrize(
    ("words", "told"), [(["103-raw"], "set: '103-raw' must be one of 103_raw"), ([], "set: is needed, one of 103_raw")]
)
def test_wikitext_by_a_wrong_name(tmp_path, words, told):
    done = get(tmp_path, *words)
    assert done.returncode == 2 and told in done.stderr, done.stderr


def benchmark(*words: str, python: Path = Path(sys.executable), inherited=(), **environment: str):
    """`bash benchmark.sh …`"""
    return subprocess.run(
        ["bash", "benchmark.sh", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python), **environment},
        capture_output=True,
        text=True,
        check=False,
        pass_fds=inherited,
    )


def test_benchmark_is_a_table_of_what_the_evaluation_gives(tmp_path):
    tiny_checkpoint.write(tmp_path)  # 32 learned positions: it cannot see 64
    data, results = tmp_path / "data", tmp_path / "results"
    (data / "text8").write_text("the river flows to the sea " * 20, encoding="utf-8")
    variables = {"CHECKPOINT_PATH": str(tmp_path / "checkpoint"), "CONTEXTS": "16 64", "RESULTS": str(results)}
    python = tmp_path / "python"
    inherited = warm_process.interpreter(python)
    done = benchmark("--data-dir", str(data), python=python, inherited=inherited, **variables)
    assert done.returncode == 1 and "cannot see further" in done.stderr, done.stderr
    rows = [re.split(r" *\| *", line)[1:-1] for line in done.stdout.splitlines()]
    assert rows[0][:4] == ["Context", "enwik8 (BPB)", "text8 (BPC)", "WikiText (PPL)"]
    (found,) = json.loads((results / "TEXT8-16.json").read_text(encoding="utf-8"))["results"]
    assert (found["window"], found["stride"], found["protocol"]) == (16, 16, "bits-per-character-disjoint")
    wiki = json.loads((results / "WIKITEXT103-16.json").read_text(encoding="utf-8"))["results"]
    ppl = {each["protocol"]: f"{each['values']['ppl']:.2f}" for each in wiki}
    text8 = f"{found['values']['bits per character']:.3f}"
    assert rows[2:] == [["16", "-", text8, ppl["token-gpt-star"], ppl["token-joined"]], ["64", "-", "-", "-", "-"]]

    kept = sorted(path.name for path in (tmp_path / "checkpoint" / "evaluations").iterdir())
    assert [name.split(".T16.")[0].split("checkpoint.")[-1] for name in kept] == [
        "TEXT8.bits-per-character-disjoint", "WIKITEXT103.token-gpt-star", "WIKITEXT103.token-joined",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        ("", {}, "no checkpoint given"),
        ("--batch-size 2", {}, "no checkpoint given"),
        ("", {"CHECKPOINT_PATH": "x", "CONTEXTS": "1024 2k"}, "CONTEXTS: 2k is no length in tokens"),
        ("--pretrained_checkpoint x", {"CONTEXTS": "0"}, "CONTEXTS: 0 is no length in tokens"),
        ("--checkpoint-input-dir=x", {"CONTEXTS": "0"}, "CONTEXTS: 0 is no length in tokens"),
    ],
)
def test_benchmark_refuses_what_it_cannot_do(words, variables, told):
    done = benchmark(*words.split(), **{"CHECKPOINT_PATH": "", **variables})
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
