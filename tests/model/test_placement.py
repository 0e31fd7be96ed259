"""The placement pass: the stages that the executor makes of the seed's four layouts, and that they compute the loss."""

import dataclasses

import poptorch
import pytest
import torch
from tiny_run import NO_DROPOUT, write_config

from arguments import parse_train_args
from model.config import GPT2Config, parameter_count
from model.gpt2 import GPT2LMHeadModel
from model.ipu_options import training_options
from model.pipeline import HEAD, POSITIONS, TOKENS, forward_stages, layer_ipus, pipeline_stages, stage_parameters
from model.placement import place
from training.run import place_model

WTE, WPE = "gpt2.transformer.wte.weight", "gpt2.transformer.wpe.weight"
TIED = {WTE, "gpt2.lm_head.weight"}

# --layers-per-ipu of the run scripts, and (IPU, layers) of the stages that must come of it. Neighbours on an IPU merge.
LAYOUTS = {
    "small": ("0 4 4 4", [(0, ""), (1, "0-3"), (2, "4-7"), (3, "8-11"), (0, "")]),
    "medium": (
        "0 3 3 3 3 4 4 4",
        [(0, ""), (1, "0-2"), (2, "3-5"), (3, "6-8"), (4, "9-11"), (5, "12-15"), (6, "16-19"), (7, "20-23"), (0, "")],
    ),
    "large_512": (
        "1 5 5 5 5 5 5 5",
        [(0, ""), (1, ""), (0, "0-0"), *((ipu, f"{5 * ipu - 4}-{5 * ipu}") for ipu in range(1, 8)), (0, "")],
    ),
    "large_1024": (
        "0 2 2 2 2 2 2 2 2 3 3 3 3 3 3 2",
        [(0, ""), *((ipu, f"{2 * ipu - 2}-{2 * ipu - 1}") for ipu in range(1, 9))]
        + [*((ipu, f"{3 * ipu - 11}-{3 * ipu - 9}") for ipu in range(9, 15)), (15, "34-35"), (0, "")],
    ),
}


def layers_of(text):
    if not text:
        return []
    first, last = map(int, text.split("-"))
    return list(range(first, last + 1))


@pytest.fixture(scope="module", params=LAYOUTS)
def compiled(request, tmp_path_factory):
    """The executor of a layout with as many layers as the real model, all of them tiny."""
    layers, expected = LAYOUTS[request.param]
    n_layer = sum(map(int, layers.split()))
    small = {"n_embd": 4, "n_positions": 8, "n_layer": n_layer, "vocab_size": 16, "real_vocab_size": 14}
    config = write_config(tmp_path_factory.mktemp("placement"), **small, **NO_DROPOUT)
    argv = ["--config", str(config), "--max-len", "8", "--layers-per-ipu", *layers.split(), "--device-iterations", "1"]
    args = parse_train_args([*argv, "--gradient-accumulation", str(2 * len(expected) - 1)])
    torch.manual_seed(0)
    model = place_model(GPT2LMHeadModel(GPT2Config.from_json(config)), args)
    executor = poptorch.trainingModel(model, training_options(args), torch.optim.SGD(model.parameters(), lr=0.1))
    ids = torch.arange(args.gradient_accumulation * 8, dtype=torch.int32).reshape(-1, 8) % 14
    executor.compile(input_ids=ids, labels=ids)
    return args, model, executor.program, expected


def test_stages_are_the_visits_of_the_pipeline_to_its_ipus(compiled):
    args, _, program, expected = compiled
    assert [stage.ipu for stage in program.stages] == [ipu for ipu, _ in expected]
    assert [stage.index for stage in program.stages] == list(range(len(expected)))
    assert len(program.stages) == forward_stages(args.layers_per_ipu)
    blocks = [block for stage in program.stages for block in stage.blocks]
    n_layer = sum(args.layers_per_ipu)
    layers = [f"layer {index}" for index in range(n_layer)]
    assert blocks == ["token embedding", "position embedding", *layers, "head"]
    for stage, (_, layers) in zip(program.stages, expected):
        assert [b for b in stage.blocks if b.startswith("layer")] == [f"layer {i}" for i in layers_of(layers)]


