"""The order of a pipeline's tasks: every process that follows its list finishes, with few micro-batches in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poptorch.engine.processes.schedule import Task, schedule


def run(lists, parts, backward):
    """Each process takes its next task as soon as what that needs is done. Returns the order; fails if they wait."""
    queues = {part: list(tasks) for part, tasks in lists.items()}
    order, done = [], set()
    while any(queues.values()):
        ready = []
        for part, queue in queues.items():
            if queue:
                task, last = queue[0], len(parts) - 1
                needs = {Task(True, task.span - 1, task.micro_batch)} if task.forward and task.span else set()
                if not task.forward:
                    needs = {Task(task.span == last, min(task.span + 1, last), task.micro_batch)}
                if needs <= done:
                    ready.append(part)
        assert ready, "the processes wait for each other"
        for part in ready:
            order.append(queues[part].pop(0))
        done = set(order)
    return order


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.integers(1, 12),
    st.booleans(),
    st.integers(1, 8),
    st.data(),
)
def test_all_tasks_come_once_and_nobody_waits_for_ever(parts, micro_batches, backward, in_flight, data):
    costs = data.draw(st.lists(st.floats(0.1, 10), min_size=len(parts), max_size=len(parts)))
    lists = schedule(parts, costs, micro_batches, backward, in_flight)
    order = run(lists, parts, backward)
    expected = {
        Task(forward, span, number)
        for span in range(len(parts))
        for number in range(micro_batches)
        for forward in ((True, False) if backward else (True,))
    }
    assert len(order) == len(expected) and set(order) == expected
    assert all(parts[task.span] == part for part, tasks in lists.items() for task in tasks)
    for span, part in enumerate(parts):  # messages of an edge arrive in the order of the micro-batches
        for forward in (True, False):
            numbers = [t.micro_batch for t in lists[part] if (t.span, t.forward) == (span, forward)]
            assert numbers == sorted(numbers)
    for part, tasks in lists.items():
        flying, most = set(), 0
        for task in tasks:
            first = min(span for span, other in enumerate(parts) if other == part)
            flying.add(task.micro_batch)
            most = max(most, len(flying))
            if task.span == first and task.forward != backward:
                flying.discard(task.micro_batch)
        assert not backward or most <= in_flight


@pytest.mark.parametrize(("processes", "micro_batches"), [(2, 16), (4, 16), (8, 64)])
def test_equal_stages_lose_no_more_than_the_bubble(processes, micro_batches):
    """By hand: m + p - 1 times a forward and a backward pass, with as many micro-batches in flight as stages."""
    parts = list(range(processes))
    lists = schedule(parts, [1.0] * processes, micro_batches, True, processes)
    ends, free = {}, dict.fromkeys(parts, 0.0)
    for task in run(lists, parts, True):
        last = processes - 1
        if task.forward:
            needs = [Task(True, task.span - 1, task.micro_batch)] if task.span else []
        else:
            needs = [Task(task.span == last, min(task.span + 1, last), task.micro_batch)]
        start = max([free[task.span], *(ends[need] for need in needs)])
        ends[task] = free[task.span] = start + (1.0 if task.forward else 2.0)
    assert max(ends.values()) == 3.0 * (micro_batches + processes - 1)
    assert lists[last][:4] == [Task(True, last, 0), Task(False, last, 0), Task(True, last, 1), Task(False, last, 1)]
