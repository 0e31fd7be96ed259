"""run/: the recipes of the systems beside GPT-2. Their flags are the documents', and --sample really trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm_process
from stubbed_checkout import run
from tiny_run import write_config, write_corpus

import arguments
from model.config import GPT2Config

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("wikitext_scratch", "finetune", "replication", "algpt2", "gpt_star")
CLIPNORM = {"optimizer": "Adam", "tensor_gradient_clipping": 1.0, "gradient_clipping": None}
TFCHAT = {
    **CLIPNORM, "batch_size": 2, "gradient_accumulation": 1, "device_iterations": 1, "max_len": 1024, "epochs": 10,
    "windows": "stream", "validation_files": ["corpus-valid.pkl"], "learning_rate": 1e-4, "lr_schedule": "linear",
    "lr_warmup_steps": 0, "min_learning_rate": 0.0, "adam_betas": [0.9, 0.999], "adam_epsilon": 1e-8,
    "weight_decay": 0.0, "early_stopping": 1, "dropout": None,
}  # fmt: skip
NO_CLIP = {**TFCHAT, "tensor_gradient_clipping": None}
PRELIMINARY = {**NO_CLIP, "optimizer": "AdamW", "gradient_clipping": 1.0}
FINETUNE = {
    "batch_size": 1, "gradient_accumulation": 8, "device_iterations": 1, "max_len": 1024, "epochs": 1,
    "learning_rate": 5e-5, "lr_schedule": "linear", "lr_warmup": 0.1, "lr_warmup_steps": None, "lr_decay_steps": None,
    "pretrained_checkpoint": "gpt2-folder", "windows": "stream", "validation_files": ["corpus-valid.pkl"],
}  # fmt: skip
OPENWEBTEXT = {
    "optimizer": "AdamW", "weight_decay": 0.0, "adam_betas": [0.9, 0.999], "learning_rate": 1e-3, "max_len": 1023,
    "lr_schedule": "linear", "lr_warmup_steps": 10000, "lr_decay_steps": 806880, "training_steps": 90000, "seed": 42,
    "batch_size": 8, "gradient_accumulation": 64, "device_iterations": 1, "gradient_clipping": None, "dropout": None,
}  # fmt: skip
STAR = {
    "optimizer": "AdamW", "adam_betas": [0.9, 0.95], "adam_epsilon": 1e-8, "weight_decay": 0.1, "max_len": 512,
    "weight_decay_groups": "gpt-star", "gradient_clipping": 1.0, "lr_schedule": "cosine", "lr_warmup_steps": 4000,
    "lr_decay_steps": 45000, "training_steps": 51000, "batch_size": 8, "gradient_accumulation": 128, "epochs": 1,
    "device_iterations": 1, "dropout": None, "sequence_warmup": None, "learning_rate": 6e-4, "min_learning_rate": 6e-5,
}  # fmt: skip
PLAIN_STAR = {**STAR, "max_len": 1024, "gradient_accumulation": 64, "training_steps": 40000}
# recipe, its own flags, and what train_gpt2.py makes of the command
ROWS = [
    ("wikitext_scratch", "", {**TFCHAT, "model": "tfchat-preln"}),
    ("wikitext_scratch", "--row preln-unshared", {**TFCHAT, "model": "tfchat-preln-unshared"}),
    ("wikitext_scratch", "--row=preln-relu", {**TFCHAT, "model": "tfchat-preln-relu"}),
    ("wikitext_scratch", "--row transformers", {**TFCHAT, "model": "tfchat-gpt2"}),
    ("wikitext_scratch", "--row mingpt", {**TFCHAT, "model": "mingpt-tf"}),
    ("wikitext_scratch", "--row postln", {**TFCHAT, "model": "tfchat-postln"}),
    ("wikitext_scratch", "--row preln-noclip", {**NO_CLIP, "model": "tfchat-preln", "auto_loss_scaling": False}),
    ("wikitext_scratch", "--row preln-noclip-fp16", {**NO_CLIP, "model": "tfchat-preln", "auto_loss_scaling": True}),
    ("wikitext_scratch", "--row preln-noclip-fp16-4", {**NO_CLIP, "batch_size": 4, "auto_loss_scaling": True}),
    ("wikitext_scratch", "--row preln-fp16-4", {**TFCHAT, "batch_size": 4, "auto_loss_scaling": True}),
    ("wikitext_scratch", "--row preliminary-1e-3", {**PRELIMINARY, "model": "gpt2", "learning_rate": 1e-3}),
    ("wikitext_scratch", "--row preliminary-1e-4", {**PRELIMINARY, "model": "gpt2", "learning_rate": 1e-4}),
    ("wikitext_scratch", "--row preliminary-1e-5", {**PRELIMINARY, "model": "gpt2", "learning_rate": 1e-5}),
    ("finetune", "", {**FINETUNE, "optimizer": "AdafactorNoScaling", "last_window": "drop"}),
    ("finetune", "--row pt", {**FINETUNE, "optimizer": "Adafactor", "last_window": "pad", "gradient_clipping": 1.0}),
    ("finetune", "--row adamw", {**FINETUNE, "optimizer": "AdamW", "adam_epsilon": 1e-8, "weight_decay": 0.0}),
    ("finetune", "--row sgd", {**FINETUNE, "optimizer": "SGD", "sgd_momentum": 0.9, "learning_rate": 1e-3}),
    ("replication", "", {**OPENWEBTEXT, "model": "gpt2"}),
    ("algpt2", "", {**OPENWEBTEXT, "model": "algpt2"}),
    ("algpt2", "--model algpt2-medium --dropout 0", {**OPENWEBTEXT, "model": "algpt2-medium", "dropout": [0.0] * 3}),
    ("gpt_star", "", {**STAR, "model": "gpt-127-star"}),
    ("gpt_star", "--model gpt-303-star", {**STAR, "learning_rate": 3e-4, "min_learning_rate": 3e-5}),
    ("gpt_star", "--model gpt-star-124m", PLAIN_STAR),
    ("gpt_star", "--model gpt-star-354m", {**PLAIN_STAR, "learning_rate": 3e-4, "min_learning_rate": 3e-5}),
    (
        "gpt_star", "--model gpt-1b-star",
        {**STAR, "optimizer": "AdamW8bit", "training_steps": 48000, "learning_rate": 2e-4, "min_learning_rate": 2e-5,
         "sequence_warmup": [128, 192, 256, 384], "sequence_warmup_steps": 3750},
    ),
]  # fmt: skip
DATA = dict.fromkeys(("wikitext_scratch", "finetune"), ("corpus.pkl", "corpus-valid.pkl"))


def with_data(root: Path, recipe: str) -> dict[str, str]:
    """Prepared data for a recipe, empty, and the variables that name them."""
    folder = root / "ready"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").touch()
    for name in DATA.get(recipe, ("corpus/1.tar", "corpus/1.tfrecord")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "gpt2-folder").mkdir()
    return {"DATA": str(folder), "CHECKPOINT_PATH": "gpt2-folder", "OUTPUT": str(root / "out")}


def command(done: subprocess.CompletedProcess[str], program: str = "train_gpt2.py") -> list[str]:
    """The flags with which the stub of the last program was called."""
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.splitlines()
    return words[len(words) - words[::-1].index(program) :]


@pytest.mark.parametrize(("recipe", "flags", "expected"), ROWS, ids=[f"{name} {flags}" for name, flags, _ in ROWS])
def test_every_row_is_the_documents(recipe: str, flags: str, expected: dict, checkout: Path, monkeypatch) -> None:
    environment = with_data(checkout, recipe)
    done = run(checkout, recipe, *flags.split(), **environment)
    words = command(done)
    if "--config" in words:  # what model.derived_config would have made of --model, which is a stub here
        place, printed = words.index("--config"), done.stdout.splitlines()
        words[place : place + 2] = ["--model", printed[printed.index("--model") + 1]]
    monkeypatch.chdir(checkout / "ready")
    words = [word.replace(environment["DATA"] + "/", "") for word in words]
    args = arguments.parse_train_args(words)
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.save_model_path == environment["OUTPUT"] and args.resume == "latest"


@pytest.mark.parametrize("recipe", RECIPES)
def test_further_flags_come_last(recipe: str, checkout: Path) -> None:
    further = ["--train-path", "my corpus.pkl", "--epochs", "3"]
    flags = command(run(checkout, recipe, *further, CHECKPOINT_PATH="x"))
    assert flags[-4:] == further


@pytest.mark.parametrize("recipe", RECIPES)
def test_generated_data_take_the_place_of_the_recipes(recipe: str, checkout: Path) -> None:
    """Nothing is prepared, and no flag about the recipe's own data is left over."""
    (checkout / "elsewhere" / "gpt2-folder").mkdir()
    further = ["--train-path", "generated", "--val-num", "8"]
    words = command(run(checkout, recipe, *further, CHECKPOINT_PATH=str(checkout / "elsewhere" / "gpt2-folder")))
    args = arguments.parse_train_args(words)
    assert (args.train_path, args.val_num, args.validation_files, args.windows) == ("generated", 8, None, "article")


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("wikitext_scratch", "batch 2 x 1,024 tokens = 2,048 tokens an update; 570,090 updates = 1.17 G tokens; "
         "114,018 samples: 57,009 updates an epoch, 10 epochs"),
        ("replication", "523,776 tokens an update; 90,000 updates = 47.1 G tokens; 6,885,495 samples: "
         "13,448 updates an epoch, 6.69 epochs"),
        ("gpt_star", "batch 1,024 x 512 tokens = 524,288 tokens an update; 51,000 updates = 26.7 G tokens\n"),
    ],
)  # fmt: skip
def test_the_arithmetic_comes_first(recipe: str, told: str, checkout: Path) -> None:
    output = run(checkout, recipe, **with_data(checkout, recipe)).stdout
    assert output.startswith("published run: ") and told in output


