"""Generation as PopTorch programs: one token a call with the cache in buffers, or the whole text in one call.

A step takes a few tokens of each row of a batch: prompts go in several tokens at a time, then each token as it comes.
Rows are independent. Shapes as in gpt2.py, with S slots of cache.
"""

from __future__ import annotations

from typing import Sequence

import poptorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom_ops import decode_blocks as native
from custom_ops.top_scores import top_scores, unlooked_at
from generation.sampling import Sampling, choose
from model.attention import at_positions, padding_scores
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.kv_cache import layer_caches, token_positions
from model.placement import place
from model.positions import alibi_slopes


class ModuleSteps(nn.Module):
    """Steps by the model's own modules, wherever PopTorch runs them."""

    def __init__(self, gpt2: GPT2LMHeadModel, layers_per_ipu: Sequence[int]) -> None:
        super().__init__()
        place(gpt2, layers_per_ipu, training=False)
        self.gpt2 = gpt2

    best = staticmethod(top_scores)

    def new_caches(self, batch: int, slots: int, device: torch.device | None = None) -> list[Tensor]:
        """Zeros for keys and values of each layer: (B, H, slots + 1, D), the last slot for padding.

        Behind them, if the model has a padding_id, (B, slots + 1): 1 where the token is that. In floating point too:
        PopTorch's integer buffers do not keep what is written to them.
        """
        config, dtype = self.gpt2.config, self.gpt2.lm_head.weight.dtype
        shape = (batch, config.n_head, slots + 1, config.head_size)
        caches = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * config.n_layer)]
        if config.padding_id is not None:
            caches.append(torch.zeros(batch, slots + 1, dtype=dtype, device=device))
        return caches

    def forward(self, input_ids: Tensor, start: Tensor, count: Tensor, caches: Sequence[Tensor]) -> Tensor:
        """Logits behind the last token of each row, over the real vocabulary, in float32.

        Args:
            input_ids: (B, T) integers, of which the first count[b] are tokens of row b.
            start, count: (B,) integers; start[b] is the position of row b's first token here.
            caches: what new_caches gave, changed in place.
        """
        hidden = self.hidden(input_ids, start, count, caches)
        return self.logits(at_positions(hidden, (count.long() - 1).clamp(min=0).unsqueeze(1)), count)

    def hidden(self, input_ids: Tensor, start: Tensor, count: Tensor, caches: Sequence[Tensor]) -> Tensor:
        """(B, T, E): what `logits` takes."""
        config, half = self.gpt2.config, len(caches) // 2
        padding = None  # (B, 1, 1, S)
        positions = token_positions(start.long(), count.long(), input_ids.shape[1], caches[0].shape[2])  # (B, T)
        if config.padding_id is not None:
            caches[-1].scatter_(1, positions, (input_ids == config.padding_id).to(caches[-1].dtype))
            padding = padding_scores(caches[-1] > 0.5, caches[0].dtype)
        return self.gpt2.transformer(
            input_ids,
            positions.clamp(max=config.n_positions - 1),
            caches=layer_caches(caches[:half], caches[half : 2 * half], positions, padding),
        )

    def logits(self, hidden: Tensor, count: Tensor) -> Tensor:
        """(B, 1, E) hidden states -> (B, V); those of a row whose count is 0 mean nothing."""
        return self.gpt2.lm_head(hidden).squeeze(1)[:, : self.gpt2.config.real_vocab_size].float()


def not_native(config: GPT2Config) -> str | None:
    """The first setting of the model that the native operators do not compute; None: they compute all of it.

    They know blocks whose layer norms come first, with heads as wide as the model together, one sum or two, and ALiBi.
    What is added up before the blocks, what follows them and how often a block is used are free.
    """
    covered = {
        "norm_position": config.norm_position == "pre",
        "head_dim": config.attention_size == config.n_embd,
        "padding_id": config.padding_id is None,
    }
    return next((f"{name} {getattr(config, name)}" for name, known in covered.items() if not known), None)


def is_variant(config: GPT2Config) -> bool:
    """Whether the native operators compute it by what older ones lack: decode_blocks.available(variants=True)."""
    projects = config.embedding_size is not None or not config.final_norm
    return config.parallel_residual or config.position_embedding == "alibi" or projects


