"""The report of POPLAR_ENGINE_OPTIONS: when it is written, where, and that its times add up."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch

import poptorch
from poptorch.engine.processes import clock
from poptorch.engine.running import ledger
from poptorch.options import engine_options
from poptorch.reports import auto_report, phases
from poptorch.reports.report_text import operator_rows


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)

    def forward(self, x, y=None):
        with poptorch.Block("a", ipu_id=0):
            hidden = self.first(x).relu()
        with poptorch.Block("b", ipu_id=1):
            out = self.second(hidden).squeeze(1)
            return out if y is None else (out, poptorch.identity_loss((out - y).square(), "mean"))


def options(accumulation: int = 1, iterations: int = 1) -> poptorch.Options:
    opts = poptorch.Options().deviceIterations(iterations)
    opts.setExecutionStrategy(poptorch.ShardedExecution())
    opts.Training.gradientAccumulation(accumulation)
    return opts


def train(calls: int, accumulation: int = 4, opts: poptorch.Options | None = None) -> poptorch.PoplarExecutor:
    executor = poptorch.trainingModel(Model(), opts or options(accumulation))
    for _ in range(calls):
        executor(torch.randn(accumulation, 4), torch.zeros(accumulation))
    return executor


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch):
    monkeypatch.setattr(auto_report, "_active", [])
    monkeypatch.setattr(auto_report, "_taken", set())
    monkeypatch.delenv(engine_options.VARIABLE, raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    ask(monkeypatch, {"autoReport.all": "true", "autoReport.directory": str(tmp_path / "my_profile")})
    return tmp_path / "my_profile"


def ask(monkeypatch, value) -> None:
    monkeypatch.setenv(engine_options.VARIABLE, value if isinstance(value, str) else json.dumps(value))


def times(text: str) -> dict[str, float]:
    """Seconds by line of the first table."""
    found = re.findall(r"^ *(\w[\w ]*?) +([\d.]+) s +[\d.]+%", text, re.MULTILINE)
    return {name: float(seconds) for name, seconds in found}


def test_without_the_variable_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executor = train(2)
    assert type(executor._probe) is auto_report.Probe and not list(tmp_path.iterdir())
    loader = poptorch.DataLoader(options(), [torch.zeros(1)] * 4)
    assert not isinstance(iter(loader), auto_report.WatchedIterator)


def test_the_files(folder, capsys):
    train(3)
    names = ["report.html", "report.json", "summary.txt", "trace.json"]
    assert sorted(path.name for path in (folder / "training").iterdir()) == names
    names = {event.get("name") for event in json.loads((folder / "training" / "trace.json").read_text())["traceEvents"]}
    assert {"stage 0 forward", "stage 1 forward", "backward", "optimizer", "aten::addmm"} <= names
    assert capsys.readouterr().err.count(f"poptorch: report in {folder / 'training'}\n") == 1


def test_numbers_are_the_same_with_a_report(folder, monkeypatch):
    def losses() -> list[float]:
        torch.manual_seed(3)
        executor = poptorch.trainingModel(Model(), options(accumulation=4))
        torch.manual_seed(4)
        return [float(executor(torch.randn(4, 4), torch.zeros(4))[1]) for _ in range(4)]

    with_report = losses()
    monkeypatch.delenv(engine_options.VARIABLE)
    assert losses() == with_report


class Clock:
    """Every look at it takes a second."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


def test_phases_add_up_to_the_wall_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    book = ledger.Ledger("between")
    with book.during("call"):
        with book.during("stage"):
            book.switch("backward")
        clock.now += 10
    assert book.seconds == {"between": 1, "call": 1 + 11, "stage": 1, "backward": 1}
    assert book.switch("end") == "between"
    assert sum(book.seconds.values()) == clock.now - book.started


def test_the_sum_is_the_wall_time_of_an_independent_clock(folder, monkeypatch):
    executor = train(1)
    start = time.perf_counter()
    for _ in range(5):
        time.sleep(0.1)  # the program, between calls
        executor(torch.randn(4, 4), torch.zeros(4))
    measured = time.perf_counter() - start
    executor._probe.write()
    text = (folder / "training" / "summary.txt").read_text()
    found = times(text)
    phases = {name: seconds for name, seconds in found.items() if name not in ("wall time", "sum of the phases")}
    assert set(phases) == {
        *("data wait", "program between calls", "optimizer", "rest of the calls"),
        *(f"stage {i} {way}" for i in (0, 1) for way in ("forward", "backward")),
    }
    assert sum(phases.values()) == pytest.approx(found["wall time"], abs=0.005)
    left_out = float(re.search(r"left out: profiler and report ([\d.]+) s", text).group(1))
    assert found["wall time"] + left_out == pytest.approx(measured, abs=0.1)  # a busy machine
    assert phases["program between calls"] >= 0.4 and "5 calls after the first one" in text
    assert "4 micro-batches of the second call" in text and "20 micro-batches" in text


def test_waiting_for_the_reports_of_other_processes_is_no_time_of_the_program(folder, monkeypatch):
    executor, seen = train(2), []
    report = executor._probe
    monkeypatch.setattr(report, "_rank", 0)
    monkeypatch.setattr(
        clock, "gather", lambda events, facts: (seen.append(report._ledger.phase), (events, [facts]))[1]
    )
    executor._session.tell(report)
    assert seen == [phases.REPORTING] and report._ledger.phase == phases.BETWEEN


