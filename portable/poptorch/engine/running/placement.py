"""One replica over several processes: which of its stages each of them runs, and what goes from one to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from ...poptorch_core import createPoptorchError
from ..stages import Program, Stage


@dataclasses.dataclass(frozen=True)
class Span:
    """Consecutive stages in one process.

    Args:
        part: the number of that process among those of the replica.
        makes: names of the values that later spans may use; the first span makes the program's inputs.
        receives: names by the span that makes them. `sends`: by the span that uses them.
        outputs: positions of the program's outputs that come from here. `watched`: anchored tensors that do.
        writes: received values that the stages write to.
    """

    index: int
    part: int
    stages: tuple[Stage, ...]
    makes: frozenset[str]
    receives: dict[int, tuple[str, ...]]
    sends: dict[int, tuple[str, ...]]
    outputs: tuple[int, ...]
    watched: tuple[str, ...]
    writes: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Placement:
    """All spans in the order of the forward pass, and what of the program one process has.

    `local` is the program with the state that the stages of this process use. `shared` are parameters, by name in the
    module, that stages of several processes use, with the numbers of these. `owners` are the numbers of the processes
    that use each parameter and buffer first; parameters that no stage uses are in process 0. `passes`: how many of this
    process's spans use each parameter.
    """

    part: int
    parts: int
    spans: tuple[Span, ...]
    local: Program
    shared: dict[str, tuple[int, ...]]
    owners: dict[str, int]
    passes: dict[str, int]
    loss_span: int | None

    @property
    def mine(self) -> list[Span]:
        """The spans of this process."""
        return [span for span in self.spans if span.part == self.part]


def ipus_of(program: Program, options: Any) -> int:
    """IPUs of a replica: those that the stages name, and not fewer than popdist.poptorch.Options were asked for."""
    return max(getattr(options, "ipus_per_replica", 1), 1 + max(stage.ipu for stage in program.stages))


def place(program: Program, model: torch.nn.Module, part: int, parts: int, ipus: int) -> Placement:
    """What number `part` of `parts` processes has of a program over `ipus` IPUs: consecutive ones, as many as others.

    Raises poptorch.Error where the processes cannot share the IPUs out, or where the program writes to a tensor that
    stages before or after those of the same process use, too.
    """
    if ipus % parts:
        fit = [number for number in range(1, ipus + 1) if ipus % number == 0]
        raise createPoptorchError(
            f"{parts} processes cannot hold a replica of {ipus} IPU{'s'[: ipus != 1]} together: start "
            f"{' or '.join(map(str, fit))} processes for each replica, or place the model on a multiple of {parts} IPUs"
        )
    spans = _spans(program, ipus // parts)
    _check_writes(program, spans)
    used = {
        span.index: [name for stage in span.stages for segment in stage.segments for name in segment.inputs]
        for span in spans
    }
    for span in spans:
        used[span.index] += [program.outputs[position] for position in span.outputs]
    mine = [name for span in spans if span.part == part for name in used[span.index]]
    first = first_names(model)
    users: dict[str, list[Span]] = {}
    for span in spans:
        for value in dict.fromkeys(used[span.index]):
            name = program.parameters.get(value) or program.buffers.get(value)
            if name is not None and span not in users.setdefault(first[name], []):
                users[first[name]].append(span)
    parameters = {first[name] for name in program.parameters.values()}
    unused = parameters - users.keys()
    mine += [value for value, name in program.parameters.items() if first[name] in unused and not part]
    where = {name: sorted({span.part for span in spans}) for name, spans in users.items()}
    for value in program.written_buffers | program.restored_buffers:
        _check_buffer(program.buffers[value], users[first[program.buffers[value]]])
    return Placement(
        part,
        parts,
        tuple(spans),
        _local(program, [span for span in spans if span.part == part], mine),
        {name: tuple(found) for name, found in where.items() if len(found) > 1 and name in parameters},
        {**dict.fromkeys(sorted(unused), 0), **{name: spans[0].part for name, spans in users.items()}},
        {name: sum(span.part == part for span in spans) for name, spans in users.items() if name in parameters},
        next((span.index for span in spans if program.loss in span.makes), None),
    )


def first_names(model: torch.nn.Module) -> dict[str, str]:
    """Of each parameter and buffer by each of its names: the first."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _spans(program: Program, each: int) -> list[Span]:
    runs: list[tuple[int, list[Stage]]] = [(0, [])]  # the first process has the inputs, whatever it computes
    for stage in program.stages:
        if stage.ipu // each != runs[-1][0]:
            runs.append((stage.ipu // each, []))
        runs[-1][1].append(stage)
    makes = [{name for stage in stages for name in stage.outputs} for _, stages in runs]
    makes[0] |= set(program.inputs)
    maker = {name: index for index, names in enumerate(makes) for name in names}
    receives: list[dict[int, tuple[str, ...]]] = []
    for index, (_, stages) in enumerate(runs):
        needed = dict.fromkeys(name for stage in stages for name in stage.inputs if maker[name] != index)
        sources = sorted({maker[name] for name in needed})
        receives.append({source: tuple(name for name in needed if maker[name] == source) for source in sources})
    last_user = {
        name: index for index, (_, stages) in enumerate(runs) for s in stages for g in s.segments for name in g.inputs
    }
    home = [maker.get(name, last_user.get(name, 0)) for name in program.outputs]
    return [
        Span(
            index,
            part,
            tuple(stages),
            frozenset(makes[index]),
            receives[index],
            {target: names[index] for target, names in enumerate(receives) if index in names},
            tuple(position for position, found in enumerate(home) if found == index),
            tuple(name for name, value in program.watched.items() if maker.get(value, 0) == index),
            frozenset(
                name
                for names in receives[index].values()
                for name in names
                if any(program.views.get(name, name) in stage.writes for stage in stages)
            ),
        )
        for index, (part, stages) in enumerate(runs)
    ]


def _check_buffer(name: str, users: list[Span]) -> None:
    """A gradient may flow through what is written to a buffer, and the next micro-batch may overtake this one."""
    if len(users) > 1:
        first, last = (min(stage.ipu for stage in span.stages) for span in (users[0], users[-1]))
        raise createPoptorchError(
            f"forward() writes to buffer {name} and uses it on IPUs {first} and {last}, between which the program is "
            "in another process: use it on IPUs of one process, or start fewer processes for each replica"
        )


def _check_writes(program: Program, spans: Iterable[Span]) -> None:
    """That nobody else reads what a span writes to and did not make."""
    for span in spans:
        for name in {name for stage in span.stages for name in stage.writes} - span.makes:
            if name in program.inputs:
                raise createPoptorchError(
                    f"forward() writes to an input on IPU {span.stages[0].ipu}, which is not in a replica's first "
                    "process: write to it on an earlier IPU, or start fewer processes for each replica"
                )
            for other in spans:
                if other.part != span.part and (other.index > span.index or name in program.buffers):
                    reads = {name for stage in other.stages for segment in stage.segments for name in segment.inputs}
                    if any(program.views.get(read, read) == name for read in reads):
                        known = program.buffers.get(name, name)
                        raise createPoptorchError(
                            f"forward() writes to {known} on IPU {span.stages[0].ipu} and reads it on IPU "
                            f"{other.stages[0].ipu}, which are in different processes: use it on IPUs of one process, "
                            "or start fewer processes for each replica"
                        )


def _local(program: Program, spans: list[Span], used: list[str]) -> Program:
    names = set(used)
    return dataclasses.replace(
        program,
        stages=[stage for span in spans for stage in span.stages],
        parameters={value: name for value, name in program.parameters.items() if value in names},
        buffers={value: name for value, name in program.buffers.items() if value in names},
        constants={value: tensor for value, tensor in program.constants.items() if value in names},
        written_buffers=program.written_buffers & names,
        restored_buffers=program.restored_buffers & names,
        watched={name: program.watched[name] for span in spans for name in span.watched},
    )
