"""Every module whose classes a page can name without importing anything."""

import lmx.data.pieces
import lmx.data.stdlib
import lmx.data.synthetic
import lmx.evals.perplexity
import lmx.infer.hook
import lmx.layers.conv
import lmx.layers.moe
import lmx.train.experiment
import lmx.train.optim
import lmx.train.restore
import lmx.train.schedule

__all__ = ["lmx"]
