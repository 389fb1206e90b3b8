"""Downloads from a server on this machine that breaks off, ignores ranges, or sends rubbish."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import random
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gluon_resnetv2.data import download as module
from gluon_resnetv2.data.download import download
from gluon_resnetv2.errors import UserError

PAYLOAD = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(PAYLOAD).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves PAYLOAD as /file, remembers the ranges asked for, and misbehaves as told."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.payload = PAYLOAD
        self.knows_ranges = True
        self.claims_ranges = False  # answers 206 and sends all of it
        self.tells_length = True
        self.cuts = []  # after how many bytes the next answers break off
        self.stall = threading.Event()  # what a broken-off answer waits for before it closes
        self.stall.set()
        self.asked = []
        self.drips = False  # sends a byte now and then, for ever


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", server.url)
            self.end_headers()
            return
        if self.path != "/file":
            self.send_error(404)
            return
        start = 0
        if asked and server.knows_ranges:
            start = int(asked[len("bytes=") : -1])
            if start >= len(server.payload):
                self.send_error(416)
                return
        body = server.payload[start:]
        partial = asked and (server.knows_ranges or server.claims_ranges)
        self.send_response(206 if partial else 200)
        if partial:
            end, size = start + len(body) - 1, len(server.payload)
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.drips:
            self.drip()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        server.stall.wait(10)

    def drip(self):
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"?")
                time.sleep(0.05)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.stall.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file"


def files(path):
    return sorted(file.name for file in path.parent.glob("*"))


def one_line(raised) -> str:
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_whole_file(server, path, capsys):
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert files(path) == ["file"]
    assert capsys.readouterr().err == f"downloading {server.url} to {path}\n"


def test_a_redirection_is_followed_with_its_range(server, path):
    server.cuts = [1000]
    download(server.url.replace("/file", "/moved"), path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert server.asked == [None, None, "bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize("tells_length", [True, False])
def test_what_breaks_off_is_resumed_where_it_broke(server, path, tells_length):
    server.cuts, server.tells_length = [100_000, 50_000, 1], tells_length
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert server.asked == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]
    assert files(path) == ["file"]


def test_a_later_call_resumes_what_an_earlier_one_left(server, path):
    path.parent.mkdir()
    path.with_name("file.part").write_bytes(PAYLOAD[:123_456])
    download(server.url, path, MD5)
    assert server.asked == ["bytes=123456-"]
    assert path.read_bytes() == PAYLOAD


def test_a_silent_server_is_given_up_and_what_came_is_kept(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    server.cuts = [module.BLOCK + 10, 0]
    server.stall.clear()
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    assert "timed out" in one_line(raised)
    assert files(path) == ["file.part"]
    assert PAYLOAD.startswith(path.with_name("file.part").read_bytes())
    server.stall.set()
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert server.asked[-1] == f"bytes={module.BLOCK + 10}-"


@pytest.mark.parametrize("claims_ranges", [False, True])
@pytest.mark.parametrize("before", [PAYLOAD[:123_456], b"rubbish"])
def test_a_server_that_ignores_ranges_sends_all_of_it(server, path, before, claims_ranges):
    server.knows_ranges, server.claims_ranges = False, claims_ranges
    path.parent.mkdir()
    path.with_name("file.part").write_bytes(before)
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert files(path) == ["file"]


def test_a_complete_temporary_file_needs_no_network(path):
    path.parent.mkdir()
    path.with_name("file.part").write_bytes(PAYLOAD)
    download("http://127.0.0.1:1/file", path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert files(path) == ["file"]


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("rubbish", [PAYLOAD[:-1], PAYLOAD[:-1] + b"?", b"", PAYLOAD + b"?"])
def test_a_wrong_file_is_not_kept(server, path, rubbish, knows_ranges):
    server.payload, server.knows_ranges = rubbish, knows_ranges
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    assert hashlib.md5(rubbish).hexdigest() in one_line(raised)
    assert f"{server.url} came with MD5" in one_line(raised)
    assert files(path) == []


def test_a_damaged_beginning_is_thrown_away(server, path):
    path.parent.mkdir()
    path.with_name("file.part").write_bytes(b"?" * 1000)
    with pytest.raises(UserError, match="try again"):
        download(server.url, path, MD5)
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD


def test_no_server_and_no_such_file(server, path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but nobody listens
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(UserError) as raised:
            download(nobody, path, MD5)
    for part in (nobody, "Connection refused", "put file into", str(path.parent), "--data-dir"):
        assert part in one_line(raised)
    assert not path.parent.exists()

    with pytest.raises(UserError, match=r"/other can't be downloaded \(HTTP Error 404"):
        download(server.url.replace("/file", "/other"), path, MD5)
    assert not path.parent.exists()


def test_a_folder_that_cant_be_made(server, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError) as raised:
        download(server.url, tmp_path / "taken" / "file", MD5)
    assert f"{tmp_path / 'taken'}" in one_line(raised)
    assert "can't be written" in one_line(raised)
    assert server.asked == []


def test_a_full_disk_is_told_and_resumed_from(server, path):
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writing beyond it fails
    try:
        with pytest.raises(UserError) as raised:
            download(server.url, path, MD5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{path}.part can't be written: File too large" in one_line(raised)
    assert files(path) == ["file.part"]
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD


def test_a_file_without_end_is_given_up_and_not_kept(server, path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", len(PAYLOAD) - 1)
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    assert f"{server.url} has more than the {len(PAYLOAD) - 1} bytes" in one_line(raised)
    assert files(path) == []


def test_a_server_that_always_has_a_little_more_is_given_up(server, path):
    """For ever before, at a thousand bytes a request."""
    server.cuts, server.payload = [1000] * 10_000, bytes(10**7)
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    assert "can't be downloaded" in one_line(raised)
    assert len(server.asked) == 100
    assert path.with_name("file.part").stat().st_size == 100_000


def test_a_server_that_drips_is_given_up(server, path, monkeypatch):
    """It never falls silent; what came is kept."""
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    server.drips = True
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    assert "bytes in" in one_line(raised)


@pytest.mark.parametrize("value", ["x", "-5", "9" * 5000])
def test_a_length_that_is_none_is_no_matter(server, path, monkeypatch, value):
    def send_header(handler, name, text):
        value_sent = value if name == "Content-Length" else text
        super(Handler, handler).send_header(name, value_sent)

    monkeypatch.setattr(Handler, "send_header", send_header, raising=False)
    with contextlib.suppress(UserError):  # which says what it is
        download(server.url, path, MD5)


def test_two_at_once_download_once(server, path):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: download(server.url, path, MD5), range(2)))
    assert server.asked == [None]
    assert path.read_bytes() == PAYLOAD
    assert files(path) == ["file"]
