"""uvicorn, with bounds on connections, and an end that leaves no request without an answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gluon_resnetv2.deploy import protocol
from gluon_resnetv2.deploy.service import DRAIN_SECONDS, LINGER_SECONDS, Service

HEAD_SECONDS = 10  # for the head of a request
HEAD_BYTES = 2**16  # of it
KEEP_ALIVE_SECONDS = 60  # between the requests of a connection
READ_SECONDS = 30  # for a client to read what has been sent
CONNECTIONS = 1000  # at a time; 1024 files are what many systems let a process open
NOTICE_SECONDS = 0.5  # from SIGTERM to closing connections, for requests that are on their way


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on what no application sees in time.

    These are the head of a request, the number of connections, and answers that nobody reads.
    Clients may ask for another protocol, and may have nothing more to say while they wait for the
    answer. The methods that this replaces are not documented; uvicorn 0.30, 0.39 and 0.54 have
    them.
    """

    _head_timer = None  # while a head is not there yet
    _read_timer = None  # while an answer is not read
    _refused = False  # and what else arrives is not looked at

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._refuse(503, "Service Unavailable", "there are too many connections")
        else:
            self._await_head()

    def on_message_begin(self):
        super().on_message_begin()
        if not self._head_timer:
            self._await_head()

    def on_headers_complete(self):
        if not self.parser.should_upgrade():  # or `_without_upgrade` has it parsed again
            self._forget_head()
            super().on_headers_complete()

    def on_message_complete(self):
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def eof_received(self):
        """Whether the connection stays open, for the answer to a client that only reads on."""
        last = self.cycle
        if not last or last.response_complete or last.more_body:
            return False
        last.keep_alive = False
        return True

    def connection_lost(self, exc):
        self._forget_head()
        self._forget_answer()
        super().connection_lost(exc)

    def pause_writing(self):
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self):
        self._forget_answer()
        super().resume_writing()

    def _forget_answer(self):
        if self._read_timer:
            self._read_timer.cancel()

    def _await_head(self):
        self._head = 0  # bytes
        self._head_timer = self.loop.call_later(
            HEAD_SECONDS, self._refuse, 408, "Request Timeout", "the request's head did not arrive"
        )

    def _forget_head(self):
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def data_received(self, data):
        if self._refused:
            return
        self._unset_keepalive_if_required()
        awaited = self._head_timer
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            self._refuse(400, "Bad Request", "this is no valid HTTP/1.1 request")
        if awaited and awaited is self._head_timer:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._refuse(431, "Request Header Fields Too Large", "the headers are too large")

    def _parse(self, data):
        while True:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                (read,) = upgrade.args
                data = data[read:]
            if self.parser.get_method() == b"CONNECT":
                return self._refuse(400, "Bad Request", "this server is no proxy")
            self._without_upgrade()

    def _without_upgrade(self):
        """Has a head parsed again as if it did not ask for another protocol.

        A server may ignore that (RFC 9110, 7.8). httptools does not, and takes the request's body
        for the other protocol's.
        """
        target = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        lines = [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"\r\n".join([b"%s %s HTTP/%s" % target, *lines, b"", b""]))

    def _refuse(self, status, phrase, message):
        self._forget_head()
        self._refused = True
        last = self.cycle  # of the requests whose heads were right
        if last and not last.response_complete:
            its_body_is_wrong = last.more_body and not last.response_started and not self.pipeline
            if not its_body_is_wrong:
                last.keep_alive = False  # its answer comes first, and ends the connection
                return
        body = protocol.error(message)
        retry = "retry-after: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n{retry}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Uvicorn(uvicorn.Server):
    """Drains on SIGTERM and SIGINT, and then returns; uvicorn's own raises the signal again.

    Args:
        announce: called once requests are answered, and signals obeyed.
    """

    def __init__(
        self,
        service: Service,
        access_log: bool = False,
        announce: Callable[[], None] = lambda: None,
    ):
        super().__init__(
            uvicorn.Config(
                service,
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
        self.announce, self._infer = announce, service.infer

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.announce()

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
