"""What the flags of train_gpt2.py about its data must satisfy together, and with the paths they name."""

from __future__ import annotations

import argparse
import glob
import os
from typing import Sequence

from command_line.checks import Problems

# Flags about corpora of articles, which are cut into samples when they are read.
_OF_CORPORA = ("windows", "short_articles", "last_window", "control_codes", "validation_files")


def check_available(problems: Problems) -> None:
    """The new spellings of --train-path become the old ones. Data flags of another kind of data are refused.

    Afterwards args.further_paths has the corpora of --dataset pickle beyond the first, which is args.train_path.
    """
    args = problems.args
    args.further_paths = []
    if args.train_path == "pickle" and problems.sound("data_prefix"):  # the new spelling of a .pkl path
        if not args.data_prefix:
            problems.add("train_path", "name the .pkl file with --input-files FILE")
        elif not all(path.endswith(".pkl") for path in args.data_prefix):
            problems.add("data_prefix", "must be .pkl files; data/wikipedia_preprocess.py makes one")
        else:
            args.train_path, *args.further_paths = args.data_prefix
    elif args.train_path == "tfrecord":
        check_tfrecords(problems)
    elif args.train_path == "webdataset":
        check_tars(problems)
    elif args.train_path in ("dynamic", "mmap"):
        args.train_path = "dynamic"
        check_prefix(problems)
    elif args.data_prefix and args.data_prefix[0] == args.train_path:  # as run.json has --dataset pickle
        args.further_paths = args.data_prefix[1:]
    elif args.data_prefix:
        problems.add("data_prefix", "is read with --train-path dynamic; add it, or leave this out")
    if args.train_path != "dynamic":
        problems.ignored("sample_order", ": it is for --train-path dynamic")
    if args.train_path == "generated":
        problems.ignored("stride", " with --train-path generated, whose samples are drawn one by one")
    if args.tfrecord_path and args.train_path != "tfrecord":
        problems.add("tfrecord_path", "these files are read with --train-path tfrecord; add it, or leave this out")


def check_prefix(problems: Problems) -> None:
    """args.data_prefix is the prefix of one .bin and its .idx."""
    args = problems.args
    if not problems.sound("data_prefix"):
        return
    if not args.data_prefix:
        problems.add("train_path", "name the data with --data-prefix <path>/my-gpt2_text_document")
        return
    if len(args.data_prefix) > 1:
        problems.add("data_prefix", "takes one prefix; data/preprocess_megatron.py makes one corpus of several files")
        return
    prefix = args.data_prefix[0]
    for ending in (".bin", ".idx"):
        if prefix.endswith(ending) and os.path.exists(prefix):
            problems.add("data_prefix", f"leave the ending out: {prefix[: -len(ending)]}")
            return
    missing = [prefix + ending for ending in (".bin", ".idx") if not os.path.isfile(prefix + ending)]
    if missing:
        problems.add("data_prefix", f"there is no {' and no '.join(missing)}; data/preprocess_megatron.py makes them")
    problems.ignored("stride", ": samples follow one another without overlap")


def check_tfrecords(problems: Problems) -> None:
    """Afterwards args.tfrecord_path has the files and patterns, from either flag, and each of them names a file."""
    args = problems.args
    if not problems.sound("tfrecord_path", "data_prefix"):
        return
    if args.tfrecord_path and args.data_prefix:
        problems.add("data_prefix", f"contradicts {problems.names['tfrecord_path']}; leave one of the two out")
        return
    dest = "data_prefix" if args.data_prefix else "tfrecord_path"
    args.tfrecord_path = args.tfrecord_path or args.data_prefix
    missing = "name the files with --tfrecord-path '<path>/*.tfrecord'"
    _check_patterns(problems, dest, args.tfrecord_path, missing, "data/write_into_tfrecord.py", "records")


