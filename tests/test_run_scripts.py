"""run/*.sh: the flags of docs/training.md to the letter, from any folder, with whichever Python is meant."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from stubbed_checkout import lines, run, stub

import arguments

ROOT = Path(__file__).resolve().parent.parent

LARGE_512 = """
    --model gpt2-large --max-len 512 --optimizer AdamW --learning-rate 0.00015 --lr-schedule cosine --lr-warmup 0.01
    --layers-per-ipu 1 5 5 5 5 5 5 5 --matmul-proportion 0.15 0.12 0.15 0.15 0.15 0.15 0.15 0.15 --ipus-per-replica 8
    --replication-factor 2 --epochs 20 --gradient-accumulation 4096 --device-iterations 8 --batch-size 1
    --enable-sequence-serialized True --remap-logit True --embedding-serialization-factor 8
    --recompute-checkpoint-every-layer True --enable-half-partials True --train-path 'generated'
    --replicated-tensor-sharding True --compile-only False
"""
TRAINING = {
    "pretraining_small": """
    --model gpt2 --max-len 1024 --optimizer AdamW --learning-rate 0.00015 --lr-schedule cosine --lr-warmup 0.01
    --layers-per-ipu 0 4 4 4 --matmul-proportion 0.15 0.15 0.15 0.15 --ipus-per-replica 4 --replication-factor 4
    --epochs 20 --gradient-accumulation 2048 --device-iterations 8 --batch-size 1 --enable-sequence-serialized True
    --remap-logit True --embedding-serialization-factor 4 --recompute-checkpoint-every-layer True
    --enable-half-partials True --train-path 'generated' --replicated-tensor-sharding True --compile-only False
""",
    "pretraining_medium": """
    --model gpt2-medium --max-len 1024 --optimizer AdamW --learning-rate 0.00015 --lr-schedule cosine
    --lr-warmup 0.01 --layers-per-ipu 0 3 3 3 3 4 4 4
    --matmul-proportion 0.30 0.15 0.15 0.15 0.15 0.15 0.15 0.15 --ipus-per-replica 8 --replication-factor 2
    --epochs 20 --gradient-accumulation 4096 --device-iterations 8 --batch-size 1 --enable-sequence-serialized True
    --remap-logit True --embedding-serialization-factor 4 --recompute-checkpoint-every-layer True
    --enable-half-partials True --train-path 'generated' --replicated-tensor-sharding True --compile-only False
""",
    "pretraining_large_512": LARGE_512,
    "pretraining_large_1024": """
    --model gpt2-large --max-len 1024 --optimizer AdamW --learning-rate 0.00015 --lr-schedule cosine
    --lr-warmup 0.01 --layers-per-ipu 0 2 2 2 2 2 2 2 2 3 3 3 3 3 3 2
    --matmul-proportion 0.2 0.15 0.2 0.2 0.2 0.15 0.15 0.2 0.2 0.15 0.2 0.2 0.2 0.15 0.15 0.2
    --ipus-per-replica 16 --replication-factor 1 --epochs 20 --gradient-accumulation 8192 --device-iterations 8
    --batch-size 1 --enable-sequence-serialized True --remap-logit True --embedding-serialization-factor 4
    --recompute-checkpoint-every-layer True --enable-half-partials True --train-path 'generated'
    --replicated-tensor-sharding False --compile-only False
""",
    "pretraining_test": """
    --model gpt2-test --max-len 128 --layers-per-ipu 0 4 --matmul-proportion 0.20 0.20 --ipus-per-replica 2
    --epochs 3 --gradient-accumulation 32 --embedding-serialization-factor 8 --train-path 'generated'
""",
}
QUICK_START = """
    --model gpt2 --max-len 1024 --layers-per-ipu 0 4 4 4 --matmul-proportion 0.15 0.15 0.15 0.15 --ipus-per-replica 4
    --replication-factor 1 --epochs 3 --gradient-accumulation 512 --device-iterations 1 --batch-size 1
    --enable-sequence-serialized True --remap-logit True --embedding-serialization-factor 4
    --recompute-checkpoint-every-layer True --enable-half-partials True --train-path 'generated' --compile-only False
