"""Results as people and programs read them: a table, the reference application's last lines, JSON."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Sequence

from corpora.atomic import atomic_file
from corpora.refusal import TooLate
from corpora.strict_json import json_text
from model.config import GPT2Config, real_parameter_count
from tasks.protocols import Result
from tasks.published import comparable
from tasks.records import EVALUATIONS, folder_of, keep, name_of

# Measures that the table shows, in order; the others are in the JSON.
_SHOWN = ("loss", "ppl", "adjusted ppl", "word ppl", "bits per byte", "bits per character", "accuracy")
_COLUMNS = 100  # of a terminal; what is longer goes on in the next line
_KEPT = "\xa0"  # a space at which no line ends
_RESULT = ("task", "protocol", "published", "result")
_SCORED = ("task", "protocol", "text", "detokenizer", "T", "stride", "BPE", "scored")
_RIGHT = {"T", "stride", "BPE", "scored"}


def table(results: Sequence[Result], config: GPT2Config) -> str:
    """What came out, what it was computed on and the figures it may be compared with; no line over 100 columns."""
    found = _aligned([_RESULT, *(_result(result, config) for result in results)])
    scored = [_SCORED, *map(_of_what, results)]
    text = _SCORED.index("text")
    excess = max(map(len, _aligned(scored))) - _COLUMNS
    if excess > 0:  # a long name: the whole path is in the JSON
        room = max(len("text"), max(len(row[text]) for row in scored) - excess)
        scored = [(*row[:text], _shortened(row[text], room), *row[text + 1 :]) for row in scored]
    return "\n".join([*found, "", *_aligned(scored), *_published(results, config)])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns below their names, those of numbers to the right. A last one that is too long goes on below itself."""
    head = rows[0]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines: list[str] = []
    for row in rows:
        cells = [c.rjust(w) if name in _RIGHT else c.ljust(w) for name, c, w in zip(head, row, widths)]
        left = "  ".join(cells).rstrip()[: -len(row[-1])]
        lines += _wrapped(left, row[-1], " " * len(left))
    return lines


def _wrapped(begin: str, text: str, further: str) -> list[str]:
    """Lines of at most _COLUMNS, the first one after `begin` and the others after `further`, broken at spaces."""
    lines = textwrap.wrap(
        text, _COLUMNS, initial_indent=begin, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_KEPT, " ") for line in lines]


def _shortened(name: str, room: int) -> str:
    """A name with its middle left out if it is longer than `room`."""
    if len(name) <= room:
        return name
    end = (room - 1) // 2
    return f"{name[: room - 1 - end]}…{name[len(name) - end :]}"


def _published(results: Sequence[Result], config: GPT2Config) -> list[str]:
    """The published figures: for each protocol, measure and source all sizes that it has."""
    lines: list[str] = []
    for result in results:
        sources: dict[tuple[str, str], list[str]] = {}
        for measure, figure in comparable(result.subject, result.protocol, config):
            shown = f"{_number(measure, figure.value)} ({figure.size})".replace(" ", _KEPT)
            sources.setdefault((measure, figure.source), []).append(shown)
        for (measure, source), shown in sources.items():
            text = f"{result.task} {result.protocol}, {measure}: {', '.join(shown)}; {source}"
            lines += _wrapped("  ", text, "    ")
    return ["", "published, T 1024:", *lines] if lines else []


def _result(result: Result, config: GPT2Config) -> tuple[str, ...]:
    shown = [f"{name} {_number(name, result.values[name])}" for name in _SHOWN if name in result.values]
    values = ", ".join(one.replace(" ", _KEPT) for one in shown)
    figures = comparable(result.subject, result.protocol, config)
    return (
        result.task,
        result.protocol,
        "below" if figures else "none",
        (values or "nothing scored") + ("" if result.complete else f"{_KEPT}(PARTIAL)"),
    )


def _of_what(result: Result) -> tuple[str, ...]:
    return (
        result.task,
        result.protocol,
        Path(result.files[0]).name,
        result.detokenizer,
        str(result.window),
        "rows" if result.stride is None else str(result.stride),
        f"{result.counts['bpe']:,}",
        f"{result.counts['scored']:,}",
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
        "parameters": real_parameter_count(config),
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


def kept(results: Sequence[Result], checkpoint: str, config: GPT2Config, fp16: bool) -> list[str]:
    """--record: keeps what was evaluated to the end, each result for itself; returns lines that say where.

    Raises TooLate if it cannot be written.
    """
    whole = [result for result in results if result.complete]
    for result in whole:
        keep(checkpoint, name_of(result.as_dict()), as_json([result], checkpoint, config), fp16)
    lines = [f"kept: {len(whole)} of {len(results)} results in {folder_of(checkpoint) / EVALUATIONS}"]
    return lines if len(whole) == len(results) else [*lines, "what was not evaluated to the end is not kept"]


def write_json(path: str, content: Any) -> None:
    """Writes a JSON file, whole or not at all, with null for what is not finite. Raises TooLate if it cannot be."""
    try:
        with atomic_file(Path(path)) as file:
            file.write((json_text(content, indent=2) + "\n").encode("utf-8"))
    except OSError as error:
        raise TooLate(
            f"--json {path}: cannot be written ({error.strerror}); the results are those printed above"
        ) from error
