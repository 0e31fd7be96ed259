"""What the runtime tells the person who runs the program: the "poptorch" logger and notices said only once.

The logger has its own handler (stderr) and does not propagate, so that a program's logging set-up shows nothing twice.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from . import option_effects

TRACE = 5
OFF = logging.CRITICAL + 10
# PopTorch's names (and the numbers of its native logger) for logging's levels.
LEVELS = {"TRACE": TRACE, "DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING}
LEVELS.update({"ERR": logging.ERROR, "OFF": OFF})
NUMBERED_LEVELS = {0: "TRACE", 1: "DEBUG", 2: "INFO", 3: "WARN", 4: "ERR", 6: "OFF"}
VARIABLES_WITHOUT_EFFECT = (
    "POPTORCH_CACHE_DIR",
    "POPTORCH_EXPORT_PROTO_AS_BINARY",
    "POPTORCH_EXPORT_PROTO_FILE",
    "POPTORCH_IPU_MODEL",
    "POPTORCH_IPU_MODEL_VERSION",
    "POPTORCH_LOG_DEST",
    "POPTORCH_MAX_GRAPH_LEN",
    "POPTORCH_SMALL_IPU_MODEL",
    "POPTORCH_TRACEPOINT",
    "POPTORCH_TRACEPOINT_WITH_DEBUG_INFO",
    "POPTORCH_WAIT_FOR_IPU",
    "PVTI_OPTIONS",
)

logger = logging.getLogger("poptorch")
_said: set[Any] = set()
_differences: list[str] = []  # short forms that no line has told yet


class _StderrHandler(logging.Handler):
    """Writes to whatever sys.stderr is when the line is logged; a StreamHandler would keep the one of import time."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def setLogLevel(level: str | int) -> None:
    """Sets how much is logged.

    Args:
        level: TRACE, DEBUG, INFO, WARN (default), ERR or OFF, in any case; or its number 0, 1, 2, 3, 4, 6.
    Raises:
        ValueError: not one of those.
    """
    name = NUMBERED_LEVELS.get(level) if isinstance(level, int) else str(level).upper()
    if name not in LEVELS:
        raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)} (or 0, 1, 2, 3, 4, 6)")
    logger.setLevel(LEVELS[name])


def _first_process() -> bool:
    """Of several, which would all say the same, the first warns."""
    return os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0"


def once(key: Any, message: str, level: int = logging.WARNING) -> bool:
    """Logs `message` unless something was already logged under `key` in this process. Returns whether it was."""
    if key in _said:
        return False
    _said.add(key)
    if not _first_process():
        level = min(level, logging.INFO)
    logger.log(level, message)
    return True


def difference(key: Any, short: str, message: str) -> None:
    """What every start off-IPU would say and nobody has to act on: `message` at level INFO.

    At the default level its `short` form stands in the one line of report_differences().
    """
    if once(key, message, logging.INFO):
        _differences.append(short)


def report_differences() -> None:
    """The short forms of what difference() was told since the last time, in one line."""
    if _differences and _first_process() and not logger.isEnabledFor(logging.INFO):
        logger.warning("%s (POPTORCH_LOG_LEVEL=INFO: more)", "; ".join(_differences))
    _differences.clear()


def report_environment() -> list[str]:
    """Names, in one log line, PopTorch's environment variables that are set and that change nothing off-IPU."""
    names = [name for name in VARIABLES_WITHOUT_EFFECT if name in os.environ]
    if names:
        once(("environment", tuple(names)), f"These environment variables have no effect off-IPU: {', '.join(names)}.")
    return names


def report_without_effect(options: Any) -> list[str]:
    """Names, in one log line of level INFO, the options that the program set and that change nothing off-IPU.

    The executor calls it at construction; a name is logged only once per process, and report_differences() tells how
    many there are. Returns the names, e.g. ["syncPattern", "_Popart.set('outlineThreshold')"].
    """
    names = option_effects.without_effect(options)
    new = [name for name in names if ("without effect", name) not in _said]
    _said.update(("without effect", name) for name in new)
    if new:
        short = f"{len(new)} options" if len(new) > 2 else " and ".join(new)
        message = f"These options have no effect off-IPU: {', '.join(new)}."
        difference(tuple(new), f"{short} {'have' if new[1:] else 'has'} no effect off-IPU", message)
    return names


def _set_up() -> None:
    logging.addLevelName(TRACE, "TRACE")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] [poptorch] [%(levelname)s] %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    wanted = os.environ.get("POPTORCH_LOG_LEVEL") or "WARN"
    try:
        setLogLevel(int(wanted) if wanted.isdigit() else wanted)
    except ValueError as error:
        setLogLevel("WARN")
        logger.warning("POPTORCH_LOG_LEVEL: %s; using WARN", error)


_set_up()
