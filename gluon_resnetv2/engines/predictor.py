"""Images in, probabilities out, from an exported pair."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import mxnet as mx
import numpy as np

from gluon_resnetv2.engines import forms
from gluon_resnetv2.engines.features import SOFTMAX
from gluon_resnetv2.engines.features import features as features_of
from gluon_resnetv2.engines.images import normalise, read_image
from gluon_resnetv2.engines.native.block import native_symbol
from gluon_resnetv2.engines.reference import (
    TOLERANCE,
    Check,
    compare,
    recorded,
    reference_images,
)
from gluon_resnetv2.errors import UserError, last_line
from gluon_resnetv2.formats.artifact import Artifact
from gluon_resnetv2.formats.manifest import Input
from gluon_resnetv2.formats.pair import Pair
from gluon_resnetv2.scores import likeliest, log, softmax

FUSED = ("_sg_mkldnn", "_contrib_quantize")  # how operators of fused graphs are called
TIMED = 16  # images at once, and
TRIALS = 3  # times each, to find the fastest form


class Predictor:
    """Runs a pair in the fastest form with the right results; threads may share a predictor.

    The forms are the graph as it was written, and as MXNet's oneDNN backend fuses it; or the graph
    on the native operator alone. When a predictor is made, the outputs of each form are compared
    with those of the trained network, which the manifest holds (for a pair without manifest: with
    those of the graph as it was written): results on another machine prove nothing about this one.

    Args:
        artifact: an export, or any pair that takes images and gives a row of logits for each.
        max_batch: so many images are computed at once; more are split.
        shape: of an image, for a pair without manifest: (C, H, W), or as its graph takes it; by
            default a usual one that fits.
        engine: "native" for the native operator, which takes graphs that are not fused, in float32
            or bfloat16.
        features: whether `run` gives the pooled features that the graph's classifier reads. They
            are checked by the logits that the classifier makes of them. `probabilities` and `top`
            are not to be used then.

    Attributes:
        form: what runs, as in "float32, fused".
        output: what the graph gives, "logits" or "probabilities".
        rejected: a line for each form that was found wrong.

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
        engine: str = "mxnet",
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
        plain = _Plain(pair, symbol, arrays, max_batch)
        precision = manifest.precision if manifest else "float32"
        if engine == "native":
            forms: list[_Form] = [_Native(pair, symbol, arrays, max_batch, precision)]
        else:
            forms = [plain, _Fused(pair, symbol, arrays, max_batch)]
        self._input = manifest.input if manifest else None
        if manifest:
            inputs, outputs, tolerance = recorded(artifact)
            self.classes = artifact.classes
            artifact.warn()
        else:
            inputs, tolerance = reference_images(pair.shape), {"difference": TOLERANCE}
            try:
                outputs = classify(plain.run(inputs))
            except mx.MXNetError as error:
                raise artifact.does_not_run(last_line(error)) from None
            if self.output == "probabilities":
                outputs = log(outputs)
            self.classes = [str(index) for index in range(outputs.shape[1])]
        checks = {
            form: _check(form, classify, inputs, outputs, tolerance, self.output) for form in forms
        }
        self.rejected = [str(check) for check in checks.values() if not check.passed]
        right = [form for form, check in checks.items() if check.passed]
        if not right:
            raise UserError(
                f"{artifact.folder} does not compute here what was exported: {checks[forms[0]]}"
            )
        self._form = _fastest(right, self.shape)
        name = "fused" if manifest and manifest.fused else self._form.name
        self.form = f"{precision}, {name}"
        for size in self._form.sizes:  # the first call of each plans its memory
            _, self._width = self._form.run(np.zeros((size, *self.shape), "float32")).shape

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
            return self._form.run(inputs)

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


