"""The command line of the programs: every flag, defined once, read and checked before anything else happens.

Nothing here has a side effect and nothing heavy is imported, so `--help` is instant and a wrong command line
costs a second, not a compilation. Every problem is collected and all are reported together, exit status 2.

The flags themselves, with their spellings, defaults and meaning, are tables: command_line/training_flags.py
(train_gpt2.py and inference_gpt2.py) and command_line/generation_flags.py (text_generate_gpt2.py). What the flags must
satisfy together is beside them or in *checks.py, how they are read in command_line/parser.py. The programs in tasks/
have theirs in tasks/flags.py.
"""

from __future__ import annotations

import argparse
from typing import Sequence

from command_line.checks import check_config, check_layers, check_proportions
from command_line.data_checks import check_available, check_train_path
from command_line.generation_flags import GENERATE_GROUPS, check_generation
from command_line.optimizer_checks import check_optimizer, check_schedule, check_sequence_warmup
from command_line.parser import Parser
from command_line.training_checks import (
    check_balance,
    check_boundaries,
    check_checkpoints,
    check_forward,
    check_global_batch,
    check_log,
    check_plan,
    check_recompute,
    check_serialization,
    check_validation,
)
from command_line.training_flags import TRAIN_GROUPS


def parse_train_args(
    argv: Sequence[str] | None = None, program: str = "train_gpt2.py", trains: bool = True
) -> argparse.Namespace:
    """The flags of train_gpt2.py, read and checked; argv defaults to the program's own.

    A `program` that runs the model forward only and takes the same flags says so with `trains=False`: what a
    training pipeline needs of --gradient-accumulation is then not asked for.

    Attributes are the old spellings. Beyond the values: `typed` is the set of attributes given on the command line,
    `notes` the lines to print at the start about flags without effect, `config` the json file of the model.
    `layers_per_ipu` and `matmul_proportion` (if given) have one entry an IPU, `ipus_per_replica` counts them,
    `recompute_checkpoint_layers` lists the blocks to recompute, `train_path` is "generated", "tfrecord",
    "dynamic" or a .pkl file, `further_paths` the .pkl files beside it.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    about = "Pretrain GPT-2. Dashes and underscores are alike in flags; a flag given twice counts as given last."
    problems = Parser(program, about, TRAIN_GROUPS).read(argv)
    check_available(problems)
    config = check_config(problems)
    if config:
        check_boundaries(problems, config)
    check_global_batch(problems, trains)
    placed = problems.sound("layers_per_ipu", "ipus_per_replica")
    if config and problems.sound("recompute_checkpoint_layers", "recompute_checkpoint_every_layer"):
        check_recompute(problems, config.n_layer)
    if config and placed and check_balance(problems, config, trains):
        check_layers(problems, config, trains)
        check_proportions(problems, problems.args.ipus_per_replica)
        check_plan(problems, trains)
    check_serialization(problems, config)
    check_sequence_warmup(problems)
    check_schedule(problems)
    check_optimizer(problems)
    check_train_path(problems)
    check_validation(problems)
    check_checkpoints(problems)
    check_log(problems)
    if not trains:
        check_forward(problems)
    return problems.finish()


def parse_generate_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of text_generate_gpt2.py, read and checked; `typed` and `notes` as in parse_train_args.

    `layers_per_ipu` is as given, for the caller to compare with the checkpoint's layers; None: one IPU.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    problems = Parser("text_generate_gpt2.py", "Generate text with GPT-2.", GENERATE_GROUPS).read(argv)
    check_generation(problems)
    return problems.finish()
