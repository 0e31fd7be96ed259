"""python -m model.convert: damaged checkpoints are refused by file and tensor, and nothing is written."""

import argparse
import collections
import errno
import functools
import io
import json
import os
import pickle
import shutil
import struct

import foreign_checkpoints as foreign
import pytest
import safetensors.torch
import tiny_checkpoint
import torch

from model import disk_space
from model.checkpoint import save_pretrained
from model.convert import conversion
from model.convert.__main__ import main


def make(kind, folder):
    """A sound checkpoint; returns IN and the file to damage."""
    if kind == "huggingface":
        save_pretrained(tiny_checkpoint.model(300), folder / "in")
        return folder / "in", folder / "in" / "model.safetensors"
    if kind == "bin":
        save_pretrained(tiny_checkpoint.model(300), folder / "in")
        tensors = safetensors.torch.load_file(folder / "in" / "model.safetensors")
        torch.save(dict(tensors), folder / "in" / "pytorch_model.bin")
        (folder / "in" / "model.safetensors").unlink()
        return folder / "in", folder / "in" / "pytorch_model.bin"
    if kind == "nanogpt":
        path = foreign.nanogpt(folder / "ckpt.pt", foreign.weights())
        return path, path
    if kind == "llm.c":
        path = foreign.llm_c(folder / "model.bin", foreign.weights())
        return path, path
    if kind == "megatron":
        foreign.megatron(folder / "in", foreign.weights(), ranks=2, stages=2)
        return folder / "in", folder / "in" / "iter_0000007" / "mp_rank_01_001" / "model_optim_rng.pt"
    if kind == "torch_dist":
        foreign.torch_dist(folder / "in", foreign.weights())
        return folder / "in", folder / "in" / "iter_0000007" / "__0_0.distcp"
    if kind == "openai":
        foreign.openai(folder / "in", foreign.weights())
        return folder / "in", folder / "in" / "model.ckpt.data-00000-of-00001"
    save_pretrained(tiny_checkpoint.model(300), folder / "source")
    (folder / "source" / "tokenizer.json").write_text(tiny_checkpoint.tokenizer().to_json(), encoding="utf-8")
    assert main([str(folder / "source"), str(folder / "m.gguf"), "--to", "gguf"]) == 0
    return folder / "m.gguf", folder / "m.gguf"


KINDS = ("huggingface", "bin", "nanogpt", "llm.c", "megatron", "torch_dist", "openai", "gguf")


def refusal(capsys, source, *flags):
    """What the program says of a checkpoint that it refuses, by both kinds of writers; it leaves nothing behind."""
    folder = source.parent
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    for to in ("huggingface", "llm.c"):
        assert main([str(source), str(folder / "out"), "--to", to, *flags]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("model.convert: ") and "Traceback" not in said.err
        assert sorted(folder.rglob("*")) == before
    return said.err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_cut_short(tmp_path, capsys, kind, share):
    source, file = make(kind, tmp_path)
    size = file.stat().st_size
    os.truncate(file, int(size * share))
    assert str(file) in refusal(capsys, source)


# What ends within a tensor, or has another byte in one, at the half of the file, and the name that it has there.
HALF = {
    "huggingface": "transformer.",
    "bin": "transformer.",
    "nanogpt": "model.transformer.",
    "llm.c": "transformer.",
    "megatron": "model.decoder.",
    "torch_dist": "transformer.",
    "openai": "model/",
    "gguf": "position_embd.weight",
}


@pytest.mark.parametrize("kind", KINDS)
def test_cut_within_a_tensor(tmp_path, capsys, kind):
    source, file = make(kind, tmp_path)
    os.truncate(file, file.stat().st_size // 2)
    said = refusal(capsys, source)
    assert f"{file}: ends within " in said and HALF[kind] in said and "opy or download it again" in said


@pytest.mark.parametrize("kind", ["bin", "nanogpt", "megatron"])
def test_an_archive_without_its_end(tmp_path, capsys, kind):
    source, file = make(kind, tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"PK\1\2") + 50])
    assert f"{file}: ends before the list of its parts" in refusal(capsys, source)


