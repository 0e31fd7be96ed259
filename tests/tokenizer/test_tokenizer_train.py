"""A vocabulary of one's own: tokenizer.train, the corpus made with it, and the checkpoints trained on that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import flags, run_here, write_config, write_corpus

from corpora import pieces
from data.loading.corpus_tokenizer import corpus_tokenizer
from data.prepare import main as prepare
from tokenizer import Tokenizer, open_tokenizer, train_bpe
from tokenizer import train as tokenizer_train
from tokenizer.train import main

TEXTS = [f"the cat number {i} sat on the mat, naïve 😀" for i in range(60)]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def test_the_command_learns_what_the_function_learns(tmp_path, text, capsys):
    assert run("--input", text, "--vocab-size", 300, "--output", tmp_path / "mine") == 0
    assert (tmp_path / "mine" / "tokenizer.json").read_text(encoding="utf-8") == train_bpe(TEXTS, 300).to_json()
    assert "trained a byte-level BPE of 300 entries" in capsys.readouterr().err
    assert run("--input", text, "--vocab-size", 5000, "--output", tmp_path / "other.json") == 0
    assert "words for" in capsys.readouterr().err
    assert open_tokenizer(0, tmp_path / "mine").vocab_size == 300
    assert Tokenizer.from_folder(tmp_path / "other.json").vocab_size < 5000


def test_of_a_large_corpus_every_nth_piece(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    monkeypatch.setattr(tokenizer_train, "LEARNING_BYTES", text.stat().st_size // 3 + 1)
    assert run("--input", text, "--vocab-size", 290, "--output", tmp_path) == 0
    assert "every 3th piece" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", "256"], "--vocab-size must be 257 or more"),
        (["--input", "none.txt"], "none.txt: no such file"),
        (["--output", "corpus.txt"], "neither a folder nor a name ending in .json"),
    ],
)
def test_refusals(tmp_path, text, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("--input", text, "--output", "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_starts_quickly_as_a_module_and_as_a_script():
    """No torch, and no warning about how it was started."""
    root = Path(__file__).resolve().parents[2]
    code = "import runpy, sys; sys.argv = ['x', '--help']\ntry: runpy.run_module({!r}, run_name='__main__')\n"
    code += "except SystemExit: assert 'torch' not in sys.modules"
    for module in ("tokenizer.train", "data.prepare", "data.baseline", "data.wikipedia_preprocess"):
        command = [sys.executable, "-W", "error", "-c", code.format(module)]
        done = subprocess.run(command, cwd=str(root), capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["pkl", "mmap", "tfrecord"])
def test_the_tokenizer_goes_from_the_corpus_into_the_checkpoint(tmp_path, text, kind):
    """And the checkpoint with it is what a later run starts from."""
    assert run("--input", text, "--vocab-size", 280, "--output", tmp_path / "mine") == 0
    command = ["--input", text, "--tokenizer", tmp_path / "mine", "--output", tmp_path / "out", "--format", kind]
    command += ["--seq-length", 17, "--num-output", 1, "--workers", 1]
    assert prepare([str(word) for word in command]) == 0
    write_config(tmp_path, vocab_size=280, real_vocab_size=280)
    data = {
        "pkl": {"train_path": tmp_path / "out" / "corpus.pkl"},
        "mmap": {"train_path": "dynamic", "data_prefix": tmp_path / "out" / "corpus_text_document"},
        "tfrecord": {"train_path": "tfrecord", "tfrecord_path": tmp_path / "out" / "corpus" / "*.tfrecord"},
    }[kind]
    save = tmp_path / "save"
    asked = {"save_model_path": save, "training_steps": 1, "device_iterations": 1, "gradient_accumulation": 2}
    done = run_here(flags(tmp_path, **asked, **data))
    assert done.status == 0, done.err
    assert Tokenizer.from_folder(save / "step_1").encode(TEXTS[0]) == train_bpe(TEXTS, 280).encode(TEXTS[0])
    if kind == "pkl":
        again = {**asked, "save_model_path": tmp_path / "again", "pretrained_checkpoint": save / "step_1"}
        assert run_here(flags(tmp_path, **again)).status == 0
        assert (tmp_path / "again" / "step_1" / "tokenizer.json").read_bytes() == (
            save / "step_1" / "tokenizer.json"
        ).read_bytes()


def test_a_corpus_without_a_tokenizer(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.pkl")
    assert corpus_tokenizer(str(corpus), (), "", "") is None
    assert corpus_tokenizer("generated", (), "", "") is None
    write_config(tmp_path)
    done = run_here(flags(tmp_path, train_path=corpus, stride=16, save_model_path=tmp_path / "save", training_steps=1))
    assert done.status == 0, done.err
    assert not (tmp_path / "save" / "step_1" / "tokenizer.json").exists()


def test_hugging_face_reads_a_trained_vocabulary(tmp_path, text):
    from transformers import PreTrainedTokenizerFast

    assert run("--input", text, "--vocab-size", 300, "--output", tmp_path / "t.json") == 0
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t.json"))
    ours = Tokenizer.from_folder(tmp_path / "t.json")
    for one in [*TEXTS[:3], "other words, 数学 \n\n x"]:
        assert fast.encode(one) == ours.encode(one) == np.asarray(ours.encode_documents([one], False)[0]).tolist()
    assert json.loads(ours.to_json())["added_tokens"][0]["id"] == ours.eot_id == 0