@pytest.mark.parametrize(
    ("recipe", "flags", "told"),
    [
        ("wikitext_scratch", "", "no training data wikitext-103-raw/prepared/corpus.pkl"),
        ("wikitext_scratch", "--row prel", "--row prel: there is no such row; --help lists them"),
        ("wikitext_scratch", "--row", "--row: a name is missing after it"),
        ("wikitext_scratch", "--model gpt2", "--model: it is --row that says which model"),
        ("finetune", "", "no model to start from; name its folder with CHECKPOINT_PATH=FOLDER"),
        ("finetune", "--n_batches 3", "--n-batches of the document has no counterpart here"),
        ("finetune", "--fast", "--fast of the document is --windows first here"),
        ("replication", "--row x", "--row: this recipe has one"),
        ("algpt2", "", "run/algpt2.sh: no training data prepared/openwebtext/tokenizer/tokenizer.json"),
        ("gpt_star", "--model gpt2", "--model gpt2: not one of this recipe"),
    ],
)
def test_mistakes_are_one_line(recipe: str, flags: str, told: str, checkout: Path) -> None:
    done = run(checkout, recipe, *flags.split())
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1
    assert "train_gpt2.py" not in done.stdout


@pytest.mark.parametrize("sample", [[], ["--sample"]])
@pytest.mark.parametrize("recipe", RECIPES)
def test_flags_are_looked_at_before_data_are_missed_or_made(recipe: str, sample: list[str], tmp_path: Path) -> None:
    """Data that were missing were told first, and those that were there prepared, before a slip in a flag was."""
    environment = {
        **os.environ, "PYTHON": sys.executable, "DATA": str(tmp_path / "data"), "OUTPUT": str(tmp_path / "out"),
        "INPUT": str(tmp_path / "none"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "run" / f"{recipe}.sh"), *sample, "--epoch", "3", "--sampel", "--batch-size", "x"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"run/{recipe}.sh: 3 problems, nothing was started or written",
        "  --epoch: unknown flag; did you mean --epochs?",
        "  --sampel: unknown flag; did you mean --sample?",
        "  --batch-size: 'x' must be a whole number of at least 1, or auto",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_is_the_head_of_the_script(recipe: str, checkout: Path) -> None:
    done = run(checkout, recipe, "--help")
    assert done.returncode == 0 and f"bash run/{recipe}.sh" in done.stdout and "--sample" in done.stdout
    assert os.access(ROOT / "run" / f"{recipe}.sh", os.X_OK)


def test_an_input_that_is_not_read_is_told(checkout: Path) -> None:
    """Data that are there were taken for it without a word, whatever they had been made from."""
    environment = with_data(checkout, "gpt_star")
    told = f"data: {environment['DATA']}/corpus is there already, and INPUT=other.jsonl is not read; DATA=FOLDER names"
    assert told in run(checkout, "gpt_star", INPUT="other.jsonl", **environment).stdout
    assert "INPUT" not in run(checkout, "gpt_star", **environment).stdout


def test_data_are_made_by_the_command_that_is_shown(checkout: Path) -> None:
    (checkout / "web.jsonl").touch()
    output = run(checkout, "gpt_star", INPUT="web.jsonl", DATA="new").stdout.splitlines()
    shown = next(line for line in output if line.startswith("== "))
    flags = "--input web.jsonl --source jsonl --fix-text --document-ends both --format webdataset --output new"
    assert shown.endswith(f"-m data.prepare {flags}")
    called = output[output.index("data.prepare") + 1 : output.index("train_gpt2.py") - 3]
    assert called == flags.split()


@pytest.fixture()
def copy(tmp_path: Path) -> Path:
    """The repository by links, with a corpus in the place of the demo's, so that a sample is seconds."""
    root = tmp_path / "copy"
    root.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("demo", "runs", "prepared", ".git"):
            (root / path.name).symlink_to(path)
    corpus = root / "demo" / "corpus" / "wikicorpus_en_one_article_per_line.pkl"
    corpus.parent.mkdir(parents=True)
    write_corpus(corpus)
    return root


def sample(root: Path, recipe: str, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT / "portable"), os.environ.get("PYTHONPATH")]))
    python = root.parent / "python"
    inherited = warm_process.interpreter(python)
    environment = {**os.environ, "PYTHON": str(python), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    small = ["--max-len", "16", "--stride", "16", "--val-num", "4", "--batch-size", "2"]
    return subprocess.run(
        ["bash", str(root / "run" / f"{recipe}.sh"), "--sample", *small, *words],
        env=environment, capture_output=True, text=True, timeout=300, pass_fds=inherited,
    )  # fmt: skip


def test_a_sample_ends_below_the_unigram_model(copy: Path) -> None:
    config = write_config(copy / "tiny")
    course = ["--training-steps", "12", "--lr-warmup-steps", "2", "--lr-decay-steps", "12"]
    done = sample(copy, "gpt_star", "--config", str(config), *course)
    assert (done.returncode, done.stdout.count("\n== Summary\n")) == (0, 1), done.stderr
    unigram, mine = (
        float(line.split()[-1]) for line in done.stdout.split("== Summary")[1].splitlines() if "held-out" in line
    )
    assert mine < unigram
    small = GPT2Config.from_json(copy / "runs" / "gpt_star" / "gpt-127-star-sample" / "small.json")
    assert (small.n_layer, small.n_embd, small.n_head) == (2, 128, 2)
    assert small.parallel_residual and small.position_embedding == "alibi"


def test_a_sample_that_learns_nothing_fails(copy: Path) -> None:
    done = sample(copy, "algpt2", "--training-steps", "1", "--learning-rate", "1e-9")
    assert done.returncode == 1 and "== Summary" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("run/algpt2.sh: the model has not learned more than a unigram model")
    small = GPT2Config.from_json(copy / "runs" / "algpt2" / "algpt2-sample" / "small.json")
    assert small.share_layers and (small.n_embd, small.embedding_size) == (192, 32)


def test_the_demos_corpus_is_made_once(checkout: Path) -> None:
    corpus = checkout / "demo" / "corpus" / "wikicorpus_en_one_article_per_line.pkl"
    for name in ("wikipedia_download", "wikipedia_extract"):
        script = checkout / "data" / f"{name}.sh"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'echo {name} "$PYTHON" "$@"\n')
    output = run(checkout, "demo_corpus").stdout
    steps = [line for line in output.splitlines() if line.startswith(("==", "wikipedia", "data/wikipedia"))]
    assert [line.split()[0] for line in steps] == [
        "==", "wikipedia_download", "==", "wikipedia_extract", "==", "data/wikipedia_preprocess.py"
    ]  # fmt: skip
    assert "wikipedia_download python3 demo/dump --sample" in steps
    assert output.splitlines()[-4:] == ["--input-file-path", "demo/extracted", "--output-file-path", "demo/corpus"]
    corpus.parent.mkdir(parents=True)
    corpus.touch()
    again = run(checkout, "demo_corpus")
    assert (again.returncode, again.stdout) == (0, "")
    refused = run(checkout, "demo_corpus", "--sample")
    assert refused.returncode == 2 and "it takes no flags, but got: --sample" in refused.stderr
