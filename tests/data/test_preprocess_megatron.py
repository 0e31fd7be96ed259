"""data/preprocess_megatron.py: its files against encoding the documents one by one, and the run that reads them."""

from __future__ import annotations

import bz2
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import run_here

from corpora import pieces
from data import preprocess_megatron
from tokenizer import Tokenizer, train_bpe

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the river", "", "a city, naïve 数学", " \n ", "x" * 300, "<|endoftext|> in text", "end\nof file"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A small tokenizer, built in no time, and the path of its file."""
    path = tmp_path_factory.mktemp("small") / "tokenizer.json"
    path.write_text(train_bpe(TEXTS, 300).to_json(), encoding="utf-8")
    return path


def run(*argv: object) -> int:
    return preprocess_megatron.main([str(word) for word in argv])


def read_by_hand(prefix: Path) -> tuple[int, list[list[int]]]:
    """Type code and documents, by the format's description."""
    index, tokens = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    magic, version, code, count, ends = struct.unpack("<9sQBQQ", index[:34])
    assert (magic, version, ends) == (b"MMIDIDX\0\0", 1, count + 1)
    sizes = struct.unpack(f"<{count}i", index[34 : 34 + 4 * count])
    pointers = struct.unpack(f"<{count}q", index[34 + 4 * count : 34 + 12 * count])
    character, width = {8: ("H", 2), 4: ("i", 4)}[code]
    assert not any(pointer % width for pointer in pointers)
    return code, [
        list(struct.unpack_from(f"<{size}{character}", tokens, pointer)) for size, pointer in zip(sizes, pointers)
    ]


def json_lines(path: Path, texts: list[str], key: str = "text") -> Path:
    lines = [json.dumps({"id": number, key: text}) + "\n" for number, text in enumerate(texts)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("append", [True, False])
def test_documents_are_those_encoded_one_by_one(tmp_path, vocabulary, append):
    source = json_lines(tmp_path / "corpus.json", TEXTS)
    flags = ["--append-eod"] if append else []
    out = tmp_path / "made" / "my-gpt2"
    assert run("--input", source, "--output-prefix", out, "--tokenizer", vocabulary, "--workers", 1, *flags) == 0
    tokenizer = Tokenizer.from_folder(vocabulary)
    end = [tokenizer.eot_id] if append else []
    expected = [list(tokenizer.encode(text)) + end for text in TEXTS if text.strip()]
    assert read_by_hand(tmp_path / "made" / "my-gpt2_text_document") == (8, expected)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "my-gpt2_text_document.bin", "my-gpt2_text_document.idx", "my-gpt2_text_document.made-from", "tokenizer.json",
    ]  # fmt: skip


def test_placeholders_of_json_lines_that_are_no_wikipedia_are_not_dropped(tmp_path, vocabulary, capsys):
    """--drop-placeholders was passed over in silence."""
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "formula_1 is it"}\n', encoding="utf-8")
    command = ["--input", source, "--output-prefix", tmp_path / "out" / "c", "--tokenizer", vocabulary]
    assert run(*command, "--drop-placeholders") == 2
    assert "--drop-placeholders is for extracted Wikipedia, and this is jsonl; leave it out" in capsys.readouterr().err


def test_another_corpus_does_not_take_the_place_of_one_that_is_there(tmp_path, vocabulary, capsys):
    """Of several keys none is written if one is there."""
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one", "title": "two"}\n', encoding="utf-8")
    command = ["--input", source, "--output-prefix", tmp_path / "out" / "c", "--tokenizer", vocabulary, "--workers", 1]
    title = ["--json-keys", "text", "title"]
    assert run(*command, "--append-eod") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for keys in ([], title, [title[0], *title[:0:-1]]):
        assert run(*command, *keys) == 2
        told = (
            "c_text_document.bin: is there already, made with --append-eod (now without); name another --output-prefix"
        )
        assert told in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert run(*command, *title, "--append-eod") == 0
    assert run(*command, *title, "--overwrite") == 0


def test_any_number_of_workers_gives_the_same_files(tmp_path, vocabulary, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 999, rng.integers(1, 50)))) for _ in range(3000)]
    source = json_lines(tmp_path / "corpus.jsonl", texts)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10_000)
    made = []
    for workers in (1, 3):
        out = tmp_path / str(workers) / "c"
        assert run("--input", source, "--output-prefix", out, "--tokenizer", vocabulary, "--workers", workers) == 0
        made.append([Path(f"{out}_text_document.{ending}").read_bytes() for ending in ("bin", "idx")])
    assert made[0] == made[1] and len(made[0][0]) > 100_000


