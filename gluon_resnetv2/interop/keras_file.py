"""Keras' files of weights, read and written with h5py alone: nothing in one is ever run.

HDF5 in one of two arrangements:

    conv1_conv/.../kernel       .h5: a group for each layer, by name; `:0` may follow. In a file of
                                a whole model, these groups are in `model_weights`.
    layers/conv2d_3/vars/0      .weights.h5: a group for each layer, counted by kind.

A .keras file is a zip archive of the second and of the model's description in JSON, of which we
read the layers' names.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gluon_resnetv2.deploy.untrusted import Fault, quote, read_bytes, read_json, told_of
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.interop import keras_config

LARGEST = 4 << 30  # bytes of a file
MOST = 100_000  # objects in an HDF5 file, members of an archive
MOST_TEXT = 4 << 20  # bytes of a model's description
DEEPEST = 8  # groups in groups
ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
MEMBER = b"PK\x01\x02"  # what each member of an archive is announced by
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
NUMBERED = re.compile(rf"({'|'.join(KINDS)})(?:_(\d{{1,5}}))?")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of a file, "LAYER/WEIGHT", as read-only float32 arrays.

    Raises:
        UserError: the file is missing, damaged or of another kind; or h5py is not installed.
    """
    with told_of(path):
        data, names = read_bytes(path, LARGEST), None
        if data.startswith(ZIP):
            data, names = _unzipped(data)
        if not data.startswith(HDF5):
            raise Fault("is neither an HDF5 file nor a .keras archive of one")
        return _arrays(data, names)


def _unzipped(data: bytes) -> tuple[bytes, dict[str, str]]:
    """The HDF5 file in a .keras archive, and the names of its layers."""
    if data.count(MEMBER) > MOST:
        raise Fault("is an archive of too many files")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in map(archive.getinfo, ("config.json", "model.weights.h5")):
                # Keras compresses neither; what expands could expand to anything.
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                    raise Fault(f"has {member.filename} compressed; save it again with Keras")
            config = read_json(archive.read("config.json"))
            keras_config.check(config)
            names = _described(config)
            return archive.read("model.weights.h5"), names
    except Fault:
        raise
    except KeyError as error:
        raise Fault(f"is no .keras archive: {error.args[0]}") from None
    except DAMAGE as error:
        raise Fault(f"is a damaged archive: {_line(error)}") from None


def _described(config: object) -> dict[str, str]:
    """The name of each layer with weights, by its kind and number: {"conv2d_3": NAME}."""
    names, counts = {}, dict.fromkeys(KINDS, 0)
    classes = {kind: layer for layer, (kind, _) in KINDS.items()}
    try:
        for layer in config["config"]["layers"]:
            if layer["class_name"] in classes:
                kind = classes[layer["class_name"]]
                number, counts[kind] = counts[kind], counts[kind] + 1
                names[_numbered(kind, number)] = layer["config"]["name"]
    except (KeyError, TypeError):
        raise Fault("has a config.json that describes no model of layers") from None
    return names


def _numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


# -- HDF5 ------------------------------------------------------------------------------------------


def _arrays(data: bytes, names: Mapping[str, str] | None) -> dict[str, np.ndarray]:
    h5py = _h5py()
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            found = dict(_datasets(file))
            tops = {path[0] for path in found}
            if "model_weights" in tops:
                keras_config.check(_config(data))
                inside = {path[1:]: found[path] for path in found if path[0] == "model_weights"}
                weights = _of_named(inside)
            elif "layers" in tops and "conv1_conv" not in tops:
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
    return arrays


def _config(data: bytes) -> object:
    """The description of the whole model in an HDF5 file.

    Found as the text that it is: damaged, an attribute could end the process that reads it.
    """
    start = re.search(
        rb'\{"(?:module": "[\w.]*", ")?class_name": "(?:Functional|Model|Sequential)"', data
    )
    if not start:
        raise Fault("holds a whole model without its model_config; save it again with Keras")
    text = data[start.start() : start.start() + MOST_TEXT].decode("utf-8", "replace")
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        raise Fault("has a damaged model_config") from None