def test_waiting_for_data_counts(folder):
    class Slow(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index):
            time.sleep(0.005)
            return torch.zeros(4), torch.zeros(())

    executor = poptorch.trainingModel(Model(), options(accumulation=4))
    for x, y in poptorch.DataLoader(options(accumulation=4), Slow()):
        executor(x, y)
    executor._probe.write()
    found = times((folder / "training" / "summary.txt").read_text())
    assert found["data wait"] >= 3 * 4 * 0.005 > found["program between calls"]


def test_a_backward_pass_is_shared_out_among_the_stages(folder, monkeypatch):
    """A slow backward pass in stage 0 is found there."""
    # What is made slow is the stage that runs one micro-batch.
    monkeypatch.setenv("POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE", "1")

    class SlowBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.02)
            return gradient

    executor = train(1)
    stage = executor.program.stages[0]
    run = stage.run

    def slow(values):
        run(values)
        for name in stage.outputs:
            values[name] = SlowBackward.apply(values[name])

    monkeypatch.setattr(stage, "run", slow)
    for _ in range(2):
        executor(torch.randn(4, 4), torch.zeros(4))
    executor._probe.write()
    found = times((folder / "training" / "summary.txt").read_text())
    assert found["stage 0 backward"] >= 2 * 4 * 0.02 > found["stage 1 backward"]


def test_the_list_ends_at_ninety_percent(folder):
    train(2)
    text = (folder / "training" / "summary.txt").read_text()
    rows = re.findall(r"^ +[\d.]+ +([\d.]+)% +([\d.]+)% +[\d,]+  \S", text, re.MULTILINE)
    shares, running = zip(*((float(a), float(b)) for a, b in rows), strict=True)
    assert list(shares) == sorted(shares, reverse=True)
    # Figures are rounded: 89.96 reads 90.0 and is not the end yet.
    assert running[-1] >= 90.0 and all(value <= 90.0 for value in running[:-1])
    covered = float(re.search(r"ms in all, ([\d.]+)% of the wall time", text).group(1))
    assert 95 <= covered <= 105


def test_operator_rows_on_cuda_are_kernels():
    class Event:
        def __init__(self, key, kind, cpu, device, annotation=False):
            self.key, self.count, self.self_cpu_time_total, self.self_device_time_total = key, 1, cpu, device
            self.device_type, self.is_user_annotation = kind, annotation

    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        Event("aten::mm", cpu, 100.0, 900.0),
        Event("gemm", cuda, 0.0, 900.0),
        Event("stage 0 forward", cuda, 0.0, 950.0, annotation=True),
    ]
    assert operator_rows(events, "cuda") == [(900e-6, 1, "gemm")]


def test_executors_have_folders_of_their_own_and_do_not_count_each_others_calls(folder):
    trained = train(2)
    other = train(1)
    with torch.no_grad():
        poptorch.inferenceModel(Model(), options())(torch.randn(1, 4))
    assert sorted(path.name for path in folder.iterdir()) == ["inference", "training", "training_1"]
    trained(torch.randn(4, 4), torch.zeros(4))
    trained._probe.write()
    assert "calls of other executors" in (folder / "training" / "summary.txt").read_text()
    assert other._probe._ledger.phase == auto_report.BETWEEN


def test_a_directory_of_another_name_gets_a_folder_that_ends_in_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_options.sys, "argv", ["some/where/train.py", "--flag"])
    ask(monkeypatch, {"autoReport.all": "true", "autoReport.directory": str(tmp_path)})
    train(1)
    assert (tmp_path / "train_profile" / "training" / "summary.txt").is_file()


def test_enable_profiling(tmp_path):
    train(1, opts=options(4).enableProfiling(str(tmp_path / "x_profile")))
    assert (tmp_path / "x_profile" / "training" / "trace.json").is_file()


def test_details_decide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask(monkeypatch, {"autoReport.all": "true", "autoReport.outputExecutionProfile": "false"})
    train(1)
    ask(monkeypatch, {"autoReport.all": "false"})
    train(1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value, message",
    [
        ('{"autoReport.all": "true"', "POPLAR_ENGINE_OPTIONS is not valid JSON (Expecting ',' delimiter: line 1"),
        ("true", "POPLAR_ENGINE_OPTIONS must be a JSON object, not 'true'. An example: {"),
        ('{"autoReport.all": true}', 'the value of "autoReport.all" must be a text in quotes, not true'),
        ('{"autoReport.all": "yes"}', 'Engine option "autoReport.all" must be "true" or "false", not \'yes\''),
    ],
)
def test_mistakes_are_told_when_the_executor_is_made(value, message, monkeypatch):
    ask(monkeypatch, value)
    with pytest.raises(poptorch.Error) as caught:
        poptorch.inferenceModel(Model())
    assert message in str(caught.value)


def test_a_folder_that_cannot_be_written_is_said_and_the_program_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "file_profile").write_text("")
    ask(monkeypatch, {"autoReport.all": "true", "autoReport.directory": str(tmp_path / "file_profile")})
    train(2)
    err = capsys.readouterr().err
    assert err.count("The report cannot be written to") == 1 and "name another folder" in err


def test_an_interrupted_call_is_reported(folder, monkeypatch):
    executor = train(1)
    monkeypatch.setattr(executor._session.optimizer, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        executor(torch.randn(4, 4), torch.zeros(4))
    assert not executor._probe._trace.running and executor._probe._ledger.phase == auto_report.BETWEEN
    assert "1 calls after" in (folder / "training" / "summary.txt").read_text()
