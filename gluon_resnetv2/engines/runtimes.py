"""Every way in which MXNet runs an exported pair. `verify` calls them in processes of their own:

python -m gluon_resnetv2.engines.runtimes FOLDER WAY... < JOBS

where JOBS is a JSON list of {"symbol", "params", "images"}: paths. The outputs of job N become
"WAY N.npy" in FOLDER. For each way it gives a list of what went wrong with each job, null for
nothing, as `cli.answer` does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.cli import answer
from gluon_resnetv2.errors import UserError, install, last_line
from gluon_resnetv2.formats.params_file import bare

SECONDS = 60  # of a processor that an ONNX model may take, whoever wrote it


def symbol_block(symbol: str, params: str, images: np.ndarray) -> np.ndarray:
    """Gluon's SymbolBlock, hybridized with static memory."""
    loaded, values = mx.sym.load(symbol), mx.nd.load(params)
    data, labels = inputs(loaded, values)
    block = as_block(loaded, values, [data, *labels])
    block.hybridize(static_alloc=True, static_shape=True)
    zeros = [mx.nd.zeros((len(images),)) for _ in labels]
    return block(mx.nd.array(images), *zeros).asnumpy()


def as_block(
    symbol: mx.sym.Symbol,
    values: dict[str, mx.nd.NDArray],
    names: Sequence[str],
    devices: Sequence[mx.Context] | None = None,
) -> mx.gluon.SymbolBlock:
    """A pair as a Gluon block of the inputs `names`, on `devices`, by default the CPU.

    `SymbolBlock.imports` would warn that it does not know the inputs' type.
    """
    block = mx.gluon.SymbolBlock(symbol, [mx.sym.var(name, dtype="float32") for name in names])
    block.collect_params().load_dict(values, ctx=devices or mx.cpu())
    return block


def module(symbol: str, params: str, images: np.ndarray) -> np.ndarray:
    """The Module interface, bound for inference."""
    loaded, values = mx.sym.load(symbol), mx.nd.load(params)
    data, labels = inputs(loaded, values)
    bound = mx.mod.Module(loaded, data_names=[data], label_names=labels)
    bound.bind([(data, images.shape)], for_training=False)
    bound.set_params(*_parts(loaded, values))
    bound.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    return bound.get_outputs()[0].asnumpy()


def simple_bind(symbol: str, params: str, images: np.ndarray) -> np.ndarray:
    """The executor beneath Module."""
    loaded, values = mx.sym.load(symbol), mx.nd.load(params)
    data, _ = inputs(loaded, values)
    executor = loaded.simple_bind(mx.cpu(), grad_req="null", **{data: images.shape})
    executor.copy_params_from(*_parts(loaded, values))
    return executor.forward(is_train=False, **{data: mx.nd.array(images)})[0].asnumpy()


def c_predict(symbol: str, params: str, images: np.ndarray) -> np.ndarray:
    """The C predict API (`c_predict_api.h`), which native programs serve with.

    Parameters whose names have no "arg:" or "aux:" it leaves as memory happens to be.
    """
    from mxnet.base import _LIB, check_call

    data, _ = inputs(mx.sym.load(symbol), mx.nd.load(params))
    graph, weights = Path(symbol).read_bytes(), Path(params).read_bytes()
    handle, keys = ctypes.c_void_p(), (ctypes.c_char_p * 1)(data.encode())
    ends = (ctypes.c_uint * 2)(0, images.ndim)
    shape = (ctypes.c_uint * images.ndim)(*images.shape)
    check_call(
        _LIB.MXPredCreate(
            graph, weights, len(weights), 1, 0, 1, keys, ends, shape, ctypes.byref(handle)
        )
    )
    try:
        floats = ctypes.POINTER(ctypes.c_float)
        images = np.ascontiguousarray(images, "float32")
        check_call(_LIB.MXPredSetInput(handle, keys[0], images.ctypes.data_as(floats), images.size))
        check_call(_LIB.MXPredForward(handle))
        dims, ndim = ctypes.POINTER(ctypes.c_uint)(), ctypes.c_uint()
        check_call(_LIB.MXPredGetOutputShape(handle, 0, ctypes.byref(dims), ctypes.byref(ndim)))
        logits = np.empty(dims[: ndim.value], "float32")
        check_call(_LIB.MXPredGetOutput(handle, 0, logits.ctypes.data_as(floats), logits.size))
        return logits
    finally:
        _LIB.MXPredFree(handle)