def of_two_disks(file):
    """Python's zipfile raises, in is_zipfile() too, instead of saying that such an archive is none."""
    content = bytearray(file.read_bytes())
    place = content.rindex(b"PK\6\7")  # where the end of a zip64 archive is, and in how many disks
    content[place + 16 : place + 20] = struct.pack("<I", 2)
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["bin", "nanogpt", "megatron", "torch_dist"])
def test_an_archive_of_two_disks(tmp_path, capsys, kind):
    source, file = make(kind, tmp_path)
    of_two_disks(source / "iter_0000007" / "common.pt" if kind == "torch_dist" else file)
    assert "multiple disks" in refusal(capsys, source)


def middle_of(file, name):
    """Where in a file of torch.save the bytes of a tensor are."""
    content = torch.load(file, weights_only=False)
    tensor = functools.reduce(lambda part, key: part[key], name, content)
    return file.read_bytes().index(tensor.contiguous().numpy().tobytes()) + tensor.nbytes // 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bin", ("transformer.h.1.attn.c_attn.weight",)),
        ("nanogpt", ("model", "transformer.h.1.attn.c_attn.weight")),
        ("megatron", ("model", "decoder.layers.0.self_attention.linear_qkv.weight")),
    ],
)
def test_a_byte_that_changed_in_what_torch_wrote(tmp_path, capsys, kind, name):
    source, file = make(kind, tmp_path)
    flip(file, middle_of(file, name))
    assert f"{file}: the bytes of {'.'.join(name)} are not those that were written" in refusal(capsys, source)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_byte_that_changed_in_a_part_of_torch_dist(tmp_path, capsys):
    dims = foreign.Dimensions(layers=2, heads=2, channels=16, positions=12, rows=64, tokens=64)
    source = foreign.torch_dist(tmp_path / "in", foreign.weights(dims), dims)
    file = source / "iter_0000007" / "__0_0.distcp"
    metadata = pickle.loads(file.with_name(".metadata").read_bytes())
    ((_, part),) = [(key, each) for key, each in metadata.storage_data.items() if key.fqn.endswith("linear_fc1.weight")]
    tensor = torch.load(io.BytesIO(file.read_bytes()[part.offset :][: part.length]))
    flip(file, file.read_bytes().index(tensor.numpy().tobytes()) + tensor.nbytes // 2)
    assert f"{file}: the bytes of transformer.h.0.mlp.c_fc.weight are not those" in refusal(capsys, source)


def test_what_is_not_converted_may_be_damaged_and_crcs_may_be_absent(tmp_path):
    source, file = make("nanogpt", tmp_path)
    assert main([str(source), str(tmp_path / "sound"), "--to", "llm.c"]) == 0
    content = torch.load(file, weights_only=False)
    content["optimizer"]["state"][0]["exp_avg"] = torch.full((100,), 7.5)
    torch.save(content, file)
    flip(file, middle_of(file, ("optimizer", "state", 0, "exp_avg")))
    assert main([str(source), str(tmp_path / "one"), "--to", "llm.c"]) == 0
    serialization = pytest.importorskip("torch.utils.serialization", reason="torch before 2.7 always writes CRCs")
    with serialization.config.patch("save.compute_crc32", False):
        torch.save(content, file)
    assert main([str(source), str(tmp_path / "two"), "--to", "llm.c"]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "sound").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_empty(tmp_path, capsys, kind):
    source, file = make(kind, tmp_path)
    file.write_bytes(b"")
    assert str(file) in refusal(capsys, source)


@pytest.mark.parametrize("kind", ["huggingface", "llm.c", "gguf"])  # torch's archives are read from their end
def test_another_beginning(tmp_path, capsys, kind):
    source, file = make(kind, tmp_path)
    file.write_bytes(b"\xff\xff\xff\xff" + file.read_bytes()[4:])
    assert str(file) in refusal(capsys, source)


def test_a_cut_file_says_within_which_tensor(tmp_path, capsys):
    source, file = make("llm.c", tmp_path)
    os.truncate(file, 1024 + 4 * (64 * 16 + 12 * 16) + 10)
    assert "ends within the tensor transformer.h.0.ln_1.weight" in refusal(capsys, source)
    source, file = make("gguf", tmp_path)
    os.truncate(file, file.stat().st_size - 40)
    assert "ends within the tensor output_norm.bias" in refusal(capsys, source)


def edit_torch(file, change):
    """Passes what torch.save wrote through `change`."""
    content = torch.load(file, weights_only=False)
    change(content)
    torch.save(content, file)


def drop(name):
    return lambda content: content["model"].pop(name)


def reshape(name, *shape):
    return lambda content: content["model"].update({name: torch.zeros(shape)})


LN, FC = "transformer.h.1.ln_2.bias", "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop(LN), f"missing: {LN}"),
        (reshape(FC, 64, 15), f"{FC} (15, 64) instead of (16, 64)"),
        (lambda c: c["model_args"].update(n_embd=32), "wte.weight (64, 16) instead of (64, 32)"),
        (lambda c: c["model_args"].update(n_layer=3), "layers: 2, and n_layer is 3"),
        (lambda c: c["model_args"].update(n_layer=10**9), "layers: 2, and n_layer is 1000000000"),
        (lambda c: c["model_args"].update(n_embd=2**62, n_head=1), "too large"),
        (lambda c: c["model_args"].update(n_head=5), "n_embd 16 is not divisible by n_head 5"),
        (lambda c: c["model_args"].update(vocab_size="many"), "vocab_size must be a positive integer"),
        (lambda c: c["model_args"].pop("n_head"), "model_args have no n_head"),
        (lambda c: c["model"].update({"lm_head.weight": torch.zeros(64, 16)}), "head is tied, is the file damaged?"),
        (lambda c: c.update(model=[1, 2]), "not a mapping from names to tensors"),
        (lambda c: c["model"].update({FC: torch.zeros(64, 16).long()}), f"not floating point: {FC}"),
        (lambda c: c["model"].update({"transformer.rotary.freqs": torch.zeros(3)}), "unexpected: transformer.rotary"),
    ],
)
def test_nanogpt_with_other_contents(tmp_path, capsys, change, told):
    source, file = make("nanogpt", tmp_path)
    edit_torch(file, change)
    text = refusal(capsys, source)
    assert told in text and str(file) in text


