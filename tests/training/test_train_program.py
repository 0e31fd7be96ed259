"""The program as a user meets it: refusals, --compile-only, what it writes and prints, the memory its data take."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import warm_process
from tiny_run import (
    LOG_FILES,
    NO_DROPOUT,
    environment,
    flags,
    run_here,
    run_there,
    saved_in,
    write_config,
    write_corpus,
)

from data.bad_data import BadData
from data.loading.generated import GeneratedDataset
from model.checkpoint import save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from training import optimization

SMALL = """--model gpt2 --max-len 1024 --optimizer AdamW --learning-rate 0.00015 --lr-schedule cosine --lr-warmup 0.01
    --layers-per-ipu 0 4 4 4 --matmul-proportion 0.15 0.15 0.15 0.15 --ipus-per-replica 4 --replication-factor 4
    --epochs 20 --gradient-accumulation 2048 --device-iterations 8 --batch-size 1 --enable-sequence-serialized True
    --remap-logit True --embedding-serialization-factor 4 --recompute-checkpoint-every-layer True
    --enable-half-partials True --train-path generated --replicated-tensor-sharding True""".split()


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path)
    return tmp_path


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if ".cache-v" not in str(path))


def refused(folder, *words, **changes):
    """The problems of a refused run: one line each. Nothing may be there that was not there before."""
    before = tree(folder)
    done = run_here([*flags(folder, **{"save_model_path": folder / "save", **changes}), *words])
    assert done.status == 2, done.err
    lines = done.err.splitlines()
    assert lines[0].startswith("train_gpt2.py: ") and "Traceback" not in done.err
    assert lines[0].split()[1] == str(sum(line.startswith("  ") and line[2] != " " for line in lines[1:]))
    assert tree(folder) == before
    return done.err


def checkpoint_of(folder, name="checkpoint", **changes):
    config = GPT2Config.from_json(write_config(folder / "other", **changes))
    save_pretrained(GPT2LMHeadModel(config), folder / name)
    return folder / name


def test_a_call_larger_than_the_data(folder):
    corpus = write_corpus(folder / "corpus.pkl", articles=3)
    problem = refused(folder, train_path=corpus, stride=16, gradient_accumulation=5, device_iterations=2)
    assert "one call takes 10 samples" in problem and "there are 9" in problem
    assert "batch 1 x accumulation 5 x iterations 2 x replicas 1" in problem


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("was_run"),))


@pytest.mark.parametrize(
    "content, named",
    [
        (pickle.dumps([[1, 2, 61] * 20]), "token id 61 is outside the model's vocabulary 0..60"),
        (pickle.dumps([[1, 2, -1] * 20]), "-1 is not a token id"),
        (pickle.dumps([["a", "b"]]), "an article holds something that is not an id"),
        (pickle.dumps({"a": 1}), "not a list"),
        (pickle.dumps([[1] * 40, Malicious()], protocol=2), "wants to load objects or run code"),
        (pickle.dumps([[1] * 40])[:-5], "truncated"),
        (pickle.dumps([[1, 2]]), "lower --max-len"),
        (pickle.dumps([]), "no token in 0 articles"),
        (b"", "the file is empty"),
    ],
    ids=["vocabulary", "negative", "text", "mapping", "malicious", "truncated", "short", "none", "empty"],
)
def test_a_pickle_that_is_no_corpus(folder, content, named, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "corpus.pkl").write_bytes(content)
    problem = refused(folder, train_path=folder / "corpus.pkl")
    assert named in problem and str(folder / "corpus.pkl") in problem
    assert not (folder / "was_run").exists()


def test_a_missing_corpus(folder):
    assert "there is no such file" in refused(folder, train_path=folder / "none.pkl")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"n_layer": 3}, "n_layer 3 instead of 2"),
        ({"n_embd": 8}, "n_embd 8 instead of 16"),
        ({"n_head": 4}, "n_head 4 instead of 2"),
        ({"real_vocab_size": 50}, "real_vocab_size 50 instead of 61"),
    ],
    ids=["layers", "width", "heads", "vocabulary"],
)
def test_a_checkpoint_of_another_shape(folder, changes, named):
    checkpoint = checkpoint_of(folder, **changes)
    problem = refused(folder, pretrained_checkpoint=checkpoint)
    assert named in problem and f"--pretrained-checkpoint {checkpoint}" in problem
    assert f"--config {checkpoint / 'config.json'}" in problem


def test_the_remedy_for_another_shape_works(folder):
    checkpoint = checkpoint_of(folder, n_layer=3, **NO_DROPOUT)
    config = checkpoint / "config.json"
    done = run_here(flags(folder, pretrained_checkpoint=checkpoint, config=config, training_steps=1))
    assert done.status == 0, done.err


def test_a_max_len_of_millions(folder):
    """No allocation of terabytes, and what is wrong with the data is said too."""
    corpus = write_corpus(folder / "corpus.pkl")
    problem = refused(folder, train_path=corpus, max_len=5_000_000)
    assert "--max-len 5000000: the causal masks of 2 layers take 50,000,000,000,000 bytes" in problem
    assert "lower --max-len" in problem and "2500001 ids" in problem
    assert "lower --max-len" in refused(folder, max_len=5_000_000, gradient_accumulation=1)


def test_a_longer_max_len_than_the_checkpoint_has(folder):
    checkpoint = checkpoint_of(folder, n_positions=8)
    assert "use --max-len 8 or less" in refused(folder, pretrained_checkpoint=checkpoint)


def test_a_damaged_checkpoint(folder):
    checkpoint = checkpoint_of(folder)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{weights}: cannot be read" in refused(folder, pretrained_checkpoint=checkpoint)
    weights.unlink()
    assert "holds no weights" in refused(folder, pretrained_checkpoint=checkpoint)


def test_resuming_from_plain_weights(folder):
    problem = refused(folder, "--resume-training-from-checkpoint", pretrained_checkpoint=checkpoint_of(folder))
    assert "training_state.pt does not exist" in problem and "leave the flag out" in problem


def test_checkpoint_and_data_are_both_named(folder):
    (folder / "corpus.pkl").write_bytes(pickle.dumps([[1000] * 40]))
    checkpoint = checkpoint_of(folder, n_layer=3)
    problem = refused(
        folder, "--resume-training-from-checkpoint", pretrained_checkpoint=checkpoint, train_path=folder / "corpus.pkl"
    )
    assert problem.startswith("train_gpt2.py: 3 problems")
    assert "training_state.pt" in problem and "n_layer 3" in problem and "token id 1000" in problem


def test_a_folder_that_cannot_be_written_is_found_before_training(folder):
    """/proc allows nobody to make a folder, not even root, whom permissions do not stop."""
    problem = refused(folder, save_model_path="/proc/checkpoints")
    assert "--save-model-path /proc/checkpoints: checkpoints cannot be written there" in problem
    (folder / "file").write_text("")
    assert "is a file" in refused(folder, save_model_path=folder / "file" / "save")


def test_as_a_process_a_refusal_is_short(folder):
    (folder / "corpus.pkl").write_bytes(pickle.dumps([[1000] * 40]))
    done = run_there(flags(folder, train_path=folder / "corpus.pkl"))
    assert done.status == 2
    assert len(done.err.splitlines()) == 2 and "Traceback" not in done.err


def test_compile_only_prints_the_plan_without_a_large_allocation(tmp_path):
    """A combined batch of gpt2 small would take 537 MB, its weights and optimizer state 1.2 GB."""
    program = (
        "import resource, sys, train_gpt2; status = train_gpt2.main(sys.argv[1:]); "
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    argv = [*SMALL, "--compile-only", "--save-model-path", str(tmp_path / "save"), "--num-workers", "0"]
    done = warm_process.run(["-c", program, *argv], environment(), str(tmp_path))
    assert done.returncode == 0, done.stderr
    *lines, peak = done.stdout.splitlines()
    plan = lines[lines.index("124,451,328 parameters in 12 layers") :]
    assert plan[1] == "a step: 65,536 samples, 67,108,864 tokens, 8 weight updates on 4 IPUs x 4 replicas"
    assert [line.split("  ") for line in plan[2:3]][0][:3] == ["rank", "IPU", "stage"]
    cells = [re.split(r"\s{2,}", line.strip()) for line in plan[3:7]]
    assert [row[:5] for row in cells] == [
        ["0", "0", "0+4", "tokens, head", "38,608,896"],
        ["0", "1", "1", "positions, 0-3", "29,137,920"],
        ["0", "2", "2", "4-7", "28,351,488"],
        ["0", "3", "3", "8-11", "28,353,024"],
    ]
    assert plan[7].split()[:3] == ["0", "all", "124,451,328"]
    assert plan[-1] == "4 calls an epoch, 80 calls in all"
    assert int(peak.split()[1]) / 1024 < 900, "MiB"
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_run_leaves_nothing_behind_but_its_checkpoints(folder, monkeypatch):
    work = folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    done = run_here(flags(folder, save_model_path="save", epochs=2, training_steps=6, remap_logit=True))
    assert done.status == 0, done.err
    names = ["config.json", "model.safetensors", "training_state.pt"]
    assert [name for name in tree(work) if Path(name).name not in LOG_FILES] == sorted(
        [
            "save",
            *(f"save/{c}" for c in ("epoch_0", "step_6")),
            *(f"save/{c}/{n}" for c in ("epoch_0", "step_6") for n in names),
        ]
    )


def test_checkpoints_come_when_they_are_asked_for(folder):
    asked = {"save_model_path": folder / "save", "epochs": 5, "save_per_epochs": 2, "save_per_steps": 6}
    assert run_here(flags(folder, **asked)).status == 0
    saved = saved_in(folder / "save")
    assert saved == {"epoch_1", "epoch_3", "step_6", "step_12", "step_18", "step_20"}, "4 calls an epoch; the last one"
    shutil.rmtree(folder / "save")
    assert run_here(flags(folder, **asked, keep_checkpoints=2)).status == 0
    assert saved_in(folder / "save") == {"step_18", "step_20"}


@pytest.mark.parametrize("scaling, saved", [(1e9, set()), (1024, {"step_1", "step_2"})])
def test_a_run_that_overflows_stops_and_saves_no_broken_weights(folder, monkeypatch, scaling, saved):
    """Half gradients overflow at once; or the learning rate explodes after two steps."""
    if saved:
        monkeypatch.setattr(optimization, "schedule_factor", lambda kind, step, *rest: 1e30 if step == 2 else 1.0)
    asked = {"save_model_path": folder / "save", "save_per_steps": 1, "epochs": 2, "lr_warmup": 0}
    done = run_here(flags(folder, **asked, loss_scaling=scaling))
    assert done.status == 1, done.err
    assert "no longer finite" in done.err and "--loss-scaling" in done.err and "Traceback" not in done.err
    start = f"from the weights of {folder / 'save' / 'step_2'}" if saved else "from the beginning"
    assert f"HINT: start again {start} with a lower --loss-scaling" in done.err
    assert saved_in(folder / "save") == saved


def test_a_vocabulary_that_is_not_padded_is_padded_for_training_and_not_in_files(folder):
    write_config(folder, vocab_size=61, real_vocab_size=None)
    asked = {"save_model_path": folder / "save", "save_per_steps": 2, "epochs": 1}
    assert run_here(flags(folder, **asked)).status == 0
    resume = ["--pretrained-checkpoint", str(folder / "save" / "step_2"), "--resume-training-from-checkpoint"]
    done = run_here([*flags(folder, **asked), *resume])
    assert done.status == 0, done.err
    weights = safetensors.torch.load_file(str(folder / "save" / "step_4" / "model.safetensors"))
    assert weights["transformer.wte.weight"].shape == (61, 16)
    problem = refused(folder, embedding_serialization_factor=61)
    assert "--embedding-serialization-factor 61: does not divide the vocabulary, padded to 64 rows" in problem


def test_without_a_folder_the_start_says_that_nothing_is_saved(folder):
    done = run_here(flags(folder, training_steps=1))
    assert done.status == 0 and "no --save-model-path: nothing will be saved" in done.out.splitlines()
    assert tree(folder) == ["tiny.json"]


def test_standard_error_has_the_notices_of_the_runtime_and_nothing_else(folder):
    corpus = write_corpus(folder / "corpus.pkl")
    words = {"train_path": corpus, "stride": 16, "val_num": 2, "num_workers": 4, "remap_logit": True}
    done = run_there(flags(folder, **words, save_model_path=folder / "save", epochs=1, training_steps=3), cold=True)
    assert done.status == 0, done.err
    lines = [line for line in done.err.splitlines() if "[poptorch] [WARNING]" not in line]
    assert [line for line in lines if not line.startswith("custom_ops.so is not built")] == []
    assert sum("have no effect off-IPU" in line for line in done.err.splitlines()) == 1


# In a process of its own: what the tests before have freed would be used again, and not be counted.
_MEMORY = """
import sys, threading, time
from pathlib import Path
from arguments import parse_train_args
from training.run import TrainingRun

