"""Which values a GPT-2 configuration may have, each by itself and together.

Plain checks of a mapping with every field of model.config.GPT2Config, each problem a line for the user.
"""

from __future__ import annotations

from typing import Any, Mapping

ACTIVATIONS = ("gelu", "gelu_new", "relu")

# Other names that transformers has for these functions. gelu_fast rounds a constant at the tenth digit.
ACTIVATION_ALIASES = {
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
}

# How new weights are drawn, by the system that does it so (model/initialization.py).
INITIALIZATIONS = ("gpt2", "normal", "tfchat", "mingpt-tf", "gpt-star")
CHOICES = {
    "norm_position": ("pre", "post"),
    "position_embedding": ("learned", "sinusoidal", "alibi"),
    "initialization": INITIALIZATIONS,
}
POSITIVE_INTEGERS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
OPTIONAL_SIZES = ("n_inner", "real_vocab_size", "head_dim", "embedding_size")
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
SWITCHES = (
    *("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings", "final_norm"),
    *("attention_bias", "scale_embedding", "embedding_norm", "parallel_residual", "share_layers"),
)


def value_problems(values: Mapping[str, Any]) -> list[str]:
    """One line for each value that is not valid; `values` has every field of GPT2Config."""
    problems = []
    sizes = [name for name in POSITIVE_INTEGERS if not _is_integer(values[name], 1)]
    sizes += [name for name in OPTIONAL_SIZES if not _is_integer(values[name], 1, optional=True)]
    for name in sizes:
        problems.append(f"{name} must be a positive integer, not {values[name]!r}")
    if values["activation_function"] not in (*ACTIVATIONS, *ACTIVATION_ALIASES):
        problems.append(f"activation_function must be one of {ACTIVATIONS}, not {values['activation_function']!r}")
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            problems.append(f"{name} must be one of {choices}, not {values[name]!r}")
    for name in DROPOUTS:
        if not _is_number(values[name]) or not 0 <= values[name] < 1:
            problems.append(f"{name} must be a number from 0 to below 1, not {values[name]!r}")
    if not _is_number(values["layer_norm_epsilon"]) or not 0 < values["layer_norm_epsilon"] < 1:
        problems.append(f"layer_norm_epsilon must be a number between 0 and 1, not {values['layer_norm_epsilon']!r}")
    if not _is_number(values["initializer_range"]) or not 0 <= values["initializer_range"] < 1:
        problems.append(f"initializer_range must be a number from 0 to below 1, not {values['initializer_range']!r}")
    for name in SWITCHES:
        if not isinstance(values[name], bool):
            problems.append(f"{name} must be true or false, not {values[name]!r}")
    for name in ("bos_token_id", "padding_id"):
        if not _is_integer(values[name], 0, optional=True):
            problems.append(f"{name} must be a token id or null, not {values[name]!r}")
    ends = values["eos_token_id"]
    if not all(_is_integer(end, 0, optional=True) for end in (ends if isinstance(ends, list) else [ends])):
        problems.append(f"eos_token_id must be a token id, a list of them or null, not {ends!r}")
    return problems + _contradictions(values, set(sizes))


def _contradictions(values: Mapping[str, Any], wrong: set[str]) -> list[str]:
    """One line for each two values that do not go together; sizes that are `wrong` by themselves are not looked at."""
    problems = []

    def sound(*names: str) -> bool:
        return not wrong & set(names) and all(values[name] is not None for name in names)

    if sound("n_embd", "n_head") and values["head_dim"] is None and values["n_embd"] % values["n_head"]:
        problems.append(
            f"n_embd {values['n_embd']} is not divisible by n_head {values['n_head']}; "
            "give the width of a head as head_dim, or choose another n_head"
        )
    if sound("vocab_size", "real_vocab_size") and values["real_vocab_size"] > values["vocab_size"]:
        problems.append(f"real_vocab_size {values['real_vocab_size']} exceeds vocab_size {values['vocab_size']}")
    if sound("n_embd", "embedding_size") and values["embedding_size"] > values["n_embd"]:
        problems.append(
            f"embedding_size {values['embedding_size']} exceeds n_embd {values['n_embd']}: a factorised embedding is "
            "narrower than the model; lower it, or null for none"
        )
    if values["parallel_residual"] is True and values["norm_position"] == "post":
        problems.append(
            "parallel_residual true contradicts norm_position 'post': its one layer norm stands before attention and "
            "MLP; use norm_position 'pre'"
        )
    if values["share_layers"] is True and values["scale_attn_by_inverse_layer_idx"] is True:
        problems.append(
            "share_layers true contradicts scale_attn_by_inverse_layer_idx true: one block has no number of its own; "
            "make one of them false"
        )
    padding, ends = values["padding_id"], values["eos_token_id"]
    if sound("vocab_size") and _is_integer(padding, values["vocab_size"]):
        problems.append(f"padding_id {padding} is not below vocab_size {values['vocab_size']}")
    marks = {"eos_token_id": ends if isinstance(ends, list) else [ends], "bos_token_id": [values["bos_token_id"]]}
    same = [name for name, ids in marks.items() if padding is not None and padding in ids]
    if same:
        problems.append(
            f"padding_id {padding} is {' and '.join(same)} too: attention would not see where texts end or begin, and "
            "the loss would leave it out, so that the model never learns to end one; give padding an id of its own, or "
            "null for none"
        )
    return problems


def _is_integer(value: Any, least: int, optional: bool = False) -> bool:
    if value is None:
        return optional
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