@pytest.mark.parametrize(
    ("position", "value", "told"),
    [
        (1, 2, "version 2"),
        (4, 3, "ends within the tensor"),
        (4, 2**31 - 1, "layers"),
        (6, 8, "bytes after its last tensor"),
        (5, 3, "n_head 3"),
        (3, 65, "exceeds vocab_size 64"),
        (2, -1, "n_positions"),
    ],
)
def test_llm_c_with_another_header(tmp_path, capsys, position, value, told):
    source, file = make("llm.c", tmp_path)
    content = bytearray(file.read_bytes())
    struct.pack_into("<i", content, 4 * position, value)
    file.write_bytes(content)
    text = refusal(capsys, source)
    assert told in text and str(file) in text


def test_the_optimizers_state_of_llm_c_is_named(tmp_path, capsys):
    (tmp_path / "state.bin").write_bytes(struct.pack("<256i", 20240527, *[1] * 255))
    assert "the weights are in the model_*.bin" in refusal(capsys, tmp_path / "state.bin")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(swiglu=True), "swiglu True"),
        (dict(position_embedding_type="rope"), "position_embedding_type 'rope'"),
        (dict(num_layers=4), "layers: 2, and n_layer is 4"),
        (dict(hidden_size=None), "args have no hidden_size"),
        (dict(padded_vocab_size=128), "wte.weight (64, 16) instead of (128, 16)"),
        (dict(num_attention_heads=1), "1 heads are not shared by 2 ranks"),
        (dict(kv_channels=3), "kv_channels 3"),
    ],
)
def test_megatron_of_another_kind(tmp_path, capsys, changes, told):
    foreign.megatron(tmp_path / "in", foreign.weights(), ranks=2, **changes)
    text = refusal(capsys, tmp_path / "in")
    assert told in text and str(tmp_path / "in") in text


