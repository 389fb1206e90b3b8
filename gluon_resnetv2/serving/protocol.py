"""The Open Inference Protocol v2: requests checked and decoded, answers encoded. No I/O.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensors and classification:
https://github.com/triton-inference-server/server/tree/main/docs/protocol

A request has one tensor. "data" is what the network takes, FP32 (n, C, H, W); "pixels" are 0 to
255, UINT8 or FP32 (n, C, H, W); "image" are JPEG or PNG files, BYTES (n) or (n, 1). An answer has
"logits" and "probabilities", FP32 (n, classes), and "label", BYTES (n), the likeliest class.
"""

from __future__ import annotations

import base64
import binascii
import functools
import itertools
import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2.scores import likeliest, softmax
from gluon_resnetv2.untrusted import Fault, parse_json

VERSION = "1"  # of every model: an export does not count its predecessors
DATATYPES = {"data": ("FP32",), "pixels": ("FP32", "UINT8"), "image": ("BYTES",)}
NUMBERS: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_TYPES = {"FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}  # of a model's configuration
IMAGE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
FLOAT_MAX = float(np.finfo("float32").max)
SPARE_VALUES = 10_000  # that a request may hold in JSON beside its tensor
DIGITS = 100  # of a whole number; no float32 has more than 40
SHORT = 1024  # bytes of JSON that are worth remembering
SHOWN = 60  # characters of what a message quotes


Shape = tuple[int, ...]
Tensors = dict[str, tuple[str, list[int]]]  # by name: the datatype, and the shape


class Refused(Exception):
    """A request that cannot be answered; the message tells whoever sent it what is wrong."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status  # of HTTP


@dataclass(frozen=True, eq=False)
class Interface:
    """What a model takes and gives, as its clients see it."""

    name: str
    classes: list[str]
    shape: Shape  # (C, H, W), or as the graph of a pair without manifest takes it
    output: str  # what the network computes: "logits" or "probabilities"
    max_batch: int  # images in one request

    @property
    def inputs(self) -> Tensors:
        """The datatype and shape, -1 for the batch, of the input that a graph takes."""
        return {"data": ("FP32", [-1, *self.shape])}

    @property
    def outputs(self) -> Tensors:
        """The datatype and shape, -1 for the batch, of each output."""
        scores = ("logits", "probabilities") if self.output == "logits" else ("probabilities",)
        found = {name: ("FP32", [-1, len(self.classes)]) for name in scores}
        return {**found, "label": ("BYTES", [-1])}

    def metadata(self) -> dict[str, Any]:
        """The answer to GET v2/models/NAME."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "mxnet",
            "inputs": _described(self.inputs),
            "outputs": _described(self.outputs),
        }

    def config(self) -> dict[str, Any]:
        """The answer to GET v2/models/NAME/config, Triton's extension: dims are of one image."""
        return {
            "name": self.name,
            "platform": "mxnet",
            "max_batch_size": self.max_batch,
            "input": _configured(self.inputs),
            "output": _configured(self.outputs),
        }


def _described(tensors: Tensors) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": shape}
        for name, (datatype, shape) in tensors.items()
    ]


def _configured(tensors: Tensors) -> list[dict[str, Any]]:
    return [
        {"name": name, "data_type": _TYPES[datatype], "dims": shape[1:] or [1]}
        for name, (datatype, shape) in tensors.items()
    ]


@dataclass(frozen=True)
class Output:
    """An output that was asked for."""

    name: str
    binary: bool = False
    classification: int = 0  # the likeliest so many classes instead of the tensor


@dataclass(frozen=True)
class Request:
    """A request of which all is known to be right but what image files hold."""

    input: str  # "data", "pixels" or "image"
    values: NDArray[Any] | list[bytes]  # (n, C, H, W) float32 or uint8; n files
    outputs: tuple[Output, ...]
    id: str | None = None

    def __len__(self) -> int:
        return len(self.values)


def decode(body: bytes, json_size: int | None, interface: Interface) -> Request:
    """What a body asks of a model.

    Args:
        json_size: bytes of JSON that the body begins with, tensors in binary following; None for
            JSON alone.

    Raises:
        Refused: any of it is wrong.
    """
    if json_size is None:
        text, binary = body, None
    elif 0 <= json_size <= len(body):
        text, binary = body[:json_size], memoryview(body)[json_size:]
    else:
        raise Refused(
            f"Inference-Header-Content-Length is {json_size}, but the body has {len(body)} bytes"
        )
    head = (_short_head if len(text) <= SHORT else _head)(text, interface)
    return Request(head.input, _values_of(head, binary), head.outputs, head.id)