def _h5py():
    try:
        import h5py
    except ImportError:
        raise UserError("Keras' files of weights need h5py; pip install h5py") from None
    return h5py


def _datasets(file) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every dataset with the names that lead to it."""
    h5py, left = _h5py(), MOST

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
    weights = {}
    for (layer, *path), dataset in found.items():
        if layer == "layers":
            continue
        name = f"{layer}/{path[-1].removesuffix(':0')}" if path else layer
        if name in weights:
            raise Fault(f"has two weights {name}: of a model in a model, save the inner one")
        weights[name] = dataset
    return weights


def _of_numbered(found: Mapping, names: Mapping[str, str]) -> dict:
    """The datasets of the second arrangement by layer and weight."""
    weights = {}
    for (top, *path), dataset in found.items():
        if top != "layers":  # of the optimiser
            continue
        match = NUMBERED.fullmatch(path[0])
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
    numbered = sorted({path[1] for path in found if path[0] == "layers"}, key=_place)
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
    for name in _in_order(stages):
        kind = _kind(name)
        if not kinds[kind]:
            raise Fault(f"has no weights of {name}")
        names[kinds[kind].pop(0)] = name
    return names


def _in_order(stages: Sequence[int]) -> list[str]:
    """The layers with weights of a ResNetV2 as Keras lists them."""
    names = ["conv1_conv"]
    for stage, units in enumerate(stages, 2):
        for unit in range(1, units + 1):
            projection = ["0_conv"] if unit == 1 else []
            layers = ("preact_bn", "1_conv", "1_bn", "2_conv", "2_bn", *projection, "3_conv")
            names += [f"conv{stage}_block{unit}_{layer}" for layer in layers]
    return [*names, "post_bn", "predictions"]


def _kind(layer: str) -> str:
    if layer.endswith("_conv"):
        return "conv2d"
    return "batch_normalization" if layer.endswith("_bn") else "dense"


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
    weights = {}
    for name, array in arrays.items():
        layer, _, weight = name.partition("/")
        weights.setdefault(layer, {})[weight] = array
    order = _in_order(_stages(weights))
    places = {f"{layer}/{field}" for layer in order for field in KINDS[_kind(layer)][1]}
    if strangers := set(arrays) - places:
        raise UserError(f"a .h5 file of Keras has no place for {min(strangers)}")
    if missing := set(order) - set(weights):
        raise UserError(f"a .h5 file of Keras needs weights of {min(missing)}")
    counts = dict.fromkeys(KINDS, 0)
    with h5py.File(path, "w") as file:
        # Keras loads by these orders. Without a version it would take the file for version 1's.
        file.attrs["layer_names"] = np.array(order, "S")
        file.attrs["keras_version"] = np.bytes_("2.0.0")
        file.create_group("vars")  # the model's own, which older versions of Keras 3 look for
        for layer in order:
            kind = _kind(layer)
            fields = [field for field in KINDS[kind][1] if field in weights[layer]]
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([f"{layer}/{field}" for field in fields], "S")
            numbered = file.create_group(f"layers/{_numbered(kind, counts[kind])}/vars")
            counts[kind] += 1
            for number, field in enumerate(fields):
                group[f"{layer}/{field}"] = weights[layer][field]
                numbered[str(number)] = group[f"{layer}/{field}"]


def _stages(layers: Mapping) -> list[int]:
    """How many units each stage has."""
    stages = []
    while f"conv{len(stages) + 2}_block1_1_conv" in layers:
        prefix, unit = f"conv{len(stages) + 2}_block", 1
        while f"{prefix}{unit + 1}_1_conv" in layers:
            unit += 1
        stages.append(unit)
    return stages
