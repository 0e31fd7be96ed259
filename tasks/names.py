"""The tasks by name, with the file each is computed on and its protocols. Imports nothing: the flags need it."""

from __future__ import annotations

# Task -> its file under --data-dir, as data/evaluation_download.sh leaves it; TEXT is given one.
FILES = {
    "WIKITEXT103": "wikitext-103/wiki.test.tokens",
    "LAMBADA": "lambada_test.jsonl",
    "PTB": "ptb.test.txt",
    "ENWIK8": "enwik8",
    "TEXT8": "text8",
    "TEXT": None,
}

# Task -> its protocols, the quick ones first: a run that is cut short has them.
PROTOCOLS = {
    "WIKITEXT103": ("token", "token-joined", "word", "adjusted"),
    "LAMBADA": ("last-bpe", "last-word"),
    "PTB": ("token", "adjusted"),
    "ENWIK8": ("bits-per-byte",),
    "TEXT8": ("bits-per-character",),
    "TEXT": ("token", "adjusted"),
}

# Task -> further protocols, computed only where --protocols names them: those that other systems were published with.
_OF_SYSTEMS = ("token-tfchat", "token-chunks", "token-chunks-eot", "token-lm-finetuning", "token-gpt-star")
FURTHER = {
    "WIKITEXT103": _OF_SYSTEMS,
    "ENWIK8": ("bits-per-byte-disjoint",),
    "TEXT8": ("bits-per-character-disjoint",),
    "TEXT": _OF_SYSTEMS,
}

# Protocols of overlapping windows.
SLIDING = ("adjusted", "bits-per-byte", "bits-per-character")

# Protocols whose figure depends on the windows in a batch -> how many there are unless --protocol-batch says so.
BATCHES = {"token-tfchat": 2, "token-lm-finetuning": 8}
