"""What is wrong with a command line, and the checks that programs share.

A check adds to the list of problems and goes on, so that one run of the program names all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
import time
from contextlib import contextmanager, redirect_stdout
from typing import Iterator, Mapping, NoReturn, Sequence

import corpora.refusal
from command_line.commands import misplaced
from corpora.refusal import TooLate
from corpora.refusal import not_installed as not_installed
from model.config import MODELS, GPT2Config, padding_note
from model.config_fields import check_fields
from model.layout import launched
from model.pipeline import least_micro_batches, shared_on_several


class Problems:
    """The values read and what is wrong with them. `doubts` are told only if something is wrong for certain.

    `names` has the spelling of every flag for a message, as typed where it was; `misread` the values that could not
    be read. Sets args.notes, the lines that a program prints at its start.
    """

    def __init__(
        self, program: str, args: argparse.Namespace, names: Mapping[str, str], misread: Mapping[str, str]
    ) -> None:
        self.program, self.args, self.names, self.misread = program, args, names, misread
        self.lines: list[str] = []
        self.doubts: list[str] = []
        args.notes = []

    def sound(self, *dests: str) -> bool:
        """Whether these values could be read, so that a check of them means something."""
        return not any(dest in self.misread for dest in dests)

    def shown(self, dest: str) -> str:
        """Flag and value as they were typed, for a message."""
        value = getattr(self.args, dest)
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{self.names[dest]} {text}".strip() + ("" if dest in self.args.typed else " (default)")

    def add(self, dest: str, text: str) -> None:
        """Notes what is wrong with the value of `dest` and what to do about it."""
        self.lines.append(f"{self.shown(dest)}: {text}")

    def ignored(self, dest: str, why: str) -> None:
        """Notes, if the flag was given and not as False, that it has no effect; `why` goes on from that.

        The first reason is the one that is told.
        """
        if dest not in self.args.typed or not self.sound(dest) or getattr(self.args, dest) is False:
            return
        told = f"{self.shown(dest)} has no effect"
        if not any(note.startswith(told) for note in self.args.notes):
            self.args.notes.append(told + why)

    def finish(self) -> argparse.Namespace:
        """The values, or the end of the program if anything is wrong."""
        if self.lines:
            refuse(self.program, self.lines + self.doubts)
        return self.args


class BadFlags(ValueError):
    """Flags that the runtime refuses once it sees the whole program."""


def installed(package: str) -> bool:
    """Whether a package could be imported; it is not."""
    return importlib.util.find_spec(package) is not None


_PATIENCE = 10.0  # seconds; torchrun of torch 2.0 looks at its processes every 5


def is_first_process() -> bool:
    """Whether this process is the first, or the only one, of its run."""
    try:
        number, count = launched()
        return not 0 < number < count
    except (ModuleNotFoundError, ValueError):  # popdist is missing, or the launcher's variables make no sense
        return True


@contextmanager
def first_speaks() -> Iterator[None]:
    """Around a program, or as its decorator: only the first process of a run prints. Errors are another matter."""
    if is_first_process():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def leave_to_first_process() -> None:
    """Of several processes that meet the same error the first tells it, and its end ends the others.

    They wait for that: a launcher that saw one of them end might stop the first before it has spoken. The caller
    tells the error if this returns, for then it is this process's own.
    """
    if not is_first_process():
        time.sleep(_PATIENCE)


def speaker() -> str:
    """Who tells an error that is not the first process's, for the beginning of the message."""
    if is_first_process():
        return ""
    number, count = launched()
    return f"process {number} of {count} on {platform.node()}: "


def refuse(program: str, problems: Sequence[str]) -> NoReturn:
    """Prints every problem, one a line, to stderr and ends the program with status 2.

    Of the processes of one run the first alone does (leave_to_first_process).
    """
    leave_to_first_process()
    lines = [speaker() + problem for problem in problems]
    hint = misplaced(sys.argv[1:])
    if hint:
        lines[-1] += f"\n      {hint}"
    corpora.refusal.refuse(program, lines)


def give_up(program: str, error: ValueError) -> NoReturn:
    """Ends a program with status 2: it refuses what it was asked for, or tells what came too late for that."""
    if isinstance(error, UnicodeError):  # whose arguments are parts of one problem, the whole text among them
        refuse(program, [str(error)])
    if not isinstance(error, TooLate):
        refuse(program, [str(problem) for problem in error.args])
    leave_to_first_process()
    print(f"{program}: {speaker()}{error}", file=sys.stderr)
    raise SystemExit(2)


def check_config(problems: Problems) -> GPT2Config | None:
    """Sets args.config to the json file of the model and reads it; None if that is not possible."""
    args = problems.args
    if not problems.sound("model", "config"):
        return None
    dest = "config" if args.config else "model"
    if args.config:
        problems.ignored("model", f" beside {problems.shown('config')}, which is the model")
    path = args.config = str(args.config or MODELS[args.model])
    try:
        note = check_fields(path)
        config = GPT2Config.from_json(path)
    except ValueError as error:
        problems.lines.append(f"{problems.names[dest]}: " + " ".join(str(error).split()))
        return None
    args.notes += [f"{problems.names[dest]} {note}"] if note else []
    if config.padding_id is not None and not args.pretrained_checkpoint:  # of a checkpoint its loader tells
        args.notes.append(padding_note(config.padding_id))
    return config