def test_a_piece_of_megatrons_that_is_missing(tmp_path, capsys):
    source, file = make("megatron", tmp_path)
    shutil.rmtree(file.parent)
    assert "mp_rank_01_001 is missing" in refusal(capsys, source)
    (source / "latest_checkpointed_iteration.txt").write_text("8")
    assert "names '8', and there is no folder iter_0000008" in refusal(capsys, source)


def test_pieces_of_megatrons_that_do_not_belong_together(tmp_path, capsys):
    source, file = make("megatron", tmp_path)
    edit_torch(file, lambda c: c["model"]["decoder.final_layernorm.bias"].add_(1))
    assert "transformer.ln_f.bias differs from rank to rank" in refusal(capsys, source)
    name = "decoder.layers.0.mlp.linear_fc1.bias"
    edit_torch(file, lambda c: c["model"].update({name: torch.zeros(3)}))
    assert "transformer.h.1.mlp.c_fc.bias has other shapes from rank to rank" in refusal(capsys, source)


def test_a_megatron_without_arguments_takes_a_config(tmp_path, capsys):
    foreign.megatron(tmp_path / "in", foreign.weights())
    file = tmp_path / "in" / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt"
    edit_torch(file, lambda c: c.pop("args"))
    assert "name a config.json of the model with --config" in refusal(capsys, tmp_path / "in")
    values = dict(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2)
    (tmp_path / "config.json").write_text(json.dumps(values))
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--to", "huggingface"]
    assert main([*words, "--config", str(tmp_path / "config.json")]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["vocab_size"], written["activation_function"]) == (50, "gelu_new")
    assert main([*words, "--config", str(tmp_path / "config.json"), "--activation", "gelu", "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["activation_function"] == "gelu"


def test_a_config_with_a_misspelt_field_is_refused(tmp_path, capsys):
    source, _ = make("huggingface", tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps(dict(vocab_size=50, n_positions=12, n_embd=16, n_layers=2)))
    said = refusal(capsys, source, "--config", str(tmp_path / "mine.json"))
    assert "mine.json: n_layers: the model has no such field; did you mean n_layer?" in said


@pytest.mark.parametrize(
    ("kind", "flag", "program"),
    [
        ("nanogpt", "--config", "nanoGPT"),
        ("llm.c", "--config", "llm.c"),
        ("gguf", "--config", "llama.cpp"),
        ("openai", "--config", "OpenAI"),
        ("openai", "--activation", "OpenAI"),
        ("huggingface", "--activation", "Hugging Face"),
        ("bin", "--activation", "Hugging Face"),
    ],
)
def test_a_flag_that_says_nothing_of_a_program_is_refused(tmp_path, capsys, kind, flag, program):
    source, _ = make(kind, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dict(vocab_size=50, n_positions=12, n_embd=16)))
    said = refusal(capsys, source, flag, str(tmp_path / "config.json") if flag == "--config" else "relu")
    assert f"{flag}: {source}" in said and f"is of {program}" in said


def test_a_padding_is_not_asked_of_a_format_without_one(tmp_path, capsys):
    source, _ = make("nanogpt", tmp_path)
    for to in ("huggingface", "nanogpt", "gguf"):
        assert main([str(source), str(tmp_path / "out"), "--to", to, "--vocab-multiple", "64"]) == 2
        assert f"--vocab-multiple: {to} has no padding" in capsys.readouterr().err
    for to, words in (("llm.c", ["--vocab-multiple", "64"]), ("megatron", [])):
        assert main([str(source), str(tmp_path / to), "--to", to, *words]) == 0
    assert struct.unpack("<8i", (tmp_path / "llm.c").read_bytes()[:32])[7] == 64
    piece = next((tmp_path / "megatron").rglob("model_optim_rng.pt"))
    assert torch.load(piece, weights_only=False)["args"].make_vocab_size_divisible_by == 128


def test_a_tokenizer_is_not_given_to_a_format_without_one(tmp_path, capsys):
    source, _ = make("huggingface", tmp_path)
    (tmp_path / "tokenizer.json").write_text(tiny_checkpoint.tokenizer().to_json(), encoding="utf-8")
    words = ["--tokenizer", str(tmp_path / "tokenizer.json")]
    for to in ("nanogpt", "llm.c", "megatron"):
        assert main([str(source), str(tmp_path / "out"), "--to", to, *words]) == 2
        assert f"--tokenizer: {to} has no tokenizer in it (huggingface and gguf have)" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    for to in ("huggingface", "gguf"):
        assert main([str(source), str(tmp_path / to), "--to", to, *words]) == 0
    assert (tmp_path / "huggingface" / "tokenizer.json").is_file()


def test_an_older_torch_is_named(tmp_path, capsys, monkeypatch):
    """It reads what holds nothing but tensors, and says of the rest what it takes."""
    foreign.megatron(tmp_path / "in", foreign.weights())
    source, file = tmp_path / "in", tmp_path / "in" / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt"
    monkeypatch.delattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    said = refusal(capsys, source)
    assert f"{file}: " in said and "takes torch 2.6" in said and "is the file complete" not in said
    content = torch.load(file, weights_only=False)
    torch.save({"model": content["model"], "checkpoint_version": content["checkpoint_version"]}, file)
    values = dict(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2)
    (tmp_path / "config.json").write_text(json.dumps(values))
    words = [str(source), str(tmp_path / "out"), "--to", "huggingface", "--config", str(tmp_path / "config.json")]
    assert main(words) == 0


def test_a_disk_without_room_for_copies(tmp_path, capsys, monkeypatch):
    source, _ = make("huggingface", tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = sorted(tmp_path.rglob("*"))
    assert main([str(source), str(tmp_path / "ckpt.pt"), "--to", "nanogpt"]) == 2
    assert f"{tmp_path / 'ckpt.pt'}: {os.strerror(errno.ENOSPC)}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_index_of_openais(tmp_path, capsys):
    source, file = make("openai", tmp_path)
    index, content = source / "model.ckpt.index", (source / "model.ckpt.index").read_bytes()
    for damaged in (content[:-1], content[len(content) // 2 :], b"", content.replace(b"c_fc", b"c_fd", 1)):
        index.write_bytes(damaged)
        assert str(index) in refusal(capsys, source)
    index.write_bytes(content)
    sizes = json.loads((source / "hparams.json").read_text())
    (source / "hparams.json").write_text(json.dumps({**sizes, "n_ctx": 13}))
    text = refusal(capsys, source)
    assert "hparams.json" in text and "wpe.weight (12, 16) instead of (13, 16)" in text
    (source / "hparams.json").write_text("{}")
    assert "has no n_vocab" in refusal(capsys, source)
    (source / "hparams.json").unlink()
    assert "hparams.json: cannot be read" in refusal(capsys, source)
    file.unlink()
    (source / "hparams.json").write_text(json.dumps(sizes))
    assert f"{file}: is missing" in refusal(capsys, source)


def test_a_byte_that_changed_in_a_tensor_of_openais(tmp_path, capsys):
    source, file = make("openai", tmp_path)
    flip(file, file.stat().st_size // 2)
    assert f"{file}: the bytes of model/h" in refusal(capsys, source)


def test_metadata_of_torch_dist(tmp_path, capsys):
    source, file = make("torch_dist", tmp_path)
    metadata = file.with_name(".metadata")
    content = metadata.read_bytes()
    metadata.write_bytes(content[: len(content) // 2])
    assert str(metadata) in refusal(capsys, source)
    found = pickle.loads(content)
    name = "decoder.layers.mlp.linear_fc2.bias"
    part = found.state_dict_metadata[name].chunks[0]
    found.state_dict_metadata[name].chunks[0] = type(part)(part.offsets, torch.Size((1, 16)))
    metadata.write_bytes(pickle.dumps(found))
    assert "mlp.c_proj.bias" in refusal(capsys, source)
    del found.state_dict_metadata[name]
    metadata.write_bytes(pickle.dumps(found))
    assert "missing: transformer.h.0.mlp.c_proj.bias" in refusal(capsys, source)
    metadata.write_bytes(pickle.dumps({"state_dict_metadata": Harmless()}))
    assert "may run code" in refusal(capsys, source) and ran == []
    metadata.write_bytes(content)
    file.unlink()
    assert f"{file}: is missing" in refusal(capsys, source)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"gpt2", b"lama", "'lama', not 'gpt2'"),
        (b"gpt2.block_count", b"gpt2.block_c0unt", "has no gpt2.block_count"),
        (b"blk.1.ffn_up.bias", b"blk.1.ffn_up.bios", "missing: transformer.h.1.mlp.c_fc.bias"),
        (b"blk.1.ffn_up.bias", b"blk.1.ffn_up.bi\x80s", "unexpected: transformer.h.1.mlp.c_fc.bi\\x80s"),
        (b"blk.1.ffn_up.weight\2\0\0\0\x10", b"blk.1.ffn_up.weight\2\0\0\0\x20", "(32, 64) instead of (16, 64)"),
        (b"blk.1.ffn_up.weight\2\0\0\0", b"blk.1.ffn_up.weight\xff\xff\xff\xff", "dimensions"),
        (b"tokenizer.ggml.tokens\x09\0\0\0", b"tokenizer.ggml.tokens\x63\0\0\0", "unknown type 99"),
        (b"<|endoftext|>", b"<|endoft\xffxt|>", "'<|endoft\\udcffxt|>', which is no UTF-8"),
    ],
)
def test_gguf_with_another_header(tmp_path, capsys, old, new, told):
    source, file = make("gguf", tmp_path)
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    text = refusal(capsys, source)
    assert told in text and str(file) in text


def test_a_kind_of_quantization_that_is_not_read(tmp_path, capsys):
    source, file = make("gguf", tmp_path)
    content = file.read_bytes()
    place = content.index(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight") + 4 + 16
    file.write_bytes(content[:place] + struct.pack("<I", 12) + content[place + 4 :])
    text = refusal(capsys, source)
    assert "blk.1.ffn_up.weight is of the type Q4_K" in text and "convert from such a file" in text


def test_a_shard_that_is_missing(tmp_path, capsys):
    source, file = make("huggingface", tmp_path)
    tensors = safetensors.torch.load_file(file)
    names = sorted(tensors)
    for number, part in enumerate((names[:9], names[9:])):
        safetensors.torch.save_file({name: tensors[name] for name in part}, source / f"model-{number}.safetensors")
    index = {name: f"model-{int(at >= 9)}.safetensors" for at, name in enumerate(names)}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    file.unlink()
    assert main([str(source), str(tmp_path / "whole"), "--to", "huggingface"]) == 0
    (source / "model-1.safetensors").unlink()
    assert str(source / "model-1.safetensors") in refusal(capsys, source)


def test_arguments_of_torch_dist_that_are_of_another_model(tmp_path, capsys):
    foreign.torch_dist(tmp_path / "in", foreign.weights(), max_position_embeddings=13)
    said = refusal(capsys, tmp_path / "in")
    assert str(tmp_path / "in") in said and "its args" in said and "wpe.weight (12, 16) instead of (13, 16)" in said


def test_shapes_that_differ_from_the_configuration_name_both(tmp_path, capsys):
    source, file = make("huggingface", tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "n_inner": 24}))
    text = refusal(capsys, source)
    assert str(file) in text and "config.json" in text and "(16, 64) instead of (16, 24)" in text


# Nothing is unpickled with code

ran = []


def run(word):
    """Harmless, but it is code that a file would name."""
    ran.append(word)


class Harmless:
    def __reduce__(self):
        return run, ("ran",)


@pytest.mark.parametrize("kind", ["bin", "nanogpt", "megatron", "torch_dist"])
@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys, kind, old):
    source, file = make(kind, tmp_path)
    file = file.with_name("common.pt") if kind == "torch_dist" else file
    content = torch.load(file, weights_only=False)
    content["config"] = Harmless()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    text = refusal(capsys, source)
    assert str(file) in text and "may run code" in text and ran == []
    pickle.loads(pickle.dumps(Harmless()))
    assert ran.pop() == "ran"  # it would have


def test_a_pickle_that_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Harmless(), 2))
    assert str(tmp_path / "a.pt") in refusal(capsys, tmp_path / "a.pt") and ran == []
    torch.save(collections.OrderedDict(a=torch.zeros(2)), tmp_path / "a.pt")
    assert "no model and model_args in it" in refusal(capsys, tmp_path / "a.pt")


