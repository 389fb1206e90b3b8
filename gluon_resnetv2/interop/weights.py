"""Files of weights, whoever wrote them: {name: array}. No code that one may hold is ever run."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.checkpoint import save_arrays
from gluon_resnetv2.deploy.params_file import read_arrays
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file
from gluon_resnetv2.interop import keras_file, safetensors_file, torch_file
from gluon_resnetv2.layers import is_statistic

MXNET = (0x112).to_bytes(8, "little")
HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file: MXNet's .params, PyTorch's state dicts, safetensors, Keras' HDF5.

    Raises:
        UserError: it is missing, damaged, or none of these.
    """
    path = Path(path)
    if path.name.endswith("-symbol.json"):
        raise UserError(f"{path} has no weights; name the .params file beside it")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # what else may have no end
            raise UserError(f"{path} is no file of weights")
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if head.startswith(MXNET):
        return without_kind(read_arrays(path, kinds=False))
    if head.startswith(HDF5) or (head.startswith(ZIP) and path.suffix == ".keras"):
        return keras_file.read(path)
    if head[8:9] == b"{":
        return safetensors_file.read(path)
    return torch_file.read(path)


def without_kind(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the "arg:" and "aux:" that the names in a pair begin with."""
    return {re.sub("^(arg|aux):", "", name): array for name, array in arrays.items()}


def _write_params(path, arrays):
    save_arrays(path, {name: mx.nd.array(array) for name, array in arrays.items()})


def write_pair_params(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the .params of a pair: statistics are "aux:NAME", all others "arg:NAME".

    Raises:
        OSError: the file can't be written.
    """
    kinds = {name: "aux" if is_statistic(name) else "arg" for name in arrays}
    with whole_file(path) as temporary:
        _write_params(temporary, {f"{kinds[name]}:{name}": arrays[name] for name in arrays})


WRITERS = {
    ".params": _write_params,
    ".safetensors": safetensors_file.write,
    ".pth": torch_file.write,
    ".pt": torch_file.write,
    ".h5": keras_file.write,
}


def write(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays in the format that the file's name ends in.

    Raises:
        UserError: it ends in none that is known.
        OSError: the file can't be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"{path} ends in none of {', '.join(WRITERS)}, which tell the format")
    with whole_file(path) as temporary:
        WRITERS[path.suffix](temporary, arrays)
