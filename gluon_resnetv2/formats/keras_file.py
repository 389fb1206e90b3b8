"""Keras' files of weights, read and written with h5py alone: nothing in one is ever run.

HDF5 in one of two arrangements:

    conv1_conv/.../kernel       .h5: a group for each layer, by name; `:0` may follow. In a file of
                                a whole model, these groups are in `model_weights`.
    layers/conv2d_3/vars/0      .weights.h5: a group for each layer, counted by kind.

A .keras file is a zip archive of the second and of the model's description in JSON, from which we
have the layers' names. Of a model in a model, the inner groups are in one of the outer.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnetv2.errors import UserError, install
from gluon_resnetv2.formats import keras_config
from gluon_resnetv2.formats.bounds import MOST_BYTES, MOST_DESCRIPTION, MOST_GROUPS, check_members
from gluon_resnetv2.formats.keras_config import Layer, network, stages_of
from gluon_resnetv2.untrusted import Fault, faults_of, quote, read_bytes, read_json

DEEPEST = 8  # groups in groups
ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
ASSUMED = "average pooling, its activations and a softmax are assumed to be those of ResNetV2"
NAME = re.compile(r"[\w.:+-]{1,200}", re.ASCII)
# What zipfile and h5py raise depends on where the damage is.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(MemoryError, struct.error, zipfile.BadZipFile),
)

# Of the kinds of layers that have weights: the class, and the weights in their order.
BN = ("gamma", "beta", "moving_mean", "moving_variance")
KINDS = {
    "conv2d": ("Conv2D", ("kernel", "bias")),
    "batch_normalization": ("BatchNormalization", BN),
    "dense": ("Dense", ("kernel", "bias")),
}
CLASSES = {layer: kind for kind, (layer, _) in KINDS.items()}
NUMBERED = re.compile(rf"({'|'.join(KINDS)})(?:_(\d{{1,5}}))?")


def read(
    path: str | Path, report: Callable[[str], None] = lambda line: None
) -> dict[str, np.ndarray]:
    """The weights of a file, "LAYER/WEIGHT", as read-only float32 arrays.

    Args:
        report: is told, in a line, what is assumed of a model that the file does not describe.

    Raises:
        UserError: the file is missing, damaged, of another kind or of a model that computes
            otherwise; or h5py is not installed.
    """
    with faults_of(path):
        data, names = read_bytes(path, MOST_BYTES), None
        if data.startswith(ZIP):
            data, names = _unzipped(data)
        if not data.startswith(HDF5):
            raise Fault("is neither an HDF5 file nor a .keras archive of one")
        arrays, described = _arrays(data, names)
    if not described:
        report(f"{path}: has weights alone: {ASSUMED}")
    return arrays


def _unzipped(data: bytes) -> tuple[bytes, dict[str, str]]:
    """The HDF5 file in a .keras archive, and the names of its layers."""
    check_members(io.BytesIO(data))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in map(archive.getinfo, ("config.json", "model.weights.h5")):
                # Keras compresses neither; what expands could expand to anything.
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                    raise Fault(f"has {member.filename} compressed; save it again with Keras")
            if archive.getinfo("config.json").file_size > MOST_DESCRIPTION:
                raise Fault("describes far more than a model")
            names = _names(keras_config.layers_of(read_json(archive.read("config.json"))))
            return archive.read("model.weights.h5"), names
    except Fault:
        raise
    except KeyError as error:
        raise Fault(f"is no .keras archive: {error.args[0]}") from None
    except DAMAGE as error:
        raise Fault(f"is a damaged archive: {_line(error)}") from None


def _names(layers: Mapping[str, Layer]) -> dict[str, str]:
    """The name of each layer with weights, by its kind and number: {"conv2d_3": NAME}."""
    names, counts = {}, dict.fromkeys(KINDS, 0)
    for name, layer in layers.items():
        if kind := CLASSES.get(layer.kind):
            names[_numbered(kind, counts[kind])] = name
            counts[kind] += 1
    return names


def _numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


# -- HDF5 ------------------------------------------------------------------------------------------


def _arrays(data: bytes, names: Mapping[str, str] | None) -> tuple[dict[str, np.ndarray], bool]:
    """The weights, and whether a description of their model was there to be checked."""
    h5py = _h5py()
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            found = dict(_datasets(file))
            tops = {path[0] for path in found}
            described = names is not None or "model_weights" in tops
            if "model_weights" in tops:
                keras_config.layers_of(_config(data))
                inside = {path[1:]: found[path] for path in found if path[0] == "model_weights"}
                weights = _of_named(inside)
            elif "layers" in tops and "conv1_conv" not in tops:
                found = _innermost(found)
                weights = _of_numbered(found, _by_order(found) if names is None else names)
            else:
                weights = _of_named(found)
            arrays = {name: _array(data, name, dataset) for name, dataset in weights.items()}
    except Fault:
        raise
    except DAMAGE as error:
        raise Fault(f"is a damaged HDF5 file: {_line(error)}") from None
    if sum(array.nbytes for array in arrays.values()) > len(data):
        raise Fault("has weights that share their place in it")
    return arrays, described


def _config(data: bytes) -> object:
    """The description of the whole model in an HDF5 file.

    Found as the text that it is: damaged, an attribute could end the process that reads it.
    """
    start = re.search(
        rb'\{"(?:module": "[\w.]*", ")?class_name": "(?:Functional|Model|Sequential)"', data
    )
    if not start:
        raise Fault("holds a whole model without its model_config; save it again with Keras")
    text = data[start.start() : start.start() + MOST_DESCRIPTION].decode("utf-8", "replace")
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        raise Fault("has a damaged model_config") from None


def _h5py():
    try:
        import h5py
    except ImportError:
        raise UserError(f"Keras' files of weights need h5py: {install('keras')}") from None
    return h5py


def _datasets(file) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every dataset with the names that lead to it."""
    h5py, left = _h5py(), MOST_GROUPS

    def below(group, path):
        nonlocal left
        for name in group:
            left -= 1
            if left < 0 or len(path) > DEEPEST:
                raise Fault("has groups without end")
            if not NAME.fullmatch(name):
                raise Fault(f"has a name, {quote(name)}, that is no layer's and no weight's")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise Fault(f"has a link, {name}, to what may be in another file")
            item = group[name]
            if isinstance(item, h5py.Group):
                yield from below(item, (*path, name))
            elif isinstance(item, h5py.Dataset):
                yield (*path, name), item
            else:
                raise Fault(f"has {name}, which is neither a group nor an array")

    yield from below(file, ())


