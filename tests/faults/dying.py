"""`lmx train` that dies inside a save: `dying.py MOMENT STEP WORD ...`.

`array`: once the first bytes of an array are on disk; `before` and `after` the commit;
`removal`: when the new state is known to be whole and an older one would go.
"""

import os
import signal
import sys
import time
from typing import Any

from lmx.cli.main import main
from lmx.train.checkpoint.directory import CheckpointDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader
from lmx.train.checkpoint.writer import DeferredMetadata

MOMENTS = {  # what is called then, and the step that its arguments are about
    "array": (CheckpointManager, "_facts", lambda self, step, *_: step),
    "before": (
        DeferredMetadata,
        "finalize",
        lambda self, folder: int(folder.parent.name[:8]),
    ),
    "after": (CheckpointReader, "sums", lambda self, parts: int(self.path.name)),
    "removal": (CheckpointDir, "thin", lambda self, keep, whole: max(whole)),
}


def some_of_an_array(checkpoints: CheckpointManager) -> bool:
    """Whether any bytes of a tensor are on disk that is not committed yet."""
    found = checkpoints.folder.glob("*tmp*/state*/**/d/*")
    return any(file.stat().st_size for file in found)


def dying(moment: str, doomed: int) -> None:
    """Has this process die at that moment in the save of that step."""
    owner, name, step_of = MOMENTS[moment]
    plain = getattr(owner, name)

    def instead(*given: Any) -> Any:
        if step_of(*given) != doomed:
            return plain(*given)
        while moment == "array" and not some_of_an_array(given[0]):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, instead)


if __name__ == "__main__":
    dying(sys.argv[1], int(sys.argv[2]))
    main(sys.argv[3:])
