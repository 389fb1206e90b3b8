"""Writing an export: the pair in the form that is wanted, and the manifest that describes it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from gluon_resnetv2 import __version__
from gluon_resnetv2.checkpoint import (
    load_run,
    parameters_of,
    set_parameters,
)
from gluon_resnetv2.engines import forms
from gluon_resnetv2.engines.images import normalise
from gluon_resnetv2.engines.reference import (
    compare,
    float32_tolerance,
    logits,
    recorded,
    reference_images,
)
from gluon_resnetv2.engines.runtimes import symbol_block
from gluon_resnetv2.errors import UserError, last_line
from gluon_resnetv2.exports import SERVERS
from gluon_resnetv2.exports.mlserver_settings import settings_for
from gluon_resnetv2.exports.onnx import export_onnx
from gluon_resnetv2.files import sha256, whole_folder, write_json
from gluon_resnetv2.formats.artifact import (
    CALIBRATION,
    CALIBRATION_IMAGES,
    Artifact,
    load,
)
from gluon_resnetv2.formats.graph_file import seal
from gluon_resnetv2.formats.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    PREPARING,
    Input,
    Manifest,
    write_manifest,
)
from gluon_resnetv2.formats.params_file import save_arrays
from gluon_resnetv2.formats.precisions import PRECISIONS
from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec
from gluon_resnetv2.untrusted import read_bytes, read_json

SERVER_FILES = ("model-settings.json", "settings.json")  # what `--for mlserver` writes


@dataclass(frozen=True)
class Form:
    """The form in which an export's graph is written.

    Attributes:
        values: what the graph takes, "normalised" images, or "pixels" in 0..255, which it
            normalises itself.
        output: what the graph gives, "logits" or "probabilities".
        precision: what the graph computes in, a name of `formats.precisions.PRECISIONS`.
        fused: whether the graph is written as MXNet's oneDNN backend fuses it; int8 always is.
    """

    values: str = "normalised"
    output: str = "logits"
    precision: str = "float32"
    fused: bool = False


def export(net: ResNetV2, folder: str | Path, image_shape: tuple, **options: Any) -> Artifact:
    """Writes a network with the parameters that it has now as an export.

    Args:
        net: the network, initialised.
        folder, image_shape: as `export_parameters` takes them.
        options: the other arguments of `export_parameters`.

    Raises:
        UserError, OSError: as `export_parameters`.
    """
    return export_parameters(net.spec, parameters_of(net), folder, image_shape, **options)


def export_parameters(
    spec: Spec,
    parameters: Mapping[str, mx.nd.NDArray | np.ndarray],
    folder: str | Path,
    image_shape: tuple,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    crop: float = 1.0,
    interpolation: str = "bilinear",
    stretch: bool = False,
    form: Form = Form(),
    calibration: Callable[[], np.ndarray] | None = None,
    onnx: bool = False,
    server: str | None = None,
    **details: Any,
) -> Artifact:
    """Writes a network as an export.

    The manifest holds what the pair can be compared with: outputs that the network itself, not what
    was exported, gives in float32.

    Args:
        spec: the network.
        parameters: all of the network's by name, as float32.
        folder: where the export is written; an export already there is replaced.
        image_shape: (channels, height, width) of the images that the export takes.
        classes: a name for each logit.
        mean, std: of each channel, 0 to 255: the network is fed (image - mean) / std.
        crop: the part of an image's shorter side that is used.
        interpolation, stretch: how images are scaled, as `pixels.centre` takes it.
        form: what the graph takes, gives and computes in.
        calibration: gives real images, (N, C, H, W) uint8. Other precisions than float32 need them:
            they are judged by these images' classes, and int8 takes its ranges from them.
        onnx: whether to write NAME.onnx too, for other runtimes than MXNet's.
        server: "mlserver" to write the settings that MLServer needs beside the pair.
        details: more entries of the manifest.

    Raises:
        UserError: `folder` holds something else than an export, or the arguments don't fit each
            other or the network.
        OSError: the folder can't be written to; what it held is still there.
    """
    name, folder = spec.name, Path(folder).resolve()  # what a link leads to is replaced
    if len(classes) != spec.classes:
        raise UserError(f"{len(classes)} names do not fit {spec.classes} classes")
    if server not in (None, *SERVERS):
        raise UserError(f"an export can be for {', '.join(SERVERS)}, not for {server}")
    if form.precision not in PRECISIONS:
        raise UserError(f"a precision is one of {', '.join(PRECISIONS)}, not {form.precision}")
    if onnx and (form.fused or form.precision != "float32"):
        what = "a fused graph" if form.fused else form.precision
        raise UserError(f"ONNX is written from the plain float32 graph, not from {what}")
    pixels = None
    if form.precision != "float32":
        pixels = _real_images(form.precision, calibration, tuple(image_shape))
    _refuse_to_replace(folder)
    manifest = Manifest(
        name=name,
        output=form.output,
        precision=form.precision,
        fused=form.fused or PRECISIONS[form.precision].fused,
        classes=tuple(classes),
        input=Input(
            shape=tuple(image_shape),
            colour="grey" if spec.in_channels == 1 else "RGB",
            values=form.values,
            mean=tuple(mean),
            std=tuple(std),
            crop=crop,
            interpolation=interpolation,
            stretch=stretch,
        ),
        spec=spec,
        details=details,
    )
    with whole_folder(folder) as temporary:
        symbol = temporary / f"{name}-symbol.json"
        params = temporary / f"{name}-0000.params"
        trained, images = ResNetV2(spec), reference_images(image_shape)
        trained.collect_params().setattr("grad_req", "null")  # which would take as much again
        set_parameters(trained, parameters, name)
        reference = logits(trained, images)
        if pixels is not None:
            seen = logits(trained, normalise(pixels, mean, std))
            _save_calibration(temporary / CALIBRATION, pixels, seen)
        graph, arguments, statistics = _graph(trained, manifest, pixels)
        if onnx:
            arrays = {**arguments, **statistics}
            export_onnx(graph, arrays, manifest, temporary / f"{name}.onnx")
        save_arrays(
            params,
            {f"arg:{name}": array for name, array in arguments.items()}
            | {f"aux:{name}": array for name, array in statistics.items()},
        )
        agreement = PRECISIONS[form.precision].agreement
        tolerance = (
            float32_tolerance(trained, images, reference)
            if agreement is None
            else {"agreement": agreement}
        )
        del trained, arguments, statistics  # as much as the file, which is read for its seal
        symbol.write_text(seal(forms.to_json(graph), params), encoding="utf-8")
        manifest = replace(
            manifest,
            reference={"logits": reference},
            tolerance=tolerance,
            versions={
                "gluon_resnetv2": __version__,
                "mxnet": mx.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            sha256={file.name: sha256(file) for file in sorted(temporary.iterdir())},
        )
        write_manifest(temporary, manifest.to_dict())
        artifact = load(temporary)
        if pixels is not None:
            _judge(artifact)
        if server:
            for file, settings in settings_for(artifact).items():
                write_json(temporary / file, settings)
    return load(folder)


def _judge(artifact):
    """Refuses what loses too much to its precision, before it replaces an export that did not."""
    images, logits, tolerance = recorded(artifact)
    manifest = artifact.own_manifest()
    precision, output = manifest.precision, manifest.output
    try:
        found = symbol_block(str(artifact.symbol), str(artifact.params), images)
    except mx.MXNetError as error:
        raise UserError(
            f"{precision} can't be computed here, so not be checked: {last_line(error)}"
        ) from None
    check = compare(precision, found, logits, tolerance, output)
    if not check.passed:
        raise UserError(
            f"{precision} costs this network too much: it has float32's class for "
            f"{100 * (check.agreement or 0):.1f} % of {len(images)} images, and should for "
            f"{100 * tolerance['agreement']:.1f} %; export another precision"
        )


def _real_images(precision, calibration, image_shape):
    images = calibration() if calibration else np.empty(0)
    if not 1 <= len(images) <= CALIBRATION_IMAGES:
        raise UserError(
            f"{precision} needs 1 to {CALIBRATION_IMAGES} real images, to be held against float32"
        )
    if images.shape[1:] != image_shape:
        raise UserError(f"the network takes {image_shape} images, not {images.shape[1:]}")
    return images


def _graph(net, manifest, pixels):
    """The symbol of a network in the form that its manifest says, its parameters and statistics."""
    arguments: dict[str, mx.nd.NDArray] = {}
    statistics: dict[str, mx.nd.NDArray] = {}
    for name, parameter in net.collect_params().items():
        (statistics if is_statistic(name) else arguments)[name] = parameter.data()
    graph: forms.Graph = net(mx.sym.var("data")), arguments, statistics
    values, mean, std = manifest.input.values, manifest.input.mean, manifest.input.std
    if values == "pixels":
        graph = forms.with_preprocessing(*graph, mean, std)
    if pixels is not None:
        taken = pixels if values == "pixels" else normalise(pixels, mean, std)
        graph = forms.IN[manifest.precision](graph, taken.astype("float32"))
    if manifest.output == "probabilities":
        graph = forms.with_softmax(*graph)
    if manifest.fused and not PRECISIONS[manifest.precision].fused:
        graph = forms.fused(*graph)
    return graph


def _save_calibration(path, pixels, logits):
    arrays = {"pixels": mx.nd.array(pixels, dtype="uint8"), "logits": mx.nd.array(logits)}
    save_arrays(path, {f"arg:{name}": array for name, array in arrays.items()})


def _refuse_to_replace(folder: Path) -> None:
    """Refuses a folder that holds anything but an export."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names and not names <= _export_files(folder / MANIFEST):
        raise UserError(f"{folder} exists and is no export of ours; name a new folder")


