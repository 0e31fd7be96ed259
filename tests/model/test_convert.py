"""python -m model.convert: what other programs write computes what it did there, and goes back bit for bit."""

import dataclasses
import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import safetensors.torch
import tiny_checkpoint
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint import load_pretrained, save_pretrained
from model.config import GPT2Config
from model.convert.__main__ import FORMATS, main
from model.gpt2 import GPT2LMHeadModel
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [49, 0, 2, 7, 1, 8, 2, 8]])
OUTPUTS = {"huggingface": "folder", "nanogpt": "ckpt.pt", "llm.c": "model.bin", "megatron": "pieces", "gguf": "m.gguf"}


def convert(source, output, to, *flags):
    assert main([str(source), str(output), "--to", to, *flags]) == 0
    return output


def stored(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(one, other):
    """Names, types, shapes and every bit."""
    pairs = [(one[name], other[name]) for name in one]
    exact = all(a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)
    return one.keys() == other.keys() and exact


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint with a tokenizer of 300 entries."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint.write(folder)
    return folder / "checkpoint"


# In: what the other program computes


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(tmp_path, prefix, bias):
    tensors = foreign.weights(bias=bias)
    foreign.nanogpt(tmp_path / "ckpt.pt", tensors, bias=bias, prefix=prefix)
    model = load_pretrained(convert(tmp_path / "ckpt.pt", tmp_path / "ours", "huggingface"))
    expected = foreign.logits(tensors, IDS, 2, "none")
    torch.testing.assert_close(model.double()(IDS), expected, rtol=0, atol=1e-9)
    assert (model.config.activation_function, model.config.attn_pdrop) == ("gelu", 0.1)


def test_nanogpt_folder_of_the_time_before_exact_gelu(tmp_path):
    tensors = foreign.weights()
    foreign.nanogpt(tmp_path / "ckpt.pt", tensors)
    model = load_pretrained(convert(tmp_path, tmp_path / "ours", "huggingface", "--activation", "gelu_new"))
    torch.testing.assert_close(model.double()(IDS), foreign.logits(tensors, IDS, 2, "tanh"), rtol=0, atol=1e-9)


def test_padding_to_50304_rows_is_dropped(tmp_path, capsys):
    dims = foreign.Dimensions(layers=1, heads=1, channels=4, positions=4, rows=50304, tokens=50257)
    tensors = foreign.weights(dims)
    foreign.nanogpt(tmp_path / "ckpt.pt", tensors, dims)
    ours = stored(convert(tmp_path / "ckpt.pt", tmp_path / "ours", "huggingface"))
    assert torch.equal(ours["transformer.wte.weight"], tensors["wte.weight"][:50257])
    assert "50257 of 50304 rows" in capsys.readouterr().out
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (50257, 50256)
    flags = ("--real-vocab-size", "50304")
    whole = stored(convert(tmp_path / "ckpt.pt", tmp_path / "whole", "huggingface", *flags))
    assert torch.equal(whole["transformer.wte.weight"], tensors["wte.weight"])


@pytest.mark.parametrize("version", [3, 5])
def test_llm_c(tmp_path, version):
    dtype = {3: torch.float32, 5: torch.bfloat16}[version]
    tensors = foreign.weights(dtype=dtype)
    foreign.llm_c(tmp_path / "model.bin", tensors, version=version)
    model = load_pretrained(convert(tmp_path / "model.bin", tmp_path / "ours", "huggingface"))
    assert model.lm_head.weight.dtype == dtype and model.config.real_vocab_size == 50
    expected = foreign.logits(tensors, IDS, 2, "tanh")[..., :50]
    torch.testing.assert_close(model.double()(IDS)[..., :50], expected, rtol=0, atol=1e-9)


def test_openai(tmp_path):
    tensors = foreign.weights()
    foreign.openai(tmp_path / "124M", tensors)
    model = load_pretrained(convert(tmp_path / "124M", tmp_path / "ours", "huggingface"))
    torch.testing.assert_close(model.double()(IDS), foreign.logits(tensors, IDS, 2, "tanh"), rtol=0, atol=1e-9)


@pytest.mark.parametrize("names", [foreign.CORE, foreign.FUSED, foreign.LEGACY], ids=["core", "fused", "legacy"])
@pytest.mark.parametrize(("ranks", "stages"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_megatron(tmp_path, names, ranks, stages):
    tensors = foreign.weights()
    foreign.megatron(tmp_path / "run", tensors, ranks=ranks, stages=stages, names=names)
    model = load_pretrained(convert(tmp_path / "run", tmp_path / "ours", "huggingface"))
    expected = foreign.logits(tensors, IDS, 2, "tanh")[..., :50]
    torch.testing.assert_close(model.double()(IDS)[..., :50], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("version", [0, 1.0, 2.0])
def test_the_order_of_megatrons_fused_projection_by_version(tmp_path, version):
    tensors = foreign.weights()
    foreign.megatron(tmp_path / "run", tensors, ranks=2, version=version, names=foreign.LEGACY)
    model = load_pretrained(convert(tmp_path / "run" / "iter_0000007", tmp_path / "ours", "huggingface"))
    expected = foreign.logits(tensors, IDS, 2, "tanh")[..., :50]
    torch.testing.assert_close(model.double()(IDS)[..., :50], expected, rtol=0, atol=1e-9)


def test_megatron_of_the_format_torch_dist(tmp_path):
    tensors = foreign.weights()
    foreign.torch_dist(tmp_path / "run", tensors)
    model = load_pretrained(convert(tmp_path / "run", tmp_path / "ours", "huggingface"))
    expected = foreign.logits(tensors, IDS, 2, "tanh")[..., :50]
    torch.testing.assert_close(model.double()(IDS)[..., :50], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["sharded", "bin", "sharded bin"])
def test_hugging_face_in_every_form(tmp_path, form):
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=49, eos_token_id=49
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="6KB" if "sharded" in form else "1GB")
    if "bin" in form:  # which transformers no longer writes
        for file in sorted((tmp_path / "theirs").glob("*.safetensors")):
            torch.save(
                dict(safetensors.torch.load_file(file)),
                file.with_name(file.name.replace("model", "pytorch_model", 1)).with_suffix(".bin"),
            )
            file.unlink()
        for index in (tmp_path / "theirs").glob("*.index.json"):
            text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            (tmp_path / "theirs" / "pytorch_model.bin.index.json").write_text(text)
            index.unlink()
    convert(tmp_path / "theirs", tmp_path / "ours", "huggingface")
    loaded, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded.eval()(IDS).logits, theirs(IDS).logits)


def test_of_a_runs_folder_the_newest_checkpoint(tmp_path):
    for age, seed in ((0, 1), (-100, 2)):
        folder = tmp_path / "run" / f"step_{seed}"
        save_pretrained(tiny_checkpoint.model(300, seed=seed), folder)
        for file in folder.iterdir():
            os.utime(file, (1_700_000_000 + age, 1_700_000_000 + age))
    convert(tmp_path / "run", tmp_path / "ours", "huggingface")
    assert same(stored(tmp_path / "run" / "step_1"), stored(tmp_path / "ours"))


def test_a_save_that_is_under_way_is_no_checkpoint(tmp_path):
    for name, seed, age in (("step_1", 1, 0), (".step_2.new", 2, 100), (".step_1.old", 3, 200)):
        save_pretrained(tiny_checkpoint.model(300, seed=seed), tmp_path / "run" / name)
        os.utime(tmp_path / "run" / name / "config.json", (1_700_000_000 + age, 1_700_000_000 + age))
    convert(tmp_path / "run", tmp_path / "ours", "huggingface")
    assert same(stored(tmp_path / "run" / "step_1"), stored(tmp_path / "ours"))
    with pytest.raises(ValueError, match=f"the latest is {tmp_path / 'run' / 'step_1'}"):
        load_pretrained(tmp_path / "run")


# Out: what the other program reads


def test_to_nanogpt(tiny, tmp_path):
    content = torch.load(convert(tiny, tmp_path / "ckpt.pt", "nanogpt"), weights_only=True)
    args = content["model_args"]
    model = {name.replace("transformer.", ""): tensor for name, tensor in content["model"].items()}
    assert model.pop("lm_head.weight").data_ptr() == model["wte.weight"].data_ptr()
    assert args == dict(n_layer=2, n_head=2, n_embd=16, block_size=32, bias=True, vocab_size=300, dropout=0.1)
    ours = load_pretrained(tiny).double()
    expected = foreign.logits(model, IDS, args["n_head"], "tanh")  # the model's own; that nanoGPT's is exact is told
    torch.testing.assert_close(ours(IDS)[..., :300], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_to_llm_c(tiny, tmp_path, dtype):
    output = convert(tiny, tmp_path / "model.bin", "llm.c", "--dtype", dtype)
    numbers, values = foreign.read_llm_c(output)
    assert numbers == (20240326, {"float32": 3, "bfloat16": 5}[dtype], 32, 300, 2, 2, 16, 384)
    dims = foreign.Dimensions(layers=2, heads=2, channels=16, positions=32, rows=384, tokens=300)
    tensors = foreign.weights(dims)  # for the shapes
    expected = foreign.llm_c(tmp_path / "expected.bin", tensors, dims, numbers[1])
    assert expected.stat().st_size == output.stat().st_size
    ours = stored(tiny)
    wte = values[: 384 * 16].view(384, 16)
    assert torch.equal(wte[:300], ours["transformer.wte.weight"].to(getattr(torch, dtype)).float())
    assert not wte[300:].any()
    place = 384 * 16 + 32 * 16 + 2 * (2 * 16)  # wte, wpe, weights and biases of ln_1 of two layers
    second = values[place + 48 * 16 : place + 2 * 48 * 16].view(48, 16)  # c_attn of layer 1, (3C, C)
    matrix = ours["transformer.h.1.attn.c_attn.weight"].T
    assert torch.equal(second, matrix.to(getattr(torch, dtype)).float())


def test_to_megatron(tiny, tmp_path):
    convert(tiny, tmp_path / "run", "megatron")
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == "release\n"
    file = tmp_path / "run" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    args, ours = content["args"], stored(tiny)
    assert (args.padded_vocab_size, args.num_layers, args.bias_gelu_fusion) == (384, 2, True)
    wte = content["model"]["embedding.word_embeddings.weight"]
    assert torch.equal(wte[:300], ours["transformer.wte.weight"]) and torch.equal(wte[383], wte[299])
    theirs = content["model"]["decoder.layers.1.self_attention.linear_qkv.weight"]
    assert torch.equal(theirs, foreign.fuse(ours["transformer.h.1.attn.c_attn.weight"].T.contiguous(), 2, 3))


def test_gguf_holds_model_and_tokenizer(tiny, tmp_path):
    content = convert(tiny, tmp_path / "m.gguf", "gguf").read_bytes()
    assert struct.unpack("<4sIQ", content[:16]) == (b"GGUF", 3, 28)
    convert(tmp_path / "m.gguf", tmp_path / "back", "huggingface")
    bpe, back = Tokenizer.from_folder(tiny), Tokenizer.from_folder(tmp_path / "back")
    text = "The river isn't wet: 42 bridges,\n\n and <|endoftext|> naïve"
    assert back.encode(text) == bpe.encode(text) and back.eot_id == bpe.eot_id
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert theirs("The river isn't wet: 42 bridges")["input_ids"] == bpe.encode("The river isn't wet: 42 bridges")


@pytest.mark.parametrize("to", ["gguf", "megatron"])
def test_a_head_of_its_own_stays_one(tmp_path, to):
    torch.manual_seed(1)
    config = dataclasses.replace(tiny_checkpoint.model(300).config, tie_word_embeddings=False)
    save_pretrained(GPT2LMHeadModel(config), tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")
    convert(tmp_path / "ours", tmp_path / OUTPUTS[to], to)
    back = convert(tmp_path / OUTPUTS[to], tmp_path / "back", "huggingface")
    assert same(stored(back), stored(tmp_path / "ours")) and "lm_head.weight" in stored(back)
    ids = torch.tensor([[3, 1, 4]])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(back)(ids).logits
    torch.testing.assert_close(theirs, load_pretrained(tmp_path / "ours")(ids)[..., :300], rtol=1e-5, atol=1e-5)


def tiny_tokenizer():
    return tiny_checkpoint.tokenizer().to_json()


def test_q8_0_rounds_to_the_nearest_step_of_its_block(tmp_path):
    torch.manual_seed(0)
    save_pretrained(GPT2LMHeadModel(GPT2Config(304, 8, 32, 1, 2, real_vocab_size=300)), tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")
    convert(tmp_path / "ours", tmp_path / "m.gguf", "gguf", "--dtype", "q8_0")
    back, ours = stored(convert(tmp_path / "m.gguf", tmp_path / "back", "huggingface")), stored(tmp_path / "ours")
    for name, tensor in ours.items():
        if tensor.dim() == 1 or ".wpe." in name:
            assert torch.equal(back[name], tensor)
            continue
        turned = tensor if ".wte." in name else tensor.T
        blocks = turned.reshape(-1, 32)
        steps = blocks.abs().amax(1, keepdim=True) / 127
        difference = (back[name] if ".wte." in name else back[name].T).reshape(-1, 32) - blocks
        assert (difference.abs() <= 0.5 * steps + blocks.abs() * 2**-10 + 1e-7).all()


# There and back


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_there_and_back_is_exact(tmp_path, to, dtype):
    model = tiny_checkpoint.model(300)
    save_pretrained(model.to(dtype), tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")
    there = convert(tmp_path / "ours", tmp_path / OUTPUTS[to], to)
    flags = ("--dtype", str(dtype).split(".")[-1])  # where a format lacks it, a wider one holds it exactly
    convert(there, tmp_path / "back", "huggingface", *flags)
    assert same(stored(tmp_path / "ours"), stored(tmp_path / "back"))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_small_model_survives_every_format(tmp_path_factory, data):
    heads, layers = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    config = GPT2Config(
        vocab_size=(tokens := data.draw(st.integers(300, 400))),
        n_positions=data.draw(st.integers(1, 9)),
        n_embd=heads * data.draw(st.integers(1, 4)),
        n_layer=layers,
        n_head=heads,
        real_vocab_size=tokens,
        activation_function=data.draw(st.sampled_from(("gelu", "gelu_new"))),
        bos_token_id=None,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("any")
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.normal_()
    save_pretrained(model, folder / "0")
    (folder / "0" / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")
    at, kinds = folder / "0", ("--real-vocab-size", str(tokens))
    tokenizer = ("--tokenizer", str(folder / "0" / "tokenizer.json"))  # which some formats lose
    for number, to in enumerate(data.draw(st.permutations(FORMATS)), start=1):
        more = tokenizer if to in ("huggingface", "gguf") else ()
        at = convert(at, folder / f"{number}-{OUTPUTS[to]}", to, *kinds, *more)
    convert(at, folder / "back", "huggingface", *kinds)
    assert same(stored(folder / "0"), stored(folder / "back"))


# The command


def test_the_command_by_itself(tiny, tmp_path):
    command = [sys.executable, "-m", "model.convert", str(tiny), str(tmp_path / "new" / "m.gguf"), "--to", "gguf"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "11,904 parameters) -> " in done.stdout and done.stderr == ""


@pytest.mark.parametrize("missing", ["the call", "its support"])
def test_without_a_call_that_reserves_room(missing, tiny, tmp_path, monkeypatch):
    expected = convert(tiny, tmp_path / "expected", "nanogpt")

    def refused(*arguments):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if missing == "the call":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused)
    found = convert(tiny, tmp_path / "ckpt.pt", "nanogpt")
    assert found.read_bytes() == expected.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"expected", "ckpt.pt"}


def test_what_is_there_is_replaced_if_asked(tiny, tmp_path, capsys):
    words = [str(tiny), str(tmp_path / "m.gguf"), "--to", "gguf"]
    (tmp_path / "m.gguf").write_text("precious")
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "m.gguf").read_text() == "precious"
    assert main([*words, "--overwrite"]) == 0 and (tmp_path / "m.gguf").read_bytes()[:4] == b"GGUF"
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_gelu_that_differs_is_told(tiny, tmp_path, capsys):
    convert(tiny, tmp_path / "ckpt.pt", "nanogpt")
    assert "nanoGPT computes GELU exactly" in capsys.readouterr().out
    convert(tiny, tmp_path / "model.bin", "llm.c")
    assert "GELU" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "to", "told"),
    [
        ({"activation_function": "relu"}, "llm.c", "no activation_function 'relu'"),
        ({"activation_function": "relu"}, "gguf", "no activation_function 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "nanogpt", "no layer_norm_epsilon 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "megatron", "no scale_attn_by_inverse_layer_idx True"),
        ({"n_inner": 24}, "llm.c", "no n_inner 24"),
    ],
)
def test_what_another_program_would_compute_otherwise_is_refused(tmp_path, capsys, changes, to, told):
    config = dataclasses.replace(tiny_checkpoint.model(300).config, **changes)
    save_pretrained(GPT2LMHeadModel(config), tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")
    assert main([str(tmp_path / "ours"), str(tmp_path / OUTPUTS[to]), "--to", to]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / OUTPUTS[to]).exists()


@pytest.mark.parametrize(
    "changes", [{"norm_position": "post", "position_embedding": "alibi"}, {"share_layers": True, "embedding_size": 4}]
)
@pytest.mark.parametrize("separate", [False, True])
def test_a_variant_stays_one_and_other_formats_refuse_it_by_name(tmp_path, capsys, changes, separate):
    """Of a shared block and of a head of its own as well, in another dtype and back."""
    torch.manual_seed(5)
    tokenizer = tiny_checkpoint.tokenizer()
    rows = tokenizer.vocab_size
    config = GPT2Config(rows + 4, 12, 12, 2, 3, bos_token_id=0, eos_token_id=0, real_vocab_size=rows, **changes)
    save_pretrained(GPT2LMHeadModel(dataclasses.replace(config, tie_word_embeddings=not separate)), tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    again = convert(tmp_path / "ours", tmp_path / "again", "huggingface")
    assert same(stored(again), stored(tmp_path / "ours"))
    assert load_pretrained(again).config == load_pretrained(tmp_path / "ours").config
    with pytest.raises(KeyError, match="gpt2_variant"):
        transformers.GPT2LMHeadModel.from_pretrained(again)
    capsys.readouterr()
    for to, name in OUTPUTS.items():
        if to != "huggingface":
            assert main([str(tmp_path / "ours"), str(tmp_path / name), "--to", to]) == 2
            told = capsys.readouterr().err
            assert all(f"{key} {value!r}" in told for key, value in changes.items()), told
            assert not (tmp_path / name).exists()
