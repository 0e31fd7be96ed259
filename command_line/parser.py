"""From the words of a command line to values and a list of what is wrong with them."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, Sequence

from command_line.checks import Problems
from command_line.flags import PATH, Flag
from command_line.flags_file import read_flags
from corpora.refusal import is_negative, unknown_words

FLAGS_FILE = Flag(
    "--flags", None, PATH, "file with flags, as on the command line or in JSON, such as a run.json; those typed win"
)


class _Formatter(argparse.HelpFormatter):
    """`--old, --new VALUE` once, and the default behind the help text."""

    def __init__(self, prog: str, **rest: Any) -> None:
        super().__init__(prog, max_help_position=36, **rest)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        return f"{names} {action.metavar}" if action.metavar else names


class _Negative(str):
    """A negative number, behind a blank: argparse takes `-1e-5` for a flag, and nothing with a blank in it."""


class _Store(argparse.Action):
    """Keeps a value under its flag's attribute; what is wrong with it goes to the parser's list of problems.

    argparse ends at the first error. Therefore it is told that every value may be missing, and nothing in it fails.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, flag: Flag, **rest: Any) -> None:
        super().__init__(option_strings, dest, **rest)
        self.flag = flag

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        flag = self.flag
        parser.spelled[self.dest] = option_string
        texts = values if isinstance(values, list) else [values]
        texts = [text[1:] if isinstance(text, _Negative) else text for text in texts]
        read = []
        problem = None if texts and None not in texts else f"needs a value, {flag.kind.shown}"
        for text in () if problem else texts:
            try:
                read.append(flag.kind.parse(text))
            except ValueError as error:
                problem = f"{text!r} {error}"
                break
        if problem:
            parser.misread[self.dest] = f"{option_string}: {problem}"
        else:
            parser.misread.pop(self.dest, None)  # the last one wins, so an earlier slip is forgiven
            setattr(namespace, self.dest, read if flag.many else read[0])


class Parser(argparse.ArgumentParser):
    """An argument parser over groups of Flags that collects problems; `read` gives the values and the problems."""

    def __init__(self, program: str, about: str, groups: dict[str, Sequence[Flag]]) -> None:
        super().__init__(program, f"{program} [flags]", about, allow_abbrev=False, formatter_class=_Formatter)
        self.spelled: dict[str, str] = {}
        self.misread: dict[str, str] = {}
        groups = {"file of flags": (FLAGS_FILE,), **groups}
        self.flags = {flag.dest: flag for group in groups.values() for flag in group}
        for title, group in groups.items():
            section = self.add_argument_group(title)
            for flag in group:
                section.add_argument(
                    *flag.names,
                    action=_Store,
                    flag=flag,
                    nargs="*" if flag.many else "?",
                    const=flag.kind.bare,
                    default=flag.default,
                    metavar=flag.kind.shown + (" ..." if flag.many else ""),
                    help=flag.help + ("" if flag.default in (None, "") else f" (default: {flag.default})"),
                )

    def read(self, argv: Sequence[str] | None = None) -> Problems:
        """Parses argv (default: the program's own), behind what --flags FILE holds. `--help` exits here."""
        words = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
        lines: list[str] = []
        args = self.parse_known_args([])[0]
        source = self._parse(words, argparse.Namespace())[0].flags
        self.spelled, self.misread = {}, {}
        if source is not None:
            try:
                args, unknown = self._parse([_dashed(word) for word in read_flags(source)], args)
                lines += [f"{line} (in --flags {source})" for line in self._unknown(unknown)]
                self.misread = {dest: f"{line} (in --flags {source})" for dest, line in self.misread.items()}
                if "flags" in self.spelled:
                    lines.append(f"--flags {source}: names a further file of flags; put them into one")
            except ValueError as error:
                lines.append(f"--flags {error}")
        args, unknown = self._parse(words, args)
        del args.flags  # its flags are among the others
        args.typed = set(self.spelled) - {"flags"}
        names = {dest: self.spelled.get(dest, flag.names[0]) for dest, flag in self.flags.items()}
        problems = Problems(self.prog, args, names, self.misread)
        problems.lines += lines + self._unknown(unknown)
        problems.lines += self.misread.values()
        return problems

    def _parse(self, words: Sequence[str], args: argparse.Namespace) -> tuple[argparse.Namespace, list[str]]:
        """Reads words into `args`; also what belongs to no flag."""
        found, unknown = self.parse_known_args(words, args)
        return found, [word[1:] if isinstance(word, _Negative) else word for word in unknown]

    def _unknown(self, words: Sequence[str]) -> list[str]:
        return unknown_words(words, [name for flag in self.flags.values() for name in flag.names])


def _dashed(word: str) -> str:
    """`--batch_size=1` as `--batch-size=1`; a value stays as it is."""
    if is_negative(word):
        return _Negative(" " + word)
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.match(r"--[\w-]+$", name) else word
