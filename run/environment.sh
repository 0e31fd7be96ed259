# Sourced by the scripts here: go to the repository's root and pick the interpreter, as `python`. PYTHON=... wins, then an
# activated environment, then .venv, then python3. What a script goes on after is started by `relay`. CALLED_FROM is where its
# caller stands, for the commands that programs print.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/signals.sh"
export CALLED_FROM="${CALLED_FROM:-$PWD}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python3}}
if [ -z "$python" ]; then
    python=python3
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi
