"""Tables as text: Markdown with footnotes, CSV, JSON."""

from __future__ import annotations

import csv
import io
from typing import Any, Callable, NamedTuple, Sequence

from corpora.strict_json import json_text

MISSING = "-"


class Cell(NamedTuple):
    """What is shown, what it stands for (None: nothing), and what is to be said of it."""

    text: str
    value: Any
    notes: Sequence[str] = ()


class Table(NamedTuple):
    """Of a document: a name, the heads of its columns, its rows, and what is to be said of all of it."""

    document: str
    name: str
    head: list[str]
    rows: list[list[Cell]]
    notes: list[str]


def markdown(title: str, tables: Sequence[Table]) -> str:
    """One section a table, its notes below it, and footnotes, numbered through, at the end."""
    lines, numbers = [f"# {_escaped(title)}"], {}
    for table in tables:
        lines += ["", f"## {_escaped(table.name)}", "", _line(table.head), _line(["----"] * len(table.head))]
        for row in table.rows:
            lines.append(_line([_escaped(cell.text) + _marks(cell.notes, numbers) for cell in row]))
        for note in table.notes:
            lines += ["", _escaped(note)]
    if numbers:
        lines.append("")
    return "\n".join(lines + [f"[^{number}]: {_escaped(note)}" for note, number in numbers.items()])


def _marks(notes: Sequence[str], numbers: dict[str, int]) -> str:
    return "".join(f"[^{numbers.setdefault(note, len(numbers) + 1)}]" for note in notes)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<").replace("\n", " ")


def comma_separated(title: str, tables: Sequence[Table]) -> str:
    """A line a row, each table with its head and its name before every row; notes in the last column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for table in tables:
        writer.writerow(["table", *table.head, "notes"])
        for row in table.rows:
            notes = [note for cell in row for note in cell.notes]
            writer.writerow([table.name, *(cell.text for cell in row), " ".join([*notes, *table.notes])])
    return text.getvalue().rstrip("\n")


def as_json(title: str, tables: Sequence[Table]) -> str:
    """The tables with the values that the cells stand for, measured ones in full."""
    content = [
        {
            "document": table.document,
            "name": table.name,
            "rows": [{head: cell.value for head, cell in zip(table.head, row)} for row in table.rows],
            "footnotes": [
                {"row": number, "column": head, "note": note}
                for number, row in enumerate(table.rows)
                for head, cell in zip(table.head, row)
                for note in cell.notes
            ],
            "notes": table.notes,
        }
        for table in tables
    ]
    return json_text({"title": title, "tables": content}, indent=2, ensure_ascii=False)


FORMATS: dict[str, Callable[[str, Sequence[Table]], str]] = {
    "markdown": markdown,
    "csv": comma_separated,
    "json": as_json,
}
