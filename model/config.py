"""GPT-2's dimensions: config/*.json and Hugging Face's config.json, read, checked and written.

Imports neither torch nor transformers, so that `--help` and the argument checks stay quick.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Mapping

from model.config_checks import ACTIVATION_ALIASES, value_problems

# Byte-level BPE of GPT-2: 256 bytes + 50,000 merges + <|endoftext|>.
GPT2_VOCAB_SIZE = 50257

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
    # systems that are variants of it: docs/systems.md
    "tfchat-preln": CONFIG_FOLDER / "config_tfchat_preln.json",
    "tfchat-preln-relu": CONFIG_FOLDER / "config_tfchat_preln_relu.json",
    "tfchat-preln-unshared": CONFIG_FOLDER / "config_tfchat_preln_unshared.json",
    "tfchat-postln": CONFIG_FOLDER / "config_tfchat_postln.json",
    "tfchat-gpt2": CONFIG_FOLDER / "config_tfchat_gpt2.json",
    "mingpt-tf": CONFIG_FOLDER / "config_mingpt_tf.json",
    "algpt2": CONFIG_FOLDER / "config_algpt2.json",
    "algpt2-256": CONFIG_FOLDER / "config_algpt2_256.json",
    "algpt2-512": CONFIG_FOLDER / "config_algpt2_512.json",
    "algpt2-unfactorised": CONFIG_FOLDER / "config_algpt2_unfactorised.json",
    "algpt2-medium": CONFIG_FOLDER / "config_algpt2_medium.json",
    "algpt2-medium-unfactorised": CONFIG_FOLDER / "config_algpt2_medium_unfactorised.json",
    "algpt2-large": CONFIG_FOLDER / "config_algpt2_large.json",
    "algpt2-xl": CONFIG_FOLDER / "config_algpt2_xl.json",
    "gpt-127-star": CONFIG_FOLDER / "config_gpt_127_star.json",
    "gpt-303-star": CONFIG_FOLDER / "config_gpt_303_star.json",
    "gpt-1b-star": CONFIG_FOLDER / "config_gpt_1b_star.json",
    "gpt-star-124m": CONFIG_FOLDER / "config_gpt_star_124m.json",
    "gpt-star-354m": CONFIG_FOLDER / "config_gpt_star_354m.json",
}

# Keys of Hugging Face's configuration that change what the model computes, each with the one value
# implemented here. Ignoring another value would load the weights and give other logits.
IMPLEMENTED_VALUES: dict[str, Any] = {
    "scale_attn_weights": True,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}

# What transformers' GPT-2 does not have: fields that stand in a config.json under VARIANT, with a model type of our
# own, so that no other program takes such a checkpoint for a GPT-2. transformers' GPT2LMHeadModel does not ask for the
# type, but for the activation: outside VARIANT it is one that nobody knows.
VARIANT_TYPE, VARIANT = "gpt2_variant", "variant"
VARIANT_FIELDS = (
    *("norm_position", "final_norm", "attention_bias", "head_dim", "parallel_residual", "share_layers"),
    *("position_embedding", "embedding_size", "embedding_norm", "scale_embedding", "padding_id"),
)
# What is only spoken of where it is not as in every GPT-2.
_RARE = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings", "initialization")

# Names that transformers accepts for the same dimensions (GPT2Config.attribute_map).
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


@dataclass(frozen=True)
class GPT2Config:
    """Dimensions and constants of a GPT-2, under Hugging Face's names and with its defaults.

    `real_vocab_size` is ours: rows of the vocabulary from there on are padding, which never gets
    probability; None stands for vocab_size, all rows. Of names for one activation ours is kept
    (ACTIVATION_ALIASES). The fields of VARIANT_FIELDS and `initialization` are ours too; docs/systems.md has the
    systems that they describe. To change a value: dataclasses.replace.

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
    tie_word_embeddings: bool = True  # the head's matrix is the token embedding's
    initialization: str = "gpt2"  # the rule by which new weights are drawn
    norm_position: str = "pre"  # "pre": before attention and MLP; "post": after each sum
    final_norm: bool = True  # a layer norm behind the last block
    attention_bias: bool = True  # of queries, keys, values and attention's output
    head_dim: int | None = None  # width of a head; None: n_embd / n_head
    parallel_residual: bool = False  # attention and MLP read the same layer norm and are added in one sum
    share_layers: bool = False  # one block, n_layer times
    position_embedding: str = "learned"  # or "sinusoidal": a fixed table, "alibi": a bias of the scores (n_positions
    # then bounds nothing)
    embedding_size: int | None = None  # width E of embeddings and head, with projections to and from n_embd; None: none
    embedding_norm: bool = False  # a layer norm behind the token embedding
    scale_embedding: bool = False  # token embeddings times the root of n_embd
    padding_id: int | None = None  # a token that attention does not see and the loss leaves out

    def __post_init__(self) -> None:
        if isinstance(self.activation_function, str):
            name = ACTIVATION_ALIASES.get(self.activation_function, self.activation_function)
            object.__setattr__(self, "activation_function", name)
        problems = value_problems(vars(self))
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
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def attention_size(self) -> int:
        """Width of all heads together: that of queries, of keys and of values."""
        return self.n_head * self.head_size

    @property
    def embedding_width(self) -> int:
        """Columns of the embeddings and of the head's matrix."""
        return self.n_embd if self.embedding_size is None else self.embedding_size

    @property
    def learns_positions(self) -> bool:
        """Whether there is a matrix of positions, which bounds the length; otherwise the model may go beyond it."""
        return self.position_embedding == "learned"

    @property
    def variant(self) -> dict[str, Any]:
        """The fields of VARIANT_FIELDS that are not GPT-2's, by name; empty for what transformers' GPT-2 can be."""
        return {name: getattr(self, name) for name in VARIANT_FIELDS if getattr(self, name) != _DEFAULTS[name]}

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
        block, problems = _variant_block(values)
        known = {name: values[name] for name in _DEFAULTS if name in values and name not in VARIANT_FIELDS}
        known.update(block)  # its activation_function too
        problems += value_problems({**_DEFAULTS, **known})
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
        """Every field by name; those of variants only if they are not GPT-2's: nothing is said of the others."""
        unsaid = {name for name in (*_RARE, *VARIANT_FIELDS) if getattr(self, name) == _DEFAULTS[name]}
        return {name: value for name, value in asdict(self).items() if name not in unsaid}

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json: from_dict reads it, and transformers 4.26 and 5 if it is no variant."""
        variant = self.variant
        return {
            "architectures": ["GPT2VariantLMHeadModel" if variant else "GPT2LMHeadModel"],
            "model_type": VARIANT_TYPE if variant else "gpt2",
            **{name: value for name, value in self.values().items() if name not in variant},
            **({"activation_function": VARIANT_TYPE} if variant else {}),
            "n_ctx": self.n_ctx,
            "scale_attn_weights": True,
            "tie_word_embeddings": self.tie_word_embeddings,
            **({VARIANT: {"activation_function": self.activation_function, **variant}} if variant else {}),
        }


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(GPT2Config)}


def field_names() -> list[str]:
    """The fields of GPT2Config that a config.json has outside VARIANT."""
    return [name for name in _DEFAULTS if name not in VARIANT_FIELDS]


def _variant_block(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields under VARIANT in a config.json, and what is wrong with how they are given."""
    model_type, block = values.get("model_type", "gpt2"), values.get(VARIANT, {})
    problems = []
    if model_type not in ("gpt2", VARIANT_TYPE):
        problems.append(f"model_type {model_type!r} is not implemented, only 'gpt2' and {VARIANT_TYPE!r}")
    if not isinstance(block, dict):
        return {}, [*problems, f"{VARIANT} must be an object, not {block!r}"]
    names = ("activation_function", *VARIANT_FIELDS)
    unknown = sorted(set(block) - set(names))
    if unknown:
        problems.append(f"{VARIANT} has no {', '.join(unknown)}; it has {', '.join(names)}")
    outside = [name for name in VARIANT_FIELDS if values.get(name, _DEFAULTS[name]) != _DEFAULTS[name]]
    if outside:
        problems.append(f"{', '.join(outside)} must stand in the object {VARIANT!r}, with model_type {VARIANT_TYPE!r}")
    known = {name: value for name, value in block.items() if name in names}
    if model_type == "gpt2" and any(known.get(name, _DEFAULTS[name]) != _DEFAULTS[name] for name in VARIANT_FIELDS):
        problems.append(
            f"{VARIANT} contradicts model_type 'gpt2', as which other programs would load it; use {VARIANT_TYPE!r}"
        )
    return known, problems