def test_a_stage_has_the_parameters_of_its_blocks_and_the_tied_one_is_in_the_first_and_the_last(compiled):
    args, model, program, expected = compiled
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = dict(model.named_parameters(remove_duplicate=False))
    for stage, (_, layers) in zip(program.stages, expected):
        own = {names[id(everything[name])] for name in stage.parameters}
        wanted = {name for i in layers_of(layers) for name in names.values() if f".h.{i}." in name}
        wanted |= {WTE} if stage.index in (0, len(expected) - 1) else set()
        wanted |= {WPE} if stage.index == 1 else set()
        if sum(args.layers_per_ipu) - 1 in layers_of(layers):  # what follows the last block belongs to its stage
            wanted |= {"gpt2.transformer.ln_f.weight", "gpt2.transformer.ln_f.bias"}
        assert own == wanted
    tied = [stage for stage in program.stages if TIED & set(stage.parameters)]
    assert [stage.index for stage in tied] == [0, len(expected) - 1]
    assert everything[WTE] is everything["gpt2.lm_head.weight"]


def test_a_stage_reads_what_the_user_or_earlier_stages_give_and_the_last_one_gives_the_loss(compiled):
    _, _, program, _ = compiled
    given = set(program.inputs)
    for stage in program.stages:
        assert set(stage.inputs) <= given
        given |= set(stage.outputs)
        later = {name for other in program.stages[stage.index + 1 :] for name in other.inputs}
        assert set(stage.outputs) <= later | set(program.outputs) | {program.loss}, "a stage hands on what nobody reads"
    assert program.loss in program.stages[-1].outputs
    # Between two layers travels the hidden state and nothing else.
    assert all(len(stage.inputs) == 1 for stage in program.stages[3:-1])
    labels = program.inputs[1]
    assert [stage.index for stage in program.stages if labels in stage.inputs] == [program.stages[-1].index]


def test_running_one_stage_after_the_other_gives_the_loss(compiled):
    _, model, program, _ = compiled
    ids = torch.tensor([[1, 5, 2, 9, 13, 0, 3, 7]])
    labels = torch.tensor([[5, 2, 9, 13, 0, 3, 7, -100]])
    parameters = {name: p.detach().clone().float() for name, p in model.named_parameters(remove_duplicate=False)}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    buffers = {name: b.float() if b.is_floating_point() else b for name, b in buffers.items()}
    state = {value: parameters[name] for value, name in program.parameters.items()}
    state.update({value: buffers[name] for value, name in program.buffers.items()}, **program.constants)
    carried = dict(zip(program.inputs, (ids.int(), labels.int())))
    for stage in program.stages:
        # Nothing but the stage's own inputs and parameters is there.
        values = {name: carried[name] for name in stage.inputs}
        values.update(state)
        stage.run(values)
        carried.update({name: values[name] for name in stage.outputs})
    plain = dataclasses.replace(model.gpt2.config)
    reference = GPT2LMHeadModel(plain)
    reference.load_state_dict({name[len("gpt2.") :]: p for name, p in parameters.items()})
    logits = reference(ids)
    expected = torch.nn.functional.cross_entropy(logits[0], labels[0], ignore_index=-100)
    torch.testing.assert_close(carried[program.loss].detach(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_plan_names_the_same_stages_and_parameters(compiled):
    args, model, program, expected = compiled
    stages = pipeline_stages(args.layers_per_ipu)
    assert [(stage.ipu, list(stage.layers)) for stage in stages] == [(ipu, layers_of(text)) for ipu, text in expected]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for stage, planned in zip(program.stages[:-1], stages):
        own = sum(parameters[name].numel() for name in stage.parameters)
        assert stage_parameters(planned, model.gpt2.config) == own
    counts = [stage_parameters(stage, model.gpt2.config) for stage in stages]
    assert counts[-1] == 0, "the head's matrix counts where the token embedding is"
    assert sum(counts) == parameter_count(model.gpt2.config)


def test_on_one_ipu_there_is_one_stage(tmp_path):
    args = parse_train_args(["--config", str(write_config(tmp_path)), "--max-len", "8"])
    assert args.layers_per_ipu == [2] and forward_stages(args.layers_per_ipu) == 1
    (stage,) = pipeline_stages(args.layers_per_ipu)
    assert (stage.ipu, stage.layers) == (0, (0, 1))
    assert (stage.embeddings, stage.head) == ((TOKENS, POSITIONS), True)
    assert stage.parts == f"{TOKENS}, {POSITIONS}, layers 0-1, {HEAD}"


def test_position_embedding_is_on_ipu_1_in_training_only(tmp_path):
    for training, ipu in ((True, 1), (False, 0)):
        model = GPT2LMHeadModel(GPT2Config.from_json(write_config(tmp_path)))
        lines = place(model, [0, 2], training)
        assert lines[0] == f"token embedding --> IPU 0, position embedding --> IPU {ipu}"
        assert lines[-1] == "head --> IPU 0"


def test_layer_ipus():
    assert layer_ipus([0, 2, 1]) == [1, 1, 2]
    assert layer_ipus([3]) == [0, 0, 0]
