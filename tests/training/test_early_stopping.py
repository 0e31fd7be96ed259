"""--early-stopping: which validations it counts, what is kept, and how such a run goes on."""

import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import flags, run_here, write_config, write_corpus

from arguments import parse_train_args
from training.early_stopping import EarlyStopping
from training.log.curves import held_out_losses


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, math.nan]), max_size=12), st.integers(1, 4))
def test_it_ends_after_so_many_losses_in_a_row_without_a_lower_one(losses, patience):
    stopping = EarlyStopping(patience)
    for number, loss in enumerate(losses, start=1):
        stopping.judge(loss)
        lowest = [at for at in range(number) if losses[at] == min(x for x in losses[:number] if x == x)] if any(
            x == x for x in losses[:number]) else [-1]  # fmt: skip
        assert stopping.reached is (number - 1 - lowest[0] >= patience)
        again = EarlyStopping(patience, losses[:number])
        assert again.reached is stopping.reached and again.line() == stopping.line()
    assert not EarlyStopping(None, losses).reached


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    write_config(folder)
    write_corpus(folder / "corpus.pkl", articles=30)
    return folder


def run_flags(folder, save, **changes):
    """A rate at which nothing is learnt after a while: it is much too high."""
    words = {"learning_rate": 0.5, "lr_warmup": 0, "val_num": 4, "eval_steps": 2, "epochs": 9, "training_steps": 40}
    words.update(early_stopping=2, save_model_path=save, **changes)
    return flags(folder, train_path=folder / "corpus.pkl", **words)


def held_out(save):
    with (save / "curves.csv").open(newline="") as file:
        return [
            (int(row["step"]), float(row["validation_loss"])) for row in csv.DictReader(file) if row["validation_loss"]
        ]


def test_a_run_that_learns_no_more_ends_and_keeps_its_best(folder, tmp_path):
    save = tmp_path / "save"
    done = run_here(run_flags(folder, save))
    assert done.status == 0, done.err
    losses = [loss for step, loss in held_out(save) if step]
    last = held_out(save)[-1][0]
    assert last < 40 and min(losses) == losses[-3], "two in a row were no lower"
    assert all(min(losses[:n]) not in losses[: n - 2] for n in range(3, len(losses))), "and none before them"
    assert f"Stopped after step {last} of 40, --early-stopping 2: no lower held-out loss than" in done.out
    assert (save / "best").is_dir() and (save / f"step_{last}").is_dir() and f"{save / 'best'}" in done.out
    assert held_out_losses(save / "curves.csv", last) == pytest.approx(losses)

    end = json.loads((save / "run.json").read_text())["end"]
    assert end["finished"] is True and end["step"] == last

    again = run_here(run_flags(folder, save, resume="latest"))
    assert again.status == 0 and f"Stopped after step {last} of 40" in again.out and "\nstep " not in again.out
    patient = run_here([*run_flags(folder, save, resume="latest"), "--early-stopping", "3"])
    assert patient.status == 0 and f"\nstep {last + 1} of" in patient.out, "more patience goes on"


def test_a_resumed_run_ends_where_the_whole_one_does(folder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_here(run_flags(folder, whole)).status == 0
    last = held_out(whole)[-1][0]
    words = [*run_flags(folder, parts), "--training-steps", str(last - 2)]  # which has a validation in either
    assert run_here(words).status == 0
    done = run_here(run_flags(folder, parts, resume="latest"))
    assert done.status == 0 and f"Stopped after step {last} of 40" in done.out
    assert [pair for pair in held_out(parts) if pair[0] % 2 == 0 and pair[0]] == [
        pair for pair in held_out(whole) if pair[0]
    ]


def test_it_needs_held_out_samples(folder, capsys):
    with pytest.raises(SystemExit):
        parse_train_args(flags(folder, train_path=folder / "corpus.pkl", early_stopping=1))
    assert "--early-stopping 1: there is nothing to validate on without --val-num N" in capsys.readouterr().err