def padding_note(padding_id: int) -> str:
    """What a padding_id does to texts that have the token, for a message."""
    known = ', which is "!" in GPT-2\'s vocabulary' if padding_id == 0 else ""
    return (
        f"padding_id {padding_id}{known}: attention does not see that token, and training's loss leaves it out, "
        "wherever a text has it"
    )


def padded_rows(real_vocab_size: int) -> int:
    """Rows of the vocabulary in memory."""
    return -(-real_vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def projection_parameters(config: GPT2Config) -> tuple[int, int]:
    """Of a factorised embedding: from its width to the model's, and back to the head's. (0, 0) without one."""
    width, inside = config.n_embd, config.embedding_size
    return (0, 0) if inside is None else (inside * width + width, width * inside + inside)


def block_parameters(config: GPT2Config) -> int:
    """Parameters of one block."""
    width, inner, heads = config.n_embd, config.inner_size, config.attention_size
    norms = (1 if config.parallel_residual else 2) * 2 * width
    biases = inner + width + (3 * heads + width if config.attention_bias else 0)
    return norms + biases + block_matrices(config)


def block_matrices(config: GPT2Config) -> int:
    """Weights of the four products of one block."""
    return 4 * config.n_embd * config.attention_size + 2 * config.n_embd * config.inner_size


def parameter_count(config: GPT2Config) -> int:
    """Number of parameters in memory, a tied head and a shared block counted once, padding rows included."""
    width = config.embedding_width
    matrices = 1 if config.tie_word_embeddings else 2  # of the vocabulary
    embeddings = (matrices * config.vocab_size + config.learns_positions * config.n_positions) * width
    norms = 2 * width * config.embedding_norm + 2 * config.n_embd * config.final_norm
    blocks = 1 if config.share_layers else config.n_layer
    return embeddings + norms + sum(projection_parameters(config)) + blocks * block_parameters(config)


def real_parameter_count(config: GPT2Config) -> int:
    """Number of parameters of the model as it is published and exported: what `parameter_count` says, without padding.

    It is how large a model is called, beside its figures: two checkpoints that differ in padding alone have one size.
    """
    return parameter_count(replace(config, vocab_size=config.real_vocab_size))


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
