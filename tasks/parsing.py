"""The command line of the programs in tasks/, read and checked."""

from __future__ import annotations

import argparse
from typing import Mapping, Sequence

from command_line.flags import Flag, select
from command_line.parser import Parser
from tasks.checks import check_evaluation
from tasks.flags import EVALUATE_GROUPS

_ABOUT = "Evaluate a GPT-2 checkpoint by published protocols."


def parse_evaluate_args(
    argv: Sequence[str] | None,
    program: str,
    task: str,
    about: str = _ABOUT,
    own_groups: Mapping[str, Sequence[Flag]] | None = None,
    unread: Sequence[str] = (),
) -> argparse.Namespace:
    """The flags of the programs in tasks/, read and checked; `task` is the default of --task.

    `about` and `own_groups` are what --help says of the program, and the flags that it alone has; `unread` are the
    attributes of the others that it does not look at, of which a note tells.

    `typed` and `notes` as in parse_train_args. `valid_data` is None for a task's own file in --data-dir. For a
    checkpoint on this machine `layers_per_ipu`, `matmul_proportion` and `ipus_per_replica` are as in parse_train_args
    and `seq_length` is the window; for a name on the hub they are as typed.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    common = EVALUATE_GROUPS["evaluation"]
    evaluation = select(common, *(flag.dest for flag in common), task=task)
    groups = {**(own_groups or {}), **EVALUATE_GROUPS, "evaluation": evaluation}
    problems = Parser(program, about, groups).read(argv)
    for dest in unread:
        problems.ignored(dest, f" in {program}")
    check_evaluation(problems)
    return problems.finish()
