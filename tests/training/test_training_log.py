"""The log line: its grammar, and that its loss, rate and throughput are what they claim to be."""

import math
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import NO_DROPOUT, flags, run_here, write_config, write_corpus

from arguments import parse_train_args
from data.loading.generated import GeneratedDataset
from model.checkpoint import load_pretrained, save_pretrained
from model.config import GPT2Config
from training.inputs import load_or_make
from training.log import clock as clocks
from training.log import run_log
from training.log.run_log import RunLog
from training.run import TrainingRun
from training.validation import Validator

# As benchmarks.yml has them.
THROUGHPUT, LOSS, ACCURACY = (
    re.compile(r"throughput: *(.*?) samples\/sec"),
    re.compile(r"loss: *(.*?),"),
    re.compile(r"acc: *(.*?),"),
)
WAIT = 100.0


def log_lines(out):
    return [line for line in out.splitlines() if line.startswith("step ")]


def numbers(pattern, out):
    return [float(pattern.search(line).group(1)) for line in log_lines(out)]


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path, **NO_DROPOUT)
    return tmp_path


def test_grammar(folder):
    done = run_here(flags(folder, epochs=1, lr_schedule="linear", lr_warmup_steps=1, peak_tflops=1))
    assert done.status == 0, done.err
    lines = log_lines(done.out)
    assert len(lines) == 4
    whole = re.compile(
        r"step (\d+) of epoch 0, loss: \d\.\d{4}, acc: 0\.\d{4}, lr: [\d.e-]+, throughput: [\d.]+ samples/sec"
    )
    assert [whole.fullmatch(line).group(1) for line in lines] == ["1", "2", "3", "4"]
    assert [line.split("lr: ")[1].split(",")[0] for line in lines] == ["0.005", "0.01", "0.006667", "0.003333"]
    everything = done.out.splitlines()
    speeds = [place for place, line in enumerate(everything) if line.startswith("speed: ")]
    assert [everything[place - 1] for place in speeds] == [lines[0], lines[-1]]
    for place in speeds:
        rate = float(THROUGHPUT.search(everything[place - 1]).group(1))
        text = re.fullmatch(r"speed: ([\d,]+) tokens/sec, [\d.]+% of peak, \d+:\d\d:\d\d left", everything[place])
        assert float(text.group(1).replace(",", "")) == pytest.approx(rate * 16, rel=0.02, abs=1)
    assert everything[speeds[-1]].endswith("0:00:00 left")
    assert len(LOSS.findall(done.out)) == len(ACCURACY.findall(done.out)) == 4


def test_no_line_of_a_run_is_longer_than_100_columns(folder):
    done = run_here(flags(folder, epochs=1, val_num=2, peak_tflops=1, save_model_path=folder / "save"))
    own = [line for line in done.out.splitlines() if str(folder) not in line]  # a path is as long as it is
    assert len(own) > 8 and max(map(len, own)) <= 100
    log = RunLog(
        parse_train_args(flags(folder, epochs=1000, peak_tflops=1)), GPT2Config(), 10**7, 0, 10**5, SimpleNamespace()
    )
    printed = []
    log._print = printed.append
    log.clock.lap = lambda: 0.1  # calls a second
    log.step(999_999, 99, 10.8758, 0.1234, 0.00012345, True)
    log.validation(999_999, 10.8758)
    assert len(printed) == 3 and max(map(len, printed)) <= 100


def test_a_run_begins_with_its_device(folder):
    lines = run_here(flags(folder, epochs=1)).out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("device: ")]
    assert re.fullmatch(r"device: CPU \(.+\), 1 threads, float32 for half", lines[at])
    # What a call is and the notes on flags stand above it: they are there before torch is.
    assert [line.split(" ")[0] for line in lines[:at]] == ["batch", "smaller", "no"]


def test_log_steps(folder):
    done = run_here(flags(folder, epochs=2, training_steps=7, log_steps=3))
    assert [line.split(" of ")[0] for line in log_lines(done.out)] == ["step 3", "step 6", "step 7"]


@pytest.mark.parametrize("iterations, accumulation, replicas, rows", [(2, 2, 2, 1), (1, 3, 1, 2), (3, 1, 1, 1)])
def test_the_loss_is_the_mean_over_the_whole_call(folder, iterations, accumulation, replicas, rows):
    """With a learning rate of 0 the weights stay, so that plain torch can repeat the call."""
    changes = {"device_iterations": iterations, "gradient_accumulation": accumulation, "batch_size": rows}
    argv = flags(folder, learning_rate=0, replication_factor=replicas, training_steps=1, **changes)
    done = run_here(argv)
    assert done.status == 0, done.err
    args = parse_train_args(argv)
    run = TrainingRun(args)
    ids, labels = next(iter(run.loader))
    assert len(ids) == iterations * accumulation * replicas * rows
    gpt2 = load_or_make(args).half().float().eval()
    logits = gpt2(ids.long())
    losses = F.cross_entropy(logits.flatten(0, 1), labels.long().flatten(), reduction="none")
    assert numbers(LOSS, done.out)[0] == pytest.approx(losses.mean().item(), abs=2e-4)
    right = (logits.argmax(-1) == labels).float().mean()
    assert numbers(ACCURACY, done.out)[0] == pytest.approx(float(right), abs=2e-4)


