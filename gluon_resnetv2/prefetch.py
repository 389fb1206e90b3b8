"""Items that are made while others are used."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(iterable: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items of `iterable`, of which up to `depth` are made ahead in a background thread.

    An exception raised by `iterable` is raised here, in its turn. The thread ends with the last
    item or, when the consumer stops early, after the item that it is working on.

    Args:
        depth: at least 1.
    """
    iterator = iter(iterable)
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def take() -> list[T]:
        """The next item; none at the end."""
        return list(itertools.islice(iterator, 1))

    try:
        ahead = deque(pool.submit(take) for _ in range(depth))
        while items := ahead.popleft().result():
            ahead.append(pool.submit(take))
            yield from items
    finally:
        # Not waiting: the garbage collector may run this in the pool's own thread.
        pool.shutdown(wait=False, cancel_futures=True)
