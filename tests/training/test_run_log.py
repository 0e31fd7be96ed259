"""What a run leaves of its course: curves, run.json, TensorBoard, W&B, the comparison with another run's curve."""

import csv
import json
import subprocess
import sys
import types

import poptorch
import pytest
import torch
import torch.nn.functional as F
from tiny_run import NO_DROPOUT, ROOT, flags, run_here, write_config, write_corpus

from arguments import parse_train_args
from command_line import training_checks
from model.config import GPT2Config
from training.inputs import load_or_make
from training.log import clock, curves, machine, run_log
from training.log import sinks as log_sinks
from training.run import TrainingRun


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path, **NO_DROPOUT)
    return tmp_path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def finished(argv):
    done = run_here(argv)
    assert done.status == 0, done.err
    return done


def test_curves_and_run_json_are_beside_the_checkpoints(folder):
    corpus = write_corpus(folder / "corpus.pkl")
    argv = flags(folder, save_model_path=folder / "save", train_path=corpus, stride=16, val_num=2, training_steps=4)
    done = finished(argv)
    found = rows(folder / "save" / "curves.csv")
    assert [(row["step"], bool(row["loss"]), bool(row["validation_loss"])) for row in found] == [
        ("0", False, True), *((str(i), True, False) for i in (1, 2, 3, 4)), ("4", False, True),
    ]  # fmt: skip
    logged = [line.split("loss: ")[1].split(",")[0] for line in done.out.splitlines() if line.startswith("step ")]
    assert [f"{float(row['loss']):.4f}" for row in found[1:5]] == logged
    assert found[2]["tokens"] == str(2 * 2 * 16) and found[2]["loss_scale"] == "1024"
    run = json.loads((folder / "save" / "run.json").read_text())
    assert run["flags"]["training_steps"] == 4 and "max_len" in run["flags"]["typed"]
    assert run["versions"]["torch"] == torch.__version__ and run["hardware"]["cores"] >= 1
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=str(ROOT), capture_output=True, text=True)
    assert (run["commit"] or "").split(" ")[0] == head.stdout.strip()
    assert run["end"]["finished"] is True and run["end"]["step"] == 4 and run["end"]["memory_gb"]["host"] > 0.01


def test_nothing_is_written_that_was_not_asked_for(folder, monkeypatch):
    work = folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    finished(flags(folder, training_steps=2))
    assert not list(work.iterdir())


def test_of_several_processes_the_first_alone_keeps_a_log(folder, monkeypatch, wandb):
    save, logs = folder / "save", folder / "logs"
    reference = folder / "reference.csv"
    reference.write_text("step,loss\n1,3.0\n2,3.0\n")
    words = flags(folder, save_model_path=save, training_steps=2, use_wandb=True, reference_curve=reference)
    monkeypatch.setattr(run_log, "launched", lambda: (0, 2))
    finished(words)
    assert [row["tokens"] for row in rows(save / "curves.csv")] == [str(2 * 16), str(2 * 2 * 16)]  # of all processes
    before = {path: path.read_bytes() for path in save.iterdir() if path.is_file()}
    assert {path.name for path in before} >= {"curves.csv", "run.json"} and wandb.modes

    wandb.modes.clear()
    monkeypatch.setattr(run_log, "launched", lambda: (1, 2))
    done = finished([*words, "--overwrite"])
    assert {path: path.read_bytes() for path in save.iterdir() if path.is_file()} == before
    assert not wandb.modes and "step 2 of epoch 0, loss: " in done.out and "reference curve" not in done.out
    finished(flags(folder, log_dir=logs, training_steps=2))
    assert not logs.exists()


def test_a_resumed_run_goes_on_with_its_curves(folder):
    save = folder / "save"
    words = {"save_model_path": save, "save_per_steps": 2, "epochs": 2}
    finished(flags(folder, **words))
    whole = [(row["step"], row["loss"]) for row in rows(save / "curves.csv")]
    assert [step for step, _ in whole] == [str(i) for i in range(1, 9)]
    resume = {"pretrained_checkpoint": save / "step_2", "resume_training_from_checkpoint": True}
    finished(flags(folder, **words, **resume))
    assert [(row["step"], row["loss"]) for row in rows(save / "curves.csv")] == whole


