"""text_generate_gpt2.py and inference_gpt2.py as programs: prompts from flags, files and a terminal, and refusals."""

import contextlib
import io
import json
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from warm_process import WarmProcess

import inference_gpt2
import text_generate_gpt2
from arguments import parse_generate_args
from generation.text_generator import TextGenerator
from model.checkpoint import load_pretrained, save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    "OMP_NUM_THREADS": "1",
    "TERM": "dumb",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """As on a machine without one, at once."""
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise ConnectionError("the network is unreachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights over GPT-2's vocabulary, 24 positions."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50272, real_vocab_size=50257, n_positions=24, n_embd=8, n_layer=2, n_head=1)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_pretrained(model, folder)
    return folder


def run_program(*flags, stdin="", program=text_generate_gpt2):
    """In this process: a new one would spend most of its time on importing torch."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            status = program.main([str(flag) for flag in flags])
        except SystemExit as end:
            status = end.code
    return subprocess.CompletedProcess(flags, status, out.getvalue(), err.getvalue())


def test_compile_only_writes_nothing(checkpoint, tmp_path):
    flags = ("--model-name-or-path", checkpoint, "--input-len", 4, "--output-len", 3, "--compile-only")
    result = run_program(*flags, "--prompt", "Hello", "--save-samples-path", tmp_path / "samples.txt")
    assert (result.returncode, result.stdout) == (0, "compiled: 1 texts a call, up to 7 tokens each\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which nobody, root neither, can make a file")
def test_samples_that_cannot_be_written(checkpoint):
    flags = ("--model-name-or-path", checkpoint, "--input-len", 4, "--output-len", 3, "--prompt", "Hello")
    result = run_program(*flags, "--save-samples-path", "/proc/samples")
    assert result.returncode == 2 and "--save-samples-path /proc/samples: cannot be written" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_samples_without_room(checkpoint):
    flags = ("--model-name-or-path", checkpoint, "--input-len", 4, "--output-len", 3, "--prompt", "Hello")
    result = run_program(*flags, "--save-samples-path", "/dev/full")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--save-samples-path /dev/full: cannot be written (No space left on device)" in result.stderr


def test_asks_until_the_end_of_input(checkpoint, tmp_path):
    samples = tmp_path / "samples.txt"
    result = run_program(
        "--model-name-or-path", checkpoint, "--input-len", 4, "--output-len", 3, "--save-samples-path", samples,
        stdin="Hello\n\nfar too many words for four tokens\n",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Input: ") == 4
    assert result.stdout.count("latency avg: ") == 1 and " tokens/s" in result.stdout
    assert "the input is empty" in result.stderr and "more than --input-len allows (4)" in result.stderr
    assert samples.read_text().startswith("Hello")


def test_a_file_of_prompts_gives_lines_of_json_that_no_batch_changes(checkpoint, tmp_path):
    prompts = ["Hello", "My name is", "one two three four five six"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    flags = ["--model-name-or-path", checkpoint, "--output-len", 6, "--num-samples", 2, "--topk", 0, "--seed", 7]
    one = run_program(*flags, "--prompt-file", tmp_path / "prompts.txt", "--log-probabilities")
    batch = run_program(
        *flags, "--prompt-file", tmp_path / "prompts.jsonl", "--batch-size", 4, "--save-samples-path", tmp_path / "out"
    )
    assert one.returncode == batch.returncode == 0, one.stderr + batch.stderr
    records = [json.loads(line) for line in one.stdout.splitlines()]
    assert [(record["prompt"], record["sample"]) for record in records] == [(p, s) for p in prompts for s in (0, 1)]
    assert all(len(record.pop("log_probabilities")) == len(record["tokens"]) == 6 for record in records)
    assert [json.loads(line) for line in batch.stdout.splitlines()] == records
    assert (tmp_path / "out").read_text() == batch.stdout
    assert records[0]["text"] != records[1]["text"]


def test_loop_stages_and_modules_give_the_same_text(checkpoint):
    flags = ["--model-name-or-path", checkpoint, "--prompt", "Hello there", "--input-len", 4, "--output-len", 8]
    ways = [
        [],
        ["--custom-ops", "false"],
        ["--single-ipu", "true", "--poptorch-loop", "true"],
        ["--single-ipu", "false", "--layers-per-ipu", 1, 1],
    ]
    texts = [run_program(*flags, *way) for way in ways]
    assert all(result.returncode == 0 for result in texts), [result.stderr for result in texts]
    assert len({result.stdout.splitlines()[0] for result in texts}) == 1
    assert texts[0].stdout.startswith("Hello there")


def test_stop_string_and_full_context(checkpoint):
    flags = ["--model-name-or-path", checkpoint, "--prompt", "Hello", "--output-len", 40, "--topk", 1]
    long = run_program(*flags)
    assert long.stderr.count("the context of 24 tokens is full: the text goes on from its last 12") == 1
    window = run_program(*flags, "--keep-last", 20)
    assert "goes on from its last 20" in window.stderr and window.stdout[:20] == long.stdout[:20]
    refused = run_program(*flags, "--keep-last", 24)
    assert refused.returncode == 2 and "--keep-last 24: nothing can follow" in refused.stderr
    text = long.stdout.rsplit("\nlatency", 1)[0]
    stop = text[12:16]
    stopped = run_program(*flags, "--stop-string", stop)
    assert stopped.stdout.rsplit("\nlatency", 1)[0] == text[: text.index(stop, 5)]


def test_a_prompt_that_is_refused_leaves_the_file_of_samples_alone(checkpoint, tmp_path):
    samples, prompts = tmp_path / "samples.txt", tmp_path / "prompts.txt"
    samples.write_text("of yesterday")
    prompts.write_text("Hello\n" + "a " * 80)
    result = run_program("--model-name-or-path", checkpoint, "--prompt-file", prompts, "--save-samples-path", samples)
    assert result.returncode == 2 and f"--prompt-file {prompts}, line 2: the input has" in result.stderr
    assert samples.read_text() == "of yesterday"


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    for name, text in (
        ("prompts.txt", "Hello\r\nyou\r\n"),
        ("prompts.jsonl", '{"prompt": "Hello"}\n{"prompt": "you"}'),
    ):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert text_generate_gpt2.read_prompts(str(tmp_path / name)) == ["Hello", "you"]


def test_latency_is_from_token_to_token_also_over_several_calls():
    results = [SimpleNamespace(text=SimpleNamespace(tokens=[0] * length)) for length in (3, 5, 2)]
    # Texts of 3 and 5 tokens side by side, then one of 2: 7 steps in 0.7 s.
    assert (
        text_generate_gpt2.timing([results[:2], results[2:]], 0.7) == "latency avg: 100.00 ms, 10 tokens, 14.3 tokens/s"
    )
    assert text_generate_gpt2.timing([[SimpleNamespace(text=SimpleNamespace(tokens=[]))]], 0.5).startswith(
        "latency avg: 500"
    )


def test_entries_that_the_tokenizer_lacks_are_never_drawn(tmp_path):
    """All weights alike: every id would be equally likely, and most of them have no text."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {entry: index for index, entry in enumerate(["<|endoftext|>", *sorted(alphabet)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=4096, real_vocab_size=4096, n_positions=32, n_embd=8, n_layer=1, n_head=1)
    )
    for parameter in model.parameters():
        parameter.data.zero_()
    save_pretrained(model, tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    flags = [
        "--model-name-or-path",
        tmp_path,
        "--prompt-file",
        tmp_path / "prompts",
        "--topk",
        0,
        "--log-probabilities",
    ]
    (tmp_path / "prompts").write_text("Hello\n")
    for way in ([], ["--custom-ops", "false"]):
        result = run_program(*flags, "--output-len", 20, "--stop-string", "never", *way)
        assert result.returncode == 0, result.stderr
        assert "257 entries, the vocabulary 4,096" in result.stderr
        record = json.loads(result.stdout)
        assert record["log_probabilities"] == pytest.approx([-math.log(257)] * len(record["tokens"]), abs=1e-5)
        assert record["tokens"] and max(record["tokens"]) < 257


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """Two tokens were added; config.json says that <|end|>, always the likeliest, ends a text. Rows are padded."""
    folder = tmp_path_factory.mktemp("ending")
    content = json.loads(Tokenizer.gpt2().to_json())
    for number, token in ((50257, "<|user|>"), (50258, "<|end|>")):
        content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": token})
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50272, n_positions=32, n_embd=8, n_layer=1, n_head=1, eos_token_id=50258)
    )
    with torch.no_grad():  # the last hidden state is the embedding of the likeliest token
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[50258], model.transformer.wte.weight[50257] = 5.0, 4.0
    save_pretrained(model, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["real_vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("way", [[], ["--custom-ops", "false"], ["--poptorch-loop", "true", "--single-ipu", "true"]])
def test_the_end_of_a_text_is_what_the_checkpoint_says(ending, tmp_path, way):
    (tmp_path / "p.txt").write_text("hello there\n")
    flags = ["--model-name-or-path", ending, "--prompt-file", tmp_path / "p.txt", "--input-len", 4, "--output-len", 3]
    flags += ["--topk", 1, "--repetition-penalty", 1, *way]

    def record(*more):
        with pytest.warns(UserWarning, match="50259 of 50272 rows of the vocabulary are tokens"):
            result = run_program(*flags, *more)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    assert (record()["finish"], record()["tokens"]) == ("stop", [])
    assert record("--stop-token", "<|end|>")["finish"] == "stop"
    other = record("--stop-token", "<|user|>", "Ġthe", "<|endoftext|>")
    assert (other["finish"], other["text"]) == ("length", "<|end|>" * 3)


def test_a_text_begins_from_the_end_token_alone(checkpoint, tmp_path):
    """What an empty prompt gives is what comes behind <|endoftext|>; a blank line is no prompt."""
    flags = ["--model-name-or-path", checkpoint, "--input-len", 4, "--output-len", 5, "--topk", 1]
    (tmp_path / "p.txt").write_text("\nHello\n  \n\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n\n{"prompt": "Hello"}\n')
    lines = run_program(*flags, "--prompt-file", tmp_path / "p.txt")
    assert [json.loads(line)["prompt"] for line in lines.stdout.splitlines()] == ["Hello"], lines.stderr
    lines = run_program(*flags, "--prompt-file", tmp_path / "p.jsonl")
    empty, hello = (json.loads(line) for line in lines.stdout.splitlines())
    assert (empty["prompt"], hello["prompt"]) == ("", "Hello")
    model, ids = load_pretrained(checkpoint), [50256]
    for _ in range(5):
        with torch.no_grad():
            scores = model(torch.tensor([ids]))[0, -1, :50257]
        seen = torch.tensor(sorted(set(ids)))
        scores[seen] = torch.where(scores[seen] > 0, scores[seen] / 2.0, scores[seen] * 2.0)
        ids.append(int(scores.argmax()))
    assert empty["tokens"] == ids[1:]
    alone = run_program(*flags, "--prompt", "")
    assert alone.returncode == 0 and alone.stdout.startswith(empty["text"]), alone.stderr
    (tmp_path / "p.txt").write_text("\n \n")
    assert "is empty" in run_program(*flags, "--prompt-file", tmp_path / "p.txt").stderr
    (tmp_path / "p.txt").write_text("\nfar too many words for four tokens\n")
    assert "line 2: the input has" in run_program(*flags, "--prompt-file", tmp_path / "p.txt").stderr


def test_the_first_call_is_no_text_s(checkpoint):
    """It brings the weights into the operators' layout, which the first latency would show."""
    argv = ["--model-name-or-path", str(checkpoint), "--output-len", "4", "--input-len", "4"]
    counters = TextGenerator(parse_generate_args(argv)).executor.getPerfCounters()
    assert all(len(times) == 1 for times in counters["output_complete"])


class Terminal:
    """The program at a terminal of its own."""

    def __init__(self, *flags):
        self.master, slave = pty.openpty()
        words = [str(ROOT / "text_generate_gpt2.py"), *map(str, flags)]
        self.process = WarmProcess(words, slave, slave, slave, ENVIRONMENT, os.getcwd())
        os.close(slave)
        self.seen = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def read(self, seconds):
        """Adds to `seen` what comes within this time; False if the program has closed its end."""
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.seen += os.read(self.master, 4096).decode("utf-8", "replace")
            except OSError:
                return False
        return True

    def expect(self, text, again=None, seconds=90):
        """Reads on until `text` has come, repeating `again` each second of silence.

        What is typed, and a signal that is sent, between the prompt's appearance and the moment when readline has
        taken over the terminal gets lost; no output says when that is.
        """
        begin, deadline = len(self.seen), time.monotonic() + seconds
        while text not in self.seen[begin:]:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.seen}"
            length = len(self.seen)
            open_end = self.read(1.0)
            assert open_end or text in self.seen[begin:], self.seen
            if again is not None and len(self.seen) == length:
                again()
        return self.seen[begin:]

    def interrupt(self):
        os.kill(self.process.pid, signal.SIGINT)

    def leave(self, seconds=90):
        """Ctrl-D until the program has ended; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.type("\x04")
            if not self.read(1.0):
                break
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def terminate(self, seconds=90):
        """SIGTERM until the program has ended; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.process.terminate()
            if not self.read(2.0):
                break
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_terminal_history_ctrl_c_and_ctrl_d(checkpoint):
    terminal = Terminal("--model-name-or-path", checkpoint, "--output-len", 100000, "--input-len", 8)
    try:
        terminal.expect("Input: ")
        terminal.type("Hello\r")  # readline finds it in the terminal's queue, whenever it begins
        terminal.expect("full")  # in the middle of a text without end
        terminal.interrupt()
        assert "latency avg" in terminal.expect("Input: ", again=terminal.interrupt)
        terminal.type("\x1b[A")  # the line before comes back, can be edited, and is not sent yet
        terminal.expect("Hello", again=lambda: terminal.type("\x1b[A"))
        terminal.type("\x7fp\r")
        terminal.expect("Hellp")
        terminal.interrupt()
        terminal.expect("Input: ", again=terminal.interrupt)
        terminal.expect("Ctrl-D leaves", again=terminal.interrupt)
        assert terminal.leave() == 0
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


@pytest.mark.parametrize("text", ["", "Hello\r"], ids=["at the prompt", "in a text"])
def test_sigterm_ends_the_program(checkpoint, text, tmp_path):
    """Ctrl-C ends the text at hand alone."""
    samples = tmp_path / "samples.txt"
    flags = ["--output-len", 100000, "--input-len", 8, "--save-samples-path", samples]
    terminal = Terminal("--model-name-or-path", checkpoint, *flags)
    try:
        terminal.expect("Input: ")
        if text:
            terminal.type(text)
            terminal.expect("full")
        assert terminal.terminate() == 143
        assert "Traceback" not in terminal.seen
        assert samples.read_text().startswith(text.strip())
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model-name-or-path", "./nowhere", "--prompt", "a"], ["--model-name-or-path", "./nowhere"]),
        (["--model-name-or-path", "tests", "--prompt", "a"], ["--model-name-or-path", "tests/config.json"]),
        (["--stop-string", "###", ""], ["--stop-string ###", "an empty text"]),
        (
            ["--model-name-or-path", "no-one/no-model", "--prompt", "a"],
            ["--model-name-or-path", "network", "make demo", "demo/checkpoints"],
        ),
        (["--poptorch-loop", "true"], ["--poptorch-loop", "--single-ipu"]),
        (["--prompt-file", "no/such/file"], ["--prompt-file no/such/file"]),
        (
            ["--model-name-or-path", "CHECKPOINT", "--single-ipu", "true", "--poptorch-loop", "true"],
            ["--input-len 64", "--output-len 128", "24 positions"],
        ),
        (["--model-name-or-path", "CHECKPOINT", "--layers-per-ipu", "1", "2"], ["--layers-per-ipu 1 2", "2 layers"]),
        (["--model-name-or-path", "CHECKPOINT", "--stop-token", "two words"], ["--stop-token", "--stop-string"]),
        (["--model-name-or-path", "CHECKPOINT", "--prompt", "a " * 40], ["--prompt: ", "tokens", "24"]),
        (
            ["--model-name-or-path", "CHECKPOINT", "--prompt", "a a a a a", "--input-len", "3"],
            ["more than --input-len allows (3): raise --input-len to 5 (the checkpoint has 24 positions), or shorten"],
        ),
        (
            ["--model-name-or-path", "CHECKPOINT", "--prompt", "a" + " a" * 39],
            ["40 tokens, more than the checkpoint has positions (24): shorten the text to 24 (--prompt, or its line"],
        ),
        (["--model-name-or-path", "CHECKPOINT", "--int8", "--prompt", "a"], ["--int8: "]),
    ],
)
def test_bad_input_is_one_message_and_status_2(flags, said, checkpoint):
    result = run_program(*(str(checkpoint) if flag == "CHECKPOINT" else flag for flag in flags))
    assert result.returncode == 2, result.stdout + result.stderr
    assert all(part in result.stderr for part in said) and "Traceback" not in result.stderr, result.stderr


