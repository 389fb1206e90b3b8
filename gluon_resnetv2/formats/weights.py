"""Files of weights, whoever wrote them: {name: array}. No code that one may hold is ever run."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file
from gluon_resnetv2.formats import keras_file, safetensors_file, torch_file
from gluon_resnetv2.formats.bounds import MOST_BYTES
from gluon_resnetv2.formats.keras_file import HDF5, ZIP
from gluon_resnetv2.formats.params_file import read_arrays, save_arrays
from gluon_resnetv2.layers import is_statistic

MXNET = (0x112).to_bytes(8, "little")
PICKLES = (ZIP, b"\x80")  # PyTorch's, today and before 1.6


def read(
    path: str | Path,
    report: Callable[[str], None] = lambda line: None,
    key: str | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of a file: MXNet's .params, PyTorch's state dicts, safetensors, Keras' HDF5.

    float16 becomes float32.

    Args:
        report: is told, in a line, what was taken of a file that holds more, or is assumed.
        key: which set of weights is taken, of a PyTorch file that holds several.

    Raises:
        UserError: it is missing, damaged, or none of these.
    """
    path = Path(path)
    if path.name.endswith("-symbol.json"):
        raise UserError(f"{path} has no weights; name the .params file beside it")
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # what else may have no end
            raise UserError(f"{path} is no file of weights")
        if about.st_size > MOST_BYTES:
            raise UserError(f"{path} has {about.st_size} bytes; {MOST_BYTES} are the most")
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    hdf5 = head.startswith(HDF5) or (head.startswith(ZIP) and path.suffix == ".keras")
    if head.startswith(PICKLES) and not hdf5 and head[8:9] != b"{":
        return torch_file.read(path, report, key)
    if key is not None:
        raise UserError(f"{path} is no PyTorch file, and has no {key!r}; leave out --weights")
    if head.startswith(MXNET):
        return {name: torch_file.widened(array) for name, array in read_arrays(path).items()}
    if hdf5:
        return keras_file.read(path, report)
    if head[8:9] == b"{":
        return safetensors_file.read(path, report)
    raise UserError(
        f"{path} is no file of weights that is known: .params of MXNet's, .pth, .safetensors, "
        ".h5 or .keras"
    )


def _write_params(path, arrays):
    # MXNet knows no single numbers, such as PyTorch's counts of batches.
    save_arrays(path, {name: mx.nd.array(a) for name, a in arrays.items() if a.ndim})


def write_pair_params(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the .params of a pair: statistics are "aux:NAME", all others "arg:NAME".

    Raises:
        OSError: the file can't be written.
    """
    kinds = {name: "aux" if is_statistic(name) else "arg" for name in arrays}
    with whole_file(path) as temporary:
        _write_params(temporary, {f"{kinds[name]}:{name}": arrays[name] for name in arrays})


def check_new(path: Path) -> None:
    """Refuses to write over what is there.

    Raises:
        UserError: it exists, its folder does not, or that is an export, whose files are counted.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists; name a new file")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it first")
    if (path.parent / "manifest.json").exists():
        raise UserError(f"{path.parent} is an export; name a file elsewhere")


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
    check_new(path)
    with whole_file(path) as temporary:
        WRITERS[path.suffix](temporary, arrays)
