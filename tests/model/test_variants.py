"""Variants of GPT-2 against a plain-torch model in float64 that is written here, apart from the program's."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import GPT2Config, parameter_count
from model.gpt2 import GPT2LMHeadModel
from model.initialization import RULES
from model.pretraining import PretrainingModel

PLAIN = GPT2Config(
    24, 12, 12, 3, 3, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, real_vocab_size=20,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
TFCHAT = dict(final_norm=False, position_embedding="sinusoidal", scale_embedding=True, padding_id=0)
SYSTEMS = {
    "tfchat-preln": dict(TFCHAT, attention_bias=False, activation_function="relu", layer_norm_epsilon=1e-6),
    "tfchat-postln": dict(TFCHAT, attention_bias=False, norm_position="post"),
    "tfchat-unshared": dict(TFCHAT, tie_word_embeddings=False),
    "mingpt-tf": dict(tie_word_embeddings=False, activation_function="gelu_new"),
    "algpt2": dict(share_layers=True, embedding_size=5),
    "algpt2-unfactorised": dict(share_layers=True),
    "gpt-star": dict(parallel_residual=True, position_embedding="alibi"),
    "gpt-1b-star": dict(parallel_residual=True, position_embedding="alibi", embedding_norm=True),
    "wide heads": dict(head_dim=7, n_inner=10),
    "all at once": dict(
        norm_position="post", share_layers=True, embedding_size=8, embedding_norm=True, padding_id=3, head_dim=5,
        position_embedding="alibi", tie_word_embeddings=False, attention_bias=False, scale_embedding=True,
    ),
}  # fmt: skip


def variant(**changes):
    return dataclasses.replace(PLAIN, **changes)


def random_model(config):
    torch.manual_seed(1)
    model = GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.transformer.wte.weight[config.real_vocab_size :] = 0.0
    return model


def norm(w, name, x, eps):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    y = x @ w[f"{name}.weight"]
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def activation(name, x):
    if name == "relu":
        return x.clamp(min=0)
    if name == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reference_attention(w, c, name, x, ids):
    """One row after the other and one head after the other, key by key: who sees whom is written as loops."""
    D, H = c.head_dim or c.n_embd // c.n_head, c.n_head
    slopes = {3: [2**-4, 2**-8, 2**-2], 2: [2**-4, 2**-8], 1: [2**-8]}[H]
    rows = []
    for b in range(x.shape[0]):
        q, k, v = linear(w, f"{name}.c_attn", x[b]).chunk(3, -1)  # (T, H D)
        heads = []
        for h in range(H):
            part = slice(h * D, (h + 1) * D)
            outputs = []
            for i in range(x.shape[1]):
                before = list(range(i + 1))
                seen = [j for j in before if c.padding_id is None or ids[b, j] != c.padding_id] or before
                scores = k[seen, part] @ q[i, part] / math.sqrt(D)
                if c.position_embedding == "alibi":
                    scores = scores - slopes[h] * torch.tensor([i - j for j in seen])
                outputs.append(torch.softmax(scores, 0) @ v[seen, part])
            heads.append(torch.stack(outputs))
        rows.append(torch.cat(heads, -1))
    return linear(w, f"{name}.c_proj", torch.stack(rows))


def reference_logits(model, ids):
    c, w = model.config, dict(model.named_parameters())
    eps, T, t = c.layer_norm_epsilon, ids.shape[1], "transformer"
    x = w[f"{t}.wte.weight"][ids]
    if c.embedding_norm:
        x = norm(w, f"{t}.ln_e", x, eps)
    if c.scale_embedding:
        x = x * c.n_embd**0.5
    if c.position_embedding == "learned":
        x = x + w[f"{t}.wpe.weight"][:T]
    if c.position_embedding == "sinusoidal":
        width = x.shape[-1]
        table = torch.zeros(T, width)
        for p in range(T):
            for column in range(width):
                angle = p / 10000 ** (2 * (column // 2) / width)
                table[p, column] = math.sin(angle) if column % 2 == 0 else math.cos(angle)
        x = x + table.double()
    if c.embedding_size:
        x = linear(w, f"{t}.project_in", x)
    for layer in range(c.n_layer):
        h = f"{t}.h.{0 if c.share_layers else layer}"

        def attend(x, h=h):
            return reference_attention(w, c, f"{h}.attn", x, ids)

        def mlp(x, h=h):
            return linear(w, f"{h}.mlp.c_proj", activation(c.activation_function, linear(w, f"{h}.mlp.c_fc", x)))

        if c.parallel_residual:
            y = norm(w, f"{h}.ln_1", x, eps)
            x = x + mlp(y) + attend(y)
        elif c.norm_position == "pre":
            x = x + attend(norm(w, f"{h}.ln_1", x, eps))
            x = x + mlp(norm(w, f"{h}.ln_2", x, eps))
        else:
            x = norm(w, f"{h}.ln_1", x + attend(x), eps)
            x = norm(w, f"{h}.ln_2", x + mlp(x), eps)
    if c.final_norm:
        x = norm(w, f"{t}.ln_f", x, eps)
    if c.embedding_size:
        x = linear(w, f"{t}.project_out", x)
    head = w[f"{t}.wte.weight"] if c.tie_word_embeddings else w["lm_head.weight"]
    return x @ head[: c.real_vocab_size].t()


def check_against_the_reference(config):
    model = random_model(config)
    twin = copy.deepcopy(model)
    real = config.real_vocab_size
    ids, labels = torch.randint(real, (2, 9)), torch.randint(real, (2, 9))
    ids[0, :2] = 0 if config.padding_id is None else config.padding_id
    logits, expected = model(ids)[..., :real], reference_logits(twin, ids)
    exact = dict(rtol=1e-9, atol=1e-9)
    if config.position_embedding == "sinusoidal":
        exact = dict(rtol=1e-5, atol=1e-5)  # the table is float32
    torch.testing.assert_close(logits, expected, **exact)
    loss, _ = PretrainingModel(model)(ids, labels)  # in float32, as the program has it
    counted = labels if config.padding_id is None else labels.masked_fill(labels == config.padding_id, -100)
    wanted = F.cross_entropy(expected.flatten(0, 1), counted.flatten())
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    F.cross_entropy(logits.flatten(0, 1), counted.flatten()).backward()
    wanted.backward()
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        theirs = gradients.pop(name)
        torch.testing.assert_close(parameter.grad, theirs, **exact, msg=lambda text, name=name: f"{name}: {text}")
    assert not gradients
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in GPT2LMHeadModel(config, initialize=False).parameters())
    assert parameter_count(config) == count


@pytest.mark.parametrize("name", SYSTEMS)
def test_logits_loss_and_gradients_of_the_systems(name):
    check_against_the_reference(variant(**SYSTEMS[name]))


combinations = st.fixed_dictionaries(
    dict(
        n_head=st.sampled_from([1, 2, 3]),
        n_layer=st.sampled_from([1, 2]),
        norm_position=st.sampled_from(["pre", "post"]),
        final_norm=st.booleans(),
        attention_bias=st.booleans(),
        tie_word_embeddings=st.booleans(),
        position_embedding=st.sampled_from(["learned", "sinusoidal", "alibi"]),
        scale_embedding=st.booleans(),
        embedding_norm=st.booleans(),
        padding_id=st.sampled_from([None, 0, 4]),
        parallel_residual=st.booleans(),
        embedding_size=st.sampled_from([None, 1, 6, 12]),
        share_layers=st.booleans(),
        head_dim=st.sampled_from([None, 2, 5]),
        activation_function=st.sampled_from(["relu", "gelu", "gelu_new"]),
    )
).filter(lambda c: not (c["parallel_residual"] and c["norm_position"] == "post"))


@settings(max_examples=25, deadline=None)
@given(combinations)
def test_logits_loss_and_gradients_of_any_combination(changes):
    check_against_the_reference(variant(**changes))


@pytest.mark.parametrize("name", SYSTEMS)
def test_hidden_states_at_wanted_positions_are_those_of_the_whole(name):
    model = random_model(variant(**SYSTEMS[name])).eval().transformer
    ids = torch.randint(20, (3, 11))
    wanted = torch.tensor([[10, 0, 4], [3, 3, 9], [1, 2, 5]])
    picked = torch.stack([row[index] for row, index in zip(model(ids), wanted)])
    torch.testing.assert_close(model(ids, wanted=wanted), picked, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_isolated_documents_are_as_if_each_stood_alone(name):
    model = random_model(variant(**SYSTEMS[name])).eval().transformer
    ids = torch.randint(1, 20, (1, 10))
    ids[0, 5] = 3
    together = model(ids, documents=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]]))
    alone = torch.cat([model(ids[:, part]) for part in (slice(0, 4), slice(4, 7), slice(7, 10))], 1)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_a_shared_block_is_one_set_of_weights():
    model = GPT2LMHeadModel(variant(share_layers=True))
    for twin in (model, copy.deepcopy(model), copy.deepcopy(model).half()):
        assert {id(block.mlp.c_fc.weight) for block in twin.transformer.h} == {
            id(twin.transformer.h[0].mlp.c_fc.weight)
        }
        assert {id(block.attn.mask) for block in twin.transformer.h} == {id(twin.transformer.h[0].attn.mask)}
    assert [name for name, _ in model.named_parameters() if ".h.1." in name] == []


def test_alibi_sees_beyond_its_length():
    """A model for more positions has the same weights and, on what both can see, the same logits."""
    short = random_model(variant(position_embedding="alibi")).eval()
    long = GPT2LMHeadModel(variant(position_embedding="alibi", n_positions=40)).double().eval()
    long.load_state_dict(short.state_dict())
    ids = torch.randint(20, (2, 40))
    torch.testing.assert_close(long(ids)[:, :12], short(ids[:, :12]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(long(ids)[..., :20], reference_logits(short, ids), rtol=1e-9, atol=1e-9)


def test_half_follows_float32():
    for changes in SYSTEMS.values():
        torch.manual_seed(8)
        model = GPT2LMHeadModel(variant(**changes)).eval()
        ids = torch.randint(20, (2, 12))
        logits = copy.deepcopy(model).half()(ids)
        assert logits.dtype == torch.float16
        torch.testing.assert_close(logits[..., :20].float(), model(ids)[..., :20], rtol=0, atol=2e-2)


# Of each rule: what a kind of matrix is drawn from. A standard deviation, or the bound of a uniform distribution.
N, R, S = 0.02, 0.02 / math.sqrt(2 * 8), 0.02 / math.sqrt(8)
C, INNER = 64, 256
EXPECTED = {
    "gpt2": dict(wte=N, wpe=N, c_attn=N, attn_proj=R, c_fc=N, mlp_proj=R, lm_head=N),
    "normal": dict(wte=N, wpe=N, c_attn=N, attn_proj=N, c_fc=N, mlp_proj=N, lm_head=N),
    "gpt-star": dict(wte=N, wpe=N, c_attn=N, attn_proj=S, c_fc=N, mlp_proj=S, lm_head=N),
    "mingpt-tf": dict(
        wte=N, wpe=0.0, c_attn=N, attn_proj=("U", math.sqrt(6 / (C + C))), c_fc=N,
        mlp_proj=("U", math.sqrt(6 / (INNER + C))), lm_head=N,
    ),
    "tfchat": dict(
        wte=("U", 0.05), wpe=("U", 0.05), c_attn=("U", math.sqrt(6 / (C + C))), attn_proj=("U", math.sqrt(6 / (C + C))),
        c_fc=math.sqrt(2 / C), mlp_proj=("U", math.sqrt(6 / (INNER + C))), lm_head=("U", math.sqrt(6 / (C + 2000))),
    ),
}  # fmt: skip


def kind_of(name):
    parent, part = name.split(".")[-3:-1] if name.count(".") > 1 else ("", name.split(".")[0])
    return {"attnc_proj": "attn_proj", "mlpc_proj": "mlp_proj"}.get(parent + part, part)


@pytest.mark.parametrize("rule", RULES)
def test_initial_weights(rule):
    config = GPT2Config(2000, 400, C, 8, 4, real_vocab_size=1990, initialization=rule, tie_word_embeddings=False)
    torch.manual_seed(10)
    model, kinds = GPT2LMHeadModel(config), set()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
            continue
        if ".ln_" in name:
            assert (parameter == 1).all(), name
            continue
        kinds.add(kind_of(name))
        values, expected = parameter.detach(), EXPECTED[rule][kind_of(name)]
        if values.shape[0] == 2000:
            assert not values[1990:].any()
            values = values[:1990]
        if isinstance(expected, tuple):
            bound = expected[1]
            assert bound * 0.99 < values.abs().max() <= bound, name
            expected = bound / math.sqrt(3)
        assert values.std().item() == pytest.approx(expected, rel=0.05, abs=1e-9), name
        if rule == "tfchat" and kind_of(name) == "c_fc":  # cut off at two standard deviations of what was cut
            assert values.abs().max() <= 2 * expected / 0.8796
    assert kinds == set(EXPECTED[rule])
