"""The optimizers of published recipes over a run: refusals, groups, resuming, what the plan says of their memory."""

import pytest
import torch
from tiny_run import flags, run_here, write_config, write_corpus

from arguments import parse_train_args
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.layout import Layout
from model.pipeline import pipeline_stages
from training import adafactor, adam_variants
from training.optimization import in_bits, make_optimizer, parameter_groups
from training.run import TrainingRun
from training.stage_memory import CPU, stage_memory

KINDS = {
    "SGD": {"optimizer": "SGD", "learning_rate": 0.1, "gradient_clipping": 1.0},
    "Adafactor": {"optimizer": "Adafactor", "gradient_clipping": 1.0},
    "AdafactorNoScaling": {"optimizer": "AdafactorNoScaling"},
    "AdamW8bit": {"optimizer": "AdamW8bit", "weight_decay": 0.1, "weight_decay_groups": "gpt-star"},
    "clipped Adam": {"optimizer": "Adam", "tensor_gradient_clipping": 0.5},
}
WIDE = {"n_embd": 64}  # its matrices have 4,096 elements or more


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    write_config(folder, **WIDE)
    write_corpus(folder / "corpus.pkl")
    return folder


def run_flags(folder, **changes):
    return flags(folder, train_path=folder / "corpus.pkl", lr_schedule="linear", lr_warmup=0, **changes)


def state(save, step):
    return torch.load(str(save / f"step_{step}" / "training_state.pt"), weights_only=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_run_goes_on_to_the_bit(folder, tmp_path, name):
    words, save, other = KINDS[name], tmp_path / "whole", tmp_path / "half"
    words = {**words, "training_steps": 6, "save_per_steps": 3}
    whole = run_here(run_flags(folder, save_model_path=save, **words))
    assert whole.status == 0, whole.err
    part = {"pretrained_checkpoint": save / "step_3", "resume_training_from_checkpoint": True, "save_model_path": other}
    resumed = run_here(run_flags(folder, **part, **words))
    assert resumed.status == 0, resumed.err
    one, two = state(save, 6)["optimizer"], state(other, 6)["optimizer"]
    assert one["ipu_state"].keys() == two["ipu_state"].keys()
    for part in ("ipu_state", "ipu_master_weights"):
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])
    before = state(save, 3)["optimizer"]["ipu_master_weights"]
    assert any(not torch.equal(before[key], one["ipu_master_weights"][key]) for key in before)
    for bias in ("transformer.h.0.attn.c_attn.bias", "transformer.ln_f.weight"):
        key = next(key for key in before if key.endswith(bias))
        assert not torch.equal(before[key], one["ipu_master_weights"][key]), "vectors are trained too"


@pytest.mark.parametrize("name", KINDS)
def test_the_plan_counts_the_states(folder, name):
    words = " ".join(run_flags(folder, **KINDS[name])).split()
    args = parse_train_args(words)
    run = TrainingRun(args)
    run.compile_only()
    kept = run.optimizer.state_dict()["ipu_state"]
    taken = sum(each.numel() * each.element_size() for key, each in kept.items() if not key.startswith("Step"))
    stages = pipeline_stages(args.layers_per_ipu)
    config = run.model.gpt2.config
    planned = [stage_memory(stage, stages, config, args, Layout(1, 1, 1), CPU).optimizer for stage in stages]
    # Vocabulary and positions may be padded or cut in the run: the configuration is the run's.
    assert sum(planned) == pytest.approx(taken, rel=0.01)


def test_what_an_ipu_cannot_run_is_refused_by_name(folder, monkeypatch):
    """There nobody reads a class's rule: PopTorch knows its own optimizers alone."""
    for cls in (adafactor.Adafactor, adam_variants.AdamW8bit, adam_variants.TensorClippedAdam):
        monkeypatch.setattr(cls, "portable_update_rule", None)
    for name in ("Adafactor", "AdamW8bit", "clipped Adam"):
        done = run_here(run_flags(folder, **KINDS[name]))
        assert done.status == 2 and "Traceback" not in done.err
        assert f"--optimizer {KINDS[name]['optimizer']}" in done.err and "PopTorch has no such update" in done.err
        assert ("--tensor-gradient-clipping 0.5" in done.err) is (name == "clipped Adam")


CONTRADICTIONS = {
    "clipped twice": ({"gradient_clipping": 1, "tensor_gradient_clipping": 1}, "--gradient-clipping 1"),
    "LAMB": ({"optimizer": "LAMB", "tensor_gradient_clipping": 1}, "--optimizer LAMB"),
    "betas": ({"optimizer": "Adafactor", "adam_betas": "0.9 0.95"}, "--optimizer Adafactor"),
    "epsilon": ({"optimizer": "SGD", "adam_epsilon": 1e-8}, "--optimizer SGD"),
    "momentum": ({"optimizer": "Adam", "sgd_momentum": 0.5}, "--optimizer Adam"),
    "scale": ({"optimizer": "SGD", "gradient_clipping": 1, "auto_loss_scaling": True}, "--auto-loss-scaling True"),
    "norm": ({"optimizer": "AdamW8bit", "log_gradient_norm": True, "use_wandb": False}, "--optimizer AdamW8bit"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_one_message_that_names_both(folder, tmp_path, capsys, case):
    words, named = CONTRADICTIONS[case]
    with pytest.raises(SystemExit) as end:
        parse_train_args(run_flags(folder, save_model_path=tmp_path, **words))
    message = capsys.readouterr().err
    assert end.value.code == 2 and "1 problem" in message and named in message
    other = list(words)[1] if case == "clipped twice" else next(name for name in words if name != "optimizer")
    assert f"--{other.replace('_', '-')}" in message


def names_of(model, group):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(parameter)] for parameter in group["params"]}


def test_the_groups_of_gpt_star_decay_the_last_norm_and_not_the_positions():
    model = GPT2LMHeadModel(GPT2Config(32, 8, 8, 2, 2))
    decayed, plain = parameter_groups(model, 0.1, "gpt-star")
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    matrices = {f"transformer.h.{n}.{m}.weight" for n in (0, 1) for m in
                ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    assert names_of(model, decayed) == {"transformer.wte.weight", "transformer.ln_f.weight", *matrices}
    assert names_of(model, decayed) | names_of(model, plain) == {name for name, _ in model.named_parameters()}


def test_embeddings_keep_32_bits():
    model = GPT2LMHeadModel(GPT2Config(32, 8, 8, 2, 2))
    groups = in_bits(parameter_groups(model, 0.1), model)
    wide = [group for group in groups if group["bits"] == 32]
    assert [names_of(model, group) for group in wide] == [{"transformer.wte.weight", "transformer.wpe.weight"}]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {(group["bits"], group["weight_decay"]) for group in groups} == {(8, 0.1), (8, 0.0), (32, 0.1)}


def test_sgd_clips_what_is_multiplied_by_the_loss_scale():
    model = GPT2LMHeadModel(GPT2Config(32, 8, 8, 2, 2))
    optimizer = make_optimizer("SGD", model, 0.1, 0.0, 512.0, gradient_clipping=2.0, sgd_momentum=0.5)
    assert optimizer.max_grad_norm == 1024.0 and optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.velocity_accum_type == torch.float32
