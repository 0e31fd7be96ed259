"""A spec file in a folder, and sessions of the benchmark runner with it. Used by the tests of the runner."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from examples_utils.benchmark.command_line import main


class Session:
    """What one session came to."""

    def __init__(self, status: int, out: str, err: str, logs: Path) -> None:
        self.status, self.out, self.err, self.logs = status, out, err, logs

    @property
    def results(self) -> dict[str, dict]:
        """The results by variant."""
        document = json.loads((self.logs / "benchmark_results.json").read_text())
        return {result["variant"]: result for result in document["benchmarks"]}

    def log(self, variant: str, name: str = "stdout.log") -> str:
        """A log of a variant."""
        return (self.logs / variant / name).read_text()


class Runner:
    """Runs spec texts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = folder / "benchmarks.yml"

    def script(self, text: str, name: str = "program.py") -> None:
        """A program for commands: `python3 program.py`."""
        (self.folder / name).write_text(text, encoding="utf-8")

    def __call__(self, spec: str | None, *flags: str) -> Session:
        """A session with this text as the spec file (None: as it is)."""
        if spec is not None:
            self.spec.write_text(spec, encoding="utf-8")
        logs = self.folder / "logs"
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(["benchmark", "--spec", str(self.spec), "--log-dir", str(logs), *flags])
            except SystemExit as end:
                status = end.code
        return Session(status, out.getvalue(), err.getvalue(), logs)


def program(folder: Path, name: str, text: str) -> None:
    """A shell script in a folder, which can be put into PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


PRINTING = """
import sys
print("noise")
for index, value in enumerate(sys.argv[1:]):
    print(f"step {index}, throughput: {value} samples/sec", flush=True)
print("loss: 1.5,", file=sys.stderr)
"""

SIMPLE = """\
fast:
  cmd: python3 program.py 10 20 60
  data:
    throughput: {regexp: 'throughput: *(.*?) samples\\/sec', skip: 1}
    loss: {regexp: 'loss: *(.*?),', reduction_type: final}
  output: [[samples/sec, throughput]]
"""

PYTHON = sys.executable
