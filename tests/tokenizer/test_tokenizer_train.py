"""A vocabulary of one's own: tokenizer.train, the corpus made with it, and the checkpoints trained on that."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import ROOT, environment, flags, run_here, write_config, write_corpus

from corpora import pieces
from data.loading.corpus_tokenizer import corpus_tokenizer
from data.prepare import main as prepare
from model.config import GPT2Config
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


def test_a_config_json_that_fits(tmp_path, text, capsys):
    """GPT-2 small's dimensions, those of --config, or those that were there; the vocabulary is the tokenizer's."""
    out, mine = tmp_path / "mine", write_config(tmp_path)
    for flags_, size, width in (([], 300, 768), (["--config", mine], 290, 16), ([], 280, 16)):
        assert run("--input", text, "--vocab-size", size, "--output", out, *flags_, "--overwrite") == 0
        assert f"{sys.executable} {ROOT / 'train_gpt2.py'} --config {out / 'config.json'}" in capsys.readouterr().err
        config = GPT2Config.from_json(out / "config.json")
        assert (config.vocab_size, config.real_vocab_size, config.n_embd) == (size, size, width)
        assert config.eos_token_id == config.bos_token_id == open_tokenizer(0, out).eot_id == 0
    assert run("--input", text, "--vocab-size", 300, "--output", tmp_path / "a.json") == 0
    assert "vocab_size 300 and eos_token_id 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine", "mine.json"])
def test_another_vocabulary_does_not_take_the_place_of_one_that_is_there(tmp_path, text, capsys, name):
    """Corpora made with it could not be read any more. The same command may be given again."""
    out, other = tmp_path / name, tmp_path / "other.txt"
    other.write_text("\n".join(TEXTS[:20]), encoding="utf-8")
    path = out / "tokenizer.json" if name == "mine" else out
    command = ["--output", out, "--vocab-size"]
    assert run("--input", text, *command, 290) == 0
    before = path.read_bytes()
    for flags_, told in (
        (["--input", text, *command, 280], "with --vocab-size 290 (now 280)"),
        (["--input", other, *command, 290], f"with --input {text} (now {other})"),
        (["--input", text, *command, 290, "--first-documents", 9], "without --first-documents 9"),
    ):
        assert run(*flags_) == 2
        told = f"{path}: is there already, made {told}; name another --output, or replace it with --overwrite"
        assert told in capsys.readouterr().err and path.read_bytes() == before
    assert run("--input", text, *command, 290) == 0
    assert run("--input", other, *command, 280, "--overwrite") == 0 and path.read_bytes() != before


def test_a_key_of_what_has_none_is_refused(tmp_path, text, capsys):
    assert run("--input", text, "--output", tmp_path / "mine", "--json-key", "body") == 2
    assert "--json-key body is for JSON lines, and this is text" in capsys.readouterr().err


def test_a_padding_of_another_vocabulary_does_not_go_along(tmp_path, text):
    """tfchat's is 0: "!" in GPT-2's vocabulary, and what ends texts in a new one."""
    source = ROOT / "config" / "config_tfchat_preln.json"
    assert run("--input", text, "--vocab-size", 300, "--config", source, "--output", tmp_path / "mine") == 0
    config = GPT2Config.from_json(tmp_path / "mine" / "config.json")
    assert config.eos_token_id == 0 and config.padding_id is None and config.scale_embedding


def test_of_a_large_corpus_every_nth_piece(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    monkeypatch.setattr(tokenizer_train, "LEARNING_BYTES", text.stat().st_size // 3 + 1)
    assert run("--input", text, "--vocab-size", 290, "--output", tmp_path) == 0
    assert "every 3th piece" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags_", "documents"),
    [
        (["--first-documents", 7], 7),
        (["--first-documents", 10**6], None),
        (["--first-bytes", sum(len(each.encode()) for each in TEXTS[:5]) + 3], 5),
        (["--first-bytes", 1], 1),
        (["--first-share", 1], None),
    ],
)
def test_the_beginning_of_a_corpus(tmp_path, text, monkeypatch, capsys, flags_, documents):
    """As a recipe has it: the words of the first part, all of them, and of nothing behind it."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    monkeypatch.setattr(tokenizer_train, "LEARNING_BYTES", 200)
    some = TEXTS[:documents]
    assert run("--input", text, "--vocab-size", 290, "--output", tmp_path / "a.json", *flags_) == 0
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == train_bpe(some, 290).to_json()
    size = sum(len(each.encode()) for each in some)
    assert f"on the first {len(some):,} documents, {size:,} bytes of text" in capsys.readouterr().err


