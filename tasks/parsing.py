"""The command line of the programs in tasks/, read and checked."""

from __future__ import annotations

import argparse
from typing import Sequence

from command_line.flags import select
from command_line.parser import Parser
from tasks.checks import check_evaluation
from tasks.flags import EVALUATE_GROUPS


def parse_evaluate_args(argv: Sequence[str] | None, program: str, task: str) -> argparse.Namespace:
    """The flags of the programs in tasks/, read and checked; `task` is the default of --task.

    `typed` and `notes` as in parse_train_args. `valid_data` is None for a task's own file in --data-dir. For a
    checkpoint on this machine `layers_per_ipu`, `matmul_proportion` and `ipus_per_replica` are as in parse_train_args
    and `seq_length` is the window; for a name on the hub they are as typed.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    own = EVALUATE_GROUPS["evaluation"]
    groups = {**EVALUATE_GROUPS, "evaluation": select(own, *(flag.dest for flag in own), task=task)}
    problems = Parser(program, "Evaluate a GPT-2 checkpoint by published protocols.", groups).read(argv)
    check_evaluation(problems)
    return problems.finish()
