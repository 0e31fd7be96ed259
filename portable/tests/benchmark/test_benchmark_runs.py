"""Sessions with small programs: what runs, what is left behind, and what the exit status says."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmark_session import PRINTING, SIMPLE, Runner

from examples_utils.benchmark import process, suite
from examples_utils.benchmark.status_line import StatusLine, clock, last_line

PACKAGES = str(Path(__file__).resolve().parents[2])


@pytest.fixture
def runner(tmp_path):
    made = Runner(tmp_path)
    made.script(PRINTING)
    return made


def test_a_benchmark(runner):
    session = runner(SIMPLE)
    assert session.status == 0, session.out + session.err
    result = session.results["fast"]
    assert result["metrics"] == {"throughput": 40.0, "loss": 1.5} and result["output"] == {"samples/sec": 40.0}
    assert (result["status"], result["exit_code"], result["problems"]) == ("success", 0, [])
    assert result["command"] == ["python3", "program.py", "10", "20", "60"]
    assert session.log("fast").startswith("noise\nstep 0, throughput: 10 ")
    assert session.log("fast", "stderr.log") == "loss: 1.5,\n"
    assert session.out.splitlines()[0] == "[1/1] fast: started"
    assert "[1/1] fast: success in " in session.out and ", samples/sec 40\n" in session.out
    document = json.loads((session.logs / "benchmark_results.json").read_text())
    assert document["machine"]["cores"] >= 1 and document["versions"]["torch"] and document["date"].endswith("Z")
    assert document["commit"] is None  # the folder is no repository
    rows = list(csv.DictReader((session.logs / "benchmark_results.csv").open()))
    assert [(row["variant"], row["status"], row["throughput"], row["loss"]) for row in rows] == [
        ("fast", "success", "40.0", "1.5")
    ]


def test_the_commit_is_noted(runner):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(runner.folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    runner.spec.write_text(SIMPLE)
    (runner.folder / ".gitignore").write_text("logs\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert json.loads((runner(None).logs / "benchmark_results.json").read_text())["commit"] == head
    changed = runner(SIMPLE + "# changed\n")
    assert json.loads((changed.logs / "benchmark_results.json").read_text())["commit"] == head + " with changes"


def test_csv_metrics(runner):
    session = runner(SIMPLE, "--csv-metrics", "loss")
    header = (session.logs / "benchmark_results.csv").read_text().splitlines()[0]
    assert header == "date,commit,hardware,benchmark,variant,status,seconds,loss"


def test_a_metric_that_is_not_found_is_a_failure(runner):
    session = runner(SIMPLE.replace("python3 program.py 10 20 60", "python3 program.py 10"))
    assert session.status == 1
    result = session.results["fast"]
    assert result["status"] == "failure" and result["metrics"] == {"loss": 1.5} and result["exit_code"] == 0
    assert "was not found after the first 1 of 1" in result["problems"][0]
    assert f"logs: {session.logs / 'fast'}" in session.out


def test_exit_statuses_and_signals(runner):
    text = """
good: {cmd: python3 -c 'print(1)'}
bad: {cmd: python3 -c 'raise SystemExit(3)'}
killed:
  cmd: python3 -c 'import os; os.kill(os.getpid(), 9)'
missing: {cmd: no-such-program-anywhere x}
"""
    session = runner(text)
    assert session.status == 1
    found = {name: (result["status"], result["problems"]) for name, result in session.results.items()}
    assert found == {
        "good": ("success", []),
        "bad": ("failure", ["exit status 3"]),
        "killed": ("failure", ["killed by SIGKILL"]),
        "missing": ("failure", ["no-such-program-anywhere cannot be started (No such file or directory)"]),
    }
    assert "1 succeeded, 3 failed" in session.out


def test_stop_on_error(runner):
    text = "bad: {cmd: python3 -c 'raise SystemExit(3)'}\ngood: {cmd: python3 -c '1'}\n"
    session = runner(text, "--stop-on-error")
    assert session.status == 1 and list(session.results) == ["bad"]


def test_benchmarks_are_chosen_by_name_and_by_variant(runner):
    text = (
        "a: {cmd: 'python3 program.py {n}', parameters: {n: [1, 2]}}\nb: {cmd: python3 program.py}\nc_conv: {cmd: x}\n"
    )
    assert list(runner(text, "--benchmark", "a").results) == ["a_n_1", "a_n_2"]
    assert list(runner(text, "--benchmark", "b", "a_n_2").results) == ["b", "a_n_2"]
    assert list(runner(text, "--benchmark", "a_n_2", "c_conv", "a").results) == ["a_n_2", "c_conv", "a_n_1"]
    assert list(runner(text).results) == ["a_n_1", "a_n_2", "b"]
    assert list(runner(text, "--include-convergence").results) == ["a_n_1", "a_n_2", "b", "c_conv"]


def test_variants_have_their_own_logs_and_commands(runner):
    text = """
