"""Weights and the network that they are of, read from whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnetv2 import interop
from gluon_resnetv2.checkpoint import checkpoints, choose_checkpoint, read_checkpoint
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import recover_folder
from gluon_resnetv2.formats import pretrained, weights
from gluon_resnetv2.formats.artifact import Artifact, load
from gluon_resnetv2.formats.manifest import MANIFEST, NORMALISING, PREPARING
from gluon_resnetv2.formats.params_file import read_arrays
from gluon_resnetv2.interop import loaders
from gluon_resnetv2.interop.layout import Arrays, Layout, shapes
from gluon_resnetv2.spec import Spec

LAYOUTS = {
    name: getattr(import_module(f"{interop.__name__}.{module}"), name.upper().replace("-", "_"))
    for name, module in interop.LAYOUTS.items()
}


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True)
class Source:
    """Weights that were read.

    Attributes:
        path: what was read: a file, a folder, or a name as `loaders.load` takes it.
        layout: of the implementation that the weights come from; None: this package's own.
        spec: the network that the weights are of.
        theirs: the weights as that implementation names and shapes them.
        ours: the weights as this package names and shapes them, float32.
        remarks: what was taken of a file that holds more, or is assumed where it does not tell.
        classes: a name for each logit; None: the source has no names.
        input: how images are prepared, where the weights' own folder or package says: "mean",
            "std", "crop" and so on, as `export_parameters` takes them.
        headless: whether the weights came without a classifier, and have a new one.
    """

    path: str | Path
    layout: Layout | None
    spec: Spec
    theirs: Arrays
    ours: Arrays
    remarks: Sequence[str] = ()
    classes: tuple[str, ...] | None = None
    input: Mapping[str, Any] | None = None
    headless: bool = False

    def __str__(self):
        whose = self.layout.about if self.layout else "gluon_resnetv2"
        return f"{self.path}: {self.spec.name} of {whose}, {self.spec.classes} classes"

    def preparation(
        self,
        size: int,
        mean: Sequence[float] | None = None,
        report: Callable[[str], None] = _silent,
    ) -> dict[str, Any]:
        """How images are prepared, as `export_parameters` takes it.

        Args:
            size: height and width that the network is to see.
            mean: what is subtracted from images, 0 to 255, for each channel; by default the
                source's.
            report: is told, in a line, how images are prepared where the weights decide.

        Raises:
            UserError: the file prepares images in a way that can't be.
        """
        if self.layout is None:
            described: Mapping[str, Any] = self.input or {}
        else:
            described = self._by_layout(self.layout, size, mean, report)
        if mean is not None:
            described = {**described, "mean": mean}
        values = {key: for_channels(described[key], self.spec.in_channels) for key in NORMALISING}
        return {**described, **values}

    def _by_layout(self, layout, size, mean, report):
        described, why = layout.input, ""
        if layout.prepare:
            described, why = layout.prepare(self.spec, self.ours, size)
            if why and mean is None:
                told = ",".join(map(str, described["mean"]))
                report(f"{why}: mean {told} (--mean has another), crop {described['crop']}")
        inside = layout.prepared_inside(self.theirs)
        if inside:
            told = ", ".join(
                f"{key} {','.join(f'{number:g}' for number in numbers)}"
                for key, numbers in inside.items()
            )
            if min(inside.get("std", [1])) <= 0:
                raise UserError(f"{self.path} prepares images by {told}, which can't be")
            report(f"images are prepared as its own graph does: {told}")
        return {**described, **(self.input or {}), **inside}


def for_channels(values: Sequence[float], channels: int) -> Sequence[float]:
    """Numbers of an image's channels, for so many: their mean for each, where they are others."""
    return values if len(values) == channels else [float(np.mean(values))] * channels


def read(
    source: str | Path,
    layout: str | None = None,
    report: Callable[[str], None] = _silent,
    key: str | None = None,
    classes: int = 0,
) -> Source:
    """Weights of any layout, or of ours.

    Args:
        source: a file of weights, as `weights.read` takes it; a folder of an export, of a run or of
            a checkpoint; "timm:NAME" and the like, as `loaders.load` takes them; or a name of
            `pretrained.FOLDERS`. A path of such a name comes first.
        layout: a name of `LAYOUTS`; by default the one that fits.
        report: is told each of `Source.remarks`, and which of a name and a path was taken.
        key: which set of weights is taken, of a PyTorch file that holds several.
        classes: of a new classifier, where the weights have none; 0: they need to have one.

    Raises:
        UserError: there is no such source, it is damaged or not of that layout.
    """
    path = Path(source)
    if not path.exists():  # a process may have been killed as it replaced an export
        recover_folder(path)
    path = pretrained.find(source, report)
    if not path.exists() and interop.is_name(str(source)):
        return _read_loaded(str(source), layout, report, key, classes)
    if layout is None and key is None and _is_part_of_ours(path):
        path = path.parent
    if path.is_dir():
        if layout or key:
            option = "--from" if layout else "--weights"
            raise UserError(
                f"{path} is a folder, which only exports of ours are; leave out {option}"
            )
        return _read_folder(path)
    remarks: list[str] = []

    def note(line):
        report(line)
        remarks.append(line.removeprefix(f"{path}: "))

    arrays = weights.read(path, note, key)
    return _of_layout(path, arrays, layout, note, classes, remarks)


