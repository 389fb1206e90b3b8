"""The ways to run a pair on this machine, and the fastest of those that are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import mxnet as mx
import numpy as np

from gluon_resnetv2.engines import choice, forms
from gluon_resnetv2.engines.native.block import native_arrays
from gluon_resnetv2.engines.native.inference import Inference, Network
from gluon_resnetv2.engines.native.program import Program
from gluon_resnetv2.engines.reference import (
    TOLERANCE,
    Check,
    compare,
    recorded,
    reference_images,
)
from gluon_resnetv2.errors import UserError, last_line
from gluon_resnetv2.files import sha256
from gluon_resnetv2.formats.artifact import Artifact
from gluon_resnetv2.formats.pair import Pair
from gluon_resnetv2.scores import log

FUSED = ("_sg_mkldnn", "_contrib_quantize")  # how operators of fused graphs are called
TIMED = 16  # images at once, and
TRIALS = 5  # times each, to find the fastest runner
EVEN = 0.97  # of another's time is as good: then it is the native one


class Runner:
    """One way to run a graph, compiled for each size of batch: no request has it planned anew.

    Args:
        pair: what the graph is of.
        symbol, arrays: the graph, and its parameters by their names.
        max_batch: the largest size.
        precision: that the graph computes in.

    Attributes:
        name: of the way.
        sizes: of batches, rising; others are filled up.

    Raises:
        UserError: this way can't run the graph, or not here.
    """

    name: str

    def __init__(
        self,
        pair: Pair,
        symbol: mx.sym.Symbol,
        arrays: Mapping[str, mx.nd.NDArray],
        max_batch: int,
        precision: str,
    ):
        self.sizes = sorted({min(2**n, max_batch) for n in range(max_batch.bit_length() + 1)})
        self._symbol, self._arrays = symbol, arrays
        self._data, self._labels = pair.data, pair.labels
        self._compiled: dict[int, tuple[Any, Callable[[], np.ndarray]]] = {}

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """What the graph gives, (N, ...), for any number of images as it takes them."""
        most = self.sizes[-1]
        parts = [self._run(inputs[start : start + most]) for start in range(0, len(inputs), most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, inputs):
        size = next(size for size in self.sizes if size >= len(inputs))
        if size not in self._compiled:
            self._compiled[size] = self._compile(size, inputs.shape[1:])
        images, compute = self._compiled[size]
        images[: len(inputs)] = inputs  # what a larger batch left in the other rows does no harm
        return compute()[: len(inputs)]

    def _compile(self, size: int, shape: tuple[int, ...]) -> tuple[Any, Callable[[], np.ndarray]]:
        """An array for `size` images, and what computes their outputs."""
        images = mx.nd.zeros((size, *shape))
        labels = {label: mx.nd.zeros((size,)) for label in self._labels}
        given = {**self._arrays, **labels, self._data: images}
        return images, self._computation(given)

    def _computation(self, given: dict) -> Callable[[], np.ndarray]:
        raise NotImplementedError


class Plain(Runner):
    """The graph as it was written."""

    name = "plain"

    def _computation(self, given):
        names = self._symbol.list_inputs()
        changing = [index for index, name in enumerate(names) if name not in self._arrays]
        kept = [index for index in range(len(names)) if index not in changing]
        flags: dict[str, Any] = {"static_alloc": True, "static_shape": True}
        flags.update(data_indices=changing, param_indices=kept)
        graph, arrays = mx.nd.CachedOp(self._symbol, flags.items()), [given[n] for n in names]
        return lambda: graph(*arrays).asnumpy()


class Fused(Runner):
    """The graph as MXNet's oneDNN backend fuses it."""

    name = "fused"

    def __init__(self, pair, symbol, arrays, max_batch, precision):
        if not any(node["op"].startswith(FUSED) for node in pair.graph["nodes"]):
            symbol, _, _ = forms.fused(symbol, {}, {})
        super().__init__(pair, symbol, arrays, max_batch, precision)

    def _computation(self, given):
        executor = self._symbol.bind(
            mx.cpu(),
            {name: given[name] for name in self._symbol.list_arguments()},
            aux_states={name: given[name] for name in self._symbol.list_auxiliary_states()},
            grad_req="null",
        )
        return lambda: executor.forward(is_train=False)[0].asnumpy()


class Native(Runner):
    """The graph by the native engine, with its classifier."""

    name = "native"

    def __init__(self, pair, symbol, arrays, max_batch, precision):
        super().__init__(pair, symbol, arrays, max_batch, precision)
        program = Program(symbol, pair.shape[0], training=False)
        values = {name: one.asnumpy() for name, one in native_arrays(arrays).items()}
        self._network = Network(program, values, precision)

    def _compile(self, size, shape):
        compute = Inference(self._network, (size, *shape))
        return compute.images, compute


