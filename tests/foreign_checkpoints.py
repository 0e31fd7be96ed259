"""Checkpoints as other programs write them, made from the formats' descriptions and not by model/convert: a model in
plain torch with matrices (out, in), and files of nanoGPT, llm.c and Megatron-LM with its weights."""

import argparse
import json
import math
import os
import struct
import warnings

import crc32c
import torch
import torch.distributed.checkpoint
import torch.nn.functional as F

IN_BLOCK = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


class Dimensions(argparse.Namespace):
    """layers, heads, channels, positions, rows (of the vocabulary), tokens."""


SMALL = Dimensions(layers=2, heads=2, channels=16, positions=12, rows=64, tokens=50)


def weights(dims=SMALL, bias=True, seed=0, dtype=torch.float32):
    """name -> tensor, matrices (out, in), names as in transformers without "transformer."."""
    torch.manual_seed(seed)
    C = dims.channels
    out_in = {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
    found = {"wte.weight": torch.randn(dims.rows, C) * 0.3, "wpe.weight": torch.randn(dims.positions, C) * 0.3}
    for layer in range(dims.layers):
        for part in IN_BLOCK:
            shape = out_in.get(part, (C,))
            tensor = torch.randn(shape) * 0.3 + (1 if part.startswith("ln") else 0)
            found[f"h.{layer}.{part}.weight"] = tensor
            if bias:
                found[f"h.{layer}.{part}.bias"] = torch.randn(shape[0]) * 0.3
    found["ln_f.weight"] = 1 + torch.randn(C) * 0.3
    if bias:
        found["ln_f.bias"] = torch.randn(C) * 0.3
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def logits(tensors, ids, heads, gelu):
    """(B, T) -> (B, T, rows) by the paper, in float64. `gelu`: "none" is exact, "tanh" the approximation."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    C, T = w["wte.weight"].shape[1], ids.shape[1]

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["wte.weight"][ids] + w["wpe.weight"][:T]
    for layer in range(sum(name.endswith("ln_1.weight") for name in w)):
        block = f"h.{layer}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(C, 2)
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(2, 3) / math.sqrt(C // heads)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{block}.attn.c_proj")
        inner = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate=gelu)
        x = x + linear(inner, f"{block}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


# nanoGPT


def nanogpt(path, tensors, dims=SMALL, bias=True, prefix="", **changes):
    """What train.py's torch.save writes; `prefix` is that of a compiled model."""
    model = {f"{prefix}transformer.{name}": tensor for name, tensor in tensors.items()}
    model[f"{prefix}lm_head.weight"] = model[f"{prefix}transformer.wte.weight"]
    args = dict(
        n_layer=dims.layers,
        n_head=dims.heads,
        n_embd=dims.channels,
        block_size=dims.positions,
        bias=bias,
        vocab_size=dims.rows,
        dropout=0.1,
    )
    state = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.95)}]}
    content = {
        "model": model,
        "optimizer": state,
        "model_args": {**args, **changes},
        "iter_num": 7,
        "best_val_loss": torch.tensor(3.25),
        "config": {"dataset": "openwebtext", "compile": True},
    }
    torch.save(content, path)
    return path


# llm.c


def llm_c(path, tensors, dims=SMALL, version=3):
    """What write_model writes: float32 for version 3, bfloat16 for 5."""
    numbers = (20240326, version, dims.positions, dims.tokens, dims.layers, dims.heads, dims.channels, dims.rows)
    order = ["wte.weight", "wpe.weight"]
    for part in IN_BLOCK:
        for end in ("weight", "bias"):
            order += [f"h.{layer}.{part}.{end}" for layer in range(dims.layers)]
    with open(path, "wb") as file:
        file.write(struct.pack("<256i", *numbers, *[0] * 248))
        for name in [*order, "ln_f.weight", "ln_f.bias"]:
            file.write(raw(tensors[name], version))
    return path


def raw(tensor, version):
    """Bytes of a tensor; those of bfloat16 are the upper half of float32's."""
    if version == 3:
        return tensor.float().numpy().tobytes()
    return (tensor.to(torch.bfloat16).view(torch.int16)).numpy().tobytes()


def read_llm_c(path):
    """The header's numbers, and the tensors in their order, flat, as float32."""
    content = path.read_bytes()
    numbers = struct.unpack("<8i", content[:32])
    if numbers[1] == 3:
        return numbers, torch.frombuffer(bytearray(content[1024:]), dtype=torch.float32)
    return numbers, torch.frombuffer(bytearray(content[1024:]), dtype=torch.bfloat16).float()