def _of_named(found: Mapping) -> dict:
    """The datasets of the first arrangement by layer and weight."""
    inner: dict[str, set[str]] = {}
    for top, *path in found:
        inner.setdefault(top, set()).update(path[:-1][:1])
    weights: dict[str, Any] = {}
    for path, dataset in found.items():
        if path[0] == "layers":
            continue
        layer, *rest = path[1:] if len(inner[path[0]]) > 1 else path  # in a model in the model
        _add(weights, f"{layer}/{rest[-1].removesuffix(':0')}" if rest else layer, dataset)
    return _with_classifier(weights)


def _with_classifier(weights):
    """The same, with the one layer that is called otherwise than in Keras as its classifier."""
    layers = {name.partition("/")[0] for name in weights}
    strangers = layers - set(network(stages_of(layers)))
    if "predictions" in layers or len(strangers) != 1:
        return weights
    (own,) = strangers
    return {re.sub(rf"^{re.escape(own)}/", "predictions/", name): weights[name] for name in weights}


def _innermost(found: Mapping) -> dict:
    """The datasets of the second arrangement by the path below the innermost `layers`."""
    inside: dict[tuple[str, ...], Any] = {}
    for path, dataset in found.items():
        if path[0] == "layers":  # others are of the optimiser
            start = max(at for at, name in enumerate(path) if name == "layers")
            _add(inside, path[start:], dataset)
    return inside


def _add(weights, name, dataset):
    if name in weights:
        raise Fault(f"has two weights {name if isinstance(name, str) else '/'.join(name)}")
    weights[name] = dataset


def _of_numbered(found: Mapping, names: Mapping[str, str]) -> dict:
    """The datasets of the second arrangement by layer and weight."""
    weights = {}
    for (top, *path), dataset in found.items():
        match = NUMBERED.fullmatch(path[0]) if path else None
        if not match or path[1:-1] != ["vars"] or path[0] not in names:
            raise Fault(f"has {'/'.join((top, *path))}, which no ResNetV2 of Keras has")
        _, fields = KINDS[match[1]]
        layer, number = names[path[0]], path[-1]
        if number not in map(str, range(len(fields))):
            raise Fault(f"has a weight {number} of layer {layer}, which has {len(fields)} at most")
        weights[f"{layer}/{fields[int(number)]}"] = dataset
    return weights


def _place(layer: str):
    match = NUMBERED.fullmatch(layer)
    if not match:
        raise Fault(f"has layers/{layer}, which no ResNetV2 of Keras has")
    return match[1], int(match[2] or 0)


