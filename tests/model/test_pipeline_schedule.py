"""Drawn pipelines: every pass once, none before what it needs, nobody at two things, and lengths worked out by hand."""

import itertools

import pytest

from model.config import GPT2Config
from model.pipeline import Stage, pipeline_stages
from model.schedule import Passes, in_order, in_step, stage_passes


def stages_on(ipus):
    return [Stage(index, ipu, layers=(index,)) for index, ipu in enumerate(ipus)]


def check(events, stages, passes, micro_batches):
    """What holds of any schedule."""
    done = {(e.kind, e.stage, e.micro_batch): e for e in events if e.kind != "waiting"}
    wanted = itertools.product(("forward", "backward"), range(len(stages)), range(micro_batches))
    assert sorted(done) == sorted(wanted) and len(done) == sum(e.kind != "waiting" for e in events)
    for (kind, stage, m), event in done.items():
        assert event.end - event.start == pytest.approx(getattr(passes[stage], kind))
        if kind == "forward":
            before = done.get(("forward", stage - 1, m))
        else:
            before = done.get(("backward", stage + 1, m)) or done["forward", stage, m]
        assert before is None or before.end <= event.start + 1e-9
    for row in {event.row for event in events}:
        own = sorted((e for e in events if e.row == row), key=lambda e: (e.start, e.end))
        assert all(a.end <= b.start + 1e-9 for a, b in zip(own, own[1:]))


@pytest.mark.parametrize("ipus", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 0], [0, 1, 2, 3, 0]])
@pytest.mark.parametrize("micro_batches", [1, 2, 9])
def test_what_holds_of_any_schedule(ipus, micro_batches):
    stages = stages_on(ipus)
    passes = [Passes(0.1 * (index + 1), 0.2 * (index + 2)) for index in range(len(ipus))]
    events = in_step(stages, passes, micro_batches)
    check(events, stages, passes, micro_batches)
    for row in set(ipus):  # a row is busy or waits from the beginning to the end
        own = [event for event in events if event.row == row]
        assert sum(e.end - e.start for e in own) == pytest.approx(max(e.end for e in events))
    check(in_order(stages, passes, micro_batches, [0] * len(ipus), 1), stages, passes, micro_batches)
    check(in_order(stages, passes, micro_batches, ipus, len(ipus)), stages, passes, micro_batches)


def test_two_ipus_in_step():
    # F0 | F0 and F1 B1 | B0 and F1 B1 | B0: 1 + 3 + 3 + 2
    events = in_step(stages_on([0, 1]), [Passes(1, 2)] * 2, 2)
    assert max(event.end for event in events) == 9
    assert [(e.start, e.end) for e in events if e.row == 1 and e.kind == "waiting"] == [(0, 1), (7, 9)]


@pytest.mark.parametrize("processes", [2, 3])
def test_equal_processes_take_one_pass_more_for_each_further_one(processes):
    """1F1B of equal parts: (m + p - 1) (f + b)."""
    events = in_order(stages_on(range(processes)), [Passes(1, 2)] * processes, 6, range(processes), processes)
    assert max(event.end for event in events) == (6 + processes - 1) * 3


def test_one_process_takes_the_work_of_all_micro_batches():
    config = GPT2Config(n_layer=4)
    stages = pipeline_stages([0, 2, 2])
    passes = stage_passes(stages, config, 128, recomputed=[2])
    assert sum(each.forward + each.backward for each in passes) == pytest.approx(1)
    again, plain = passes[2], passes[1]  # layers 2 and 3, of which one is computed again, beside layers 0 and 1
    assert again.backward / again.forward == pytest.approx(2.5)
    assert plain.backward / plain.forward == pytest.approx(2)
    events = in_order(stages, passes, 5, [0] * len(stages), 1)
    assert max(event.end for event in events) == pytest.approx(5) and not [e for e in events if e.kind == "waiting"]
