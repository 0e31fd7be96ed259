"""What the programs beside train_gpt2.py share: their parser, the flags of their input, and how they end."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn, Sequence

from corpora.refusal import not_among, not_installed, refuse, unknown_words
from corpora.termination import Terminated, exit_status, terminable

SOURCES = ("wikipedia", "wikitext", "openwebtext", "jsonl", "text")
_OF_CORPORA = ("ftfy", "datasketch")  # libraries that few flags need: requirements-corpora.txt
TEXT_KEY = "text"  # member of a JSON line that holds the text, if no flag names another


class _Misread(NamedTuple):
    """In the place of a value: what is wrong with the word that was to be one."""

    problem: str


class ProgramParser(argparse.ArgumentParser):
    """argparse's parser, but its errors are those of train_gpt2.py: every problem a line, no usage before them.

    Whole words only: no flag can be abbreviated.
    """

    def __init__(self, program: str, about: str | None, **rest: Any) -> None:
        rest.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(program, description=about, allow_abbrev=False, **rest)
        for kind, shown in ((int, "a whole number"), (float, "a number")):
            self.register("type", kind, _reader(kind, shown))
        self.register("type", Path, _reader(_path, "a path; an empty one may come of a variable that is not set"))

    def parse_args(self, argv: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """The values. Ends the program with status 2 if a flag is unknown, missing or misread."""
        required = [action for action in self._actions if action.required]
        choices = {action.dest: action.choices for action in self._actions if action.choices}
        for action in self._actions:  # argparse would end at the first problem
            action.required = False
            if action.choices:
                action.metavar = action.metavar or "{" + ",".join(action.choices) + "}"
                action.choices = None
        args, unknown = self.parse_known_args(argv, namespace)
        problems = unknown_words(unknown, self._option_string_actions)
        for action in self._actions:
            value = getattr(args, action.dest, None)
            values = value if type(value) in (list, tuple) else [value]  # what was misread is a tuple of its own
            flag = "/".join(action.option_strings) or action.dest
            problems += [f"{flag}: {v.problem}" for v in values if isinstance(v, _Misread)]
            if action.dest in choices and value is not None:
                wrong = [(v, not_among(v, list(choices[action.dest]))) for v in values]
                problems += [f"{flag}: {v!r} {problem}" for v, problem in wrong if problem]
            if action in required and value is None:
                problems.append(f"{flag}: is needed" + (f" ({action.help})" if action.help else ""))
        if problems:
            self.refuse(problems)
        return args

    def refuse(self, problems: Sequence[str]) -> NoReturn:
        """End the program with these problems."""
        refuse(self.prog, problems)

    def error(self, message: str) -> NoReturn:
        """argparse's own errors, and those of a program that has one."""
        self.refuse([message[len("argument ") :] if message.startswith("argument ") else message])


def _path(text: str) -> Path:
    """Python takes the empty path for the current folder."""
    if not text:
        raise ValueError
    return Path(text)


def _reader(kind: Callable[[str], Any], shown: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return _Misread(f"{text!r} must be {shown}")

    return read


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is read, of data/prepare.py and tokenizer/train.py."""
    what = parser.add_argument_group("input")
    what.add_argument("--input", nargs="+", required=True, type=Path, metavar="PATH", help="files or folders")
    what.add_argument("--source", choices=SOURCES, help="what they are (default: what their names say)")
    what.add_argument("--json-key", metavar="KEY", help=f"member of a JSON line that holds the text ({TEXT_KEY})")
    what.add_argument(
        "--documents",
        choices=("line", "passage", "file", "article"),
        help="of plain text line (the default), passage (16 KB or more, up to a blank line) or file; of WikiText "
        "article (the default), line, or file: the text as it is",
    )
    add_placeholder_flag(what)


def add_placeholder_flag(parser: Any) -> None:
    """--drop-placeholders, of every program that reads extracted Wikipedia."""
    parser.add_argument(
        "--drop-placeholders",
        "--drop_placeholders",
        action="store_true",
        help="of Wikipedia: leave out formula_1 and codice_1, which WikiExtractor puts for formulas and code",
    )


def add_overwrite_flag(parser: Any) -> None:
    """--overwrite, of every program that keeps what its output was made from (corpora/origin.py)."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what another command has left under the same names"
    )


def as_absolute(path: Path | str) -> str:
    """A path as one types it in a shell, wherever one stands."""
    return shlex.quote(os.path.abspath(str(path)))


def train_gpt2() -> str:
    """How train_gpt2.py is started with this Python, wherever one stands."""
    return f"{shlex.quote(sys.executable)} {as_absolute(Path(__file__).parents[1] / 'train_gpt2.py')}"


def train_on_it(flags: str) -> str:
    """What a program that prepares data says last: the command that trains on them, a line."""
    return f"train on it: {train_gpt2()} {flags}\n"


def reported(program: str, work: Callable[[], object], goes_on: bool = True) -> int:
    """Run a command and report its errors, Ctrl-C and SIGTERM in a line; the exit status.

    `goes_on`: whether the same command goes on where it was interrupted; otherwise nothing was written. What an
    interruption has as its argument is what there is to go on from.
    """
    try:
        with terminable():
            work()
    except (ValueError, RuntimeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        remedy = not_installed(error)
        if error.name in _OF_CORPORA:
            remedy = f"{error.name} is not installed; run: pip install -r requirements-corpora.txt"
        print(f"{program}: {remedy}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or "output"
        remedy = "once that is put right, run the same command" if goes_on else "nothing written"
        print(f"{program}: {where}: {error.strerror}; {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        name = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
        kept = "".join(f"; {what}" for what in stop.args)
        left = f"{kept}; the same command goes on" if goes_on else ", nothing written; the same command begins again"
        print(f"{program}: {name}: interrupted{left}", file=sys.stderr)
        return exit_status(stop)
    return 0
