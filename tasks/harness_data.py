"""Tasks of lm-evaluation-harness on files of this machine: --task-data, in place of data sets of the hub.

What a task does with a document stays the harness's own; its data set alone is another one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from tasks.texts import numbered_lines, unpacked_name


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# Task -> what a document must have, by name: those of the published tables. The files that the data sets' authors
# released have these members, too.
FORMS: dict[str, dict[str, Callable[[dict[str, Any]], bool]]] = {
    "lambada_openai": {"text": lambda d: isinstance(d["text"], str) and " " in d["text"]},
    "piqa": {
        **{name: lambda d, name=name: isinstance(d[name], str) for name in ("goal", "sol1", "sol2")},
        "label": lambda d: d["label"] in (0, 1),
    },
    "hellaswag": {
        **{name: lambda d, name=name: isinstance(d[name], str) for name in ("activity_label", "ctx_a", "ctx_b")},
        "endings": lambda d: _is_texts(d["endings"]),
        "label": lambda d: _is_texts(d["endings"]) and str(d["label"]) in map(str, range(len(d["endings"]))),
    },
    "winogrande": {
        "sentence": lambda d: isinstance(d["sentence"], str) and "_" in d["sentence"],
        **{name: lambda d, name=name: isinstance(d[name], str) for name in ("option1", "option2")},
        "answer": lambda d: d["answer"] in ("1", "2"),
    },
}
_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # of the library datasets


def read_task_data(words: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """The file of each task, from TASK=FILE. Raises ValueError naming flag, file and line for what is of no use."""
    found: dict[str, Path] = {}
    for word in words:
        name, equals, file = word.partition("=")
        path = Path(file)
        if not equals or not name or not file:
            raise ValueError(f"--task-data {word}: give TASK=FILE, for instance lambada_openai=data/lambada_test.jsonl")
        if name not in names:
            raise ValueError(f"--task-data {word}: {name} is none of --tasks {','.join(names)}")
        if Path(unpacked_name(path)).suffix not in _READERS:
            raise ValueError(f"--task-data {word}: of these files only {', '.join(_READERS)} can be read")
        if not path.is_file():
            raise ValueError(f"--task-data {word}: there is no such file; check the path")
        if name in FORMS and Path(unpacked_name(path)).suffix in (".json", ".jsonl"):
            _check(name, path)
        found[name] = path.resolve()
    return found


def _check(name: str, path: Path) -> None:
    """Every line is a document of the task. Raises ValueError naming file and line."""
    for number, line in numbered_lines(path):
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"--task-data {name}={path}, line {number}: not JSON ({error}); write a line each"
            ) from error
        members = FORMS[name]
        missing = [key for key in members if not isinstance(document, dict) or key not in document]
        wrong = missing or [key for key, sound in members.items() if not sound(document)]
        if wrong:
            what = "has no" if missing else "is no document of the task, by its"
            raise ValueError(
                f"--task-data {name}={path}, line {number}: {what} {', '.join(wrong)}; {name} has {', '.join(members)}"
            )


def write_tasks(folder: Path, files: Mapping[str, Path], yaml_of: Mapping[str, Path | None]) -> None:
    """Task files that include the harness's own and put these files in the place of their data sets.

    `yaml_of` has the harness's files by task. Raises ValueError for a name that stands for several tasks.
    """
    for name, path in files.items():
        included = yaml_of[name]
        if included is None:
            raise ValueError(f"--task-data {name}={path}: {name} stands for several tasks; name one of them")
        splits = dict.fromkeys(("train", "validation", "test"), str(path))
        lines = {
            "include": str(included),
            "task": name,
            "dataset_path": _READERS[Path(unpacked_name(path)).suffix],
            "dataset_name": None,
            "dataset_kwargs": {"data_files": splits},
        }
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())  # JSON is YAML
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
