"""The processes of serve.py that are not our server: each answers whenever its standard input asks for it.

Requests, a line each: of llama.cpp "address" -> where its server listens; of transformers "batch" ->
{"tokens_per_second"}; of text_generate_gpt2.py's generator "text" -> {"token": seconds from token to token, "prefill":
seconds of the prompt alone}.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_process import serve  # noqa: E402

Answer = Callable[[], dict[str, Any]]


def alone(settings: dict[str, Any]) -> dict[str, Answer]:
    """One text at a time, by the generator of text_generate_gpt2.py."""
    from arguments import parse_generate_args
    from generation.requests import new_text
    from generation.text_generator import TextGenerator

    words = ["--model-name-or-path", settings["folder"], "--topk", "1", "--repetition-penalty", "1"]
    words += ["--input-len", str(settings["prompt"]), "--output-len", str(settings["tokens"])]
    generator = TextGenerator(parse_generate_args(words))

    def text() -> dict[str, Any]:
        one = new_text(range(1000, 1000 + settings["prompt"]), settings["tokens"], 0)
        start = time.perf_counter()
        times = [time.perf_counter() for _ in generator._generate([one])]
        return {"token": (times[-1] - times[0]) / (len(times) - 1), "prefill": times[0] - start}

    return {"text": text}


def transformers(settings: dict[str, Any]) -> dict[str, Answer]:
    """generate() of all prompts as one batch, greedy."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(settings["folder"]).eval()

    def batch() -> dict[str, Any]:
        prompts = torch.randint(1000, 50000, (settings["clients"], settings["prompt"]))
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=settings["tokens"],
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        return {"tokens_per_second": settings["clients"] * settings["tokens"] / (time.perf_counter() - start)}

    return {"batch": batch}


def llama_cpp(settings: dict[str, Any]) -> dict[str, Answer]:
    """llama.cpp's server through xllamacpp, with as many slots as clients."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(Path(settings["folder"]) / "float32.gguf")
    params.n_parallel = settings["clients"]
    params.n_ctx = settings["clients"] * (settings["prompt"] + settings["tokens"] + 8)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.warmup, params.verbosity, params.port = True, -1, 0
    server = xllamacpp.Server(params)
    return {"address": lambda: {"address": server.listening_address.partition("://")[2] or server.listening_address}}


def requests(settings: dict[str, Any]) -> dict[str, Answer]:
    """What answers each request."""
    sides = {"alone": alone, "transformers": transformers, "llama.cpp": llama_cpp}
    return sides[settings["side"]](settings)


if __name__ == "__main__":
    serve(requests)
