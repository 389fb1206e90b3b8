"""Weights of other implementations to ours, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2 import interop
from gluon_resnetv2.checkpoint import set_parameters
from gluon_resnetv2.engines.reference import logits, reference_images
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export_parameters
from gluon_resnetv2.files import recover_folder, sha256, whole_file
from gluon_resnetv2.formats import weights
from gluon_resnetv2.formats.artifact import Artifact, load
from gluon_resnetv2.formats.params_file import read_arrays
from gluon_resnetv2.interop.layout import Arrays, Layout, shapes
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.scores import relative_difference
from gluon_resnetv2.spec import IMAGE_SIZES, Spec

LAYOUTS = {
    name: getattr(import_module(f"{interop.__name__}.{module}"), name.upper().replace("-", "_"))
    for name, module in interop.LAYOUTS.items()
}
TOLERANCE = 1e-4  # largest difference from the source's logits over the largest of these


def detect(arrays: Arrays, path: Path, classes: int = 0) -> tuple[Layout, Arrays, Spec, Arrays]:
    """The one layout whose names and shapes the arrays of a file have, and `fit`.

    Raises:
        UserError: none has, or more than one.
    """
    fits, faults = [], []
    for layout in LAYOUTS.values():
        names, has_one = layout.canonical(arrays), False
        try:
            layout.network(names, classes)
            has_one = True
            fits.append((layout, *fit(layout, arrays, classes)))
        except UserError as error:
            faults.append(((has_one, layout.count_known(names)), layout.name, str(error)))
    if len(fits) > 1:
        which = " or ".join(layout.name for layout, *_ in fits)
        raise UserError(f"{path} may be of layout {which}; say which: --from")
    if fits:
        found = fits[0][0]
        if found.namesake:
            raise UserError(
                f"{path} may be of layout {found.name}, or of {found.namesake}, which computes "
                f"otherwise; if you know that it is not: --from {found.name}"
            )
        return fits[0]
    _, nearest, fault = max(faults, key=lambda fault: fault[0])
    raise UserError(f"{path} is of no layout that is known. For {nearest}, the nearest: {fault}")


def fit(layout: Layout, arrays: Arrays, classes: int = 0) -> tuple[Arrays, Spec, Arrays]:
    """Their arrays, with a new classifier where they have none, and `Layout.to_ours`.

    Args:
        classes: of that classifier; 0: they need to have one.

    Raises:
        UserError: as `Layout.to_ours`.
    """
    theirs = layout.canonical(arrays)
    if classes:
        theirs = layout.with_classifier(theirs, classes)
    return theirs, *layout.to_ours(theirs)


@dataclass(frozen=True)
class Source:
    """Weights that were read.

    Attributes:
        layout: whose they are; None: ours.
        theirs: they as they are named there.
        ours: the same as we name and shape them.
        remarks: what was taken of a file that holds more, or is assumed of what it does not tell.
    """

    path: Path
    layout: Layout | None
    spec: Spec
    theirs: Arrays
    ours: Arrays
    remarks: Sequence[str] = ()

    def __str__(self):
        whose = self.layout.about if self.layout else "gluon_resnetv2"
        return f"{self.path}: {self.spec.name} of {whose}, {self.spec.classes} classes"


def read(
    path: str | Path,
    layout: str | None = None,
    report: Callable[[str], None] = lambda line: None,
    key: str | None = None,
    classes: int = 0,
) -> Source:
    """Weights of any layout, or of an export of ours.

    Args:
        path: a file of weights, as `weights.read` takes it; or a folder of an export or run.
        layout: a name of `LAYOUTS`; by default the one that fits.
        report: is told each of `Source.remarks`.
        key: which set of weights is taken, of a PyTorch file that holds several.
        classes: of a new classifier, where the weights have none; 0: they need to have one.

    Raises:
        UserError: the file is damaged or not of that layout.
    """
    path = Path(path)
    if not path.exists():  # a process may have been killed as it replaced an export
        recover_folder(path)
    if path.is_dir():
        if layout or key:
            option = "--from" if layout else "--weights"
            raise UserError(
                f"{path} is a folder, which only exports of ours are; leave out {option}"
            )
        return _read_export(path)
    remarks = []

    def note(line):
        report(line)
        remarks.append(line.removeprefix(f"{path}: "))

    arrays = weights.read(path, note, key)
    if layout is None:
        found, theirs, spec, ours = detect(arrays, path, classes)
    else:
        found = LAYOUTS[layout]
        try:
            theirs, spec, ours = fit(found, arrays, classes)
        except UserError as error:
            raise UserError(f"{path} is not of layout {layout}: {error}") from None
    if len(theirs) > len(arrays):
        note(f"{path}: has no classifier; a new one, still to be trained, is drawn")
    return Source(path, found, spec, theirs, ours, remarks)


def _read_export(folder):
    artifact = load(folder)
    manifest = artifact.own_manifest()
    if manifest.precision != "float32" or manifest.fused:
        raise UserError(f"{folder} is no plain float32 export, which alone can be converted")
    arrays = read_arrays(artifact.params, manifest.sha256[artifact.params.name])
    spec = manifest.spec
    # What a graph that prepares images has beside the network's own is left out.
    ours = {name: arrays[name] for name in shapes(spec) if name in arrays}
    if {name: array.shape for name, array in ours.items()} != shapes(spec):
        raise UserError(f"{artifact.params} does not fit the network in its manifest; export again")
    return Source(artifact.folder, None, spec, {}, ours)


def to_export(
    source: Source,
    folder: str | Path,
    *,
    image_size: int | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Artifact:
    """Writes the weights of another implementation as an export of ours.

    Where that implementation is installed, its logits have to be ours; the manifest says how near
    they are.

    Args:
        image_size: height and width of the images that it is for; by default 32 for networks with
            a 3x3 stem, 224 for others.
        classes: a name for each logit; by default its number.
        mean: what is subtracted from images, 0 to 255, for each channel; by default the layout's.
        report: is told, in a line, how images are prepared where the weights decide.

    Raises:
        UserError: the networks differ, or `folder` holds something else than an export.
    """
    layout, spec = source.layout, source.spec
    if layout is None:
        raise UserError(f"{source.path} is an export of ours already; name a layout: --to")
    if spec.classes == 1:
        raise UserError(
            f"{source.path} gives one number, as for a sigmoid, and exports have softmax; "
            "write it as two logits, 0 and that number"
        )
    size = image_size or IMAGE_SIZES[spec.stem]
    shape = (spec.in_channels, size, size)
    if mean is not None and len(mean) != spec.in_channels:
        raise UserError(f"a mean of {len(mean)} values does not fit {spec.in_channels} channels")
    about = {
        "file": source.path.name,
        "sha256": sha256(source.path),
        "layout": layout.name,
        **({"remarks": list(source.remarks)} if source.remarks else {}),
        **_against_theirs(source, shape),
    }
    described, why = layout.input, ""
    if layout.prepare:
        described, why = layout.prepare(spec, source.ours, size)
        if why and mean is None:
            told = ",".join(map(str, described["mean"]))
            report(f"{why}: mean {told} (--mean has another), crop {described['crop']}")
    inside = layout.prepared_inside(source.theirs)
    if inside:
        told = ", ".join(
            f"{key} {','.join(f'{number:g}' for number in numbers)}"
            for key, numbers in inside.items()
        )
        if min(inside.get("std", [1])) <= 0:
            raise UserError(f"{source.path} prepares images by {told}, which can't be")
        report(f"images are prepared as its own graph does: {told}")
        described = {**described, **inside}
    if mean is not None:
        described = {**described, "mean": mean}
    prepared = {key: _for_channels(described[key], spec.in_channels) for key in ("mean", "std")}
    return export_parameters(
        spec,
        source.ours,
        folder,
        shape,
        classes=list(map(str, range(spec.classes))) if classes is None else classes,
        source=about,
        **{**described, **prepared},
    )


def to_layout(source: Source, output: str | Path, layout: str) -> None:
    """Writes weights as another implementation would.

    Args:
        output: the file, whose name's end tells the format, as `weights.write` knows it. The
            symbolic layout has a symbol beside it.
        layout: a name of `LAYOUTS`.

    Raises:
        UserError: that implementation has no such network, or no such file.
        OSError: the file can't be written.
    """
    theirs = LAYOUTS[layout].from_ours(source.spec, source.ours)
    if layout == "symbolic":
        _write_pair(Path(output), source.spec, theirs)
    else:
        weights.write(output, theirs)


def _for_channels(values, channels):
    return values if len(values) == channels else [float(np.mean(values))] * channels


def _against_theirs(source, shape):
    """How near to the source's own logits ours are, if it is installed."""
    if source.layout.logits is None:
        return {}
    images, package = reference_images(shape), source.layout.package
    try:
        expected = source.layout.logits(source.spec, source.theirs, images)
        version = import_module(package).__version__
    except ImportError:
        return {}
    net = ResNetV2(source.spec)
    net.collect_params().setattr("grad_req", "null")  # which would take as much again
    set_parameters(net, source.ours, source.path)
    difference = relative_difference(logits(net, images), expected)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{source.path} gives other logits in {package} itself, by {difference:.1e} of the "
            "largest; nothing was written"
        )
    return {"package": f"{package} {version}", "difference": difference}


def _write_pair(output, spec, arrays):
    """The pair that MXNet's scripts train: with the softmax that they end in."""
    named = re.fullmatch(r"(.+)-\d{4}\.params", output.name)
    if not named:
        raise UserError(f"{output} is no NAME-0000.params, which a pair's file is called")
    beside = output.with_name(f"{named[1]}-symbol.json")
    for path in (output, beside):
        weights.check_new(path)
    symbol = mx.sym.SoftmaxOutput(ResNetV2(spec)(mx.sym.var("data")), name="softmax")
    with whole_file(beside) as temporary:
        temporary.write_text(symbol.tojson(), encoding="utf-8")
    weights.write_pair_params(output, arrays)
