"""Commands that messages give: to be pasted where the caller of the program stands."""

from __future__ import annotations

import pytest

from command_line.commands import command_line, command_to_resume, left_to_launcher, misplaced, without_flag


def test_the_command_that_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("sys.executable", "python")
    monkeypatch.setattr("sys.argv", ["train_gpt2.py"])
    resume = f"--pretrained-checkpoint {tmp_path} --resume-training-from-checkpoint True"
    for words in ("", "--resume latest", "--resume=latest", "--overwrite", "--overwrite True", resume):
        assert (
            command_to_resume(["--epochs", "3", *words.split()], tmp_path)
            == f"python train_gpt2.py --epochs 3 {resume}"
        )
    assert without_flag(["--resume", "--resume-training-from-checkpoint", "1"], "--resume") == [
        "--resume-training-from-checkpoint",
        "1",
    ]
    assert without_flag(["--save_model_path=a", "b"], "--save-model-path") == ["b"]


def test_the_command_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "python")
    monkeypatch.setattr("sys.argv", ["train_gpt2.py"])
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = "python train_gpt2.py --epochs 3"

    def told(**variables: str) -> tuple[str, bool]:
        with monkeypatch.context() as scope:
            for name, value in variables.items():
                scope.setenv(name, value)
            return command_line(["--epochs", "3"]), left_to_launcher()

    torchrun = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}
    started = alone.replace("python", "python -m torch.distributed.run --standalone --nproc-per-node 4")
    assert told() == (alone, False)
    assert told(**torchrun, TORCHELASTIC_MAX_RESTARTS="0") == (started, False)
    restarted = started.replace("node 4", "node 4 --max-restarts 3")
    assert told(**torchrun, TORCHELASTIC_MAX_RESTARTS="3") == (restarted, False)
    assert told(**{**torchrun, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}) == (alone, False)
    assert told(**{**torchrun, "WORLD_SIZE": "8"}) == (alone, True), "over two machines"
    assert told(OMPI_COMM_WORLD_SIZE="2") == (alone, True), "by poprun"


def test_paths_that_are_where_the_script_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    here, there = tmp_path / "here", tmp_path / "over there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "both.txt").touch()
    (there / "my.txt").touch()
    monkeypatch.chdir(here)
    words = ["--train-path", "my.txt", "--config=both.txt", "--epochs", "3", "--save-model-path", "runs"]
    monkeypatch.delenv("CALLED_FROM", raising=False)
    assert misplaced(words) == ""
    monkeypatch.setenv("CALLED_FROM", str(here))
    assert misplaced(words) == ""
    monkeypatch.setenv("CALLED_FROM", str(there))
    assert misplaced(words) == f"paths are relative to {here}; give '{there}/my.txt'"
    assert misplaced(["--train-path=my.txt"]) == misplaced(words) and misplaced(["--config", "both.txt"]) == ""
