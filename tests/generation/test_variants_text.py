"""Variants of GPT-2 generate with caches, or by the native operators, what the whole text computed again gives."""

import json
from types import SimpleNamespace

import poptorch
import pytest
import torch
from test_text_generate_program import run_program

import custom_ops
from custom_ops import decode_blocks as native
from generation.decoding import ModuleSteps, OneStep, WholeText
from generation.native_steps import NativeSteps, not_native
from generation.requests import generate, generate_at_once, new_text
from generation.sampling import Sampling
from generation.text_generator import load_for_texts, make_steps
from model import checkpoint
from model.checkpoint import save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from tasks.session import load_model

VOCABULARY, POSITIONS, LENGTH, WIDTH = 41, 24, 8, 4
GREEDY = Sampling(1.0, 1, 1.0, None, None, None)
PROMPTS = [[5, 1, 0, 7, 0, 2, 9], [0, 0, 3], [8]]
TFCHAT = {"final_norm": False, "position_embedding": "sinusoidal", "scale_embedding": True, "padding_id": 0}
SYSTEMS = {
    "tfchat-preln": {**TFCHAT, "attention_bias": False},
    "tfchat-postln": {**TFCHAT, "norm_position": "post"},
    "wide heads": {"head_dim": 12},
}
# What the native operators compute too.
NATIVE = {
    "mingpt-tf": {"tie_word_embeddings": False},
    "algpt2": {"share_layers": True, "embedding_size": 8},
    "algpt2-unfactorised": {"share_layers": True},
    "gpt-star": {"parallel_residual": True, "position_embedding": "alibi", "embedding_norm": True},
    "ALiBi in two sums": {"position_embedding": "alibi", "tie_word_embeddings": False, "n_inner": 24},
    "no final norm, factorised": {
        "final_norm": False, "embedding_size": 4, "embedding_norm": True, "scale_embedding": True,
    },
    "no biases, fixed positions": {
        "attention_bias": False, "position_embedding": "sinusoidal", "scale_embedding": True,
    },
}  # fmt: skip


