"""Sampling against formulas and transformers, and text_generate_gpt2.py as a program."""

import subprocess
import sys

import poptorch
import pytest
import torch

from model.checkpoint import save_pretrained
from model.config import GPT2Config
from model.generation import NextTokenModel, choose_token, generate
from model.gpt2 import GPT2LMHeadModel

CONFIG = GPT2Config(
    vocab_size=64,
    real_vocab_size=60,
    n_positions=16,
    n_embd=16,
    n_layer=2,
    n_head=2,
    bos_token_id=None,
    eos_token_id=None,
)


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(3)
    model = GPT2LMHeadModel(CONFIG).eval()
    for parameter in model.parameters():  # large weights: greedy choices are then far from ties
        parameter.data.mul_(8)
    return model


def executor_of(gpt2):
    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    return poptorch.inferenceModel(NextTokenModel(gpt2), options)


def draw(logits, seen=(), temperature=1.0, top_k=0, penalty=1.0, seed=0):
    return choose_token(logits, list(seen), temperature, top_k, penalty, torch.Generator().manual_seed(seed))


def test_frequencies_follow_the_tempered_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    counts = torch.zeros(4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4000):
        counts[choose_token(logits, [], 0.7, 0, 1.0, generator)] += 1
    weights = [2.718281828459045 ** (value / 0.7) for value in (1.0, 0.0, -1.0, 2.0)]
    expected = torch.tensor([weight / sum(weights) for weight in weights])
    assert torch.allclose(counts / 4000, expected, atol=0.025)


def test_top_k_leaves_only_the_k_likeliest():
    logits = torch.tensor([5.0, 4.9, 4.8, 4.7])
    assert {draw(logits, top_k=2, seed=seed) for seed in range(60)} == {0, 1}
    assert draw(logits, top_k=1) == 0


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    assert draw(torch.tensor([3.0, 2.0]), seen=[0], top_k=1, penalty=2.0) == 1  # 1.5 against 2
    assert draw(torch.tensor([-1.0, -1.5]), seen=[0], top_k=1, penalty=2.0) == 1  # -2 against -1.5
    assert draw(torch.tensor([3.0, 2.0]), seen=[0, 0, 0], top_k=1, penalty=1.4) == 0  # once, however often it was seen


def test_greedy_text_equals_transformers(gpt2, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_pretrained(gpt2, tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    prompt = [7, 3, 11]
    expected = reference.generate(
        torch.tensor([prompt]), max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    ours = generate(executor_of(gpt2), prompt, 10, 16, -1, 1.0, 1, 1.0, torch.Generator())
    assert list(ours) == expected[0, 3:].tolist()


def test_generation_goes_on_beyond_the_window(gpt2):
    tokens = list(generate(executor_of(gpt2), [5, 6], 30, 16, -1, 1.0, 1, 1.0, torch.Generator()))
    assert len(tokens) == 30
    # 17 ids do not fit: token 16 is computed from the last 8 of the text so far.
    text = [5, 6, *tokens]
    with torch.no_grad():
        assert text[17] == int(gpt2(torch.tensor([text[9:17]]))[0, -1].argmax())


def test_stop_token_ends_the_text_and_is_not_part_of_it(gpt2):
    executor = executor_of(gpt2)
    free = list(generate(executor, [5, 6], 8, 16, -1, 1.0, 1, 1.0, torch.Generator()))
    stopped = list(generate(executor, [5, 6], 8, 16, free[3], 1.0, 1, 1.0, torch.Generator()))
    assert stopped == free[: free.index(free[3])]


def run_program(*flags, stdin=""):
    command = [sys.executable, "text_generate_gpt2.py", *map(str, flags)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)


def test_program_asks_until_the_end_of_input(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50272, real_vocab_size=50257, n_positions=12, n_embd=8, n_layer=1, n_head=1)
    save_pretrained(GPT2LMHeadModel(config), tmp_path)
    samples = tmp_path / "samples.txt"
    result = run_program(
        "--model-name-or-path", tmp_path, "--input-len", 4, "--output-len", 3, "--save-samples-path", samples,
        stdin="Hello\n\nfar too many words for four tokens\n",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Input: ") == 4
    assert result.stdout.count("latency avg: ") == 1
    assert "the input is empty" in result.stderr and "more than --input-len allows (4)" in result.stderr
    assert samples.read_text().startswith("Hello")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model-name-or-path", "./nowhere", "--prompt", "a"], "--model-name-or-path"),
        (["--poptorch-loop", "true"], "--poptorch-loop"),
        (["--batch-size", "2"], "--batch-size"),
    ],
)
def test_bad_input_is_one_message_and_status_2(flags, said):
    result = run_program(*flags)
    assert result.returncode == 2
    assert said in result.stderr and "Traceback" not in result.stderr
