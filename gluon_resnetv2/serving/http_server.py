"""uvicorn, with bounds on connections, and an end that leaves no request without an answer."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import resource
from collections.abc import Callable

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gluon_resnetv2.serving import protocol
from gluon_resnetv2.serving.service import DRAIN_SECONDS, LINGER_SECONDS, Service

HEAD_SECONDS = 10  # for the head of a request
HEAD_BYTES = 2**16  # of it; as many between two pieces of a body, or behind its last
KEEP_ALIVE_SECONDS = 60  # between the requests of a connection
READ_SECONDS = 30  # for a client to read what has been sent
CONNECTIONS = 800  # at a time; 1024 files are what many systems let a process open
LEAVING = 100  # beside them, which have been refused and may still read why
OTHERS = 24  # files that are no connections: models are not open
FILES = 4096  # to open, where the system lets us: connections come in bursts
PIECE = 2**10  # bytes outside of a body that are parsed at once: they may be 50 requests
NOTHING: collections.deque[tuple[bytes, bytes]] = collections.deque(maxlen=0)
NOTICE_SECONDS = 0.5  # from SIGTERM to closing connections, for requests that are on their way


class Room:
    """The connections of a server that may have to go, each kind in order."""

    def __init__(self):
        self.most, self.most_leaving = CONNECTIONS, LEAVING
        self.waiting: dict[Connection, None] = {}  # for their clients to say something
        self.leaving: dict[Connection, None] = {}  # have been refused

    def fit(self, files: int) -> None:
        """Leaves some of so many files that the process may open to others."""
        room = max(2, files - OTHERS)
        self.most_leaving = min(self.most_leaving, -(-room // 9))
        self.most = min(self.most, room - self.most_leaving)


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on what no application sees in time.

    These are what is no body of a request, in bytes, and whatever waits for a client, in seconds:
    no connection is ever without a timer unless the application works on its answer. Where there
    are too many, the one that has waited longest for its client goes. Clients may ask for another
    protocol, and may have nothing more to say while they wait for the answer.

    Most methods that it replaces are asyncio's and httptools' callbacks. Of uvicorn's own,
    `on_response_complete` and `timeout_keep_alive_handler` are not documented; uvicorn 0.30, 0.39
    and 0.54 have them. Each says what plain uvicorn does instead, and a test fails without it.
    """

    _head_timer = None  # while a head is not there yet
    _end_timer = None  # while an answer is not read
    _refused = False  # and what else arrives is not looked at
    _said_all = False  # and only reads on
    _unparsed = b""  # what is behind a request that waits for its turn
    _framing = 0  # bytes since anything came of them
    _body_left = 0  # bytes, where the head says how many
    _running = None  # the request that is being answered; `cycle` is the last that came

    def __init__(self, room: Room, **options):
        super().__init__(**options)
        self._room = room

    def connection_made(self, transport):  # else a head is waited for, and files are used up
        super().connection_made(transport)
        self._resume_reading = self.flow.resume_reading
        self.flow.resume_reading = self._read_on  # type: ignore[method-assign]  # of this one
        self._await_head()
        if len(self.connections) - len(self._room.leaving) > self._room.most:
            longest = next(iter(self._room.waiting), self)
            longest._refuse(503, "Service Unavailable", "there are too many connections")
        if not self._refused:
            self._await_client()

    def connection_lost(self, exc):  # else who has left keeps its place, and its requests run
        self._forget_head()
        self._forget_end()
        self._room.waiting.pop(self, None)
        self._room.leaving.pop(self, None)
        self._disconnect()
        super().connection_lost(exc)
        del self._resume_reading, self.flow.resume_reading  # which refer to each other

    def on_message_begin(self):  # else the head of a next request may take for ever
        super().on_message_begin()
        self._framing = 0
        self._unset_keepalive_if_required()
        if not self._head_timer:
            self._await_head()
        if not self.cycle or self.cycle.response_complete:
            self._await_client()

    def on_headers_complete(self):  # else what asks for another protocol loses its body
        if self.parser.should_upgrade():  # `_without_upgrade` has it parsed again
            return
        self._framing = self._body_left = 0
        self._forget_head()
        self._unset_keepalive_if_required()
        for name, value in self.headers:
            if name == b"content-length":
                self._body_left = int(value)
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle
        self.headers = NOTHING  # type: ignore[assignment]  # for trailers to go to

    def on_body(self, body):  # else bodies are refused as heads that are too large
        self._framing = 0
        self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self):  # else a request that is worked on may have to go
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if not self.cycle.response_complete:
            self._room.waiting.pop(self, None)

    def on_response_complete(self):  # else what waits behind a request is not parsed
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_in(READ_SECONDS)
            return
        if self.cycle.response_complete:
            self._await_client()
        if self._unparsed:
            self._parse_on()
            self._read_on()

    def eof_received(self):
        """Whether the connection stays open, for the answer to a client that only reads on.

        uvicorn's closes it, and the answer is lost.
        """
        self._said_all = True
        if self._unparsed:
            return True
        last = self._last_of_those_that_wait()
        if not last or last.response_complete or last.more_body:
            self._disconnect()
            return False
        last.keep_alive = False
        return True

    def _last_of_those_that_wait(self):
        """The last request; none that is not whole and has others before it."""
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()
            # There is one that is answered, or none would wait.
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
        return self.cycle

    def _abort(self):
        self._disconnect()
        self.transport.abort()

    def _disconnect(self):
        """Has nobody write any more; uvicorn tells only the last request."""
        for cycle in (self._running, self.cycle):
            if cycle and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def timeout_keep_alive_handler(self):
        self._abort()  # uvicorn's waits for the client to read what is in our buffer

    def pause_writing(self):  # else an answer waits for ever for a client that does not read it
        super().pause_writing()
        self._end_in(READ_SECONDS)

    def resume_writing(self):  # else one that has read it is cut off as well
        if self not in self._room.leaving:
            self._forget_end()
        super().resume_writing()

    def _end_in(self, seconds):
        self._forget_end()
        self._end_timer = self.loop.call_later(seconds, self._abort)

    def _forget_end(self):
        if self._end_timer:
            self._end_timer.cancel()

    def _await_client(self):
        self._room.waiting.pop(self, None)  # others have waited longer
        self._room.waiting[self] = None

    def _await_head(self):
        self._head_timer = self.loop.call_later(
            HEAD_SECONDS, self._refuse, 408, "Request Timeout", "the request's head did not arrive"
        )

    def _forget_head(self):
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _read_on(self):
        if not self._unparsed:
            self._resume_reading()

    def data_received(self, data):  # else any number of requests is parsed while one computes
        if not self._refused:
            self._unparsed += data
            self._parse_on()

    def _parse_on(self):
        """Parses what has arrived, up to where some request has to wait for another's answer."""
        data, self._unparsed = memoryview(self._unparsed), b""
        try:
            while data and not self._refused:
                if self.pipeline:
                    self.flow.pause_reading()
                    self._unparsed = bytes(data)
                    return
                piece = data[: max(PIECE, self._body_left)]
                data = data[len(piece) :]
                self._framing += len(piece)
                self._parse(piece)
                if self._framing > HEAD_BYTES:
                    self._refuse(
                        *(431, "Request Header Fields Too Large"),
                        f"the headers are too large: {HEAD_BYTES} bytes are the most",
                    )
        except httptools.HttpParserError:
            self._refuse(400, "Bad Request", "this is no valid HTTP/1.1 request")
        if self._said_all and not self.eof_received():
            self.transport.close()

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
        if self.transport.is_closing():
            return
        last = self._last_of_those_that_wait()
        owed = not last or self._head_timer is not None  # an answer to what is refused
        self._forget_head()
        self._refused = True
        if last and not last.response_complete:
            its_body_is_wrong = last.more_body and not last.response_started and not self.pipeline
            if not its_body_is_wrong:
                last.keep_alive = False  # its answer comes first, and ends the connection
                return
            owed = True
            self._disconnect()
        if owed:
            body = protocol.error(message)
            retry = "retry-after: 1\r\n" if status == 503 else ""
            head = (
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n{retry}"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self._leave()

    def _leave(self):
        """Says no more, and closes when the client does so, too: closed at once, it would lose us.

        A connection that is closed before all is read is reset, and its answer with it.
        """
        leaving = self._room.leaving
        if len(leaving) >= self._room.most_leaving:
            first = next(iter(leaving))
            del leaving[first]
            first._abort()
        self._room.waiting.pop(self, None)
        leaving[self] = None
        self._unset_keepalive_if_required()
        self.transport.write_eof()
        self._end_in(LINGER_SECONDS)


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
        self._room = Room()
        super().__init__(
            uvicorn.Config(
                service,
                http=functools.partial(Connection, self._room),  # type: ignore[arg-type]  # called
                log_config=None,
                access_log=access_log,
                ws="none",
                lifespan="off",
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                server_header=False,
                # A client that does not read its answer is not waited for.
                timeout_graceful_shutdown=DRAIN_SECONDS + LINGER_SECONDS,
            )
        )
        self.announce, self._infer = announce, service.infer

    async def startup(self, sockets=None):  # its end is told to uvicorn's log alone
        self._room.fit(_let_open(FILES))
        await super().startup(sockets)
        self.announce()

    def handle_exit(self, sig, frame):
        """On SIGTERM and SIGINT. uvicorn's own refuses at once what is on its way, and raises the
        signal again at its end, which would be the process's exit status.
        """
        asyncio.get_running_loop().call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Answers what was accepted, and ends."""
        if self._infer.draining:  # who asks twice is in a hurry
            self.force_exit = self.should_exit = True
            return
        self._infer.drain()
        asyncio.get_running_loop().call_later(NOTICE_SECONDS, setattr, self, "should_exit", True)


def _let_open(files):
    """Has the system let this process open so many files, or as many as it may have: how many."""
    some, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if most == resource.RLIM_INFINITY else min(files, most)
    if some != resource.RLIM_INFINITY and some < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return wanted
        return some
    return wanted