def test_a_share_of_the_input(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    assert run("--input", text, "--vocab-size", 270, "--output", tmp_path / "a.json", "--first-share", 0.4) == 0
    size = int(re.search(r"documents, ([\d,]+) bytes", capsys.readouterr().err)[1].replace(",", ""))
    whole = text.stat().st_size
    longest = max(len(each.encode()) for each in TEXTS) + 1
    assert 0.4 * whole - longest <= size <= 0.4 * whole + 100 + longest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--first-documents", "0"], "--first-documents must be 1 or more, not 0"),
        (["--first-share", "1.5"], "--first-share must be above 0 and at most 1, not 1.5"),
        (["--first-bytes", "many"], "--first-bytes: 'many' must be a whole number"),
        (["--first-bytes", "9", "--first-share", "0.5"], "--first-bytes and --first-share: each says how much"),
        (["--vocab-size", "256"], "--vocab-size must be 257 or more"),
        (["--input", "none.txt"], "none.txt: no such file"),
        (["--output", "corpus.txt"], "neither a folder nor a name ending in .json"),
        (["--output", "model"], "holds the weights of a model"),
        (["--output", "a.json", "--config", "tiny.json"], "into a folder only"),
        (["--config", "tiny.json"], "tiny.json: cannot be read"),
    ],
)
def test_refusals(tmp_path, text, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
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


def test_documents_end_as_the_tokenizer_says(tmp_path, text):
    """The end of a text is another token: it is at the end of documents, and beside them it is said which it is."""
    assert run("--input", text, "--vocab-size", 280, "--output", tmp_path / "mine") == 0
    content = json.loads((tmp_path / "mine" / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": 280, "content": "<|end|>"})
    (tmp_path / "mine" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "mine" / "config.json").unlink()
    (tmp_path / "mine" / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    for kind, workers in (("pkl", 1), ("mmap", 2)):
        out = tmp_path / kind
        command = ["--input", text, "--tokenizer", tmp_path / "mine", "--output", out, "--format", kind]
        assert prepare([str(word) for word in [*command, "--workers", workers]]) == 0
        found = corpus_tokenizer(str(out / "corpus.pkl"), (), "", "")
        assert found.end_id() == Tokenizer.from_folder(out).eot_id == 280 and found.rows == 281
        ids = np.fromfile(out / "corpus_text_document.bin", np.uint16) if kind == "mmap" else None
        ends = [280] * 60 if ids is None else ids[ids == 280].tolist()
        assert len(ends) == 60
    from data.articles.corpus import open_corpus

    corpus = open_corpus(tmp_path / "pkl" / "corpus.pkl", 281)
    assert (corpus.tokens[corpus.offsets[1:] - 1] == 280).all() and len(corpus) == 60


# The texts have no end, so that native code is reading them when the signal comes, in threads that outlive main(): a
# process of its own ends them.
ENDLESS = """
import os, sys
from tokenizer import train

NUMBER = int(sys.argv.pop(1))

def endless(*_):
    yield "a first text"
    os.kill(os.getpid(), NUMBER)
    while True:
        yield "and another"

train.DocumentReader = endless
sys.exit(train.main())
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_learns_ends_it_and_leaves_nothing(tmp_path, number, status):
    """Native code reads the texts: it is in a thread, so that the main one hears the signal."""
    (tmp_path / "text.txt").write_text("text\n", encoding="utf-8")
    words = [str(int(number)), "--input", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, *words], cwd=str(ROOT), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    assert "interrupted, nothing written; the same command begins again" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_what_reading_the_texts_raises_is_raised():
    def texts():
        yield "a text"
        raise ValueError("the second text is none")

    with pytest.raises(ValueError, match="the second text is none"):
        train_bpe(texts(), 300)
