"""The files of a report: whole or not at all, and a folder that cannot be written does not end the program."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import notices
from ..options import engine_options
from . import estimates, page, record, timeline
from .report_text import Window

Content = str | Callable[[Path], Any]  # a text, or what writes the file of this name
Events = list[dict[str, Any]]


class ReportFiles:
    """The folder of one executor.

    Args:
        folder: of the executor. own: in it, that of this process, where there are several.
        rank: of this process, where several run the program together, otherwise None.
        training, device, program: what runs.
    """

    def __init__(self, folder: Path, own: Path, rank: int | None, training: bool, device: torch.device, program: Any):
        self._shared, self._rank, self._training, self._device, self._program = folder, rank, training, device, program
        self.folder = own
        self._picture: dict[str, Any] = {"of": "", "rows": [], "events": [], "left_out": 0}

    def head(self) -> str:
        """What ran, where and when."""
        kind = "training" if self._training else "inference"
        return f"PopTorch report: {kind} on {self._device}, {_now()}, torch {torch.__version__}"

    def own(self, text: str, window: Window | None, facts: Mapping[str, Any], events: Events) -> bool:
        """Summary and trace of this process, and the page if it is alone. Returns whether they could be written.

        `events` are those of the call that has ended; none: the picture stays as it is.
        """
        contents: dict[str, Content] = {"summary.txt": text}
        if window is not None and not window.written:
            contents["trace.json"] = window.export
        if self._rank is None:
            if events:
                self._draw([{**event, "rank": 0} for event in events], facts["warming_up"])
            contents.update(self._page([facts]))
        return write(self.folder, contents)

    def shared(self, facts: Sequence[Mapping[str, Any]], events: Events) -> None:
        """The timeline of all processes and their page, in the first one."""
        contents: dict[str, Content] = {}
        if events:
            self._draw(events, facts[0]["warming_up"])
            contents = {"timeline.json": timeline.as_json(events), "trace.json": timeline.as_trace(events)}
        write(self._shared, {**contents, **self._page(facts)})

    def offline(self) -> None:
        """The page of what was estimated, for nothing will be measured."""
        folder = self.folder if self._rank is None else self._shared
        if self._rank in (None, 0) and write(folder, self._page([])):
            said(folder)

    def _draw(self, events: Events, first: bool) -> None:
        ipus = [stage.ipu for stage in self._program.stages]
        which = "first call, warming up included" if first else "second call"
        self._picture = {"of": which, **timeline.picture(events, ipus, self._rank is not None)}

    def _page(self, facts: Sequence[Mapping[str, Any]]) -> dict[str, Content]:
        about = {
            "kind": "training" if self._training else "inference",
            "program": shlex.join(sys.argv),
            "device": str(self._device),
            "torch": torch.__version__,
            "written": _now(),
        }
        estimate = estimates.of_program(self._shared.parent / estimates.FILE, about["program"], about["kind"])
        found = record.record(about, self._program, self._training, facts, self._picture, estimate)
        text = json.dumps(found, indent=1, ensure_ascii=False)
        return {"report.json": text, "report.html": page.html_of(found)}


def write(folder: Path, contents: Mapping[str, Content]) -> bool:
    """Put these files into `folder`. Returns whether that was possible; if not it is said once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _whole(folder / name, content)
    except OSError as error:
        notices.once(
            ("report", folder),
            f"The report cannot be written to {folder} ({error.strerror}): name another folder in "
            f"{engine_options.VARIABLE}, e.g. {engine_options.EXAMPLE}",
        )
        return False
    return True


def said(folder: Path) -> None:
    """Tell where the report is."""
    print(f"poptorch: report in {folder}", file=sys.stderr, flush=True)


def _now() -> str:
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %z}"


def _whole(path: Path, content: Content) -> None:
    temporary = path.with_name(f".{path.name}.part")
    if isinstance(content, str):  # a name that is no text, such as a path in Latin-1, is shown with escapes
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    else:
        content(temporary)
    os.replace(temporary, path)