def _read_loaded(name, layout, report, key, classes):
    """What a package's own loader gives."""
    if key:
        raise UserError(f"{name} is no PyTorch file, and has no {key!r}; leave out --weights")
    remarks: list[str] = []

    def note(line):
        report(line)
        remarks.append(line.removeprefix(f"{name}: "))

    loaded = loaders.load(name)
    return _of_layout(name, loaded.arrays, layout or loaded.layout, note, classes, remarks, loaded)


def _of_layout(path, arrays, layout, note, classes, remarks, loaded=None):
    if layout is None:
        found, theirs, spec, ours = detect(arrays, path, classes)
    else:
        found = LAYOUTS[layout]
        try:
            theirs, spec, ours = fit(found, arrays, classes)
        except UserError as error:
            raise UserError(f"{path} is not of layout {layout}: {error}") from None
    headless = len(theirs) > len(arrays)
    if headless:
        note(f"{path}: has no classifier; a new one, still to be trained, is drawn")
    names = loaded and loaded.classes
    return Source(
        path,
        found,
        spec,
        theirs,
        ours,
        remarks,
        classes=tuple(names) if names and len(names) == spec.classes else None,
        input=loaded and loaded.input,
        headless=headless,
    )


def detect(
    arrays: Arrays, path: str | Path, classes: int = 0
) -> tuple[Layout, Arrays, Spec, Arrays]:
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


# Folders of ours


def _is_part_of_ours(path: Path) -> bool:
    """Whether a file is the parameters of an export or a checkpoint, whose folder says more."""
    told = {"net.params": "state.json"}.get(path.name, MANIFEST)
    return path.is_file() and path.suffix == ".params" and (path.parent / told).is_file()


def _read_folder(folder):
    """An export; a checkpoint; or a run, whose export comes first."""
    if (folder / "state.json").is_file():
        return _read_checkpoint(folder)
    if not checkpoints(folder):
        return _read_export(load(folder))
    if (folder / "export").is_dir():
        artifact = load(folder)
        manifest = artifact.manifest
        if manifest and _is_plain(manifest):
            return _read_export(artifact)
    path, _ = choose_checkpoint(folder, warn=_silent)
    return _read_checkpoint(path)


def _is_plain(manifest) -> bool:
    return manifest.precision == "float32" and not manifest.fused


def _read_export(artifact: Artifact) -> Source:
    manifest = artifact.own_manifest()
    if not _is_plain(manifest):
        raise UserError(
            f"{artifact.folder} is no plain float32 export, which alone can be converted"
        )
    arrays = read_arrays(artifact.params, manifest.sha256[artifact.params.name])
    # What a graph that prepares images has beside the network's own is left out.
    ours = {name: arrays[name] for name in shapes(manifest.spec) if name in arrays}
    check_fits(ours, manifest.spec, artifact.params)
    names: tuple[str, ...] | None = manifest.classes
    if "source" in manifest.details and names == tuple(map(str, range(len(manifest.classes)))):
        names = None  # a conversion numbers them that had no names
    described = {key: getattr(manifest.input, key) for key in PREPARING}
    return Source(artifact.folder, None, manifest.spec, {}, ours, classes=names, input=described)


def _read_checkpoint(folder: Path) -> Source:
    state = read_checkpoint(folder)
    ours = {
        name: array.astype(np.float32, copy=False)
        for name, array in read_arrays(folder / "net.params").items()
    }
    check_fits(ours, state.spec, folder / "net.params")
    described = {key: getattr(state.input, key) for key in PREPARING}
    return Source(folder, None, state.spec, {}, ours, classes=tuple(state.classes), input=described)


def check_fits(ours: Arrays, spec: Spec, path: str | Path) -> None:
    """Checks that parameters are a network's, by their names and shapes.

    Raises:
        UserError: some are not; the message names the first, and how many.
    """
    expected = shapes(spec)
    wrong = [
        (name, ours[name].shape if name in ours else None, expected.get(name))
        for name in (*expected, *(name for name in ours if name not in expected))
        if name not in ours or ours[name].shape != expected.get(name)
    ]
    if wrong:
        name, found, needed = wrong[0]
        what = f"has shape {found}, not {needed}" if found and needed else "is missing"
        if needed is None:
            what = "is none of that network's"
        rest = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
        raise UserError(f"{path} does not fit {spec.name}: {name} {what}{rest}")
