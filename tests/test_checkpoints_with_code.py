"""A checkpoint whose pickle names code is refused by every program that takes one, by its file, and nothing runs."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import tiny_checkpoint
import torch
from tiny_run import NO_DROPOUT, flags, run_here, write_config, write_corpus

import text_generate_gpt2
from model.convert.__main__ import main as convert
from tasks import compare, evaluation


class Code:
    """Harmless, but it shows."""

    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data, and a checkpoint whose weights are a pickle that would run code; what it makes would be here."""
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint.write(tmp_path)
    write_corpus(tmp_path / "corpus.pkl")
    tensors = dict(safetensors.torch.load_file(tmp_path / "checkpoint" / "model.safetensors"))
    (tmp_path / "checkpoint").rename(tmp_path / "bad")
    (tmp_path / "bad" / "model.safetensors").unlink()
    torch.save({**tensors, "transformer.wte.weight": Code()}, tmp_path / "bad" / "pytorch_model.bin")
    return tmp_path


def generate(folder):
    return text_generate_gpt2.main(
        ["--model-name-or-path", str(folder / "bad"), "--prompt", "the", "--output-len", "2"]
    )


def evaluate(folder):
    words = ["--pretrained-checkpoint", str(folder / "bad"), "--data-dir", str(folder / "data"), "--protocols", "token"]
    return evaluation.main("tasks/evaluate_wiki.py", "WIKITEXT103", words)


def compared(folder):
    data = folder / "data" / "wikitext-103" / "wiki.test.tokens"
    return compare.main([str(folder / "bad"), str(folder / "bad"), "--valid-data", str(data), "--protocols", "token"])


def converted(folder):
    return convert([str(folder / "bad"), str(folder / "out"), "--to", "gguf"])


def serve(folder):
    pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")
    from serving.__main__ import main

    return main(["--model", str(folder / "bad"), "--port", "0"])


@pytest.mark.parametrize("program", [generate, evaluate, compared, converted, serve])
def test_no_program_runs_it(folder, capsys, program):
    try:
        status = program(folder)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and "Traceback" not in said, said
    assert str(folder / "bad" / "pytorch_model.bin") in said and "may run code" in said
    assert not (folder / "was_run").exists()


def test_training_does_not_run_it_either(folder):
    run = flags(folder, config=None, pretrained_checkpoint=folder / "bad", train_path=folder / "corpus.pkl")
    done = run_here(run)
    assert done.status == 2 and "may run code" in done.err and "pytorch_model.bin" in done.err
    assert not (folder / "was_run").exists()


def test_nor_is_that_of_a_training_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, **NO_DROPOUT)
    corpus = write_corpus(tmp_path / "corpus.pkl")
    run = dict(train_path=corpus, save_model_path=tmp_path / "save", training_steps=1)
    assert run_here(flags(tmp_path, **run)).status == 0
    (state,) = tmp_path.glob("save/*/training_state.pt")
    content = torch.load(state, weights_only=True)
    torch.save({**content, "more": Code()}, state)
    resumed = {"pretrained_checkpoint": state.parent, "resume_training_from_checkpoint": True, "config": None}
    done = run_here(flags(tmp_path, **{**run, **resumed}))
    assert done.status == 2 and str(state) in done.err and not (tmp_path / "was_run").exists()


def test_it_would_have_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Code()))
    assert Path("was_run").exists()
