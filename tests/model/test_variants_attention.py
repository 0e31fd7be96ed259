"""Off-IPU the attention of every variant is one kernel: no scores of a whole sample are held."""

import dataclasses

import poptorch
import pytest
import torch
from test_variants import SYSTEMS, variant

from model.gpt2 import GPT2LMHeadModel
from model.pretraining import PretrainingModel


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", SYSTEMS)
def test_attention_is_fused(name, dropout):
    config = dataclasses.replace(variant(**SYSTEMS[name]), attn_pdrop=dropout)
    model = PretrainingModel(GPT2LMHeadModel(config)).train()
    training = poptorch.trainingModel(model, None, poptorch.optim.SGD(model.parameters(), lr=0.1))
    ids = torch.randint(20, (2, 12), dtype=torch.int32)
    ids[0, :3] = 0  # the token that pads, at the beginning too
    assert torch.isfinite(training(ids, ids)[0])
    nodes = [n for s in training.program.stages for part in s.segments for n in part.module.graph.nodes]
    names = [str(getattr(node.target, "__name__", node.target)) for node in nodes]
    assert not [name for name in names if name.startswith(("softmax", "aten.softmax"))], names
    assert sum("attention" in name for name in names) == config.n_layer
