"""Runs of train_gpt2.py and tasks/evaluate_wiki.py for benchmarks/seeds.py: each is made once, then read again."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

from corpora.strict_json import json_text
from model.config import MODELS, GPT2Config
from model.derived_config import resized, with_vocabulary, write

ROOT = Path(__file__).resolve().parents[1]
DUMP = Path("demo/extracted")
VOCABULARY = 4096  # entries: with GPT-2's 50,257 a small model is little but its embedding
LENGTH, BATCH, HELD_OUT = 128, 8, 256  # tokens of a sample, samples of an update, samples held out


class Settings(NamedTuple):
    """Weight updates of a run, and the seeds of the runs that are made more than once."""

    steps: int
    seeds: list[int]


class Runs:
    """Trained and evaluated models in a folder. `threads` are each program's CPU threads.

    Raises RuntimeError with the end of a program's output if it fails, KeyboardInterrupt after it has ended.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.tokenizer, self.corpus = folder / "tokenizer", folder / "data" / "corpus.pkl"
        self.held_out = folder / "data" / "held-out.txt"  # a tenth of the articles, that no run trains on

    def prepare(self) -> None:
        """The excerpt of `make demo` with a vocabulary of its own, as far as it is not there."""
        python = sys.executable
        if not DUMP.is_dir():
            self._run(["bash", "run/demo_corpus.sh"], "demo_corpus")
        if not (self.tokenizer / "tokenizer.json").is_file():
            words = ["--input", str(DUMP), "--vocab-size", str(VOCABULARY), "--output", str(self.tokenizer)]
            self._run([python, "-m", "tokenizer.train", *words], "tokenizer")
        if not self.corpus.is_file():
            words = ["--input", str(DUMP), "--tokenizer", str(self.tokenizer), "--validation-fraction", "0.1"]
            self._run([python, "-m", "data.prepare", *words, "--output", str(self.corpus.parent)], "prepare")
        if not self.held_out.is_file():
            self.held_out.write_text(self._text(self.corpus.with_name("corpus-valid.pkl")), encoding="utf-8")

    def _text(self, corpus: Path) -> str:
        from data.articles.corpus import open_corpus
        from tokenizer import open_tokenizer

        tokenizer, articles = open_tokenizer(folder=self.tokenizer), open_corpus(str(corpus), VOCABULARY)
        bounds = zip(articles.offsets[:-1], articles.offsets[1:] - 1)  # without <|endoftext|>
        return "\n\n".join(tokenizer.decode(articles.tokens[begin:end].tolist()) for begin, end in bounds)

    def config(self, model: str, layers: int, width: int, heads: int) -> GPT2Config:
        """A named model in small, for the vocabulary of these runs."""
        return with_vocabulary(resized(GPT2Config.from_json(MODELS[model]), layers, width, heads), VOCABULARY, 0)

    def unigram(self, seed: int) -> float:
        """Nats a token of a unigram model on what a run with this seed holds out."""
        split = ["--train-path", str(self.corpus), "--max-len", str(LENGTH), "--stride", str(LENGTH)]
        split += ["--val-num", str(HELD_OUT), "--seed", str(seed), "--real-vocab-size", str(VOCABULARY)]
        return float(self._run([sys.executable, "-m", "data.baseline", *split], f"unigram-{seed}").split()[-1])

    def train(self, name: str, config: GPT2Config, flags: Sequence[str], keep: bool = False) -> dict[str, Any]:
        """The figures of a run: steps, tokens, held-out loss (None if it diverged), samples a second.

        Args:
            name: its folder in the folder. flags: beside those of the data. keep: leave the checkpoint there.
        """
        folder = self.folder / "runs" / name
        path = folder.with_name(f"{folder.name}.config.json")
        data = ["--train-path", str(self.corpus), "--stride", str(LENGTH), "--val-num", str(HELD_OUT)]
        data = ["--max-len", str(LENGTH), *data] if "--train-path" not in flags else []
        words = [*data, "--device-iterations", "1", "--num-workers", "0", "--loss-scaling", "1024", *flags]
        words = ["--config", str(path), *words, "--save-model-path", str(folder)]
        this = {"words": words, "config": config.to_dict()}
        done = _read(folder / "done.json")
        if done is not None and done["run"] == this and (not keep or checkpoint(folder)):
            return done["figures"]
        goes_on = _read(folder / "run_of.json") == this
        write(config, path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run_of.json").write_text(json_text(this), encoding="utf-8")
        for of_an_earlier_run in folder.glob("evaluation-*.json"):
            of_an_earlier_run.unlink()
        print(f"  {name}", flush=True)
        began, processor_began = time.monotonic(), _processor_seconds()
        safe = ["--save-per-steps", "100", "--keep-checkpoints", "1"]
        start = ["--resume", "latest"] if goes_on else ["--overwrite"]
        diverged: dict[str, Any] = {}
        try:
            self._run([sys.executable, "train_gpt2.py", *words, *safe, *start], f"runs/{name}/log")
        except Diverged:
            diverged = {"held_out_loss": None}
        took = {"seconds": time.monotonic() - began, "processor_seconds": _processor_seconds() - processor_began}
        took = {key: round(value, 1) for key, value in took.items()}
        figures = {**figures_of(folder), **diverged, **took, **_where()}
        (folder / "done.json").write_text(json_text({"run": this, "figures": figures}, indent=2), encoding="utf-8")
        if not keep:
            for saved in folder.glob("*/training_state.pt"):
                shutil.rmtree(saved.parent)
        return figures

    def evaluate(self, name: str, length: int) -> dict[str, Any]:
        """Token perplexity of the held-out articles in windows of `length`, or under "refused" why there is none."""
        folder = self.folder / "runs" / name
        path = folder / f"evaluation-{length}.json"
        if not path.is_file():
            words = ["--task", "TEXT", "--protocols", "token", "--valid-data", str(self.held_out)]
            words += ["--pretrained-checkpoint", str(checkpoint(folder)), "--seq-length", str(length)]
            words += ["--json", str(path.with_suffix(".part")), "--batch-size", "4", "--device-iterations", "1"]
            try:
                self._run([sys.executable, "tasks/evaluate_wiki.py", *words], f"runs/{name}/evaluation-{length}")
            except Refused as refusal:
                path.with_suffix(".part").write_text(json_text({"refused": str(refusal)}), encoding="utf-8")
            path.with_suffix(".part").replace(path)
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if "refused" in found else {"perplexity": found["results"][0]["values"]["ppl"]}

    def _run(self, command: list[str], log: str) -> str:
        """The output of a program, which is also in a file. A signal is passed on to it, and it ends first."""
        path = self.folder / f"{log}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        threads = {"OMP_NUM_THREADS": str(self.threads), "PYTHON": sys.executable}
        with path.open("w", encoding="utf-8") as output:
            program = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **threads}, stdout=output, stderr=output, start_new_session=True
            )
            with _ended(program):
                status = program.wait()
        text = path.read_text(encoding="utf-8", errors="replace")
        if status == 2:
            raise Refused(text.strip().splitlines()[-1].strip() if text.strip() else "")
        if status == 1 and "no longer finite" in text:
            raise Diverged(text.strip().splitlines()[-1])
        if status:
            raise RuntimeError(
                f"{' '.join(command)}\nended with exit status {status}, {path} has its output:\n{text[-2000:]}"
            )
        return text