def check_layers(problems: Problems, config: GPT2Config, trains: bool) -> None:
    """Expands --layers-per-ipu; afterwards args.ipus_per_replica is its length."""
    args, n_layer = problems.args, config.n_layer
    layers, ipus = args.layers_per_ipu, args.ipus_per_replica
    if layers is None:
        layers = [n_layer]
        if "ipus_per_replica" in args.typed and ipus > 1:
            args.notes.append(f"{problems.shown('ipus_per_replica')} without --layers-per-ipu: IPU 0 alone is used")
    elif len(layers) == 1:
        layers = layers * ipus
    count_fits = "ipus_per_replica" not in args.typed or len(layers) == ipus or args.layers_per_ipu is None
    if not count_fits:
        remedy = f"give {ipus} numbers, or --ipus-per-replica {len(layers)}"
        problems.add("layers_per_ipu", f"{len(layers)} numbers for {problems.shown('ipus_per_replica')}; {remedy}")
    if sum(layers) != n_layer:
        each = f" ({args.layers_per_ipu[0]} on each of {ipus} IPUs)" if len(args.layers_per_ipu) == 1 else ""
        remedy = f"make the numbers add up to {n_layer}, or leave it out for one IPU"
        problems.add("layers_per_ipu", f"{sum(layers)} blocks{each}, but the model has {n_layer}; {remedy}")
    elif shared_on_several(config, layers):
        problems.add("layers_per_ipu", shared_on_several(config, layers))
    elif trains and count_fits and problems.sound("gradient_accumulation"):
        least, dest, samples = least_micro_batches(config, layers), "gradient_accumulation", 1
        stages = (least + 1) // 2
        if args.global_batch_size is not None:  # the accumulation follows from it
            dest, samples = "global_batch_size", args.global_batch_size // args.gradient_accumulation
        if args.gradient_accumulation < least:
            problems.add(
                dest,
                f"a pipeline of {stages} forward stages ({problems.shown('layers_per_ipu')}) needs at least "
                f"2 x {stages} - 1 = {least} micro-batches a weight update; raise it to {least * samples}",
            )
    args.layers_per_ipu, args.ipus_per_replica = layers, len(layers) if count_fits else ipus


def check_proportions(problems: Problems, ipus: int) -> None:
    """Expands --matmul-proportion to one fraction an IPU; None stays None."""
    args = problems.args
    if args.matmul_proportion is None or not problems.sound("matmul_proportion"):
        return
    if len(args.matmul_proportion) == 1:
        args.matmul_proportion = args.matmul_proportion * ipus
    elif len(args.matmul_proportion) != ipus:
        problems.add(
            "matmul_proportion",
            f"{len(args.matmul_proportion)} fractions for {ipus} IPU{'s' if ipus > 1 else ''}; give one for each IPU "
            "of --layers-per-ipu, or one number for all",
        )


def check_folder(problems: Problems, dest: str) -> None:
    """A folder to be written: it, or the nearest parent that exists, must be a writable folder."""
    path = getattr(problems.args, dest)
    if not path:
        return
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        problems.add(dest, f"{there} is a file; name a folder")
    elif not os.access(there, os.W_OK | os.X_OK):
        problems.add(dest, f"{there} cannot be written; name another folder")


def check_file(problems: Problems, dest: str) -> None:
    """A file to be written, if one is named: its folder must be there, and it must be possible to write it."""
    path = getattr(problems.args, dest)
    if not path:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        problems.add(dest, "this is a folder; name a file")
    elif not os.path.isdir(folder):
        problems.add(dest, "its folder does not exist; create it first")
    elif not os.access(path if os.path.lexists(path) else folder, os.W_OK):
        problems.add(dest, "cannot be written; name another file")


def check_profile(problems: Problems) -> None:
    """args.profile becomes the folder of the report itself, whose name ends in _profile; None: there is none."""
    args = problems.args
    if args.profile is None or not problems.sound("profile"):
        return
    if not os.path.basename(os.path.abspath(args.profile)).endswith("_profile"):
        name = problems.program.split()[-1]  # without "python -m"
        program = os.path.splitext(os.path.basename(name))[0]
        args.profile = os.path.join(args.profile, f"{program}_profile")
    check_folder(problems, "profile")


def check_checkpoint_source(problems: Problems, dest: str) -> None:
    """A local folder must exist; what looks like a hub name (`gpt2`, `owner/name`) is left to the loader."""
    source = getattr(problems.args, dest)
    if not source or os.path.isdir(source):
        if source and not os.access(source, os.R_OK | os.X_OK):
            problems.add(dest, "this folder cannot be read; check its permissions")
    elif os.path.lexists(source):
        problems.add(
            dest,
            "not a folder; name the folder that holds config.json and the weights; python3 -m model.convert makes one "
            "of other programs' files",
        )
    elif re.match(r"\w[\w.-]*(/\w[\w.-]*)?$", source) and not os.path.isdir(source.split("/")[0]):
        if dest in problems.args.typed:
            doubt = "there is no such folder; it would be taken as a hub name"
            problems.doubts.append(f"{problems.shown(dest)}: {doubt}")
    else:
        problems.add(dest, "there is no such folder; check the path")
