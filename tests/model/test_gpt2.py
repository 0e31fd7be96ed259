"""The model against transformers' GPT2LMHeadModel, and what transformers does not promise: padding, half, tracing."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel, GPT2Model, LMHead

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
SMALL = GPT2Config(64, 16, 12, 2, 3, activation_function="gelu", real_vocab_size=50, **NO_ENDS)


def reference_of(model):
    """transformers' model with the same weights, real rows of the vocabulary only."""
    config = dataclasses.replace(model.config, vocab_size=model.config.real_vocab_size)
    hf_config = transformers.GPT2Config(**config.to_dict(), attn_implementation="eager")
    reference = transformers.GPT2LMHeadModel(hf_config)
    reference.to(model.transformer.wte.weight.dtype)
    state = model.state_dict()
    for key in ("transformer.wte.weight", "lm_head.weight"):
        state[key] = state[key][: config.vocab_size]
    reference.load_state_dict(state, strict=True)
    return reference.train(model.training)


def randomize(model):
    """Weights far from their initial values, so that biases and layer norms count."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def loss_of(model, ids):
    logits = model(ids)  # (B, T, V)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


configs = st.builds(
    lambda n_head, head, n_layer, inner, act, real, padding, positions, divided, upcast: GPT2Config(
        real + padding,
        positions,
        n_head * head,
        n_layer,
        n_head,
        inner,
        act,
        **NO_DROPOUT,
        **NO_ENDS,
        real_vocab_size=real,
        scale_attn_by_inverse_layer_idx=divided,
        reorder_and_upcast_attn=upcast,
    ),
    *(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.sampled_from([None, 7])),
    *(st.sampled_from(["gelu", "gelu_new", "relu"]), st.integers(3, 40), st.sampled_from([0, 5]), st.integers(4, 9)),
    *(st.booleans(), st.booleans()),
)


@settings(max_examples=20, deadline=None)
@given(config=configs, batch=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_logits_loss_and_gradients_equal_those_of_transformers(config, batch, dtype):
    torch.manual_seed(1)
    if config.reorder_and_upcast_attn:
        dtype = torch.float32  # transformers refuses it in float64, which it would not raise
    model = GPT2LMHeadModel(config).to(dtype)
    randomize(model)
    reference = reference_of(model)
    real = config.real_vocab_size
    ids = torch.randint(real, (batch, config.n_positions))
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(model(ids)[..., :real], reference(ids).logits, rtol=exact, atol=exact)

    loss, expected = loss_of(model, ids), loss_of(lambda ids: reference(ids).logits, ids)
    torch.testing.assert_close(loss, expected, rtol=exact, atol=exact)
    theirs = reference(ids, labels=ids).loss  # computed in float32 whatever the model
    torch.testing.assert_close(loss.float(), theirs.float(), rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if name == "transformer.wte.weight":
            assert not gradient[real:].any()
            gradient = gradient[:real]
        torch.testing.assert_close(gradient, gradients.pop(name), rtol=10 * exact, atol=10 * exact)
    assert not gradients


def test_dropout_falls_where_it_falls_in_transformers():
    torch.manual_seed(2)
    model = GPT2LMHeadModel(GPT2Config(50, 8, 12, 2, 3, **NO_ENDS))
    reference = reference_of(model.train())
    ids = torch.randint(50, (2, 8))
    torch.manual_seed(3)
    ours = model(ids)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, reference(ids).logits, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours, model(ids))  # it is random


def test_position_ids():
    torch.manual_seed(4)
    model = GPT2LMHeadModel(SMALL).eval()
    reference = reference_of(model)
    ids, positions = torch.randint(50, (2, 5)), torch.tensor([[0, 3, 1, 7, 15], [2, 2, 4, 9, 0]])
    expected = reference(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model(ids, positions)[..., :50], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(ids, torch.arange(5).unsqueeze(0)), model(ids))


def test_state_dict_names_are_those_of_transformers():
    model = GPT2LMHeadModel(dataclasses.replace(SMALL, vocab_size=50))
    assert list(model.state_dict()) == list(reference_of(model).state_dict())


def test_later_tokens_have_no_influence():
    torch.manual_seed(5)
    model = GPT2LMHeadModel(SMALL).eval()
    ids = torch.randint(50, (1, 12))
    changed = ids.clone()
    changed[:, 7:] = (ids[:, 7:] + 1) % 50
    difference = (model(ids) - model(changed)).abs().amax(dim=(0, 2))
    assert not difference[:7].any() and difference[7:].all()


def test_too_long_an_input_is_refused():
    with pytest.raises(ValueError, match="17 tokens.*n_positions 16"):
        GPT2LMHeadModel(SMALL)(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_padding_rows_get_probability_zero(dtype):
    torch.manual_seed(6)
    model = GPT2LMHeadModel(SMALL).eval().to(dtype)
    ids = torch.randint(50, (2, 9))
    with torch.no_grad():
        for rows in (0.0, 1.0):  # as made; and if something wrote into the padding rows
            model.transformer.wte.weight[50:] = rows
            logits = model(ids)
            assert torch.isfinite(logits).all()
            probabilities = torch.softmax(logits, dim=-1)
            assert not probabilities[..., 50:].any() and (probabilities[..., :50] > 0).all()
            torch.testing.assert_close(probabilities.double().sum(-1), torch.ones(2, 9).double(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("scale", [1.0, 50000.0])
def test_padding_rows_get_gradient_zero(scale):
    torch.manual_seed(7)
    model = GPT2LMHeadModel(SMALL)
    assert not model.transformer.wte.weight[50:].any()
    (loss_of(model, torch.randint(50, (2, 9))) * scale).backward()
    gradient = model.transformer.wte.weight.grad
    assert not gradient[50:].any() and gradient[:50].any(dim=1).all()


def test_half_follows_float32():
    torch.manual_seed(8)
    model = GPT2LMHeadModel(SMALL).eval()
    half = copy.deepcopy(model).half()
    ids = torch.randint(50, (2, 16))
    logits = half(ids)
    assert logits.dtype == torch.float16
    torch.testing.assert_close(logits[..., :50].float(), model(ids)[..., :50], rtol=0, atol=2e-3)


def test_upcast_scores_are_float32_in_half():
    """Queries and keys of half weights whose products leave the range of half: transformers' result, and no other."""
    torch.manual_seed(8)
    config = dataclasses.replace(SMALL, reorder_and_upcast_attn=True, **NO_DROPOUT)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :24] *= 2000.0
    model, ids = model.half(), torch.randint(50, (2, 16))
    logits = model(ids)[..., :50]
    assert logits.isfinite().all()
    # Scores near 1e5 have an error of 0.01 in float32, and their probabilities of 1 %.
    torch.testing.assert_close(logits, reference_of(model)(ids).logits, rtol=0, atol=3e-2)
    plain = GPT2LMHeadModel(dataclasses.replace(config, reorder_and_upcast_attn=False)).half().eval()
    plain.load_state_dict(model.state_dict())
    assert not plain(ids).isfinite().all()


