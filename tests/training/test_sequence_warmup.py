"""Sequence-length warm-up: the length of each call, and that a run with it takes the steps that one makes by hand."""

import csv
import warnings

import poptorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import NO_DROPOUT, flags, run_here, write_config, write_corpus

from arguments import parse_train_args
from training.inputs import load_or_make
from training.optimization import make_optimizer
from training.run import TrainingRun, place_model
from training.sequence_warmup import SequenceWarmup

LENGTHS = {"sequence_warmup": "4 8", "sequence_warmup_steps": 2}


@given(st.lists(st.integers(2, 50), unique=True, max_size=4), st.integers(1, 9), st.integers(0, 60))
def test_tokens_are_the_sum_of_the_lengths(lengths, steps, calls):
    warmup = SequenceWarmup(sorted(lengths), steps, 64)
    each = [warmup.length(call) for call in range(calls)]
    assert warmup.tokens(calls) == sum(each) and each == sorted(each)
    assert all(each.count(length) in (steps, min(steps, max(0, calls - number * steps)))
               for number, length in enumerate(sorted(lengths)))  # fmt: skip
    named = [line for line in warmup.table(calls, 10) if "tokens a sample" in line]
    assert len(named) == (len(set(each)) if lengths and calls else 0)
    assert not named or sum(int(line.split()[-2].replace(",", "")) for line in named) == 10 * sum(each)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lengths")
    write_config(folder)
    write_corpus(folder / "corpus.pkl")
    return folder


def run_flags(folder, **changes):
    return flags(folder, train_path=folder / "corpus.pkl", **LENGTHS, **changes)


def rows(save):
    with (save / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_takes_the_steps_made_by_hand(folder, tmp_path):
    """By hand: an executor a length, over the same batches cut short, the model wrapped anew with its optimizer."""
    write_config(tmp_path, **NO_DROPOUT)
    words = {"config": tmp_path / "tiny.json", "training_steps": 6, "lr_warmup": 0}
    done = run_here(run_flags(folder, save_model_path=tmp_path / "save", **words))
    assert done.status == 0, done.err
    assert [line.split() for line in done.out.splitlines() if "tokens a sample" in line] == [
        "4 tokens a sample: steps 1 to 2, 16 tokens".split(),
        "8 tokens a sample: steps 3 to 4, 32 tokens".split(),
        "16 tokens a sample: steps 5 to 6, 64 tokens".split(),
    ]
    found = rows(tmp_path / "save")
    assert [int(row["tokens"]) for row in found] == [8, 16, 32, 48, 80, 112]

    args = parse_train_args(run_flags(folder, **words))
    plain = TrainingRun(parse_train_args(flags(folder, train_path=folder / "corpus.pkl", **words)))
    batches = [call for _, call in zip(range(6), plain.batches())]  # (2, 16) each
    model = place_model(load_or_make(args), args)
    optimizer = make_optimizer("AdamW", model, 0.01, 0.0, 1024.0)
    losses, executor = [], None
    for number, length in enumerate([4, 4, 8, 8, 16, 16]):
        if number % 2 == 0:
            if executor is not None:
                model.destroy()
            executor = poptorch.trainingModel(model, plain._options, optimizer)
        ids, labels = (each[:, :length].contiguous() for each in batches[number][:2])
        loss, _ = executor(input_ids=ids, labels=labels, label_counts=torch.full((2, 2), float(length)))
        losses.append(float(loss) / 2)
    assert [float(row["loss"]) for row in found] == pytest.approx(losses, rel=1e-5)


def test_a_resumed_run_goes_on_to_the_bit(folder, tmp_path):
    """With dropout, from a checkpoint in the middle of a length and from the last of one."""
    words = {"training_steps": 6, "save_per_steps": 1, "val_num": 2, "eval_steps": 3, "optimizer": "Adafactor"}
    whole = run_here(run_flags(folder, save_model_path=tmp_path / "whole", **words))
    assert whole.status == 0, whole.err
    expected = torch.load(str(tmp_path / "whole" / "step_6" / "training_state.pt"), weights_only=True)
    for step in (2, 3):
        save = tmp_path / f"from{step}"
        part = {"resume": tmp_path / "whole" / f"step_{step}", "save_model_path": save}
        resumed = run_here(run_flags(folder, **part, **words))
        assert resumed.status == 0, resumed.err
        found = torch.load(str(save / "step_6" / "training_state.pt"), weights_only=True)
        for key in ("ipu_state", "ipu_master_weights"):
            assert all(torch.equal(expected["optimizer"][key][name], found["optimizer"][key][name])
                       for name in expected["optimizer"][key])  # fmt: skip
        assert torch.equal(expected["rng_state"], found["rng_state"])
    ends = [row["validation_loss"] for row in rows(tmp_path / "whole") if row["step"] == "6"]
    assert any(ends), "validation, at the full length, sees the newest executor's weights"


def test_padded_samples_count_by_the_labels_that_are_left(folder, tmp_path):
    """Articles of 10 ids in samples of 16: of the first 8 tokens all are labels, of 16 the padding is none."""
    write_corpus(tmp_path / "short.pkl", articles=24, length=10)
    args = parse_train_args(
        flags(folder, train_path=tmp_path / "short.pkl", sequence_warmup="8", sequence_warmup_steps=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (call for _, call in zip(range(2), TrainingRun(args).batches()))
    assert first.input_ids.shape == (2, 8) and second.input_ids.shape == (2, 16)
    for call in (first, second):
        labels = int((call.labels != -100).sum())
        assert call.label_counts[:, 0].tolist() == [labels / 2] * 2


WRONG = {
    "descending": ({"sequence_warmup": "8 4", "sequence_warmup_steps": 1}, "--max-len 16"),
    "too long": ({"sequence_warmup": "16", "sequence_warmup_steps": 1}, "--max-len 16"),
    "without steps": ({"sequence_warmup": "4"}, "--sequence-warmup-steps"),
    "without lengths": ({"sequence_warmup_steps": 4}, "--sequence-warmup LENGTH"),
    "blocks": (
        {"sequence_warmup": "4 6", "sequence_warmup_steps": 1, "enable_sequence_serialized": True,
         "serialized_seq_len": 4}, "--serialized-seq-len 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_lengths_that_cannot_be(folder, capsys, case):
    words, named = WRONG[case]
    with pytest.raises(SystemExit) as end:
        parse_train_args(flags(folder, train_path=folder / "corpus.pkl", **words))
    message = capsys.readouterr().err
    assert end.value.code == 2 and "1 problem" in message and named in message and "--sequence-warmup" in message
