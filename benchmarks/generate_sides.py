"""The processes of generate.py: each continues the same prompt whenever its standard input asks for it.

Requests, a line each: "generate" -> {"milliseconds" from token to token, "tokens"}. prefill.py's sides are ours, too:
"prefill" -> {"seconds" of a prompt of settings["prompt"] tokens}, "product" -> {"gflops", "type"} of a matrix product.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_process import serve  # noqa: E402
from benchmarks.train_step_sides import product_speed  # noqa: E402

PROMPT = list(range(100, 132))  # 32 token ids; what they are does not matter with random weights
Answer = Callable[[], dict[str, Any]]


def between(times: list[float]) -> float:
    """Milliseconds from one token to the next, the first one (and with it the prompt) left out."""
    return 1000 * (times[-1] - times[0]) / (len(times) - 1)


def ours(settings: dict[str, Any]) -> dict[str, Answer]:
    """text_generate_gpt2.py's generator, without its tokenizer."""
    import torch

    from arguments import parse_generate_args
    from generation.requests import new_text
    from generation.text_generator import TextGenerator

    flags = {"float32": [], "float16": ["--fp16"], "int8": ["--int8"]}[settings["precision"]]
    longest = settings.get("prompt", len(PROMPT) if settings["way"] == "loop" else 512)
    words = ["--model-name-or-path", settings["folder"], "--input-len", str(longest), "--topk", "1", *flags]
    words += ["--output-len", str(settings["tokens"]), "--repetition-penalty", "1"]
    if settings["way"] == "loop":
        words += ["--poptorch-loop", "true", "--single-ipu", "true"]
    if settings["way"] == "modules":
        words += ["--custom-ops", "false"]
    generator = TextGenerator(parse_generate_args([*words, "--batch-size", str(settings["batch"])]))

    def continuation() -> dict[str, Any]:
        texts = [new_text(PROMPT, settings["tokens"], 0) for _ in range(settings["batch"])]
        start = time.perf_counter()
        if settings["way"] == "loop":
            tokens = [text.tokens for text in generator._generate(texts)]
            return {"milliseconds": 1000 * (time.perf_counter() - start) / settings["tokens"], "tokens": tokens[0]}
        times = [time.perf_counter() for text in generator._generate(texts)]
        return {"milliseconds": between(times[:: settings["batch"]]), "tokens": texts[0].tokens}

    def prefill() -> dict[str, Any]:
        if generator.width < longest:
            raise RuntimeError(f"a call takes {generator.width} tokens of a prompt.\nHINT: run `make`")
        ids = torch.zeros(1, longest, dtype=torch.int32)
        count = torch.tensor([longest], dtype=torch.int32)
        if settings["way"] == "loop":
            inputs = (ids, count, torch.zeros(1, settings["tokens"]))
        else:
            inputs = (ids, count * 0, count, torch.zeros(1))
        start = time.perf_counter()
        generator.executor(*inputs)
        return {"seconds": time.perf_counter() - start}

    half = settings["precision"] == "float16"
    return {"generate": continuation, "prefill": prefill, "product": lambda: product_speed("cpu", half)}


def transformers(settings: dict[str, Any]) -> dict[str, Answer]:
    """transformers' generate(), greedy, with its default cache."""
    import torch
    from transformers import GPT2LMHeadModel
    from transformers.generation.streamers import BaseStreamer

    class Watch(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    model = GPT2LMHeadModel.from_pretrained(settings["folder"]).eval()

    def continuation() -> dict[str, Any]:
        watch = Watch()
        with torch.inference_mode():
            ids = model.generate(
                torch.tensor([PROMPT]),
                attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
                max_new_tokens=settings["tokens"],
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                streamer=watch,
            )
        return {"milliseconds": between(watch.times[1:]), "tokens": ids[0, len(PROMPT) :].tolist()}

    return {"generate": continuation}


def llama_cpp(settings: dict[str, Any]) -> dict[str, Answer]:
    """llama.cpp through xllamacpp, from a GGUF file with these weights; the times are its own."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(Path(settings["folder"]) / f"{settings['precision']}.gguf")
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def continuation() -> dict[str, Any]:
        request = {
            "prompt": PROMPT,
            "n_predict": settings["tokens"],
            "temperature": 0.0,
            "top_k": 1,
            "ignore_eos": True,
        }
        request.update(cache_prompt=False)
        answer = server.handle_completions(request)
        if "timings" not in answer:
            raise RuntimeError(f"llama.cpp answered {answer}")
        return {
            "milliseconds": answer["timings"]["predicted_per_token_ms"],
            "tokens": [],
        }  # it gives text, and this vocabulary is a stand-in

    return {"generate": continuation}


def write_gguf(folder: Path, precision: str) -> None:
    """The checkpoint in `folder` as <precision>.gguf, for llama.cpp."""
    from model.convert.__main__ import main as convert

    dtype = "q8_0" if precision == "int8" else precision
    if convert([str(folder), str(folder / f"{precision}.gguf"), "--to", "gguf", "--dtype", dtype, "--overwrite"]):
        raise RuntimeError(f"{folder}: not written as GGUF")


def requests(settings: dict[str, Any]) -> dict[str, Answer]:
    """What answers each request."""
    sides = {"ours": ours, "transformers": transformers, "llama.cpp": llama_cpp}
    return sides[settings["side"]](settings)


if __name__ == "__main__":
    serve(requests)