def test_a_new_run_puts_the_curves_of_an_earlier_one_aside(folder):
    for _ in range(3):
        finished([*flags(folder, save_model_path=folder / "save", training_steps=2), "--overwrite"])
    names = sorted(path.name for path in (folder / "save").glob("curves*.csv"))
    assert names == ["curves-1.csv", "curves-2.csv", "curves.csv"]
    assert all(len(rows(folder / "save" / name)) == 2 for name in names)


def test_an_interrupted_run_keeps_its_curves(folder, monkeypatch):
    def explode(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "save_if_due", explode)
    done = run_here(flags(folder, save_model_path=folder / "save"))
    assert done.status == 130
    assert [row["step"] for row in rows(folder / "save" / "curves.csv")] == ["1"]
    assert json.loads((folder / "save" / "run.json").read_text())["end"]["finished"] is False


def test_the_picture(folder):
    pytest.importorskip("matplotlib")
    done = finished(flags(folder, save_model_path=folder / "save"))
    picture = folder / "save" / "curves.png"
    assert f"curves: {picture}" in done.out.splitlines()
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(data[16:20], "big") >= 600


def test_without_matplotlib_a_line_says_so(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = finished(flags(folder, save_model_path=folder / "save"))
    lines = [line for line in done.out.splitlines() if "curves.png" in line]
    assert len(lines) == 1 and "matplotlib is not installed (`pip install -r requirements-plots.txt`)" in lines[0]


def test_a_long_curve_is_thinned_out(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **rest: drawn.append(len(x)))
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    file = curves.CurveFile(tmp_path / "curves.csv", 0)
    for step in range(1, 10001):
        file.add({"step": step, "tokens": step, "loss": 1.0, "samples_per_second": 2.0})
    file.close()
    curves.draw([tmp_path / "curves.csv"], tmp_path / "curves.png")
    assert len(drawn) == 2 and all(2000 <= count <= 4000 for count in drawn)


# ---- The reference curve --------------------------------------------------------------------


def reference(path, text):
    path.write_text(text)
    return curves.ReferenceCurve(path)


def test_a_run_against_its_own_curve(folder):
    finished(flags(folder, save_model_path=folder / "save"))
    curve = folder / "save" / "curves.csv"
    again = finished(flags(folder, reference_curve=curve))
    line = again.out.splitlines()[-1]
    loss = f"{float(rows(curve)[-1]['loss']):.4f}"
    assert line == (
        f"reference curve {curve}: loss {loss} after 128 tokens, {loss} there (+0.0000, +0.0%); mean difference over "
        "4 logged steps +0.0000"
    )


def test_the_comparison_is_by_tokens_or_steps_and_between_the_points(tmp_path):
    by_step = reference(tmp_path / "a.csv", "step,loss\n10,4\n20,2\n")
    assert [by_step.loss_at(at) for at in (9, 10, 12.5, 20, 21)] == [None, 4, 3.5, 2, None]
    by_tokens = reference(tmp_path / "b.csv", "step,tokens,loss\n1,100,4\n2,200,2\n")
    for tokens, loss in ((50, 9.0), (100, 4.5), (150, 2.5)):
        by_tokens.add({"step": 1, "tokens": tokens, "loss": loss})
    assert by_tokens.line().endswith(
        "loss 2.5000 after 150 tokens, 3.0000 there (-0.5000, -16.7%); mean difference over 2 logged steps +0.0000"
    )


def test_nothing_in_common(tmp_path):
    curve = reference(tmp_path / "a.csv", "step,loss\n10,4\n")
    curve.add({"step": 5, "loss": 1.0})
    assert curve.line().endswith("this run and it have no step in common")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", ":1: needs the columns step and loss"),
        ("", ":1: needs the columns step and loss"),
        ("step,loss\n1,x\n", ":2: could not convert string to float: 'x'"),
        ("step,loss\n,1\n", ":2: no step"),
        ("step,loss\n1,\n", ": has no loss in it"),
    ],
)
def test_a_curve_that_cannot_be_used_is_refused_at_the_start(folder, text, message):
    path = folder / "curve.csv"
    path.write_text(text)
    done = run_here(flags(folder, reference_curve=path))
    assert done.status == 2 and "Traceback" not in done.err
    assert f"--reference-curve {path}: {path}{message}" in done.err


