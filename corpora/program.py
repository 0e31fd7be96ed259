"""What the programs that read corpora share: the flags of their input, and how they end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

SOURCES = ("wikipedia", "wikitext", "openwebtext", "jsonl", "text")


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is read, of data/prepare.py and tokenizer/train.py."""
    what = parser.add_argument_group("input")
    what.add_argument("--input", nargs="+", required=True, type=Path, metavar="PATH", help="files or folders")
    what.add_argument("--source", choices=SOURCES, help="what they are (default: what their names say)")
    what.add_argument("--json-key", default="text", help="member of a JSON line that holds the text (default: text)")
    what.add_argument("--documents", choices=("line", "file"), default="line", help="of plain text (default: line)")


def reported(program: str, work: Callable[[], object]) -> int:
    """Run a command and report its errors in a line; the exit status."""
    try:
        work()
    except (ValueError, RuntimeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(
            f"{program}: {error.name} is not installed; run: pip install -r requirements-corpora.txt", file=sys.stderr
        )
        return 2
    except OSError as error:
        where = error.filename or "output"
        print(f"{program}: {where}: {error.strerror}; once that is put right, run the same command", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0
