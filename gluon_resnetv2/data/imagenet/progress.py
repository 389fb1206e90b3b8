"""Doing something with very many images, and telling how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_APART = 30  # of the lines that a log gets
AT_ONCE = 4096  # images under way, where all at once would fill the memory
TOGETHER = 8  # that a thread is handed: for one small image, handing over takes as long as decoding


def in_turn(
    pool: ThreadPoolExecutor, function: Callable[[int], T], rows: Sequence[int]
) -> Iterator[T]:
    """What `function` gives for each row, in order."""

    def some(first: int) -> list[T]:
        return [function(row) for row in rows[first : first + TOGETHER]]

    starts = range(0, len(rows), TOGETHER)
    for first in range(0, len(starts), AT_ONCE // TOGETHER):
        for found in pool.map(some, starts[first : first + AT_ONCE // TOGETHER]):
            yield from found


def told(items: Iterable[T], what: str, count: int) -> Iterator[T]:
    """The `count` items, with a bar on a terminal, or a line now and then in a log."""
    if sys.stderr.isatty():
        yield from tqdm(items, what, total=count, unit="image")
        return
    spoke = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - spoke >= SECONDS_APART or done == count:
            spoke = time.monotonic()
            print(f"{what}: {done}/{count} images", file=sys.stderr, flush=True)
