"""Where a safetensors file that is cut short ends: https://huggingface.co/docs/safetensors"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it


def refuse_cut(path: Path) -> None:
    """Raises ValueError for a file with less in it than its header says, with the first tensor that is not whole."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _LONGEST_HEADER):
                return
            header = json.loads(file.read(length).decode("utf-8"))
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"}
        short = [name for name in sorted(ends, key=ends.__getitem__) if ends[name] > size]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return  # not to be read, or no header: safetensors says so
    if short:
        raise ValueError(f"{path}: ends within {short[0]}; is the file complete? Copy or download it again")
