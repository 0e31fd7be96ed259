"""What the flags of tasks/ must satisfy together, and with the checkpoint they name."""

from __future__ import annotations

import os
from pathlib import Path

from command_line.checks import (
    Problems,
    check_checkpoint_source,
    check_file,
    check_folder,
    check_layers,
    check_profile,
    check_proportions,
)
from model.config import GPT2Config
from tasks.names import BATCHES, FURTHER, PROTOCOLS, SLIDING
from tasks.records import folder_of

DEMO_CHECKPOINT = "demo/checkpoints/epoch_0"  # what make demo leaves


def check_evaluation(problems: Problems) -> None:
    """The checkpoint fits the flags; --text and --all are turned into what they stand for."""
    args = problems.args
    if args.text is not None:
        if "valid_data" in args.typed or args.all or ("task" in args.typed and args.task != "TEXT"):
            problems.add("text", "stands for --task TEXT --valid-data FILE; leave --task, --valid-data and --all out")
        args.task, args.valid_data = "TEXT", args.text
    elif args.task == "TEXT" and not args.valid_data and not args.all:
        problems.add("task", "name the file with --text FILE")
    if args.all and args.valid_data:
        problems.add("all", "takes every task's own file in --data-dir; leave --valid-data out")
    if args.all:
        problems.ignored("task", " beside --all, which takes every task")
    elif args.valid_data:
        file = "--text" if args.text is not None else "--valid-data"
        problems.ignored("data_dir", f" beside {file}, which is the file that is read")
    check_file(problems, "json")
    if args.json and args.valid_data and os.path.realpath(args.json) == os.path.realpath(args.valid_data):
        problems.add("json", "is the file that is evaluated, and would be replaced by its results; name another")
    _check_protocols(problems)
    check_folder(problems, "executable_cache_dir")
    check_profile(problems)
    if not args.pretrained_checkpoint:
        problems.lines.append(
            "--pretrained-checkpoint: no checkpoint given; name a folder with config.json and the weights, here or in "
            f"CHECKPOINT_PATH for tasks/run_evaluate.sh. make demo trains one: {DEMO_CHECKPOINT}"
        )
        return
    check_checkpoint_source(problems, "pretrained_checkpoint")
    _check_record(problems)
    _check_model(problems)


def _check_record(problems: Problems) -> None:
    source = problems.args.pretrained_checkpoint
    if not problems.args.record:
        return
    if not os.path.isdir(source):
        problems.add(
            "record", f"{source} is no folder on this machine, so that nothing can be kept beside it; use --json"
        )
    elif not os.access(folder_of(source), os.W_OK | os.X_OK):
        problems.add("record", f"{folder_of(source)} cannot be written; use --json")


def _check_protocols(problems: Problems) -> None:
    """They are the task's; flags of others than those that are computed have no effect."""
    args = problems.args
    if problems.sound("task", "protocols"):
        tasks = list(PROTOCOLS) if args.all else [args.task]
        computed = {name for task in tasks for name in args.protocols or PROTOCOLS[task]}
        if not computed & set(SLIDING):
            for dest in ("overlapping_eval", "eod_mask_loss"):
                problems.ignored(dest, f": it is of {', '.join(SLIDING)}, and none of these protocols is computed")
        if "last-word" not in computed:
            problems.ignored("strict_lambada", ": it is of LAMBADA's protocol last-word, which is not computed")
    if "protocol_batch" in args.typed and not set(args.protocols or ()) & set(BATCHES):
        problems.add("protocol_batch", f"is of {' and '.join(BATCHES)}; name one of them with --protocols")
    if args.protocols is None or not problems.sound("protocols"):
        return
    known = PROTOCOLS[args.task] + FURTHER.get(args.task, ())
    wrong = [name for name in args.protocols if name not in known]
    if wrong and not args.all:
        problems.add("protocols", f"{args.task} has no {', '.join(wrong)}; it has {', '.join(known)}")


def _check_model(problems: Problems) -> None:
    """What the checkpoint's config.json says. A name on the hub is looked at when it is there."""
    args = problems.args
    path = Path(args.pretrained_checkpoint) / "config.json"
    if not path.is_file():
        return
    try:
        config = GPT2Config.from_json(path)
    except ValueError as error:
        problems.add("pretrained_checkpoint", " ".join(str(error).split()))
        return
    if problems.sound("layers_per_ipu", "ipus_per_replica"):
        check_layers(problems, config, trains=False)
        check_proportions(problems, args.ipus_per_replica)
    if problems.sound("seq_length"):
        fit_window(problems, config)


def fit_window(problems: Problems, config: GPT2Config) -> None:
    """--seq-length 0, and its default where that is too long, become the checkpoint's n_positions."""
    args = problems.args
    if args.seq_length == 0 or "seq_length" not in args.typed:
        args.seq_length = config.n_positions if args.seq_length == 0 else min(args.seq_length, config.n_positions)
    if args.seq_length > config.n_positions and config.learns_positions:
        problems.add(
            "seq_length",
            f"the checkpoint has {config.n_positions} positions and cannot see further; use {config.n_positions} or "
            "less",
        )
    elif args.seq_length < 2:
        problems.add("seq_length", "a window needs at least 2 tokens")
    elif args.overlapping_eval > args.seq_length and problems.sound("overlapping_eval"):
        if "overlapping_eval" in args.typed:
            text = f"longer than the window of {args.seq_length} tokens, so that some would be skipped; lower it"
            problems.add("overlapping_eval", text)
        args.overlapping_eval = args.seq_length
