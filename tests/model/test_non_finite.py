"""Where a model stops being finite is named, and neither exp nor a bound makes a number of what is none."""

import json
import math

import pytest
import tiny_checkpoint
import torch

from corpora.strict_json import json_text
from model.non_finite import first_non_finite_layer, first_non_finite_weight
from model.scoring import perplexity
from tasks.protocols import adjusted_values

IDS = [1, 2, 3]
# A weight, and the first layer whose output a NaN in it reaches.
LAYERS = {
    "transformer.wpe.weight": "transformer.wpe",
    "transformer.h.0.ln_1.weight": "transformer.h.0.ln_1",
    "transformer.h.0.attn.c_attn.weight": "transformer.h.0.attn.c_attn",
    "transformer.h.1.attn.c_proj.bias": "transformer.h.1.attn.c_proj",
    "transformer.h.1.mlp.c_fc.weight": "transformer.h.1.mlp.c_fc",
    "transformer.ln_f.weight": "transformer.ln_f",
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LAYERS)
def test_the_first_layer_is_the_one_with_the_weight(name, value):
    gpt2 = tiny_checkpoint.model(290)
    with torch.no_grad():
        gpt2.get_parameter(name)[...] = value
    found = first_non_finite_layer(gpt2, IDS)
    assert found.startswith(f"{LAYERS[name]} (NaN or infinity; the weights: {name}, "), found
    assert first_non_finite_weight(gpt2).startswith(name)


def test_half_overflows_where_float32_does_not():
    gpt2 = tiny_checkpoint.model(290)
    with torch.no_grad():
        gpt2.transformer.h[1].mlp.c_fc.bias[3] = 65_000.0
        gpt2.transformer.h[1].mlp.c_proj.weight[3] = 2.0
    gpt2 = gpt2.half()  # every weight fits
    assert first_non_finite_weight(gpt2) is None
    found = first_non_finite_layer(gpt2, IDS, "float16")
    assert found.startswith("transformer.h.1.mlp.c_proj (1.3e+05 is beyond the 65,504 of float16)"), found
    assert first_non_finite_layer(gpt2.float(), IDS).startswith("none that float32 on the host finds")


def test_a_perplexity_is_infinite_or_nan_where_the_loss_is():
    assert perplexity(2.0) == math.exp(2.0) and perplexity(701.0) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))
    values = adjusted_values(bpe=11, words=6)
    for loss in (math.nan, math.inf):
        found = values(loss, 10)
        assert str(found["ppl"]) == str(found["adjusted ppl"]) == str(found["loss"]) == str(loss)
    assert values(300.0, 10)["ppl"] == math.exp(20.0), "Megatron-LM's bound on a finite loss"


def test_json_has_null_for_what_is_not_finite():
    text = json_text({"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf}, "d": "NaN"})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": {"c": None}, "d": "NaN"}
