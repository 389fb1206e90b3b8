"""The product of training: NAME-symbol.json, NAME-0000.params and manifest.json in one folder."""

from __future__ import annotations

import errno
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2 import __version__
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import sha256, whole_folder, write_json
from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec


def save_parameters(net: ResNetV2, path: str | Path) -> None:
    """Writes every parameter in MXNet's format, as "arg:NAME" or "aux:NAME", in float32.

    Raises:
        OSError: the file can't be written, or not whole.
    """
    mx.nd.waitall()  # moving statistics are still being written otherwise
    values = {
        f"{'aux' if is_statistic(name) else 'arg'}:{name}": parameter.data(
            parameter.list_ctx()[0]
        ).astype("float32")
        for name, parameter in net.collect_params().items()
    }
    try:
        mx.nd.save(str(path), values)
        # MXNet's writer does not notice a full disk; its reader does.
        whole = set(mx.nd.load(str(path))) == set(values)
    except mx.MXNetError:
        whole = False
    if not whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def load_parameters(net: ResNetV2, path: str | Path) -> None:
    """Initialises `net` on the CPU from what `save_parameters` wrote.

    Raises:
        UserError: the file is no parameter file, or does not fit the network.
    """
    try:
        values = mx.nd.load(str(path))
        values = {name.partition(":")[2]: value for name, value in values.items()}
    except (mx.MXNetError, ValueError, AttributeError):
        raise UserError(f"{path} is not an MXNet parameter file") from None
    parameters = net.collect_params()
    for name in sorted(set(parameters) ^ set(values)):
        side = "is missing in" if name in parameters else "is not this network's, but in"
        raise UserError(f"parameter {name} {side} {path}")
    for name, parameter in parameters.items():
        if values[name].shape != parameter.shape:
            raise UserError(
                f"parameter {name} in {path} has shape {values[name].shape}, not {parameter.shape}"
            )
    net.initialize(ctx=mx.cpu(), force_reinit=True)
    for name, parameter in parameters.items():
        parameter.set_data(values[name])


@dataclass(frozen=True)
class Artifact:
    """A symbol and its parameters, with a manifest if they are an export of ours."""

    symbol: Path
    params: Path
    manifest: dict | None

    @property
    def name(self) -> str:
        return self.symbol.name[: -len("-symbol.json")]

    @property
    def folder(self) -> Path:
        return self.symbol.parent

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image. Only with a manifest."""
        return tuple(self.manifest["input"]["shape"])


def export(net: ResNetV2, folder: str | Path, image_shape: tuple, **details) -> Artifact:
    """Writes `net`, initialised on the CPU, as an export whose output is the logits.

    The manifest also holds logits that the network itself, not the exported pair, gives for the
    images of `reference_images`.

    Args:
        folder: what takes the export; an export already there is replaced.
        image_shape: (channels, height, width) that the manifest tells servers.
        details: more entries of the manifest; `input` adds to the input's description.

    Raises:
        OSError: the folder can't be written to; what it held is still there.
    """
    name, image_shape = net.spec.name, tuple(image_shape)
    with whole_folder(folder) as temporary:
        symbol = temporary / f"{name}-symbol.json"
        params = temporary / f"{name}-0000.params"
        symbol.write_text(net(mx.sym.var("data")).tojson(), encoding="utf-8")
        save_parameters(net, params)
        manifest = {
            "format": 1,
            "name": name,
            "output": "logits",
            **details,
            "input": {
                "name": "data",
                "shape": image_shape,
                "layout": "NCHW",
                "colour": "RGB",
                **details.get("input", {}),
            },
            "spec": net.spec.to_dict(),
            "reference": {"logits": net(mx.nd.array(reference_images(image_shape))).asnumpy()},
            "versions": {
                "gluon_resnetv2": __version__,
                "mxnet": mx.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "sha256": {file.name: sha256(file) for file in (symbol, params)},
        }
        write_json(temporary / "manifest.json", manifest)
    return load(folder)


def export_run(run: str | Path, folder: str | Path | None = None) -> Artifact:
    """Exports a run's last checkpoint to `folder`, by default RUN/export.

    Raises:
        UserError: `run` holds no checkpoint.
        OSError: as `export`.
    """
    run = Path(run)
    found = sorted(run.glob("checkpoints/step-*/state.json"))
    if not found:
        raise UserError(f"{run} holds no checkpoint; name the folder of a run, such as runs/NAME")
    state = json.loads(found[-1].read_text(encoding="utf-8"))
    net = ResNetV2(Spec.from_dict(state["spec"]))
    load_parameters(net, found[-1].parent / "net.params")
    details = {key: state[key] for key in ("input", "classes", "recipe", "metrics")}
    return export(net, folder or run / "export", state["input"]["shape"], **details)


def load(path: str | Path) -> Artifact:
    """Finds an export and checks its files against the manifest.

    Args:
        path: a folder of an export or of a run, or the -symbol.json of any pair of files.

    Raises:
        UserError: there is no pair of files, or it is not what the manifest says.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; name an export's folder")
    if path.is_dir() and (path / "export").is_dir():
        path = path / "export"
    symbols = sorted(path.glob("*-symbol.json")) if path.is_dir() else [path]
    if len(symbols) != 1 or not symbols[0].name.endswith("-symbol.json"):
        raise UserError(f"{path} is no export: it needs one NAME-symbol.json, and its parameters")
    symbol = symbols[0]
    params = sorted(symbol.parent.glob(f"{symbol.name[: -len('-symbol.json')]}-*.params"))
    if not params:
        raise UserError(f"{symbol} has no .params file beside it")
    artifact = Artifact(symbol, params[-1], None)
    if not (symbol.parent / "manifest.json").exists():
        return artifact
    return Artifact(symbol, params[-1], _checked_manifest(artifact))


def _checked_manifest(artifact: Artifact) -> dict:
    path = artifact.folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sums = {
            file.name: manifest["sha256"][file.name] for file in (artifact.symbol, artifact.params)
        }
        _ = manifest["spec"], manifest["input"]["shape"], manifest["reference"]["logits"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged or describes other files; export again") from None
    for name, expected in sums.items():
        if sha256(artifact.folder / name) != expected:
            raise UserError(
                f"{artifact.folder / name} is not the file that was exported (its SHA-256 differs "
                "from the manifest's); export again"
            )
    return manifest


def reference_images(image_shape: tuple, count: int = 4) -> np.ndarray:
    """The same (count, *image_shape) normal numbers everywhere, in float32."""
    return np.random.RandomState(0).normal(size=(count, *image_shape)).astype("float32")