@pytest.fixture
def pass_time(monkeypatch):
    """Makes 100 s pass for the program's clock: what a call really takes, on whatever machine, is little to that."""
    skipped, real = [0.0], time.perf_counter
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: real() + skipped[0]))

    def wait():
        skipped[0] += WAIT

    return wait


def test_throughput_includes_waiting_for_data(folder, monkeypatch, pass_time):
    argv = flags(folder, gradient_accumulation=1, epochs=1, num_workers=0)
    read = GeneratedDataset.__getitems__

    def slow_read(self, indices):
        pass_time()
        return read(self, indices)

    monkeypatch.setattr(GeneratedDataset, "__getitems__", slow_read)
    rates = numbers(THROUGHPUT, run_here(argv).out)
    assert rates == pytest.approx([1 / WAIT] * 4, rel=0.2)


def test_the_time_left_forgets_a_slow_start(folder, monkeypatch, pass_time):
    read, calls = GeneratedDataset.__getitems__, []

    def slow_once(self, indices):
        if len(calls) < 2:  # the first batch is for compiling, which is not counted
            pass_time()
        calls.append(indices)
        return read(self, indices)

    monkeypatch.setattr(GeneratedDataset, "__getitems__", slow_once)
    monkeypatch.setattr(run_log, "_SPEED_LINES", 0.0)
    out = run_here(flags(folder, gradient_accumulation=1, epochs=1, num_workers=0)).out
    left = [int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in re.findall(r"(\d+):(\d\d):(\d\d) left", out)]
    assert len(left) == 4 and left[0] >= 3 * WAIT > 6 * WAIT / 10 > left[1]


def test_compiling_saving_and_validating_do_not_count(folder, monkeypatch, pass_time):
    def slow(method):
        def wrapped(*arguments, **keywords):
            pass_time()
            return method(*arguments, **keywords)

        return wrapped

    monkeypatch.setattr(Validator, "loss", slow(Validator.loss))
    monkeypatch.setattr(TrainingRun, "compile", slow(TrainingRun.compile))
    monkeypatch.setattr(TrainingRun, "_save", slow(TrainingRun._save))
    words = flags(folder, epochs=2, val_num=2, save_model_path=folder / "save", save_per_steps=1)
    done = run_here(words)
    assert done.status == 0, done.err
    assert done.out.count("saved ") == 10 and done.out.count("held-out loss: ") == 3
    assert min(numbers(THROUGHPUT, done.out)) > 10 / WAIT


def test_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])
    clock = clocks.Clock()
    now[0] = 2.0
    clock.count()
    with clock.paused():
        now[0] = 102.0
    now[0] = 104.0
    clock.count()
    assert clock.lap() == 2 / 4
    now[0] = 105.0
    clock.count()
    assert clock.lap() == 1.0
    now[0] = 109.0
    assert clock.rate() == 1.0, "the last lap's, until the next one ends"
    now[0] = 105.0
    assert (clock.calls, clock.seconds) == (3, 5.0)


def test_time_text():
    assert clocks.time_text(59.6) == "0:01:00"
    assert clocks.time_text(3723) == "1:02:03"
    assert clocks.time_text(-1) == "0:00:00"


def test_the_held_out_loss_is_the_mean_over_all_held_out_labels(folder):
    """Padded samples and a last batch that is not full included: against plain torch, at a learning rate of 0."""
    corpus = write_corpus(folder / "corpus.pkl", articles=12, length=20)
    words = {"train_path": corpus, "stride": 16, "val_num": 3, "max_len": 22, "learning_rate": 0}
    argv = flags(folder, device_iterations=4, epochs=1, **words)
    done = run_here(argv)
    assert done.status == 0, done.err
    line = r"^validation after step (\d+), held-out perplexity: ([\d.]+), held-out loss: ([\d.]+)$"
    found = re.findall(line, done.out, re.MULTILINE)
    assert len(found) == 2 and found[0][0] == "0" and found[0][1:] == found[1][1:]
    assert float(found[0][1]) == pytest.approx(math.exp(float(found[0][2])), abs=0.02)
    run = TrainingRun(parse_train_args(argv))
    items = run.validator.items
    assert len(items) % (run.args.batch_size * 4), "the last batch is full, which is not what is tested"
    gpt2 = load_or_make(run.args).half().float().eval()
    logits = gpt2(torch.stack([torch.from_numpy(item.ids).long() for item in items]))
    picked = [
        F.cross_entropy(row[item.positions], torch.from_numpy(item.targets).long(), reduction="sum").item()
        for row, item in zip(logits, items)
    ]
    labels = sum(len(item.targets) for item in items)
    assert labels == sum(len(item.ids) for item in items) - 3 * 3, "three articles of 20 ids in samples of 23"
    assert float(found[0][2]) == pytest.approx(sum(picked) / labels, abs=2e-4)


