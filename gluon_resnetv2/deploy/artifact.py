"""The product of training: NAME-symbol.json, NAME-0000.params and manifest.json in one folder."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2 import __version__
from gluon_resnetv2.checkpoint import choose_checkpoint, load_parameters, save_parameters
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import sha256, whole_folder, write_json
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import IMAGE_SIZE_MAX, Spec

FORMAT = 1  # of manifest.json
REFERENCES = 4  # images whose logits a manifest holds


@dataclass(frozen=True)
class Artifact:
    """A symbol and its parameters, with a manifest if they are an export of ours."""

    symbol: Path
    params: Path
    manifest: dict | None

    @property
    def name(self) -> str:
        return self.symbol.name.removesuffix("-symbol.json")

    @property
    def folder(self) -> Path:
        return self.symbol.parent

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image. Only with a manifest."""
        return tuple(self.manifest["input"]["shape"])


def export(
    net: ResNetV2,
    folder: str | Path,
    image_shape: tuple,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    crop: float = 1.0,
    **details,
) -> Artifact:
    """Writes `net`, initialised on the CPU, as an export whose output is the logits.

    The manifest also holds logits that the network itself, not the exported pair, gives for the
    images of `reference_images`.

    Args:
        folder: what takes the export; an export already there is replaced.
        image_shape: (channels, height, width) of the images that it is for.
        classes: a name for each logit.
        mean, std: of each channel, 0 to 255: the network is fed (image - mean) / std.
        crop: the part of an image's shorter side that is used.
        details: more entries of the manifest.

    Raises:
        UserError: `folder` holds something else than an export, or there are not as many names as
            classes.
        OSError: the folder can't be written to; what it held is still there.
    """
    name, image_shape = net.spec.name, tuple(image_shape)
    if len(classes) != net.spec.classes:
        raise UserError(f"{len(classes)} names do not fit {net.spec.classes} classes")
    _refuse_to_replace(Path(folder))
    with whole_folder(folder) as temporary:
        symbol = temporary / f"{name}-symbol.json"
        params = temporary / f"{name}-0000.params"
        symbol.write_text(net(mx.sym.var("data")).tojson(), encoding="utf-8")
        save_parameters(net, params, dtype="float32")
        manifest = {
            "format": FORMAT,
            "name": name,
            "output": "logits",
            "classes": list(classes),
            "input": {
                "name": "data",
                "shape": image_shape,
                "layout": "NCHW",
                "colour": "RGB",
                "mean": mean,
                "std": std,
                "crop": crop,
            },
            **details,
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


def _refuse_to_replace(folder: Path) -> None:
    """Lets a folder be replaced that is missing, empty, or an export and nothing else."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    export = {name for name in names if name.endswith(("-symbol.json", ".params"))}
    others = names - export - {"manifest.json"}
    if others or (names and "manifest.json" not in names):
        raise UserError(f"{folder} exists and is no export of ours; name a new folder")


def export_run(
    run: str | Path, folder: str | Path | None = None, checkpoint: str = "last"
) -> Artifact:
    """Exports a checkpoint of a run to `folder`, by default RUN/export.

    Args:
        checkpoint: "last", "best" or the number of a step.

    Raises:
        UserError: `run` holds no such checkpoint; or as `export`.
        OSError: as `export`.
    """
    net, state = load_run(run, checkpoint)
    details = {key: state[key] for key in ("classes", "recipe", "metrics", "step")}
    details.update((key, state["input"][key]) for key in ("mean", "std", "crop"))
    return export(net, folder or Path(run) / "export", state["input"]["shape"], **details)


def load_run(
    run: str | Path, checkpoint: str = "last", devices: Sequence[mx.Context] | None = None
) -> tuple[ResNetV2, dict]:
    """The network of a run's checkpoint, on `devices`, and its state.

    Raises:
        UserError: `run` holds no such checkpoint.
    """
    path, state = choose_checkpoint(run, checkpoint, warn=partial(print, file=sys.stderr))
    net = ResNetV2(Spec.from_dict(state["spec"]))
    load_parameters(net, path / "net.params", devices)
    return net, state


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
    named = re.escape(symbol.name.removesuffix("-symbol.json")) + r"-\d{4}\.params"
    params = sorted(p for p in symbol.parent.iterdir() if re.fullmatch(named, p.name))
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
        known = manifest["format"] == FORMAT
        sums = {
            file.name: manifest["sha256"][file.name] for file in (artifact.symbol, artifact.params)
        }
        _check_values(manifest)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged or describes other files; export again") from None
    if not known:
        raise UserError(f"{path} has a format that this version does not know; export again")
    for name, expected in sums.items():
        if sha256(artifact.folder / name) != expected:
            raise UserError(
                f"{artifact.folder / name} is not the file that was exported (its SHA-256 differs "
                "from the manifest's); export again"
            )
    return manifest


def _check_values(manifest: dict) -> None:
    """Raises one of many errors where the manifest can't be what `export` wrote."""
    spec, described = Spec.from_dict(manifest["spec"]), manifest["input"]
    channels, height, width = described["shape"]
    logits = np.asarray(manifest["reference"]["logits"], "float32")
    numbers = np.asarray([described["mean"], described["std"]], "float64")
    sane = (
        channels == spec.in_channels
        and all(type(size) is int and 1 <= size <= IMAGE_SIZE_MAX for size in (height, width))
        and numbers.shape == (2, channels)
        and np.isfinite(numbers).all()
        and (numbers[1] > 0).all()
        and 0.1 <= described["crop"] <= 1
        and [type(name) for name in manifest["classes"]] == [str] * spec.classes
        and logits.shape == (REFERENCES, spec.classes)
    )
    if not sane:
        raise ValueError


def reference_images(image_shape: tuple) -> np.ndarray:
    """The same (4, *image_shape) normal numbers everywhere, in float32."""
    return np.random.RandomState(0).normal(size=(REFERENCES, *image_shape)).astype("float32")
