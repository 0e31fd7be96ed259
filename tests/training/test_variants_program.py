"""Variants of GPT-2 through the training program: a pipeline is one IPU, a resumed run the whole; what is refused."""

import json
import os

import pytest
import safetensors.torch
import torch
from test_resume import assert_equal, contents, losses
from tiny_run import NO_DROPOUT, flags, run_here, write_config, write_corpus

from model.checkpoint import load_pretrained
from model.config import MODELS

TFCHAT = {"final_norm": False, "position_embedding": "sinusoidal", "scale_embedding": True, "padding_id": 0}
# Of each system its block of the configuration and what stands beside it.
SYSTEMS = {
    "tfchat_postln": ({**TFCHAT, "norm_position": "post", "attention_bias": False}, {"initialization": "tfchat"}),
    "tfchat_unshared": (TFCHAT, {"tie_word_embeddings": False, "initialization": "tfchat"}),
    "mingpt_tf": ({}, {"tie_word_embeddings": False, "initialization": "mingpt-tf"}),
    "algpt2": ({"share_layers": True, "embedding_size": 8}, {"initialization": "normal", "initializer_range": 0.2}),
    "gpt_star": (
        {"parallel_residual": True, "position_embedding": "alibi", "embedding_norm": True},
        {"initialization": "gpt-star", **NO_DROPOUT},
    ),
    "wide_heads": ({"head_dim": 12}, {}),
}


def write_system(folder, name, **changes):
    block, more = SYSTEMS[name]
    kind = {"model_type": "gpt2_variant", "variant": block} if block else {}
    write_config(folder, **{**more, **kind, **changes})
    if not (folder / "corpus.pkl").exists():
        write_corpus(folder / "corpus.pkl", articles=13, length=40)
    return folder


def train(folder, save=None, *words, **changes):
    values = {"train_path": folder / "corpus.pkl", "stride": 16, "epochs": 2, "gradient_accumulation": 6}
    done = run_here([*flags(folder, **{**values, "save_model_path": save, **changes}), *map(str, words)])
    assert done.status == 0, done.err
    return done


def values_of(lines):
    return [float(word) for line in lines for word in line.replace(",", " ").split() if "." in word]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_pipeline_trains_what_one_ipu_does(tmp_path, name):
    """With the head serialised, the loss in blocks of positions and every block recomputed."""
    folder = write_system(tmp_path, name, **NO_DROPOUT)
    settings = {"gradient_accumulation": 9, "learning_rate": 0.03}
    alone = losses(train(folder, **settings).out)
    pipeline = train(
        folder, layers_per_ipu="0 2" if name == "algpt2" else "1 1", ipus_per_replica=2, serialized_seq_len=8,
        recompute_checkpoint_every_layer=True, embedding_serialization_factor=4, enable_sequence_serialized=True,
        **settings,
    )  # fmt: skip
    assert len(alone) > 4 and values_of(losses(pipeline.out)) == pytest.approx(values_of(alone), rel=2e-3)
    first, last = (values_of([line])[0] for line in (alone[0], alone[-1]))
    assert last < first - 0.05, alone


