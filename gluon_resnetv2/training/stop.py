"""Ending a run from outside without losing a step."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class StopSignal:
    """Within the block, SIGTERM and SIGINT only set `received`; the next one acts as usual.

    The loop looks at it after each step. Outside the main thread, where signals can't be handled,
    it never is set.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received = False
        self._before = {}

    def __enter__(self) -> StopSignal:
        try:
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def _receive(self, number, frame):
        self.received = True
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt as SIGINT does.

    For what Python waits for: a signal's handler does not run while MXNet does.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
