"""The programs of tasks/ and run_evaluate.sh, from the flags to the last line, and what they refuse."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import tiny_checkpoint
import torch
import transformers

from model.checkpoint import save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from tasks import evaluation, published, records, report
from tasks.protocols import Result

ROOT = Path(__file__).resolve().parents[2]
WIKI_LINE = r"avg loss: (\S+), ppl: (\S+), adjusted ppl: (\S+), token ratio: (\S+)"
LAMBADA_LINE = r"number correct: (\S+), total examples: (\S+), avg accuracy: (\S+)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("evaluated")
    tiny_checkpoint.write(made)
    return made


def run(folder, *words, task="WIKITEXT103", checkpoint="checkpoint"):
    """(status, stdout, stderr) of the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["--pretrained-checkpoint", str(folder / checkpoint), "--data-dir", str(folder / "data"), *map(str, words)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = evaluation.main("tasks/evaluate.py", task, argv)
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("protocol", ["last-bpe", "last-word"])
def test_one_protocol_of_lambada(folder, tmp_path, protocol):
    words = ("--seq-length", 0, "--protocols", protocol, "--json", tmp_path / "results.json")
    status, out, err = run(folder, *words, task="LAMBADA")
    assert status == 0, err
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [result["protocol"] for result in found["results"]] == [protocol]
    exported = transformers.GPT2LMHeadModel.from_pretrained(str(folder / "checkpoint"))
    assert found["parameters"] == exported.num_parameters(), "padding rows are none of the model's"
    assert bool(re.search(LAMBADA_LINE, out)) == (protocol == "last-bpe"), "the reference's line is about that one"


def test_all_that_is_there_with_the_last_lines_of_the_reference(folder, tmp_path):
    path = tmp_path / "results.json"
    status, out, err = run(
        folder,
        "--all",
        "--seq-length",
        0,
        "--overlapping-eval",
        8,
        "--batch-size",
        4,
        "--json",
        path,
        "--log-interval",
        1,
    )
    assert status == 0, err
    wiki, lambada = out.splitlines()[-2:]
    found = json.loads(path.read_text(encoding="utf-8"))
    results = {(result["task"], result["protocol"]): result for result in found["results"]}
    assert [protocol for task, protocol in results if task == "WIKITEXT103"] == [
        "token",
        "token-joined",
        "word",
        "adjusted",
    ]
    values = results["WIKITEXT103", "adjusted"]["values"]
    shown = re.fullmatch(WIKI_LINE, wiki).groups()
    assert shown[:3] == tuple(f"{values[name]:.4E}" for name in ("loss", "ppl", "adjusted ppl"))
    assert float(shown[3]) == values["token ratio"]
    assert values["ppl"] == pytest.approx(math.exp(values["loss"]))
    values = results["LAMBADA", "last-bpe"]["values"]
    assert re.fullmatch(LAMBADA_LINE, lambada).groups() == (
        f"{values['correct']:.4E}", f"{3:.4E}", f"{values['accuracy']:.4E}",
    )  # fmt: skip
    table = out.splitlines()
    assert re.match(r"task +protocol +published +result$", table[0])
    assert any(re.match(r"task +protocol +text +detokenizer +T +stride +BPE +scored$", line) for line in table)
    assert any(re.match(r"WIKITEXT103 +adjusted +below +loss \d+\.\d+, ppl \d", line) for line in table)
    assert any(re.match(r"WIKITEXT103 +adjusted +wiki.test.tokens +wikitext +32 +8 ", line) for line in table)
    assert any(re.match(r"WIKITEXT103 +word +wiki.test.raw +wikitext +32 ", line) for line in table)
    assert re.search(
        r"^WIKITEXT103 adjusted: \d+ of \d+, [\d,]+ scored tokens/s, \d:\d\d:\d\d left$", err, re.MULTILINE
    )
    assert "\r" not in err
    assert max(map(len, table)) <= 100
    assert "  LAMBADA last-word, ppl: 35.1300 (124M), 15.6000 (355M), 10.8700 (774M), 8.6300 (1.5B); OpenAI" in table
    assert re.search(r"^LAMBADA: 3 of 3, ", err, re.MULTILINE), "passages, however many are scored twice"


def test_any_text(folder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(tiny_checkpoint.TEXT, encoding="utf-8")
    status, out, err = run(folder, "--text", path, "--protocols", "adjusted", "--layers-per-ipu", 1, 1)
    assert status == 0, err
    assert re.search(r"^TEXT +adjusted +none +loss [^\n]*(\n {10,})?bits per byte \d", out, re.MULTILINE)
    assert re.search(r"^TEXT +adjusted +text\.txt +none +32 ", out, re.MULTILINE)
    assert "layer 1 --> IPU 1" in out


def test_ctrl_c_keeps_what_was_scored(folder, tmp_path, monkeypatch):
    from model.scoring import Scorer

    batch, calls = Scorer._run, []

    def interrupted(self, *arguments):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, *arguments)

    monkeypatch.setattr(Scorer, "_run", interrupted)
    path = tmp_path / "partial.json"
    words = ("--protocols", "adjusted", "--overlapping-eval", 4, "--device-iterations", 1, "--json", path)
    status, out, err = run(folder, *words)
    assert status == 130 and "(PARTIAL)" in out and "avg loss" not in out
    (result,) = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert len(calls) == 2 and not result["complete"]
    assert 0 < result["counts"]["scored"] < result["counts"]["bpe"] - 1
    assert result["values"]["ppl"] == pytest.approx(math.exp(result["values"]["loss"]))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_results_that_cannot_be_kept_are_printed_to_the_end(folder, monkeypatch):
    """It said that nothing was started, left the last line out, and of --json and --record tried the first alone."""
    words = ("--protocols", "adjusted", "--overlapping-eval", 4, "--json", "/dev/full", "--record")
    monkeypatch.setattr(records, "folder_of", lambda path: Path("/proc/none"))
    status, out, err = run(folder, *words)
    assert status == 2 and out.splitlines()[-1].startswith("avg loss: ")
    assert "nothing was started" not in err and "Traceback" not in err
    assert "--json /dev/full: cannot be written (No space left on device); the results are those printed above" in err
    assert "--record: /proc/none/evaluations/" in err and Path("/dev/full").is_char_device()


REFUSED = {
    "the window is longer than the model's": (["--seq-length", 33], "--seq-length 33: the checkpoint has 32 positions"),
    "stride": (["--seq-length", 16, "--overlapping-eval", 17], "--overlapping-eval 17: longer than the window of 16"),
    "layers": (["--layers-per-ipu", 1, 2], "--layers-per-ipu 1 2: 3 blocks, but the model has 2"),
    "protocol": (["--protocols", "tokens"], "WIKITEXT103 has no tokens; it has token, token-joined"),
    "no file": (["--valid-data", "nowhere"], "nowhere: cannot be read (No such file or directory); correct the path"),
    "a folder": (["--text", "."], ".: cannot be read (Is a directory); correct the path in --text or --valid-data"),
    "the text itself": (["--text", "a", "--json", "./a"], "--json ./a: is the file that is evaluated"),
    "two texts": (["--text", "a", "--valid-data", "b"], "--text a: stands for --task TEXT --valid-data FILE"),
    "no text": (["--task", "TEXT"], "--task TEXT: name the file with --text FILE"),
    "factor": (["--embedding-serialization-factor", 7], "--embedding-serialization-factor 7: does not divide"),
    "json": (["--json", "nowhere/x.json"], "--json nowhere/x.json: its folder does not exist"),
}  # fmt: skip


def test_a_file_that_cannot_be_written_is_told_first(folder, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))  # root may write all
    status, out, err = run(folder, "--json", "results.json")
    assert status == 2 and "--json results.json: cannot be written; name another file" in err and not out


