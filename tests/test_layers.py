"""Rooms and floors: who imports whom. No import runs up or in a circle, type-only and lazy ones included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from import_graph import Module, circles, edges, modules_in

ROOT = Path(__file__).resolve().parent.parent
# The floors of the application, from the top. A room imports rooms below it, and on its own floor rooms to its right.
FLOORS = (
    ("train_gpt2", "text_generate_gpt2", "inference_gpt2", "get_wikitext"),
    ("arguments",),
    ("tasks", "serving", "training", "generation"),
    ("command_line",),
    ("model",),
    ("data", "tokenizer", "custom_ops"),
    ("corpora",),
)
OUTSIDE = {"portable", "tests", "benchmarks"}  # these may import the application, and no room imports them


def sources() -> dict[str, Module]:
    """Every module of the application by its dotted name. A folder without __init__.py, such as demo/, is no room."""
    rooms = [init.parent for init in ROOT.glob("*/__init__.py") if init.parent.name not in OUTSIDE]
    return modules_in(ROOT, sorted([*ROOT.glob("*.py"), *(file for room in rooms for file in room.glob("**/*.py"))]))


def floor_of(name: str) -> tuple[int, int]:
    """Floor, counted from the top, and place on it."""
    room = name.split(".")[0]
    (place,) = ((row, rooms.index(room)) for row, rooms in enumerate(FLOORS) if room in rooms)
    return place


def runs_up(importer: str, imported: str) -> bool:
    return importer.split(".")[0] != imported.split(".")[0] and floor_of(importer) >= floor_of(imported)


def violations(modules: dict[str, Module]) -> list[str]:
    pairs = edges(modules)
    up = [f"{a} imports {b}, which is above it" for a, b in sorted(pairs) if runs_up(a, b)]
    return up + [f"circle: {' <-> '.join(c)}" for c in circles(modules)]


def test_no_import_runs_up_or_in_a_circle(capsys):
    found = violations(sources())
    with capsys.disabled():
        print(f"\nimports of the application that run up or in circles: {len(found)}")
    assert found == []


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("model.gpt2", "import command_line.flags", "model.gpt2 imports command_line.flags, which is above it"),
        ("training.plan", "from arguments import parse_train_args", "training.plan imports arguments"),
        ("training.plan", "from tasks import flags", "training.plan imports tasks.flags"),
        ("tokenizer.train", "def f():\n    import data.prepare", "tokenizer.train imports data.prepare"),
        ("corpora.atomic", "if TYPE_CHECKING:\n    import tokenizer", "corpora.atomic imports tokenizer"),
        ("data.tfrecord.varint", "from data.tfrecord import records", "data.tfrecord.records <-> data.tfrecord.varint"),
        ("data.megatron.files", "from data.loading import sampler", "data.loading <-> data.megatron"),
        ("data.bad_data", "import data.loading.datasets", "data.bad_data <-> data.loading"),
        ("training.log.clock", "import training.plan", "training.log.clock"),
    ],
)
def test_a_planted_violation_is_found(module, line, told):
    modules = sources()
    modules[module] = modules[module].with_lines(module, line)
    if module == "training.log.clock":  # down to the side: no circle, until the plan asks for the time
        assert violations(modules) == []
        modules["training.plan"] = modules["training.plan"].with_lines(
            "training.plan", "from training.log import clock"
        )
    assert any(told in problem for problem in violations(modules))


def test_every_room_has_a_floor_and_says_what_it_is():
    """A few lines in each folder's __init__.py: what lives there, who imports it, where to start."""
    modules = sources()
    assert {name.split(".")[0] for name in modules} == {room for floor in FLOORS for room in floor}
    for path in sorted(ROOT.glob("*/**/__init__.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] in OUTSIDE or parts[0].startswith("."):
            continue
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines = [line for line in text.splitlines() if line]
        assert 2 <= len(lines) <= 5 and "tart" in text and "import" in text, path


def test_no_name_says_nothing_or_repeats_its_folder():
    for path in ROOT.glob("*/**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not parts[0].startswith("."):
            assert not {"utils", "tools", "helpers", "common", "misc"} & set(parts), path
            assert parts[-1] not in parts[:-1], path


def test_no_two_test_files_have_one_name():
    """pytest imports them by their name alone, and does not run one of two."""
    found: dict[str, Path] = {}
    for path in sorted([*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("portable/tests/**/test_*.py")]):
        assert path.name not in found, f"{path} and {found[path.name]}"
        found[path.name] = path