# OpenAI


def openai(folder, tensors, dims=SMALL):
    """hparams.json and a TensorFlow checkpoint: the tensors in one file, a LevelDB table that says where."""
    folder.mkdir(parents=True)
    sizes = dict(n_vocab=dims.rows, n_ctx=dims.positions, n_embd=dims.channels, n_head=dims.heads, n_layer=dims.layers)
    (folder / "hparams.json").write_text(json.dumps(sizes))
    entries, data = {b"": b"\x08\x01\x1a\x02\x08\x01"}, b""
    for name, tensor in sorted(tensors.items()):
        stem, end = name.rsplit(".", 1)
        if ".c_" in stem and end == "weight":
            tensor, end = tensor.T[None], "w"  # (1, in, out)
        else:
            end = "b" if end == "bias" else "g"
        theirs = "model/" + stem.replace("h.", "h").replace(".", "/") + ("" if stem in ("wte", "wpe") else f"/{end}")
        raw_tensor = tensor.contiguous().numpy().tobytes()
        shape = b"".join(field(2, field(1, extent)) for extent in tensor.shape)
        entry = field(1, 1) + field(2, shape) + field(4, len(data)) + field(5, len(raw_tensor))
        entries[theirs.encode()] = entry + b"\x35" + struct.pack("<I", masked(raw_tensor))
        data += raw_tensor
    step = field(1, 9) + field(2, b"") + field(4, len(data)) + field(5, 8)
    entries[b"global_step"] = step + b"\x35" + struct.pack("<I", masked(bytes(8)))
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data + bytes(8))
    (folder / "model.ckpt.index").write_bytes(leveldb(sorted(entries.items())))
    return folder


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, value):
    """Of a protocol buffer."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def masked(data):
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def leveldb(entries, each=7):
    """A table with `each` entries a block, prefixes shared but for every third key."""
    out, index = b"", []

    def block(pairs):
        body, restarts, before = b"", [], b""
        for number, (key, value) in enumerate(pairs):
            shared = 0
            if number % 3 == 0:
                restarts.append(len(body))
            else:
                shared = len(os.path.commonprefix([before, key]))
            body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            before = key
        body += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
        return body + b"\0" + struct.pack("<I", masked(body + b"\0")), len(body)

    for start in range(0, len(entries), each):
        pairs = entries[start : start + each]
        raw_block, size = block(pairs)
        index.append((pairs[-1][0], varint(len(out)) + varint(size)))
        out += raw_block
    handles = b""
    for pairs in ([], index):
        raw_block, size = block(pairs)
        handles += varint(len(out)) + varint(size)
        out += raw_block
    return out + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


# Megatron-LM

CORE = {
    "ln_1": "input_layernorm",
    "attn.c_attn": "self_attention.linear_qkv",
    "attn.c_proj": "self_attention.linear_proj",
    "ln_2": "pre_mlp_layernorm",
    "mlp.c_fc": "mlp.linear_fc1",
    "mlp.c_proj": "mlp.linear_fc2",
}
FUSED = {**CORE, "ln_1": "self_attention.linear_qkv.layer_norm_", "ln_2": "mlp.linear_fc1.layer_norm_"}
LEGACY = {
    "ln_1": "input_layernorm",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.dense",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.dense_h_to_4h",
    "mlp.c_proj": "mlp.dense_4h_to_h",
}


def fuse(tensor, heads, version):
    """(3C, ...): all queries, keys, values -> the order of a checkpoint's version."""
    size = tensor.shape[0] // 3 // heads
    by_head = tensor.reshape(3, heads, size, -1)
    if version < 1:
        moved = by_head  # 3, heads, size
    elif version < 2:
        moved = by_head.permute(1, 2, 0, 3)  # heads, size, 3
    else:
        moved = by_head.permute(1, 0, 2, 3)  # heads, 3, size
    return moved.reshape(tensor.shape)


