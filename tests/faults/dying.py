"""`lmx train` that dies inside a save: `dying.py MOMENT STEP WORD ...`.

`array`: once the arrays are on disk, and not the metadata; `before` and `after` the
commit; `removal`: before an older checkpoint is removed.
"""

import os
import signal
import sys
from typing import Any

from lmx.cli.main import main
from lmx.train.checkpoint.directory import CheckpointDir
from lmx.train.checkpoint.reader import CheckpointReader

MOMENTS = {  # the method that is called then, and the step of its arguments
    "array": (CheckpointReader, "verify", lambda self: int(self.path.name[:8])),
    "before": (CheckpointDir, "commit", lambda self, step: step),
    "after": (CheckpointDir, "prune", lambda self, keep, verified: max(verified)),
    "removal": (CheckpointDir, "prune", lambda self, keep, verified: max(verified)),
}


def dying(moment: str, doomed: int) -> None:
    """Has this process die at that moment in the save of that step."""
    owner, name, step_of = MOMENTS[moment]
    plain = getattr(owner, name)

    def instead(*given: Any) -> Any:
        if step_of(*given) != doomed:
            return plain(*given)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, instead)


if __name__ == "__main__":
    dying(sys.argv[1], int(sys.argv[2]))
    main(sys.argv[3:])