x:
  cmd: python3 program.py {rate} $EXTRA
  env: {EXTRA: '$BASE-{rate}', BASE: 7}
  data: {rate: {regexp: 'throughput: (\\d+) samples'}}
  derived: {tokens: {expr: rate * 1024}}
  parameters: {rate: [3, 5]}
"""
    text = text.replace("{EXTRA: '$BASE-{rate}', BASE: 7}", "{BASE: 7, EXTRA: '$BASE{rate}'}")
    session = runner(text)
    assert session.status == 0, session.out
    assert {name: result["metrics"] for name, result in session.results.items()} == {
        "x_rate_3": {"rate": 38.0, "tokens": 38 * 1024.0},
        "x_rate_5": {"rate": 40.0, "tokens": 40 * 1024.0},
    }
    assert session.log("x_rate_3") != session.log("x_rate_5")


def test_no_value_reaches_a_shell(runner, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", "; touch injected_by_variable")
    runner.script("import json, sys; print('words', json.dumps(sys.argv[1:]))")
    text = (
        "x:\n  cmd: python3 program.py {p} $EVIL\n  parameters: {p: ['$(touch injected)', '; touch injected', '* ~']}\n"
    )
    session = runner(text)
    assert session.status == 0
    given = [json.loads(session.log(name).removeprefix("words ")) for name in session.results]
    assert [words[0] for words in given] == ["$(touch injected)", "; touch injected", "* ~"]
    assert all(words[1] == "; touch injected_by_variable" for words in given)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("injected")]


def test_it_runs_beside_the_spec_file_wherever_it_is_started(runner, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "requirements.txt").write_text("")
    text = "x: &x {cmd: python3 -c 'import os; print(os.getcwd())'}\ny: {<<: *x, location: sub}\n"
    monkeypatch.chdir(elsewhere)
    session = runner(text)
    assert session.log("x").strip() == str(tmp_path) and session.log("y").strip() == str(tmp_path / "sub")
    assert not list(elsewhere.iterdir())


def test_the_default_log_folder_is_in_the_current_one(runner, tmp_path):
    runner.spec.write_text(SIMPLE)
    command = [sys.executable, "-m", "examples_utils", "benchmark", "--spec", str(runner.spec)]
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        command, cwd=tmp_path / "here", env={**os.environ, "PYTHONPATH": PACKAGES}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "here" / "benchmark_logs").glob("*/fast/stdout.log"))) == 1


def test_requirements_and_pre_run_commands(runner, tmp_path, monkeypatch):
    """pip stands for itself: an interpreter that writes down what it was asked."""
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\necho "$@" >> asked.txt\n')
    python.chmod(0o755)
    monkeypatch.setattr(suite.sys, "executable", str(python))
    (tmp_path / "requirements.txt").write_text("")
    text = """
common_options: &common
  requirements_path: requirements.txt
  pre_run_commands: [python3 one, python3 two three]