def test_a_folder_with_another_curves_csv_is_refused_when_resuming(folder):
    save = folder / "save"
    finished(flags(folder, save_model_path=save, save_per_steps=2))
    (save / "curves.csv").write_text("a,b\n")
    resume = {"pretrained_checkpoint": save / "step_2", "resume_training_from_checkpoint": True}
    done = run_here(flags(folder, save_model_path=save, **resume))
    assert done.status == 2 and "curves.csv:1: needs the columns step and loss" in done.err
    assert (save / "curves.csv").read_text() == "a,b\n"


# ---- Peak --------------------------------------------------------------------


def test_flops_per_token_of_gpt2_small():
    config = GPT2Config(n_layer=12, n_embd=768, n_head=12, vocab_size=50272, n_positions=1024)
    blocks = 12 * 12 * 768 * 768  # 84.9 million weights in the blocks' matrices
    assert machine.flops_per_token(config, 1024) == 6 * (blocks + 50272 * 768) + 12 * 12 * 1024 * 768


def test_the_share_of_the_peak(folder):
    done = finished(flags(folder, peak_tflops=0.01, log_steps=4))
    config = GPT2Config.from_json(str(folder / "tiny.json"))
    (line,) = [line for line in done.out.splitlines() if line.startswith("speed: ")]
    speed = float(line.split("speed: ")[1].split(" tokens")[0].replace(",", ""))
    share = float(line.split("tokens/sec, ")[1].split("%")[0])
    assert share == pytest.approx(100 * speed * machine.flops_per_token(config, 16) / 1e10, rel=0.01, abs=0.1)
    assert "peak: 0.01 TFLOP/s (--peak-tflops); a trained token takes" in done.out


def test_no_share_is_above_100_percent(folder, monkeypatch):
    """A stated peak that the run exceeds is said to be exceeded; of a measured one nothing is said."""
    monkeypatch.setattr(run_log, "_SPEED_LINES", 0.0)
    done = finished(flags(folder, training_steps=2, peak_tflops=1e-9))
    speeds = [line for line in done.out.splitlines() if line.startswith("speed: ")]
    assert len(speeds) == 2 and all("tokens/sec, more than the peak, " in line for line in speeds)
    monkeypatch.setattr(machine, "_measured", lambda: 1e4)
    monkeypatch.setattr(machine, "_time_products", lambda: 1e4)
    done = finished(flags(folder, training_steps=2))
    assert "of peak" not in done.out and "more than the peak" not in done.out


def test_no_share_of_a_cpu_that_is_slower_than_the_device(folder, monkeypatch):
    monkeypatch.setattr(machine, "_measured", lambda: 1.0)
    monkeypatch.setattr(machine, "_time_products", lambda: 1.0)
    assert "of peak" not in finished(flags(folder, training_steps=1)).out


def test_a_call_of_days_says_so_before_it_begins(folder):
    """2 samples of 16 tokens a call: 2.9e-7 TFLOP at 1e-12 TFLOP/s are 3.4 days."""
    done = finished(flags(folder, peak_tflops=1e-12, training_steps=1))
    lines = done.out.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("WARNING: "))
    config = GPT2Config.from_json(folder / "tiny.json")
    days = 2 * 16 * machine.flops_per_token(config, 16) / 86400  # at a FLOP/s
    assert f"a call takes {days:.1f} days, in practice more" in lines[at] and days > 1
    assert lines[at + 1].startswith("smaller calls: lower --gradient-accumulation 2")
    assert at < next(number for number, line in enumerate(lines) if line.startswith("step 1 "))
    assert "WARNING" not in finished(flags(folder, peak_tflops=1e-9, training_steps=1)).out, "5 minutes"


def test_the_peak_of_an_ipu_is_not_that_of_its_host(monkeypatch):
    monkeypatch.setattr(poptorch, "ipuHardwareIsAvailable", lambda: True)
    assert machine.device_peak(None) is None
    assert machine.device_peak(250.0).flops == 250e12


def test_a_run_whose_program_is_told_of_ipus_shows_what_it_computes_on(monkeypatch):
    found = machine.device_line(), machine.device_peak(1.0)
    monkeypatch.setenv("POPTORCH_PORTABLE_IPU_VERSION", "2")
    assert poptorch.ipuHardwareIsAvailable() and (machine.device_line(), machine.device_peak(1.0)) == found
    assert machine.device_peak(None) is not None


