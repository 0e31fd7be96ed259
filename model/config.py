"""GPT-2's dimensions: config/*.json and Hugging Face's config.json, read, checked and written.

Imports neither torch nor transformers, so that `--help` and the argument checks stay quick.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Mapping

# Byte-level BPE of GPT-2: 256 bytes + 50,000 merges + <|endoftext|>.
GPT2_VOCAB_SIZE = 50257

ACTIVATIONS = ("gelu", "gelu_new", "relu")

# Other names that transformers has for these functions. gelu_fast rounds a constant at the tenth digit.
ACTIVATION_ALIASES = {
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
}

# Rows of the vocabulary in memory are a multiple of this: 50,257 -> 50,272.
VOCAB_MULTIPLE = 16

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "config"

# --model NAME -> its configuration
MODELS: dict[str, Path] = {
    "gpt2-test": CONFIG_FOLDER / "config_test.json",
    "gpt2-tiny": CONFIG_FOLDER / "config_tiny.json",
    "gpt2": CONFIG_FOLDER / "config.json",
    "gpt2-medium": CONFIG_FOLDER / "config_medium.json",
    "gpt2-large": CONFIG_FOLDER / "config_large.json",
    "gpt2-xl": CONFIG_FOLDER / "config_xl.json",
}

# Keys of Hugging Face's configuration that change what the model computes, each with the one value
# implemented here. Ignoring another value would load the weights and give other logits.
IMPLEMENTED_VALUES: dict[str, Any] = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
    "quantization_config": None,
}

# Names that transformers accepts for the same dimensions (GPT2Config.attribute_map).
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

POSITIVE_INTEGERS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
VARIANTS = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")


@dataclass(frozen=True)
class GPT2Config:
    """Dimensions and constants of a GPT-2, under Hugging Face's names and with its defaults.

    `real_vocab_size` is ours: rows of the vocabulary from there on are padding, which never gets
    probability; None stands for vocab_size, all rows. Of names for one activation ours is kept
    (ACTIVATION_ALIASES). To change a value: dataclasses.replace.

    Raises:
        ValueError: listing every value that is not valid.
    """

    vocab_size: int = GPT2_VOCAB_SIZE
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the MLP; None: 4 * n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bos_token_id: int | None = GPT2_VOCAB_SIZE - 1
    eos_token_id: int | list[int] | None = GPT2_VOCAB_SIZE - 1
    real_vocab_size: int | None = None
    scale_attn_by_inverse_layer_idx: bool = False  # scores of layer i, from 1 on, are divided by i
    reorder_and_upcast_attn: bool = False  # scores and their softmax in float32, whatever the precision

    def __post_init__(self) -> None:
        if isinstance(self.activation_function, str):
            name = ACTIVATION_ALIASES.get(self.activation_function, self.activation_function)
            object.__setattr__(self, "activation_function", name)
        problems = _value_problems(vars(self))
        if problems:
            raise ValueError("the model configuration is not valid:\n  " + "\n  ".join(problems))
        if self.real_vocab_size is None:
            object.__setattr__(self, "real_vocab_size", self.vocab_size)

    @property
    def n_ctx(self) -> int:
        """The context length under its old name: n_positions. Other readers of config.json still ask for it."""
        return self.n_positions

    @property
    def inner_size(self) -> int:
        """Width of the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    def score_divisor(self, layer: int) -> int:
        """What the attention scores of block `layer`, from 0 on, are divided by beside the root of the head size."""
        return layer + 1 if self.scale_attn_by_inverse_layer_idx else 1

    @property
    def end_ids(self) -> list[int]:
        """The ids of eos_token_id that are in the vocabulary; empty if there is none."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        return [end for end in ends if end is not None and end < self.real_vocab_size]

    def end_of_text(self) -> int:
        """The id that ends a document: eos_token_id. Raises ValueError unless that is one id of the vocabulary."""
        end = self.eos_token_id
        if not isinstance(end, int) or end >= self.real_vocab_size:
            raise ValueError(
                f"the model's configuration has eos_token_id {end!r}, not one id of its vocabulary "
                f"0..{self.real_vocab_size - 1}; give it the one that ends the documents in a --config FILE"
            )
        return end

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """The configuration in a Hugging Face config.json of transformers 4 or 5.

        Absent keys take Hugging Face's defaults; keys without effect on a language model
        (summary_type, use_cache, ...) are passed over.

        Raises:
            ValueError: listing every value that is not valid and every key that asks for a variant
                of GPT-2 that is not implemented.
        """
        values = {ALIASES.get(key, key): value for key, value in values.items()}
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        problems = _value_problems({**defaults, **known})
        for key, implemented in IMPLEMENTED_VALUES.items():
            value = values.get(key, implemented)
            if value != implemented:
                problems.append(f"{key} {value!r} is not implemented, only {implemented!r}")
        if problems:
            raise ValueError("the model configuration is not valid:\n  " + "\n  ".join(problems))
        return cls(**known)

    @classmethod
    def from_json(cls, path: str | Path) -> GPT2Config:
        """Reads a config.json.

        Raises:
            ValueError: naming the file, if it cannot be read or is no valid configuration.
        """
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def values(self) -> dict[str, Any]:
        """Every field by name; the variants only if they are on, so that without them nothing is said of them."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value or name not in VARIANTS}

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4.26 and 5 load, and from_dict too."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **self.values(),
            "n_ctx": self.n_ctx,
            "scale_attn_weights": True,
            "tie_word_embeddings": True,
        }


