"""train_gpt2.py on data as published recipes have them: streams, codes, several data sets, approximate loaders."""

from __future__ import annotations

import json
import math
import pickle
import re

import numpy as np
import pytest
import test_memory
import torch
import torch.nn.functional as F
from tiny_run import NO_DROPOUT, flags, run_here, write_config, write_corpus

from arguments import parse_train_args
from data import prepare
from model.checkpoint import load_pretrained
from tokenizer import Tokenizer, train_bpe
from training.log.curves import main as curves
from training.run import TrainingRun

trials = test_memory.trials  # a fixture
TEXT = "the river flows to the sea\nit rains on the town\nthe town has a market and a bridge\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A tokenizer of 300 entries, a model for it, and corpora a, b and their validation files."""
    folder = tmp_path_factory.mktemp("texts")
    tokenizer = train_bpe([TEXT] * 5, 300)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    write_config(folder, vocab_size=304, real_vocab_size=tokenizer.vocab_size, **NO_DROPOUT)
    random = np.random.default_rng(1)
    for name, count in (("a", 400), ("b", 300), ("va", 65), ("vb", 190)):
        ids = random.integers(1, tokenizer.vocab_size, count).tolist()
        (folder / f"{name}.pkl").write_bytes(pickle.dumps([ids[: count // 2], ids[count // 2 :]]))
    return folder


def several(texts, **changes):
    words = {
        "dataset": "pickle",
        "input_files": f"{texts / 'a.pkl'} {texts / 'b.pkl'}",
        "validation_files": f"{texts / 'va.pkl'} {texts / 'vb.pkl'}",
        "control_codes": "<|endoftext|> h",
        "windows": "stream",
        "last_window": "pad",
        "epochs": 1,
        "learning_rate": 0,
    }
    return flags(texts, **{**words, **changes})


def loss_of(gpt2, ids, code):
    """Mean loss in nats of ids in chunks of 16, each behind the code: plain torch, a chunk at a time."""
    losses, labels = 0.0, 0
    for start in range(0, len(ids), 16):
        chunk = torch.tensor([code, *ids[start : start + 16]])
        logits = gpt2(chunk[None, :-1])[0]
        losses += F.cross_entropy(logits, chunk[1:], reduction="sum").item()
        labels += len(chunk) - 1
    return losses / labels


def test_the_mean_over_several_data_sets_each_with_its_code(texts, tmp_path):
    argv = several(texts, save_model_path=tmp_path / "save")
    done = run_here(argv)
    assert done.status == 0, done.err
    part = r"^  (\w+): held-out perplexity ([\d.]+), held-out loss ([\d.]+)$"
    mean = r"^validation after step \d+, mean of 2 data sets, held-out perplexity: ([\d.]+), held-out loss: ([\d.]+)$"
    parts, means = re.findall(part, done.out, re.MULTILINE), re.findall(mean, done.out, re.MULTILINE)
    assert [name for name, _, _ in parts] == ["va", "vb"] * 2 and len(means) == 2
    gpt2 = load_pretrained(tmp_path / "save" / "epoch_0").float().eval()
    tokenizer = Tokenizer.from_folder(texts)
    codes = {"va": tokenizer.eot_id, "vb": tokenizer.token_id("h")}
    expected = []
    with torch.no_grad():
        for name, _, loss in parts[:2]:
            ids = sum(pickle.loads((texts / f"{name}.pkl").read_bytes()), [])
            expected.append(loss_of(gpt2, ids, codes[name]))
            assert float(loss) == pytest.approx(expected[-1], abs=2e-3)
    assert float(means[0][1]) == pytest.approx(sum(expected) / 2, abs=2e-3)
    assert float(means[0][0]) == pytest.approx(math.exp(float(means[0][1])), rel=1e-3)
    assert "44 samples of 2 data sets. a: 25 samples of 16 ids (stride 16)" in done.out, done.out
    assert "b: 19 samples of 16 ids" in done.out and "each behind the id" in done.out


def test_a_resumed_run_has_the_same_samples(texts, tmp_path):
    argv = several(texts, save_model_path=tmp_path / "save", training_steps=3, validation_files=None)
    assert run_here(argv).status == 0
    changed = several(texts, control_codes="t h", validation_files=None)
    done = run_here([*changed, "--resume", str(tmp_path / "save" / "step_3")])
    assert done.status == 2 and "--train-path" in done.err, done.err
    same = run_here([*several(texts, validation_files=None), "--resume", str(tmp_path / "save" / "step_3")])
    assert same.status == 0 and "resuming from" in same.out, same.err


def test_a_code_that_is_no_entry_is_refused(texts):
    done = run_here(several(texts, control_codes="river-boat h"))
    assert done.status == 2 and re.search(r"--control-codes river-boat: \d+ tokens and no entry", done.err), done.err


def test_data_sets_of_two_tokenizers_are_refused(texts, tmp_path):
    (tmp_path / "tokenizer.json").write_text(train_bpe(["other words"] * 3, 262).to_json(), encoding="utf-8")
    (tmp_path / "other.pkl").write_bytes((texts / "va.pkl").read_bytes())
    done = run_here(several(texts, validation_files=f"{texts / 'va.pkl'} {tmp_path / 'other.pkl'}"))
    assert done.status == 2 and "other.pkl: the tokenizer beside it is not that of" in done.err, done.err


def test_a_text_to_validate_on_gets_the_tokenizer_of_the_corpus(texts, tmp_path):
    (tmp_path / "v.txt").write_text(TEXT * 3, encoding="utf-8")
    argv = flags(texts, train_path=texts / "a.pkl", validation_files=tmp_path / "v.txt", epochs=1)
    done = run_here(argv)
    assert done.status == 0, done.err
    assert done.out.count("held-out loss: ") == 2 and "vocabulary of 300" in done.out
    (tmp_path / "bad.txt").write_bytes(b"\n\n")
    bad = run_here(flags(texts, train_path=texts / "a.pkl", validation_files=tmp_path / "bad.txt"))
    assert bad.status == 2 and "--validation-files" in bad.err and "--train-path" not in bad.err, bad.err


def test_wikitext_line_by_line_to_a_run(texts, tmp_path):
    """What get_wikitext.py prepares, trained on by the command that data.prepare ends with."""
    for part, text in (("train", TEXT * 5), ("valid", TEXT)):
        (tmp_path / f"wiki.{part}.raw").write_text(text, encoding="utf-8")
    words = ["--input", tmp_path, "--documents", "line", "--document-ends", "none", "--output", tmp_path / "out"]
    assert prepare.main([str(word) for word in [*words, "--tokenizer", texts / "tokenizer.json", "--workers", 1]]) == 0
    argv = flags(texts, train_path=tmp_path / "out" / "corpus.pkl", windows="stream", epochs=1)
    done = run_here([*argv, "--validation-files", str(tmp_path / "out" / "corpus-valid.pkl")])
    assert done.status == 0, done.err
    ids = sum(pickle.loads((tmp_path / "out" / "corpus.pkl").read_bytes()), [])
    assert f"{(len(ids) - 1) // 16} samples of 17 ids (stride 16) from a stream of {len(ids)} ids" in done.out


def test_rows_in_tars_to_a_run(texts, tmp_path):
    """Little-GPT's rows: prepared with the end on both sides, halved for training, held out in whole rows."""
    (tmp_path / "t.txt").write_text(TEXT * 40, encoding="utf-8")
    words = ["--input", tmp_path / "t.txt", "--output", tmp_path / "out", "--tokenizer", texts / "tokenizer.json"]
    words += ["--workers", 1, "--format", "webdataset", "--document-ends", "both", "--seq-length", 32]
    assert prepare.main([str(word) for word in words]) == 0
    files = str(tmp_path / "out" / "corpus" / "*.tar")
    done = run_here(flags(texts, dataset="webdataset", input_files=files, val_num=6, epochs=1, training_steps=20))
    assert done.status == 0, done.err
    before, after = (float(loss) for loss in re.findall(r"held-out loss: ([\d.]+)$", done.out, re.MULTILINE))
    assert after < before - 0.5 and "rows of 32 ids in 1 tar file" in done.out
    bad = run_here(flags(texts, dataset="webdataset", input_files=files, max_len=13))
    assert bad.status == 2 and "--max-len 13: the rows of" in bad.err and "Traceback" not in bad.err, bad.err


def test_an_approximate_loader_marks_its_run_and_its_figures(texts, tmp_path, capsys):
    write_config(tmp_path)
    corpus = write_corpus(tmp_path / "c.pkl", articles=30)
    words = {"train_path": corpus, "val_num": 4, "epochs": 1, "training_steps": 4}
    argv = flags(tmp_path, **words, windows="first", save_model_path=tmp_path / "fast")
    done = run_here(argv)
    assert done.status == 0, done.err
    told = re.findall(r"^validation after step \d+(.*)$", done.out, re.MULTILINE)
    assert len(told) == 2 and all(line.startswith(", APPROXIMATE (--windows first: ") for line in told)
    assert "APPROXIMATE: --windows first" in done.out
    assert json.loads((tmp_path / "fast" / "run.json").read_text(encoding="utf-8"))["approximate"]
    state = torch.load(tmp_path / "fast" / "step_4" / "training_state.pt", weights_only=True)
    assert state["approximate"].startswith("--windows first")
    assert curves([str(tmp_path / "fast")]) == 0
    assert "APPROXIMATE (--windows first" in capsys.readouterr().out

    exact = run_here(flags(tmp_path, **words, save_model_path=tmp_path / "exact"))
    assert exact.status == 0 and "APPROXIMATE" not in exact.out
    assert "approximate" not in json.loads((tmp_path / "exact" / "run.json").read_text(encoding="utf-8"))
    for first, folder in ((None, "fast"), ("first", "exact")):
        compared = flags(tmp_path, **words, windows=first, reference_curve=tmp_path / folder / "curves.csv")
        refused = run_here(compared)
        assert refused.status == 2 and "--reference-curve" in refused.err and "approximate" in refused.err, refused.err
        assert (": its losses are approximate" in refused.err) != (": this run's losses are approximate" in refused.err)
    both = flags(tmp_path, **words, windows="first", reference_curve=tmp_path / "fast" / "curves.csv")
    assert run_here(both).status == 0


def test_the_plan_needs_no_more_than_it_did(texts, trials):
    """--batch-size auto tries with generated data, whatever the flags say of corpora."""
    argv = several(texts, batch_size="auto", gradient_accumulation=None, global_batch_size=4, training_steps=1)
    done = run_here(argv)
    assert done.status == 0 and trials == [0], done.err
    assert TrainingRun(parse_train_args(several(texts))).approximate == ""
