"""What benchmarks/seeds.py measures: for each part its runs, its results, and their table in Markdown."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any, Callable, NamedTuple, Sequence

from benchmarks.seeds_runs import BATCH, LENGTH, Runs, Settings

SCALE = (6, 192, 6)  # layers, width, heads: the width has a third and a sixth that are whole
DEEP = (12, 96, 4)  # as many layers as the published runs, for what depth does
RATE = "0.003"
# Published E of 512, 256 and 128 are two thirds, a third and a sixth of the width 768.
SHARING = {
    "GPT-2": "gpt2",
    "ALGPT2, E none": "algpt2-unfactorised",
    "ALGPT2, E 2/3": "algpt2-512",
    "ALGPT2, E 1/3": "algpt2-256",
    "ALGPT2, E 1/6": "algpt2",
}
SMALL_BATCH = 4  # for twice as many updates where what is compared shows late
# Without them the gradient of a block that is shared by all layers grows until factorised models diverge at this rate:
# by itself and, at a larger loss scale, beyond half's largest number (a factor of 10 million from the last layer on).
STEADY = ["--gradient-clipping", "1.0", "--loss-scaling", "4"]
POSTLN = {"PreLN": "tfchat-preln", "PostLN": "tfchat-postln"}
POSTLN_RATES = ("0.0003", "0.001", "0.003")
ALIBI = {"ALiBi": "gpt-127-star", "learned positions": "gpt-star-124m"}
WARMUP = (32, 48, 64, 96)  # a quarter of the published 128, 192, 256, 384, before LENGTH, a quarter of 512


class Part(NamedTuple):
    """A question: the results of its runs, and the lines of its section in docs/."""

    title: str
    measure: Callable[[Runs, Settings], dict[str, Any]]
    lines: Callable[[dict[str, Any]], list[str]]


def _flags(steps: int, seed: int, batch: int = BATCH) -> list[str]:
    """Of a run that takes `steps` updates from a peak rate down to 0: AdamW, no dropout, less than one pass."""
    words = ["--optimizer", "AdamW", "--learning-rate", RATE, "--lr-schedule", "cosine", "--lr-warmup-steps"]
    words += [str(max(1, steps // 10)), "--batch-size", str(batch), "--dropout", "0", "--epochs", "10"]
    return [*words, "--training-steps", str(steps), "--seed", str(seed), "--log-steps", "10"]


def _perplexity(figures: dict[str, Any]) -> float:
    """Infinite if the run diverged."""
    loss = figures["held_out_loss"]
    return math.inf if loss is None else math.exp(loss)


def _perplexities(row: dict[str, Any]) -> list[float]:
    """Of the runs of a row, and at the end their mean."""
    values = [_perplexity(figures) for figures in row["runs"]]
    return [*values, statistics.fmean(values)]


def _scale(config: Any) -> str:
    return f"{config.n_layer} layers of {config.n_embd}, {config.n_head} heads"


def sharing(runs: Runs, settings: Settings) -> dict[str, Any]:
    """Perplexity of GPT-2 and ALGPT2 by E, after equally many steps."""
    from model.config import parameter_count

    rows, steps = [], settings.steps * BATCH // SMALL_BATCH
    for label, model in SHARING.items():
        config = runs.config(model, *SCALE)
        figures = [
            runs.train(f"sharing/{model}-{seed}", config, [*_flags(steps, seed, SMALL_BATCH), *STEADY])
            for seed in settings.seeds
        ]
        row = {"model": label, "E": config.embedding_size, "parameters": parameter_count(config)}
        rows.append({**row, "runs": figures})
    return {"scale": _scale(config), "steps": steps, "seeds": settings.seeds, "rows": rows}


def sharing_lines(found: dict[str, Any]) -> list[str]:
    """The order in one sentence below the table."""
    seeds = found["seeds"]
    lines = [
        f"{found['scale']}, {found['steps']} updates of {SMALL_BATCH} x {LENGTH} tokens, AdamW at {RATE}, the "
        "gradient's norm at most 1. Published: 21.5 for GPT-2, 31, 31, 34 and 38 for ALGPT2 (training text).",
        "",
        _row(["model", "E", "parameters", *(f"perplexity, seed {seed}" for seed in seeds), "mean"]),
        _rule(4 + len(seeds)),
    ]
    means = []
    for row in found["rows"]:
        values = _perplexities(row)
        means.append(values[-1])
        cells = [row["model"], str(row["E"] or "-"), f"{row['parameters']:,}"]
        lines.append(_row([*cells, *(f"{value:.2f}" for value in values)]))
    names = [row["model"] for row in found["rows"]]
    wrong = [
        f"{names[i]} ({means[i]:.2f}) is not {'at most' if i == 1 else 'below'} {names[i + 1]} ({means[i + 1]:.2f})"
        for i in range(len(means) - 1)
        if not (means[i] <= means[i + 1] if i == 1 else means[i] < means[i + 1])
    ]
    order = "The published order, GPT-2 < none <= 2/3 < 1/3 < 1/6,"
    verdict = f"{order} does not show: {'; '.join(wrong)}." if wrong else f"{order} shows in the means."
    return [*lines, "", verdict]


def postln(runs: Runs, settings: Settings) -> dict[str, Any]:
    """Held-out loss of PreLN and PostLN by the peak rate: Adam, clipnorm 1, linear to 0, no warm-up, as published."""
    seed, steps = settings.seeds[0], settings.steps * BATCH // SMALL_BATCH
    rows = []
    for rate in POSTLN_RATES:
        row: dict[str, Any] = {"rate": rate}
        for label, model in POSTLN.items():
            config = runs.config(model, *DEEP)
            words = [*_flags(steps, seed, SMALL_BATCH), "--optimizer", "Adam", "--tensor-gradient-clipping", "1.0"]
            words += ["--learning-rate", rate, "--lr-schedule", "linear", "--lr-warmup-steps", "0"]
            row[label] = runs.train(f"postln/{model}-{rate}", config, words)
        rows.append(row)
    return {
        **{"scale": _scale(config), "steps": steps, "seeds": [seed]},
        **{"unigram_loss": runs.unigram(seed), "rows": rows},
    }


def postln_lines(found: dict[str, Any]) -> list[str]:
    """A model fails where it ends no better than a unigram model: the published PostLN ended at 7.46."""
    unigram = found["unigram_loss"]
    lines = [
        f"{found['scale']}, {found['steps']} updates of {SMALL_BATCH} x {LENGTH} tokens, Adam, clipnorm 1.0, linear to "
        f"0 without warm-up, seed {found['seeds'][0]}. Published, with 12 layers of 768: PreLN 20.13, PostLN 1730.9, "
        "both at 1e-4.",
        "",
        _row(["rate", *(f"held-out loss, {label}" for label in POSTLN), "unigram model"]),
        _rule(2 + len(POSTLN)),
    ]
    fails, both = [], []
    for row in found["rows"]:
        losses = [row[label]["held_out_loss"] for label in POSTLN]
        shown = [f"{loss:.3f}" if loss is not None and math.isfinite(loss) else "not finite" for loss in losses]
        lines.append(_row([row["rate"], *shown, f"{unigram:.3f}"]))
        learns = [loss is not None and loss < unigram for loss in losses]
        if learns == [True, False]:
            fails.append(row["rate"])
        elif learns == [True, True]:
            both.append(row["rate"])
    also = f"; at {_list(both)} both learn" if both else ""
    if fails:
        verdict = f"At {_list(fails)} PreLN learns and PostLN fails: it ends no better than a unigram model{also}."
    else:
        verdict = f"There is no rate here at which PreLN learns and PostLN ends no better than a unigram model{also}."
    return [*lines, "", verdict]


def alibi(runs: Runs, settings: Settings) -> dict[str, Any]:
    """Token perplexity of held-out articles at one, two and four times the length of training."""
    seed, lengths = settings.seeds[0], [LENGTH, 2 * LENGTH, 4 * LENGTH]
    rows = []
    for label, model in ALIBI.items():
        config, name = runs.config(model, *SCALE), f"alibi/{model}-{seed}"
        figures = runs.train(name, config, _flags(settings.steps, seed), keep=True)
        rows.append({"model": label, "run": figures, "by_length": [runs.evaluate(name, n) for n in lengths]})
    return {"scale": _scale(config), "steps": settings.steps, "seeds": [seed], "lengths": lengths, "rows": rows}


def alibi_lines(found: dict[str, Any]) -> list[str]:
    """What ALiBi makes of a longer context, and what the matrix of positions says to it."""
    lines = [
        f"{found['scale']}, trained on {LENGTH} tokens for {found['steps']} updates of {BATCH} samples, seed "
        f"{found['seeds'][0]}; held-out articles in windows that share no token. ALiBi is GPT-127\\*'s block, with "
        "one norm and a parallel residual. Published: 37.99, 36.29 and 35.59 of WikiText-2 at 1,024, 2,048 and 4,096 "
        "tokens, trained at 512.",
        "",
        _row(["model", *(f"perplexity at {length}" for length in found["lengths"])]),
        _rule(1 + len(found["lengths"])),
    ]
    for row in found["rows"]:
        cells = ["refused" if "refused" in each else f"{each['perplexity']:.2f}" for each in row["by_length"]]
        lines.append(_row([row["model"], *cells]))
    at, learned = [[each.get("perplexity") for each in row["by_length"]] for row in found["rows"]]
    worse = [length for length, value in zip(found["lengths"], at) if value > at[0]]
    verdict = (
        f"ALiBi is worse at {_list(map(str, worse))} than at {LENGTH}." if worse else "ALiBi gets no worse with length."
    )
    refusal = next((each["refused"] for each in found["rows"][1]["by_length"] if "refused" in each), None)
    if refusal is not None:
        verdict += f" With learned positions the program says: `{refusal}`"
    elif None not in learned:
        verdict += " With learned positions the longer windows were computed too."
    return [*lines, "", verdict]


def speed(runs: Runs, settings: Settings) -> dict[str, Any]:
    """Tokens a second of one change at a time, in rounds of all of them: machines drift."""
    from training.log.machine import flops_per_token

    batch, length, rounds, calls = 4, 256, 3, max(4, settings.steps // 30)
    plain = runs.config("gpt-star-124m", 12, 384, 6)
    star = runs.config("gpt-127-star", 6, 512, 4)
    variants = {
        "plain": plain,
        "parallel residual": dataclasses.replace(plain, parallel_residual=True),
        "half the heads, twice as wide": dataclasses.replace(plain, n_head=3),
        "6 layers of 512, 4 heads": dataclasses.replace(plain, n_layer=6, n_embd=512, n_head=4),
        "ALiBi": dataclasses.replace(plain, position_embedding="alibi"),
        "all of them (GPT-127\\*)": star,
    }
    made: dict[str, list[dict[str, Any]]] = {label: [] for label in variants}
    words = ["--train-path", "generated", "--max-len", str(length), *_flags(calls, settings.seeds[0], batch)]
    words += ["--log-steps", "1"]
    for index in range(rounds):
        for number, (label, config) in enumerate(variants.items()):
            made[label].append(runs.train(f"speed/{number}-{index}", config, words))
    speeds = {label: [figures["samples_per_second"] * length for figures in made[label]] for label in variants}
    base = flops_per_token(plain, length)
    rows = [
        {
            "model": label,
            "tokens_per_second": speeds[label],
            "to_plain": [mine / other for mine, other in zip(speeds[label], speeds["plain"])],
            "operations_to_plain": flops_per_token(config, length) / base,
            "runs": made[label],
        }
        for label, config in variants.items()
    ]
    return {"scale": _scale(plain), "batch": batch, "length": length, "updates": calls, "rounds": rounds, "rows": rows}


def speed_lines(found: dict[str, Any]) -> list[str]:
    """Medians over the rounds; the ratio is that within a round."""
    lines = [
        f"Plain: {found['scale']}. {found['batch']} x {found['length']} tokens an update, forward, backward and AdamW, "
        f"{found['updates']} updates in each of {found['rounds']} rounds; medians. Published: 5 to 10 % for the "
        "parallel residual, 10 to 15 % for fewer, wider heads in half the layers, about 25 % for all, on GPUs.",
        "",
        _row(["model", "tokens/s", "to plain", "least and most", "operations a token, to plain"]),
        _rule(5),
    ]
    gains = {}
    for row in found["rows"]:
        ratio, ratios = statistics.median(row["to_plain"]), row["to_plain"]
        gains[row["model"]] = ratio - 1
        cells = [f"{statistics.median(row['tokens_per_second']):,.0f}", f"{ratio:.3f}"]
        cells += [f"{min(ratios):.3f} to {max(ratios):.3f}", f"{row['operations_to_plain']:.3f}"]
        lines.append(_row([row["model"], *cells]))
    parallel, wide = gains["parallel residual"], gains["6 layers of 512, 4 heads"]
    verdict = f"Measured here: parallel residual {parallel:+.1%}, fewer, wider heads in half the layers {wide:+.1%}."
    return [*lines, "", verdict]


def warmup(runs: Runs, settings: Settings) -> dict[str, Any]:
    """Perplexity after equally many tokens, from short samples to long ones or all of one length."""
    # s updates at each short length take s * sum(WARMUP) tokens a sample, as many as s * 240 / 128 updates of the full
    # length; of a multiple of 8 that is a whole number.
    stage = 8 * max(1, settings.steps // 80)
    calls = settings.steps + len(WARMUP) * stage - stage * sum(WARMUP) // LENGTH
    short = ["--sequence-warmup", *map(str, WARMUP), "--sequence-warmup-steps", str(stage)]
    kinds = {"fixed length": (settings.steps, []), "sequence-length warm-up": (calls, short)}
    config, rows = runs.config("gpt-127-star", *SCALE), []
    for label, (steps, words) in kinds.items():
        # The run of fixed length is the one that the part about ALiBi has, checkpoint and all.
        name = "warmup/gpt-127-star" if words else "alibi/gpt-127-star"
        figures = [
            runs.train(f"{name}-{seed}", config, [*_flags(steps, seed), *words], keep=not words)
            for seed in settings.seeds
        ]
        rows.append({"model": label, "runs": figures})
    return {"scale": _scale(config), "stage": stage, "seeds": settings.seeds, "rows": rows}


def warmup_lines(found: dict[str, Any]) -> list[str]:
    """Perplexity at the full length."""
    seeds = found["seeds"]
    lines = [
        f"GPT-127\\*'s block, {found['scale']}, AdamW at {RATE}; warm-up: {found['stage']} updates each on the first "
        f"{', '.join(map(str, WARMUP))} tokens of the samples, then all {LENGTH}. No comparison was published.",
        "",
        _row(["run", "updates", "tokens", *(f"perplexity, seed {seed}" for seed in seeds), "mean"]),
        _rule(4 + len(seeds)),
    ]
    means = []
    for row in found["rows"]:
        values = _perplexities(row)
        means.append(values[-1])
        cells = [row["model"], f"{row['runs'][0]['steps']:,}", f"{row['runs'][0]['tokens']:,}"]
        lines.append(_row([*cells, *(f"{value:.2f}" for value in values)]))
    what = "lower" if means[1] < means[0] else "higher" if means[1] > means[0] else "the same"
    return [*lines, "", f"By the means it is {what} with warm-up: {means[1]:.2f}, at a fixed length {means[0]:.2f}."]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return _row(["----"] * columns)


def _list(names: Any) -> str:
    return " and ".join(filter(None, [", ".join((names := list(names))[:-1]), names[-1]]))


PARTS = {
    "sharing": Part("Shared blocks and factorised embeddings", sharing, sharing_lines),
    "postln": Part("Layer norms first or last", postln, postln_lines),
    "alibi": Part("Beyond the length of training", alibi, alibi_lines),
    "speed": Part("Speed", speed, speed_lines),
    "warmup": Part("Sequence-length warm-up", warmup, warmup_lines),
}
