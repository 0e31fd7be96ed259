#!/usr/bin/env bash
# torch 2.13.0: an exported program keeps tied weights tied, one parameter under two names, and outputs of a saved one
# are the same. After torch.export.save and load the two names are two parameters. The graph uses only one of them;
# the other lies on the same memory at first, until a change of type or device gives each its own. From then on
# training leaves it as it was: here the embedding, which then is stale in state_dict() while the head under the same
# graph has learnt. Count or tie again after loading. Source: seen by running torch.export.save and torch.export.load.
# Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
import torch

class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
    def forward(self, ids):
        return self.head(self.embedding(ids))

def trained(module):
    """Number of parameters, and by how much each name changes in a step after a change of type."""
    module = module.double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module(ids).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.01).step()
    after = module.state_dict()
    changes = {name: round((after[name] - before[name]).abs().max().item(), 3) for name in before}
    return len(list(module.parameters())), changes

torch.manual_seed(0)
ids = torch.arange(5)
program = torch.export.export(Tied(), (ids,))
torch.export.save(program, "tied.pt2")
again = torch.export.load("tied.pt2").module()
assert torch.equal(program.module()(ids), again(ids))
memory = again.head.weight.data_ptr() == again.embedding.weight.data_ptr()
exported, loaded = trained(program.module()), trained(again)
print("version: torch", importlib.metadata.version("torch"))
print("expected: one parameter before saving and after loading, and a step of SGD changes it under both names")
print(f"seen: exported {exported}; loaded {loaded}, which were on one memory at first: {memory}")
assert exported[0] == 1 and exported[1]["embedding.weight"] == exported[1]["head.weight"] > 0
assert loaded[0] == 2 and memory and loaded[1] == {**exported[1], "embedding.weight": 0.0}
PY
