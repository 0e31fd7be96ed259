"""The fields of a config.json: those of GPT2Config, those of Hugging Face's that are not read here, and others.

A file that a user names as the description of a model has no others: a misspelt field would leave its default.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from model.config import ALIASES, IMPLEMENTED_VALUES, VARIANT, VARIANT_FIELDS, field_names, read_json_object
from model.config_checks import POSITIVE_INTEGERS

# What transformers 4.26 to 5 writes into the config.json of a GPT-2, and what older files on its hub have, beside the
# fields that are read here: of training, of generation, of other heads, of where the file comes from.
HUGGING_FACE = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens chunk_size_feed_forward cls_token_id
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id generator_class gradient_checkpointing id2label is_decoder label2id length_penalty
    mask_token_id max_length min_length model_type n_ctx n_special no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id
    predict_special_tokens prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id summary_activation summary_first_dropout summary_hidden_size
    summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unk_token_id use_bfloat16 use_cache use_return_dict xla_device
    """.split()
)


def check_fields(path: str | Path) -> str:
    """A line that tells the fields of a file that are neither read here nor Hugging Face's; empty if there are none.

    Raises:
        ValueError: naming the file, if it cannot be read, has a field that is like one of the model's, or none of the
            model's sizes.
    """
    values = read_json_object(path)
    read = [*field_names(), *ALIASES, *IMPLEMENTED_VALUES, VARIANT]
    likely = [field for field in (*read, *VARIANT_FIELDS) if field not in ALIASES]
    others = sorted(set(values) - {*read, *VARIANT_FIELDS} - HUGGING_FACE)
    near = {name: difflib.get_close_matches(name.lower(), likely, n=1, cutoff=0.72) for name in others}
    problems = [f"{name}: the model has no such field; did you mean {like[0]}?" for name, like in near.items() if like]
    if not problems and not any(ALIASES.get(name, name) in POSITIVE_INTEGERS for name in values):
        sizes = f"{', '.join(POSITIVE_INTEGERS[:-1])} and {POSITIVE_INTEGERS[-1]}"
        problems = [f"describes no model: it has none of {sizes}; name the json file of a model, as in config/"]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    if not others:
        return ""
    verb = "is no field" if len(others) == 1 else "are no fields"
    return f"{path}: {', '.join(others)} {verb} of the model, which passes over what it does not know"