def test_forward_only_program(tmp_path):
    flags = ["--model", "gpt2-tiny", "--max-len", 16, "--device-iterations", 2, "--batch-size", 3]
    result = run_program(*flags, "--layers-per-ipu", 1, 3, "--ipus-per-replica", 2, program=inference_gpt2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Throughput: ") == 4 and result.stdout.count(" seq/s, Latency: ") == 4


def test_compile_only_of_the_forward_program_says_that_it_is_done():
    flags = ["--model", "gpt2-tiny", "--max-len", 16, "--device-iterations", 2, "--batch-size", 3, "--compile-only"]
    result = run_program(*flags, "--resume", "latest", "--save-model-path", "x", program=inference_gpt2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "compiled: 6 sequences of 16 tokens a step; nothing was run"
    assert "--resume latest has no effect: nothing is trained or saved" in result.stdout
    assert "Throughput" not in result.stdout


def test_predictions_are_those_of_the_model():
    import poptorch

    from training.forward_run import PredictionModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, real_vocab_size=60, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    gpt2, ids = GPT2LMHeadModel(config).eval(), torch.randint(0, 60, (3, 8), dtype=torch.int32)
    options = poptorch.Options().deviceIterations(3)
    found = poptorch.inferenceModel(PredictionModel(gpt2, 4, False).eval(), options)(ids)
    with torch.no_grad():
        assert torch.equal(found.long(), gpt2(ids)[..., :60].argmax(-1))