def model_of(changes):
    torch.manual_seed(3)
    config = GPT2Config(
        48, POSITIONS, 16, 3, 2, real_vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **changes
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large weights: greedy choices are then far from ties
            if parameter.dim() > 1:
                parameter.mul_(15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def expected_texts(model):
    """Of each prompt the likeliest tokens, and the logarithms of their probabilities."""
    texts, chances = [], []
    for prompt in PROMPTS:
        ids, found = list(prompt), []
        for _ in range(LENGTH):
            with torch.no_grad():
                best = torch.log_softmax(model(torch.tensor([ids]))[0, -1, :VOCABULARY], -1).max(-1)
            ids.append(best.indices.item())
            found.append(best.values.item())
        texts.append(ids[len(prompt) :])
        chances.append(found)
    assert len({token for text in texts for token in text}) > 2, "a text that says something"
    return texts, pytest.approx(torch.tensor(chances).numpy(), abs=1e-3)


def options():
    options = poptorch.Options()
    options.autoRoundNumIPUs(True)
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    return options


def stepwise(steps):
    executor = poptorch.inferenceModel(OneStep(steps, len(PROMPTS), POSITIONS, GREEDY).eval(), options())
    texts = [new_text(prompt, LENGTH, seed=1) for prompt in PROMPTS]
    for _ in generate(executor, texts, len(PROMPTS), WIDTH, POSITIONS):
        pass
    return [text.tokens for text in texts], torch.tensor([text.log_probs for text in texts]).numpy()


@pytest.mark.parametrize("name", [*SYSTEMS, *NATIVE])
def test_cached_steps_equal_the_model_without_a_cache(name):
    """Prompts of unequal lengths, several tokens at a time, the token that pads among them."""
    changes = {**SYSTEMS, **NATIVE}[name]
    steps = ModuleSteps(model_of(changes), [3] if changes.get("share_layers") else [1, 2])
    assert stepwise(steps) == expected_texts(model_of(changes))


@pytest.mark.parametrize("name", ["tfchat-postln", "gpt-star"])
def test_the_loop_on_the_device_gives_the_same_text(name):
    changes = {**SYSTEMS, **NATIVE}[name]
    model = model_of(changes)
    loop = WholeText(ModuleSteps(model_of(changes), [3]), LENGTH, POSITIONS, VOCABULARY, GREEDY)
    texts = [new_text(prompt, LENGTH, seed=1) for prompt in PROMPTS]
    executor = poptorch.inferenceModel(loop.eval(), options())
    for _ in generate_at_once(executor, texts, len(PROMPTS), 8):
        pass
    assert [text.tokens for text in texts] == expected_texts(model)[0]


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_operators_give_the_same_text(name):
    if custom_ops.load() != "native" or not native.available():
        pytest.skip("custom_ops.so is not built: no native operators")
    model = model_of(NATIVE[name])
    assert not_native(model.config) is None
    steps = NativeSteps(model_of(NATIVE[name]), [3] if model.config.share_layers else [1, 2], "float32")
    assert stepwise(steps) == expected_texts(model)
    if model.config.share_layers:
        assert len(steps.blocks) == 1 and steps.blocks[0].layers == 1, "one copy of the weights"


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_the_native_operators_do_not_compute_is_left_to_the_modules(tmp_path, name):
    """The program takes the model's own modules, and names the setting where --int8 asks for the operators."""
    torch.manual_seed(4)
    config = GPT2Config(50272, 24, 16, 2, 2, real_vocab_size=50257, **SYSTEMS[name])
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    save_pretrained(model, tmp_path)
    words = ("--model-name-or-path", tmp_path, "--prompt", "Hello!", "--input-len", 4, "--output-len", 6, "--topk", 1)
    made = tmp_path / "made.jsonl"
    done = run_program(*words, "--save-samples-path", made, "--stop-token", "<|endoftext|>")
    assert done.returncode == 0, done.stderr
    setting = not_native(config)
    assert setting.split()[0] in SYSTEMS[name]
    refused = run_program(*words, "--int8")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert f"--int8: the native operators do not compute {setting} of the checkpoint" in refused.stderr


@pytest.mark.parametrize("name", ["algpt2", "gpt-star"])
def test_weights_in_8_bits(name):
    """The first choice, and how likely it is, by weights in 8 bits and in float32; no width of the model's is lost."""
    if custom_ops.load() != "native" or not native.available():
        pytest.skip("custom_ops.so is not built: no native operators")
    changes = {**NATIVE[name], "embedding_size": 32} if name == "algpt2" else NATIVE[name]
    tokens, chances = [], []
    for precision in ("float32", "int8"):
        torch.manual_seed(3)
        config = GPT2Config(
            48, POSITIONS, 64, 3, 2, real_vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **changes
        )
        model = GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():
            parameter.data.mul_(5 if parameter.dim() > 1 else 1)
        texts, found = stepwise(NativeSteps(model, [3], precision))
        tokens.append([text[0] for text in texts])
        chances.append(found[:, 0])
    assert tokens[0] == tokens[1] and chances[1] == pytest.approx(chances[0], abs=0.1)


def test_a_library_that_was_built_before_leaves_variants_to_the_modules(monkeypatch):
    if custom_ops.load() != "native" or not native.available():
        pytest.skip("custom_ops.so is not built: no native operators")
    assert native.available(variants=True)
    monkeypatch.setattr(native, "available", lambda variants=False: not variants)
    for name, kind in (("gpt-star", ModuleSteps), ("algpt2", ModuleSteps), ("mingpt-tf", NativeSteps)):
        assert type(make_steps(model_of(NATIVE[name]), [3], "float32", True)) is kind
    with pytest.raises(ValueError, match="--int8 needs the native operators: run `make`"):
        make_steps(model_of(NATIVE["gpt-star"]), [3], "int8", True)


def test_a_longer_text_takes_no_second_reading(tmp_path, monkeypatch):
    save_pretrained(GPT2LMHeadModel(GPT2Config(64, 8, 16, 2, 2, position_embedding="alibi")), tmp_path)
    read, times = checkpoint.read_weights, []
    monkeypatch.setattr(checkpoint, "read_weights", lambda folder: times.append(folder) or read(folder))
    assert load_for_texts(str(tmp_path), "--model", 24).config.n_positions == 24
    args = SimpleNamespace(
        pretrained_checkpoint=str(tmp_path),
        seq_length=24,
        layers_per_ipu=None,
        embedding_serialization_factor=1,
        fp16=False,
    )
    assert load_model(args).config.n_positions == 24
    assert len(times) == 2


def test_alibi_writes_on_beyond_the_length_it_was_trained_with(tmp_path):
    torch.manual_seed(4)
    for name, changes in (("alibi", NATIVE["gpt-star"]), ("learned", {"head_dim": 12})):
        config = GPT2Config(50272, 8, 16, 2, 2, real_vocab_size=50257, **changes)
        save_pretrained(GPT2LMHeadModel(config), tmp_path / name)
    words = ("--prompt", "The river", "--input-len", 4, "--output-len", 20, "--stop-token", "<|endoftext|>")
    long = run_program("--model-name-or-path", tmp_path / "alibi", *words)
    assert long.returncode == 0 and "the context of" not in long.stderr, long.stderr
    bounded = run_program("--model-name-or-path", tmp_path / "learned", *words)
    assert bounded.returncode == 0 and "the context of 8 tokens is full" in bounded.stderr
    assert json.loads((tmp_path / "alibi" / "config.json").read_text(encoding="utf-8"))["n_positions"] == 8
