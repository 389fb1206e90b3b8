"""What a pair should compute, and how near to it is near enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.checkpoint import set_parameters
from gluon_resnetv2.engines.forms import PREPROCESS
from gluon_resnetv2.engines.images import denormalise, normalise
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.artifact import (
    CALIBRATION,
    CALIBRATION_IMAGES,
    Artifact,
)
from gluon_resnetv2.formats.manifest import LARGEST_TOLERANCE, REFERENCES, Manifest
from gluon_resnetv2.formats.pair import Pair
from gluon_resnetv2.formats.params_file import read_arrays
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.scores import log, relative_difference, softmax
from gluon_resnetv2.spec import Spec

TOLERANCE = 1e-5  # largest difference over largest logit, float32
# A network may magnify rounding beyond that (a thousand layers after two steps: 1e-4). It is then
# allowed so many times what float32 changes in its training graph, and never 1e-3.
ROUNDINGS = 3
BATCH = 64  # images at once
ELSEWHERE = 10  # times the tolerance: logits that another machine gave may be as far away


@dataclass(frozen=True)
class Check:
    """One comparison with what the network itself gives.

    Attributes:
        difference: the largest, relative to the largest expected value; None: there was no answer.
        agreement: the part of the images that have the same likeliest class.
        tolerance: {"difference": at most} or {"agreement": at least}.
        failure: why there was no answer.
        images: how many were compared.
    """

    runtime: str
    difference: float | None
    agreement: float | None
    tolerance: dict
    failure: str = ""
    images: int = 0

    @property
    def passed(self) -> bool:
        if self.difference is None:
            return False
        if "agreement" in self.tolerance:
            agreement = self.agreement or 0
            # In whole images: one of 31, whose two likeliest classes nearly tie, is no 3 %.
            lacking = self.images * (self.tolerance["agreement"] - agreement)
            return agreement > 0 and round(lacking, 6) < 1
        return self.difference <= self.tolerance["difference"]

    def __str__(self):
        if self.difference is None:
            return f"FAILED  {self.runtime:<34} {self.failure}"
        text = f"largest relative difference {self.difference:.1e}"
        if "agreement" in self.tolerance:
            text = f"same class {100 * (self.agreement or 0):.1f} %, {text}"
        return f"{'ok    ' if self.passed else 'FAILED'}  {self.runtime:<34} {text}"


def compare(
    runtime: str,
    found: np.ndarray,
    expected: np.ndarray,
    tolerance: dict,
    output: str = "logits",
) -> Check:
    """Holds what a runtime gave, (images, classes), against the logits that it should be of.

    Probabilities are compared by their logarithms: next to a 1, what differs does not show.

    Args:
        output: what the runtime gave, "logits" or "probabilities".
    """
    if output == "probabilities":
        found, expected = log(found), log(softmax(expected))
    if found.shape != expected.shape:
        failure = f"gave {found.shape}, not {expected.shape}"
    elif not (np.isfinite(found).all() and np.isfinite(expected).all()):
        failure = "gave a number that is not finite"
    else:
        difference = relative_difference(found, expected)
        agreement = np.mean(found.argmax(1) == expected.argmax(1))
        return Check(runtime, difference, float(agreement), tolerance, images=len(found))
    return Check(runtime, None, None, tolerance, failure)


def reference_images(image_shape: tuple) -> np.ndarray:
    """The same (4, *image_shape) normal numbers everywhere, in float32."""
    return np.random.RandomState(0).normal(size=(REFERENCES, *image_shape)).astype("float32")


def training_graph(spec: Spec, pair: Pair, source: str | Path) -> ResNetV2:
    """The network that was exported in float32, from its parameters alone.

    Args:
        source: the file that they are from.

    Raises:
        UserError: they don't fit.
    """
    arguments, statistics = pair.arrays()
    values = {**arguments, **statistics}
    own = {name: value for name, value in values.items() if not name.startswith(f"{PREPROCESS}_")}
    held = sum(value.size for name, value in own.items() if name in arguments)
    learned = spec.parameter_count()
    # Before it is built, in whatever size. An input BN holds numbers that are not learned.
    if not learned <= held <= learned + 2 * spec.in_channels:
        raise UserError(f"{source} has {held} numbers, and the network in its manifest {learned}")
    net = ResNetV2(spec)
    set_parameters(net, own, source)
    return net


def logits(net: ResNetV2, images: np.ndarray) -> np.ndarray:
    """What the network gives, operator by operator, for normalised images."""
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([net(mx.nd.array(part)).asnumpy() for part in parts])


def float32_tolerance(net: ResNetV2, images: np.ndarray, single: np.ndarray) -> dict:
    """How far from `single`, the logits of `net`, another order of operations may lead float32."""
    values = mx.nd.array(images, dtype="float64")
    for block in (*net.features, net.output):  # each by itself: all are twice the network
        symbol = block(mx.sym.var("data"))
        inputs = [_input(block, name, values) for name in symbol.list_inputs()]
        values = mx.nd.CachedOp(symbol)(*inputs)
        values.wait_to_read()
    rounding = compare("", single, values.asnumpy(), {}).difference or 0
    return {"difference": min(max(TOLERANCE, ROUNDINGS * rounding), LARGEST_TOLERANCE)}


def _input(block, name, data):
    return data if name == "data" else block.collect_params()[name].data().astype("float64")


def recorded(artifact: Artifact) -> tuple[np.ndarray, np.ndarray, dict]:
    """What an export's manifest and calibration images say of the network.

    Returns:
        (N, C, H, W) images as the graph takes them, (N, classes) logits that the network itself
        gave for them in float32, and the tolerance that `compare` takes.

    Raises:
        UserError: the calibration images are missing or damaged.
    """
    manifest = artifact.own_manifest()
    described, tolerance = manifest.input, manifest.tolerance
    if manifest.precision == "float32":
        images = reference_images(described.shape)
        logits = manifest.logits
        tolerance = {"difference": ELSEWHERE * tolerance["difference"]}
        pixels = denormalise(images, described.mean, described.std)
    else:
        pixels, logits = _calibration(artifact.folder / CALIBRATION, manifest)
        images = normalise(pixels, described.mean, described.std)
    if described.values == "pixels":
        images = np.asarray(pixels, "float32")
    return images, logits, tolerance


def _calibration(path: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """The real images, uint8 (N, C, H, W), and the logits that the network gave for them."""
    arrays = read_arrays(path, manifest.sha256[CALIBRATION])
    pixels, logits = arrays.get("pixels"), arrays.get("logits")
    if (
        pixels is None
        or logits is None
        or not 1 <= len(pixels) <= CALIBRATION_IMAGES
        or pixels.shape[1:] != manifest.input.shape
        or logits.shape != (len(pixels), len(manifest.classes))
        or (pixels.dtype.name, logits.dtype.name) != ("uint8", "float32")
    ):
        raise UserError(f"{path} does not fit the manifest; export again")
    return pixels, logits
