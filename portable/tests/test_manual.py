"""The tables of portable/README.md say what the code does."""

from __future__ import annotations

from pathlib import Path

from poptorch.option_effects import EFFECTS, REFUSED
from poptorch.popart_keys import REFUSED as REFUSED_KEYS

MANUAL = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose first heading is `first`."""
    lines = MANUAL.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_table_of_options():
    expected = []
    for name, effect in sorted(EFFECTS.items(), key=lambda item: ("." in item[0], item[0])):
        here = effect.kind if effect.kind != REFUSED else f"refused: {effect.why}"
        expected.append([f"`{name}`", here])
    table = "\n".join(f"| {name} | {here} |" for name, here in expected)
    assert rows("option") == expected, f"this is the table to put into portable/README.md:\n{table}"


def test_the_table_of_refused_popart_keys():
    expected = [[f"`{key}`", why] for key, (_, why) in sorted(REFUSED_KEYS.items())]
    table = "\n".join(f"| {key} | {why} |" for key, why in expected)
    assert rows("key") == expected, f"this is the table to put into portable/README.md:\n{table}"


def test_files_that_the_manual_names_exist():
    root = Path(__file__).parents[1]
    assert (root / "examples" / "small_bert.py").exists() and "python portable/examples/small_bert.py" in MANUAL
    for name in ("option_effects.py", "popart_keys.py"):
        assert f"poptorch/{name}" in MANUAL and (root / "poptorch" / name).exists()