def decode_image(body: bytes, media_type: str, interface: Interface) -> Request:
    """The request that a body which is a JPEG or PNG file stands for: all outputs, in JSON."""
    _check_image(body, "the body", media_type)
    return Request("image", [body], _outputs(None, False, interface))


@dataclass(frozen=True)
class _Head:
    """What the JSON of a request says, right in itself."""

    input: str
    datatype: str
    shape: Shape
    size: int | None  # bytes that follow in binary
    data: object  # or the values themselves
    outputs: tuple[Output, ...]
    id: str | None


def _head(text: bytes, interface: Interface) -> _Head:
    request = _json(text, SPARE_VALUES + 2 * interface.max_batch * math.prod(interface.shape))
    _check_fields(request, "the request", ("inputs",))
    name = request.get("id")
    if not isinstance(name, (str, type(None))):
        raise Refused(f"id must be a string, not {shown(name)}")
    parameters = _parameters(request, "the request")
    all_binary = _flag(parameters, "binary_data_output", "the request")
    outputs = _outputs(request.get("outputs"), all_binary, interface)
    tensors = request["inputs"]
    if not isinstance(tensors, list) or len(tensors) != 1:
        raise Refused("inputs must be a list of one tensor: data, pixels or image")
    return _Head(*_tensor(tensors[0], interface), outputs, name)


# Clients that send tensors in binary write the same few heads again and again.
_short_head = functools.lru_cache(maxsize=256)(_head)


def _json(text: bytes, most_values: int) -> dict[str, Any]:
    """A JSON object, read strictly.

    A value takes up to 50 times its text's memory, so they are counted first.
    """
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > most_values:
        raise Refused("the JSON has more values than any request to this model")
    try:
        value = parse_json(text, overflow=True, digits=DIGITS)
    except Fault as fault:
        raise Refused(f"the body {fault}") from None
    if not isinstance(value, dict):
        raise Refused("the JSON must be an object with inputs")
    return value


def shown(value: object) -> str:
    """A value as a message quotes it, shortened; no more of it is written than that."""
    if isinstance(value, str):
        value = value[: SHOWN + 1]
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part
        if len(text) > SHOWN:
            return f"{text[:SHOWN]}..."
    return text


def _check_fields(value: object, where: str, needed: tuple[str, ...]) -> None:
    """What else there is, is not ours: KServe's client sends model_name, others what is to come."""
    if not isinstance(value, dict):
        raise Refused(f"{where} must be a JSON object, not {shown(value)}")
    for name in needed:
        if name not in value:
            raise Refused(f"{where} lacks {name}")


def _parameters(value: dict[str, Any], where: str) -> dict[str, Any]:
    """The parameters of a request or tensor; those of other servers are let pass."""
    parameters = value.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise Refused(f"parameters of {where} must be a JSON object, not {shown(parameters)}")
    for name in parameters:
        if name.startswith("shared_memory_"):
            raise Refused(f"{where} can't have {shown(name)}: no memory is shared with this server")
    return parameters


