"""Generation as PopTorch programs: one token a call with the cache in buffers, or the whole text in one call.

A step takes a few tokens of each row of a batch: prompts go in several tokens at a time, then each token as it comes.
Rows are independent. Shapes as in gpt2.py, with S slots of cache. Steps by native operators are in native_steps.py.
"""

from __future__ import annotations

from typing import Sequence

import poptorch
import torch
from torch import Tensor, nn

from custom_ops.top_scores import top_scores
from generation.sampling import Sampling, choose
from model.attention import at_positions, padding_scores
from model.gpt2 import GPT2LMHeadModel
from model.kv_cache import layer_caches, token_positions
from model.placement import place


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
