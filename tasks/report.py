"""Results as people and programs read them: a table, the reference application's last lines, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from corpora.atomic import atomic_file
from corpora.strict_json import json_text
from model.config import GPT2Config, parameter_count
from tasks.protocols import Result
from tasks.published import comparable

# Measures that the table shows, in order; the others are in the JSON.
_SHOWN = ("loss", "ppl", "adjusted ppl", "word ppl", "bits per byte", "bits per character", "accuracy")
_HEAD = ("task", "protocol", "text", "detokenizer", "T", "stride", "BPE", "scored", "result", "published")


def table(results: Sequence[Result], config: GPT2Config) -> str:
    """A row for each result, and below them the figures that each may be compared with."""
    rows = [_HEAD, *(_row(result, config) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    right = {_HEAD.index(name) for name in ("T", "stride", "BPE", "scored")}
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join([*lines, *_published(results, config)])


def _published(results: Sequence[Result], config: GPT2Config) -> list[str]:
    """The published figures: a line for each protocol, measure and source, with all sizes that it has."""
    lines: list[str] = []
    for result in results:
        sources: dict[tuple[str, str], list[str]] = {}
        for measure, figure in comparable(result.subject, result.protocol, config):
            shown = f"{_number(measure, figure.value)} ({figure.size})"
            sources.setdefault((measure, figure.source), []).append(shown)
        for (measure, source), shown in sources.items():
            lines.append(f"  {result.task} {result.protocol}, {measure}: {', '.join(shown)}; {source}")
    return ["published, T 1024:", *lines] if lines else []


def _row(result: Result, config: GPT2Config) -> tuple[str, ...]:
    values = ", ".join(f"{name} {_number(name, result.values[name])}" for name in _SHOWN if name in result.values)
    figures = comparable(result.subject, result.protocol, config)
    return (
        result.task,
        result.protocol,
        Path(result.files[0]).name,
        result.detokenizer,
        str(result.window),
        "rows" if result.stride is None else str(result.stride),
        f"{result.counts['bpe']:,}",
        f"{result.counts['scored']:,}",
        (values or "nothing scored") + ("" if result.complete else " (PARTIAL)"),
        "below" if figures else "none",
    )


def _number(measure: str, value: float) -> str:
    return f"{100 * value:.2f} %" if measure == "accuracy" else f"{value:.4f}"


def last_lines(results: Sequence[Result], strict: bool) -> list[str]:
    """The reference application's last line for WikiText and for LAMBADA, if they were evaluated to the end.

    Programs read numbers out of them: a result that is not finite has none.

    `strict`: LAMBADA's is about the last word, not the last BPE token.
    """
    lines = []
    for result in results:
        values = result.values
        if not result.complete or result.trouble:
            continue
        if result.task != "LAMBADA" and result.protocol == "adjusted":
            lines.append(
                f"avg loss: {values['loss']:.4E}, ppl: {values['ppl']:.4E}, adjusted ppl: "
                f"{values['adjusted ppl']:.4E}, token ratio: {values['token ratio']}"
            )
        elif result.task == "LAMBADA" and result.protocol == ("last-word" if strict else "last-bpe"):
            lines.append(
                f"number correct: {values['correct']:.4E}, total examples: {result.counts['rows']:.4E}, "
                f"avg accuracy: {values['accuracy']:.4E}"
            )
    return lines


def as_json(results: Sequence[Result], checkpoint: str, config: GPT2Config) -> dict[str, Any]:
    """Everything about an evaluation of one checkpoint."""
    return {
        "checkpoint": checkpoint,
        "parameters": parameter_count(config),
        "config": config.to_dict(),
        "results": [
            {
                **result.as_dict(),
                "published": [
                    {"measure": measure, **figure._asdict()}
                    for measure, figure in comparable(result.subject, result.protocol, config)
                ],
            }
            for result in results
        ],
    }


def write_json(path: str, content: Any) -> None:
    """Writes a JSON file, whole or not at all, with null for what is not finite. Raises ValueError if it cannot be."""
    try:
        with atomic_file(Path(path)) as file:
            file.write((json_text(content, indent=2) + "\n").encode("utf-8"))
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written ({error.strerror}); choose another file") from error