def padded_rows(real_vocab_size: int) -> int:
    """Rows of the vocabulary in memory."""
    return -(-real_vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def parameter_count(config: GPT2Config) -> int:
    """Number of parameters of the model, the tied head counted once, padding rows included."""
    width, inner = config.n_embd, config.inner_size
    embeddings = (config.vocab_size + config.n_positions) * width
    norm = 2 * width
    attention = width * 3 * width + 3 * width + width * width + width
    mlp = width * inner + inner + inner * width + width
    return embeddings + config.n_layer * (2 * norm + attention + mlp) + norm


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Raises:
        ValueError: naming the file, if it is missing, unreadable, no JSON or no object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give the path of a JSON file") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path}: is not JSON ({error}); is the file complete?") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a JSON {type(values).__name__}, not an object")
    return values


def _value_problems(values: Mapping[str, Any]) -> list[str]:
    """One line for each value that is not valid; `values` has every field of GPT2Config."""
    problems = []
    sizes = [name for name in POSITIVE_INTEGERS if not _is_integer(values[name], 1)]
    sizes += [name for name in ("n_inner", "real_vocab_size") if not _is_integer(values[name], 1, optional=True)]
    for name in sizes:
        problems.append(f"{name} must be a positive integer, not {values[name]!r}")
    if not {"n_embd", "n_head"} & set(sizes) and values["n_embd"] % values["n_head"]:
        problems.append(f"n_embd {values['n_embd']} is not divisible by n_head {values['n_head']}")
    if not {"vocab_size", "real_vocab_size"} & set(sizes) and (values["real_vocab_size"] or 0) > values["vocab_size"]:
        problems.append(f"real_vocab_size {values['real_vocab_size']} exceeds vocab_size {values['vocab_size']}")
    if values["activation_function"] not in (*ACTIVATIONS, *ACTIVATION_ALIASES):
        problems.append(f"activation_function must be one of {ACTIVATIONS}, not {values['activation_function']!r}")
    for name in DROPOUTS:
        if not _is_number(values[name]) or not 0 <= values[name] < 1:
            problems.append(f"{name} must be a number from 0 to below 1, not {values[name]!r}")
    if not _is_number(values["layer_norm_epsilon"]) or not 0 < values["layer_norm_epsilon"] < 1:
        problems.append(f"layer_norm_epsilon must be a number between 0 and 1, not {values['layer_norm_epsilon']!r}")
    if not _is_number(values["initializer_range"]) or not 0 <= values["initializer_range"] < 1:
        problems.append(f"initializer_range must be a number from 0 to below 1, not {values['initializer_range']!r}")
    for name in VARIANTS:
        if not isinstance(values[name], bool):
            problems.append(f"{name} must be true or false, not {values[name]!r}")
    if not _is_integer(values["bos_token_id"], 0, optional=True):
        problems.append(f"bos_token_id must be a token id or null, not {values['bos_token_id']!r}")
    ends = values["eos_token_id"]
    if not all(_is_integer(end, 0, optional=True) for end in (ends if isinstance(ends, list) else [ends])):
        problems.append(f"eos_token_id must be a token id, a list of them or null, not {ends!r}")
    return problems


def _is_integer(value: Any, least: int, optional: bool = False) -> bool:
    if value is None:
        return optional
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
