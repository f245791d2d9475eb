"""What disks do to states."""

import os
from pathlib import Path

from lmx.train.checkpoint.reader import STATE, CheckpointReader


def flip(path: Path, tensor: str) -> None:
    """Turns one bit in the last half of a tensor of the state in that folder."""
    place = CheckpointReader(path).chunk_locations[tensor][0]
    with (path / STATE / place.file).open("r+b") as file:
        file.seek(place.offset + place.size * 3 // 4)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def truncate(path: Path, tensor: str) -> None:
    """Cuts the file of a tensor in its middle."""
    place = CheckpointReader(path).chunk_locations[tensor][0]
    os.truncate(path / STATE / place.file, place.offset + place.size * 3 // 4)
