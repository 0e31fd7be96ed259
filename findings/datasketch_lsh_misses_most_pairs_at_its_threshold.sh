#!/usr/bin/env bash
# datasketch 2.0.0: MinHashLSH(threshold=0.8) is commonly read as: finds what is at least 0.8 similar. The threshold
# only picks bands and rows that balance two error areas over all similarities; with 128 permutations these are 9
# bands of 13 rows, and the chance to find a pair is 1 - (1 - s^13)^9: 0.40 at 0.8, 0.93 at 0.9. Removing near
# duplicates at 0.8 this way leaves more than half of the pairs that are just that similar. weights=(0.1, 0.9), or a
# lower threshold with a check of the candidates, finds them. Source: _optimal_param and the class documentation in
# datasketch/lsh.py. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet datasketch==2.0.0 numpy==2.4.6 scipy==1.17.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
from datasketch import MinHash, MinHashLSH

def sketch(elements):
    minhash = MinHash(num_perm=128, seed=1)
    minhash.update_batch([str(element).encode() for element in elements])
    return minhash

PAIRS = 300
def found(shared, **options):
    """Share of pairs found: sets with `shared` elements in common, 100 in all."""
    hits = 0
    for pair in range(PAIRS):
        first, own = 1000 * pair, (100 - shared) // 2
        one = sketch(range(first, first + shared + own))
        other = sketch([*range(first, first + shared), *range(first + 500, first + 500 + own)])
        index = MinHashLSH(threshold=0.8, num_perm=128, **options)
        index.insert("one", one)
        hits += bool(index.query(other))
    return hits / PAIRS

index = MinHashLSH(threshold=0.8, num_perm=128)
rates = {s: found(s) for s in (80, 90)}
leaning = found(80, weights=(0.1, 0.9))
print("version: datasketch", importlib.metadata.version("datasketch"))
print("expected: threshold=0.8 finds nearly all pairs of similarity 0.8")
print(f"seen: {index.b} bands of {index.r} rows find {rates[80]:.0%} at 0.8, {rates[90]:.0%} at 0.9;",
      f"with weights=(0.1, 0.9) {leaning:.0%} at 0.8")
assert (index.b, index.r) == (9, 13)
assert abs(rates[80] - (1 - (1 - 0.8**13) ** 9)) < 0.1 and rates[90] > 0.85 and leaning > 0.85
PY
