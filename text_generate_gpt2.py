"""Text generation with GPT-2 and PopTorch: an interactive prompt, --prompt, or every prompt of --prompt-file.

python text_generate_gpt2.py --model-name-or-path CHECKPOINT --prompt "My name is" --output-len 64
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Sequence, TextIO

from arguments import parse_generate_args
from command_line.checks import (
    first_speaks,
    give_up,
    is_first_process,
    leave_to_first_process,
    not_installed,
    refuse,
    speaker,
)
from command_line.collection import no_collection
from command_line.interruption import Terminated, interruptible
from corpora.plain_text import plain
from corpora.refusal import TooLate
from corpora.strict_json import json_text
from model.layout import launched

if TYPE_CHECKING:
    from generation.text_generator import Result, TextGenerator

PROGRAM = "text_generate_gpt2.py"


def timing(parts: Sequence[Sequence[Result]], seconds: float) -> str:
    """The line behind texts, those of a part made side by side; benchmarks.yml reads the latency out of it."""
    lengths = [[len(result.text.tokens) for result in part] for part in parts]
    tokens, steps = sum(map(sum, lengths)), sum(map(max, lengths))
    latency = 1000 * seconds / max(1, steps)  # from one token of a text to the next
    return f"latency avg: {latency:.2f} ms, {tokens} tokens, {tokens / max(seconds, 1e-9):.1f} tokens/s"


class Samples:
    """--save-samples-path: each text is in the file as soon as it is whole."""

    def __init__(self, path: str | None) -> None:
        """Of several processes the first writes. Raises ValueError for a file that cannot be written."""
        self._file: TextIO | None = None
        if path and is_first_process():
            try:
                self._file = open(path, "w", encoding="utf-8")
            except OSError as error:
                raise ValueError(f"--save-samples-path {path}: cannot be written ({error.strerror})") from error

    def add(self, line: str) -> None:
        """Raises TooLate if there is no room for it; the texts before are there."""
        if self._file is not None:
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                path, self._file = self._file.name, None
                raise TooLate(
                    f"--save-samples-path {path}: cannot be written ({error.strerror}); the texts before this one are "
                    "there, make room for more"
                ) from error


def batches(results: Sequence[Result], size: int) -> list[Sequence[Result]]:
    """As many at a time as a call holds."""
    return [results[first : first + size] for first in range(0, len(results), size)]


def answer(generator: TextGenerator, prompt: str, samples: Samples) -> None:
    """Continue one prompt on the terminal, as it comes if there is one text. Raises ValueError for a bad prompt."""
    results = generator.results([prompt])
    alone, parts = len(results) == 1, batches(results, generator.batch)
    start, terminated = time.perf_counter(), None
    try:
        if alone:
            print(prompt, end="", flush=True)
        for batch in parts:
            generator.run(batch, lambda result, piece: print(piece, end="", flush=True) if alone else None)
    except KeyboardInterrupt as stop:  # Ctrl-C ends this text, not the program
        terminated = stop if isinstance(stop, Terminated) else None
        for result in results:
            result.stream.finish()
    seconds = time.perf_counter() - start
    print(end="\n" if alone else "")
    for result in results:
        if not alone:
            print(f"[{result.sample + 1}] {prompt}{result.stream.text}")
        if generator.args.log_probabilities:
            print("log probabilities:", " ".join(f"{value:.4f}" for value in result.text.log_probs))
        samples.add(prompt + result.stream.text)
    print(timing(parts, seconds), flush=True)
    if terminated is not None:
        raise terminated


def converse(generator: TextGenerator, samples: Samples) -> None:
    """Answer lines typed behind `Input: ` until the end of input."""
    with suppress(ImportError):  # line editing and history for input(); not on every platform
        import readline  # noqa: F401
    while True:
        try:
            line = input("Input: ")
            if line:
                answer(generator, line, samples)
            else:
                print("the input is empty: type at least one character", file=sys.stderr)
        except EOFError:
            print()
            return
        except Terminated:
            raise
        except KeyboardInterrupt:  # at the prompt, or before the first token of a text
            print("\n(Ctrl-D leaves)")
        except ValueError as error:
            print(error, file=sys.stderr)


def read_prompts(path: str) -> list[str | None]:
    """One prompt a line, None for a blank line; of a .jsonl file the field "prompt" of each line.

    Raises ValueError naming the line.
    """
    try:
        lines = plain(Path(path).read_bytes(), f"--prompt-file {path}").decode("utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"--prompt-file {path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file {path}: is not UTF-8 text ({error})") from error
    lines = lines[:-1] if lines[-1] == "" else lines
    if not any(map(str.strip, lines)):
        raise ValueError(f"--prompt-file {path}: is empty; give one prompt a line")
    if not path.endswith(".jsonl"):
        return [line if line.strip() else None for line in lines]
    prompts: list[str | None] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            prompts.append(None)
            continue
        try:
            prompt = json.loads(line)["prompt"]
            if not isinstance(prompt, str):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'--prompt-file {path}, line {number}: expected {{"prompt": "…"}}') from error
        prompts.append(prompt)
    return prompts


def results_of_file(generator: TextGenerator, prompts: Sequence[str | None]) -> list[Result]:
    """What is to be generated for the lines of --prompt-file. Raises ValueError naming the line."""
    results = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            results += [] if prompt is None else generator.results([prompt])
        except ValueError as error:
            raise ValueError(f"--prompt-file {generator.args.prompt_file}, line {number}: {error}") from error
    return results


def answer_file(generator: TextGenerator, results: Sequence[Result], samples: Samples) -> None:
    """Every text, --batch-size at a time: a line of JSON for each, on standard output."""
    for batch in batches(results, generator.batch):
        start = time.perf_counter()
        generator.run(batch, lambda result, piece: None)
        seconds = time.perf_counter() - start
        for result in batch:
            line = json_text(result.record(generator.args.log_probabilities), ensure_ascii=False)
            print(line, flush=True)
            samples.add(line)
        if is_first_process():
            print(timing([batch], seconds), file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> None:
    """Raises ValueError for what is wrong with flags, files and prompts."""
    if args.prompt is None and not args.prompt_file and not args.compile_only and launched()[1] > 1:
        raise ValueError("nobody can type for several processes: give --prompt or --prompt-file, or start one")
    prompts = read_prompts(args.prompt_file) if args.prompt_file else []
    with no_collection():
        from generation.text_generator import TextGenerator
    generator = TextGenerator(args)
    results = results_of_file(generator, prompts)  # before a file of samples is begun
    if args.prompt is not None:
        try:
            generator.encode(args.prompt)
        except ValueError as error:
            raise ValueError(f"--prompt: {error}") from error
    if args.compile_only:
        print(f"compiled: {generator.batch} texts a call, up to {generator.slots} tokens each")
        return
    samples = Samples(args.save_samples_path)
    if args.prompt_file:
        answer_file(generator, results, samples)
    elif args.prompt is not None:
        answer(generator, args.prompt, samples)
    else:
        converse(generator, samples)


@interruptible
@first_speaks()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: the command line's). Returns the exit status."""
    args = parse_generate_args(argv)
    for line in args.notes if is_first_process() else ():
        print(line, file=sys.stderr)
    try:
        run(args)
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except ValueError as error:
        give_up(PROGRAM, error)
    except RuntimeError as error:
        if "HINT:" not in str(error):
            raise
        leave_to_first_process()
        print(f"{PROGRAM}: {speaker()}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
