"""Weights of other implementations to ours, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import mxnet as mx

from gluon_resnetv2.checkpoint import set_parameters
from gluon_resnetv2.engines.reference import logits, reference_images
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export_parameters
from gluon_resnetv2.files import sha256, whole_file
from gluon_resnetv2.formats import weights
from gluon_resnetv2.formats.artifact import Artifact
from gluon_resnetv2.interop.source import LAYOUTS, Source
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.scores import relative_difference
from gluon_resnetv2.spec import IMAGE_SIZES

TOLERANCE = 1e-4  # largest difference from the source's logits over the largest of these


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

    Where that implementation is installed, its logits are compared with this package's, and have to
    be the same; the manifest says to what difference.

    Args:
        image_size: height and width of the images that the export takes; by default 32 for
            networks with a 3x3 stem, 224 for others.
        classes: a name for each logit; by default the source's name, or else the logit's number.
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
        **_file(source.path),
        "layout": layout.name,
        **({"remarks": list(source.remarks)} if source.remarks else {}),
        **_against_theirs(source, shape),
    }
    return export_parameters(
        spec,
        source.ours,
        folder,
        shape,
        classes=classes or source.classes or list(map(str, range(spec.classes))),
        source=about,
        **source.preparation(size, mean, report),
    )


def to_layout(source: Source, output: str | Path, layout: str) -> None:
    """Writes weights as another implementation would.

    Args:
        output: the file to write, whose suffix tells its format to `weights.write`. In the symbolic
            layout a -symbol.json is written beside it.
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


def _file(path):
    """What a manifest says of where weights came from: a file, or a name of another package's."""
    return {"file": path.name, "sha256": sha256(path)} if isinstance(path, Path) else {"name": path}


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
