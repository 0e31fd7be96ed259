"""Run the tests `programs`: libraries written for PopTorch, unmodified, each group in an environment of its own.

    python portable/tests/libraries/run.py [GROUP ...]

Makes `.venv-programs/GROUP` from the pins in GROUP.txt beside this file, unless it was made from these very pins, and
runs the group's tests there on this checkout's runtime. `transformers` is what `make setup-dev` installs, and runs in
the environment of this process. A group whose Python is not on the machine is skipped, and the last lines say why.
Exits with 1 if tests failed or an environment could not be made.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ENVIRONMENTS = ROOT / ".venv-programs"


@dataclass(frozen=True)
class Group:
    """One file of tests; `python` is the version its pins need, where not any will do."""

    name: str
    own_environment: bool = True
    python: str | None = None

    @property
    def tests(self) -> Path:
        return HERE / f"test_{self.name.replace('-', '_')}.py"

    @property
    def pins(self) -> Path:
        return HERE / f"{self.name}.txt"


GROUPS = (
    Group("transformers", own_environment=False),
    Group("torchvision"),
    Group("lightning"),
    Group("optimum-graphcore", python="3.11"),
)


class EnvironmentFailed(Exception):
    """An environment could not be made; the text says what failed."""


def version_of(interpreter: str) -> str | None:
    """Such as "3.11"; None if it does not start."""
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([interpreter, "-c", question], capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def interpreter_for(python: str | None) -> str | None:
    """This interpreter, another on the PATH, or one of uv's, whichever is Python `python`; None if there is none."""
    if python is None:
        return sys.executable
    candidates = [sys.executable, shutil.which(f"python{python}")]
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", "--no-project", python], capture_output=True, text=True)
        candidates.append(found.stdout.strip())
    return next((path for path in candidates if path and version_of(path) == python), None)


def environment(group: Group, interpreter: str) -> Path:
    """The interpreter of the group's environment, which is made unless it is there with these pins.

    Raises EnvironmentFailed.
    """
    folder = ENVIRONMENTS / group.name
    python, stamp = folder / "bin" / "python", folder / "pins"
    made_from = f"{version_of(interpreter)} {hashlib.sha256(group.pins.read_bytes()).hexdigest()}"
    if python.exists() and stamp.is_file() and stamp.read_text() == made_from:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"== {group.name}: installing {group.pins.name} into {folder}", flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(group.pins)]
    for command in ([interpreter, "-m", "venv", str(folder)], install):
        if subprocess.run(command).returncode:
            raise EnvironmentFailed(f"`{' '.join(command)}` failed")
    stamp.write_text(made_from)
    return python


def run_group(group: Group) -> tuple[bool, str]:
    """Whether nothing failed, and what happened, for the closing lines."""
    interpreter = interpreter_for(group.python)
    if interpreter is None:
        return True, (
            f"SKIPPED: its pins need Python {group.python}, which is not here: `uv python install {group.python}` "
            f"or `apt install python{group.python} python{group.python}-venv`, then run it again"
        )
    try:
        python = str(environment(group, interpreter)) if group.own_environment else sys.executable
    except EnvironmentFailed as error:
        return False, f"FAILED: no environment: {error}"
    print(f"== {group.name}", flush=True)
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "portable"), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-m", "programs", "--timeout", "300", str(group.tests)]
    status = subprocess.run(command, env=variables, cwd=ROOT).returncode
    return status == 0, "passed" if status == 0 else f"FAILED: pytest ended with {status}"


def main(arguments: list[str] | None = None) -> int:
    names = [group.name for group in GROUPS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(names)}; default: all")
    wanted = parser.parse_args(arguments).groups or names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"there is no group {unknown[0]}: choose from {', '.join(names)}")
    results = {group.name: run_group(group) for group in GROUPS if group.name in wanted}
    for name, (_, outcome) in results.items():
        print(f"{name}: {outcome}")
    return 0 if all(fine for fine, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