"""
INFERENCE = """
    --model gpt2-xl --max-len 1024 --layers-per-ipu 1 6 6 7 7 7 7 7
    --matmul-proportion 0.2 0.2 0.2 0.2 0.2 0.2 0.2 0.2 --ipus-per-replica 8 --replication-factor 2
    --device-iterations 1 --batch-size 1 --embedding-serialization-factor 4 --train-path 'generated'
"""
POPRUN_512 = LARGE_512.replace("--epochs 20", "--epochs 5").replace("accumulation 4096", "accumulation 1024")
POPRUN_VARIABLES = {
    "HOSTS": "host-a,host-b",
    "PARTITION": "pod64",
    "NUM_INSTANCE": "4",
    "NUM_REPLICA": "8",
    "NUM_ILDS": "2",
    "TCP_IF_INCLUDE": "eth 0",
}
POPRUN = [
    "-vv",
    "--host",
    "host-a,host-b",
    "--vipu-partition=pod64",
    "--num-instances=4",
    "--num-replicas=8",
    "--num-ilds",
    "2",
    "--ipus-per-replica=8",
    "--numa-aware=yes",
    "--print-topology=yes",
    "--vipu-server-timeout=3600",
    "--mpi-global-args=--mca oob_tcp_if_include eth 0 --mca btl_tcp_if_include eth 0",
    "--mpi-local-args=-x OPAL_PREFIX -x LD_LIBRARY_PATH -x PATH -x PYTHONPATH -x CPATH -x IPUOF_VIPU_API_TIMEOUT=3600"
    " -x POPLAR_LOG_LEVEL=WARN -x POPLAR_SDK_ENABLED -x POPLAR_ENGINE_OPTIONS",
]
SCRIPTS = [*TRAINING, "pretraining_large_poprun", "pretraining_large_torchrun", "inference_xlarge"]


@pytest.mark.parametrize("script", TRAINING)
def test_training_scripts_pass_exactly_these_flags(script: str, checkout: Path) -> None:
    name, folder, _, program, *flags = lines(run(checkout, script))
    assert (name, Path(folder), program) == ("system", checkout, "train_gpt2.py")
    assert flags == shlex.split(TRAINING[script])


@pytest.mark.parametrize("script", TRAINING)
def test_further_flags_come_last_and_win(script: str, checkout: Path) -> None:
    further = ["--epochs", "1", "--train-path", "generated", "--executable_cache_dir", "two words"]
    flags = lines(run(checkout, script, *further))[4:]
    assert flags == shlex.split(TRAINING[script]) + further
    args = arguments.parse_train_args(flags)
    assert (args.epochs, args.executable_cache_dir) == (1, "two words")


@pytest.mark.parametrize("line", [*TRAINING.values(), QUICK_START, POPRUN_512], ids=[*TRAINING, "quick", "poprun"])
def test_the_flags_are_accepted(line: str) -> None:
    args = arguments.parse_train_args(shlex.split(line))
    words = shlex.split(line)
    assert args.ipus_per_replica == int(words[words.index("--ipus-per-replica") + 1])
    assert len(args.layers_per_ipu) == len(args.matmul_proportion) == args.ipus_per_replica
    assert args.typed == {word[2:].replace("-", "_") for word in words if word.startswith("--")}


def test_the_interpreter(checkout: Path) -> None:
    """PYTHON, then the activated environment, then .venv, then python3 of the path."""
    assert lines(run(checkout, "pretraining_test"))[0] == "system"
    stub(checkout / ".venv" / "bin" / "python", "own")
    assert lines(run(checkout, "pretraining_test"))[0] == "own"
    stub(checkout / "my env" / "bin" / "python3", "activated")
    active = str(checkout / "my env")
    assert lines(run(checkout, "pretraining_test", VIRTUAL_ENV=active))[0] == "activated"
    stub(checkout / "bin" / "python9", "chosen")
    assert lines(run(checkout, "pretraining_test", VIRTUAL_ENV=active, PYTHON="python9"))[0] == "chosen"


def test_without_poprun_the_plain_script_is_named(checkout: Path) -> None:
    done = run(checkout, "pretraining_large_poprun", **POPRUN_VARIABLES)
    assert (done.returncode, done.stdout) == (2, "")
    assert "poprun" in done.stderr and "run/pretraining_large_512.sh" in done.stderr


def test_poprun_asks_for_its_variables(checkout: Path) -> None:
    stub(checkout / "bin" / "poprun", "poprun")
    given = {name: value for name, value in POPRUN_VARIABLES.items() if name not in ("HOSTS", "NUM_ILDS")}
    done = run(checkout, "pretraining_large_poprun", **given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("HOSTS NUM_ILDS\n")


def test_poprun_command(checkout: Path) -> None:
    stub(checkout / "bin" / "poprun", "poprun")
    done = run(checkout, "pretraining_large_poprun", "--epochs", "1", **POPRUN_VARIABLES)
    name, folder, target, *words = lines(done)
    assert (name, Path(folder), target) == ("poprun", checkout, '{"gatewayMode":"true"}')
    assert words == [*POPRUN, "python3", "train_gpt2.py", *shlex.split(POPRUN_512), "--epochs", "1"]


def test_torchrun_command(checkout: Path) -> None:
    """poprun's flags; processes, replicas and machines from variables."""
    name, folder, _, *words = lines(run(checkout, "pretraining_large_torchrun", "--epochs", "1"))
    assert (name, Path(folder)) == ("system", checkout)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]
    assert words == [*launcher, "train_gpt2.py", *shlex.split(POPRUN_512), "--epochs", "1"]
    given = {"NUM_REPLICA": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
    _, _, _, *words = lines(run(checkout, "pretraining_large_torchrun", **given))
    meeting = "--nnodes 2 --node-rank 1 --master-addr one --master-port 29500 --nproc-per-node 4".split()
    assert words[2 : 2 + len(meeting)] == meeting and words[words.index("--replication-factor") + 1] == "8"


def test_torchrun_asks_for_where_machines_meet(checkout: Path) -> None:
    done = run(checkout, "pretraining_large_torchrun", NNODES="2", NODE_RANK="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("set these variables too: MASTER_ADDR MASTER_PORT\n")


def test_inference_script(checkout: Path) -> None:
    _, folder, _, program, *flags = lines(run(checkout, "inference_xlarge", "--batch-size", "2"))
    assert (Path(folder), program) == (checkout, "inference_gpt2.py")
    assert flags == [*shlex.split(INFERENCE), "--batch-size", "2"]
    args = arguments.parse_train_args(flags, "inference_gpt2.py", trains=False)
    assert (args.model, args.layers_per_ipu, args.batch_size) == ("gpt2-xl", [1, 6, 6, 7, 7, 7, 7, 7], 2)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable(script: str) -> None:
    assert os.access(ROOT / "run" / f"{script}.sh", os.X_OK)


STOPPED = """
import os, sys
from pathlib import Path
from command_line.commands import command_to_resume

if "--resume-training-from-checkpoint" in sys.argv:
    print(os.getcwd(), *sys.argv[1:])
else:
    print(command_to_resume(sys.argv[1:], Path("my runs/step_1")))
"""


def test_the_command_to_resume_works_where_the_script_was_called(checkout: Path) -> None:
    (checkout / "train_gpt2.py").write_text(STOPPED)
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    printed = run(checkout, "pretraining_test", "--save-model-path", "my runs", **environment).stdout
    pasted = subprocess.run(
        ["bash", "-c", printed], cwd=checkout / "elsewhere", env=environment, capture_output=True, text=True
    )
    start = f"{checkout} {' '.join(shlex.split(TRAINING['pretraining_test']))}"
    resume = "--pretrained-checkpoint my runs/step_1 --resume-training-from-checkpoint True"
    assert (pasted.stdout, pasted.stderr) == (f"{start} --save-model-path my runs {resume}\n", "")
    at_home = subprocess.run(
        ["bash", "run/pretraining_test.sh"], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert at_home.stdout.startswith(f"{sys.executable} train_gpt2.py --model")


def test_the_demo_names_its_folder_to_who_stands_elsewhere(checkout: Path) -> None:
    for name in ("corpus/wikicorpus_en_one_article_per_line.pkl", "checkpoints/epoch_0/config.json"):
        path = checkout / "demo" / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert f"\nThree things to try next, in {checkout}:\n" in run(checkout, "demo").stdout
    from_make = run(checkout, "demo", CALLED_FROM=str(checkout))
    assert "\nThree things to try next:\n" in from_make.stdout
