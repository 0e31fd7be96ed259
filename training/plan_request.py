"""Which plan --compile-only asks for: that of this run, or of machines that are not here."""

from __future__ import annotations

import argparse
import dataclasses

from model.config import GPT2Config
from model.layout import Layout, launched
from training.inputs import dropouts
from training.log.machine import computes_on_cuda, computes_on_ipus, has_bfloat16_kernels, products_in_16_bits
from training.plan import plan_lines
from training.run import join
from training.stage_memory import CPU, CPU_BY_TORCH, CPU_IN_16_BITS, DEVICES, Device
from training.vocabulary import model_config, run_tokenizer


def planned(args: argparse.Namespace) -> list[str]:
    """The plan of this run, or of the machines that --plan-processes and --plan-device name.

    Raises ValueError, whose `args` are the problems, for a configuration that cannot be used, BadFlags for processes
    that cannot share the run.
    """
    return plan_lines(planned_config(args), args, *planned_layout(args))


def planned_layout(args: argparse.Namespace) -> tuple[Layout, Device]:
    """The processes and the devices that are planned for. Raises BadFlags for processes that cannot share the run."""
    if args.plan_processes is None:
        join(args)
    here = "ipu" if computes_on_ipus() else "cuda" if computes_on_cuda() else "cpu"
    layout = Layout(args.plan_processes or launched()[1], args.replication_factor, args.ipus_per_replica)
    device = DEVICES[args.plan_device or here]
    if device is CPU and products_in_16_bits():
        device = CPU_IN_16_BITS if has_bfloat16_kernels() else CPU_BY_TORCH
    return layout, device


def planned_config(args: argparse.Namespace) -> GPT2Config:
    """The configuration of the run."""
    try:
        tokenizer = run_tokenizer(args)
    except ValueError:  # which the run itself tells
        tokenizer = None
    return dataclasses.replace(model_config(args, tokenizer), **dropouts(args))