class Refused(RuntimeError):
    """A program that ended with exit status 2; the message is its last line."""


class Diverged(RuntimeError):
    """A run whose loss or weights are no longer finite."""


@contextlib.contextmanager
def _ended(program: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        program.terminate()  # train_gpt2.py leaves a checkpoint, from which the next start goes on
        program.wait()
        raise


def checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in the folder of a run."""
    found = [path.parent for path in folder.glob("*/config.json")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def figures_of(folder: Path) -> dict[str, Any]:
    """What curves.csv says of a run: its end, and the median speed without the first logged calls."""
    from training.log.curves import CURVES_FILE, read_rows

    rows = list(read_rows(folder / CURVES_FILE))
    held_out = [row["validation_loss"] for row in rows if row["validation_loss"] is not None]
    speeds = [row["samples_per_second"] for row in rows if row["samples_per_second"]]
    last = rows[-1]
    return {
        "steps": int(last["step"] or 0),
        "tokens": int(last["tokens"] or 0),
        "held_out_loss": held_out[-1] if held_out else None,
        "samples_per_second": statistics.median(speeds[1:] or speeds),
    }


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _processor_seconds() -> float:
    """Of all programs that were started here and have ended: what a run takes whatever else the machine does."""
    times = os.times()
    return times.children_user + times.children_system


def _where() -> dict[str, Any]:
    """When and on what a run was made, and how busy the machine was."""
    from training.log import machine

    hardware = machine.describe()["hardware"]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "hardware": f"{re.sub(' +', ' ', hardware['processor'])}, {hardware['cores']} cores",
        "load": round(os.getloadavg()[1], 1),
    }
