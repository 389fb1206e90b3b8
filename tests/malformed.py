"""Requests with every kind of mistake that a server has to answer with a 4xx; seeded.

Each is the bytes of a whole HTTP request, and a pattern that the message of the answer has to
match: it names what is wrong.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SHAPE = (3, 16, 16)  # of the model's images
BODY_LIMIT = 2**20  # bytes; of the server
VALUES = 3 * 16 * 16
PATH = "/v2/models/net/infer"

KINDS: list[Callable] = []


def kind(function):
    """Adds to KINDS what makes (path, headers, body, pattern) out of a random generator."""
    KINDS.append(function)
    return function


def malformed(seed: int, count: int) -> Iterator[tuple[str, bytes, str]]:
    """`count` times (name, request, pattern); each kind in turn, with other numbers each time."""
    rng = np.random.RandomState(seed)
    for index in range(count):
        make = KINDS[index % len(KINDS)]
        made = make(rng)
        raw = made if isinstance(made[0], bytes) else (request(*made[:-1]), made[-1])
        yield make.__name__, *raw


def request(path: str, headers: dict, body: bytes, method: str = "POST") -> bytes:
    given = {name.lower() for name in headers}
    fields = {"Host": "localhost", **headers}
    if not given & {"content-length", "transfer-encoding"}:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def answer_of(port: int, raw: bytes, timeout: float = 60) -> tuple[int, dict, bytes]:
    """Sends bytes over a connection of their own; status, headers and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        with contextlib.suppress(OSError):  # the server has read enough
            connection.sendall(raw)
        received = b""
        while b"\r\n\r\n" not in received:
            received += _some(connection)
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += _some(connection)
    return int(first.split()[1]), headers, body


def _some(connection):
    part = connection.recv(65536)
    if not part:
        raise ConnectionError("the connection was closed without an answer")
    return part


def fault_of(port: int, name: str, raw: bytes, pattern: str) -> str:
    """What is wrong with the server's answer to a malformed request; empty where nothing is."""
    try:
        status, _, body = answer_of(port, raw)
        message = json.loads(body)["error"]
    except (OSError, ValueError, KeyError) as error:
        return f"{name}: {error!r} for {raw[:200]!r}"
    if 400 <= status < 500 and re.search(pattern, message):
        return ""
    return f"{name}: {status} {message!r} for {raw[:200]!r}"


# -- Parts -----------------------------------------------------------------------------------------


def tensor(rng, count=1, **changes):
    fields = {"name": "data", "datatype": "FP32", "shape": [count, *SHAPE]}
    fields["data"] = rng.normal(size=count * VALUES).round(3).tolist()
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not None}


def in_json(tensor, **changes):
    return (
        PATH,
        {"Content-Type": "application/json"},
        json.dumps({"inputs": [tensor], **changes}).encode(),
    )


def in_binary(rng, raw, size=None, **changes):
    parameters = {"binary_data_size": len(raw) if size is None else size}
    text = json.dumps({"inputs": [tensor(rng, data=None, parameters=parameters, **changes)]})
    return PATH, {"Inference-Header-Content-Length": len(text)}, text.encode() + raw


def files(rng, *contents):
    changes = {"name": "image", "datatype": "BYTES", "shape": [len(contents)]}
    if rng.randint(2):
        return in_json(
            tensor(rng, data=[base64.b64encode(c).decode() for c in contents], **changes)
        )
    raw = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    return in_binary(rng, raw, **changes)


def floats(rng, count=1):
    return rng.normal(size=(count, *SHAPE)).astype("<f4")


