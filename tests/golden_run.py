"""Twenty steps of a tiny seeded run. `python tests/golden_run.py` writes their losses to tests/golden_losses.json.

Without dropout: its random stream is not the same in all builds of torch.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tiny_run import NO_DROPOUT, flags, write_config, write_corpus

from arguments import parse_train_args
from training.run import TrainingRun

FILE = Path(__file__).with_name("golden_losses.json")
STEPS = 20


def losses(folder: Path) -> list:
    """Mean loss of each of the 20 calls: 4 calls an epoch, each 2 updates x 2 micro-batches x 2 samples of 16 ids."""
    write_config(folder, **NO_DROPOUT)
    corpus = write_corpus(folder / "corpus.pkl", articles=12)  # 3 samples each
    changes = {"batch_size": 2, "device_iterations": 2, "lr_schedule": "cosine", "stride": 16}
    words = flags(folder, train_path=corpus, epochs=STEPS // 4, weight_decay=0.01, **changes)
    run = TrainingRun(parse_train_args(words))
    found = []
    for epoch in range(STEPS // 4):
        run.sampler.set_epoch(epoch)
        for call in run.batches():
            loss, _ = run.executor(**call._asdict())
            run.schedule.step()
            run.executor.setOptimizer(run.optimizer)
            found.append(float(loss.mean()) / 4)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        content = {"command": "python tests/golden_run.py", "losses": [round(x, 5) for x in losses(Path(temporary))]}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
