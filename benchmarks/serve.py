"""Speed of the server: `python -m serving`, llama.cpp's server and transformers' generate(), with the same weights.

    python -m benchmarks.serve                      # GPT-2 small, 16 clients, prompts of 64, 64 new tokens, 2 threads
    python -m benchmarks.serve --model tiny --rounds 1     # a smoke run
    python -m benchmarks.serve --json benchmarks/records/serve_cpu.json

Weights are random: speed does not depend on them. Each server lives in a process of its own, in float32 and with as
many slots as there are clients, and is asked over HTTP; transformers gets all prompts as one batch. They take turns.
Reported are medians over the rounds of the tokens a second of all clients together, and of the ratios within a round.
Also measured, of ours: the time from token to token of a single client against text_generate_gpt2.py's, and the time
to its first token against the prompt's pass alone. llama.cpp takes part where
`pip install -r requirements-benchmarks.txt -c constraints.txt` has been run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import generate_sides, record, serve_sides  # noqa: E402
from benchmarks.generate import MODELS, write_checkpoint  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NAME = "model"


class OurServer:
    """`python -m serving` in a process of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        words = [sys.executable, "-m", "serving", "--model", str(folder), "--served-name", NAME, "--port", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "POPTORCH_PORTABLE_DEVICE": "cpu"}
        self._process = subprocess.Popen(
            [*words, "--slots", str(args.clients)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        line = self._process.stdout.readline()
        if "http://" not in line:
            raise RuntimeError("the server did not begin; its own message is above")
        self.address = line.split("http://")[1].split()[0]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def ask(address: str, prompt: list[int], tokens: int, side: str) -> float:
    """One request. Returns its seconds. Raises RuntimeError if fewer tokens come."""
    fields: dict[str, Any] = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    if side != "ours":
        fields.update(ignore_eos=True, cache_prompt=False)
    connection = http.client.HTTPConnection(address, timeout=600)
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    seconds = time.perf_counter() - start
    connection.close()
    if answer.get("usage", {}).get("completion_tokens") != tokens:
        raise RuntimeError(f"{side} answered {str(answer)[:300]}")
    return seconds


def stream(address: str, prompt: list[int], tokens: int) -> tuple[float, float]:
    """Of one client of ours alone: seconds to the first token, and from one token to the next."""
    fields = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "logprobs": 0}
    connection = http.client.HTTPConnection(address, timeout=600)
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
    times = [time.perf_counter() for line in connection.getresponse() if line.startswith(b"data: {")]
    connection.close()
    return times[0] - start, (times[-1] - times[0]) / (len(times) - 1)


def together(address: str, prompts: list[list[int]], tokens: int, side: str) -> float:
    """Tokens a second of as many clients as there are prompts, each of which sends one request."""
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as clients:
        start = time.perf_counter()
        list(clients.map(lambda prompt: ask(address, prompt, tokens, side), prompts))
        return len(prompts) * tokens / (time.perf_counter() - start)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds."""
    rng = random.Random(0)
    settings = {"folder": str(folder), "threads": args.threads, "tokens": args.tokens, "prompt": args.prompt}
    settings["clients"] = args.clients
    workers: dict[str, SideProcess] = {}
    servers: dict[str, str] = {}
    ours = OurServer(args, folder)
    try:
        servers["ours"] = ours.address
        for name in ("alone", "transformers", "llama.cpp"):
            if name == "llama.cpp":
                if not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")):
                    continue
                generate_sides.write_gguf(folder, "float32")
            workers[name] = SideProcess(serve_sides.__file__, name, {**settings, "side": name}, "cpu")
        if "llama.cpp" in workers:
            servers["llama.cpp"] = workers["llama.cpp"].ask("address")["address"]
        rounds = []
        for index in range(args.rounds + 1):
            prompts = [[rng.randrange(1000, 50000) for _ in range(args.prompt)] for _ in range(args.clients)]
            row: dict[str, float] = {}
            order = ["ours", *(["llama.cpp"] if "llama.cpp" in servers else []), "transformers"]
            for name in order if index % 2 == 0 else order[::-1]:
                if name in servers:
                    row[name] = together(servers[name], prompts, args.tokens, name)
                else:
                    row[name] = workers[name].ask("batch")["tokens_per_second"]
            row["ours, first token"], row["ours, one client"] = stream(servers["ours"], prompts[0], args.tokens)
            row.update({f"alone, {key}": value for key, value in workers["alone"].ask("text").items()})
            if index:  # the first one warms up
                rounds.append(row)
                print(f"round {index}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    finally:
        ours.close()
        for worker in workers.values():
            worker.close()
    return {"rounds": rounds, **summary(rounds)}


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians and ratios."""

    def ratio(a: str, b: str) -> float:
        return statistics.median(row[a] / row[b] for row in rounds)

    names = [name for name in ("ours", "llama.cpp", "transformers") if name in rounds[0]]
    return {
        "tokens_per_second": {name: statistics.median(row[name] for row in rounds) for name in names},
        "times_faster": {name: ratio("ours", name) for name in names[1:]},
        "one_client_over_alone": ratio("ours, one client", "alone, token"),
        "first_token_over_prefill": ratio("ours, first token", "alone, prefill"),
    }


def report(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"{name:<14} {value:8.1f} tokens/s" for name, value in results["tokens_per_second"].items()]
    lines += [f"ours: {value:.2f} times the tokens/s of {name}" for name, value in results["times_faster"].items()]
    lines.append(f"one client: {results['one_client_over_alone']:.2f} times the time a token of text_generate_gpt2.py")
    lines.append(f"first token: {results['first_token_over_prefill']:.2f} times the time of the prompt alone")
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/serve.py", __doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--clients", type=int, default=16, help="default: 16")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt (default: 64)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each text (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    least = {"clients": 1, "prompt": 2, "tokens": 2, "rounds": 1, "threads": 1}
    wrong = [f"--{name} must be at least {low}" for name, low in least.items() if getattr(args, name) < low]
    if args.prompt + args.tokens > 1024:
        wrong.append("--prompt and --tokens together must be at most 1024")
    if wrong:
        parser.error("; ".join(wrong))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    needed = ("torch", "transformers", "starlette", "uvicorn")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        print(f"serve: {' and '.join(missing)} not installed. Run `make setup-dev` first.", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), args.model)
            results = measure(args, Path(folder))
    except RuntimeError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    print(report(results))
    if args.json:
        keys = ("model", "clients", "prompt", "tokens", "rounds", "threads")
        head = record.head("serve", argv, ["xllamacpp"], "cpu")
        record.write(args.json, head, {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
