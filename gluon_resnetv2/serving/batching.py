"""Dynamic batching: requests that wait while one batch computes make up the next."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FILLING = 0.5  # of the time that the last batch took, at most: to wait for requests to join


class Full(Exception):
    """The queue has no room for these images now."""


class Closed(Exception):
    """No more images are taken."""


class Batcher:
    """A thread that computes what others hand in, many requests at a time.

    When a batch is computed, under way are its images and those that wait. Their clients ask again
    once they are answered, so the next batch waits a little for as many, up to `max_batch`. Whoever
    hands images in has checked them: a batch is concatenated unseen.

    Args:
        run: what computes, (n, C, H, W) float32 to (n, classes).
        max_batch: most images in one call, unless a single request has more.
        queue: most images that wait.
        batching: whether requests share calls.
        observe: called in the thread with the number of images of each call.

    Attributes:
        waiting: images in the queue.
        reserved: images that room is kept for.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        *,
        max_batch: int = 64,
        queue: int = 1024,
        batching: bool = True,
        observe: Callable[[int], None] = lambda images: None,
    ):
        self.waiting = self.reserved = 0
        self._run, self._observe = run, observe
        self._max_batch, self._queue, self._batching = max_batch, queue, batching
        self._requests: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._wanted = 1  # images that the thread waits for
        self._under_way = 0  # images, when the last batch was computed
        self._seconds = 0.0  # that it took
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self._thread.start()

    def submit_async(self, images: np.ndarray) -> asyncio.Future:
        """The outputs that `images`, (n, C, H, W) float32, will have; for the running event loop.

        Raises:
            Full: the queue has no room for them.
            Closed: `close` was called.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._add(_Waiting(images, future, loop))
        return future

    def reserve(self, images: int) -> None:
        """Keeps room for images that are not ready to be handed in, until they are released.

        Raises:
            Full, Closed: as `submit_async`.
        """
        with self._changed:
            self._check_room(images)
            self.reserved += images

    def release(self, images: int) -> None:
        """Gives back what was reserved."""
        with self._changed:
            self.reserved -= images

    @property
    def alive(self) -> bool:
        """Whether anything would still be computed."""
        return self._thread.is_alive()

    def close(self, patience: float | None = None) -> None:
        """Takes no more, and returns when all that was taken is answered.

        Args:
            patience: seconds after which what still waits is answered with `Closed`. What computes
                is waited for.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(patience)
        with self._changed:
            late = list(self._requests)
            self._requests.clear()
            self.waiting = 0
        _settle([(request, None, Closed("no time was left to compute this")) for request in late])
        self._thread.join()

    def _check_room(self, images):
        if self._closed:
            raise Closed("no more images are taken")
        taken = self.waiting + self.reserved
        # An empty queue takes any request, so that none is refused for ever.
        if taken and taken + images > self._queue:
            raise Full(f"{taken} images wait already")

    def _add(self, request):
        with self._changed:
            self._check_room(len(request.images))
            self._requests.append(request)
            self.waiting += len(request.images)
            if self.waiting >= self._wanted:
                self._changed.notify()

    def _serve(self):
        while self._serve_batch():
            pass

    def _serve_batch(self):
        """False where there will be no more. A function of its own, to hold on to no images."""
        batch = self._take()
        if batch is None:
            return False
        batch = [request for request in batch if not request.future.cancelled()]
        if not batch:
            return True
        outcomes: list[tuple[_Waiting, np.ndarray | None, Exception | None]]
        try:
            outcomes = [(request, rows, None) for request, rows in zip(batch, self._rows(batch))]
        except Exception as error:  # the requests' to tell; the thread goes on
            outcomes = [(request, None, error) for request in batch]
        _settle(outcomes)
        return True

    def _rows(self, batch):
        """The outputs of each request."""
        arrays = [request.images for request in batch]
        images = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        self._observe(len(images))
        began = time.monotonic()
        rows = self._run(images)
        self._seconds = time.monotonic() - began
        self._under_way = len(images) + self.waiting
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} rows were computed for {len(images)} images")
        return np.split(rows, np.cumsum([len(array) for array in arrays[:-1]]))

    def _take(self) -> list[_Waiting] | None:
        """The requests of the next batch, oldest first; None where there will be no more."""
        with self._changed:
            self._wait_for(1)
            most = 1
            if self._batching and self.waiting:
                self._wait_for(min(self._under_way, self._max_batch), FILLING * self._seconds)
                most = _without_waste(min(self.waiting, self._max_batch))
            batch: list[_Waiting] = []
            images = 0
            while self._requests:
                more = images + len(self._requests[0].images)
                if batch and more > most:
                    break
                batch.append(self._requests.popleft())
                images = more
            self.waiting -= images
            return batch or None

    def _wait_for(self, images, patience=None):
        self._wanted = images
        self._changed.wait_for(lambda: self.waiting >= images or self._closed, patience)
        self._wanted = 1


@dataclass(frozen=True)
class _Waiting:
    images: np.ndarray
    future: asyncio.Future
    loop: asyncio.AbstractEventLoop  # the future's


def _without_waste(images):
    """How many of so many images to compute at once.

    All are padded to the next power of two, which networks are compiled for. Where that would be
    more than a quarter of the batch, some wait for the next one.
    """
    padded = 1 << (images - 1).bit_length()
    return images if 4 * images >= 3 * padded else padded // 2


def _settle(outcomes):
    """Hands each request its rows or error; wakes an event loop once for all of its."""
    by_loop = collections.defaultdict(list)
    for request, rows, error in outcomes:
        by_loop[request.loop].append((request.future, rows, error))
    for loop, its in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(_settle_futures, its)


def _settle_futures(outcomes):
    for future, rows, error in outcomes:
        if future.done():  # cancelled meanwhile
            continue
        if error is None:
            future.set_result(rows)
        else:
            future.set_exception(error)