# IN and OUT


def test_paths_that_cannot_be(tmp_path, capsys):
    source, file = make("huggingface", tmp_path)
    assert "does not exist" in refusal(capsys, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint that is known" in refusal(capsys, tmp_path / "empty")
    assert "give the folder that has config.json" in refusal(capsys, file)
    for output, to, told in (
        (source, "huggingface", "is IN as well"),
        (tmp_path, "huggingface", "has IN in it"),
        (source / "config.json", "huggingface", "is a file, and a folder is to be written"),
        (tmp_path / "empty", "gguf", "is a folder, and a file is to be written"),
    ):
        assert main([str(source), str(output), "--to", to, "--overwrite"]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(source), "--to", "ggml", "--real-vocab-size", "many"])
    said = capsys.readouterr().err
    assert "OUT: is needed" in said and "must be one of huggingface" in said and "'many' must be a whole" in said


def test_without_room_nothing_is_begun(tmp_path, capsys, monkeypatch):
    source, _ = make("huggingface", tmp_path)
    usage = argparse.Namespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage)
    text = refusal(capsys, source)
    assert f"{tmp_path / 'out'}: takes " in text and "1,000 are free there" in text


@pytest.mark.parametrize("to", ["huggingface", "nanogpt", "llm.c", "megatron", "gguf"])
def test_what_fails_half_way_leaves_the_old(tmp_path, capsys, monkeypatch, to):
    source, _ = make("gguf", tmp_path)
    output = tmp_path / "out"
    assert main([str(source), str(output), "--to", to]) == 0
    before = {path: path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))}
    opened = conversion.open_source

    def damaged(*arguments):
        """The last tensor cannot be read."""
        found = opened(*arguments)
        last = list(found.weights)[-1]

        def fail():
            raise ValueError(f"{source}: {last} cannot be read")

        found.weights[last] = found.weights[last]._replace(read=fail)
        return found

    monkeypatch.setattr(conversion, "open_source", damaged)
    assert main([str(source), str(output), "--to", to, "--overwrite"]) == 2
    assert "transformer.ln_f.bias cannot be read" in capsys.readouterr().err
    assert {path: path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))} == before


def test_values_that_do_not_fit_are_named(tmp_path, capsys):
    tensors = foreign.weights()
    tensors["h.1.mlp.c_proj.weight"][3, 4] = 1e5
    foreign.llm_c(tmp_path / "model.bin", tensors)
    words = [str(tmp_path / "model.bin"), str(tmp_path / "out"), "--to", "huggingface", "--dtype", "float16"]
    assert main(words) == 2 and not (tmp_path / "out").exists()
    assert "transformer.h.1.mlp.c_proj.weight: has values beyond 65504" in capsys.readouterr().err