class _Form:
    """One graph, compiled for each size of batch: nothing is planned anew for a request."""

    name: str

    def __init__(self, pair: Pair, symbol: mx.sym.Symbol, arrays: dict, max_batch: int):
        self.sizes = sorted({min(2**n, max_batch) for n in range(max_batch.bit_length() + 1)})
        self._symbol, self._arrays = symbol, arrays
        self._data, self._labels = pair.data, pair.labels
        self._compiled: dict[int, tuple[mx.nd.NDArray, Callable[[], mx.nd.NDArray]]] = {}

    def run(self, inputs: np.ndarray) -> np.ndarray:
        most = self.sizes[-1]
        parts = [self._run(inputs[start : start + most]) for start in range(0, len(inputs), most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, inputs):
        size = next(size for size in self.sizes if size >= len(inputs))
        if size not in self._compiled:
            self._compiled[size] = self._compile(size, inputs.shape[1:])
        images, compute = self._compiled[size]
        images[: len(inputs)] = inputs  # what a larger batch left in the other rows does no harm
        return compute().asnumpy()[: len(inputs)]

    def _compile(self, size, shape):
        """An array for `size` images, and what computes their outputs."""
        images = mx.nd.zeros((size, *shape))
        labels = {label: mx.nd.zeros((size,)) for label in self._labels}
        given = {**self._arrays, **labels, self._data: images}
        return images, self._computation(given)

    def _computation(self, given: dict) -> Callable[[], mx.nd.NDArray]:
        raise NotImplementedError


class _Plain(_Form):
    name = "plain"

    def _computation(self, given):
        names = self._symbol.list_inputs()
        changing = [index for index, name in enumerate(names) if name not in self._arrays]
        kept = [index for index in range(len(names)) if index not in changing]
        flags: dict[str, Any] = {"static_alloc": True, "static_shape": True}
        flags.update(data_indices=changing, param_indices=kept)
        graph, arrays = mx.nd.CachedOp(self._symbol, flags.items()), [given[n] for n in names]
        return lambda: graph(*arrays)


class _Native(_Plain):
    name = "native"

    def __init__(self, pair, symbol, arrays, max_batch, precision):
        symbol = native_symbol(symbol, pair.shape[0], precision)
        arrays = {name: mx.nd.amp_cast(array, dtype="float32") for name, array in arrays.items()}
        super().__init__(pair, symbol, arrays, max_batch)


class _Fused(_Form):
    name = "fused"

    def __init__(self, pair, symbol, arrays, max_batch):
        if not any(node["op"].startswith(FUSED) for node in pair.graph["nodes"]):
            symbol, _, _ = forms.fused(symbol, {}, {})
        super().__init__(pair, symbol, arrays, max_batch)

    def _computation(self, given):
        os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")  # or it prints a line for each
        executor = self._symbol.bind(
            mx.cpu(),
            {name: given[name] for name in self._symbol.list_arguments()},
            aux_states={name: given[name] for name in self._symbol.list_auxiliary_states()},
            grad_req="null",
        )
        return lambda: executor.forward(is_train=False)[0]


def _memory():
    """This machine's, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _output(pair):
    """What a graph gives whose manifest does not say."""
    head, *_ = pair.graph["heads"][0]
    return "probabilities" if pair.graph["nodes"][head]["op"] in SOFTMAX else "logits"


def _check(form, classify, inputs, logits, tolerance, output):
    try:
        return compare(form.name, classify(form.run(inputs)), logits, tolerance, output)
    except mx.MXNetError as error:  # this processor can't compute it
        return Check(form.name, None, None, tolerance, last_line(error))


def _fastest(forms, shape):
    """The form that took the least time for some images."""
    images = np.zeros((min(TIMED, forms[0].sizes[-1]), *shape), "float32")
    seconds: dict[_Form, list[float]] = {form: [] for form in forms}
    for _ in range(1 + TRIALS if len(forms) > 1 else 0):
        for form in forms:
            start = time.perf_counter()
            form.run(images)
            seconds[form].append(time.perf_counter() - start)
    return min(forms, key=lambda form: min(seconds[form], default=0))