@pytest.mark.parametrize("words, message", REFUSED.values(), ids=list(REFUSED))
def test_flags_that_do_not_fit(folder, words, message):
    status, out, err = run(folder, *words)
    assert status == 2 and message in err and "Traceback" not in err, err


@pytest.mark.parametrize(
    "task, content, message",
    [
        ("WIKITEXT103", b"one\ntwo\nthr\xe9e\n", "file, line 3: not UTF-8 text (byte 0xe9)"),
        ("WIKITEXT103", b"\n \n", "file: there is no text in it"),
        ("WIKITEXT103", b"PK\0\1", "file: is not text (it has zero bytes)"),
        ("LAMBADA", b'{"text": "a b"}\n\n{"label": "a b"}\n', 'file, line 3: has no "text"'),
        ("LAMBADA", b'{"text": "a b"}\n{"text": 3}\n', 'file, line 2: has no "text"'),
        ("LAMBADA", b'{"text": null}\n', 'file, line 1: has no "text": the value is null; '),
        ("LAMBADA", b'[{"text": "a b"}]\n', "file, line 1: a JSON array begins here"),
        ("LAMBADA", b'{"text": "a b"}\nnot json\n', "file, line 2: not JSON"),
        (
            "LAMBADA",
            b'\n{"text": "a ' + b"qzxjv" * 60 + b'"}\n',
            "file, line 2: its last word has 301 tokens, more than",
        ),
        ("TEXT", "\ufefftext".encode("utf-16-le"), "file: UTF-16 or UTF-32 text, by its byte order mark"),
        ("LAMBADA", b'{"text": "word"}\n', "file, line 1: a single word"),
    ],
)
def test_files_that_cannot_be_used(folder, tmp_path, task, content, message):
    (tmp_path / "file").write_bytes(content)
    status, out, err = run(folder, "--valid-data", tmp_path / "file", task=task)
    assert status == 2 and message in err and "Traceback" not in err, err


