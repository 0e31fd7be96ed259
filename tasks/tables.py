"""The tables of the published systems' documents, with the figures of one's own runs beside the published ones.

    python -m tasks.tables 000 --runs DIR [--format markdown|csv|json]

A document is 000 (tfchat), 001 (ALGPT2), 002 (GPT*) or 004 (lm-finetuning). DIR holds folders of runs: what
train_gpt2.py saved, and beside that or alone what `--record` of the programs in tasks/ left. What is published is in
tasks/published_tables.json. A run that is not there, or has no such figure, is "-".
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

if __package__ in (None, ""):  # started as a script: modules are found from the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from command_line.interruption import interruptible  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402
from corpora.refusal import not_installed  # noqa: E402
from model.config import read_json_object  # noqa: E402
from tasks import table_text  # noqa: E402
from tasks.measures import matches, measured  # noqa: E402
from tasks.table_text import MISSING, Cell, Table  # noqa: E402

if TYPE_CHECKING:
    from tasks.records import Evaluation
    from tasks.runs import Run

PROGRAM = "tasks.tables"
PUBLISHED = Path(__file__).with_name("published_tables.json")
_SHORT = {"float32": "Off", "half": "On", "bfloat16": "On"}  # of mixed precision, as document 000 has it


def tables(document: str, runs: Sequence[Run]) -> list[Table]:
    """The tables of a document, of "documents" in PUBLISHED, and behind them the runs and all that was evaluated."""
    published = read_json_object(PUBLISHED)
    content, measures = published["documents"][document], published["measures"]
    notes = content["notes"]
    made = [_table(document, table, measures, notes, runs) for table in content["tables"]]
    return made + ([_all_runs(document, runs), _all_evaluations(document, runs)] if runs else [])


def _table(document: str, table: dict[str, Any], measures: dict[str, Any], notes: dict[str, str], runs: Sequence[Run]):
    columns = table["columns"]
    shown = _shown(table)
    head = [name for column, both in zip(columns, shown) for name in _heads(column, both)] + ["Run", "Mark"]
    made = Table(document, table["name"], head, [], [notes[name] for name in table.get("notes", ())])
    for row in table["rows"]:
        where = {**table.get("where", {}), **row.get("where", {})}
        matching = [run for run in runs if matches(run, row.get("system"), where)]
        for run in matching or [None]:
            made.rows.append(_row(row, columns, shown, measures, notes, run))
    return made


def _shown(table: dict[str, Any]) -> list[tuple[bool, bool]]:
    """Of each column whether it shows published figures, and measured ones."""
    found = []
    for number, column in enumerate(table["columns"]):
        published = any(row["cells"][number] != MISSING for row in table["rows"])
        found.append((published or "measure" not in column, "measure" in column))
    return found


def _heads(column: dict[str, Any], shown: tuple[bool, bool]) -> list[str]:
    if shown == (True, True):
        return [f"{column['name']}, published", f"{column['name']}, measured"]
    return [column["name"] + (", measured" if shown[1] else "")]


def _row(
    row: dict[str, Any],
    columns: Sequence[dict[str, Any]],
    shown: Sequence[tuple[bool, bool]],
    measures: dict[str, Any],
    notes: dict[str, str],
    run: Run | None,
) -> list[Cell]:
    cells, used = [], []
    for column, both, text in zip(columns, shown, row["cells"]):
        name = column["name"]
        cell_notes = [notes[note] for note in (*column.get("notes", ()), *row.get("notes", {}).get(name, ()))]
        if both[0]:
            setting = column.get("setting")
            said = setting_text(setting, row["system"], run) if setting and run is not None else text
            cells.append(Cell(said, said, cell_notes))
        if both[1]:
            asked = row.get("measures", {}).get(name, column["measure"]) or row.get("measure")
            asked = measures[asked] if isinstance(asked, str) else asked
            window = row.get("window", column.get("window"))
            cell, evaluation = measured_cell(asked, run, window)
            cells.append(cell if both[0] else cell._replace(notes=cell_notes))
            used.append(evaluation)
    return cells + _of_run(run, [one for one in used if one is not None])


def _of_run(run: Run | None, used: Sequence[Evaluation]) -> list[Cell]:
    """The last two cells: which run, of which of its checkpoints, and what is to be known of its figures."""
    if run is None:
        return [Cell(MISSING, None), Cell("", None)]
    names = [name for name in dict.fromkeys(one.checkpoint for one in used) if name != run.folder.resolve().name]
    text = run.name + (f" ({', '.join(names)})" if names else "")
    mark = run.facts.get("mark")
    return [Cell(text, text), Cell(f"APPROXIMATE ({mark})" if mark else "", mark)]


def setting_text(setting: str, system: str, run: Run) -> str:
    """A setting of a run as the tables write it."""
    value = system if setting == "system" else run.facts.get(setting)
    if setting == "precision":
        return _SHORT.get(str(value), MISSING)
    if setting == "parameters":
        return f"{value:,}" if value is not None else MISSING
    if setting == "learning_rate":
        return f"{value:g}" if value is not None else MISSING
    return str(value) if value is not None or setting == "clipnorm" else MISSING


def measured_cell(asked: Any, run: Run | None, window: int | None) -> tuple[Cell, Evaluation | None]:
    """The cell of a measured figure."""
    found = measured(asked, run, window) if run is not None else None
    if found is None:
        return Cell(MISSING, None), None
    form = asked[0] if isinstance(asked, list) else asked
    return Cell(number_text(found.value, form), found.value), found.evaluation


def number_text(value: Any, form: dict[str, Any]) -> str:
    """A figure as the measure says: its decimals, and whether it is shown as a percentage."""
    if value is None:
        return "nan"
    if not isinstance(value, (int, float)):
        return str(value)
    if form.get("percent"):
        return f"{100 * value:.{form['decimals']}f}%"
    return f"{value:,.{form['decimals']}f}" if "decimals" in form else f"{value:g}"


_OF_RUNS = (  # columns of the table of all runs: name, fact, how a number is shown
    ("Parameters", "parameters", {"decimals": 0}),
    ("Start", "start", {}),
    ("Corpus", "corpus", {}),
    ("Context", "context", {}),
    ("Optimizer", "optimizer", {}),
    ("Learning rate", "learning_rate", {}),
    ("Clipnorm", "clipnorm", {}),
    ("Precision", "precision", {}),
    ("Batch", "batch", {}),
    ("Steps", "steps", {"decimals": 0}),
    ("Epochs", "epochs", {"decimals": 2}),
    ("Tokens trained", "tokens", {"decimals": 0}),
    ("Seconds an epoch", "seconds_an_epoch", {"decimals": 1}),
    ("Training PPL", "training_ppl", {"decimals": 2}),
    ("Held-out PPL", "held_out_ppl", {"decimals": 2}),
)


def _all_runs(document: str, runs: Sequence[Run]) -> Table:
    made = Table(document, "All runs", ["Run", "Model", *(name for name, _, _ in _OF_RUNS), "Mark"], [], [])
    for run in runs:
        systems = ", ".join(run.systems) or "other"
        cells = [Cell(run.name, run.name), Cell(systems, run.systems)]
        for _, fact, form in _OF_RUNS:
            value = run.facts.get(fact)
            cells.append(Cell(MISSING if value is None else number_text(value, form), value))
        made.rows.append(cells + _of_run(run, [])[1:])
    return made


def _all_evaluations(document: str, runs: Sequence[Run]) -> Table:
    """By run, task, protocol and context: every measure, the tokens scored, and of which checkpoint and file."""
    head = ["Run", "Checkpoint", "Task", "Protocol", "Context", "File", "Precision", "Tokens scored", "Result", "Mark"]
    made = Table(document, "All evaluations", head, [], [])
    for run in runs:
        found = [(one, result) for one in run.evaluations for result in one.results]
        found.sort(key=lambda each: (each[1]["task"], each[1]["protocol"], each[1]["window"] or 0))
        for one, result in found:
            values = {name: value for name, value in result["values"].items() if name != "token ratio"}
            told = ", ".join(f"{name} {number_text(value, {'decimals': 4})}" for name, value in values.items())
            file, scored = Path(str((result["files"] or [""])[0])).name, result["counts"].get("scored")
            fixed = (run.name, one.checkpoint, result["task"], result["protocol"], result["window"], file)
            cells = [*fixed, one.precision, scored]
            made.rows.append(
                [
                    *(Cell(number_text(c, {"decimals": 0}), c) for c in cells),
                    Cell(told or MISSING, values),
                    _of_run(run, [])[1],
                ]
            )
        for one in run.evaluations:
            for task, values in one.harness.items():
                numbers = {name: value for name, value in values.items() if isinstance(value, float)}
                told = ", ".join(f"{name.partition(',')[0]} {value:.4f}" for name, value in numbers.items())
                texts = (run.name, one.checkpoint, task, "lm-evaluation-harness", MISSING, MISSING, one.precision)
                made.rows.append(
                    [*(Cell(c, c) for c in texts), Cell(MISSING, None), Cell(told, numbers), _of_run(run, [])[1]]
                )
    return made


@interruptible
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the program's own). Returns the exit status."""
    parser = ProgramParser(PROGRAM, __doc__)
    documents = read_json_object(PUBLISHED)["documents"]
    parser.add_argument("document", nargs="?", choices=list(documents), help="whose tables")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder with the folders of runs")
    parser.add_argument("--format", choices=list(table_text.FORMATS), default="markdown", help="(default: markdown)")
    args = parser.parse_args(argv)
    problems = [] if args.document else [f"document: is needed, one of {', '.join(documents)}"]
    if args.runs is None:
        problems.append("--runs: is needed, the folder with the folders of runs")
    elif not args.runs.is_dir():
        problems.append(f"--runs {args.runs}: there is no such folder; check the path")
    if problems:
        parser.refuse(problems)
    try:
        from tasks.runs import find  # takes seconds, which --help need not wait for
    except ModuleNotFoundError as error:
        parser.refuse([not_installed(error)])
    told: list[str] = []
    try:
        runs = find(args.runs, told)
    except ValueError as error:
        parser.refuse([f"--runs {args.runs}: {error}"])
    if not runs:
        told.append(f"--runs {args.runs}: no run in it (a folder with run.json or evaluations/); every cell is -")
    for line in told:
        print(f"{PROGRAM}: {line}", file=sys.stderr)
    title = f"{args.document}, {documents[args.document]['title']}"
    print(table_text.FORMATS[args.format](title, tables(args.document, runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
