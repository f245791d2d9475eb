"""Batches made ahead of the step that needs them."""

from collections.abc import Callable, Generator

from lmx.data.dataset import Batch

THREADS = 2  # NumPy holds the interpreter for most of a batch: more do not help
BUFFER_SIZE = 4  # batches


def prefetch(
    batch_at: Callable[[int], Batch], start: int, stop: int
) -> Generator[Batch, None, None]:
    """`batch_at` of each step of [start, stop), in order, made in other threads.

    What `batch_at` raises is raised here, at its step. The threads end with the
    iterator, be it read to its end, closed, or left by an exception.
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
