"""Files of the safetensors format, version 1.

They are so simple that the package of that name would bring more cares than it takes away: it
gives no bfloat16 to NumPy, and its releases ask for newer Pythons and NumPys than MXNet runs on.

A file is the length of a header in 8 bytes, the header in JSON, {name: {dtype, shape,
data_offsets}}, and the numbers, without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.bounds import MOST_DESCRIPTION, MOST_DIMENSIONS, MOST_NUMBERS, is_name
from gluon_resnetv2.formats.torch_file import widened, without_prefixes
from gluon_resnetv2.untrusted import Fault, parse_json

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("V2"),  # which NumPy does not know: `widened` does
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read(
    path: str | Path, report: Callable[[str], None] = lambda line: None
) -> dict[str, np.ndarray]:
    """The tensors of a file. float16 and bfloat16 become float32.

    Args:
        report: is told, in a line, what was taken off every name, as of PyTorch's files.

    Raises:
        UserError: the file is damaged, or has numbers of a type that is not known here.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size - 8
            length = int.from_bytes(file.read(8), "little")
            if size < 2 or length > size:
                raise UserError(f"{path} is cut short, or no safetensors file")
            if length > MOST_DESCRIPTION:
                raise UserError(f"{path} has a header of {length} bytes, which is no network's")
            header = _header(path, file.read(length))
            arrays = _arrays(path, header, file, size - length)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    return without_prefixes(path, arrays, report)


def _header(path, text):
    try:
        header = parse_json(text, digits=19)  # as many as a size can have
    except Fault as fault:
        raise UserError(f"{path} is damaged, or no safetensors file: its header {fault}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} is no safetensors file: its header is no object")
    header.pop("__metadata__", None)
    return header


def _arrays(path, header, file, size):
    """Each array, once every byte is certain to be of one, and of one only."""
    end, places = 0, []
    for name, (start, stop, dtype, shape) in sorted(
        ((name, _place(path, name, about)) for name, about in header.items()),
        key=lambda item: item[1][:2],
    ):
        if start != end or stop > size:
            raise UserError(f"{path} is damaged or cut short: {name} is not where it has to be")
        end = stop
        places.append((name, dtype, shape))
    if end != size:
        raise UserError(f"{path} is damaged: {size - end} bytes belong to nothing")
    arrays = {}
    for name, dtype, shape in places:
        numbers = np.fromfile(file, dtype, math.prod(shape))
        if len(numbers) < math.prod(shape):
            raise UserError(f"{path} is cut short")
        arrays[name] = widened(numbers.reshape(shape))
    return arrays


def _place(path, name, about):
    """(start, stop, dtype, shape) of what the header says `name` to be."""
    try:
        kind, shape, (start, stop) = about["dtype"], about["shape"], about["data_offsets"]
        dtype = DTYPES.get(kind)
        counts = all(type(number) is int and number >= 0 for number in (start, stop, *shape))
        whole = counts and len(shape) <= MOST_DIMENSIONS and is_name(name)
        whole = whole and math.prod(filter(None, shape)) <= MOST_NUMBERS
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: its header tells no place of {name[:80]!r}")
    if dtype is None:
        raise UserError(f"{path} has {name} as {str(kind)[:20]}, which is not read here")
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise UserError(f"{path} is damaged: {name} is of another size than its shape")
    return start, stop, dtype, tuple(shape)


def write(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays. The larger types come first, which aligns every number.

    Raises:
        UserError: an array of a type that is not written.
        OSError: the file can't be written.
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, array in ordered:
        if array.dtype not in kinds:
            raise UserError(f"{name} is {array.dtype}, which is not written to safetensors files")
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": kinds[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, array in ordered:
            file.write(array.tobytes())
