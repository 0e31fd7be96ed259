"""GPT2Config: what it reads, what it refuses, how many parameters it stands for."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from model.config import MODELS, VARIANT_FIELDS, GPT2Config, parameter_count, real_parameter_count
from model.config_checks import ACTIVATION_ALIASES
from model.config_fields import check_fields
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
    assert parameter_count(config) == count + 15 * n_embd and real_parameter_count(config) == count


# Parameters of the other systems with 50,257 rows, as they were published, rounded or not.
SYSTEMS = {
    "tfchat-preln": 123_614_976,
    "tfchat-preln-relu": 123_614_976,
    "tfchat-postln": 123_614_976,
    "tfchat-preln-unshared": 162_249_216,
    "tfchat-gpt2": 124_439_808,
    "mingpt-tf": 163_037_184,
    "algpt2-unfactorised": 46_473_216,
    "algpt2-512": 34_132_992,
    "algpt2-256": 20_611_584,
    "algpt2": 13_850_880,
    "algpt2-medium": 19_425_536,
    "algpt2-medium-unfactorised": 65_110_016,
    "algpt2-large": 26_573_056,
    "algpt2-xl": 37_719_296,
    "gpt-127-star": 127_030_272,
    "gpt-303-star": 303_825_408,
    "gpt-1b-star": 1_009_309_696,
    "gpt-star-124m": 124_439_808,
    "gpt-star-354m": 354_823_168,
}


def test_every_model_is_held_to_its_size():
    assert set(MODELS) == {"gpt2-test", "gpt2-tiny", *RELEASED, *SYSTEMS}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_sizes_of_the_other_systems(name):
    config = GPT2Config.from_json(MODELS[name])
    assert (config.vocab_size, config.real_vocab_size, config.eos_token_id) == (50272, 50257, 50256)
    unpadded = dataclasses.replace(config, vocab_size=50257)
    with torch.device("meta"):
        model = GPT2LMHeadModel(unpadded, initialize=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(unpadded) == SYSTEMS[name]
    assert MODELS[name].name == f"config_{name.replace('-', '_')}.json"


def test_the_test_and_tiny_models():
    test = GPT2Config.from_json(MODELS["gpt2-test"])
    assert (test.n_layer, test.n_embd, test.n_head, test.n_positions) == (4, 768, 4, 128)
    assert (test.vocab_size, test.real_vocab_size) == (20256, 20256)
    tiny = GPT2Config.from_json(MODELS["gpt2-tiny"])
    assert (tiny.vocab_size, tiny.real_vocab_size) == (50272, 50257)


@pytest.mark.parametrize("name", ["gpt2-test", "gpt2-tiny", *sorted(RELEASED)])
def test_every_config_file_of_gpt2_has_the_common_values(name):
    config = GPT2Config.from_json(MODELS[name])
    assert config.activation_function == "gelu"
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    assert (config.initializer_range, config.layer_norm_epsilon) == (0.02, 1e-5)


def test_defaults_are_those_of_transformers():
    ours, theirs = GPT2Config(), transformers.GPT2Config()
    for field in dataclasses.fields(ours):
        if field.name not in ("real_vocab_size", "initialization", *VARIANT_FIELDS):
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
    for name, value in ours.values().items():
        assert getattr(again, name) == value, name
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


VARIANT = {"norm_position": "post", "final_norm": False, "head_dim": 5, "embedding_size": 8, "padding_id": 0}


def test_a_variant_stands_in_a_block_of_its_own_and_is_read_again():
    config = GPT2Config(99, 7, 12, 2, 3, activation_function="relu", **VARIANT, initialization="tfchat")
    values = config.to_dict()
    assert values["model_type"] == "gpt2_variant" and values["variant"] == {"activation_function": "relu", **VARIANT}
    assert not set(values) & set(VARIANT_FIELDS) and values["n_embd"] == 12 and values["initialization"] == "tfchat"
    assert GPT2Config.from_dict(json.loads(json.dumps(values))) == config
    with pytest.raises(ValueError, match="gpt2_variant"):
        transformers.AutoConfig.for_model(**values)


def test_what_transformers_can_express_is_no_variant():
    config = GPT2Config(99, 7, 12, 2, 3, tie_word_embeddings=False, initialization="mingpt-tf", head_dim=None)
    values = config.to_dict()
    assert values["model_type"] == "gpt2" and values["tie_word_embeddings"] is False and "variant" not in values
    assert GPT2Config.from_dict(transformers.GPT2Config.from_dict(values).to_dict()) == config
    assert not set(GPT2Config().to_dict()) & {"variant", "initialization", *VARIANT_FIELDS}


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"variant": {"norm_position": "post"}}, "variant contradicts model_type 'gpt2'"),
        ({"model_type": "gpt2_variant", "variant": {"norms": "post"}}, "variant has no norms"),
        ({"model_type": "gpt2_variant", "variant": []}, r"variant must be an object, not \[\]"),
        ({"norm_position": "post"}, "norm_position must stand in the object 'variant'"),
        ({"model_type": "gpt2_variant"}, None),
        ({"variant": {"norm_position": "pre"}}, None),
    ],
)
def test_how_a_variant_is_given(values, complaint):
    if complaint is None:
        assert GPT2Config.from_dict(values) == GPT2Config()
        return
    with pytest.raises(ValueError, match=complaint) as caught:
        GPT2Config.from_dict(values)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "changes, settings",
    [
        ({"parallel_residual": True, "norm_position": "post"}, ("parallel_residual true", "norm_position 'post'")),
        (
            {"share_layers": True, "scale_attn_by_inverse_layer_idx": True},
            ("share_layers true", "scale_attn_by_inverse_layer_idx true"),
        ),
        ({"embedding_size": 769}, ("embedding_size 769", "n_embd 768")),
        ({"n_head": 7}, ("n_embd 768", "n_head 7", "head_dim")),
        ({"padding_id": 50257}, ("padding_id 50257", "vocab_size 50257")),
        ({"padding_id": 50256}, ("padding_id 50256", "eos_token_id and bos_token_id")),
        ({"padding_id": 7, "eos_token_id": [9, 7]}, ("padding_id 7", "eos_token_id too")),
        ({"padding_id": 7, "bos_token_id": 7}, ("padding_id 7", "bos_token_id too")),
        ({"norm_position": "both"}, ("norm_position", "'both'")),
        ({"position_embedding": ["alibi", "learned"]}, ("position_embedding must be one of", "'alibi', 'learned'")),
        ({"head_dim": 0}, ("head_dim must be a positive integer",)),
        ({"share_layers": 1}, ("share_layers must be true or false",)),
    ],
)
def test_two_settings_that_contradict_each_other_are_one_message(changes, settings):
    with pytest.raises(ValueError) as caught:
        GPT2Config(**changes)
    heading, problem = str(caught.value).splitlines()
    assert all(setting in problem for setting in settings), problem
    assert GPT2Config(n_head=7, head_dim=64).attention_size == 448


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


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"n_layers": 2}, "n_layers: the model has no such field; did you mean n_layer?"),
        (
            {"n_layer": 2, "num_layers": 2, "layer_norm_eps": 1e-6},
            "layer_norm_eps: .* layer_norm_epsilon.*num_layers: ",
        ),
        ({"n_layer": 2, "head_dims": 8}, "did you mean head_dim?"),
        ({}, "describes no model: it has none of vocab_size, n_positions, n_embd, n_layer and n_head"),
        ({"learning_rate": 1, "model_type": "gpt2"}, "describes no model"),
    ],
)
def test_a_file_that_is_to_describe_a_model_has_its_fields(tmp_path, values, complaint):
    """They were passed over in silence, and the defaults trained."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=complaint) as caught:
        check_fields(path)
    assert str(path) in str(caught.value)


def test_fields_of_other_programs_are_told_and_those_of_hugging_face_are_not(tmp_path):
    path = tmp_path / "mine.json"
    for values in (
        transformers.GPT2Config(n_layer=3).to_dict(),
        GPT2Config(n_layer=3).to_dict(),
        {"n_layer": 3, "_attn_implementation_autoset": True},  # of later versions of transformers 4
        {"num_hidden_layers": 3},
    ):
        path.write_text(json.dumps(values))
        assert (GPT2Config.from_json(path).n_layer, check_fields(path)) == (3, "")
    path.write_text(json.dumps({"n_layer": 3, "comment": "mine", "block_size": 128}))
    assert check_fields(path).startswith(f"{path}: block_size, comment are no fields of the model")
    for file in MODELS.values():
        assert check_fields(file) == ""


def test_imports_neither_torch_nor_transformers():
    code = "import sys, model.config; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
