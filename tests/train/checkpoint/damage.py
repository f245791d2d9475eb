"""Damages a tensor in a checkpoint, as disks do."""

import os
from pathlib import Path

from lmx.train.checkpoint.reader import CheckpointReader


def flip(path: Path, tensor: str) -> None:
    """Flips a bit in the last half of a tensor of the checkpoint in that folder."""
    part = CheckpointReader(path).tensors[tensor].parts[0]
    with (path / part.file).open("r+b") as file:
        file.seek(part.offset + part.size * 3 // 4)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def truncate(path: Path, tensor: str) -> None:
    """Truncates the file of a tensor in the middle of the tensor."""
    part = CheckpointReader(path).tensors[tensor].parts[0]
    os.truncate(path / part.file, part.offset + part.size * 3 // 4)
