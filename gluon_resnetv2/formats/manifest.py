"""manifest.json, in which an export says what it is: read, checked and written here alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import plain, write_json
from gluon_resnetv2.formats.precisions import PRECISIONS
from gluon_resnetv2.pixels import INTERPOLATIONS
from gluon_resnetv2.spec import IMAGE_SIZE_MAX, Spec
from gluon_resnetv2.untrusted import Fault, check_fields, read_bytes, read_json

MANIFEST = "manifest.json"
FORMAT = 2  # of it
LARGEST_MANIFEST = 8 << 20  # bytes
LARGEST_PIXEL = 1e6  # of a mean, a deviation or its inverse
MOST_UNITS = 10_000  # of a network
REFERENCES = 4  # images whose logits a manifest holds
LARGEST_TOLERANCE = 1e-3  # of float32, as `reference.float32_tolerance` gives it

# Fields of an `Input` that say how images are prepared.
NORMALISING = ("mean", "std")
SCALING = ("interpolation", "stretch")
PREPARING = (*NORMALISING, "crop", *SCALING)


@dataclass(frozen=True, kw_only=True)
class Input:
    """What an export's graph takes, and how images are prepared for it.

    Attributes:
        name: of the graph's variable for images.
        shape: (channels, height, width) of an image.
        layout: the order of the variable's axes.
        colour: what its channels are, "RGB" or "grey".
        values: what the graph takes, "normalised" images, or "pixels" in 0..255, which it
            normalises itself.
        mean, std: of each channel, 0 to 255: the network sees (image - mean) / std.
        crop: the part of an image's shorter side that is used.
        interpolation, stretch: how images are scaled, as `pixels.centre` takes it; what 0.1 wrote
            says nothing of it.
    """

    name: str = "data"
    shape: tuple[int, int, int]
    layout: str = "NCHW"
    colour: str = "RGB"
    values: str = "normalised"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    interpolation: str = "bilinear"
    stretch: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any], channels: int) -> Input:
        """What a manifest has under "input", for a network of so many channels.

        Raises:
            Fault: it has a field that can't be one, which the message names.
        """

        def of_pixels(numbers: list, least: float = 0.0) -> bool:
            return len(numbers) == channels and all(
                type(number) in (int, float) and least <= abs(number) <= LARGEST_PIXEL
                for number in numbers
            )

        checks = {
            "name": lambda name: name == "data",
            "shape": lambda shape: (
                len(shape) == 3
                and shape[0] == channels
                and all(type(size) is int and 1 <= size <= IMAGE_SIZE_MAX for size in shape[1:])
            ),
            "layout": lambda layout: layout == "NCHW",
            # Which 0.1 wrote of grey images, too.
            "colour": lambda colour: colour == "RGB" or (colour == "grey" and channels == 1),
            "values": lambda values: values in ("normalised", "pixels"),
            "mean": of_pixels,
            "std": lambda std: of_pixels(std, 1 / LARGEST_PIXEL) and min(std) > 0,
            "crop": lambda crop: 0.1 <= crop <= 1,
            "interpolation": lambda interpolation: interpolation in INTERPOLATIONS,
            "stretch": lambda stretch: type(stretch) is bool,
        }
        later = {name: getattr(cls, name) for name in SCALING}
        check_fields({**later, **values}, checks, "input.")
        known: dict[str, Any] = {
            name: tuple(values[name]) if isinstance(values[name], list) else values[name]
            for name in checks
            if name in values
        }
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an export's manifest.json says of the export.

    Attributes:
        name: the network's, which the names of the pair's files begin with.
        output: what the graph gives, "logits" or "probabilities".
        precision: what the graph computes in, a name of `PRECISIONS`.
        fused: whether the graph is written as MXNet's oneDNN backend fuses it.
        classes: a name for each logit.
        input: what the graph takes.
        spec: the network.
        reference: {"logits": (REFERENCES, classes)}, which the network itself, not the graph, gives
            in float32 for `reference.reference_images`.
        tolerance: {"difference" or "agreement": number}, as `reference.compare` takes it.
        versions: of this package, MXNet, numpy and Python, that wrote the export.
        sha256: of each file of the export, and of the manifest, which those of 0.1 lack.
        verification: what `verify` found, an entry for each runtime.
        details: what else is known: a run's "recipe", "metrics" and "step", or a conversion's
            "source".
    """

    name: str
    output: str
    precision: str
    fused: bool
    classes: tuple[str, ...]
    input: Input
    spec: Spec
    reference: dict[str, Any] = dataclasses.field(default_factory=dict)
    tolerance: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    verification: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def logits(self) -> np.ndarray:
        """The logits of `reference`, float32 (REFERENCES, classes)."""
        return np.asarray(self.reference["logits"], "float32")

    @property
    def covered(self) -> bool:
        """Whether the manifest has a SHA-256 of itself."""
        return MANIFEST in self.sha256

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """What `to_dict` wrote, in any version of this package.

        Raises:
            Fault: it is of another format, or has a field that can't be one, which the message
                names.
        """
        check_fields(values, {"format": lambda number: type(number) is int})
        if values["format"] != FORMAT:
            raise Fault("has a format that this version does not know")
        check_fields(values, {"spec": Spec.from_dict, "input": dict.copy})
        spec = Spec.from_dict(values["spec"])
        check_fields(values, _checks(spec, PRECISIONS.get(str(values.get("precision")))))
        names = {field.name for field in dataclasses.fields(cls)} - {"details"}
        known = {name: values[name] for name in names if name in values}
        known["classes"] = tuple(values["classes"])
        known["input"] = Input.from_dict(values["input"], spec.in_channels)
        details = {name: values[name] for name in values if name not in {"format", *names}}
        return cls(**{**known, "spec": spec, "details": details})

    def to_dict(self) -> dict[str, Any]:
        """The content of manifest.json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["input"] = dataclasses.asdict(self.input)
        values["spec"] = self.spec.to_dict()
        details = values.pop("details")
        if not self.verification:
            del values["verification"]
        return {"format": FORMAT, **values, **details}


def _checks(spec, precision):
    def logits(reference):
        return np.asarray(reference["logits"], "float32").shape == (REFERENCES, spec.classes)

    def tolerance(values):
        ((criterion, number),) = values.items()
        if precision.agreement is None:
            return criterion == "difference" and 0 < number <= LARGEST_TOLERANCE
        return (criterion, number) == ("agreement", precision.agreement)

    return {
        "name": lambda name: name == spec.name and sum(spec.stages) <= MOST_UNITS,
        "output": lambda output: output in ("logits", "probabilities"),
        "precision": lambda _: precision is not None,
        "fused": lambda fused: type(fused) is bool,
        "classes": lambda classes: (
            len(classes) == spec.classes
            and all(type(name) is str and name.encode() for name in classes)
        ),
        "reference": logits,
        "tolerance": tolerance,
        "sha256": lambda sums: all(type(text) is str for item in sums.items() for text in item),
    }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export.

    Raises:
        UserError: it is missing, damaged, or of a format that this version does not know.
    """
    path = folder / MANIFEST
    try:
        values = read_json(read_bytes(path, LARGEST_MANIFEST))
        manifest = Manifest.from_dict(values)
        if manifest.covered and manifest.sha256[MANIFEST] != own_sum(values):
            raise Fault("is not the file that was exported (it has another SHA-256 than it says)")
    except Fault as fault:
        raise UserError(f"{path} {fault}; export again") from None
    return manifest


def write_manifest(folder: Path, values: dict[str, Any], cover: bool = True) -> None:
    """Writes manifest.json.

    Args:
        values: as `Manifest.to_dict` gives them.
        cover: whether with a SHA-256 of itself among those of the other files.

    Raises:
        OSError: it can't be written; it is then as it was.
    """
    values = json.loads(json.dumps(values, default=plain))
    if cover:
        values["sha256"][MANIFEST] = own_sum(values)
    write_json(folder / MANIFEST, values)


def own_sum(values: dict[str, Any]) -> str:
    """The SHA-256 of what a manifest says, however it is written, but for this sum."""
    sums = {name: sum for name, sum in values["sha256"].items() if name != MANIFEST}
    text = json.dumps({**values, "sha256": sums}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
