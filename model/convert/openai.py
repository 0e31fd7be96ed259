"""OpenAI's original checkpoint of TensorFlow: recognised, and not read yet."""

from __future__ import annotations

from pathlib import Path

from model.convert.source import Source, Wishes

KIND = "OpenAI"
INDEX = "*.ckpt.index"


def is_checkpoint(path: Path) -> bool:
    """Whether this is the folder that OpenAI's download_model.py makes."""
    return any(path.glob(INDEX)) or (path / "hparams.json").is_file()


def read(path: Path, wishes: Wishes) -> Source:
    raise ValueError(f"{path}: is OpenAI's original TensorFlow checkpoint, which is not read")
