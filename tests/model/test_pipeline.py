"""GPT-2 as a pipeline: stages, parameters and work by hand, and what must hold for any split."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import GPT2Config, block_parameters, parameter_count
from model.gpt2 import GPT2LMHeadModel
from model.pipeline import (
    HEAD,
    POSITIONS,
    TOKENS,
    bubble,
    forward_stages,
    has_position_embedding,
    head_operations,
    layer_operations,
    pipeline_stages,
    speed_up,
    stage_operations,
    stage_parameters,
)
from training.log.machine import flops_per_token

TINY = GPT2Config(vocab_size=10, n_positions=3, n_embd=2, n_layer=4, n_head=1)
SPLITS = st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(sum)


def test_the_stages_of_small():
    assert [stage.parts for stage in pipeline_stages([0, 2, 1, 1])] == [
        TOKENS,
        f"{POSITIONS}, layers 0-1",
        "layer 2",
        "layer 3",
        HEAD,
    ]
    assert [stage.ipu for stage in pipeline_stages([0, 2, 1, 1])] == [0, 1, 2, 3, 0]
    assert [stage.ipu for stage in pipeline_stages([1, 3])] == [0, 1, 0, 1, 0], "positions are on IPU 1 in training"
    assert [stage.ipu for stage in pipeline_stages([1, 3], training=False)] == [0, 1, 0]
    (alone,) = pipeline_stages([4])
    assert alone.parts == f"{TOKENS}, {POSITIONS}, layers 0-3, {HEAD}"


def test_parameters_by_hand():
    # C = 2, I = 8: two norms of 4; 2 x 6 + 6 and 2 x 2 + 2 of attention; 2 x 8 + 8 and 8 x 2 + 2 of the MLP
    assert block_parameters(TINY) == 8 + 18 + 6 + 24 + 18
    stages = pipeline_stages([0, 2, 2])
    assert [stage_parameters(stage, TINY) for stage in stages] == [20, 6 + 2 * 74, 2 * 74 + 4, 0]


def test_operations_by_hand():
    # one token: 2 (4 x 4 + 2 x 2 x 8) products of weights and 4 x 3 x 2 of attention over 3 positions
    assert layer_operations(TINY, 3) == 2 * (16 + 32) + 24
    assert head_operations(TINY) == 2 * 10 * 2
    first, second, third, last = pipeline_stages([0, 2, 2])
    assert stage_operations(first, TINY, 3) == 3 * 2 * 2  # a row of two numbers is read and added
    assert stage_operations(second, TINY, 3, recomputed=[1, 2]) == (3 + 4) * 120 + 12
    assert stage_operations(third, TINY, 3, recomputed=[1, 2], training=False) == 2 * 120
    assert stage_operations(last, TINY, 3) == 3 * 40


@given(SPLITS, st.sampled_from([1, 2, 8]), st.integers(1, 64))
def test_nothing_is_lost_and_nothing_twice(layers_per_ipu, width, length):
    config = dataclasses.replace(TINY, n_layer=sum(layers_per_ipu), n_embd=width)
    for training in (True, False):
        stages = pipeline_stages(layers_per_ipu, training)
        assert [layer for stage in stages for layer in stage.layers] == list(range(config.n_layer))
        assert [name for stage in stages for name in stage.embeddings] == [TOKENS, POSITIONS]
        assert [stage.head for stage in stages] == [False] * (len(stages) - 1) + [True]
        assert all(before.ipu != after.ipu for before, after in zip(stages, stages[1:]))
        assert sum(stage_parameters(stage, config) for stage in stages) == parameter_count(config)
    assert len(pipeline_stages(layers_per_ipu)) == forward_stages(layers_per_ipu)
    work = sum(stage_operations(stage, config, length) for stage in pipeline_stages(layers_per_ipu))
    assert work - 2 * 3 * 2 * width == flops_per_token(config, length), "beside the two lookups"


# Of each variant: parameters of one block, of the whole, multiplications of one block for one token of 3 positions and
# of all that stands beside the blocks.
VARIANTS = [
    # C = 2, I = 8: 74 a block. Two matrices of the vocabulary.
    (dict(tie_word_embeddings=False), 74, 2 * 20 + 6 + 4 * 74 + 4, 120, 2 * 10 * 2),
    (dict(share_layers=True), 74, 20 + 6 + 74 + 4, 120, 2 * 10 * 2),
    # E = 1: 10 rows and 3 positions of one number; 2 + 2 and 2 + 1 of the projections, 2 x 2 operations each
    (dict(embedding_size=1), 74, 10 + 3 + 4 * 74 + 4 + 4 + 3, 120, 2 * 10 + 2 * 4),
    # heads of 3 numbers: 2 x 9 + 9 and 3 x 2 + 2; 2 (4 x 2 x 3 + 2 x 2 x 8) + 4 x 3 x 3
    (dict(head_dim=3), 8 + 27 + 8 + 24 + 18, 20 + 6 + 4 * 85 + 4, 112 + 36, 2 * 10 * 2),
    # one norm of 4 less; no positions
    (dict(parallel_residual=True, position_embedding="alibi"), 70, 20 + 4 * 70 + 4, 120, 2 * 10 * 2),
    # 8 biases less, and no last norm, but one of the embedding
    (dict(attention_bias=False, final_norm=False, embedding_norm=True), 66, 20 + 6 + 4 * 66 + 4, 120, 2 * 10 * 2),
]


@pytest.mark.parametrize("changes, block, whole, operations, beside", VARIANTS)
def test_variants_by_hand(changes, block, whole, operations, beside):
    config = dataclasses.replace(TINY, **changes)
    assert (block_parameters(config), parameter_count(config)) == (block, whole)
    assert layer_operations(config, 3) == operations
    assert flops_per_token(config, 3) == 3 * (4 * operations + beside)
    positions = has_position_embedding(config)
    split = [0, 4] if config.share_layers else [0, 1, 3]
    stages = pipeline_stages(split, positions=positions)
    assert sum(stage_parameters(stage, config) for stage in stages) == whole
    work = sum(stage_operations(stage, config, 3) for stage in stages)
    assert work - (1 + positions) * 3 * 2 * config.embedding_width == flops_per_token(config, 3)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config, initialize=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == whole


def test_where_the_parts_of_variants_are():
    separate = dataclasses.replace(TINY, tie_word_embeddings=False)
    assert [stage_parameters(stage, separate) for stage in pipeline_stages([0, 4])] == [20, 6 + 4 * 74 + 4, 20]
    factorised = dataclasses.replace(TINY, embedding_size=1, share_layers=True)
    assert [stage_parameters(stage, factorised) for stage in pipeline_stages([0, 4])] == [10, 3 + 4 + 74 + 4 + 3, 0]
    alibi = dataclasses.replace(TINY, position_embedding="alibi")
    stages = pipeline_stages([1, 3], positions=has_position_embedding(alibi))
    assert [stage.parts for stage in stages] == [f"{TOKENS}, layer 0", "layers 1-3", HEAD], "nothing to add on IPU 1"


def test_the_bubble():
    assert bubble(1, 7) == 0
    assert bubble(4, 1) == 0.75, "one micro-batch at a time, as in ShardedExecution"
    assert bubble(4, 9) == pytest.approx(3 / 12)
    # four equal parts: 9 of 12 steps are full
    assert speed_up([0.25] * 4, 9) == pytest.approx(4 * 9 / 12)
    # twice the work on one of two: 2 + 1 at the beginning, then 2 each
    assert speed_up([2, 1], 5) == pytest.approx(15 / (3 + 4 * 2))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 1000))
def test_no_pipeline_is_faster_than_its_bubble_or_its_slowest_part(shares, micro_batches):
    faster = speed_up(shares, micro_batches)
    assert 1 - 1e-9 <= faster <= len(shares) * (1 - bubble(len(shares), micro_batches)) + 1e-9
    assert faster <= sum(shares) / max(shares) + 1e-9