def test_the_head_stays_tied():
    model = GPT2LMHeadModel(SMALL)
    for twin in (model, copy.deepcopy(model), copy.deepcopy(model).half()):
        assert twin.lm_head.weight is twin.transformer.wte.weight
    assert copy.deepcopy(model).lm_head.weight is not model.lm_head.weight


def test_the_product_of_the_head_can_be_replaced():
    def in_two_parts(hidden, weight):
        return torch.cat([hidden @ part.t() for part in weight.chunk(2)], dim=-1)

    torch.manual_seed(9)
    model = GPT2LMHeadModel(SMALL).eval()
    ids = torch.randint(50, (2, 9))
    expected = model(ids)
    model.lm_head.project = in_two_parts
    twin = copy.deepcopy(model)
    torch.testing.assert_close(model(ids), expected)
    with torch.no_grad():
        twin.transformer.wte.weight.zero_()
    assert not twin(ids)[..., :50].any()  # a copy projects onto its own weight


def test_no_bias_without_padding():
    weight = torch.nn.Parameter(torch.randn(8, 3))
    hidden = torch.randn(1, 2, 3)
    assert torch.equal(LMHead(weight, 8)(hidden), F.linear(hidden, weight))


def test_initial_weights():
    config = GPT2Config(2000, 400, 64, 8, 4, real_vocab_size=1990)
    torch.manual_seed(10)
    model = GPT2LMHeadModel(config)
    seen = set()
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 2)[-2:]
        if kind[1] == "bias":
            assert not parameter.any(), name
        elif kind[0].startswith("ln_"):
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if kind[0] == "c_proj" else 0.02
            values = parameter[:1990] if kind[0] == "wte" else parameter
            assert abs(values.std().item() / std - 1) < 0.05 and abs(values.mean().item()) < 0.05 * std, name
        seen.add(kind[0])
    assert seen == {"wte", "wpe", "ln_1", "c_attn", "c_proj", "ln_2", "c_fc", "ln_f"}
    torch.manual_seed(10)
    again = GPT2LMHeadModel(config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_hidden_states_alone():
    torch.manual_seed(11)
    model = GPT2LMHeadModel(SMALL).eval()
    ids = torch.randint(50, (2, 9))
    hidden = model.transformer(ids)
    assert isinstance(model.transformer, GPT2Model) and hidden.shape == (2, 9, 12)
    expected = reference_of(model).transformer(ids).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)


def test_export_traces_it_and_the_graph_has_its_gradients():
    torch.manual_seed(12)
    model = GPT2LMHeadModel(dataclasses.replace(SMALL, **NO_DROPOUT))
    ids = torch.randint(50, (2, 9))
    graph = torch.export.export(copy.deepcopy(model), (ids,), strict=False).module()
    loss, expected = loss_of(graph, ids), loss_of(model, ids)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    gradients = dict(graph.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-6, atol=1e-9)


def test_vmap_over_micro_batches_equals_the_batch():
    torch.manual_seed(13)
    model = GPT2LMHeadModel(SMALL).eval()
    ids = torch.randint(50, (3, 2, 9))  # micro-batches, samples, positions
    torch.testing.assert_close(torch.vmap(model)(ids).flatten(0, 1), model(ids.flatten(0, 1)), rtol=1e-5, atol=1e-6)


def test_hidden_states_at_wanted_positions_are_those_of_the_whole():
    model = GPT2Model(SMALL).double().eval()
    randomize(model)
    ids = torch.randint(SMALL.real_vocab_size, (3, 11))
    wanted = torch.tensor([[10, 0, 4], [3, 3, 9], [1, 2, 5]])  # any order, repeated too
    whole = model(ids)
    picked = torch.stack([row[index] for row, index in zip(whole, wanted)])
    torch.testing.assert_close(model(ids, wanted=wanted), picked, rtol=1e-12, atol=1e-12)
    assert GPT2Model(dataclasses.replace(SMALL, n_layer=1)).eval()(ids, wanted=wanted).shape == (3, 3, SMALL.n_embd)