def _flag(parameters: dict[str, Any], name: str, where: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise Refused(f"{name} of {where} must be true or false, not {shown(value)}")
    return value


def _outputs(asked: object, all_binary: bool, interface: Interface) -> tuple[Output, ...]:
    known = interface.outputs
    if not asked and isinstance(asked, (list, type(None))):
        return tuple(Output(name, all_binary) for name in known)
    if not isinstance(asked, list):
        raise Refused(f"outputs must be a list, not {shown(asked)}")
    found = {}
    for entry in asked:
        _check_fields(entry, "an output", ("name",))
        name = entry["name"]
        if not isinstance(name, str) or name not in known:
            raise Refused(f"there is no output {shown(name)}, but {', '.join(known)}")
        if name in found:
            raise Refused(f"output {name} is asked for twice")
        where = f"output {name}"
        parameters = {"binary_data": all_binary, **_parameters(entry, where)}
        count = parameters.get("classification", 0)
        if type(count) is not int or count < 0 or (count and name == "label"):
            raise Refused(f"classification of {where} can't be {shown(count)}")
        count = min(count, len(interface.classes))
        found[name] = Output(name, _flag(parameters, "binary_data", where), count)
    return tuple(found.values())


def _tensor(tensor: Any, interface: Interface) -> tuple[str, str, Shape, int | None, object]:
    """The first fields of a head."""
    _check_fields(tensor, "the input", ("name", "datatype", "shape"))
    name, datatype = tensor["name"], tensor["datatype"]
    if not isinstance(name, str) or name not in DATATYPES:
        raise Refused(f"there is no input {shown(name)}, but {', '.join(DATATYPES)}")
    if datatype not in DATATYPES[name]:
        wanted = " or ".join(DATATYPES[name])
        raise Refused(f"input {name} is {wanted}, not {shown(datatype)}")
    shape = _shape(tensor["shape"], name, interface)
    size = _parameters(tensor, f"input {name}").get("binary_data_size")
    if (size is None) == (tensor.get("data") is None):
        raise Refused(f"input {name} needs either data or binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise Refused(f"binary_data_size can't be {shown(size)}")
    return name, datatype, shape, size, tensor.get("data")


def _values_of(head: _Head, binary: memoryview | None) -> NDArray[Any] | list[bytes]:
    """The tensor: from the JSON, or from the bytes behind it."""
    name, datatype, shape = head.input, head.datatype, head.shape
    if head.size is None:
        if binary:
            raise Refused(f"{len(binary)} bytes follow the JSON, but input {name} is in it")
        values = (
            _files(head.data, shape)
            if datatype == "BYTES"
            else _numbers(head.data, shape, datatype)
        )
    elif binary is None:
        raise Refused(f"input {name} is in binary, but Inference-Header-Content-Length is missing")
    elif head.size != len(binary):
        raise Refused(
            f"binary_data_size is {shown(head.size)}, but {len(binary)} bytes follow the JSON"
        )
    else:
        values = _unpacked(binary, shape) if datatype == "BYTES" else _raw(binary, shape, datatype)
    if isinstance(values, list):
        for index, file in enumerate(values):
            _check_image(file, f"image {index}")
    elif (name, datatype) == ("pixels", "FP32") and not (values.min() >= 0 and values.max() <= 255):
        raise Refused("input pixels has values outside of 0 to 255")
    return values


def _shape(shape: object, name: str, interface: Interface) -> Shape:
    one = [] if name == "image" else list(interface.shape)
    if not isinstance(shape, list) or any(type(size) is not int for size in shape):
        raise Refused(f"shape of input {name} must be a list of whole numbers, not {shown(shape)}")
    if not shape or (shape[1:] != one and not (name == "image" and shape[1:] == [1])):
        wanted = shown(["n", *one]).replace('"', "")
        raise Refused(f"input {name} has shape {shown(shape)}; {interface.name} takes {wanted}")
    if not 1 <= shape[0] <= interface.max_batch:
        raise Refused(
            f"a batch of {shown(shape[0])} is not possible; {interface.name} takes 1 to "
            f"{interface.max_batch} images at once"
        )
    return tuple(shape)


def _raw(binary: memoryview, shape: Shape, datatype: str) -> NDArray[Any]:
    dtype = NUMBERS[datatype]
    needed = math.prod(shape) * dtype.itemsize
    if len(binary) != needed:
        raise Refused(
            f"{datatype} of shape {list(shape)} takes {needed} bytes, but there are {len(binary)}"
        )
    values = np.frombuffer(binary, dtype).reshape(shape)
    if datatype == "FP32" and not np.isfinite(values).all():
        raise Refused("the input has numbers that are not finite (NaN or infinity)")
    return values


def _numbers(data: object, shape: Shape, datatype: str) -> NDArray[Any]:
    """The numbers of a flat list, or of lists nested as `shape` says."""
    values = _flattened(data, shape)
    kinds = {int, float} if datatype == "FP32" else {int}
    if not set(map(type, values)) <= kinds:
        wrong = next(value for value in values if type(value) not in kinds)
        raise Refused(f"data has {shown(wrong)}, which is not {datatype}")
    least, most = (-FLOAT_MAX, FLOAT_MAX) if datatype == "FP32" else (0, 255)
    if not (least <= min(values) and max(values) <= most):
        raise Refused(f"data has numbers outside of what {datatype} can hold")
    return np.array(values, NUMBERS[datatype]).reshape(shape)


def _flattened(data: object, shape: Shape) -> list[Any]:
    needed = math.prod(shape)
    if not isinstance(data, list):
        raise Refused(f"data must be a list, not {shown(data)}")
    if not data or not isinstance(data[0], list):
        if len(data) != needed:
            raise Refused(f"shape {list(shape)} takes {needed} values, but data has {len(data)}")
        return data
    level = [data]
    for size in shape:
        if any(type(part) is not list or len(part) != size for part in level):
            raise Refused(f"data is not nested as its shape {list(shape)} says")
        level = list(itertools.chain.from_iterable(level))
    return level


def _files(data: object, shape: Shape) -> list[bytes]:
    """The files that a JSON list of base64 strings holds."""
    values = _flattened(data, shape)
    try:
        return [base64.b64decode(value, validate=True) for value in values]
    except (TypeError, binascii.Error, ValueError):
        raise Refused("data of input image must be strings of base64") from None


def _unpacked(binary: memoryview, shape: Shape) -> list[bytes]:
    """The files that the protocol's BYTES hold: each after its size, 4 bytes, little-endian."""
    files: list[bytes] = []
    place = 0
    while place < len(binary) and len(files) <= shape[0]:
        start = place + 4
        if start > len(binary):
            raise Refused(f"BYTES end within the size of element {len(files)}")
        (size,) = struct.unpack_from("<I", binary, place)
        place = start + size
        if place > len(binary):
            raise Refused(f"BYTES end within element {len(files)}")
        files.append(bytes(binary[start:place]))
    if len(files) != shape[0]:
        raise Refused(f"BYTES of shape {list(shape)} hold another number of elements")
    return files


def _check_image(file: bytes, where: str, media_type: str | None = None) -> None:
    """Tells what is no image before it waits for a thread that would decode it."""
    found = next((kind for magic, kind in IMAGE_TYPES.items() if file.startswith(magic)), None)
    if found is None:
        raise Refused(f"{where} is neither a JPEG nor a PNG file")
    if media_type and found != media_type:
        raise Refused(f"{where} is {found}, not {media_type}")


# -- Answers ---------------------------------------------------------------------------------------

_compact = json.JSONEncoder(separators=(",", ":")).encode


def encode(request: Request, rows: NDArray[Any], interface: Interface) -> tuple[bytes, int | None]:
    """The answer to a request.

    Args:
        rows: (n, classes), the network's output for the request's images.

    Returns:
        The body; and how many bytes of JSON it begins with, or None for JSON alone.

    Raises:
        Refused: the outputs are not finite.
    """
    if not np.isfinite(rows).all():
        raise Refused("these inputs are so large that the network's outputs are not finite")
    answer: dict[str, Any] = {"model_name": interface.name, "model_version": VERSION}
    if request.id is not None:
        answer["id"] = request.id
    described = []
    tails = []
    for output in request.outputs:
        datatype, shape, values = _values(output, rows, interface)
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.binary:
            tail = _packed(values) if isinstance(values, list) else values.astype("<f4").tobytes()
            entry["parameters"] = {"binary_data_size": len(tail)}
            tails.append(tail)
        else:
            entry["data"] = values if isinstance(values, list) else values.ravel().tolist()
        described.append(entry)
    text = _compact({**answer, "outputs": described}).encode()
    return (b"".join((text, *tails)), len(text)) if tails else (text, None)


def _values(
    output: Output, rows: NDArray[Any], interface: Interface
) -> tuple[str, list[int], NDArray[Any] | list[str]]:
    """The datatype, shape and values of an output: an array, or a list of strings."""
    if output.name == "label":
        return "BYTES", [len(rows)], [interface.classes[i] for i in rows.argmax(axis=1)]
    scores = rows if output.name == interface.output else softmax(rows)
    if not output.classification:
        return "FP32", list(scores.shape), scores
    count = output.classification
    lines = [
        f"{row[i]:f}:{i}:{interface.classes[i]}" for row in scores for i in likeliest(row, count)
    ]
    return "BYTES", [len(scores), count], lines


def _packed(strings: Iterable[str]) -> bytes:
    encoded = [string.encode() for string in strings]
    return b"".join(struct.pack("<I", len(string)) + string for string in encoded)


def error(message: str) -> bytes:
    """The body of an answer that is no success."""
    return json.dumps({"error": message}).encode()
