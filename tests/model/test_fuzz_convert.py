"""Mutated checkpoints of every format: what is converted is a model, and what is refused is told by its file."""

from __future__ import annotations

import random
import shutil

import pytest
from fuzzing import mutated, run_cases
from test_convert_damage import KINDS, make

from model.checkpoint import load_pretrained
from model.convert.__main__ import main


def run(count: int, kind: str, folder, capsys) -> tuple[int, int]:
    """Number of checkpoints that are converted, and of those that are refused."""
    source, _ = make(kind, folder)
    files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    sound = {file: file.read_bytes() for file in files}
    refused = 0

    def case(rng: random.Random) -> tuple[bool, int]:
        nonlocal refused
        file = rng.choice(files)
        file.write_bytes(mutated(rng, sound[file]))
        capsys.readouterr()
        status = main([str(source), str(folder / "out"), "--to", "huggingface"])
        # Python's own line about a pickle that it gives up in the middle of a bytearray.
        said = capsys.readouterr().err.replace("SystemError: deallocated bytearray object has exported buffers\n", "")
        if status == 0:
            load_pretrained(folder / "out")
            shutil.rmtree(folder / "out")
        else:
            refused += 1
            assert status == 2 and said.startswith("model.convert: ") and "Traceback" not in said, said
            assert str(folder) in said and not (folder / "out").exists(), said
        file.write_bytes(sound[file])
        return status == 0, 0

    converted, _ = run_cases(count, case)
    assert main([str(source), str(folder / "out"), "--to", "huggingface"]) == 0  # as it was
    return converted, refused


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_checkpoints(tmp_path, capsys, kind):
    converted, refused = run(20, kind, tmp_path, capsys)
    assert converted + refused == 20 and refused > 5


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_checkpoints(tmp_path, capsys, kind):
    run(1000, kind, tmp_path, capsys)
