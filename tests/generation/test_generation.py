"""Every way to generate gives the same text, and the greedy one is that of transformers.

Modules and native operators, one or several IPUs, token by token and in one loop, alone and in a batch.
"""

import dataclasses
import functools

import poptorch
import pytest
import torch

import custom_ops
from custom_ops import decode_blocks as native
from generation.decoding import ModuleSteps, OneStep, WholeText
from generation.native_steps import NativeSteps
from generation.requests import generate, generate_at_once, new_text
from generation.sampling import Sampling
from model.checkpoint import save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel

POSITIONS, VOCABULARY, LENGTH, WIDTH = 24, 60, 9, 6
CONFIG = GPT2Config(
    vocab_size=64,
    real_vocab_size=VOCABULARY,
    n_positions=POSITIONS,
    n_embd=16,
    n_layer=3,
    n_head=2,
    bos_token_id=None,
    eos_token_id=None,
)
PROMPTS = [[7, 3, 11], [5, 9, 5, 9, 5, 1, 2, 8, 40, 41], [1]]
GREEDY = Sampling(top_k=1)
WILD = Sampling(
    repetition_penalty=1.3, top_k=20, temperature=0.9, top_p=0.95, min_p=0.01, typical_p=0.95, eta_cutoff=0.01
)


def fresh_model(config=CONFIG):
    torch.manual_seed(3)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # large weights: greedy choices are then far from ties
        parameter.data.mul_(8)
    return model


def steps(kind, layers, config=CONFIG):
    if kind == "modules":
        return ModuleSteps(fresh_model(config), layers)
    if custom_ops.load() != "native" or not native.available():
        pytest.skip("custom_ops.so is not built: no native operators")
    return NativeSteps(fresh_model(config), layers, "float32")


def options():
    options = poptorch.Options()
    options.autoRoundNumIPUs(True)
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    return options


@functools.lru_cache(maxsize=None)
def one_step(kind, sampling, layers=(3,), batch=1):
    return poptorch.inferenceModel(OneStep(steps(kind, layers), batch, POSITIONS, sampling).eval(), options())


def texts_of(
    kind, sampling, layers=(3,), batch=1, prompts=PROMPTS, length=LENGTH, stop_ids=(), said=lambda: None, kept=None
):
    executor, done = one_step(kind, sampling, layers, batch), []
    vocab_size = VOCABULARY if sampling.needs_text else None
    for first in range(0, len(prompts), batch):
        texts = [new_text(prompt, length, seed=1) for prompt in prompts[first : first + batch]]
        for _ in generate(executor, texts, batch, WIDTH, POSITIONS, vocab_size, stop_ids, said, kept):
            pass
        done += texts
    return done


def tokens_of(*args, **kwargs):
    return [text.tokens for text in texts_of(*args, **kwargs)]


@functools.lru_cache(maxsize=None)
def plain(sampling):
    """Token by token without a cache or an executor: the whole text again for each."""
    from generation.sampling import choose

    model, found = fresh_model(), []
    for prompt in PROMPTS:
        text = new_text(prompt, LENGTH, seed=1)
        while not text.ended:
            ids = torch.tensor([text.prompt + text.tokens])
            with torch.no_grad():
                logits = model(ids)[:, -1, :VOCABULARY]
            seen = torch.zeros(1, VOCABULARY, dtype=torch.bool).scatter(1, ids, True)
            token, log_prob = choose(logits, seen, text.uniform[len(text.tokens)].unsqueeze(0), sampling)
            text.take(token.item(), log_prob.item(), ())
        found.append(text)
    return found


@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("kind", "layers", "batch"),
    [
        ("modules", (3,), 1),
        ("modules", (3,), 3),
        ("modules", (0, 1, 2), 2),
        ("native", (3,), 1),
        ("native", (3,), 3),
        ("native", (1, 0, 2), 1),
    ],
)
def test_cached_steps_equal_the_model_without_a_cache(kind, layers, batch, sampling):
    found = texts_of(kind, sampling, layers, batch)
    assert [text.tokens for text in found] == [text.tokens for text in plain(sampling)]
    for text, expected in zip(found, plain(sampling)):
        assert text.ended == "length"
        assert text.log_probs == pytest.approx(expected.log_probs, abs=2e-4)


