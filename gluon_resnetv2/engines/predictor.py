"""Images in, probabilities out, from an exported pair."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gluon_resnetv2.engines.features import SOFTMAX
from gluon_resnetv2.engines.features import features as features_of
from gluon_resnetv2.engines.images import normalise, read_image
from gluon_resnetv2.engines.runners import Runners
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.artifact import Artifact
from gluon_resnetv2.formats.manifest import Input
from gluon_resnetv2.scores import likeliest, softmax


class Predictor:
    """Runs a pair in the fastest form with the right results; threads may share a predictor.

    The forms are the graph as it was written, the graph as MXNet's oneDNN backend fuses it, and the
    graph on the native operator. When these files are first run on a machine, the outputs of each
    form are compared with those of the trained network, which the manifest holds (for a pair
    without manifest: with those of the graph as it was written): results on another machine prove
    nothing about this one. What came of it is kept in the user's cache.

    Args:
        artifact: an export, or any pair that takes images and gives a row of logits for each.
        max_batch: so many images are computed at once; more are split.
        shape: of an image, for a pair without manifest: (C, H, W), or as its graph takes it; by
            default a usual one that fits.
        engine: "mxnet" for MXNet's graph alone; "native" for the native one alone; "auto" for the
            fastest of all.
        features: whether `run` gives the pooled features that the graph's classifier reads. They
            are checked by the logits that the classifier makes of them. `probabilities` and `top`
            are not to be used then.

    Attributes:
        engine, precision: what runs, "mxnet" or "native", and in what, as "float32".
        form: both in words, as in "float32, fused".
        output: what the graph gives, "logits" or "probabilities".
        rejected: a line for each form that was found wrong.
        without: why the native operator does not run, where "auto" might have taken it.

    Raises:
        UserError: the pair is damaged or can't be read, takes more memory than there is, no form
            computes what it should, or the native operator is not installed or has no instruction
            for something in the graph; or `features` are wanted of a graph that does not end in a
            classifier with float32 weights.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        max_batch: int = 64,
        shape: tuple | None = None,
        engine: str = "auto",
        features: bool = False,
    ):
        if max_batch < 1:
            raise UserError(f"the largest batch must have at least 1 image, not {max_batch}")
        pair = artifact.read(shape)
        self.name, self.shape, self.max_batch = artifact.name, pair.shape, max_batch
        self._lock = threading.Lock()
        needed = 8 * max_batch * pair.peak()  # bytes: as much again for all smaller batches
        if needed > _memory():
            raise UserError(
                f"{artifact.name} takes {needed / 1e9:.0f} GB for {max_batch} images at once, more "
                "than this machine has; name a smaller --max-batch"
            )
        arguments, statistics = pair.arrays()
        arrays, symbol = {**arguments, **statistics}, pair.symbol()
        manifest = artifact.manifest
        self.output = manifest.output if manifest else _output(pair)
        classify: Callable[[np.ndarray], np.ndarray] = np.asarray  # as they are
        if features:
            (symbol, classify), self.output = features_of(pair, artifact.name), "logits"
        self._input = manifest.input if manifest else None
        runners = Runners(artifact, pair, symbol, arrays, classify, self.output, max_batch)
        found = runners.choose(engine)
        if manifest:
            self.classes = artifact.classes
            artifact.warn()
        else:
            self.classes = [str(index) for index in range(found["classes"])]
        self.rejected, self.without = found["rejected"], found["without"]
        self._runner = runners.make(found["runner"])
        name = self._runner.name
        if manifest and manifest.fused and name == "plain":
            name = "fused"
        self.engine = "native" if name == "native" else "mxnet"
        self.precision, self.form = runners.precision, f"{runners.precision}, {name}"
        for size in self._runner.sizes:  # the first call of each plans its memory
            _, self._width = self._runner.run(np.zeros((size, *self.shape), "float32")).shape

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """What the graph computes of images.

        Args:
            inputs: (N, C, H, W) as the graph takes them, which `prepare` gives.

        Returns:
            Logits or probabilities, as `output` says, float32 (N, classes). Of a predictor with
            `features`, the pooled features instead, (N, channels).

        Raises:
            ValueError: the images are of another shape.
        """
        inputs = self._checked(np.asarray(inputs, "float32"))
        if not len(inputs):
            return np.zeros((0, self._width), "float32")
        with self._lock:
            return self._runner.run(inputs)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W) with values in 0..255 as `run` takes them.

        Raises:
            UserError: the pair has no manifest, which says how images are prepared.
            ValueError: the images are of another shape.
        """
        pixels = self._checked(np.asarray(pixels))
        described = self.preparation()
        if described.values == "pixels":
            return pixels.astype("float32")
        return normalise(pixels, described.mean, described.std)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Class probabilities (N, classes) of images (N, C, H, W) with values in 0..255."""
        outputs = self.run(self.prepare(pixels))
        return softmax(outputs) if self.output == "logits" else outputs

    def top(self, pixels: np.ndarray, count: int = 5) -> list[list[tuple[str, float]]]:
        """The `count` likeliest (class, probability) of each image, likeliest first.

        Raises:
            ValueError: `count` is less than 1; or as `prepare`.
        """
        if count < 1:
            raise ValueError(f"at least 1 class, not {count}")
        return [
            [(self.classes[i], float(row[i])) for i in likeliest(row, count)]
            for row in self.probabilities(pixels)
        ]

    def read(self, file: str | Path | BinaryIO) -> np.ndarray:
        """One image as `probabilities` takes it: (C, H, W) in 0..255.

        Args:
            file: a path, or a binary file of a JPEG or PNG.

        Raises:
            UserError: the file can't be read as an image; or as `prepare`.
        """
        described = self.preparation()
        return read_image(
            file, self.shape, described.crop, described.interpolation, described.stretch
        )

    def _checked(self, images):
        if images.shape[1:] != self.shape:
            raise ValueError(f"images must be (N, *{self.shape}), not {images.shape}")
        return images

    @property
    def about(self) -> str:
        """What runs, and why not the native operator, in a line."""
        form = self.precision if self.engine == "native" else self.form
        whys = "".join(f" (not native: {why})" for why in self.without)
        return f"engine {self.engine}, {form}{whys}"

    @property
    def prepares(self) -> bool:
        """Whether there is a manifest that says how images are prepared."""
        return self._input is not None

    def preparation(self) -> Input:
        """How images are prepared, as the manifest says.

        Raises:
            UserError: the pair has no manifest.
        """
        if self._input is None:
            raise UserError(
                f"{self.name} has no manifest.json, which says how images are prepared; give it "
                "arrays as the graph takes them, or make an export of it with `convert`"
            )
        return self._input


def _memory():
    """This machine's, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _output(pair):
    """What a graph gives whose manifest does not say."""
    head, *_ = pair.graph["heads"][0]
    return "probabilities" if pair.graph["nodes"][head]["op"] in SOFTMAX else "logits"
