"""The processes of train_step.py and its like: each makes one weight update whenever its standard input asks for it.

Requests, a line each: "step" -> {"seconds", "processor_seconds"}, "product" -> {"gflops", "type"},
"memory" -> {"peak_gb", "loss"}.
"""

from __future__ import annotations

import inspect
import resource
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_process import serve  # noqa: E402

LOSS_SCALING = 1024.0
RATE = 1e-4


def our_model(settings: dict[str, Any]) -> Any:
    """The application's model and loss, newly made: of the config.json in the settings, or GPT-2 of their size."""
    from model.config import GPT2Config
    from model.gpt2 import GPT2LMHeadModel
    from model.pretraining import PretrainingModel

    if "config" in settings:
        return PretrainingModel(GPT2LMHeadModel(GPT2Config.from_dict(settings["config"]))).train()
    vocabulary = settings["vocabulary"]
    config = GPT2Config(
        vocab_size=-(-vocabulary // 16) * 16,
        real_vocab_size=vocabulary,
        n_positions=settings["length"],
        n_embd=settings["width"],
        n_layer=settings["layers"],
        n_head=settings["heads"],
        resid_pdrop=settings["dropout"],
        embd_pdrop=settings["dropout"],
        attn_pdrop=settings["dropout"],
        activation_function="gelu_new",
    )
    return PretrainingModel(GPT2LMHeadModel(config)).train()


def our_step(settings: dict[str, Any]) -> Callable[[], float]:
    """The application's model and loss through poptorch.trainingModel."""
    import poptorch
    import torch

    model = our_model(settings)
    states = {}
    if settings["half"]:
        model.half()
        states = dict(
            loss_scaling=LOSS_SCALING, accum_type=torch.float16, first_order_momentum_accum_type=torch.float16
        )
    options = poptorch.Options()
    options.randomSeed(0)
    if settings["half"]:
        options.Precision.enableStochasticRounding(True)
    accumulation = _accumulation(settings)
    options.Training.gradientAccumulation(accumulation)
    options.outputMode(poptorch.OutputMode.All)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, **states)
    training = poptorch.trainingModel(model, options, optimizer)
    inputs = _batch(settings)
    if "label_counts" in inspect.signature(model.forward).parameters:  # older checkouts have none
        inputs += (torch.full((accumulation, 2), float(settings["batch"] * settings["length"])),)

    def step() -> float:
        loss, _ = training(*inputs)
        return float(loss.mean())

    return step


def transformers_step(settings: dict[str, Any]) -> Callable[[], float]:
    """GPT2LMHeadModel with scaled_dot_product_attention, its own loss and torch's fused AdamW; "compiled": by torch."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=settings["vocabulary"],
        n_positions=settings["length"],
        n_embd=settings["width"],
        n_layer=settings["layers"],
        n_head=settings["heads"],
        resid_pdrop=settings["dropout"],
        embd_pdrop=settings["dropout"],
        attn_pdrop=settings["dropout"],
        use_cache=False,
        attn_implementation="sdpa",
    )
    device = settings["device"]
    model = GPT2LMHeadModel(config).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    if settings["side"] == "compiled":
        model = torch.compile(model)
    half = torch.float16 if device == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(device, enabled=settings["half"] and half == torch.float16)
    batches = list(zip(*(tensor.to(device).long().split(settings["batch"]) for tensor in _batch(settings))))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for ids, labels in batches:
            with torch.autocast(device, half, enabled=settings["half"]):
                # The labels are shifted already, as ours are.
                loss = model(input_ids=ids, labels=labels, shift_labels=labels).loss / len(batches)
            scaler.scale(loss).backward()
            total += loss.detach()
        scaler.step(optimizer)
        scaler.update()
        return float(total)

    return step


def _accumulation(settings: dict[str, Any]) -> int:
    """Micro-batches of a weight update."""
    return settings.get("accumulation", 1)


def _batch(settings: dict[str, Any]) -> Any:
    """Two (A B, T) int32 tensors, of A micro-batches of B samples: random ids, and each one's successor."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (_accumulation(settings) * settings["batch"], settings["length"] + 1)
    ids = torch.randint(settings["vocabulary"], shape, generator=generator, dtype=torch.int32)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def product_speed(device: str, half: bool) -> dict[str, Any]:
    """GFLOP/s of a square matrix product, the best of five, and its type: on a CPU, with `half`, the faster one."""
    import torch

    size = 8192 if device == "cuda" else 2048
    dtype = torch.float16 if half and device == "cuda" else torch.float32
    if half and device == "cpu" and _product_speed(1024, torch.bfloat16, device) > _product_speed(1024, dtype, device):
        dtype = torch.bfloat16
    return {"gflops": _product_speed(size, dtype, device), "type": str(dtype).replace("torch.", "")}


def _product_speed(size: int, dtype: Any, device: str) -> float:
    import torch

    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e9


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_gb(device: str) -> float:
    """The largest resident memory of this process, or what torch had allocated on the GPU, in 10^9 bytes."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def use_checkout(folder: Path) -> None:
    """Application and runtime are imported from another checkout of this tree. RuntimeError if they are not."""
    sys.path[:0] = [str(folder), str(folder / "portable")]
    import poptorch

    import model

    for module in (poptorch, model):
        if not Path(module.__file__).is_relative_to(folder):
            raise RuntimeError(f"{module.__name__} is that of {module.__file__}, not of {folder}")


def requests(settings: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What answers each request."""
    if "checkout" in settings:
        use_checkout(Path(settings["checkout"]))
    import torch

    torch.manual_seed(0)
    device = settings["device"]
    step = (our_step if settings["side"] == "ours" else transformers_step)(settings)
    loss = float("nan")

    def timed() -> dict[str, float]:
        nonlocal loss
        _wait(device)
        start, worked = time.perf_counter(), time.process_time()
        loss = step()
        _wait(device)
        return {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - worked}

    return {
        "step": timed,
        "product": lambda: product_speed(device, settings["half"]),
        "memory": lambda: {"peak_gb": peak_memory_gb(device), "loss": loss},
    }


if __name__ == "__main__":
    serve(requests)
