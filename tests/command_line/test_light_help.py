"""No program imports anything heavy before it has read its flags: what --help takes is Python's own start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Not the standard library's, or a second by themselves. Whatever is imported once is listed by -X importtime.
HEAVY = {
    *("torch", "numpy", "poptorch", "popart", "transformers", "tokenizers", "tqdm", "wandb", "yaml", "crc32c"),
    *("safetensors", "huggingface_hub", "matplotlib", "tensorboard", "lm_eval", "ftfy", "datasketch", "regex"),
    *("starlette", "uvicorn"),
}
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.py", "tasks/*.py", "data/*.py", "tokenizer/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
    if "__main__" in path.read_text(encoding="utf-8") and "argv" in path.read_text(encoding="utf-8")
)
# Sides of a benchmark, which it starts, have no flags; unicode_classes.py writes a file of the repository.
WITHOUT_FLAGS = {
    path for path in SCRIPTS if path.endswith(("_sides.py", "_side.py", "side_process.py", "unicode_classes.py"))
}
COMMANDS = [[path] for path in SCRIPTS if path not in WITHOUT_FLAGS]
COMMANDS += [
    ["-m", path[:-3].replace("/", ".")] for (path,) in COMMANDS if path.startswith(("data/", "tokenizer/", "tasks/"))
]
COMMANDS += [["data/baseline.py"], ["-m", "data.baseline"], ["-m", "custom_ops.build"], ["-m", "serving"]]
COMMANDS += [["-m", "examples_utils", "benchmark"]]


def imported(words, folder):
    """The packages that a program imports for --help, and its exit status; by path from any folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "portable"), "PYTHONDONTWRITEBYTECODE": "1"}
    if words[0] == "-m":
        environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    else:
        words = [str(ROOT / words[0])]
    command = [sys.executable, "-X", "importtime", *words, "--help"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    names = {line.split("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if line.count("|") == 2}
    return names, done


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(words, tmp_path):
    names, done = imported(words, tmp_path)
    assert done.returncode == 0 and "--" in done.stdout, done.stderr[-2000:]
    assert "sys" in names or "argparse" in names, "the listing is empty"
    assert not HEAVY & names


def test_every_program_is_looked_at():
    assert {"train_gpt2.py", "tasks/harness.py", "tasks/compare.py", "data/prepare.py", "tokenizer/train.py"} <= {
        words[0] for words in COMMANDS
    }


def test_what_is_heavy_is_found(tmp_path):
    (tmp_path / "slow.py").write_text("import argparse, numpy\nargparse.ArgumentParser().parse_args()\n")
    names, done = imported([str(tmp_path / "slow.py")], tmp_path)
    assert done.returncode == 0 and "numpy" in HEAVY & names
