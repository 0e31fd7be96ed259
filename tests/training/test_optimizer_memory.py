"""Bytes of optimizer states against those that the optimizers ask for, of every model in config/, without memory."""

import argparse

import pytest
import torch

from model.config import CONFIG_FOLDER, GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.pipeline import pipeline_stages
from training.optimization import RULES, make_optimizer
from training.optimizer_memory import largest_parameter, state_bytes


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_states_are_counted_to_the_byte(path):
    config = GPT2Config.from_json(path)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config, initialize=False)
    sizes = [parameter.numel() for parameter in model.parameters()]
    stages = pipeline_stages([0, config.n_layer])
    for name in (*RULES, "AdamW", "SGD"):
        args = argparse.Namespace(optimizer=name, sgd_momentum=0.9)
        planned = sum(state_bytes(stage, config, args) for stage in stages)
        if name in RULES:
            optimizer = make_optimizer(name, model, 0.1, 0.1, 1.0)
            assert planned == sum(
                shape.numel() * torch.zeros((), dtype=dtype).element_size()
                for group in optimizer.param_groups
                for parameter in group["params"]
                for shape, dtype in optimizer.portable_update_rule.states(parameter.shape, group).values()
            )
        else:
            assert planned == sum(sizes) * {"AdamW": 6, "SGD": 4}[name]
    assert max(largest_parameter(stage, config) for stage in stages) == max(sizes)