def piece(name, tensor, rank, ranks, heads, version):
    """What a tensor-parallel rank holds."""
    if ".attn.c_attn." in name:
        q, k, v = (part.chunk(ranks)[rank] for part in tensor.chunk(3))
        return fuse(torch.cat((q, k, v)), heads // ranks, version).clone()
    if name == "wte.weight" or ".mlp.c_fc." in name:
        return tensor.chunk(ranks)[rank].clone()
    if name.endswith("c_proj.weight"):
        return tensor.chunk(ranks, dim=1)[rank].clone()
    return tensor.clone()


def megatron_args(dims=SMALL, ranks=1, stages=1, **changes):
    """The arguments that matter, as argparse leaves them."""
    args = dict(
        num_layers=dims.layers,
        hidden_size=dims.channels,
        ffn_hidden_size=4 * dims.channels,
        num_attention_heads=dims.heads,
        max_position_embeddings=dims.positions,
        padded_vocab_size=dims.rows,
        vocab_size=dims.tokens,
        bias_gelu_fusion=True,
        norm_epsilon=1e-5,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        position_embedding_type="learned_absolute",
        normalization="LayerNorm",
        tensor_model_parallel_size=ranks,
        pipeline_model_parallel_size=stages,
        params_dtype=torch.float32,
    )
    return argparse.Namespace(**{**args, **changes})


def megatron(folder, tensors, dims=SMALL, ranks=1, stages=1, version=3.0, names=CORE, **changes):
    """iter_0000007 with mp_rank folders, and the file that names it."""
    (folder / "iter_0000007").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    args = megatron_args(dims, ranks, stages, **changes)
    for rank in range(ranks):
        for stage in range(stages):
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            (folder / "iter_0000007" / name).mkdir()
            model = _stage(tensors, dims, rank, ranks, stage, stages, version, names)
            content = {"model": model, "args": args, "checkpoint_version": version, "iteration": 7}
            torch.save(content, folder / "iter_0000007" / name / "model_optim_rng.pt")
    return folder


def torch_dist(folder, tensors, dims=SMALL, **changes):
    """The same in the format torch_dist: each kind of tensor of all layers in one."""
    (folder / "iter_0000007").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    state = {"optimizer.state.exp_avg.decoder.final_layernorm.bias": torch.zeros(dims.channels)}
    for name, tensor in _stage(tensors, dims, 0, 1, 0, 1, 3, FUSED).items():
        if name.startswith("decoder.layers."):
            name = ".".join(["decoder.layers", *name.split(".")[3:]])
            state.setdefault(name, []).append(tensor)
        else:
            state[name] = tensor
    state = {name: torch.stack(value) if isinstance(value, list) else value for name, value in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        torch.distributed.checkpoint.save(state, checkpoint_id=folder / "iter_0000007", no_dist=True)
    content = {"args": megatron_args(dims, **changes), "checkpoint_version": 3.0, "iteration": 7}
    torch.save(content, folder / "iter_0000007" / "common.pt")
    return folder


def _stage(tensors, dims, rank, ranks, stage, stages, version, names):
    flat = {}
    layers = dims.layers // stages
    root, embedding = ("encoder.", "embedding.") if names is LEGACY else ("decoder.", "embedding.")
    for name, tensor in tensors.items():
        own = piece(name, tensor, rank, ranks, dims.heads, version)
        if name.startswith("h."):
            _, layer, rest = name.split(".", 2)
            part, end = rest.rsplit(".", 1)
            if int(layer) // layers == stage:
                theirs = names[part] + ("" if names[part].endswith("_") else ".") + end
                flat[f"{root}layers.{int(layer) - stage * layers}.{theirs}"] = own
        elif name in ("wte.weight", "wpe.weight"):
            if stage == 0:
                flat[f"{embedding}{'word' if name[1] == 't' else 'position'}_embeddings.weight"] = own
            elif stage == stages - 1 and name == "wte.weight":
                flat["output_layer.weight" if names is not LEGACY else "word_embeddings_for_head.weight"] = own
        elif stage == stages - 1:
            flat[f"{root}final_layernorm.{name.rsplit('.')[-1]}"] = own
    if names is not LEGACY:
        return flat
    head = {"weight": flat.pop("word_embeddings_for_head.weight", None)}
    nested = {"language_model": {"encoder": {}, "embedding": {}}}
    for name, tensor in flat.items():
        first, rest = name.split(".", 1)
        if first == "encoder":
            nested["language_model"]["encoder"][rest] = tensor
        else:
            inner, end = rest.split(".")
            nested["language_model"]["embedding"][inner] = {end: tensor}
    return {**nested, "word_embeddings_for_head": head} if head["weight"] is not None else nested
