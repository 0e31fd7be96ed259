"""GPT-2 as llama.cpp has it: its names of tensors and keys in a GGUF file, with the tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Mapping

from corpora.atomic import atomic_file, folder_made
from model.config import GPT2_VOCAB_SIZE
from model.convert.gguf_file import BLOCK, FLOAT32, INT32, GGUFWriter, read_gguf
from model.convert.nanogpt import CONV1D
from model.convert.sink import Target, check_computes, kept_bytes
from model.convert.source import Source, Weight, Wishes, make_config, make_source
from model.convert.vocabulary import Vocabulary
from model.weights import HEAD, PREFIX, WPE
from tokenizer import EOT, Tokenizer
from tokenizer.native import GPT2_SPLIT

KIND = "llama.cpp"
ALLOWED = ("float32", "float16", "bfloat16", "q8_0")
DESCRIBED = "its header"
_OUTER = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}
_INNER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_OUTPUT = "output.weight"  # the head if it is not the embedding; in files of older converters the embedding again
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token in a tokenizer.json
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # types of tokens


def our_name(theirs: str) -> str:
    """blk.3.attn_qkv.weight -> transformer.h.3.attn.c_attn.weight; a name that is none of them stays."""
    if theirs == _OUTPUT:
        return HEAD
    stem, _, end = theirs.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block.group(2) in _INNER:
        return f"{PREFIX}h.{block.group(1)}.{_INNER[block.group(2)]}.{end}"
    return f"{PREFIX}{_OUTER[stem]}.{end}" if stem in _OUTER else theirs


def their_name(ours: str) -> str:
    """transformer.h.3.attn.c_attn.weight -> blk.3.attn_qkv.weight"""
    if ours == HEAD:
        return _OUTPUT
    stem, _, end = ours[len(PREFIX) :].rpartition(".")
    if stem.startswith("h."):
        _, layer, part = stem.split(".", 2)
        return f"blk.{layer}.{next(key for key, value in _INNER.items() if value == part)}.{end}"
    return f"{next(key for key, value in _OUTER.items() if value == stem)}.{end}"


def read(path: Path, wishes: Wishes) -> Source:
    """A GGUF file of a GPT-2. Raises ValueError naming it, and the key or tensor at fault."""
    values, tensors = read_gguf(path)
    if values.get("general.architecture") != "gpt2":
        raise ValueError(f"{path}: holds a model of the kind {values.get('general.architecture')!r}, not 'gpt2'")
    keys = {
        "n_positions": "gpt2.context_length",
        "n_embd": "gpt2.embedding_length",
        "n_layer": "gpt2.block_count",
        "n_head": "gpt2.attention.head_count",
        "n_inner": "gpt2.feed_forward_length",
        "layer_norm_epsilon": "gpt2.attention.layer_norm_epsilon",
    }
    absent = [key for key in keys.values() if key not in values]
    if absent or "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: has no {', '.join(absent or ['token_embd.weight'])}; is it whole?")
    found = {name: values[key] for name, key in keys.items()}
    if isinstance(found["layer_norm_epsilon"], float):  # in the file with 7 digits
        found["layer_norm_epsilon"] = float(f"{found['layer_norm_epsilon']:.7g}")
    if found["n_inner"] == 4 * found["n_embd"]:
        found["n_inner"] = None
    types = values.get("tokenizer.ggml.token_type") or []
    embedding = tensors["token_embd.weight"]
    head = tensors.get(_OUTPUT, embedding)
    tied = head is embedding or (head.shape == embedding.shape and head.read().equal(embedding.read()))
    if tied:
        tensors.pop(_OUTPUT, None)
    rows = embedding.shape[0]
    unused = next((i for i in range(len(types), 0, -1) if types[i - 1] != _UNUSED), 0)
    config = make_config(
        path,
        DESCRIBED,
        **found,
        vocab_size=rows,
        real_vocab_size=unused if 0 < unused < rows else None,
        activation_function=wishes.activation or "gelu_new",
        tie_word_embeddings=tied,
        **{f"{name}_token_id": values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")},
    )
    weights = {our_name(name): weight for name, weight in tensors.items()}
    weights = {name: w.transposed() if CONV1D.search(name) else w for name, w in weights.items()}
    return make_source(path, KIND, config, weights, DESCRIBED, _vocabulary(path, values), wishes)


def _vocabulary(path: Path, values: Mapping[str, Any]) -> Vocabulary | None:
    """The tokenizer in the file, as a tokenizer.json would have it; None if it has none that is BPE of GPT-2's kind."""
    tokens, merges = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.merges")
    if values.get("tokenizer.ggml.model") != "gpt2" or not tokens or merges is None:
        return None
    types = values.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{path}: tokenizer.ggml.tokens has an entry twice, or token_type another length")
    if not all(isinstance(token, str) for token in [*tokens, *merges]):
        raise ValueError(f"{path}: tokenizer.ggml.tokens or merges holds other values than texts")
    damaged = next((text for text in [*tokens, *merges] if not text.isascii() and _has_stray_bytes(text)), None)
    if damaged is not None:  # GPT-2's tokens are spelt in characters that stand for bytes
        raise ValueError(f"{path}: tokenizer.ggml.tokens or merges holds {damaged!r}, which is no UTF-8; it is damaged")
    added = [
        {**dict.fromkeys(_FLAGS, False), "id": i, "content": token, "special": types[i] == _CONTROL}
        for i, token in enumerate(tokens)
        if types[i] in (_CONTROL, _USER_DEFINED)
    ]
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    content = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {**GPT2_SPLIT, "trim_offsets": True},
        "decoder": {**GPT2_SPLIT, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    end = values.get("tokenizer.ggml.eos_token_id")
    settings = None
    if isinstance(end, int) and end < len(tokens) and tokens[end] != EOT:
        settings = json.dumps({"eos_token": tokens[end]}, ensure_ascii=False)
    return Vocabulary(path, json.dumps(content, ensure_ascii=False), settings)


def _has_stray_bytes(text: str) -> bool:
    """Whether bytes of it were no UTF-8 (gguf_file.py)."""
    return any("\udc80" <= character <= "\udcff" for character in text)


def check(source: Source, target: Target) -> str:
    """What to tell; raises ValueError for a model or a tokenizer that llama.cpp's GPT-2 does not have."""
    if target.dtype == "q8_0" and (source.config.n_embd % BLOCK or source.config.inner_size % BLOCK):
        raise ValueError(f"--dtype q8_0: n_embd {source.config.n_embd} is no multiple of {BLOCK}; use float16")
    _tokenizer(source)
    return check_computes(source.config, KIND, "gelu_new", epsilon=True, inner=True, head=True)


def _tokenizer(source: Source) -> Tokenizer:
    """The source's, or GPT-2's own. Raises ValueError if it is not known or splits texts otherwise than GPT-2's."""
    rows = source.config.vocab_size
    if source.vocabulary is not None:
        bpe = source.vocabulary.open()
    elif rows == GPT2_VOCAB_SIZE:
        bpe = Tokenizer.gpt2()
    else:
        raise ValueError(
            f"{source.path}: has no tokenizer, which a GGUF file has in it, and {rows} rows are not GPT-2's; "
            "name one with --tokenizer"
        )
    if bpe.vocab_size > rows:
        raise ValueError(
            f"{source.path}: its vocabulary has {rows} rows, the tokenizer {bpe.vocab_size} entries; name another one "
            "with --tokenizer"
        )
    split = json.loads(bpe.to_json()).get("pre_tokenizer") or {}
    if any(split.get(key, value) != value for key, value in GPT2_SPLIT.items()):
        raise ValueError(
            f"{source.path}: its tokenizer splits texts otherwise than GPT-2's; llama.cpp would misread it"
        )
    return bpe


def size(source: Source, target: Target) -> int:
    """Bytes of the file, about; 2 MB are the tokenizer's."""
    return kept_bytes(source.config, target.dtype) + 2_000_000


def write(source: Source, target: Target) -> None:
    """The file. Vectors and position embeddings stay in float32, as llama.cpp wants them."""
    config, writer = source.config, GGUFWriter()
    writer.add("general.architecture", "gpt2")
    writer.add("general.name", source.path.stem)
    writer.add("general.file_type", _FILE_TYPES[target.dtype])
    if target.dtype == "q8_0":
        writer.add("general.quantization_version", 2)
    writer.add("gpt2.context_length", config.n_positions)
    writer.add("gpt2.embedding_length", config.n_embd)
    writer.add("gpt2.feed_forward_length", config.inner_size)
    writer.add("gpt2.block_count", config.n_layer)
    writer.add("gpt2.attention.head_count", config.n_head)
    writer.add("gpt2.attention.layer_norm_epsilon", config.layer_norm_epsilon, FLOAT32)
    _add_tokenizer(writer, source)
    tensors: dict[str, Weight] = {}
    for name, weight in source.weights.items():
        theirs = their_name(name)
        tensors[theirs] = weight.transposed() if CONV1D.search(name) else weight
        is_matrix = len(weight.shape) == 2 and name != WPE
        writer.add_tensor(theirs, tensors[theirs].shape, target.dtype if is_matrix else "float32")
    with folder_made(target.path.parent), atomic_file(target.path) as file:
        writer.write(file, tensors)


def _add_tokenizer(writer: GGUFWriter, source: Source) -> None:
    config, bpe = source.config, _tokenizer(source)
    content = json.loads(bpe.to_json())
    ids = dict(content["model"]["vocab"])
    added = {token["content"]: token for token in content["added_tokens"]}
    ids.update((text, token["id"]) for text, token in added.items())
    tokens = [f"[PAD{i}]" for i in range(config.vocab_size)]  # rows without an entry, under llama.cpp's name for them
    types = [_UNUSED] * config.vocab_size
    for text, i in ids.items():
        tokens[i] = text
        special = added[text]["special"] if text in added else False
        types[i] = _CONTROL if special else _USER_DEFINED if text in added else _NORMAL
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "gpt-2")
    writer.add("tokenizer.ggml.tokens", tokens)
    writer.add("tokenizer.ggml.token_type", types, INT32)
    writer.add("tokenizer.ggml.merges", merges)
    end = config.end_ids[0] if config.end_ids else bpe.eot_id
    begin = config.bos_token_id
    writer.add("tokenizer.ggml.bos_token_id", end if begin is None or begin >= config.vocab_size else begin)
    writer.add("tokenizer.ggml.eos_token_id", end)
