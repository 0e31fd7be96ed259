"""What a run will take, before anything starts: the plan that --compile-only prints."""

from __future__ import annotations

import argparse
import dataclasses

from model.config import GPT2Config, parameter_count
from model.placement import layer_ipus

HALF, FLOAT = 2, 4  # bytes


@dataclasses.dataclass
class StagePlan:
    """One pipeline stage: what is in it, its own parameters, and bytes by use.

    The head's matrix is the token embedding's and counts there.
    """

    index: int
    ipu: int
    parts: list[str]
    layers: list[int]
    parameters: int = 0
    weight_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0

    def line(self, optimizer_offchip: bool) -> str:
        """One row of the plan."""
        parts = list(self.parts)
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            parts.append(f"layer {first}" if first == last else f"layers {first}-{last}")
        on_chip = self.weight_bytes + self.activation_bytes + (0 if optimizer_offchip else self.optimizer_bytes)
        where = "off chip" if optimizer_offchip else "on chip"
        return (
            f"stage {self.index} on IPU {self.ipu}: {', '.join(parts)}; {self.parameters:,} parameters, about "
            f"{_mib(on_chip)} on chip (weights and gradients {_mib(self.weight_bytes)}, activations "
            f"{_mib(self.activation_bytes)}), optimizer state {_mib(self.optimizer_bytes)} {where}"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def layer_parameters(config: GPT2Config) -> int:
    """Parameters of one block."""
    one, two = (parameter_count(dataclasses.replace(config, n_layer=layers)) for layers in (1, 2))
    return two - one


def layer_activation_bytes(config: GPT2Config, batch_size: int, length: int) -> int:
    """Half activations that one block keeps for its backward pass: B T C (34 + 5 H T / C) bytes.

    Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 1.
    """
    return batch_size * length * (34 * config.n_embd + 5 * config.n_head * length)


def stage_plans(config: GPT2Config, args: argparse.Namespace) -> list[StagePlan]:
    """The stages of the forward pipeline: half weights and gradients, half first and float32 second moment.

    A pipeline of n stages has up to 2 (n - i) - 1 micro-batches under way in stage i. Of a recomputed block each of
    them keeps only its input, and one at a time its full activations.
    """
    stages = _stages(config, args)
    tokens = args.batch_size * args.max_len
    positions = args.serialized_seq_len if args.enable_sequence_serialized else args.max_len
    full = layer_activation_bytes(config, args.batch_size, args.max_len)
    vector = tokens * config.n_embd * HALF  # what passes from one part to the next
    shards = args.replication_factor if args.replicated_tensor_sharding else 1
    sizes = {
        "token embedding": config.vocab_size * config.n_embd,
        "position embedding": config.n_positions * config.n_embd,
    }
    for stage in stages:
        recomputed = [layer for layer in stage.layers if layer in args.recompute_checkpoint_layers]
        stage.parameters = sum(sizes.get(part, 0) for part in stage.parts)
        stage.parameters += len(stage.layers) * layer_parameters(config)
        if config.n_layer - 1 in stage.layers:
            stage.parameters += 2 * config.n_embd  # the last layer norm follows the last block
        stage.weight_bytes = stage.parameters * 2 * HALF
        stage.optimizer_bytes = stage.parameters * (HALF + FLOAT) // shards
        kept = len(recomputed) * vector + (len(stage.layers) - len(recomputed)) * full
        kept += sum(vector for part in stage.parts if part in sizes)
        stage.activation_bytes = kept * (2 * (len(stages) - stage.index) - 1) + (full if recomputed else 0)
        if "head" in stage.parts:
            # Half logits and their float32 copy in the loss, of one micro-batch: the last stage has no more under way.
            stage.activation_bytes += positions * args.batch_size * config.vocab_size * (HALF + FLOAT)
    return stages


def _stages(config: GPT2Config, args: argparse.Namespace) -> list[StagePlan]:
    """Which parts and layers are in which stage: neighbours on one IPU are one stage."""
    layers = layer_ipus(args.layers_per_ipu)
    visits = [(0, "token embedding"), (min(1, len(args.layers_per_ipu) - 1), "position embedding")]
    stages: list[StagePlan] = []
    for ipu, part in [*visits, *((ipu, layer) for layer, ipu in enumerate(layers)), (0, "head")]:
        if not stages or stages[-1].ipu != ipu:
            stages.append(StagePlan(len(stages), ipu, [], []))
        (stages[-1].layers if isinstance(part, int) else stages[-1].parts).append(part)
    return stages


def plan_lines(config: GPT2Config, args: argparse.Namespace, samples_a_call: int) -> list[str]:
    """The plan, a line each: the model, a step (one call of the training model), and every stage."""
    lines = [
        f"{parameter_count(config):,} parameters in {config.n_layer} layers",
        f"a step: {samples_a_call:,} samples, {samples_a_call * args.max_len:,} tokens, {args.device_iterations} "
        f"weight updates on {args.ipus_per_replica} IPUs x {args.replication_factor} replicas",
    ]
    return lines + [stage.line(args.optimizer_state_offchip) for stage in stage_plans(config, args)]
