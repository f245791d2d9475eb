"""Prefetching of batches in background threads."""

from collections.abc import Callable, Generator

from lmx.core.batch import Batch

THREADS = 2  # NumPy holds the GIL for most of a batch: more threads do not help
BUFFER_SIZE = 4  # batches


def prefetch(
    batch_at: Callable[[int], Batch], start: int, stop: int
) -> Generator[Batch, None, None]:
    """Yields `batch_at` of each step in [start, stop), computed in other threads.

    An exception in `batch_at` is raised at its step. The threads stop when the iterator
    is exhausted, closed or left by an exception.
    """
    import grain

    if start >= stop:
        return
    steps = grain.MapDataset.range(start, stop).map(batch_at)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BUFFER_SIZE)
    batches = iter(steps.to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