def _with_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a block whose attention has no biases, with zeros for the native operator, which knows of none."""
    if "attn.c_attn.bias" in state:
        return state
    zeros = {
        name.replace("weight", "bias"): state[name].new_zeros(state[name].shape[1])
        for name in ("attn.c_attn.weight", "attn.c_proj.weight")  # (in, out)
    }
    return {**state, **zeros}


def _divided_queries(state: dict[str, Tensor], divisor: int) -> dict[str, Tensor]:
    """The weights of a block whose scores are divided by `divisor` for the native operator, which knows of none.

    It computes scores and their softmax in float32 in any precision: all that reorder_and_upcast_attn asks for.
    """
    if divisor == 1:
        return state
    divided = {}
    for name in ("attn.c_attn.weight", "attn.c_attn.bias"):  # (C, 3C), (3C,): queries, keys, values
        queries, keys, values = state[name].float().chunk(3, -1)
        divided[name] = torch.cat([queries / divisor, keys, values], -1)
    return {**state, **divided}


class _NativeBlocks(nn.Module):
    """Consecutive blocks as one native operator."""

    def __init__(self, gpt2: GPT2LMHeadModel, first: int, last: int, precision: str) -> None:
        super().__init__()
        config = gpt2.config
        self.layers, self.n_head, self.head_size = last - first, config.n_head, config.head_size
        self.attributes = {
            "n_head": config.n_head,
            "inner": config.inner_size,
            "precision": native.PRECISIONS.index(precision),
            "activation": config.activation_function,
            "epsilon": config.layer_norm_epsilon,
        }
        if config.parallel_residual:
            self.attributes["parallel"] = 1
        if config.position_embedding == "alibi":
            self.attributes["slopes"] = alibi_slopes(config.n_head)
        states = (
            _divided_queries(_with_biases(gpt2.transformer.h[layer].state_dict()), config.score_divisor(layer))
            for layer in range(first, last)
        )
        weights, vectors = native.pack_blocks(states, precision)
        self.register_buffer("weights", weights)
        self.register_buffer("vectors", vectors)

    def forward(self, hidden: Tensor, start: Tensor, count: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        inputs = [hidden, start, count, self.weights, self.vectors, keys, values]
        return poptorch.custom_op(
            inputs, "DecodeBlocks", native.DOMAIN, 1, example_outputs=[hidden], attributes=self.attributes
        )[0]


class _NativeEmbedding(nn.Module):
    """Tables of what the first block is given for each token and place: norm, scale and projection are in them.

    Of a factorised embedding a product for each token would be less memory, but its last bits would depend on how many
    tokens there are.
    """

    @torch.no_grad()
    def __init__(self, gpt2: GPT2LMHeadModel) -> None:
        super().__init__()
        transformer, real = gpt2.transformer, gpt2.config.real_vocab_size
        wte = transformer.wte.weight[:real].float()
        if gpt2.config.embedding_norm:
            norm = transformer.ln_e
            wte = F.layer_norm(wte, wte.shape[1:], norm.weight.float(), norm.bias.float(), norm.eps)
        wte = wte if transformer.embedding_scale is None else wte * transformer.embedding_scale
        places = torch.arange(gpt2.config.n_positions, device=wte.device)
        wpe = wte.new_zeros(len(places), 1)  # of ALiBi: a column for all
        if transformer.wpe is not None:
            wpe = transformer.wpe(places).float()  # learned or fixed
        if gpt2.config.embedding_size is not None:
            weight, bias = transformer.project_in.weight.float(), transformer.project_in.bias.float()  # (E, C), (C,)
            wte, wpe = wte @ weight, (wpe if transformer.wpe is None else wpe @ weight) + bias
        self.register_buffer("wte", wte.contiguous())
        self.register_buffer("wpe", wpe.contiguous())

    def forward(self, input_ids: Tensor, start: Tensor, count: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)"""
        example = self.wte[0].expand(*input_ids.shape, -1)  # a view: its shape is all that is wanted
        inputs = [input_ids, start, count, self.wte, self.wpe]
        return poptorch.custom_op(inputs, "EmbedTokens", native.DOMAIN, 1, example_outputs=[example])[0]


class _NativeProduct(nn.Module):
    """The last token of each row, behind a layer norm if there is one, times a matrix (outputs, C)."""

    def __init__(self, matrix: Tensor, norm: nn.Module, precision: str, epsilon: float) -> None:
        super().__init__()
        self.attributes = {
            "vocab_size": matrix.shape[0],
            "precision": native.PRECISIONS.index(precision),
            "epsilon": epsilon,
        }
        if isinstance(norm, nn.LayerNorm):
            vectors = norm.weight.detach(), norm.bias.detach()
        else:
            self.attributes["norms"] = 0
            vectors = (matrix.new_zeros(matrix.shape[1]),) * 2  # nobody looks at them
        self.register_buffer("norm", vectors[0].float())
        self.register_buffer("norm_bias", vectors[1].float())
        self.register_buffer("weights", native.pack([matrix.detach()], precision))

    def forward(self, hidden: Tensor, count: Tensor) -> Tensor:
        """(B, T, C) -> (B, outputs)"""
        inputs = [hidden, count, self.norm, self.norm_bias, self.weights]
        example = hidden[:, 0, :1].expand(-1, self.attributes["vocab_size"])
        return poptorch.custom_op(
            inputs, "NextLogits", native.DOMAIN, 1, example_outputs=[example], attributes=self.attributes
        )[0]