def check_tars(problems: Problems) -> None:
    """The files and patterns of --input-files each name a file."""
    if not problems.sound("data_prefix"):
        return
    missing, writer = "name the files with --input-files '<path>/*.tar'", "python3 -m data.prepare --format webdataset"
    _check_patterns(problems, "data_prefix", problems.args.data_prefix, missing, writer, "rows")


def _check_patterns(
    problems: Problems, dest: str, patterns: Sequence[str] | None, missing: str, writer: str, what: str
) -> None:
    """Files and patterns of samples that are cut already; `missing` is told where there are none."""
    if not patterns:
        problems.add("train_path", missing)
    for pattern in patterns or ():
        if not os.path.exists(pattern) and not glob.glob(pattern):
            problems.lines.append(f"{problems.names[dest]} {pattern}: there is no such file; {writer} writes them")
    problems.ignored("stride", f": the {what} were cut when they were written")


def check_train_path(problems: Problems) -> None:
    """args.train_path is "generated" or a .pkl or .txt file that can be read, as are those of the flags beside it."""
    args = problems.args
    if args.train_path in ("generated", "pickle", "tfrecord", "webdataset", "dynamic", "mmap"):
        for dest in _OF_CORPORA:
            if dest in args.typed and problems.sound(dest):
                problems.add(dest, f"is for --train-path with a .pkl or .txt file, not {args.train_path}; leave it out")
        return
    _check_corpus(problems, "data_prefix" if args.data_prefix else "train_path", args.train_path)
    for path in args.further_paths:
        _check_corpus(problems, "data_prefix", path)
    for path in args.validation_files or ():
        _check_corpus(problems, "validation_files", path)
    _check_cut(problems)
    _check_counts(problems, 1 + len(args.further_paths))


def _check_corpus(problems: Problems, dest: str, path: str) -> None:
    flag = problems.shown(dest) if getattr(problems.args, dest) == path else f"{problems.names[dest]} {path}"
    if not path.endswith((".pkl", ".txt")):
        remedy = "python3 -m data.prepare makes a .pkl of others"
        told = f"neither generated nor a .pkl file, nor a .txt; {remedy}"
    elif not os.path.exists(path):
        told = "there is no such file; python3 -m data.prepare makes one of any text"
    elif not os.path.isfile(path) or not os.access(path, os.R_OK):
        told = "not a file that can be read; check the path and its permissions"
    else:
        return
    problems.lines.append(f"{flag}: {told}")


def _check_cut(problems: Problems) -> None:
    """Of --windows stream the stride is chosen by the data set if none is given: args.stride is None."""
    args = problems.args
    if not problems.sound("windows"):
        return
    for dest, windows in (("short_articles", "article"), ("last_window", "stream")):
        if dest in args.typed and problems.sound(dest) and args.windows != windows:
            problems.add(dest, f"is for --windows {windows}, not {args.windows}; leave one of the two out")
    if args.windows == "first":
        problems.ignored("stride", ": --windows first takes one window of an article")
    if args.windows == "stream" and "stride" not in args.typed:
        args.stride = None


def _check_counts(problems: Problems, corpora: int) -> None:
    """Each corpus has its control code, and its validation file, if there are any."""
    args = problems.args
    several = corpora > 1 or bool(args.control_codes)
    for dest, what in (("control_codes", "control codes"), ("validation_files", "validation files")):
        values = getattr(args, dest)
        needed = corpora > 1 if dest == "control_codes" else several
        if values and problems.sound(dest, "data_prefix") and needed and len(values) != corpora:
            problems.add(dest, f"{len(values)} {what} for {corpora} data sets; give one for each, in their order")
        elif values and dest == "control_codes" and len(values) != corpora:
            problems.add(dest, f"{len(values)} control codes for one data set; give one")
    if args.validation_files and args.val_num and problems.sound("validation_files", "val_num"):
        problems.add("validation_files", f"contradicts {problems.shown('val_num')}; leave one of the two out")


def validates(args: argparse.Namespace) -> bool:
    """Whether there is something to validate on."""
    return bool(args.val_num or args.validation_files)