def predictor(symbol: str, params: str, images: np.ndarray) -> np.ndarray:
    """What `predict` and the server run with --engine mxnet."""
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.formats.artifact import load

    shape = images.shape[1:]
    return Predictor(load(params), max_batch=len(images), shape=shape, engine="mxnet").run(images)


def native_engine(symbol: str, params: str, images: np.ndarray) -> np.ndarray:
    """What `predict` and the server run with --engine native."""
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.formats.artifact import load

    shape = images.shape[1:]
    return Predictor(load(params), max_batch=len(images), shape=shape, engine="native").run(images)


def onnx_runtime(symbol: str, params: str, images: np.ndarray) -> np.ndarray:
    """ONNX Runtime, on the model beside the pair."""
    from gluon_resnetv2.formats.artifact import load

    artifact = load(params)
    if not artifact.onnx:
        return images[:0]
    held = 4 * len(images) * artifact.read().peak()
    with _bounded((1 << 30) + 4 * artifact.onnx.stat().st_size + 2 * held):
        return run_onnx(artifact.onnx, images)


def run_onnx(path: str | Path, images: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes on one thread of the CPU, so that the sums keep their order.

    Args:
        images: (N, C, H, W), as the model's input takes them.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"ONNX Runtime is not installed: {install('onnx')}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (data,) = session.get_inputs()
    return session.run(None, {data.name: np.asarray(images, "float32")})[0]


@contextlib.contextmanager
def _bounded(memory: int) -> Iterator[None]:
    """Has this process take no more than `memory` bytes and `SECONDS` in the block.

    Where Linux's /proc is missing, it is the time alone.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + SECONDS}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages, *_ = statm.read_text().split()
        limits[resource.RLIMIT_AS] = int(pages) * resource.getpagesize() + memory
    before = {kind: resource.getrlimit(kind) for kind in limits}
    # The last line is told where the process ends.
    print(f"it took more than {SECONDS} seconds of a processor", file=sys.stderr, flush=True)
    try:
        for kind, (_, most) in before.items():
            limit = limits[kind]
            resource.setrlimit(kind, (limit if most < 0 else min(limit, most), most))
        yield
    finally:
        for kind, both in before.items():
            resource.setrlimit(kind, both)


def inputs(symbol: mx.sym.Symbol, values: dict) -> tuple[str, list[str]]:
    """The names of the images and of the labels: what the symbol reads and no parameter gives.

    Raises:
        ValueError: there is no such input, or more than one that is no label.
    """
    given = set(map(bare, values))
    free = [name for name in symbol.list_inputs() if name not in given]
    images = [name for name in free if not name.endswith("label")]
    if len(images) != 1:
        raise ValueError(f"one input should be the images', but there are {images}")
    return images[0], [name for name in free if name.endswith("label")]


def _parts(symbol, values):
    """The parameters by their bare names: the arguments, the auxiliary states."""
    arguments = {bare(name): value for name, value in values.items()}
    states = {name: arguments.pop(name) for name in symbol.list_auxiliary_states()}
    return arguments, states


WAYS = {
    "SymbolBlock": symbol_block,
    "Module": module,
    "simple_bind": simple_bind,
    "C predict API": c_predict,
    "Predictor": predictor,
    "native engine": native_engine,
    "ONNX Runtime": onnx_runtime,
}


def _answer(folder: Path, way: str, jobs: list[dict[str, str]]) -> None:
    run = WAYS[way]
    failures: list[str | None] = []
    for index, job in enumerate(jobs):
        try:
            outputs = run(job["symbol"], job["params"], np.load(job["images"]))
            np.save(folder / f"{way} {index}.npy", outputs)
            failures.append(None)
        except Exception as error:  # whatever it is, the other pairs want their answer
            failures.append(last_line(error))
    answer(failures)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    for name in sys.argv[2:]:
        _answer(Path(sys.argv[1]), name, given)
