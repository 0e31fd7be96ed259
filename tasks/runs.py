"""What the folders of runs say: of each its model, its settings, what it came to, and how it was evaluated."""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

from model.config import MODELS, VARIANT_FIELDS, GPT2Config, read_json_object, real_parameter_count
from model.scoring import perplexity
from tasks.records import EVALUATIONS, Evaluation, fingerprint, kept_in, read
from training.log.curves import CURVES_FILE, Row, read_rows
from training.run_file import RUN_FILE
from training.save_folder import BEST
from training.sequence_warmup import SequenceWarmup

# What must be equal for a run to be of a system in config/: not its length, dropout, or how weights were drawn.
_OF_SYSTEM = (
    *("real_vocab_size", "n_embd", "n_layer", "n_head", "inner_size", "head_size", "layer_norm_epsilon"),
    *("tie_word_embeddings", *(name for name in VARIANT_FIELDS if name != "head_dim")),
)
_NONE, _NUMBER = type(None), (int, float)
# What is read of a run.json, and its kinds.
_OF_RUN = {
    **{"flags": dict, "checkpoints": list, "numerics": dict, "hardware": dict},
    **dict.fromkeys(("samples_an_epoch", "warmup_steps"), int),
}
_OF_FLAGS = {
    **dict.fromkeys(("batch_size", "gradient_accumulation", "replication_factor", "device_iterations"), (int,)),
    **dict.fromkeys(("max_len", "lr_warmup_steps", "sequence_warmup_steps"), (int,)),
    **dict.fromkeys(("learning_rate", "min_learning_rate", "weight_decay"), _NUMBER),
    **dict.fromkeys(("tensor_gradient_clipping", "gradient_clipping"), _NUMBER),
    **dict.fromkeys(("sequence_warmup", "tfrecord_path", "data_prefix"), (list,)),
    **dict.fromkeys(("optimizer", "config", "model", "train_path"), (str,)),
}
_ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "gelu_new": "GELU"}
_DEEPEST = 6  # folders below --runs


class Run(NamedTuple):
    """A folder with run.json, evaluations or both.

    `facts` has what tables ask for by name; None, or no entry, for what is not known.
    """

    folder: Path
    name: str  # the folder below --runs
    systems: list[str]  # names of --model whose configuration it has
    facts: dict[str, Any]
    evaluations: list[Evaluation]  # of its best checkpoint first, then of the newest; float32 before half


def find(folder: Path, told: list[str]) -> list[Run]:
    """The runs in a folder, by path. What is left out of them is added to `told`.

    Raises ValueError naming a file that cannot be used.
    """
    return [_run(path, folder, told) for path in _folders(folder)]


def _folders(top: Path) -> Iterator[Path]:
    """Folders of runs; those within one, its checkpoints, are no further runs."""
    seen = set()
    for name, folders, files in os.walk(str(top), followlinks=True):
        path, real = Path(name), os.path.realpath(name)
        is_run = RUN_FILE in files or (EVALUATIONS in folders and bool(kept_in(path)))
        if is_run and real not in seen:
            yield path
        deep = len(path.relative_to(top).parts) >= _DEEPEST
        folders[:] = [] if is_run or deep or real in seen else sorted(f for f in folders if not f.startswith("."))
        seen.add(real)


def _run(path: Path, top: Path, told: list[str]) -> Run:
    content = _content(path / RUN_FILE) if (path / RUN_FILE).is_file() else {}
    flags = content.get("flags") or {}
    written = [name for name in content.get("checkpoints") or [] if isinstance(name, str)]
    evaluations = [one for one in read(path) if not _is_old(path, one, told)]
    order = {name: number for number, name in enumerate(written)}
    evaluations.sort(
        key=lambda one: (one.checkpoint != BEST, -order.get(one.checkpoint, -1), one.precision != "float32")
    )
    config = _config(path, written, evaluations, flags)
    facts = _facts(content, flags, path) if content else {"start": "none"}
    if config is not None:
        facts.update(
            activation=_ACTIVATIONS.get(config.activation_function, config.activation_function),
            tied="Yes" if config.tie_word_embeddings else "No",
            parameters=real_parameter_count(config),
        )
    places = [path] + [path / name for name in written]
    facts["vocabulary"] = "own" if any((place / "tokenizer.json").is_file() for place in places) else "gpt2"
    name = path.relative_to(top).as_posix()
    return Run(path, path.resolve().name if name == "." else name, systems_of(config), facts, evaluations)


def _content(path: Path) -> dict[str, Any]:
    """A run.json. Raises ValueError naming it and what in it no run writes."""
    content = read_json_object(path)
    wrong = [key for key, kind in _OF_RUN.items() if not isinstance(content.get(key), (kind, type(None)))]
    flags = content.get("flags") if not wrong else {}
    wrong += [
        f"flags.{key}" for key, kind in _OF_FLAGS.items() if not isinstance((flags or {}).get(key), (*kind, _NONE))
    ]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)} is not what a run writes; remove the folder from --runs")
    return content


def _is_old(folder: Path, evaluation: Evaluation, told: list[str]) -> bool:
    """Whether the checkpoint has been replaced since: `best` by a later one, or all by a run that started over."""
    checkpoint = folder / evaluation.checkpoint
    checkpoint = checkpoint if checkpoint.is_dir() else folder
    now = fingerprint(checkpoint)
    old = None not in (now, evaluation.weights) and now != evaluation.weights
    if old:
        told.append(f"{evaluation.path}: left out, {checkpoint} has other weights now; evaluate it again")
    return old


