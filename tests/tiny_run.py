"""A training run of a second or two: its model, its corpus, and the program with its flags, in this process or another.

Used by the tests of the training program.
"""

import concurrent.futures
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import warm_process
from launch import free_port

import train_gpt2
from data.articles.pickle_file import write_articles

# On tensors this small, threads that wait for each other cost a hundred times the work if the machine is busy.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
REAL_VOCABULARY = 61

CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 64,
    "real_vocab_size": REAL_VOCABULARY,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "activation_function": "gelu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


LOG_FILES = {"curves.csv", "curves.png", "run.json"}


def saved_in(folder: Path) -> set:
    """The names in a folder of checkpoints, without the log of the run."""
    return {path.name for path in folder.iterdir()} - LOG_FILES


def write_config(folder: Path, **changes) -> Path:
    """config.json of the tiny model, with changes."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.json"
    path.write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    return path


def write_corpus(path: Path, articles: int = 12, length: int = 40, largest_id: int = REAL_VOCABULARY - 1) -> Path:
    """A corpus of articles of that many ids, in which each id is one more than that before it, at times two."""
    random = np.random.default_rng(0)
    steps = random.integers(1, 3, (articles, length)).cumsum(axis=1)
    with path.open("wb") as file:
        write_articles(file, (row for row in steps % (largest_id + 1)), largest_id)
    return path


def flags(folder: Path, **changes) -> list:
    """The command line of the tiny run: `changes` by attribute, None to leave a flag out."""
    values = {
        "config": folder / "tiny.json",
        "max_len": 16,
        "batch_size": 1,
        "gradient_accumulation": 2,
        "device_iterations": 1,
        "learning_rate": 0.01,
        "num_workers": 0,
        "loss_scaling": 1024,
        **changes,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", *str(value).split())]


class Finished:
    """What a run came to: exit status, standard output, standard error."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


def run_here(argv: list) -> Finished:
    """train_gpt2.py in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = train_gpt2.main(argv)
        except SystemExit as end:
            status = end.code
    return Finished(status, out.getvalue(), err.getvalue())


def environment() -> dict:
    """Of a process that runs the program: modules and threads of this one. The number of threads shows in last bits."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def run_there(argv: list, timeout: float = 300.0, cold: bool = False) -> Finished:
    """train_gpt2.py in a process of its own; `cold`: with nothing imported."""
    words = [str(ROOT / "train_gpt2.py"), *argv]
    if cold:
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=timeout)
    else:
        done = warm_process.run(words, environment(), timeout=timeout)
    return Finished(done.returncode, done.stdout, done.stderr)


def together(processes: int, argv: list, program: str = "train_gpt2.py") -> Finished:
    """The program in processes that begin with everything imported, with the environment that torchrun gives them.

    Returns the exit status that is farthest from 0, a signal's is negative, and what all of them said.
    """
    common = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": free_port()}
    started = []
    for rank in range(processes):
        own = {**common, "MASTER_ADDR": "127.0.0.1", "RANK": rank, "LOCAL_RANK": rank}
        variables = {**environment(), **{name: str(value) for name, value in own.items()}}
        started.append(warm_process.PipedProcess([ROOT / program, *argv], variables))
    with concurrent.futures.ThreadPoolExecutor(processes) as readers:
        said = list(readers.map(lambda process: process.communicate(300), started))
    return Finished(max((process.wait() for process in started), key=abs), *map("".join, zip(*said)))


def run_together(processes: int, argv: list, **program: str) -> Finished:
    """What `together` gives, of processes that succeed."""
    done = together(processes, argv, **program)
    assert done.status == 0, done.err
    return done


class Running:
    """train_gpt2.py in a process group of its own, as a terminal or a scheduler starts it: signals reach all of it.

    `cold`: with nothing imported, for what is about the start.
    """

    def __init__(self, argv: list, program: str = "train_gpt2.py", cold: bool = False) -> None:
        words = [str(ROOT / program), *argv]
        self.process = (
            warm_process.PipedProcess(words, environment())
            if not cold
            else subprocess.Popen(
                [sys.executable, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
                start_new_session=True,
            )
        )

    def wait_for(self, stream, text: str) -> None:
        for line in stream:
            if text in line:
                return
        raise AssertionError(f"{text!r} never came; {self.process.stderr.read()}")

    def interrupt(self, number: int = signal.SIGINT) -> None:
        os.killpg(self.process.pid, number)

    def end(self, timeout: float) -> tuple:
        """Exit status, standard output and error, what was waited for left out."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err