def test_the_held_out_loss_is_that_of_the_newest_weights_and_without_dropout(folder):
    """What the log says after each epoch, against plain torch on the checkpoint saved then."""
    write_config(folder, attn_pdrop=0.3, embd_pdrop=0.3, resid_pdrop=0.3)
    corpus = write_corpus(folder / "corpus.pkl", articles=12)
    argv = flags(folder, train_path=corpus, stride=16, val_num=3, epochs=2, save_model_path=folder / "save")
    done = run_here(argv)
    assert done.status == 0, done.err
    found = re.findall(r"held-out loss: ([\d.]+)$", done.out, re.MULTILINE)
    items = TrainingRun(parse_train_args([*argv, "--overwrite"])).validator.items
    ids = torch.from_numpy(np.stack([item.ids for item in items])).long()
    labels = torch.from_numpy(np.stack([item.targets for item in items])).long()  # no padding: articles are longer
    for epoch, said in enumerate(found[1:]):
        gpt2 = load_pretrained(folder / "save" / f"epoch_{epoch}").float().eval()
        loss = F.cross_entropy(gpt2(ids).flatten(0, 1), labels.flatten())
        assert float(said) == pytest.approx(loss.item(), abs=2e-3), epoch  # half weights
    assert len(found) == 3 and float(found[1]) - float(found[2]) > 0.05


def test_validation_every_so_many_steps(folder):
    corpus = write_corpus(folder / "corpus.pkl", articles=30)
    done = run_here(flags(folder, train_path=corpus, stride=16, val_num=4, epochs=1, training_steps=5, eval_steps=2))
    assert done.status == 0, done.err
    assert re.findall(r"^validation after step (\d+)", done.out, re.MULTILINE) == ["0", "2", "4", "5"]
    done = run_here(flags(folder, eval_steps=2))
    assert done.status == 2 and "--eval-steps 2: there is nothing to validate on without --val-num N" in done.err


def test_the_held_out_loss_follows_the_training(folder):
    corpus = write_corpus(folder / "corpus.pkl", articles=30)
    done = run_here(flags(folder, train_path=corpus, stride=16, val_num=4, epochs=1, gradient_accumulation=4))
    assert done.status == 0, done.err
    before, after = (float(x) for x in re.findall(r"held-out loss: ([\d.]+)", done.out))
    assert after < before - 0.2
    losses = numbers(LOSS, done.out)
    assert before == pytest.approx(losses[0], abs=0.2) and after == pytest.approx(losses[-1], abs=0.4)
    assert torch.isfinite(torch.tensor(losses)).all()


def test_no_run_starts_from_weights_that_are_not_finite(folder):
    done = run_here(flags(folder, epochs=1, save_model_path=folder / "save"))
    assert done.status == 0, done.err
    (checkpoint,) = (folder / "save").glob("epoch_*")
    gpt2 = load_pretrained(checkpoint)
    with torch.no_grad():
        gpt2.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    save_pretrained(gpt2, folder / "broken")
    done = run_here(flags(folder, epochs=1, pretrained_checkpoint=folder / "broken"))
    assert done.status == 2 and "Traceback" not in done.err, done.err
    said = f"--pretrained-checkpoint {folder / 'broken'}: transformer.h.1.mlp.c_fc.weight, 1 of whose "
    assert said in done.err and "name a checkpoint from before" in done.err


def test_a_held_out_loss_that_is_not_finite_has_no_perplexity_and_ends_the_run(folder, monkeypatch):
    """exp(nan) is nan, not infinity."""
    corpus = write_corpus(folder / "corpus.pkl", articles=30)
    monkeypatch.setattr(Validator, "loss", lambda self: math.nan)
    done = run_here(flags(folder, train_path=corpus, stride=16, val_num=4, epochs=1))
    assert done.status == 1 and "Traceback" not in done.err, done.err
    assert "held-out perplexity: nan, held-out loss: nan" in done.out and "no longer finite" in done.err