ENGINES: dict[str, tuple[type[Runner], ...]] = {
    "mxnet": (Plain, Fused),
    "native": (Native,),
    "auto": (Plain, Fused, Native),
}


class Runners:
    """The runners of one pair, each of which is made when it is first asked for.

    Args:
        symbol, arrays: what runs: the pair's graph, or a part of it.
        classify: makes of what that gives the pair's outputs.
        output: what they are, "logits" or "probabilities".
        max_batch: as `Predictor` takes it.

    Attributes:
        precision: that the graph computes in.
    """

    def __init__(
        self,
        artifact: Artifact,
        pair: Pair,
        symbol: mx.sym.Symbol,
        arrays: Mapping[str, mx.nd.NDArray],
        classify: Callable[[np.ndarray], np.ndarray],
        output: str,
        max_batch: int,
    ):
        self.precision = artifact.manifest.precision if artifact.manifest else "float32"
        self._artifact, self._pair, self._symbol = artifact, pair, symbol
        self._given = pair, symbol, arrays, max_batch, self.precision
        self._classify, self._output, self._max_batch = classify, output, max_batch
        self._made: dict[type[Runner], Runner] = {}

    def make(self, name: str) -> Runner:
        """The runner of this name.

        Raises:
            UserError: as `Runner`.
        """
        (kind,) = (kind for kind in ENGINES["auto"] if kind.name == name)
        return self._make(kind)

    def _make(self, kind):
        if kind not in self._made:
            self._made[kind] = kind(*self._given)
        return self._made[kind]

    def choose(self, engine: str) -> dict[str, Any]:
        """The fastest runner of an engine that is right; found out once for a pair on a machine.

        Returns:
            "runner", its name; "rejected" and "without" as `Predictor` has them; and "classes",
            how many the outputs are of.

        Raises:
            UserError: none is right; or as `Runner`, of the only one that there is.
        """
        artifact, manifest = self._artifact, self._artifact.manifest
        if manifest:  # with the files' SHA-256, which `load` has checked
            said = replace(manifest, verification=[]).to_dict()
        else:
            said = {path.name: sha256(path) for path in (artifact.symbol, artifact.params)}
        graph = self._symbol.list_outputs(), self._pair.shape, self._max_batch, engine
        native = choice.native_library() if Native in ENGINES[engine] else None
        return choice.remembered((said, *graph, native), lambda: self._compare(engine))

    def _compare(self, engine):
        inputs, outputs, tolerance = self._expected()
        right: list[Runner] = []
        wrong: list[Check] = []
        without: list[str] = []
        for kind in ENGINES[engine]:
            try:
                runner = self._make(kind)
            except UserError as error:
                if len(ENGINES[engine]) == 1:
                    raise
                without.append(choice.without_advice(error))
                continue
            check = self._check(runner, inputs, outputs, tolerance)
            if check.passed:
                right.append(runner)
            else:
                wrong.append(check)
        if not right:
            raise UserError(
                f"{self._artifact.folder} does not compute here what was exported: {wrong[0]}"
            )
        took = _milliseconds(right, self._pair.shape)
        best = min(took, key=lambda name: took[name] * (EVEN if name == Native.name else 1))
        if engine == "auto" and best != Native.name in took:
            times = f"{took[Native.name]:.3g} ms, and this one {took[best]:.3g}"
            without.append(f"it takes {times}")
        return {
            "runner": best,
            "rejected": [str(check) for check in wrong],
            "without": without,
            "classes": outputs.shape[1],
        }

    def _expected(self):
        """Images, the outputs that they should give, and how near."""
        if self._artifact.manifest:
            return recorded(self._artifact)
        images = reference_images(self._pair.shape)
        try:
            outputs = self._classify(self._make(Plain).run(images))
        except mx.MXNetError as error:
            raise self._artifact.does_not_run(last_line(error)) from None
        if self._output == "probabilities":
            outputs = log(outputs)
        return images, outputs, {"difference": TOLERANCE}

    def _check(self, runner, inputs, logits, tolerance):
        try:
            outputs = self._classify(runner.run(inputs))
            return compare(runner.name, outputs, logits, tolerance, self._output)
        except mx.MXNetError as error:  # this processor can't compute it
            return Check(runner.name, None, None, tolerance, last_line(error))


def _milliseconds(runners, shape):
    """The least time that each took for some images, by its name."""
    images = np.zeros((min(TIMED, runners[0].sizes[-1]), *shape), "float32")
    seconds: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for trial in range(1 + TRIALS if len(runners) > 1 else 0):
        for runner in runners:
            start = time.perf_counter()
            runner.run(images)
            if trial:  # the first one plans
                seconds[runner.name].append(time.perf_counter() - start)
    return {name: 1000 * min(taken, default=0) for name, taken in seconds.items()}
