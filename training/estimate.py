"""The plan as numbers for a report: what --profile leaves beside what is measured, or in place of it.

The runtime in portable/ reads estimate.json of its report's folder and draws it; on an IPU it lies beside PopVision's
files. The form is that of portable/poptorch/reports/estimates.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Sequence

from command_line.checks import is_first_process
from model.balance import ipu_operations
from model.config import MODELS, GPT2Config
from model.layout import Layout
from model.pipeline import bubble, has_position_embedding, pipeline_stages, stage_operations
from model.schedule import Event, in_order, in_step, stage_passes
from training.as_one import micro_batches_as_one
from training.plan import off_chip
from training.plan_request import planned_config, planned_layout
from training.stage_memory import IPU, Device, Memory, block_activations, stage_memory

FILE = "estimate.json"
_MOST_DRAWN = 24  # micro-batches
# Half products of one GC200, dense: a quarter of the IPU-M2000's petaFLOP/s (Graphcore's data sheet of the IPU-M2000).
IPU_PEAK = 250e12
# Fine-tuning on WikiText-103 at T 1,024 on a POD16. Which layout was used is not said; assumed is that of the scripts.
PUBLISHED_LENGTH = 1024
PUBLISHED = (
    ("gpt2", 261.3, [0, 4, 4, 4], 4, 2048, "run/pretraining_small.sh"),
    ("gpt2-medium", 101.8, [0, 3, 3, 3, 3, 4, 4, 4], 2, 4096, "run/pretraining_medium.sh"),
)


def write(args: argparse.Namespace) -> None:
    """Leave the estimate in the folder of --profile; of several processes the first does.

    Raises ValueError if the folder cannot be written, and what planned_layout raises.
    """
    layout, device = planned_layout(args)
    if not is_first_process():
        return
    found = {
        "program": shlex.join(sys.argv),
        "kind": "training",
        **estimate(planned_config(args), args, layout, device),
    }
    text = json.dumps(found, indent=1)
    target = Path(args.profile) / FILE
    part = target.with_name(f".{FILE}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, target)
    except OSError as error:
        raise ValueError(
            f"--profile {args.profile}: cannot be written ({error.strerror}); name another folder"
        ) from error


def estimate(config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device) -> dict[str, Any]:
    """What `write` writes.

    Args:
        config: with the positions and dropouts of the run. args: the checked flags of train_gpt2.py.
    """
    stages = pipeline_stages(args.layers_per_ipu, positions=has_position_embedding(config))
    again, as_one = args.recompute_checkpoint_layers, micro_batches_as_one(config, args, layout, device)
    work = [stage_operations(stage, config, args.max_len, again) for stage in stages]
    rows, elsewhere = [], 0
    for stage, own in zip(stages, work):
        memory = stage_memory(stage, stages, config, args, layout, device, as_one)
        repeated = as_one * block_activations(config, args, device) if set(stage.layers) & set(again) else 0
        kinds = _kinds(memory, min(repeated, memory.working))
        if off_chip(args, device) and (device is IPU or args.compile_only):  # nothing is measured beside it
            elsewhere += kinds.pop("optimizer")
        rows.append({"stage": stage.index, "work": own / sum(work), "memory": kinds})
    found: dict[str, Any] = {"assumptions": _assumptions(args, device, elsewhere, as_one), "stages": rows}
    steps = len(stages) if device is IPU else layout.ranks_a_replica  # as the plan's table says it
    if steps > 1:
        found["bubble"] = bubble(steps, args.gradient_accumulation // as_one)
    found["timeline"] = _timeline(config, args, layout, device, as_one)
    found["figures"] = _figures(config, args) if device is IPU else []
    return found


def _kinds(memory: Memory, recomputed: int) -> dict[str, int]:
    """Bytes by kind; of what is held for the time of a pass, what is computed again by itself."""
    return {**memory._asdict(), "recomputed": recomputed, "working": memory.working - recomputed}


def _assumptions(args: argparse.Namespace, device: Device, elsewhere: int, as_one: int) -> list[str]:
    """`elsewhere`: bytes of an optimizer's state that the memory of the stages is without."""
    found = [
        "Work is the multiplications and additions of matrix products; a backward pass is two forward ones, what is "
        "recomputed one more. Weight updates, messages and data are not in it.",
        'Memory is estimated from the flags, as in the plan of --compile-only; "working" is held for the time of a '
        "pass only, and of several stages in one memory the largest counts.",
    ]
    if device.is_cpu:
        found.append(
            "On a CPU weights are counted with the program's own copy in half, and gradients with those on their way, "
            "which the runtime does not count."
        )
    if as_one > 1:
        found.append(f"{as_one:,} micro-batches run as one: the pipeline is drawn, and filled, with so many at a time.")
    if elsewhere:
        where = "streaming memory, off chip" if device is IPU else "the host's memory"
        found.append(
            f"The optimizer's state, {elsewhere / 2**20:,.0f} MiB of a replica, is in {where} and not in the totals."
        )
    if device is IPU:
        found.append(
            "All IPUs go on to the next micro-batch together (PopART's pipeline): each step lasts as long as the IPU "
            "that has the most to do in it. A backward pass runs where its forward pass did."
        )
        if not args.optimizer_state_offchip:
            found.append("The optimizer's state is on chip.")
        found.append(
            f"At most: every product at the peak of half, {IPU_PEAK / 1e12:.0f} TFLOP/s an IPU (data sheet of the "
            "IPU-M2000). Published: fine-tuning on WikiText-103 at T 1,024 on a POD16; the layout is not published, "
            "assumed is that of the script named."
        )
    return found


