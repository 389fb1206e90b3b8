"""Which engine computes a network here: the native one where it can and is right, else MXNet's.

What is found out is kept in the user's cache: once for each network, engine and version is enough.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnetv2 import __version__, machine
from gluon_resnetv2.engines.native import library
from gluon_resnetv2.engines.native.block import native_arrays, native_symbol
from gluon_resnetv2.errors import UserError, last_line
from gluon_resnetv2.files import cache_folder, plain, write_json
from gluon_resnetv2.formats.artifact import Artifact
from gluon_resnetv2.layers import batch_norms
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.scores import relative_difference

IMAGES = 4  # that a network is tried on
# What rounding to a type changes, relatively. Logits may be apart by so many times what MXNet's
# differ by for images that differ so: by next to nothing in 20 layers, by a tenth in 1000.
ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "int8": 2.0**-8}
ROUNDINGS = 10  # at most 4.5 were seen


def remembered(what: Sequence[object], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `find` has found of `what` by this version on this machine, now or earlier.

    Args:
        what: everything it depends on, but for versions and the processor.
        find: gives what JSON can hold.
    """
    versions = __version__, mx.__version__, np.__version__
    processor = *sorted(machine.cpu_flags()), machine.cpus(), os.environ.get("OMP_NUM_THREADS")
    identity = json.dumps([*versions, *processor, *what], default=plain)
    name = f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, UserError, KeyError, TypeError):
        of, found = itemgetter("of", "found")(json.loads((folder() / name).read_bytes()))
        if of == name:
            return found
    found = find()
    with suppress(OSError, UserError):  # it will be found again
        folder().mkdir(parents=True, exist_ok=True)
        write_json(folder() / name, {"of": name, "found": found})
    return found


def folder() -> Path:
    """Where what was found is kept.

    Raises:
        UserError: as `cache_folder`.
    """
    return cache_folder() / "engines"


class _NotFinite(Exception):
    """What is of these parameters alone, and not to be remembered of the network."""


def without_advice(error: Exception) -> str:
    """What the native engine lacks, where MXNet's graph has been taken already."""
    return last_line(error).removesuffix("; use --engine mxnet")


def native_library() -> tuple[str, str]:
    """The name of the native operator's library, which says all that it was made of; or why not."""
    try:
        return library.library().name, ""
    except UserError as error:
        return "", str(error)


def native_fault(
    net: ResNetV2, shape: tuple[int, ...], dtype: str = "float32", training: bool = False
) -> str:
    """Why the native operator does not compute a network here, or "" where it does.

    It has to be there, know all that is in the network, and give what MXNet's graph gives.

    Args:
        net: initialised.
        shape: of an image, (C, H, W).
        dtype: that it computes in.
        training: whether by the batch's own statistics.
    """

    def graph():
        values = {name: p.list_data()[0] for name, p in net.collect_params().items()}
        return net(mx.sym.var("data")), "data", values

    # What drops at random drops other things in each of the two.
    trains = training and not net.spec.shortcut.random
    frozen = [norm.frozen for norm in batch_norms(net)]
    identity = json.dumps([net.spec.to_dict(), frozen], sort_keys=True)
    return _fault(identity, graph, shape, dtype, trains)


def export_fault(artifact: Artifact) -> str:
    """The same of an export's graph, in inference."""

    def graph():
        arguments, statistics = pair.arrays()
        return pair.symbol(), pair.data, {**arguments, **statistics}

    pair, manifest = artifact.read(), artifact.own_manifest()
    identity = json.dumps(manifest.sha256, sort_keys=True)  # which `load` has checked
    return _fault(identity, graph, pair.shape, manifest.precision, training=False)


def _fault(identity: str, graph: Callable, shape: tuple, dtype: str, training: bool) -> str:
    """As `native_fault`, of what `graph` gives: a symbol, its images' name, and its parameters."""

    def find() -> dict[str, str]:
        symbol, data, values = graph()
        images, noise = map(mx.nd.array, np.random.RandomState(0).normal(size=(2, IMAGES, *shape)))
        try:
            native = native_symbol(symbol, shape[0], dtype, training)
            found = _outputs(native, {**native_arrays(values), data: images}, training)
            expected = _outputs(symbol, {**values, data: images}, training)
            nudged = images * (1 + ROUNDING[dtype] * noise)
            besides = _outputs(symbol, {**values, data: nudged}, training)
        except (UserError, mx.MXNetError) as error:
            return {"fault": without_advice(error)}
        if not np.isfinite(expected).all():
            raise _NotFinite
        difference = relative_difference(found, expected)
        rounding = max(relative_difference(besides, expected), ROUNDING[dtype])
        if difference <= ROUNDINGS * rounding:  # not so where it is no number
            return {"fault": ""}
        return {"fault": f"its logits are {difference:.1g} of the largest off MXNet's"}

    name, missing = native_library()
    if missing:
        return missing
    try:
        return remembered((name, identity, shape, dtype, training), find)["fault"]
    except _NotFinite:
        return "MXNet's logits, which its are held against, are not finite"


def _outputs(symbol: mx.sym.Symbol, values: Mapping[str, mx.nd.NDArray], training: bool):
    """What a graph computes, of copies: training moves the statistics."""
    copies = [values[name].copy() for name in symbol.list_inputs()]
    with autograd.pause(train_mode=training):
        return mx.nd.CachedOp(symbol)(*copies).asnumpy()


def precision_hint(engine: str, dtype: str) -> str:
    """Where another precision is much faster on this processor, by this engine: a line, or ""."""
    flags = machine.cpu_flags()
    tiles = "amx_bf16" in flags
    computes = tiles or "avx512_bf16" in flags
    if engine == "native" and dtype == "float32" and computes:
        return "bfloat16 is about twice as fast on this processor"
    if dtype == "bfloat16" and not computes:
        return "this processor has no instructions for bfloat16: float32 is faster"
    if engine == "mxnet" and dtype == "bfloat16" and tiles:
        return "MXNet's own bfloat16 is slower than its float32 on this processor"
    return ""
