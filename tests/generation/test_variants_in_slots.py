"""Variants of GPT-2 in the engine's slots: texts one after the other in one slot are as if each stood alone."""

import poptorch
import pytest
from test_variants_text import LENGTH, NATIVE, POSITIONS, PROMPTS, SYSTEMS, expected_texts, model_of, options

from generation.decoding import ModuleSteps, SlotStep
from generation.requests import new_text
from generation.sampling import Sampling
from serving.engine import Engine
from serving.job import Job

WIDTH = 4


@pytest.mark.parametrize("name", [*SYSTEMS, *NATIVE])
def test_texts_of_a_variant_in_two_slots(name):
    """The second slot is free again when others still go on: what it held, the token that pads too, is forgotten."""
    changes = {**SYSTEMS, **NATIVE}[name]
    steps = ModuleSteps(model_of(changes), [3])
    executor = poptorch.inferenceModel(SlotStep(steps, 2, POSITIONS).eval(), options())
    engine, found = Engine(executor, 2, WIDTH, 100, together=2), {}
    order = [1, 0, 2, 1, 0]

    def listen(number):
        found[number] = []
        return lambda job, scored: found[number].extend(each.token for each in scored)

    jobs = [
        Job(new_text(PROMPTS[prompt], LENGTH, seed=1), Sampling(top_k=1), listen(number))
        for number, prompt in enumerate(order)
    ]
    engine.submit(jobs)
    while engine.turn():
        pass
    texts, _ = expected_texts(model_of(changes))
    assert [found[number] for number in range(len(order))] == [texts[prompt] for prompt in order]