def _export_files(manifest: Path) -> set[str]:
    """The names that an export with this manifest may have in its folder."""
    try:
        values = read_json(read_bytes(manifest, LARGEST_MANIFEST))
        name, sums = values["name"], values["sha256"]
        known = f"{name}-symbol.json" in sums and "spec" in values
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        return set()
    archive = f"{name}.mar"  # which 0.1 wrote for multi-model-server
    return {manifest.name, *sums, *SERVER_FILES, archive}


def export_run(
    run: str | Path,
    folder: str | Path | None = None,
    checkpoint: str | None = None,
    calibration: Callable[[Input], np.ndarray] | None = None,
    **options: Any,
) -> Artifact:
    """Exports a checkpoint of a run to `folder`, by default RUN/export.

    Args:
        checkpoint: "last", "best" or the number of a step; by default what the run's recipe says.
        calibration: as of `export_parameters`, given how the run's images are prepared.
        options: `form`, `onnx` and `server` of `export_parameters`.

    Raises:
        UserError: `run` holds no such checkpoint; or as `export_parameters`.
        OSError: as `export_parameters`.
    """
    net, state = load_run(run, "last" if checkpoint is None else checkpoint)
    if checkpoint is None and state.recipe.get("export", "last") != "last":
        net, state = load_run(run, state.recipe["export"])
    details = {key: getattr(state, key) for key in ("classes", "recipe", "metrics", "step")}
    details.update((key, getattr(state.input, key)) for key in PREPARING)
    if calibration:
        options["calibration"] = partial(calibration, state.input)
    folder = folder or Path(run) / "export"
    return export(net, folder, state.input.shape, **options, **details)