class _NativeHead(_NativeProduct):
    """The head; that of a factorised embedding behind a projection to its width."""

    def __init__(self, gpt2: GPT2LMHeadModel, precision: str) -> None:
        config, transformer = gpt2.config, gpt2.transformer
        head = gpt2.lm_head.weight[: config.real_vocab_size]
        projected, epsilon = config.embedding_size is not None, config.layer_norm_epsilon
        super().__init__(head, nn.Identity() if projected else transformer.ln_f, precision, epsilon)
        self.project = None
        if projected:
            matrix = transformer.project_out.weight.t()  # (E, C)
            self.project = _NativeProduct(matrix, transformer.ln_f, precision, epsilon)
            self.register_buffer("project_bias", transformer.project_out.bias.detach().float())

    def forward(self, hidden: Tensor, count: Tensor) -> Tensor:
        """(B, T, C) -> (B, V)"""
        if self.project is not None:
            hidden = (self.project(hidden, count) + self.project_bias).unsqueeze(1)  # (B, 1, E)
            count = count.clamp(max=1)
        return super().forward(hidden, count)


class NativeSteps(nn.Module):
    """Steps by the operators of custom_ops/decode_blocks.py, one for the blocks of each IPU.

    Holds packed copies of the weights in `precision` (of native.PRECISIONS) and nothing of `gpt2`; of a block that all
    layers share one, with an operator for each layer. Raises ValueError if int8 does not fit the model's sizes.
    """

    def __init__(self, gpt2: GPT2LMHeadModel, layers_per_ipu: Sequence[int], precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.embedding = poptorch.BeginBlock(_NativeEmbedding(gpt2), "embeddings", ipu_id=0)
        self.blocks = nn.ModuleList()
        first = 0
        shared = gpt2.config.share_layers
        self.uses = gpt2.config.n_layer if shared else 1  # of each of the blocks
        for ipu, layers in enumerate(layers_per_ipu):
            if layers:
                blocks = _NativeBlocks(gpt2, first, first + (1 if shared else layers), precision)
                name = f"layers {first}-{first + layers - 1}"
                self.blocks.append(poptorch.BeginBlock(blocks, name, ipu_id=ipu))
            first += layers
        self.head = poptorch.BeginBlock(_NativeHead(gpt2, precision), "head", ipu_id=0)

    @staticmethod
    def best(logits: Tensor, seen: Tensor | None, k: int, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
        """As top_scores."""
        told = unlooked_at(logits) if seen is None else seen
        examples = [logits[:, :k], logits[:, :k].to(torch.int32), logits[:, :k]]
        attributes = {"k": k, "penalty": penalty}
        scores, ids, log_probs = poptorch.custom_op(
            [logits, told], "TopScores", native.DOMAIN, 1, example_outputs=examples, attributes=attributes
        )
        return scores, ids, log_probs

    def new_caches(self, batch: int, slots: int, device: torch.device | None = None) -> list[Tensor]:
        """Zeros for keys and values of each operator: (layers, B, H, S, D); int16 holds float16."""
        dtype = torch.float32 if self.precision == "float32" else torch.int16
        shapes = [(part.layers, batch, part.n_head, slots, part.head_size) for part in self._parts()]
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes * 2]

    def forward(self, input_ids: Tensor, start: Tensor, count: Tensor, caches: Sequence[Tensor]) -> Tensor:
        """As ModuleSteps.forward."""
        return self.head(self.hidden(input_ids, start, count, caches), count)

    def hidden(self, input_ids: Tensor, start: Tensor, count: Tensor, caches: Sequence[Tensor]) -> Tensor:
        """As ModuleSteps.hidden."""
        hidden, parts = self.embedding(input_ids, start, count), self._parts()
        for part, keys, values in zip(parts, caches, caches[len(parts) :]):
            hidden = part(hidden, start, count, keys, values)
        return hidden

    def logits(self, hidden: Tensor, count: Tensor) -> Tensor:
        """As ModuleSteps.logits."""
        return self.head(hidden, count)

    def _parts(self) -> list[nn.Module]:
        """The operators in the order of the layers."""
        return [part for part in self.blocks for _ in range(self.uses)]


class OneStep(nn.Module):
    """A step a call; the cache stays on the device, in buffers, and of the logits comes back what was chosen."""

    def __init__(self, steps: nn.Module, batch: int, slots: int, sampling: Sampling) -> None:
        super().__init__()
        self.steps, self.sampling = steps, sampling
        self.names = []
        for index, cache in enumerate(steps.new_caches(batch, slots)):
            self.names.append(f"cache_{index}")
            self.register_buffer(self.names[-1], cache)

    def forward(
        self, input_ids: Tensor, start: Tensor, count: Tensor, uniform: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The token behind the last one of each row.

        Args:
            input_ids, start, count: as in ModuleSteps.forward.
            uniform: (B,) random numbers.
            seen: (B, V) bool, the tokens in each text, if the sampling asks for it.

        Returns:
            (B,) int32 tokens, (B,) float32 logarithms of their probabilities.
        """
        logits = self.steps(input_ids, start, count, [getattr(self, name) for name in self.names])
        token, log_prob = choose(logits, seen, uniform, self.sampling, self.steps.best)
        return token.to(torch.int32), log_prob


class SlotStep(nn.Module):
    """A step a call over a cache of B slots, one for each text; back come the logits that the host asks for.

    Texts come and go while others go on: what a slot held before is overwritten, and a row without tokens costs
    nothing with the native operators.
    """

    def __init__(self, steps: nn.Module, batch: int, slots: int) -> None:
        super().__init__()
        self.steps = steps
        self.names = []
        for index, cache in enumerate(steps.new_caches(batch, slots)):
            self.names.append(f"cache_{index}")
            self.register_buffer(self.names[-1], cache)

    def forward(self, input_ids: Tensor, start: Tensor, count: Tensor, wanted: Tensor) -> Tensor:
        """(B, V) float32 logits.

        Args:
            input_ids, start, count: as in ModuleSteps.forward.
            wanted: (B,) int32: the logits of output row b are those behind column `wanted[b]` of the B x T columns
                counted row by row; negative: this output row means nothing.
        """
        hidden = self.steps.hidden(input_ids, start, count, [getattr(self, name) for name in self.names])
        found = hidden.flatten(0, 1).index_select(0, wanted.long().clamp(min=0)).unsqueeze(1)  # (B, 1, E)
        return self.steps.logits(found, (wanted >= 0).to(torch.int32))


class WholeText(nn.Module):
    """Prompts in, texts out: the decode loop runs on the device, and cache, text and choices stay there."""

    def __init__(self, steps: nn.Module, length: int, slots: int, vocab_size: int, sampling: Sampling) -> None:
        super().__init__()
        self.steps, self.length, self.slots = steps, length, slots
        self.vocab_size, self.sampling = vocab_size, sampling

    def forward(self, input_ids: Tensor, count: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Continue each prompt by `length` tokens; what follows a stop token means nothing.

        Args:
            input_ids: (B, T) prompts, of which the first count[b] are tokens.
            uniform: (B, length) random numbers of each row.

        Returns:
            (B, length) int32 tokens, (B, length) float32 logarithms of their probabilities.
        """
        device = input_ids.device
        caches = self.steps.new_caches(input_ids.shape[0], self.slots, device)
        logits = self.steps(input_ids, torch.zeros_like(count), count, caches)
        column = torch.arange(self.length, device=device)
        text: list[Tensor] = []  # (B, V) bool, the tokens in each row, if the sampling asks for it
        if self.sampling.needs_text:
            real = torch.arange(input_ids.shape[1], device=device) < count[:, None]
            ids = torch.where(real, input_ids.long(), self.vocab_size)  # padding goes to a column of its own
            seen = torch.zeros(input_ids.shape[0], self.vocab_size + 1, device=device).scatter(1, ids, 1.0)
            text = [seen[:, : self.vocab_size] > 0]

        def choice(logits: Tensor, step: Tensor, tokens: Tensor, log_probs: Tensor, text: list[Tensor]) -> list[Tensor]:
            """The state after one more token."""
            number = uniform.gather(1, step.long().expand(uniform.shape[0], 1)).squeeze(1)
            token, log_prob = choose(logits, text[0] if text else None, number, self.sampling, self.steps.best)
            here = column == step
            tokens = torch.where(here, token[:, None].to(torch.int32), tokens)
            log_probs = torch.where(here, log_prob[:, None], log_probs)
            text = [seen | (torch.arange(self.vocab_size, device=device) == token[:, None]) for seen in text]
            return [token[:, None].to(torch.int32), step + 1, tokens, log_probs, *text]

        def body(token: Tensor, step: Tensor, tokens: Tensor, log_probs: Tensor, *rest: Tensor) -> list[Tensor]:
            seen, cached = list(rest[: len(text)]), list(rest[len(text) :])
            position = count + step - 1
            logits = self.steps(token, position, torch.ones_like(count), cached)
            return [*choice(logits, step, tokens, log_probs, seen), *cached]

        shape = (input_ids.shape[0], self.length)
        blank = (torch.zeros(shape, dtype=torch.int32, device=device), torch.zeros(shape, device=device))
        state = [*choice(logits, torch.zeros(1, dtype=torch.int32, device=device), *blank, text), *caches]
        if self.length > 1:
            state = poptorch.for_loop(self.length - 1, body, state)
        return state[2], state[3]