def proportional_memory():
    # bytes of this process and its children, shared pages counted once in all
    pid = Path("/proc/self").resolve().name
    total = 0
    for process in (pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total

def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], proportional_memory())

if __name__ == "__main__":
    args = parse_train_args(sys.argv[1:])
    shape = (args.gradient_accumulation, args.max_len)
    run = TrainingRun(args)
    before, peak, done = proportional_memory(), [0], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for input_ids, labels in run.loader:
            assert tuple(input_ids.shape) == tuple(labels.shape) == shape
            assert str(input_ids.dtype) == str(labels.dtype) == "torch.int32"
            time.sleep(0.2)  # training: the next batch is read meanwhile
            del input_ids, labels
    finally:
        done.set()
        watcher.join()
    print("growth", (peak[0] - before) / (2 * shape[0] * shape[1] * 4))  # in batches of ids and labels, int32
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("workers", [0, 4])
def test_generated_data_are_two_combined_batches_in_memory_at_most(folder, workers):
    words = flags(folder, max_len=512, gradient_accumulation=32768, num_workers=workers)  # a batch: 134 MB
    (folder / "memory.py").write_text(_MEMORY)
    command = [sys.executable, str(folder / "memory.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    growth = float(done.stdout.split("growth ")[1])
    assert 0.9 < growth < 2.4, f"{growth:.2f} combined batches"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"replication_factor": 128}, "Too many IPUs requested (128)"),
        ({"remap_logit": True, "custom_ops": False}, "--remap-logit True: needs the custom ops"),
        ({"seed": 2**40}, "--seed"),
    ],
)
def test_flags_that_the_runtime_refuses_are_one_message(folder, changes, said):
    done = run_here(flags(folder, compile_only=True, **changes))
    assert done.status == 2 and said in done.err, done.err


