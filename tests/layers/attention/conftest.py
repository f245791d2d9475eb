"""A slow reference implementation of attention."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def slow_attention():
    """Attention by NumPy, one query of one head at a time."""

    def slow_attention(q, k, v, mask, *, scale=None, logit_cap=None, sink=None):
        q, k, v, mask = map(np.asarray, (q, k, v, mask))
        y, G = np.zeros((*q.shape[:3], v.shape[-1])), q.shape[2] // k.shape[2]
        for b, t, n in np.ndindex(q.shape[:3]):
            seen = np.flatnonzero(mask[b, t])
            logit = k[b, seen, n // G] @ q[b, t, n]
            logit = logit / np.sqrt(q.shape[-1]) if scale is None else logit * scale
            logit = logit_cap * np.tanh(logit / logit_cap) if logit_cap else logit
            share = np.exp(logit)
            rest = 0.0 if sink is None else np.exp(sink[n])
            y[b, t, n] = share / (share.sum() + rest) @ v[b, seen, n // G]
        return y

    return slow_attention