def test_a_peak_that_a_run_exceeds_was_measured_on_a_busy_cpu(folder, monkeypatch):
    monkeypatch.setattr(machine, "_measured", lambda: 1.0)
    found = iter([0.5, 1e15])
    monkeypatch.setattr(machine, "_time_products", lambda: next(found))
    monkeypatch.setattr(run_log, "_SPEED_LINES", 0.0)
    done = finished(flags(folder, training_steps=3, epochs=2))
    said = [line.split(" TFLOP/s")[0] for line in done.out.splitlines() if line.startswith("peak: ")]
    assert said == ["peak: 1e-12", "peak: 1e+03"]
    shares = ["of peak" in line for line in done.out.splitlines() if line.startswith("speed: ")]
    assert shares == [False, True, True]


def test_data_sheets(monkeypatch):
    monkeypatch.delenv("POPTORCH_PORTABLE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, flops in (("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("Tesla V100-SXM2", 125e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        peak = machine.device_peak(None)
        assert peak.flops == flops and name in peak.source
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another")
    assert machine.device_peak(None) is None


# ---- The gradient norm --------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["AdamW", "LAMB"])
def test_the_gradient_norm_is_plain_torchs(folder, optimizer):
    """At a learning rate of 0 the gradients of every call can be computed again; the moments are half."""
    argv = flags(folder, save_model_path=folder / "save", log_gradient_norm=True, learning_rate=0, optimizer=optimizer)
    finished(argv)
    logged = [(float(row["gradient_norm"]), row["loss_scale"]) for row in rows(folder / "save" / "curves.csv")]
    run = TrainingRun(parse_train_args([*argv, "--overwrite"]))
    expected = []
    for ids, labels in run.loader:
        gpt2 = load_or_make(run.args).half().float().eval()
        F.cross_entropy(gpt2(ids.long()).flatten(0, 1), labels.long().flatten()).backward()
        expected.append(sum(float(p.grad.square().sum()) for p in gpt2.parameters()) ** 0.5)
    assert len(logged) == 4 and all(scale == "1024" for _, scale in logged)
    assert [norm for norm, _ in logged] == pytest.approx(expected, rel=0.01)


def test_the_gradient_norm_of_a_resumed_run(folder):
    save = folder / "save"
    words = {"save_model_path": save, "save_per_steps": 2, "log_gradient_norm": True}
    finished(flags(folder, **words))
    whole = [float(row["gradient_norm"]) for row in rows(save / "curves.csv")]
    resume = {"pretrained_checkpoint": save / "step_2", "resume_training_from_checkpoint": True}
    finished(flags(folder, **words, **resume))
    assert [float(row["gradient_norm"]) for row in rows(save / "curves.csv")] == pytest.approx(whole, rel=1e-5)


# ---- TensorBoard and W&B --------------------------------------------------------------------


def test_tensorboard(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    corpus = write_corpus(folder / "corpus.pkl")
    argv = flags(folder, log_dir=folder / "runs", train_path=corpus, stride=16, val_num=2, training_steps=4)
    finished([*argv, "--log-gradient-norm"])
    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        *(f"train/{name}" for name in ("loss", "accuracy", "learning_rate", "loss_scale", "gradient_norm")),
        *("speed/samples_per_second", "speed/tokens_per_second", "speed/share_of_peak", "memory/host_gb"),
        "validation/loss",
    }
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    in_file = [(int(row["step"]), float(row["loss"])) for row in rows(folder / "runs" / "curves.csv") if row["loss"]]
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    assert [value for _, value in logged] == pytest.approx([value for _, value in in_file])
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 4]


def test_a_resumed_run_shows_each_step_once(folder):
    """From an earlier checkpoint: in TensorBoard and in curves.csv no step stands twice, the validation's neither."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    corpus = write_corpus(folder / "corpus.pkl")
    words = {"log_dir": folder / "runs", "train_path": corpus, "stride": 16, "val_num": 2, "eval_steps": 2}
    words.update(save_model_path=folder / "save", save_per_steps=2, training_steps=6)
    finished(flags(folder, **words))
    resume = {"pretrained_checkpoint": folder / "save" / "step_2", "resume_training_from_checkpoint": True}
    finished(flags(folder, **words, **resume))
    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 2, 4, 6]
    found = [(row["step"], bool(row["loss"])) for row in rows(folder / "save" / "curves.csv")]
    assert len(found) == len(set(found)) == 10


class FakeWandb(types.ModuleType):
    """Notes what it is asked; `online` says whether there is a network."""

    def __init__(self, online=False):
        super().__init__("wandb")
        self.online, self.modes, self.names, self.points, self.over = online, [], [], [], False
        self.dir = "wandb/offline-run-1/files"
        self.Settings = lambda **settings: settings

    def init(self, mode, name, **rest):
        self.modes.append(mode)
        self.names.append(name)
        if mode == "online" and not self.online:
            raise RuntimeError("no network")
        return self

    def log(self, figures, step):
        self.points.append((step, figures))

    def finish(self):
        self.over = True


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(training_checks, "installed", lambda package: True)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return fake


def test_wandb_is_offline_without_a_key(folder, wandb):
    finished(flags(folder, use_wandb=True, training_steps=2))
    assert wandb.modes == ["offline"] and wandb.over
    assert wandb.names[0].startswith("tiny-20"), "the file of --config and the date"
    assert [step for step, _ in wandb.points] == [1, 2] and {"train/loss", "memory/host_gb"} <= set(wandb.points[0][1])


def test_wandb_without_a_network_goes_on_offline(folder, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    done = finished(flags(folder, use_wandb=True, training_steps=2))
    assert wandb.modes == ["online", "offline"] and len(wandb.points) == 2
    assert done.out.count("W&B cannot be reached (no network); logging offline") == 1
    assert "W&B logs offline into wandb/offline-run-1: `wandb sync wandb/offline-run-1` sends it later" in done.out


def test_wandb_modes(wandb, monkeypatch, tmp_path):
    wandb.online = True
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    log_sinks.WeightsAndBiases("x", {})
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log_sinks.WeightsAndBiases("x", {})
    assert wandb.modes == ["online", "disabled"]


def test_wandb_that_does_not_start_is_a_refusal(folder, wandb, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **rest: 1 / 0)
    done = run_here(flags(folder, use_wandb=True))
    assert done.status == 2 and "--use-wandb: W&B does not start (division by zero); leave the flag out" in done.err


# ---- The terminal --------------------------------------------------------------------


def make_log(argv, calls=100):
    args = parse_train_args(argv)
    config = GPT2Config.from_json(args.config)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    return run_log.RunLog(args, config, calls, 0, samples_a_call=2, optimizer=optimizer)


def test_on_a_terminal_steps_between_the_lines_are_drawn(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(run_log, "_REDRAW", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    with make_log(flags(folder, log_steps=2, peak_tflops=1)) as log:
        capsys.readouterr()
        log.step(1, 0, 4.0, 0.5, 0.01, False)
        drawn = capsys.readouterr().out
        assert drawn.startswith("\r\x1b[Kstep 1/100 (1%), loss 4.0000, ") and "% of peak, " in drawn
        assert drawn.endswith(" left") and "\n" not in drawn
        log.step(2, 0, 3.0, 0.5, 0.01, False)
        logged = capsys.readouterr().out
        assert logged.startswith("\r\x1b[Kstep 2 of epoch 0, loss: 3.0000, ") and logged.endswith(" left\n")


def test_the_progress_line_has_the_rate_of_the_log_line(folder, monkeypatch, capsys):
    """One rate and one time left on the screen, not an average since the start beside that of the last steps."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(run_log, "_REDRAW", 0.0)
    monkeypatch.setattr(run_log, "_SPEED_LINES", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    with make_log(flags(folder, log_steps=2)) as log:
        log.clock.start()
        for step, seconds in ((1, 50.0), (2, 50.0), (3, 1.0), (4, 1.0), (5, 1.0)):
            now[0] += seconds
            capsys.readouterr()
            log.step(step, 0, 4.0, 0.5, 0.01, False)
            if step == 4:
                logged = capsys.readouterr().out.split("speed: ")[1]
        drawn = capsys.readouterr().out
    assert "32 tokens/sec, " in logged and "32 tokens/sec, " in drawn  # 2 samples of 16 tokens a second
    assert logged.endswith("0:01:36 left\n") and "0:01:35 left" in drawn


def test_elsewhere_there_are_plain_lines_only(folder, capsys):
    with make_log(flags(folder, log_steps=2)) as log:
        capsys.readouterr()
        log.step(1, 0, 4.0, 0.5, 0.01, False)
        assert capsys.readouterr().out == ""
        log.step(2, 0, 4.0, 0.5, 0.01, False)
        assert "\r" not in capsys.readouterr().out