def test_a_launcher_says_how_many_replicas_there_are(folder, monkeypatch):
    for name in ("POPDIST_NUM_TOTAL_REPLICAS", "POPDIST_NUM_IPUS_PER_REPLICA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # which the program sets: removed afterwards
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    done = run_here(flags(folder, compile_only=True, replication_factor=2))
    assert done.status == 0, done.err
    assert "on 1 IPUs x 2 replicas" in done.out
    monkeypatch.delenv("POPDIST_NUM_TOTAL_REPLICAS")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run_here(flags(folder, compile_only=True, replication_factor=3))
    assert done.status == 2 and "--replication-factor 3: the program was started as one of several" in done.err
    assert "2 processes cannot share 3 replicas: start 1 or 3, or choose a multiple of 2 replicas" in done.err
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "4")
    done = run_here(flags(folder, compile_only=True, replication_factor=2))
    assert done.status == 0 and "4 replicas in all, as the launcher says" in done.out, done.err


def test_a_mistake_in_the_engine_options_is_a_refusal(folder, monkeypatch):
    monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", '{"autoReport.all": true}')
    done = run_here(flags(folder))
    assert done.status == 2 and "Traceback" not in done.err
    assert 'POPLAR_ENGINE_OPTIONS: the value of "autoReport.all" must be a text in quotes, not true' in done.err


@pytest.mark.parametrize("workers", [0, 1])
def test_data_found_damaged_by_the_process_of_the_async_dataloader(folder, monkeypatch, workers):
    read, calls = GeneratedDataset.read, []

    def damaged_later(self, indices, ids):
        calls.append(indices)
        if len(calls) == 3:
            raise BadData("file.bin, record 7: damaged")
        read(self, indices, ids)

    monkeypatch.setattr(GeneratedDataset, "read", damaged_later)
    done = run_here(flags(folder, async_dataloader=True, num_workers=workers, save_model_path=folder / "save"))
    assert done.status == 2 and "train_gpt2.py: file.bin, record 7: damaged\n" in done.err, done.err
    assert "Traceback" not in done.err
