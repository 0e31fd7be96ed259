"""Weights & Biases in a command: its words, which go unless --allow-wandb or the entry's allow_wandb leaves them."""

from __future__ import annotations

import re

_TRACKERS = ("report-to", "logger", "log-with", "tracker", "trackers")  # flags that take trackers' names
_TRUTH = ("true", "false", "1", "0", "yes", "no", "on", "off")


def without_wandb(words: list[str]) -> list[str]:
    """The words of a command without those that are W&B's, each with its value.

    A flag that ends in wandb, --use-wandb or --trainer.wandb, switches: only a boolean behind it is its value. Of one
    that goes on, --wandb-project or --wandb.run_name, the next word is; of --wandb-tags all of them, up to the next
    flag. What turns W&B off, --no-wandb or --disable-wandb, stays. Of `--report-to wandb tensorboard` only wandb goes,
    and of `--report-to wandb` the flag, too.
    """
    kept: list[str] = []
    index = 0
    while index < len(words):
        flag, equals, value = words[index].partition("=")
        rest = words[index + 1 :]
        if _name(flag) in _TRACKERS:
            trackers = [value] if equals else rest[: _up_to_a_flag(rest)]
            others = [tracker for tracker in trackers if tracker.lower() != "wandb"]
            kept += words[index : index + 1] if equals and others else []
            kept += [flag, *others] if not equals and (others or not trackers) else []
            index += 0 if equals else len(trackers)
        elif not _is_wandb(flag, bool(equals)):
            kept.append(words[index])
        elif not equals:
            index += _values(flag, rest)
        index += 1
    return kept


def _up_to_a_flag(words: list[str]) -> int:
    return next((index for index, word in enumerate(words) if word.startswith("-")), len(words))


def _name(flag: str) -> str:
    return flag.lstrip("-").lower().replace("_", "-")


def _is_wandb(flag: str, has_value: bool) -> bool:
    named = flag.startswith("-") or (has_value and "/" not in flag)  # --wandb, or wandb.mode=online
    name = _name(flag)
    return named and "wandb" in name and not re.match(r"(no|disable|without)-", name)


def _values(flag: str, rest: list[str]) -> int:
    """How many of the words behind a flag are its values."""
    if re.search(r"(^|[-.])wandb$", _name(flag)):
        return 1 if rest and rest[0].lower() in _TRUTH else 0
    count = _up_to_a_flag(rest)
    return count if _name(flag).endswith("tags") else min(count, 1)
