"""Programs that begin alike, in forks of one interpreter that has done so: it imports torch, for seconds, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_PROGRAM = """
import json, os, sys, tempfile
exec(sys.argv[1])
said = []
for variables, code in json.loads(sys.argv[2]):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if os.fork() == 0:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            os.environ.update(variables)
            exec(code)
            sys.stdout.flush()
            os._exit(0)
        assert os.wait()[1] == 0, err.seek(0) or err.read().decode()
        out.seek(0), err.seek(0)
        said.append((out.read().decode(), err.read().decode()))
print(json.dumps(said))
"""


def forks(first: str, *runs: tuple[dict[str, str], str], without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Output and errors of `code` with `variables`, for each of the runs, in a process that has run `first`.

    The environment is this process's, but for the variables `without`. If a run fails, so does this, by
    subprocess.CalledProcessError; what the run said is on standard error.
    """
    rest = {name: value for name, value in os.environ.items() if name not in without}
    command = [sys.executable, "-c", _PROGRAM, first, json.dumps(runs)]
    return json.loads(subprocess.run(command, env=rest, stdout=subprocess.PIPE, text=True, check=True).stdout)
