"""Requests by chance: of the grammar of HTTP, JSON and binary tensors, right or wrong; seeded.

`malformed` knows what is wrong with each of its own, and what the answer has to say. Here nobody
does: what has to hold is only that an answer comes, none is the server's fault, and nobody else is
hurt.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import socket
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from tests.malformed import SHAPE, VALUES, picture

PATIENCE = 10  # seconds for an answer
TARGETS = (
    *("/v2", "/v2/", "/", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/net"),
    *("/v2/models/net/ready", "/v2/models/net/config", "/v2/models/net/stats", "*", "//", ""),
    *("/v2/repository/index", "/v2/models/net/versions/1", "/v2/models/%00/infer", "http://[::1/"),
    *("/v2/models/net/infer?x=%ff#y", "/v2/models/" + "n" * 3000, "http://localhost/v2", "/\xff"),
)
INFER = ("/v2/models/net/infer", "/v2/models/net/versions/1/infer")
METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PRI", "get", "")
FIELDS = {
    "Host": ("localhost", "127.0.0.1:80", "[::1]", "evil.example", "", "a" * 300, "[", "x@y"),
    "Origin": ("http://localhost", "null", "://", "http://[", "https://evil.example"),
    "Connection": ("close", "keep-alive", "upgrade", "Upgrade, HTTP2-Settings", "\t,,"),
    "Upgrade": ("h2c", "websocket", ""),
    "Expect": ("100-continue", "more"),
    "Content-Type": ("", "image/png", "image/jpeg", "application/json", "text/plain", ";;"),
    "Content-Encoding": ("gzip", "deflate", "identity", "br", ""),
    "Inference-Header-Content-Length": ("0", "1", "-1", "9" * 30, "x", "200"),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "identity", "xchunked"),
    "Content-Length": ("0", "7", "+7", "0x7", "99999999999999999999", "7, 7"),
    "Range": ("bytes=0-1", "bytes=" + "9" * 3000 + "-", "bytes=" + "1-1," * 500),
    "X": ("y" * 5000, "\0", "\xff", " ", ""),
}
SCALARS = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, 3.5e38, "", "1"),
    *("data", "pixels", "image", "FP32", "UINT8", "BYTES", "logits", "label", "\0", "\ud800", "é"),
)
KEYS = (
    *("inputs", "outputs", "id", "parameters", "name", "datatype", "shape", "data", "x"),
    *("binary_data_size", "binary_data", "binary_data_output", "classification"),
)


def fuzzed(seed: int, count: int) -> Iterator[bytes]:
    """`count` times what a client may send over one connection."""
    rng = random.Random(seed)
    files = _files(seed)
    for _ in range(count):
        requests = 1 if rng.random() < 0.9 else rng.randint(2, 5)
        raw = b"".join(_request(rng, files) for _ in range(requests))
        if rng.random() < 0.4:
            raw = _flipped(rng, raw)
        if rng.random() < 0.1:
            raw = raw[: rng.randint(0, len(raw))]
        yield raw


def fault_of(port: int, raw: bytes) -> str:
    """What is wrong with how the server takes bytes; empty where nothing is."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            received = _exchanged(connection, raw)
    except TimeoutError:
        return f"no answer within {PATIENCE} s to {raw[:300]!r}"
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", received)]
    wrong = [status for status in statuses if status >= 500 and status != 503]
    return f"{wrong} for {raw[:300]!r}" if wrong else ""


def _exchanged(connection, raw):
    received = b""
    try:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            received += part
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has read enough
    return received


def _files(seed):
    rng = np.random.RandomState(seed)
    return [picture(rng, kind) for kind in ("PNG", "JPEG") for _ in range(4)]