@pytest.fixture(scope="module", params=list(SYSTEMS))
def whole(request, tmp_path_factory):
    """Of a system its name, its folder with the checkpoints of a run of two epochs in `whole`, and the losses."""
    folder = write_system(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, folder, losses(train(folder, folder / "whole", save_per_steps=2).out)


def test_a_resumed_run_is_the_run(whole):
    _, folder, lines = whole
    step = folder / "whole" / "step_2"
    again = train(folder, folder / "again", "--resume", step, save_per_steps=2)
    assert losses(again.out) == lines[2:]
    expected, found = contents(folder / "whole" / "epoch_1"), contents(folder / "again" / "epoch_1")
    assert found[:2] == expected[:2]
    assert_equal(found[2], expected[2])


def test_a_saved_variant_is_loaded_with_all_its_settings(whole):
    name, folder, _ = whole
    model = load_pretrained(folder / "whole" / "epoch_1")
    values = json.loads((folder / "tiny.json").read_text(encoding="utf-8"))
    for field, value in {**values.get("variant", {}), **SYSTEMS[name][1]}.items():
        assert getattr(model.config, field) == value, field
    stored = safetensors.torch.load_file(os.fspath(folder / "whole" / "epoch_1" / "model.safetensors"))
    assert set(stored) == {key for key, _ in model.named_parameters()}
    assert stored["transformer.wte.weight"].shape[0] == 61, "padding rows are left out"
    if not model.config.tie_word_embeddings:
        assert stored["lm_head.weight"].shape == stored["transformer.wte.weight"].shape
        assert not torch.equal(stored["lm_head.weight"], stored["transformer.wte.weight"])


@pytest.mark.parametrize(
    "of, asked, named",
    [
        ("gpt_star", "wide_heads", ["parallel_residual true instead of false", "position_embedding alibi instead of"]),
        ("algpt2", "mingpt_tf", ["share_layers true instead of false", "embedding_size 8 instead of null"]),
        ("mingpt_tf", "tfchat_unshared", ["final_norm true instead of false", "padding_id null instead of 0"]),
    ],
)
def test_a_checkpoint_of_another_variant_is_one_message(tmp_path, of, asked, named):
    train(write_system(tmp_path / "of", of), tmp_path / "saved", epochs=1)
    folder = write_system(tmp_path / "asked", asked)
    words = flags(folder, train_path=folder / "corpus.pkl", pretrained_checkpoint=tmp_path / "saved" / "epoch_0")
    done = run_here(words)
    assert done.status == 2 and "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if "its shape is not that of --config" in line]
    assert all(text in line for text in named), line


def test_one_block_on_several_ipus_is_refused_with_both_settings(tmp_path):
    folder = write_system(tmp_path, "algpt2")
    words = flags(folder, train_path=folder / "corpus.pkl", gradient_accumulation=8)
    done = run_here([*words, "--layers-per-ipu", "1", "1", "--ipus-per-replica", "2"])
    assert done.status == 2 and "--layers-per-ipu 1 1: its 2 layers are one block (share_layers true)" in done.err
    done = run_here([*words, "--layers-per-ipu", "auto", "--ipus-per-replica", "3"])
    assert done.status == 2 and "share_layers true" in done.err and "at most 2 IPUs" in done.err
    done = run_here([*words, "--layers-per-ipu", "auto", "--ipus-per-replica", "2", "--training-steps", "1"])
    assert done.status == 0 and "--layers-per-ipu auto: 0 2" in done.out, done.err


def test_settings_that_contradict_each_other_are_told_with_the_other_problems(tmp_path):
    folder = write_system(tmp_path, "gpt_star")
    block = {**SYSTEMS["gpt_star"][0], "norm_position": "post"}
    write_config(folder, model_type="gpt2_variant", variant=block)
    done = run_here([*flags(folder, train_path=folder / "corpus.pkl"), "--epochs", "0"])
    assert done.status == 2 and "Traceback" not in done.err
    assert "parallel_residual true contradicts norm_position 'post'" in done.err and "--epochs" in done.err


def test_the_token_that_pads_is_told_and_left_out_of_the_loss(tmp_path):
    """A corpus of nothing but that token has a loss of 0; another one's does not count it."""
    folder = write_system(tmp_path, "tfchat_unshared")
    write_corpus(folder / "corpus.pkl", articles=13, length=40, largest_id=0)
    done = train(folder, epochs=1)
    assert 'padding_id 0, which is "!" in GPT-2' in done.out
    assert all(line.split("loss: ")[1].split(",")[0].strip().startswith("0.0") for line in losses(done.out)), done.out


def test_alibi_goes_on_with_longer_samples_than_it_was_made_with(tmp_path):
    folder = write_system(tmp_path, "gpt_star")
    train(folder, tmp_path / "saved", epochs=1, max_len=8, stride=8)
    longer = train(folder, epochs=1, max_len=24, stride=24, pretrained_checkpoint=tmp_path / "saved" / "epoch_0")
    assert losses(longer.out)
    folder = write_system(tmp_path / "learned", "wide_heads")
    train(folder, tmp_path / "learned" / "saved", epochs=1, max_len=8, stride=8)
    words = flags(folder, train_path=folder / "corpus.pkl", max_len=24)
    done = run_here([*words, "--pretrained-checkpoint", str(tmp_path / "learned" / "saved" / "epoch_0")])
    assert done.status == 2 and "has n_positions 8, not the 24 asked for" in done.err


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"gpt2-test", "gpt2-tiny"}))
def test_every_model_has_a_plan_by_its_name(name):
    """Nothing of it is made: the plan is arithmetic on the flags."""
    from arguments import parse_train_args
    from model.config import GPT2Config, parameter_count
    from model.layout import Layout
    from training.plan import plan_lines, plan_rows
    from training.stage_memory import DEVICES

    config = GPT2Config.from_json(MODELS[name])
    last = f"0 {config.n_layer}" if config.share_layers else f"1 {config.n_layer - 1}"
    words = ["--model", name, "--layers-per-ipu", *last.split(), "--gradient-accumulation", "16", "--compile-only"]
    args = parse_train_args([*words, "--max-len", "128"])
    layout = Layout(1, 1, 2)
    rows = plan_rows(config, args, layout, DEVICES["ipu"])
    assert sum(row.parameters for row in rows) == parameter_count(config)
    assert sum(row.work for row in rows) == pytest.approx(1)
    assert f"{parameter_count(config):,} parameters" in plan_lines(config, args, layout, DEVICES["cpu"])[0]
