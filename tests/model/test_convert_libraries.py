"""python -m model.convert against the other programs' own code: megatron-core, llama.cpp (xllamacpp) and gguf.

`make test-checkpoints` installs them (requirements-benchmarks.txt). megatron-core wants CUDA where a CPU would do: its
device, its random numbers and its waiting are replaced.
"""

import contextlib
import dataclasses
import math

import foreign_checkpoints as foreign
import numpy as np
import pytest
import safetensors.torch
import tiny_checkpoint
import torch

from model.checkpoint import load_pretrained, save_pretrained
from model.config import GPT2Config
from model.convert.__main__ import main
from model.convert.tensor_bundle import read_bundle
from model.gpt2 import GPT2LMHeadModel
from tokenizer import Tokenizer

pytestmark = pytest.mark.programs
INSTALL = "make test-checkpoints installs it"
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [49, 0, 2, 7, 1, 8, 2, 8]])
TEXT = "The quick brown fox isn't here; it's 1999!\n\n  naïve"


def convert(source, output, to, *flags):
    assert main([str(source), str(output), "--to", to, *flags]) == 0
    return output


# Megatron-LM


@pytest.fixture
def megatron(tmp_path, monkeypatch):
    """megatron-core in a group of one process; a function that builds the model of tiny_checkpoint there."""
    pytest.importorskip("megatron.core", reason=INSTALL)
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
    from megatron.core.transformer.transformer_config import TransformerConfig

    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel(1, 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(get_cuda_rng_tracker(), "fork", lambda *names: contextlib.nullcontext())

    def build(rows, layers=2, tied=True):
        config = TransformerConfig(
            num_layers=layers,
            hidden_size=16,
            num_attention_heads=2,
            use_cpu_initialization=True,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bias_activation_fusion=True,
            masked_softmax_fusion=False,
            bias_dropout_fusion=False,
            persist_layer_norm=False,
            gradient_accumulation_fusion=False,
        )
        return GPTModel(
            config=config,
            transformer_layer_spec=get_gpt_layer_local_spec(),
            vocab_size=rows,
            max_sequence_length=32,
            position_embedding_type="learned_absolute",
            share_embeddings_and_output_weights=tied,
        ).eval()

    yield build
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def megatron_logits(model, ids):
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)[None, None]
    with torch.no_grad():
        return model(ids, positions, mask)


@pytest.mark.parametrize("tied", [True, False])
def test_megatron_core_loads_ours_and_computes_the_same(megatron, tmp_path, tied):
    tiny_checkpoint.write(tmp_path)
    if not tied:
        config = dataclasses.replace(load_pretrained(tmp_path / "checkpoint").config, tie_word_embeddings=False)
        save_pretrained(GPT2LMHeadModel(config), tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "run", "megatron")
    content = torch.load(tmp_path / "run" / "release" / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)
    model = megatron(content["args"].padded_vocab_size, tied=tied)
    wrong = model.load_state_dict(content["model"], strict=False)
    assert not wrong.unexpected_keys and all(key.endswith("_extra_state") for key in wrong.missing_keys)
    ours = load_pretrained(tmp_path / "checkpoint")
    theirs = megatron_logits(model, IDS)[..., :300]
    torch.testing.assert_close(theirs, ours(IDS)[..., :300], rtol=0, atol=2e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_what_megatron_core_saves_as_torch_dist(megatron, tmp_path, tied):
    from megatron.core import dist_checkpointing

    torch.manual_seed(5)
    model = megatron(384, tied=tied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    dims = foreign.Dimensions(layers=2, heads=2, channels=16, positions=32, rows=384, tokens=300)
    folder = tmp_path / "run" / "iter_0000007"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("7")
    args = foreign.megatron_args(dims)
    args.untie_embeddings_and_output_weights = not tied
    state = {"model": model.sharded_state_dict(), "args": args, "checkpoint_version": 3.0}
    dist_checkpointing.save(state, str(folder))
    assert (folder / ".metadata").is_file()
    convert(tmp_path / "run", tmp_path / "ours", "huggingface")
    ours = load_pretrained(tmp_path / "ours")
    theirs = megatron_logits(model, IDS)[..., :300]
    torch.testing.assert_close(ours(IDS)[..., :300], theirs, rtol=0, atol=2e-5)


# llama.cpp


def written(folder, **settings):
    """A checkpoint wide enough for Q8_0, with GPT-2's own vocabulary."""
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(50257, 64, 64, 2, 2, **settings))
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_pretrained(gpt2, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return written(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 5e-3), ("float16", 5e-3), ("q8_0", 0.1)])
def test_llama_cpp_tokenizes_and_computes_the_same(model, tmp_path, dtype, apart):
    check_llama_cpp(model, tmp_path, dtype, apart)