def _flipped(rng, raw):
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8)) if raw else 0):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _request(rng, files):
    headers, body = _asked(rng, files)
    headers = {"Host": "localhost", **headers}
    target, method = rng.choice(INFER), "POST"
    if rng.random() < 0.2:
        target, method = rng.choice(TARGETS), rng.choice(("GET", "POST", rng.choice(METHODS)))
    if rng.random() < 0.15:
        pack = {"gzip": gzip.compress, "deflate": zlib.compress}
        headers["Content-Encoding"] = rng.choice(tuple(pack))
        body = pack[headers["Content-Encoding"]](body)
    if rng.random() < 0.25:
        headers["Transfer-Encoding"], body = "chunked", _chunked(rng, body)
    else:
        off = rng.choice((-1, 1, 50)) if rng.random() < 0.1 else 0
        headers["Content-Length"] = max(0, len(body) + off)
    fields = list(headers.items())
    while rng.random() < 0.3:
        name = rng.choice(tuple(FIELDS))
        fields.insert(rng.randint(0, len(fields)), (name, rng.choice(FIELDS[name])))
    version = "HTTP/1.1" if rng.random() < 0.95 else rng.choice(("HTTP/1.0", "HTTP/2", "", "X"))
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _chunked(rng, body):
    chunks, place = [], 0
    while place < len(body):
        size = rng.choice((1, 7, 500, len(body)))
        part = body[place : place + size]
        extension = b";x=y" if rng.random() < 0.1 else b""
        chunks.append(b"%x%s\r\n%s\r\n" % (len(part), extension, part))
        place += size
    trailers = b"X: y\r\n" * rng.choice((0, 0, 1, 100))
    return b"".join((*chunks[:2000], b"0\r\n", trailers, b"\r\n"))


def _asked(rng, files):
    """Headers and body of an inference, mostly with something that is not as it should be."""
    if rng.random() < 0.1:
        kind = rng.choice(("image/png", "image/jpeg"))
        return {"Content-Type": kind}, _damaged(rng, rng.choice(files))
    count = rng.choice((1, 1, 1, 2, 3))
    name = rng.choice(("data", "pixels", "image"))
    tensor, raw = _tensor(rng, name, count, files)
    request = {"inputs": [tensor]}
    if rng.random() < 0.5:
        names = rng.sample(("logits", "probabilities", "label"), rng.randint(1, 3))
        request["outputs"] = [{"name": each, "parameters": {}} for each in names]
        request["outputs"][0]["parameters"][rng.choice(KEYS)] = rng.choice((True, 2, 10**6))
    if rng.random() < 0.7:
        _change(rng, request)
    text = json.dumps(request).encode()
    if rng.random() < 0.1:
        text = text.replace(
            *rng.choice(((b"}", b',"id":"1","id":2}'), (b"[", b"[[["), (b":", b"")))
        )
    if raw is None:
        return {}, text
    return {"Inference-Header-Content-Length": len(text)}, text + raw


def _tensor(rng, name, count, files):
    """A tensor; and the bytes that follow the JSON, where it is in binary."""
    if name == "image":
        some = [_damaged(rng, rng.choice(files)) for _ in range(count)]
        tensor = {"name": name, "datatype": "BYTES", "shape": [count]}
        raw = b"".join(struct.pack("<I", len(file)) + file for file in some)
        data = [base64.b64encode(file).decode() for file in some]
    else:
        kind = "FP32" if name == "data" else rng.choice(("FP32", "UINT8"))
        tensor = {"name": name, "datatype": kind, "shape": [count, *SHAPE]}
        data = [rng.randint(0, 255) for _ in range(count * VALUES)]
        raw = np.array(data, {"FP32": "<f4", "UINT8": "u1"}[kind]).tobytes()
    if rng.random() < 0.5:
        return {**tensor, "data": data}, None
    raw = raw if rng.random() < 0.9 else _damaged(rng, raw) + b"\0" * rng.choice((0, 1, 4))
    return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw


def _damaged(rng, file):
    return file if rng.random() < 0.5 else _flipped(rng, file[: rng.randint(1, len(file))])


def _change(rng, value):
    """Changes something within a JSON object or list."""
    while True:
        places = list(value) if isinstance(value, dict) else range(len(value))
        if not places:
            return
        place = rng.choice(places)
        within = isinstance(value[place], (dict, list)) and value[place]
        if not within or rng.random() < 0.4:
            break
        value = value[place]
    if isinstance(value, dict) and rng.random() < 0.3:
        value[rng.choice(KEYS)] = value.pop(place)
    else:
        value[place] = _value(rng)


def _value(rng, depth=3):
    if not depth or rng.random() < 0.7:
        return rng.choice(SCALARS)
    some = [_value(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return some if rng.random() < 0.5 else {rng.choice(KEYS): each for each in some}
