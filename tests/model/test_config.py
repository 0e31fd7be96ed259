"""GPT2Config: what it reads, what it refuses, how many parameters it stands for."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from model.config import ACTIVATION_ALIASES, MODELS, GPT2Config, parameter_count
from model.gpt2 import MLP, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[2]

# n_layer, n_embd, n_head, parameters with 50,257 rows: the released models
RELEASED = {
    "gpt2": (12, 768, 12, 124_439_808),
    "gpt2-medium": (24, 1024, 16, 354_823_168),
    "gpt2-large": (36, 1280, 20, 774_030_080),
    "gpt2-xl": (48, 1600, 25, 1_557_611_200),
}


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_the_released_sizes(name):
    n_layer, n_embd, n_head, count = RELEASED[name]
    config = GPT2Config.from_json(MODELS[name])
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions) == (n_layer, n_embd, n_head, 1024)
    assert (config.vocab_size, config.real_vocab_size) == (50272, 50257)
    unpadded = dataclasses.replace(config, vocab_size=50257)
    assert parameter_count(unpadded) == count
    with torch.device("meta"):
        model = GPT2LMHeadModel(unpadded)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert parameter_count(config) == count + 15 * n_embd


def test_the_test_and_tiny_models():
    test = GPT2Config.from_json(MODELS["gpt2-test"])
    assert (test.n_layer, test.n_embd, test.n_head, test.n_positions) == (4, 768, 4, 128)
    assert (test.vocab_size, test.real_vocab_size) == (20256, 20256)
    tiny = GPT2Config.from_json(MODELS["gpt2-tiny"])
    assert (tiny.vocab_size, tiny.real_vocab_size) == (50272, 50257)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_config_file_has_the_common_values(name):
    config = GPT2Config.from_json(MODELS[name])
    assert config.activation_function == "gelu"
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    assert (config.initializer_range, config.layer_norm_epsilon) == (0.02, 1e-5)


def test_defaults_are_those_of_transformers():
    ours, theirs = GPT2Config(), transformers.GPT2Config()
    for field in dataclasses.fields(ours):
        if field.name != "real_vocab_size":
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_reads_what_transformers_writes_and_the_reverse():
    theirs = transformers.GPT2Config(
        vocab_size=99,
        n_positions=7,
        n_embd=12,
        n_layer=2,
        n_head=3,
        n_inner=5,
        activation_function="relu",
        attn_pdrop=0,
    )
    ours = GPT2Config.from_dict(theirs.to_dict())
    assert ours == GPT2Config(99, 7, 12, 2, 3, 5, "relu", attn_pdrop=0)
    assert "reorder_and_upcast_attn" not in ours.to_dict()  # off: nothing is said of it
    again = transformers.GPT2Config.from_dict(ours.to_dict())
    for field in dataclasses.fields(ours):
        assert getattr(again, field.name) == getattr(ours, field.name), field.name
    assert again.architectures == ["GPT2LMHeadModel"] and again.tie_word_embeddings
    assert GPT2Config.from_dict(ours.to_dict()) == ours


def test_reads_the_released_config_file():
    # openai-community/gpt2's config.json, as written in 2019
    released = """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257}"""
    assert GPT2Config.from_dict(json.loads(released)) == GPT2Config()


@pytest.mark.parametrize("theirs, ours", sorted(ACTIVATION_ALIASES.items()))
def test_the_other_names_of_an_activation(theirs, ours):
    """They are one function, within float32."""
    assert GPT2Config(activation_function=theirs).activation_function == ours
    assert GPT2Config.from_dict({"activation_function": theirs}).activation_function == ours
    x = torch.linspace(-8, 8, 4001)
    computed = MLP(GPT2Config(activation_function=theirs, n_embd=4, n_head=1)).act(x)
    torch.testing.assert_close(computed, transformers.activations.ACT2FN[theirs](x), rtol=1e-6, atol=1e-6)


def test_the_ids_that_end_a_text():
    assert GPT2Config(eos_token_id=[7, 50256, 50257]).end_ids == [7, 50256]
    assert GPT2Config(eos_token_id=None).end_ids == GPT2Config(vocab_size=300).end_ids == []


def test_the_other_names_of_the_dimensions():
    names = {"hidden_size": 30, "num_attention_heads": 5, "num_hidden_layers": 3, "max_position_embeddings": 9}
    config = GPT2Config.from_dict(names)
    assert (config.n_embd, config.n_head, config.n_layer, config.n_positions) == (30, 5, 3, 9)


def test_real_vocab_size_and_n_ctx():
    assert GPT2Config(vocab_size=50304).real_vocab_size == 50304
    assert GPT2Config(vocab_size=100).real_vocab_size == 100
    assert GPT2Config(vocab_size=112, real_vocab_size=100).real_vocab_size == 100
    short = dataclasses.replace(GPT2Config(), n_positions=128)
    assert short.n_ctx == short.to_dict()["n_ctx"] == 128


@pytest.mark.parametrize(
    "key, value",
    [
        ("add_cross_attention", True),
        ("scale_attn_weights", False),
        ("tie_word_embeddings", False),
        ("model_type", "llama"),
        ("quantization_config", {"bits": 4}),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_refuses_variants_that_are_not_implemented(key, value):
    with pytest.raises(ValueError, match=key):
        GPT2Config.from_dict({key: value})


@pytest.mark.parametrize(
    "key, value",
    [
        ("vocab_size", 0),
        ("n_positions", -1),
        ("n_layer", 1.5),
        ("n_embd", "768"),
        ("n_head", True),
        ("n_inner", 0),
        ("n_head", 7),
        ("real_vocab_size", 50258),
        ("activation_function", "swish"),
        ("activation_function", ["gelu"]),
        ("resid_pdrop", 1.0),
        ("embd_pdrop", -0.1),
        ("attn_pdrop", None),
        ("layer_norm_epsilon", 0),
        ("initializer_range", "0.02"),
        ("reorder_and_upcast_attn", None),
        ("scale_attn_by_inverse_layer_idx", 1),
        ("bos_token_id", -1),
        ("eos_token_id", [50256, "x"]),
    ],
)
def test_refuses_values_that_are_not_valid(key, value):
    for build in (lambda: GPT2Config(**{key: value}), lambda: GPT2Config.from_dict({key: value})):
        with pytest.raises(ValueError, match=key) as caught:
            build()
        assert len(str(caught.value).splitlines()) == 2  # one heading, one problem


def test_lists_all_problems_at_once():
    values = {"n_embd": 100, "n_head": 3, "attn_pdrop": 2, "n_layer": None, "add_cross_attention": True}
    with pytest.raises(ValueError) as caught:
        GPT2Config.from_dict(values)
    for expected in ("n_embd 100 is not divisible by n_head 3", "attn_pdrop", "n_layer", "add_cross_attention"):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    "content, complaint",
    [(None, "cannot be read"), ("{", "is not JSON"), ("[1]", "not an object"), ('{"n_layer": 0}', "n_layer")],
)
def test_errors_name_the_file(tmp_path, content, complaint):
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        GPT2Config.from_json(path)
    assert str(path) in str(caught.value)


def test_imports_neither_torch_nor_transformers():
    code = "import sys, model.config; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
