"""What a run logs, as TensorBoard reads it."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from pathlib import Path

from tqdm import tqdm


class Events:
    """A file of TensorBoard events in a run's folder.

    It goes on after step `start_step`: what earlier files of the folder hold of later steps,
    TensorBoard then forgets. Each `add` is on disk when it returns. What can't be written never
    ends a training: a warning says so once, and what the file's buffer holds is tried again.
    """

    # TensorBoard's own writer leaves writing to a thread, which a full disk ends with a traceback.

    def __init__(self, folder: str | Path, start_step: int = 0):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._warned = Event, False
        now = time.time()  # TensorBoard reads files in the order of their names
        self._path = Path(folder) / f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}"
        self._file = None
        with self._going_on():
            self._file = open(self._path, "xb")  # noqa: SIM115  # open for as long as the run
            self._writer = RecordWriter(self._file)
            started = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, file_version="brain.Event:2"))
            self._write(Event(wall_time=now, step=start_step + 1, session_log=started))

    def add(self, step: int, *, epoch: int | None = None, **scalars: float) -> None:
        """Adds a record of metrics.jsonl: as epoch/NAME where it is of an epoch, or step/NAME."""
        event = self._event(wall_time=time.time(), step=step)
        for name, value in scalars.items():
            tag = f"{'step' if epoch is None else 'epoch'}/{name}"
            event.summary.value.add(tag=tag, simple_value=value)
        with self._going_on():
            self._write(event)

    def close(self) -> None:
        """Closes the file; may be called again."""
        with self._going_on():
            if self._file:
                self._file.close()

    def _write(self, event) -> None:
        if self._file:
            self._writer.write(event.SerializeToString())
            self._file.flush()

    @contextlib.contextmanager
    def _going_on(self):
        try:
            yield
        except OSError as error:
            if not self._warned:
                why = f"{error.strerror or error}; TensorBoard may lack part of this run"
                tqdm.write(f"warning: {self._path}: {why}", file=sys.stderr)
            self._warned = True