def test_checkpoints_that_cannot_be_used(folder, tmp_path):
    status, _, err = run(tmp_path, checkpoint="absent/folder")
    assert status == 2 and "there is no such folder" in err
    other = tmp_path / "bert"
    shutil.copytree(folder / "checkpoint", other)
    (other / "config.json").write_text('{"model_type": "bert", "vocab_size": "many"}', encoding="utf-8")
    status, _, err = run(tmp_path, checkpoint="bert")
    assert status == 2 and str(other) in err and "vocab_size" in err
    without = tmp_path / "no_tokenizer"
    shutil.copytree(folder / "checkpoint", without)
    (without / "tokenizer.json").unlink()  # GPT-2's takes its place
    status, _, err = run(tmp_path, "--data-dir", folder / "data", checkpoint="no_tokenizer")
    assert status == 2 and "the tokenizer 50,257" in err


def test_tokens_that_were_added_count_and_padding_does_not(folder, tmp_path):
    """A checkpoint of the rows that its tokenizer has, and the same one padded without saying so: the same figures."""
    padded = tmp_path / "padded"
    shutil.copytree(folder / "checkpoint", padded)
    tensors = safetensors.torch.load_file(padded / "model.safetensors")
    weight = tensors["transformer.wte.weight"]
    config = json.loads((padded / "config.json").read_text(encoding="utf-8"))
    tensors["transformer.wte.weight"] = torch.cat([weight, torch.ones(5, weight.shape[1])])
    safetensors.torch.save_file(tensors, padded / "model.safetensors", metadata={"format": "pt"})
    del config["real_vocab_size"]
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": len(weight) + 5}), encoding="utf-8")
    expected = run(folder, "--protocols", "token")[1]
    with pytest.warns(UserWarning, match=f"{len(weight)} of {len(weight) + 5} rows of the vocabulary are tokens"):
        status, out, err = run(tmp_path, "--data-dir", folder / "data", "--protocols", "token", checkpoint="padded")
    assert status == 0, err
    figures = r"loss[^\n]*\d+\.\d+[^\n]*"
    assert re.findall(figures, out) == re.findall(figures, expected) != []