def test_keys_compression_and_wikipedia(tmp_path, vocabulary):
    tokenizer = Tokenizer.from_folder(vocabulary)
    packed = tmp_path / "a.jsonl.bz2"
    packed.write_bytes(bz2.compress(b'{"text": "one", "title": "two"}\n{"text": "three", "title": "four"}'))
    out, common = tmp_path / "k" / "c", ["--tokenizer", vocabulary, "--workers", 1, "--append-eod"]
    assert run("--input", packed, "--output_prefix", out, "--json_keys", "text", "title", *common) == 0
    for key, texts in (("text", ["one", "three"]), ("title", ["two", "four"])):
        expected = [list(tokenizer.encode(text)) + [tokenizer.eot_id] for text in texts]
        assert read_by_hand(tmp_path / "k" / f"c_{key}_document")[1] == expected
    (tmp_path / "wiki" / "AA").mkdir(parents=True)
    article = '<doc id="1" url="u" title="T">\nT\n\nThe body.\nSecond line.\n\n</doc>\n'
    (tmp_path / "wiki" / "AA" / "wiki_00").write_text(article, encoding="utf-8")
    assert run("--input", tmp_path / "wiki", "--output-prefix", tmp_path / "w" / "c", *common) == 0
    expected = [list(tokenizer.encode("The body. Second line.")) + [tokenizer.eot_id]]
    assert read_by_hand(tmp_path / "w" / "c_text_document")[1] == expected


def test_bad_input_leaves_nothing(tmp_path, vocabulary, capsys):
    source = tmp_path / "corpus.jsonl"
    out, common = tmp_path / "made" / "c", ["--tokenizer", vocabulary, "--workers", 1]
    for content, message in [
        (b'{"text": "one"}\n{"text": 1}\n', "corpus.jsonl, line 2: no text under 'text'"),
        (b'{"text": "one"}\nplain\n', "corpus.jsonl, line 2: not JSON"),
        (b'{"body": "one"}\n', "line 1: no text under 'text' (found 'body')"),
        (b"", "empty; nothing to prepare"),
        (b'{"text": " "}\n', "none of --min-length 2 ids or more is left"),
    ]:
        source.write_bytes(content)
        assert run("--input", source, "--output-prefix", out, *common) == 2
        assert message in capsys.readouterr().err
        assert not out.parent.exists()
    assert run("--input", tmp_path / "absent", "--output-prefix", out, *common) == 2
    assert "absent: no such file" in capsys.readouterr().err
    source.write_bytes(b'{"text": "one"}\n')
    out.parent.mkdir()
    (out.parent / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert run("--input", source, "--output-prefix", out, *common) == 2
    assert "there is another tokenizer's" in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer.json"]


def test_flags(tmp_path, capsys):
    for flags, message in [
        (["--output-prefix", tmp_path], "a folder; add the beginning"),
        (["--output-prefix", "c", "--workers", -1], "--workers must be 0 or more"),
        (["--output-prefix", "c", "--json-keys", "text", "text"], "names one twice"),
        (["--output-prefix", "c", "--json-keys", "a/b"], "no /"),
        (["--output-prefix", "c", "--vocab-file", "v"], "belong together"),
    ]:
        with pytest.raises(SystemExit) as end:
            run("--input", "x", *flags)
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_as_a_script_and_into_a_run(tmp_path):
    """GPT-2's vocabulary, the command as documented, and the training program on what it wrote."""
    source = json_lines(tmp_path / "my-corpus.json", ["The quick brown fox jumps over the lazy dog. " * 20] * 40)
    command = [sys.executable, str(ROOT / "data" / "preprocess_megatron.py"), "--input", str(source)]
    command += ["--output-prefix", "my-gpt2", "--append-eod", "--workers", "1"]
    made = subprocess.run(command, cwd=str(tmp_path), capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    prefix = tmp_path / "my-gpt2_text_document"
    code, documents = read_by_hand(prefix)
    assert code == 8 and len(documents) == 40 and all(ids[-1] == 50256 for ids in documents)
    train = ["--model", "gpt2-tiny", "--max-len", "32"]
    train += ["--train-path", "dynamic", "--data-prefix", str(prefix), "--training-steps", "1", "--num-workers", "0"]
    train += ["--document-boundaries", "isolated"]
    trained = run_here(train)
    assert trained.status == 0, trained.err
    assert "step 1 of epoch 0, loss: " in trained.out