a: {<<: *common, cmd: 'python3 run {n}', parameters: {n: [1, 2]}}
b: {<<: *common, cmd: python3 run b}
"""
    session = runner(text)
    assert session.status == 0, session.out
    assert (tmp_path / "asked.txt").read_text().splitlines() == [
        f"-m pip install --disable-pip-version-check -r {tmp_path}/requirements.txt",
        *("one", "two three", "run 1", "run 2", "one", "two three", "run b"),
    ]


def test_a_set_up_that_fails_fails_the_benchmark_before_it_runs(runner, tmp_path):
    text = "x:\n  cmd: python3 program.py\n  pre_run_commands: [python3 -c 'raise SystemExit(4)']\n"
    session = runner(text)
    assert session.status == 1 and not (session.logs / "x" / "stdout.log").exists()
    assert session.results["x"]["problems"][0].startswith(
        "pre-run command python3 -c raise SystemExit(4): exit status 4"
    )
    (tmp_path / "r.txt").write_text("-r missing.txt\n")
    session = runner("x: {cmd: python3 program.py, requirements_path: r.txt}\n")
    assert session.results["x"]["problems"][0].startswith("pip install -r r.txt: exit status 1; see ")


def test_compile_only_adds_the_flag_and_asks_for_no_figures(runner):
    session = runner(SIMPLE, "--compile-only")
    assert session.status == 0
    assert session.results["fast"]["command"][-1] == "--compile-only" and session.results["fast"]["metrics"] == {}


def test_profile_sets_the_engine_options(runner, tmp_path):
    runner.script("import os; print(os.environ['POPLAR_ENGINE_OPTIONS'])")
    session = runner("x: {cmd: python3 program.py}\n", "--profile")
    assert json.loads(session.log("x")) == {
        "autoReport.all": "true",
        "autoReport.directory": str(tmp_path / "x_profile"),
        "autoReport.outputSerializedGraph": "false",
    }


def test_wandb_only_if_it_is_allowed(runner):
    runner.script("import os, sys; print(sys.argv[1:], os.environ.get('WANDB_MODE'))")
    text = "x: {cmd: python3 program.py --a --use-wandb True --use_wandb=1 --wandb b --c}\n"
    assert runner(text).log("x").strip() == "['--a', 'b', '--c'] disabled"
    assert "--use-wandb" in runner(text, "--allow-wandb").log("x")


# A program whose child, and with `trap` itself too, ignores the polite signal.
CHILD = "trap '' TERM\nsleep 600 &\necho child $!\nwait\n"


def alive(pid: int) -> bool:
    """Whether a process is there and more than an entry that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 200
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_a_time_out_ends_the_children_too(runner, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.2)
    runner.script(CHILD, "program.sh")
    session = runner("x: {cmd: sh program.sh}\n", "--timeout", "1.5")
    assert session.status == 1
    assert session.results["x"]["status"] == "timeout"
    assert session.results["x"]["problems"] == ["timed out after 1.5 s"]
    assert ends(int(session.log("x").split()[1]))


def test_a_session_leaves_the_signals_of_its_process_as_they_were(runner):
    before = signal.getsignal(signal.SIGTERM)
    assert runner("x:\n  cmd: echo\n").status == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_session_leaves_results_and_no_process(runner, number):
    runner.script(CHILD.replace("trap '' TERM\n", ""), "program.sh")
    runner.spec.write_text("good: {cmd: python3 -c '1'}\nx: {cmd: sh program.sh}\nlater: {cmd: python3 -c '1'}\n")
    logs = runner.folder / "logs"
    command = [sys.executable, "-m", "examples_utils", "benchmark", "--spec", str(runner.spec), "--log-dir", str(logs)]
    session = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": PACKAGES}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = logs / "x" / "stdout.log"
    while not (log.exists() and log.read_text().endswith("\n")):
        assert session.poll() is None, session.communicate()
        time.sleep(0.02)
    session.send_signal(number)
    _, err = session.communicate(timeout=300)
    assert session.returncode == 130 and "interrupted; results so far are in" in err and "Traceback" not in err
    results = json.loads((logs / "benchmark_results.json").read_text())["benchmarks"]
    assert [(each["variant"], each["status"]) for each in results] == [("good", "success"), ("x", "interrupted")]
    assert ends(int(log.read_text().split()[1]))


def test_an_interruption_while_a_program_starts_ends_it(runner, monkeypatch):
    started, real = [], subprocess.Popen

    def interrupted_popen(*arguments, **keywords):
        started.append(real(*arguments, **keywords))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(process.subprocess, "Popen", interrupted_popen)
    out, err = runner.folder / "out", runner.folder / "err"
    with pytest.raises(KeyboardInterrupt):
        process.run(["sleep", "600"], runner.folder, os.environ, out, err)
    try:
        assert started[0].poll() == -signal.SIGTERM
    finally:
        started[0].kill()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_logs_of_an_earlier_session_are_replaced(runner):
    runner(SIMPLE)
    (runner.folder / "logs" / "fast" / "mine.txt").write_text("kept")
    session = runner(SIMPLE)
    assert session.log("fast").count("noise") == 1 and session.log("fast", "mine.txt") == "kept"


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_on_a_terminal_the_line_shows_what_was_printed_last(tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("step 1\nstep 2\x1b[31m\n\n")
    err.write_text("")
    terminal = Terminal()
    line = StatusLine("[1/2] x", terminal)
    line.watch(83.0, out, err)
    assert terminal.text.startswith("\r[1/2] x  1:23  step 2[31m")
    line.finish("success")
    assert terminal.text.endswith("\r[1/2] x: success\n") and terminal.text.count("\n") == 1


def test_last_line_and_clock(tmp_path):
    (tmp_path / "a").write_text("x" * 9000 + "\nprogress 1\rprogress 2")
    (tmp_path / "b").write_text("")
    assert last_line(tmp_path / "a", tmp_path / "b") == "progress 2" and last_line(tmp_path / "b") == ""
    assert [clock(s) for s in (0, 59.9, 3600)] == ["0:00", "0:59", "1:00:00"]
