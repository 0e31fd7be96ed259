"""What a run will take, before anything starts: the plan that --compile-only prints."""

from __future__ import annotations

import dataclasses
from typing import List, Sequence

from model.config import GPT2Config
from model.placement import layer_ipus

HALF, FLOAT = 2, 4  # bytes


@dataclasses.dataclass
class StagePlan:
    """One IPU's share: parameters, and bytes by use."""

    ipu: int
    layers: List[int]
    parameters: int
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    def line(self, optimizer_offchip: bool) -> str:
        """One row of the plan."""
        names = f"layers {self.layers[0]}-{self.layers[-1]}" if self.layers else "no layers"
        on_chip = self.weight_bytes + self.activation_bytes + (0 if optimizer_offchip else self.optimizer_bytes)
        where = "off chip" if optimizer_offchip else "on chip"
        return (
            f"IPU {self.ipu}: {names}, {self.parameters:,} parameters, about {_mib(on_chip)} on chip (weights and "
            f"gradients {_mib(self.weight_bytes)}, activations {_mib(self.activation_bytes)}), optimizer state "
            f"{_mib(self.optimizer_bytes)} {where}"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def layer_parameters(config: GPT2Config) -> int:
    """Parameters of one block: 12 C^2 + 13 C for an inner size of 4 C."""
    width, inner = config.n_embd, config.inner_size
    attention = width * 3 * width + 3 * width + width * width + width
    mlp = width * inner + inner + inner * width + width
    return attention + mlp + 4 * width


def layer_activation_bytes(config: GPT2Config, batch_size: int, length: int) -> int:
    """Half activations that one block keeps for its backward pass: B T C (34 + 5 H T / C) bytes.

    Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 1.
    """
    return batch_size * length * (34 * config.n_embd + 5 * config.n_head * length)


def stage_plans(
    config: GPT2Config, layers_per_ipu: Sequence[int], batch_size: int, length: int, recomputed: Sequence[int]
) -> List[StagePlan]:
    """The share of each IPU in training: half weights and gradients, half first and float32 second moment.

    A pipeline of n stages has up to 2 (n - i) - 1 micro-batches under way in stage i; of a recomputed block each keeps
    only its output, and one at a time its full activations.
    """
    ipus = layer_ipus(layers_per_ipu)
    stages = len(layers_per_ipu)
    plans = []
    for ipu in range(stages):
        layers = [layer for layer, place in enumerate(ipus) if place == ipu]
        parameters = len(layers) * layer_parameters(config)
        if ipu == 0:
            parameters += config.vocab_size * config.n_embd  # token embedding, shared with the head
        if ipu == min(1, stages - 1):
            parameters += config.n_positions * config.n_embd
        if ipu == stages - 1:
            parameters += 2 * config.n_embd  # the last layer norm
        in_flight = max(1, 2 * (stages - ipu) - 1)
        full = layer_activation_bytes(config, batch_size, length)
        output = batch_size * length * config.n_embd * HALF
        kept = sum(output if layer in recomputed else full for layer in layers) * in_flight
        working = full if any(layer in recomputed for layer in layers) else 0
        logits = batch_size * length * config.vocab_size * (HALF + FLOAT) if ipu == 0 else 0
        plans.append(
            StagePlan(
                ipu=ipu,
                layers=layers,
                parameters=parameters,
                weight_bytes=parameters * 2 * HALF,
                optimizer_bytes=parameters * (HALF + FLOAT),
                activation_bytes=kept + working + logits,
            )
        )
    return plans