def _config(
    folder: Path, written: Sequence[str], evaluations: Sequence[Evaluation], flags: dict[str, Any]
) -> GPT2Config | None:
    """The model of a run: as its checkpoints say, its evaluations, or its flags. None if none of them does."""
    for place in [*(folder / name for name in reversed(written)), folder]:
        if (place / "config.json").is_file():
            return GPT2Config.from_json(place / "config.json")
    for evaluation in evaluations:
        if evaluation.config:
            try:
                return GPT2Config.from_dict(evaluation.config)
            except ValueError as error:
                raise ValueError(f"{evaluation.path}: {' '.join(str(error).split())}") from error
    path = flags.get("config") or MODELS.get(str(flags.get("model")))
    if not path or not Path(path).is_file():
        return None
    config = GPT2Config.from_json(path)
    return replace(config, n_positions=flags.get("max_len") or config.n_positions)  # as training has it


def systems_of(config: GPT2Config | None) -> list[str]:
    """The names of --model with this configuration, whatever its length and dropout.

    Of several those whose first weights are drawn alike, if there are such.
    """
    known = {name: GPT2Config.from_json(path) for name, path in MODELS.items()} if config is not None else {}
    found = [name for name, other in known.items() if _is_system(name, other, config)]
    return [name for name in found if known[name].initialization == config.initialization] or found


def _is_system(name: str, system: GPT2Config, config: GPT2Config) -> bool:
    activations = {system.activation_function}
    if name.startswith("gpt2"):  # released checkpoints have gelu_new where config/*.json say gelu
        activations.add("gelu_new")
    return config.activation_function in activations and all(
        getattr(config, field) == getattr(system, field) for field in _OF_SYSTEM
    )


def _facts(content: dict[str, Any], flags: dict[str, Any], folder: Path) -> dict[str, Any]:
    get = flags.get
    samples = math.prod(get(name) or 1 for name in ("batch_size", "gradient_accumulation", "replication_factor"))
    warmup = content.get("warmup_steps", get("lr_warmup_steps"))  # in calls
    resumed = get("resume_training_from_checkpoint") or get("resume")
    began = content.get("started_from", None if resumed else get("pretrained_checkpoint"))
    facts: dict[str, Any] = {
        "start": "fine-tuned" if began else "scratch",
        "clipnorm": get("tensor_gradient_clipping"),
        "clip": get("gradient_clipping"),
        "precision": _precision(content),
        "batch": samples,
        "context": get("max_len"),
        "warmup_steps": None if warmup is None else warmup * (get("device_iterations") or 1),  # weight updates
        # what a warm-up rises from
        "initial_learning_rate": None if warmup is None else 0.0 if warmup else get("learning_rate"),
        "corpus": _corpus(flags),
        "samples_an_epoch": content.get("samples_an_epoch"),
        "mark": content.get("approximate"),
        **{name: get(name) for name in ("optimizer", "learning_rate", "min_learning_rate", "weight_decay")},
    }
    if (folder / CURVES_FILE).is_file():
        facts.update(_course(folder / CURVES_FILE, flags, samples * (get("device_iterations") or 1), facts))
    return facts


def _precision(content: dict[str, Any]) -> str | None:
    """In what the products were computed: as the runtime said, or on a GPU half, which is what it computes in there."""
    products = (content.get("numerics") or {}).get("products of half")
    if products is None and (content.get("hardware") or {}).get("cuda"):
        return "half"
    return "half" if products == "native" else products


def _corpus(flags: dict[str, Any]) -> str | None:
    """The paths that the samples came from; None if that is not said.

    Of several .pkl files (--dataset pickle) the first stands under train_path too.
    """
    names = [flags.get("train_path"), *(flags.get("tfrecord_path") or []), *(flags.get("data_prefix") or [])]
    return " ".join(dict.fromkeys(str(name) for name in names if name)) or None


def _course(path: Path, flags: dict[str, Any], samples_a_call: int, facts: dict[str, Any]) -> dict[str, Any]:
    """What the curve says: steps, tokens, seconds of training calls, losses. Raises ValueError if it is damaged."""
    rows = list(read_rows(path))
    logged = [row for row in rows if row["loss"] is not None]
    held_out = {int(row["step"]): row["validation_loss"] for row in rows if row.get("validation_loss") is not None}
    if not logged:
        return {}
    steps = int(logged[-1]["step"])
    lengths = SequenceWarmup(
        flags.get("sequence_warmup") or (), flags.get("sequence_warmup_steps") or 0, flags.get("max_len") or 0
    )
    tokens = logged[-1].get("tokens") or lengths.tokens(steps) * samples_a_call
    seconds = _seconds(logged, samples_a_call)
    last_epoch = [row["loss"] for row in logged if row.get("epoch") == logged[-1].get("epoch")]
    found: dict[str, Any] = {
        "steps": steps * (flags.get("device_iterations") or 1),  # weight updates
        "tokens": tokens,
        "hours": seconds / 3600,
        "training_ppl": perplexity(statistics.fmean(last_epoch)),
    }
    if held_out:
        found["held_out_ppl"] = perplexity(held_out[max(held_out)])
    samples = facts["samples_an_epoch"]
    if samples:
        calls = max(1, samples // samples_a_call)
        found["epochs"] = steps / calls
        found["seconds_an_epoch"] = seconds / steps * calls
        for number in range(1, steps // calls + 1):
            found[f"held_out_loss_{number}"] = held_out.get(number * calls)
    return found


def _seconds(logged: Sequence[Row], samples_a_call: int) -> float:
    """Of the calls from each logged step to the next at the speed of that line: pauses are not in it."""
    seconds, before = 0.0, 0.0
    for row in logged:
        if row.get("samples_per_second"):
            seconds += (row["step"] - before) * samples_a_call / row["samples_per_second"]
        before = row["step"]
    return seconds
