"""Evaluations kept where tasks.tables finds them: a JSON file each, in the folder `evaluations` of the run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from corpora.atomic import atomic_file, folder_made
from corpora.refusal import TooLate
from corpora.strict_json import json_text
from model.config import read_json_object
from training.run_file import RUN_FILE

EVALUATIONS = "evaluations"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_PIECES, _PIECE = 64, 4096  # of a file of weights, that tell it from another one


class Evaluation(NamedTuple):
    """What was computed of one checkpoint: results as report.as_json has them, or lm-evaluation-harness's by task."""

    path: Path
    checkpoint: str  # its name
    precision: str  # "float32" or "half"
    weights: str | None  # fingerprint of the weights
    shots: int  # examples before each question of the harness
    config: dict[str, Any]
    results: list[dict[str, Any]]
    harness: dict[str, dict[str, Any]]


def folder_of(checkpoint: str | Path) -> Path:
    """The folder whose `evaluations` are this checkpoint's: that of its run, or itself if it stands alone."""
    path = Path(checkpoint).resolve()
    return path.parent if (path.parent / RUN_FILE).is_file() else path


def name_of(result: dict[str, Any]) -> str:
    """What tells a result from the others of its checkpoint: task, protocol, windows, and the file with its folder."""
    path = Path(result["files"][0])
    words = [result["task"], result["protocol"], f"T{result['window']}"]
    if result["stride"] not in (None, result["window"]):
        words.append(f"stride{result['stride']}")
    if "batch" in result["counts"]:
        words.append(f"batch{result['counts']['batch']}")
    return ".".join([*words, path.resolve().parent.name, path.name])


def keep(checkpoint: str, name: str, content: dict[str, Any], fp16: bool) -> Path:
    """Writes an evaluation of a checkpoint, in the place of an earlier one of that name; returns the file.

    `name` says what was evaluated; `content` is what --json writes. Raises TooLate if it cannot be written.
    """
    path = Path(checkpoint).resolve()
    folder = folder_of(path) / EVALUATIONS
    precision = "half" if fp16 else "float32"
    words = [path.name, name] + (["half"] if fp16 else [])
    file_name = re.sub(r"[^\w.+-]+", "-", ".".join(words)) + ".json"
    whole = {**content, "checkpoint": str(path), "precision": precision, "weights": fingerprint(path)}
    try:
        with folder_made(folder), atomic_file(folder / file_name) as file:
            file.write((json_text(whole, indent=2) + "\n").encode("utf-8"))
    except OSError as error:
        told = f"--record: {folder / file_name} cannot be written ({error.strerror})"
        raise TooLate(f"{told}; the results are those printed above") from error
    return folder / file_name


def fingerprint(checkpoint: Path) -> str | None:
    """What tells the weights in a folder from others: a hash of pieces of their files. None if there are none.

    Raises ValueError naming a file that cannot be read.
    """
    files = sorted(file for pattern in _WEIGHTS for file in checkpoint.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        try:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for number in range(_PIECES):
                    file.seek(size * number // _PIECES)
                    digest.update(file.read(_PIECE))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); put the file there, or remove it") from error
    return digest.hexdigest()[:16] if files else None


def kept_in(folder: Path) -> list[Path]:
    """The files of evaluations in the folder of a run, by name."""
    return sorted((folder / EVALUATIONS).glob("*.json"))


def read(folder: Path) -> list[Evaluation]:
    """The evaluations kept in the folder of a run, by name. Raises ValueError naming a file that is none."""
    return [_read(path) for path in kept_in(folder)]


def _read(path: Path) -> Evaluation:
    content = read_json_object(path)
    results, harness, config = (content.get(key, kind()) for key, kind in _PARTS)
    sound = all(isinstance(part, kind) for part, (_, kind) in zip((results, harness, config), _PARTS))
    if not sound or not isinstance(content.get("checkpoint"), str) or not all(map(_is_result, results)):
        raise ValueError(f"{path}: is no evaluation, as --record or --json writes one; remove it, or write it anew")
    return Evaluation(
        path,
        Path(content["checkpoint"]).name,
        str(content.get("precision", "float32")),
        content.get("weights"),
        content.get("num_fewshot") or 0,
        config,
        results,
        {name: values for name, values in harness.items() if isinstance(values, dict)},
    )


_PARTS = (("results", list), ("harness", dict), ("config", dict))
_OF_RESULT = {"task": str, "protocol": str, "files": list, "window": int, "counts": dict, "values": dict}


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict) or not all(isinstance(result.get(key), kind) for key, kind in _OF_RESULT.items()):
        return False
    numbers = [*result["counts"].values(), *result["values"].values()]
    return all(isinstance(number, (int, float, type(None))) for number in numbers)
