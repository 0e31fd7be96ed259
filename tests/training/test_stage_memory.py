"""The memory of stages: by hand for a model of a few numbers, and what must hold for any."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arguments import parse_train_args
from model.config import GPT2Config, block_parameters, parameter_count
from model.layout import Layout, fitting_processes
from model.pipeline import forward_stages, pipeline_stages
from training.stage_memory import (
    CPU,
    CPU_BY_TORCH,
    CPU_IN_16_BITS,
    DEVICES,
    GPU,
    IPU,
    Memory,
    block_activations,
    in_flight,
    optimizer_shards,
    stage_memory,
    together,
)

# C = 2, T = 3, I = 8, V = 10, H = 1; two samples a micro-batch
TINY = GPT2Config(
    vocab_size=10, n_positions=3, n_embd=2, n_layer=4, n_head=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
BLOCK = block_parameters(TINY)
KEPT = 2 * 3 * (8 * 2 + 2 * 8 + 4)  # numbers of a block, of one micro-batch


def arguments(words="", layers=(0, 2, 2)):
    """Flags for TINY: the checks know nothing of its size, and need as many blocks as gpt2-test has."""
    line = f"--model gpt2-test --max-len 3 --batch-size 2 --gradient-accumulation 64 {words}"
    return parse_train_args(
        [*line.split(), "--layers-per-ipu", *map(str, layers), "--ipus-per-replica", str(len(layers))]
    )


def memory_of(args, layout, device, config=TINY):
    stages = pipeline_stages(args.layers_per_ipu)
    return [stage_memory(stage, stages, config, args, layout, device) for stage in stages]


def test_a_cpu_process_that_has_everything_by_hand():
    args = arguments()
    first, second, third, last = memory_of(args, Layout(1, 1, 3), CPU)
    # Float32 weights and half ones, half sums of gradients; the first moment in half, the second in float32.
    assert (second.weights, second.gradients, second.optimizer) == tuple((6 + 2 * BLOCK) * size for size in (6, 2, 6))
    assert second.activations == 4 * 2 * KEPT + 2 * (2 * 3 * 4)  # logarithms of attention
    assert second.working == third.working == 2 * 2 * 8 * 4, "the gradient of the MLP's matrix, and its copy"
    # One gradient of the tied matrix lies beside the sum.
    assert first.gradients == 20 * 2 + 20 * 4 and first.activations == 0, "ids are enough"
    assert memory_of(args, Layout(3, 1, 3), CPU)[0].gradients == 20 * 2 + 20 * 4, "in a pipeline too"
    assert (last.weights, last.gradients, last.optimizer) == (0, 0, 0)
    assert last.activations == 4 * 2 * (2 * 3 * 2) and last.working == 4 * 2 * 3 * 10, "all logits in one piece"


def test_products_in_16_bits_have_copies_of_weights_and_keep_less():
    args = arguments()
    wide, narrow = (memory_of(args, Layout(1, 1, 3), device) for device in (CPU, CPU_IN_16_BITS))

    def copies(device, words=""):
        found = zip(memory_of(arguments(words), Layout(1, 1, 3), device), wide)
        return [stage.weights - before.weights for stage, before in found]

    assert copies(CPU_BY_TORCH) == [0, 4 * BLOCK, 4 * BLOCK, 0]
    small = BLOCK - (4 * 2 * 2 + 2 * 2 * 8)  # matrices that Adam's kernel updates are in two parts
    assert copies(CPU_IN_16_BITS) == [0, 4 * small, 4 * small, 0]
    for words in ("--optimizer LAMB", "--replicated-tensor-sharding True --replication-factor 2"):
        assert copies(CPU_IN_16_BITS, words) == copies(CPU_BY_TORCH)
    # of 36 numbers a token the input of the first norm, with mean and deviation of both, stays in float32; what the
    # second one's is larger by has 16 bits; what norms and GELU make is computed again
    block = 2 * 3 * ((2 + 4) * 4 + (2 + 4 * 2 + 8) * 2 + 4)
    assert block_activations(TINY, args, CPU_IN_16_BITS) == block and narrow[1].activations == 2 * block
    assert [after[1:3] for after in narrow] == [before[1:3] for before in wide]
    assert CPU_IN_16_BITS.is_cpu and CPU.is_cpu and not GPU.is_cpu
    # torch's products of 16 bits keep all that they were given
    assert block_activations(TINY, args, CPU_BY_TORCH) == 2 * 3 * ((2 * 2 + 4) * 4 + (6 * 2 + 2 * 8) * 2 + 4)


def test_another_activation_than_gelu_is_kept():
    relu = dataclasses.replace(TINY, activation_function="relu")
    more = block_activations(relu, arguments(), CPU_IN_16_BITS) - block_activations(TINY, arguments(), CPU_IN_16_BITS)
    assert more == 2 * 3 * 8 * 2 and block_activations(relu, arguments(), CPU) == block_activations(
        TINY, arguments(), CPU
    )


def test_the_logits_gradients_of_few_positions_wait_in_place_of_the_matrixs():
    args = arguments("--batch-size 1")
    first, *_, head = memory_of(args, Layout(1, 1, 3), CPU_IN_16_BITS)
    matrix, rows = 10 * 2, 3
    assert head.working == rows * 10 * (2 + 4)
    assert first.gradients == 2 * matrix
    # more than 2 C positions; products by torch
    for other, device in ((arguments(), CPU_IN_16_BITS), (args, CPU), (args, CPU_BY_TORCH)):
        more, *_ = memory_of(other, Layout(1, 1, 3), device)
        assert more.gradients == matrix * 4 + 2 * matrix


def test_of_one_backward_pass_the_matrices_have_no_accumulators():
    layout, stages = Layout(1, 1, 3), pipeline_stages(arguments().layers_per_ipu)

    def gradients(words, as_one, layout=layout):
        found = [stage_memory(stage, stages, TINY, arguments(words), layout, CPU, as_one) for stage in stages]
        return [each.gradients for each in found]

    matrices = 2 * (4 * 2 * 2 + 2 * 2 * 8)  # of a stage
    some, every = gradients("", 32), gradients("", 64)
    vocabulary = 10 * 2  # whose sum is in the memory of the last gradient, or of what that is made of
    assert [before - after for before, after in zip(some, every)] == [2 * vocabulary, 2 * matrices, 2 * matrices, 0]
    for words in ("--gradient-clipping 1", "--auto-loss-scaling True", "--optimizer LAMB"):
        assert gradients(words, 64) == [some[0] - 2 * vocabulary, *some[1:]]


def test_recomputed_blocks_keep_their_input_and_work_one_at_a_time():
    plain, again = arguments(), arguments("--recompute-checkpoint-layers 0 1 2")
    layout = Layout(1, 1, 3)
    block = block_activations(TINY, plain, CPU)
    vector = 2 * 3 * 2 * 4
    for at, kept in ((1, 2 * vector), (2, vector + block + vector)):  # behind the last block there is a layer norm
        before, after = (memory_of(args, layout, CPU)[at] for args in (plain, again))
        assert after.activations == kept and after.working == before.working + block
        assert after._replace(activations=0, working=0) == before._replace(activations=0, working=0)


def test_dropout_and_isolated_documents_keep_more():
    args, isolated = arguments(), arguments()
    isolated.document_boundaries = "isolated"
    dropped = dataclasses.replace(TINY, resid_pdrop=0.1, attn_pdrop=0.1)
    embedded = dataclasses.replace(TINY, embd_pdrop=0.1)
    for device, factor in ((CPU, 0), (GPU, 1)):  # a CPU draws what it drops again
        plain, more = (memory_of(args, Layout(1, 1, 3), device, config)[1].activations for config in (TINY, embedded))
        assert more == plain + 2 * 3 * 2 * factor
    tokens, bare = 2 * 3, 2 * 3 * 36 * 4
    assert block_activations(TINY, args, CPU) == bare + tokens * 4
    assert block_activations(dropped, args, CPU) == bare + tokens * 4
    # masks of both residual sums
    assert block_activations(dropped, args, GPU) == bare // 2 + tokens * (2 * 2 + 4)
    # the probabilities, and with dropout what is left of them
    assert block_activations(TINY, isolated, CPU) == bare + tokens * (3 * 4 + 3)
    assert block_activations(dropped, isolated, CPU) == bare + tokens * (2 * 3 * 4 + 3)
    assert block_activations(dropped, isolated, GPU) == bare // 2 + tokens * (2 * 2 + 2 * 3 * 2 + 3 + 3)


def test_micro_batches_that_run_as_one_are_kept_together():
    args, layout = arguments("--recompute-checkpoint-layers 0 1"), Layout(3, 1, 3)
    stages = pipeline_stages(args.layers_per_ipu)
    one, four = ([stage_memory(stage, stages, TINY, args, layout, CPU, n) for stage in stages] for n in (1, 4))
    assert [after.activations for after in four] == [4 * before.activations for before in one]
    assert [after[:3] for after in four] == [before[:3] for before in one]
    block, logits = block_activations(TINY, args, CPU), 4 * 2 * 3 * 10
    assert four[1].working - one[1].working == 3 * block and four[-1].working == 4 * one[-1].working == 4 * logits
    # of 64 micro-batches 32 as one are two in flight
    assert stage_memory(stages[0], stages, TINY, args, layout, CPU, 32).activations == 16 * one[0].activations


def test_an_ipu_by_hand():
    args = arguments("--recompute-checkpoint-layers 2 --replicated-tensor-sharding --replication-factor 2")
    first, second, third, last = memory_of(args, Layout(1, 2, 3), IPU)
    block = 2 * 3 * (34 * 2 + 5 * 3)
    assert second.weights == second.gradients == 2 * (6 + 2 * BLOCK)
    assert second.optimizer == 6 * (6 + 2 * BLOCK) // 2
    assert second.activations == (2 * 3 - 1) * (2 * block + 2 * 3 * 2 * 2)
    assert third.activations == (2 * 2 - 1) * (block + 2 * 3 * 2 * 2) and third.working == block
    assert first.activations == 7 * 2 * 3 * 2 * 2 and last.working == 6 * 10 * 6


def test_blocks_of_positions_hold_fewer_logits_and_a_gradient_more():
    args = arguments("--max-len 4 --enable-sequence-serialized --serialized-seq-len 2")
    last = memory_of(args, Layout(1, 1, 3), CPU)[-1]
    assert last.working == 2 * 2 * 10 * 4 + 10 * 2 * 4
    ipu = memory_of(args, Layout(1, 1, 3), IPU)[-1]
    assert ipu.working == 2 * 2 * 10 * 6


def test_logits_come_in_pieces_of_one_size():
    config = dataclasses.replace(TINY, vocab_size=50272, real_vocab_size=50257)
    args = arguments("--max-len 512 --batch-size 1")  # 333 rows are the most
    assert memory_of(args, Layout(1, 1, 3), CPU, config)[-1].working == 256 * 50272 * 4


def test_micro_batches_in_flight():
    stages = pipeline_stages([0, 2, 2])
    one, all_ranks = Layout(1, 1, 3), Layout(3, 1, 3)
    assert [in_flight(stage, stages, one, 64, CPU) for stage in stages] == [1, 1, 1, 1]
    assert [in_flight(stage, stages, all_ranks, 64, CPU) for stage in stages] == [4, 4, 2, 1]
    assert [in_flight(stage, stages, all_ranks, 2, GPU) for stage in stages] == [2, 2, 2, 1]
    assert [in_flight(stage, stages, one, 64, IPU) for stage in stages] == [7, 5, 3, 1]
    # ranks 0 0 1 1 0: three spans
    stages = pipeline_stages([0, 1, 1, 2])
    assert [in_flight(stage, stages, Layout(2, 1, 4), 64, CPU) for stage in stages] == [3, 3, 2, 2, 1]


def test_what_goes_to_another_process_is_kept():
    args = arguments()
    alone, spread = (memory_of(args, Layout(processes, 1, 3), CPU) for processes in (1, 3))
    flights = [4, 4, 2, 1]
    for here, there, flight, sent in zip(alone, spread, flights, [1, 1, 1, 0]):
        assert there.activations == flight * (here.activations + sent * 2 * 3 * 2 * 4)


def test_the_optimizer_is_shared_by_the_processes_that_have_the_same_stages():
    sharded = arguments("--replicated-tensor-sharding --replication-factor 4")
    shards = {(processes, device): (1, 2, 4)[at] for at, processes in enumerate((1, 2, 4)) for device in (CPU, GPU)}
    shards.update({(12, CPU): 4, (1, IPU): 4})
    for (processes, device), expected in shards.items():
        assert optimizer_shards(sharded, Layout(processes, 4, 3), device) == expected
    assert optimizer_shards(arguments("--replication-factor 4"), Layout(4, 4, 3), CPU) == 1
    assert memory_of(sharded, Layout(12, 4, 3), CPU)[0].working == 10 * 2 * 4, "the matrix, put together"
    assert memory_of(sharded, Layout(1, 4, 3), CPU)[0].working == 0


# reading a command line takes a while on a busy machine
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_layout_loses_a_parameter(data):
    layers = data.draw(st.sampled_from([(4,), (0, 4), (1, 3), (0, 2, 2), (1, 1, 1, 1), (0, 1, 1, 2)]))
    replicas, device = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(list(DEVICES.values())))
    args = arguments(f"--replication-factor {replicas}", layers)
    count = parameter_count(TINY)
    for processes in fitting_processes(replicas, len(layers)):
        parts = memory_of(args, Layout(processes, replicas, len(layers)), device)
        assert sum(part.weights for part in parts) == count * device.weight
        assert sum(part.optimizer for part in parts) == count * 6
        assert all(min(part) >= 0 for part in parts) and len(parts) == forward_stages(layers)


def test_stages_of_one_process_work_in_turn():
    assert together([Memory(1, 2, 3, 4, 50), Memory(10, 20, 30, 40, 5)]) == Memory(11, 22, 33, 44, 50)
    assert Memory(1, 2, 3, 4, 5).total == pytest.approx(15)