def test_llama_cpp_reads_a_head_of_its_own(tmp_path):
    """llama.cpp takes output.weight where it is there, the embedding elsewhere (its pull request 12456)."""
    check_llama_cpp(written(tmp_path / "ours", tie_word_embeddings=False), tmp_path, "float32", 5e-3)


def check_llama_cpp(model, tmp_path, dtype, apart):
    """Its table of GELU has 16 bits, hence the distance in float32."""
    xllamacpp = pytest.importorskip("xllamacpp", reason=INSTALL)
    params = xllamacpp.CommonParams()
    params.model.path = str(convert(model, tmp_path / "m.gguf", "gguf", "--dtype", dtype))
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 64, 1, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    request = {"prompt": TEXT, "n_predict": 1, "temperature": 0.0, "n_probs": 100, "logprobs": 100}
    answer = server.handle_completions(request)
    ids = Tokenizer.gpt2().encode(TEXT)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    ours = torch.log_softmax(load_pretrained(model)(torch.tensor([ids]))[0, -1, :50257], 0)
    assert len(top) >= 50 and math.isclose(max(t["logprob"] for t in top), ours.max().item(), abs_tol=apart)
    assert max(abs(t["logprob"] - ours[t["id"]].item()) for t in top) < apart


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_gguf_reads_ours_and_quantizes_the_same(model, tmp_path, dtype):
    gguf = pytest.importorskip("gguf", reason=INSTALL)
    reader = gguf.GGUFReader(str(convert(model, tmp_path / "m.gguf", "gguf", "--dtype", dtype)))
    ours = safetensors.torch.load_file(model / "model.safetensors")["transformer.h.1.mlp.c_fc.weight"].T.contiguous()
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight"]
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert tensor.tensor_type.name == kind
    expected = gguf.quants.quantize(ours.numpy(), tensor.tensor_type)
    assert (tensor.data.view(expected.dtype).reshape(expected.shape) == expected).all()
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 50257


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_what_gguf_writes_is_read(tmp_path, kind):
    gguf = pytest.importorskip("gguf", reason=INSTALL)
    dims = foreign.Dimensions(layers=1, heads=2, channels=32, positions=12, rows=64, tokens=64)
    tensors = foreign.weights(dims)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "gpt2")
    writer.add_block_count(1)
    writer.add_context_length(12)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(128)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    stems = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm"}
    stems.update({"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm"})
    stems.update({"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"})
    as_stored = {}
    for name, tensor in tensors.items():
        stem, end = name.rsplit(".", 1)
        theirs = f"blk.0.{stems[stem[4:]]}.{end}" if stem.startswith("h.0.") else f"{stems[stem]}.{end}"
        wide = gguf.GGMLQuantizationType[kind if tensor.dim() == 2 and stem != "wpe" else "F32"]
        data = gguf.quants.quantize(tensor.numpy(), wide)
        writer.add_tensor(theirs, data, raw_dtype=wide)
        as_stored[name] = torch.from_numpy(gguf.quants.dequantize(data, wide).copy()).view(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = load_pretrained(convert(tmp_path / "m.gguf", tmp_path / "ours", "huggingface")).double()
    expected = foreign.logits(as_stored, IDS, 2, "tanh")
    torch.testing.assert_close(ours(IDS), expected, rtol=0, atol=1e-9)


# OpenAI


def test_what_tensorflow_writes_is_read(tmp_path):
    """`pip install tensorflow-cpu`, which make test-checkpoints does not: 1 GB."""
    tensorflow = pytest.importorskip("tensorflow", reason="pip install tensorflow-cpu")
    tensors = foreign.weights()
    foreign.openai(tmp_path / "124M", tensors)
    index = tmp_path / "124M" / "model.ckpt.index"
    names = {name: weight.read().numpy() for name, weight in read_bundle(index).items()}
    for file in tmp_path.glob("124M/model.ckpt*"):
        file.unlink()
    names["global_step"] = np.int64(7)
    tensorflow.raw_ops.SaveV2(
        prefix=str(tmp_path / "124M" / "model.ckpt"),
        tensor_names=list(names),
        shape_and_slices=[""] * len(names),
        tensors=[tensorflow.constant(value) for value in names.values()],
    )
    model = load_pretrained(convert(tmp_path / "124M", tmp_path / "ours", "huggingface"))
    torch.testing.assert_close(model.double()(IDS), foreign.logits(tensors, IDS, 2, "tanh"), rtol=0, atol=1e-9)
