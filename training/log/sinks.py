"""Where a run's figures go beside the terminal: TensorBoard and Weights & Biases. Neither is ever needed."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any, Mapping
from urllib.parse import urlparse


class TensorBoard:
    """Event files in a folder. Raises ValueError without the package.

    A run that is resumed after `first_step` does later steps again: what earlier files say of them is not shown.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--log-dir {folder}: {error}; `pip install -r requirements-tensorboard.txt`, or leave the flag out"
            ) from error
        # Written from a thread of its own every 30 seconds; at most 100 figures wait.
        purge = {"purge_step": first_step + 1} if first_step else {}
        self._writer = SummaryWriter(log_dir=str(folder), max_queue=100, flush_secs=30, **purge)

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """One point a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Everything is written."""
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B: offline, in ./wandb, unless WANDB_MODE or a key that is configured says otherwise.

    Never asks for anything: without a key it does not try to log in, and without a network it goes on offline.

    Raises ValueError without the package, or if it refuses to start even offline.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--use-wandb: {error}; `pip install -r requirements-wandb.txt`, or leave the flag out"
            ) from error
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        try:
            self._run = self._start(wandb, mode, name, settings)
        except Exception as error:  # whatever W&B makes of a network, a key or a folder that it cannot use
            if mode != "online":
                raise ValueError(f"--use-wandb: W&B does not start ({error}); leave the flag out") from error
            print(f"W&B cannot be reached ({error}); logging offline", flush=True)
            self._run = self._start(wandb, "offline", name, settings)

    @staticmethod
    def _start(wandb: Any, mode: str, name: str, settings: Mapping[str, Any]) -> Any:
        quiet = wandb.Settings(silent=True, console="off", init_timeout=30)
        run = wandb.init(project="gpt2", name=name, mode=mode, config=dict(settings), settings=quiet)
        if mode == "offline":
            folder = Path(run.dir).parent  # run.dir is `files` in it
            print(f"W&B logs offline into {folder}: `wandb sync {folder}` sends it later", flush=True)
        return run

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """One point a figure."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Everything is written."""
        self._run.finish()


def _has_key() -> bool:
    """Whether somebody configured a key: otherwise W&B would ask for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host: str | None = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
