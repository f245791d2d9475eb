"""Damages a tensor in a checkpoint, as disks do."""

import os
from pathlib import Path

from lmx.train.checkpoint.reader import STATE, CheckpointReader


def flip(path: Path, tensor: str) -> None:
    """Flips a bit in the last half of a tensor of the checkpoint in that folder."""
    place = CheckpointReader(path).chunk_locations[tensor][0]
    with (path / STATE / place.file).open("r+b") as file:
        file.seek(place.offset + place.size * 3 // 4)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def truncate(path: Path, tensor: str) -> None:
    """Truncates the file of a tensor in the middle of the tensor."""
    place = CheckpointReader(path).chunk_locations[tensor][0]
    os.truncate(path / STATE / place.file, place.offset + place.size * 3 // 4)
