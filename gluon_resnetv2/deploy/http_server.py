"""uvicorn, with bounds on the heads of requests, and an end that leaves none without an answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gluon_resnetv2.deploy import protocol
from gluon_resnetv2.deploy.service import DRAIN_SECONDS, LINGER_SECONDS, Service

HEAD_SECONDS = 10  # for the head of a request
HEAD_BYTES = 2**16  # of it
KEEP_ALIVE_SECONDS = 60  # between the requests of a connection
NOTICE_SECONDS = 0.5  # from SIGTERM to closing connections, for requests that are on their way


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on the head of a request, which no application sees in time."""

    _patience = None  # the timer of a head that is not there yet

    def connection_made(self, transport):
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self):
        super().on_message_begin()
        if not self._patience:
            self._await_head()

    def on_headers_complete(self):
        self._forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc):
        self._forget_head()
        super().connection_lost(exc)

    def _await_head(self):
        self._head = 0  # bytes
        self._patience = self.loop.call_later(
            HEAD_SECONDS, self._refuse, 408, "Request Timeout", "the request's head did not arrive"
        )

    def _forget_head(self):
        if self._patience:
            self._patience.cancel()
            self._patience = None

    def data_received(self, data):
        awaited = self._patience
        super().data_received(data)
        if awaited and awaited is self._patience:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._refuse(431, "Request Header Fields Too Large", "the headers are too large")

    def send_400_response(self, msg):
        self._refuse(400, "Bad Request", "this is no valid HTTP/1.1 request")

    def _refuse(self, status, phrase, message):
        self._forget_head()
        body = protocol.error(message)
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Uvicorn(uvicorn.Server):
    """Drains on SIGTERM and SIGINT, and then returns; uvicorn's own raises the signal again."""

    def __init__(self, service: Service, access_log: bool = False):
        super().__init__(
            uvicorn.Config(
                service.app,
                http=Connection,
                log_config=None,
                access_log=access_log,
                ws="none",
                lifespan="off",
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                server_header=False,
                # A client that does not read its answer is not waited for.
                timeout_graceful_shutdown=DRAIN_SECONDS + 2 * LINGER_SECONDS,
            )
        )
        self._infer = service.infer

    @contextlib.contextmanager
    def capture_signals(self):
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Answers what was accepted, and ends."""
        if self._infer.draining:  # who asks twice is in a hurry
            self.force_exit = self.should_exit = True
            return
        self._infer.drain()
        asyncio.get_running_loop().call_later(NOTICE_SECONDS, setattr, self, "should_exit", True)