def _timeline(
    config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device, as_one: int
) -> dict[str, Any]:
    stages = pipeline_stages(args.layers_per_ipu, positions=has_position_embedding(config))
    passes = stage_passes(stages, config, args.max_len, args.recompute_checkpoint_layers)
    count = max(1, args.gradient_accumulation // as_one)
    drawn = min(count, _MOST_DRAWN)
    if device is IPU:
        events, names = in_step(stages, passes, drawn), [f"IPU {ipu}" for ipu in range(args.ipus_per_replica)]
    else:
        ranks = layout.ranks_a_replica
        ipus = [stage.ipu for stage in stages]
        events = in_order(stages, passes, drawn, [layout.rank(ipu) for ipu in ipus], layout.spans(ipus))
        names = [f"rank {rank}" for rank in range(ranks)]
        if ranks == 1:  # a row for each IPU all the same, as in the measured picture
            names = [f"IPU {ipu}" for ipu in range(args.ipus_per_replica)]
            events = [event._replace(row=stages[event.stage].ipu) for event in events]
    few = "" if drawn == count else f" of its {count:,}"
    each = "micro-batches" if as_one == 1 else f"passes of {as_one:,} micro-batches"
    of = f"A weight update with {drawn}{few} {each}, by the work of its stages; the update itself is not drawn."
    return {
        "of": of,
        "unit": "times the work of a micro-batch" if as_one == 1 else f"times the work of {as_one:,} micro-batches",
        "rows": [{"name": name} for name in names],
        "events": _dicts(events),
    }


def _dicts(events: Sequence[Event]) -> list[dict[str, Any]]:
    found = []
    for event in events:
        known: dict[str, Any] = {"row": event.row, "kind": event.kind, "start": event.start, "end": event.end}
        if event.stage is not None:
            known.update(stages=[event.stage], micro_batch=event.micro_batch)
        found.append(known)
    return found


# -- beside published figures ----------------------------------------------------------------------------------------


def _at_most(
    config: GPT2Config, length: int, layers: Sequence[int], recomputed: Sequence[int], replicas: int, micro_batches: int
) -> float:
    """Samples/s if the slowest IPU worked at its peak all the time but for the bubble."""
    slowest = max(ipu_operations(config, length, layers, recomputed)) * length  # operations a sample
    stages = len(pipeline_stages(layers, positions=has_position_embedding(config)))
    return replicas * IPU_PEAK / slowest * (1 - bubble(stages, micro_batches))


def _figures(config: GPT2Config, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What was published beside what its layout could do, and this plan by the same measure."""
    found, shares = [], []
    for name, published, layers, replicas, micro_batches, script in PUBLISHED:
        model = GPT2Config.from_json(MODELS[name])
        bound = _at_most(model, PUBLISHED_LENGTH, layers, range(model.n_layer), replicas, micro_batches)
        shares.append(published / bound)
        found.append(
            {
                "what": f"POD16, {name}, T 1,024: at most, and as published",
                "unit": "samples/s",
                "estimated": bound,
                "published": published,
                "note": f"{shares[-1]:.1%} of it. Layout assumed: {script}, {' '.join(map(str, layers))} on "
                f"{replicas} replicas, all layers recomputed",
            }
        )
    accumulation, again = args.gradient_accumulation, args.recompute_checkpoint_layers
    mine = _at_most(config, args.max_len, args.layers_per_ipu, again, args.replication_factor, accumulation)
    low, high = sorted(mine * share for share in shares)
    found.append(
        {
            "what": f"this plan, T {args.max_len:,}: at most",
            "unit": "samples/s",
            "estimated": mine,
            "note": f"{_few_digits(low)} to {_few_digits(high)} if it came as near to its peak as the published ones",
        }
    )
    return found


def _few_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