@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["modules", "native"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_loop_on_the_device_gives_the_same_text(kind, sampling, iterations):
    loop = WholeText(steps(kind, (3,)), LENGTH, POSITIONS, VOCABULARY, sampling)
    executor = poptorch.inferenceModel(loop.eval(), options().deviceIterations(iterations))
    texts = [new_text(prompt, LENGTH, seed=1) for prompt in PROMPTS]
    assert list(generate_at_once(executor, texts, 3, 10)) == texts
    assert [text.tokens for text in texts] == [text.tokens for text in plain(sampling)]
    assert texts[1].log_probs == pytest.approx(plain(sampling)[1].log_probs, abs=2e-4)


def test_greedy_text_equals_that_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    save_pretrained(fresh_model(), tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    for prompt, tokens in zip(PROMPTS, tokens_of("modules", GREEDY)):
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind, layers", [("modules", (3,)), ("native", (3,)), ("native", (1, 0, 2))])
@pytest.mark.parametrize("divided, upcast", [(True, False), (False, True), (True, True)])
def test_the_variants_of_attention_give_the_text_of_transformers(tmp_path, kind, layers, divided, upcast):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIG, scale_attn_by_inverse_layer_idx=divided, reorder_and_upcast_attn=upcast)
    save_pretrained(fresh_model(config), tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert reference.config.scale_attn_by_inverse_layer_idx == divided
    program = OneStep(steps(kind, layers, config), 1, POSITIONS, GREEDY)
    executor = poptorch.inferenceModel(program.eval(), options())
    for prompt in PROMPTS:
        text = new_text(prompt, LENGTH, seed=1)
        for _ in generate(executor, [text], 1, WIDTH, POSITIONS):
            pass
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + text.tokens])).logits[0, len(prompt) - 1 : -1]
        assert text.tokens == logits.argmax(-1).tolist()
        assert text.log_probs == pytest.approx(logits.log_softmax(-1).amax(-1).tolist(), abs=2e-4)


def test_penalised_greedy_text_equals_that_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    save_pretrained(fresh_model(), tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    expected = reference.generate(
        torch.tensor([PROMPTS[0]]), max_new_tokens=LENGTH, do_sample=False, repetition_penalty=1.7, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    assert tokens_of("modules", Sampling(top_k=1, repetition_penalty=1.7))[0] == expected[0, 3:].tolist()


@pytest.mark.parametrize("kind", ["modules", "native"])
@pytest.mark.parametrize("kept", [None, POSITIONS - 3])
def test_a_full_context_goes_on_from_its_last_half_or_as_many_tokens_as_asked(kind, kept):
    said = []
    length = POSITIONS + 5
    prompts = [PROMPTS[0]]
    (tokens,) = tokens_of(kind, GREEDY, prompts=prompts, length=length, said=lambda: said.append(1), kept=kept)
    text, model = PROMPTS[0] + tokens, fresh_model()
    context = text[:3]
    for token in tokens:
        if len(context) > POSITIONS:
            context = context[-(kept or POSITIONS // 2) :]
        with torch.no_grad():
            assert token == int(model(torch.tensor([context]))[0, -1, :VOCABULARY].argmax())
        context.append(token)
    assert len(tokens) == length and len(said) == (1 if kept is None else 2)


def test_rows_of_a_batch_overflow_each_in_its_time():
    length = POSITIONS
    assert tokens_of("modules", WILD, length=length, batch=3) == tokens_of("modules", WILD, length=length, batch=1)


def test_stop_tokens_end_a_text_and_are_not_part_of_it():
    (free,) = tokens_of("modules", GREEDY, prompts=[PROMPTS[1]])
    (stopped,) = texts_of("modules", GREEDY, prompts=[PROMPTS[1]], stop_ids=[VOCABULARY, free[3]])
    assert stopped.tokens == free[: free.index(free[3])] and stopped.ended == "stop"


def test_a_row_that_ended_leaves_the_others_alone():
    free = tokens_of("modules", GREEDY, batch=3)
    stop = free[0][0]
    stopped = texts_of("modules", GREEDY, batch=3, stop_ids=[stop])
    assert stopped[0].tokens == [] and len(stopped[0].log_probs) == 0
    for text, tokens in zip(stopped, free):
        assert text.tokens == (tokens[: tokens.index(stop)] if stop in tokens else tokens)


def test_reader_ends_a_text():
    executor = one_step("modules", GREEDY)
    text = new_text(PROMPTS[0], LENGTH, seed=1)
    for seen in generate(executor, [text], 1, WIDTH, POSITIONS):
        if len(seen.tokens) == 4:
            seen.ended = "stop_string"
    assert len(text.tokens) == 4


def test_half_modules_generate():
    """On a CPU half is computed in float32: the text is that of weights rounded to half."""
    rounded = fresh_model().half().float()
    half = ModuleSteps(fresh_model().half(), (3,))
    executor = poptorch.inferenceModel(OneStep(half, 1, POSITIONS, GREEDY).eval(), options())
    text = new_text(PROMPTS[0], 5, seed=1)
    for _ in generate(executor, [text], 1, WIDTH, POSITIONS):
        pass
    ids = list(PROMPTS[0])
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(rounded(torch.tensor([ids]))[0, -1, :VOCABULARY].argmax()))
    assert text.tokens == ids[3:]