def test_no_checkpoint_names_the_one_of_the_demo():
    environment = {**os.environ, "PYTHON": sys.executable, "CHECKPOINT_PATH": ""}
    command = ["bash", str(ROOT / "tasks" / "run_evaluate.sh")]
    done = subprocess.run([*command, "wiki"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "make demo" in done.stderr and "CHECKPOINT_PATH" in done.stderr
    done = subprocess.run([*command, "squad"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "squad is no task" in done.stderr


def script(words, **environment):
    """What run_evaluate.sh does with these."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(ROOT / "tasks" / "run_evaluate.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


def test_the_script_takes_checkpoint_and_data_from_the_environment_and_passes_flags_on(folder):
    data = folder / "data" / "wikitext-103" / "wiki.test.tokens"
    words = ["wiki", "--batch-size", "8", "--protocols", "adjusted"]
    done = script(words, CHECKPOINT_PATH=str(folder / "checkpoint"), VALID_DATA=str(data))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(WIKI_LINE, done.stdout.splitlines()[-1])
    assert " 32 " in done.stdout, "the window is the checkpoint's n_positions"


@pytest.mark.parametrize(
    "word, program, task",
    [
        ("wiki", "evaluate_wiki.py", "--task WIKITEXT103 "),
        ("lmbd", "evaluate_lambada.py", "--task LAMBADA "),
        ("enwik8", "evaluate_wiki.py", "--task ENWIK8 "),
        ("all", "evaluate_wiki.py", "--all "),
        ("lambada", "evaluate_lambada.py", "--task LAMBADA "),
        ("text", "evaluate_wiki.py", "--task TEXT "),
    ],
)
def test_the_words_of_the_script(word, program, task):
    done = script([word, "--fp16", "True"], PYTHON="echo", CHECKPOINT_PATH="a b", VALID_DATA="")
    flags = f"{task}--pretrained-checkpoint a b --seq-length 0 --tokenizer-type 0 --fp16 True"
    assert done.stdout == f"tasks/{program} {flags}\n"


def test_text_without_a_file_is_no_other_task(folder):
    done = script(["text"], CHECKPOINT_PATH=str(folder / "checkpoint"), VALID_DATA="")
    assert done.returncode == 2 and done.stdout == "" and "name the file with --text FILE" in done.stderr


def test_published_figures_stand_beside_their_own_protocol_and_size_only():
    small, tiny = GPT2Config(), GPT2Config(n_layer=2, n_embd=64, n_head=2)
    assert [f.value for _, f in published.comparable("wiki.test.raw", "token-joined", small)] == [29.94]
    assert published.comparable("wiki.test.raw", "token", small) == []
    assert published.comparable("wiki.test.raw", "adjusted", small) == []
    medium = GPT2Config(n_layer=24, n_embd=1024, n_head=16)
    adjusted = published.comparable("wiki.test.tokens", "adjusted", medium)
    assert [(f.source, f.value) for _, f in adjusted] == [
        ("released weights, T 1024", 25.68), ("OpenAI", 26.37), ("Megatron-LM", 19.31),
    ]  # fmt: skip
    assert len(published.comparable("LAMBADA", "last-word", tiny)) == 8, "no size of its own: all are shown"


def test_no_line_of_a_table_is_wider_than_100_columns():
    """Long names of files, every measure at once and figures of all sizes: cut, or gone on with, between measures."""
    values = dict.fromkeys(("loss", "ppl", "adjusted ppl", "word ppl", "bits per byte", "accuracy"), 485165195.4)
    counts, name = {"bpe": 123_456_789_012, "scored": 123_456_789_011}, "a name of more than eighty letters " * 3
    kinds = [("PTB", "adjusted"), ("ENWIK8", "bits-per-byte"), ("TEXT8", "bits-per-character"), ("LAMBADA", "last-bpe")]
    results = [
        Result(task, protocol, [f"folder/{name}.txt"], "penn_treebank", 1024, 1024, counts, values, False, task)
        for task, protocol in kinds
    ]
    lines = report.table(results, GPT2Config(n_layer=2, n_embd=64, n_head=2)).splitlines()
    assert max(map(len, lines)) <= 100 and "\xa0" not in "".join(lines)
    assert lines[0].split() == ["task", "protocol", "published", "result"]
    shown = " ".join(line.strip() for line in lines[1 : lines.index("")])
    assert shown.count("adjusted ppl 485165195.4000, word ppl 485165195.4000") == 4 == shown.count("(PARTIAL)")
    measures = ("loss", "ppl", "adjusted ppl", "word ppl", "bits per byte", "accuracy")
    further = [line.strip() for line in lines[1 : lines.index("")] if line.startswith(" ")]
    assert further and all(line.startswith(measures) for line in further), "no line ends within a measure"
    (row,) = (line for line in lines if line.startswith("PTB") and "…" in line)
    assert re.search(r"  a na\w*….*txt  penn_treebank  1024    1024  123,456,789,012  123,456,789,011$", row)
    assert any(line.endswith("; OpenAI") for line in lines)


def test_the_last_line_of_lambada_is_about_what_was_asked_for():
    def result(protocol, correct):
        counts, values = {"bpe": 9, "scored": 4, "rows": 4}, {"correct": correct, "accuracy": correct / 4, "ppl": 2.0}
        return Result("LAMBADA", protocol, ["f"], "none", 8, None, counts, values, True, "LAMBADA")

    results = [result("last-bpe", 3), result("last-word", 1)]
    assert report.last_lines(results, strict=False)[0].startswith(
        "number correct: 3.0000E+00, total examples: 4.0000E+00"
    )
    assert report.last_lines(results, strict=True)[0].endswith("avg accuracy: 2.5000E-01")


@pytest.mark.parametrize("value, fp16", [(math.nan, False), (math.inf, False), (7e4, True)], ids=str)
def test_outputs_that_are_not_finite_are_no_result(tmp_path, value, fp16):
    """NaN and infinity in a weight, and a weight that half cannot hold: nan in the table, null in JSON, status 1."""
    gpt2 = tiny_checkpoint.write(tmp_path)
    with torch.no_grad():
        gpt2.transformer.h[1].mlp.c_fc.weight[0, 0] = value
    save_pretrained(gpt2, tmp_path / "checkpoint")
    path = tmp_path / "results.json"
    words = ["--all", "--seq-length", 0, "--overlapping-eval", 8, "--json", path, "--fp16", fp16]
    status, out, err = run(tmp_path, *words)
    assert status == 1, out
    assert "first layer whose output is not: transformer.h.1.mlp.c_fc" in err and "HINT: " in err
    assert ("without --fp16" in err) == fp16 and "Traceback" not in err
    assert "avg loss" not in out and "number correct" not in out
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)["results"]
    assert len(found) == 6
    for result in found:
        measures = {name: value for name, value in result["values"].items() if name != "token ratio"}
        assert set(measures.values()) == {None}, (result["protocol"], measures)
    assert re.search(r"^LAMBADA +last-bpe .*ppl nan, accuracy nan %", out, re.MULTILINE), out
    assert re.search(r"^WIKITEXT103 +adjusted .*adjusted ppl nan", out, re.MULTILINE), out


def test_alibi_is_evaluated_beyond_the_length_it_was_trained_with(folder, tmp_path):
    """As a model that was made for more positions; one that learns them is bounded by them."""
    alibi, vocabulary = (
        {"position_embedding": "alibi", "parallel_residual": True},
        tiny_checkpoint.tokenizer().vocab_size,
    )
    for name, positions, changes in (("alibi", 16, alibi), ("longer", 64, alibi), ("learned", 16, {})):
        base = tiny_checkpoint.model(vocabulary).config
        torch.manual_seed(3)
        gpt2 = GPT2LMHeadModel(dataclasses.replace(base, n_positions=positions, **changes))
        for parameter in gpt2.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        save_pretrained(gpt2, tmp_path / name)
        shutil.copy(str(folder / "checkpoint" / "tokenizer.json"), str(tmp_path / name))
    found = {}
    for name, length in (("alibi", 16), ("alibi", 64), ("longer", 64)):
        path = tmp_path / f"{name}.json"
        words = ("--seq-length", length, "--overlapping-eval", length, "--json", path)
        status, _, err = run(folder, *words, checkpoint=tmp_path / name)
        assert status == 0, err
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        found[name, length] = {result["protocol"]: result["values"] for result in results}
    assert found["alibi", 64] == found["longer", 64] != found["alibi", 16]
    status, _, err = run(folder, "--seq-length", 17, checkpoint=tmp_path / "learned")
    assert status == 2 and "has 16 positions and cannot see further" in err


def test_a_variant_is_not_one_of_the_released_sizes():
    assert published.size_name(GPT2Config()) == "124M"
    for changes in ({"norm_position": "post"}, {"tie_word_embeddings": False}):
        assert published.size_name(GPT2Config(**changes)) is None
