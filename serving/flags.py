"""The flags of `python -m serving`, and what they must satisfy together."""

from __future__ import annotations

import argparse
from typing import Sequence

from command_line.checks import check_checkpoint_source, check_profile
from command_line.flags import DURATION, PATH, TEXT, Flag, select, whole
from command_line.generation_flags import GENERATION, SAMPLING, check_precision
from command_line.parser import Parser
from command_line.training_flags import LOG, PLACEMENT

PROGRAM = "python -m serving"
KEY_VARIABLE = "GPT2_SERVING_KEY"
ABOUT = f"""Serve a GPT-2 checkpoint by OpenAI's completions API. If the environment variable {KEY_VARIABLE} is set,
clients must send it as their API key."""

GROUPS = {
    "model": (
        Flag("--model", None, PATH, "checkpoint folder or hub name"),
        Flag("--served-name", None, TEXT, "what clients call the model; not given: the folder's name"),
        *select(GENERATION, "fp16", "int8"),
        *select(PLACEMENT, "custom_ops"),
    ),
    "sampling": select(SAMPLING, "typical_p", "eta_cutoff"),
    "address": (
        Flag("--host", "127.0.0.1", TEXT, "address to listen at; 0.0.0.0: other machines can connect, too"),
        Flag("--port", 8000, whole(0, 65535), "0: a free one, which is printed"),
    ),
    "limits": (
        Flag("--slots", 16, whole(1, 1024), "texts that are made at a time"),
        Flag("--context", None, whole(2), "tokens of a prompt and its continuation; not given: the model's positions"),
        Flag("--prompt-len", None, whole(1), "longest prompt in tokens; not given: what --context allows"),
        Flag("--queue-len", 128, whole(0), "texts that wait for a slot; further ones are refused (429)"),
        Flag("--request-time", 600.0, DURATION, "time for a request from its arrival, waiting included"),
        Flag("--body-size", 1 << 20, whole(2), "largest body of a request in bytes (413)"),
        Flag(
            "--drain-time",
            30.0,
            DURATION,
            "time for requests under way after SIGTERM or Ctrl-C, 1 s at least, in whole seconds",
        ),
    ),
    "report": select(LOG, "profile"),
}


def parse_serving_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, read and checked; `typed` and `notes` as of the other programs, `served_name` is set.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    problems = Parser(PROGRAM, ABOUT, GROUPS).read(argv)
    args = problems.args
    check_precision(problems)
    check_profile(problems)
    if args.context and args.prompt_len and args.prompt_len > args.context:
        problems.add("prompt_len", f"longer than {problems.shown('context')}; lower it, or leave it out")
    if not args.host:
        problems.add("host", "name an address, such as 127.0.0.1")
    if not args.model:
        problems.lines.append(
            "--model: no checkpoint given; name a folder with config.json and the weights. make demo trains one: "
            "demo/checkpoints/epoch_0"
        )
    else:
        check_checkpoint_source(problems, "model")
        args.served_name = args.served_name or args.model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "gpt2"
    return problems.finish()