def _by_order(found: Mapping) -> dict[str, str]:
    """The names that layers have in a ResNetV2 whose convolutions have biases as these have.

    Keras too goes by the order. It notes names as attributes, but text in HDF5 that is damaged can
    end the process that reads it.
    """
    numbered = sorted({path[1] for path in found if len(path) > 1}, key=_place)
    kinds = {kind: [name for name in numbered if _place(name)[0] == kind] for kind in KINDS}
    text = "".join(
        "b" if ("layers", conv, "vars", "1") in found else "-" for conv in kinds["conv2d"]
    )
    # A stem, then units of two convolutions without a bias and one with; a projection before the
    # last one of a stage's first unit.
    if not re.fullmatch(r"b(?:--bb(?:--b(?!b))*)+", text):
        raise Fault("has not the convolutions of a ResNetV2 of Keras")
    stages = [stage.count("--") for stage in re.findall(r"--bb(?:--b(?!b))*", text)]
    names = {}
    for name, kind in _weighted(stages).items():
        if kinds[kind]:
            names[kinds[kind].pop(0)] = name
        elif name != "predictions":  # which features alone lack
            raise Fault(f"has no weights of {name}")
    return names


def _weighted(stages: Sequence[int]) -> dict[str, str]:
    """The layers with weights of a ResNetV2 as Keras lists them, and their kinds."""
    layers = network(stages).items()
    return {name: CLASSES[layer.kind] for name, layer in layers if layer.kind in CLASSES}


def _array(data: bytes, name: str, dataset) -> np.ndarray:
    """A view of the file where the dataset lies."""
    from h5py import h5d

    layer, _, weight = name.partition("/")
    if not NAME.fullmatch(layer) or not NAME.fullmatch(weight):
        raise Fault(f"has a name, {quote(name)}, that is no weight's")
    stored, offset = dataset.id.get_create_plist(), dataset.id.get_offset()
    if stored.get_layout() != h5d.CONTIGUOUS or stored.get_external_count() or offset is None:
        raise Fault(f"has {name} compressed, in pieces or elsewhere; save it again with Keras")
    if dataset.dtype != np.dtype("<f4"):
        raise Fault(f"has {name} as {quote(str(dataset.dtype))}; only float32 is read")
    shape = dataset.shape
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise Fault(f"has {name} of shape {shape}")
    if 4 * math.prod(shape) > len(data) - offset:
        raise Fault(f"is cut off: {name} should have {4 * math.prod(shape)} bytes")
    return np.frombuffer(data, "<f4", math.prod(shape), offset).reshape(shape)


def _line(error: Exception) -> str:
    return quote(str(error).strip().partition("\n")[0])[1:-1]


# -- Writing ---------------------------------------------------------------------------------------


def write(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the weights of a ResNetV2, "LAYER/WEIGHT", for `load_weights` of Keras.

    Each array is in both arrangements, so that the file's name may end in .h5 or .weights.h5.

    Raises:
        UserError: they are of no ResNetV2 of Keras; or h5py is not installed.
        OSError: the file can't be written.
    """
    h5py = _h5py()
    weights: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer, _, weight = name.partition("/")
        weights.setdefault(layer, {})[weight] = array
    order = _weighted(stages_of(weights))
    places = {f"{layer}/{field}" for layer, kind in order.items() for field in KINDS[kind][1]}
    if strangers := set(arrays) - places:
        raise UserError(f"a .h5 file of Keras has no place for {min(strangers)}")
    if missing := set(order) - set(weights):
        raise UserError(f"a .h5 file of Keras needs weights of {min(missing)}")
    counts = dict.fromkeys(KINDS, 0)
    with h5py.File(path, "w") as file:
        # Keras loads by these orders. Without a version it would take the file for version 1's.
        file.attrs["layer_names"] = np.array(list(order), "S")
        file.attrs["keras_version"] = np.bytes_("2.0.0")
        file.create_group("vars")  # the model's own, which older versions of Keras 3 look for
        for layer, kind in order.items():
            fields = [field for field in KINDS[kind][1] if field in weights[layer]]
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([f"{layer}/{field}" for field in fields], "S")
            numbered = file.create_group(f"layers/{_numbered(kind, counts[kind])}/vars")
            counts[kind] += 1
            for number, field in enumerate(fields):
                group[f"{layer}/{field}"] = weights[layer][field]
                numbered[str(number)] = group[f"{layer}/{field}"]
