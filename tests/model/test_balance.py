"""--layers-per-ipu auto: against every split there is, and against those of the scripts."""

import dataclasses
import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments import parse_train_args
from model.balance import balanced_layers, ipu_operations
from model.config import GPT2Config
from model.pipeline import forward_stages

ROOT = Path(__file__).resolve().parents[2]
BASE = GPT2Config(vocab_size=10, n_positions=3, n_embd=2, n_layer=4, n_head=1, real_vocab_size=1)


def splits(blocks, ipus):
    """Every one that leaves no IPU but the first without a block."""
    for cuts in itertools.combinations(range(blocks), ipus - 1):
        marks = [*cuts, blocks]
        yield [marks[0], *(after - before for before, after in zip(marks, marks[1:]))]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_split_has_a_faster_slowest_ipu(data):
    blocks = data.draw(st.integers(1, 9))
    ipus = data.draw(st.integers(1, blocks + 1))
    # a head of next to nothing up to one of many blocks' work
    config = dataclasses.replace(
        BASE, n_layer=blocks, n_embd=data.draw(st.sampled_from([2, 16])), vocab_size=data.draw(st.integers(1, 3000))
    )
    recomputed = data.draw(st.sets(st.integers(0, blocks - 1)))
    training = data.draw(st.booleans())
    chosen = balanced_layers(config, 5, ipus, recomputed, training)
    assert len(chosen) == ipus and sum(chosen) == blocks and all(chosen[1:])

    def slowest(split):
        return max(ipu_operations(config, 5, split, recomputed, training))

    def squares(split):
        return sum(work**2 for work in ipu_operations(config, 5, split, recomputed, training))

    least = min(map(slowest, splits(blocks, ipus)))
    assert slowest(chosen) == least
    if training:
        alike = [split for split in splits(blocks, ipus) if slowest(split) == least]
        fewest = min(map(forward_stages, alike))
        assert forward_stages(chosen) == fewest
        alike = [split for split in alike if forward_stages(split) == fewest]
        assert squares(chosen) == min(map(squares, alike))
        assert chosen == min(split for split in alike if squares(split) == squares(chosen))


def scripts():
    """Command lines of the scripts and of benchmarks.yml that give --layers-per-ipu, and whether they train."""
    texts = {path.stem: path.read_text() for path in sorted((ROOT / "run").glob("*.sh"))}
    entries = yaml.safe_load((ROOT / "benchmarks.yml").read_text())
    texts.update((name, entry["cmd"]) for name, entry in entries.items() if "cmd" in entry)
    for name, text in texts.items():
        found = re.search(r'(train|inference)_gpt2\.py ([^"]*--layers-per-ipu.*)', text.replace("\\\n", " "))
        if found:
            words = shlex.split(found[2].replace('"$@"', "").replace("$replicas", "2"))
            yield pytest.param(words, found[1] == "train", id=name)


SCRIPTS = list(scripts())


def test_the_scripts_are_found():
    assert len(SCRIPTS) > 12 and sum(not script.values[1] for script in SCRIPTS) > 3


@pytest.mark.parametrize(("words", "trains"), SCRIPTS)
def test_it_is_never_worse_than_a_script(words, trains):
    given_args = parse_train_args(words, trains=trains)
    args = parse_train_args([*words, "--layers-per-ipu", "auto"], trains=trains)
    config = GPT2Config.from_json(args.config)
    slowest = [
        max(ipu_operations(config, args.max_len, each.layers_per_ipu, each.recompute_checkpoint_layers, trains))
        for each in (args, given_args)
    ]
    assert slowest[0] <= slowest[1] and len(args.layers_per_ipu) == len(given_args.layers_per_ipu)
    assert f"--layers-per-ipu auto: {' '.join(map(str, args.layers_per_ipu))}" in args.notes


def test_small_comes_out_as_in_its_script():
    args = parse_train_args(
        "--model gpt2 --max-len 1024 --layers-per-ipu auto --gradient-accumulation 16 "
        "--recompute-checkpoint-every-layer".split()
    )
    assert (args.layers_per_ipu, args.ipus_per_replica) == ([0, 4, 4, 4], 4)


def test_blocks_on_the_first_ipu_need_more_micro_batches():
    """0 1 0 1 0 has five stages, which take nine micro-batches; 0 1 0 has three, which take five."""
    config = dataclasses.replace(BASE, n_layer=4, vocab_size=8)
    assert balanced_layers(config, 3, 2) == [2, 2]
    assert balanced_layers(config, 3, 2, micro_batches=9) == [2, 2]
    assert balanced_layers(config, 3, 2, micro_batches=8) == [0, 4]


def test_an_ipu_without_a_block_is_an_error():
    assert balanced_layers(BASE, 3, 5) == [0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="4 blocks cannot fill IPUs 1 to 5; at most 5 IPUs"):
        balanced_layers(BASE, 3, 6)


def test_large_models_take_no_time():
    config = dataclasses.replace(GPT2Config(), n_layer=200, n_embd=12288, n_head=96)
    split = balanced_layers(config, 2048, 64, recomputed=range(0, 200, 3))
    assert sum(split) == 200 and max(split) - min(split[1:]) <= 1