def picture(rng, kind="PNG", size=(16, 16)):
    file = io.BytesIO()
    pixels = rng.randint(0, 256, (*size, 3), dtype="uint8")
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png(width, height, data):
    """A PNG file that claims a size."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pick(rng, *choices):
    return choices[rng.randint(len(choices))]


# -- Tensors ---------------------------------------------------------------------------------------


@kind
def wrong_shape(rng):
    dims = rng.randint(1, 40, rng.randint(0, 7)).tolist()
    if dims[1:] == list(SHAPE):
        dims = [1]
    return *in_json(tensor(rng, shape=dims)), "shape"


@kind
def shape_of_another_kind(rng):
    shape = pick(
        rng, "1,3,16,16", None, 7, {}, [1.0, 3, 16, 16], [True, 3, 16, 16], [[1], 3, 16, 16]
    )
    return *in_json(tensor(rng, shape=shape)), "shape"


@kind
def impossible_batch(rng):
    count = pick(rng, 0, -1, -(2**31), -(2**63), 65, 2**31, 2**32 + 1, 2**63, 2**64 + 1, 10**30)
    if rng.randint(2):
        return *in_json(tensor(rng, shape=[count, *SHAPE])), "batch of"
    return *in_binary(rng, floats(rng).tobytes(), shape=[count, *SHAPE]), "batch of"


@kind
def impossible_dimension(rng):
    shape = [1, *SHAPE]
    shape[rng.randint(1, 4)] = pick(rng, 0, -16, 2**31, 2**61, 2**63, -(2**62))
    return *in_binary(rng, floats(rng).tobytes(), shape=shape), "shape"


@kind
def wrong_datatype(rng):
    datatype = pick(rng, "FP16", "FP64", "INT8", "UINT8", "BYTES", "fp32", "", None, 32, ["FP32"])
    return *in_json(tensor(rng, datatype=datatype)), "FP32|datatype"


@kind
def too_many_or_few_numbers(rng):
    count = VALUES + pick(rng, -VALUES, -1, 1, VALUES, rng.randint(2, VALUES))
    return *in_json(tensor(rng, data=rng.normal(size=count).round(3).tolist())), "values"


@kind
def wrongly_nested(rng):
    nested = floats(rng).tolist()
    row = nested[0][rng.randint(3)][rng.randint(16)]
    row[rng.randint(16)] = pick(rng, [1.0], [], row[:3])
    if rng.randint(2):
        nested[0][rng.randint(3)].pop()
    return *in_json(tensor(rng, data=nested)), "nested|not FP32"


@kind
def no_numbers(rng):
    data = rng.normal(size=VALUES).tolist()
    data[rng.randint(VALUES)] = pick(rng, "1.5", True, False, None, {}, [1], "NaN")
    if isinstance(data[0], list):
        return *in_json(tensor(rng, data=data)), "nested"
    return *in_json(tensor(rng, data=data)), "not FP32"


@kind
def numbers_beyond_float32(rng):
    text = in_json(tensor(rng, data=[0.5] * VALUES))[2].decode()
    number = pick(rng, "1e39", "-1e39", "3.5e38", "1e400", "-1e400", "9" * 60, "1" + "0" * 400)
    return *in_json({})[:2], text.replace("0.5", number, 1).encode(), "outside|100 digits"


@kind
def literals_that_json_lacks(rng):
    text = in_json(tensor(rng, data=[0.5] * VALUES))[2].decode()
    literal = pick(rng, "NaN", "Infinity", "-Infinity")
    return *in_json({})[:2], text.replace("0.5", literal, 1).encode(), "NaN|Infinity"


@kind
def not_finite_in_binary(rng):
    values = floats(rng, 3).ravel()
    values[rng.randint(len(values))] = pick(rng, np.nan, np.inf, -np.inf)
    return *in_binary(rng, values.tobytes(), shape=[3, *SHAPE]), "not finite"


@kind
def pixels_out_of_range(rng):
    datatype = pick(rng, "FP32", "UINT8")
    data = rng.randint(0, 256, VALUES).tolist()
    data[rng.randint(VALUES)] = pick(rng, -1, 256, 10**6, -(10**12))
    return *in_json(tensor(rng, name="pixels", datatype=datatype, data=data)), "outside"


@kind
def bytes_that_do_not_fit_the_shape(rng):
    raw = floats(rng, 2).tobytes()
    raw = raw[: rng.randint(len(raw))] if rng.randint(2) else raw + bytes(rng.randint(1, 99))
    return *in_binary(rng, raw, shape=[2, *SHAPE]), "bytes"


@kind
def wrong_binary_data_size(rng):
    raw = floats(rng).tobytes()
    size = pick(
        rng, 0, -1, len(raw) - 1, len(raw) + 1, 2**62, 2**64, float(len(raw)), True, "9", [1]
    )
    return *in_binary(rng, raw, size=size), "binary_data_size"


@kind
def truncated_body(rng):
    path, headers, body = in_binary(rng, floats(rng).tobytes())
    return path, headers, body[: rng.randint(1, len(body))], "bytes|Content-Length"


@kind
def data_twice_or_never(rng):
    if rng.randint(2):
        return *in_json(tensor(rng, data=None)), "either data or"
    return *in_json(tensor(rng, parameters={"binary_data_size": 4 * VALUES})), "either data or"


# -- JSON ------------------------------------------------------------------------------------------


@kind
def truncated_json(rng):
    path, headers, body = in_json(tensor(rng))
    return path, headers, body[: rng.randint(len(body))], "no JSON"


@kind
def broken_json(rng):
    path, headers, body = in_json(tensor(rng))
    place = rng.choice([i for i, byte in enumerate(body) if byte in b"{}[]:,"])
    return path, headers, body[:place] + pick(rng, b"!", b"'", b"\0") + body[place + 1 :], "JSON"


@kind
def deep_json(rng):
    depth = rng.randint(2000, 200_000)
    opening = pick(rng, b"[", b'{"inputs":', b'{"inputs":[')
    closing = {b"[": b"]", b'{"inputs":': b"}", b'{"inputs":[': b"]}"}[opening]
    depth = min(depth, BODY_LIMIT // len(opening + closing) - 10)
    body = opening * depth + (b"1" + closing * depth if rng.randint(2) else b"")
    return *in_json({})[:2], body, "nested|more values|one tensor|an object"


@kind
def deep_json_inside(rng):
    depth = rng.randint(500, 1500)
    text = in_json(tensor(rng, **{pick(rng, "name", "shape", "data", "datatype"): "DEEP"}))[2]
    body = text.replace(b'"DEEP"', b"[" * depth + b"]" * depth)
    return *in_json({})[:2], body, "nested|input|shape|values|FP32"


@kind
def json_of_another_kind(rng):
    body = pick(
        rng, b"", b" ", b"null", b"[]", b"7", b'"inputs"', b"true", b"{}", b"\xff\xfe{}", b"{}{}"
    )
    return *in_json({})[:2], body, "JSON|inputs"


@kind
def random_bytes(rng):
    return *in_json({})[:2], b"\xff" + rng.bytes(rng.randint(1, 5000)), "UTF-8|JSON"


@kind
def keys_twice(rng):
    body = in_json(tensor(rng))[2]
    key = pick(rng, b'"name": ', b'"shape": ', b'"data": ', b'"inputs": ')
    return *in_json({})[:2], body.replace(key, key + b"1, " + key, 1), "twice"


@kind
def wrong_inputs(rng):
    inputs = pick(rng, [], {}, None, 1, "data", [1], [[]], [None], [tensor(rng), tensor(rng)])
    body = json.dumps({"inputs": inputs}).encode()
    return *in_json({})[:2], body, "one tensor|must be a JSON object"


@kind
def unknown_input(rng):
    name = pick(rng, "input", "Data", "", None, 1, ["data"], "data\u0000", "../data")
    return *in_json(tensor(rng, name=name)), "no input|lacks name"


@kind
def wrong_outputs(rng):
    one = {"name": "label"}
    count = pick(rng, -1, 1.5, "1", True, None, 2**64) if rng.randint(2) else 1
    outputs = pick(
        rng,
        {},
        "label",
        1,
        [1],
        [[]],
        [{}],
        [{"name": 1}],
        [{"name": "logit"}],
        [one, one],
        [{**one, "parameters": {"classification": count}}],
        [{**one, "parameters": {"binary_data": 1}}],
        [{**one, "parameters": []}],
        [{**one, "parameters": {"shared_memory_region": "mine"}}],
    )
    return *in_json(tensor(rng), outputs=outputs), "output|classification"


@kind
def wrong_id_or_parameters(rng):
    change = pick(
        rng,
        {"id": 1},
        {"id": []},
        {"parameters": 1},
        {"parameters": []},
        {"parameters": {"binary_data_output": "yes"}},
        {"parameters": {"shared_memory_region": "mine"}},
    )
    return *in_json(tensor(rng), **change), "id must|parameters|binary_data_output|shared_memory"


# -- Image files -----------------------------------------------------------------------------------


@kind
def no_image(rng):
    magic = pick(
        rng, b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"BM", b"RIFF", b"<svg>", b"II*\0"
    )
    return *files(rng, magic + rng.bytes(rng.randint(100))), "neither a JPEG nor a PNG"


@kind
def damaged_image(rng):
    file = picture(rng, pick(rng, "PNG", "JPEG"))
    return *files(rng, picture(rng), file[: rng.randint(8, len(file) // 2)]), "image 1"


@kind
def image_of_noise(rng):
    magic = pick(rng, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xdb")
    return *files(rng, magic + rng.bytes(rng.randint(2000))), "image 0"


@kind
def image_bomb(rng):
    side = int(rng.randint(6000, 60_000))
    data = zlib.compress(bytes(int(rng.randint(10**5, 10**7))))
    return *files(rng, png(side, side, data)), "more pixels"


@kind
def image_of_impossible_size(rng):
    width, height = pick(rng, (0, 16), (16, 0), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1))
    return *files(rng, png(width, height, zlib.compress(b"\0" * 100))), "image 0"


@kind
def image_that_the_type_denies(rng):
    body, name = pick(
        rng, (picture(rng, "JPEG"), "image/png"), (picture(rng), "image/jpeg"), (b"", "image/png")
    )
    return PATH, {"Content-Type": name}, body, "image/|neither"


@kind
def bytes_out_of_step(rng):
    raw = pick(rng, b"\xff\xff\xff\xff", b"\1\0", struct.pack("<I", 9) + b"12345678", bytes(8), b"")
    change = {"name": "image", "datatype": "BYTES", "shape": [1]}
    return *in_binary(rng, raw, **change), "BYTES"


@kind
def no_base64(rng):
    data = pick(rng, ["!"], ["a"], ["é"], [7], [None], [["AAAA"]], "AAAA", [], ["AAAA", "AAAA"])
    changes = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    return *in_json(tensor(rng, **changes)), "base64|values|list|nested|neither"


# -- HTTP ------------------------------------------------------------------------------------------


@kind
def unknown_path(rng):
    path = pick(
        rng,
        "/v2/models/other/infer",
        "/v2/models//infer",
        "/v2/models/net/versions/2/infer",
        "/v2/models/net/versions/-1/infer",
        "/v2/models/../../../../etc/passwd",
        "/v2/models/..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/%2e%2e/net/infer",
        "/v2/models/net%00/infer",
        "/v2/models/net/infer/",
        "/v2/models/net/infer;x",
        "//v2/models/net/infer",
        "/V2/models/net/infer",
        "/v2/models/n%65t%0d%0aX-Evil:%201/infer",
        "/v2/models/" + "x" * 9000 + "/infer",
        "/v1/models/net:predict",
        "/page.html",
        "/..%5c..%5cwindows",
        "/%ff%fe",
    )
    return path, *in_json(tensor(rng))[1:], "there is no"


@kind
def wrong_method(rng):
    method = pick(rng, "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
    raw = request(*in_json(tensor(rng)), method=method)
    return raw, "can't be asked"


@kind
def wrong_content_type(rng):
    name = pick(
        rng,
        "text/plain",
        "image/gif",
        "application/x-www-form-urlencoded",
        "x" * 500,
        "*/*",
        "\xff",
    )
    return PATH, {"Content-Type": name}, in_json(tensor(rng))[2], "Content-Type"


@kind
def compressed_body(rng):
    coding, pack = pick(
        rng, ("gzip", gzip.compress), ("deflate", zlib.compress), ("br", zlib.compress)
    )
    packed = pack(in_json(tensor(rng))[2])
    packed, pattern = pick(
        rng,
        (packed[: rng.randint(len(packed))], "ends within"),
        (bytes(9) + packed, "no valid"),
        (packed + b"x", "goes on"),
        (pack(bytes(BODY_LIMIT + rng.randint(1, 10**7))), "bytes"),
    )
    pattern = "Content-Encoding" if coding == "br" else pattern
    return PATH, {"Content-Encoding": coding}, packed, pattern


@kind
def wrong_size_of_json(rng):
    path, _, body = in_binary(rng, floats(rng).tobytes())
    size = pick(
        rng, -1, "+9", "0x10", "1.5", "", "9" * 100, 10**17, len(body) + 1, 0, 1, "ten", "\xb2"
    )
    return path, {"Inference-Header-Content-Length": size}, body, "Content-Length|JSON|number"


@kind
def body_over_the_limit(rng):
    if rng.randint(2):
        size = int(pick(rng, BODY_LIMIT + 1, 10**10, 10**15))
        return PATH, {"Content-Length": size}, b"{}", "bytes"
    chunks = (b"10000\r\n" + bytes(65536) + b"\r\n") * (BODY_LIMIT // 65536 + rng.randint(1, 9))
    return PATH, {"Transfer-Encoding": "chunked"}, chunks, "bytes"


@kind
def no_http(rng):
    good = request(*in_json(tensor(rng)))
    head, _, rest = good.partition(b"\r\n")
    lines = pick(
        rng,
        (head, b"Content-Length: -1"),
        (head, b"Content-Length: 1", b"Content-Length: 2"),
        (head, b"Content-Length: 9" + b"9" * 40),
        (head, b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (head, b"no colon"),
        (head, b"Bad\0Name: 1"),
        (head, b" folded: 1"),
        (b"POST /v2 HTTP/9.9",),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",),
        (b"POST",),
        (b"POST /v2/models/\xff\xfe/infer HTTP/1.1",),
        (b"BREW /v2/models/net/infer HTTP/1.1",),
    )
    return b"\r\n".join(lines) + b"\r\n" + rest, "no valid HTTP"


@kind
def endless_headers(rng):
    head = b"POST /v2/models/net/infer HTTP/1.1\r\n"
    if rng.randint(2):
        return head + b"X: " + b"y" * 200_000, "headers are too large"
    return head + b"X: 1\r\n" * 40_000, "headers are too large"
