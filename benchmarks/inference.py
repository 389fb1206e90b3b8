"""Inference of ours, in every form of an export, and of every other way on the same machine.

python benchmarks/inference.py
python benchmarks/inference.py --models preact50 --batch-sizes 8 --seconds 20

The ways take turns, each time in a fresh process, all with the same number of threads and on the
same images. A call takes a NumPy array and gives one; a round's figure is the median of its calls.
The table has the median of the rounds and their range, and so for the ratios, which are taken
within each round. Above 1 is better. A matrix product's figure is what the multiply-adds come to at
the speed of the machine's largest one. The weights are random; ONNX Runtime and OpenVINO have ours.
`difference` is the largest difference from our float32 logits, relative to the largest of them: it
shows that a way computes the same network, not how well a trained one would fare.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process, rounds
from benchmarks.peers import (
    LIMITS,
    PEERS,
    gluoncv_inference,
    module_inference,
    multiply_adds,
    torch_inference,
)
from gluon_resnetv2 import cli
from gluon_resnetv2.scores import relative_difference
from gluon_resnetv2.spec import named

PLAIN = "ours float32"
# (precision, fused) of our exports.
OURS = {
    PLAIN: ("float32", False),
    "ours float32 fused": ("float32", True),
    "ours bfloat16": ("bfloat16", True),
    "ours int8": ("int8", True),
    "ours native float32": ("float32", False),
    "ours native bfloat16": ("bfloat16", False),
    "ours native int8": ("int8", True),
}
QUANTIZED, QUANTIZED_FILE = "OpenVINO int8", "quantized.xml"  # by its own tool
# What OpenVINO is to compute in, but for what is in 8 bits.
OPENVINO = {"OpenVINO float32": "f32", "OpenVINO bfloat16": "bf16", QUANTIZED: "bf16"}
# What each way that has our weights reads: an export of its own, or the one as ONNX.
EXPORTS = {**dict.fromkeys(("ONNX Runtime", *OPENVINO), "ONNX"), QUANTIZED: QUANTIZED}
EXPORTS |= {way: way for way in OURS}
WAYS = (*PEERS, *EXPORTS, *LIMITS)
BASES = (
    "GluonCV",
    "PyTorch eager",
    "PyTorch bf16 compiled",
    "ONNX Runtime",
    "OpenVINO bfloat16",
    QUANTIZED,
)
CALIBRATION = 32  # images
CHECKED = 4  # images whose logits are compared
WARM_UP = 3  # calls


def write(what: str, model: str, image_shape: tuple[int, ...], folder: Path) -> None:
    """Exports `model`, always with the same weights, as one of `EXPORTS`."""
    import mxnet as mx

    from gluon_resnetv2.exports.export import Form, export
    from gluon_resnetv2.net import ResNetV2
    from gluon_resnetv2.training.statistics import recalibrate
    from gluon_resnetv2.training.step import forward_backward

    net = ResNetV2(named(model))
    mx.random.seed(0)
    net.initialize()
    pixels = np.random.RandomState(0).randint(0, 256, (CALIBRATION, *image_shape), dtype="uint8")
    mean, std = 127.5, 73.9  # of such pixels
    images = mx.nd.array((pixels - mean) / std)

    def run(*args):
        return forward_backward(net, *args)

    recalibrate(net, [[images]], run)  # or the activations of a deep network grow out of bounds
    # A class that is ahead, as in a trained network: an export of 8 bits is refused over near ties.
    logits = net(images)
    net.output.bias.data()[0] += (logits.max() - logits.min()).asscalar()
    precision, fused = OURS.get(what, OURS[PLAIN])
    export(
        net,
        folder,
        image_shape,
        form=Form(precision=precision, fused=fused),
        onnx=what in ("ONNX", QUANTIZED),
        classes=[str(number) for number in range(net.spec.classes)],
        mean=[mean] * image_shape[0],
        std=[std] * image_shape[0],
        calibration=lambda: pixels,
    )
    if what == QUANTIZED:
        import nncf
        import openvino

        (path,) = folder.glob("*.onnx")
        examples = [image[None] for image in images.asnumpy()]
        network = nncf.quantize(openvino.Core().read_model(path), nncf.Dataset(examples))
        openvino.save_model(network, folder / QUANTIZED_FILE)


def runner(way: str, model: str, scratch: Path, threads: int, shape: tuple[int, ...]):
    """A function from images of `shape` to what the way's runtime gives."""
    spec = named(model)
    if way == "GluonCV":
        return gluoncv_inference(spec)
    if way == "MXNet Module":
        return module_inference(spec, shape)
    if way.startswith("PyTorch"):
        return torch_inference(spec, way)
    if "native" in way:
        return native_runner(scratch / EXPORTS[way], shape)
    if way in OURS:
        return mxnet_runner(scratch / EXPORTS[way], shape)
    (path,) = (scratch / EXPORTS[way]).glob(QUANTIZED_FILE if way == QUANTIZED else "*.onnx")
    if way == "ONNX Runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        return lambda images: session.run(None, {"data": images})[0]
    import openvino

    core = openvino.Core()
    network = core.read_model(str(path))
    network.reshape({"data": list(shape)})
    compiled = core.compile_model(
        network,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": OPENVINO[way],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    return lambda images: compiled(images)[0]


def native_runner(folder: Path, shape: tuple[int, ...]):
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.formats.artifact import load

    return Predictor(load(folder), max_batch=shape[0], engine="native").run


def mxnet_runner(folder: Path, shape: tuple[int, ...]):
    # The graph is fused in the file, or not at all.
    os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"
    import mxnet as mx

    (symbol,), (params,) = folder.glob("*-symbol.json"), folder.glob("*-0000.params")
    symbol, images = mx.sym.load(str(symbol)), mx.nd.zeros(shape)
    values = {name.partition(":")[2]: value for name, value in mx.nd.load(str(params)).items()}
    executor = symbol.bind(
        mx.cpu(),
        {name: values.get(name, images) for name in symbol.list_arguments()},
        aux_states={name: values[name] for name in symbol.list_auxiliary_states()},
        grad_req="null",
    )

    def run(given):
        images[:] = given
        return executor.forward(is_train=False)[0].asnumpy()

    return run


def measure(
    way: str, model: str, scratch: Path, threads: int, shape: tuple[int, ...], seconds: float
) -> tuple[float, np.ndarray]:
    """Images per second, and the first outputs."""
    import gluon_resnetv2  # noqa: F401  # prepares MXNet

    if way in LIMITS:
        return multiply_adds(way) / named(model).multiply_adds(shape[-1]), np.empty(0)
    images = np.random.RandomState(0).normal(size=shape).astype("float32")
    run = runner(way, model, scratch, threads, shape)
    outputs = run(images)[:CHECKED].copy()
    return shape[0] / rounds.median_seconds(lambda: run(images), seconds, WARM_UP), outputs


def differences(outputs: dict[str, np.ndarray]) -> dict[str, float]:
    """How far each way that has our weights is from our float32, where that is there."""
    if PLAIN not in outputs:
        return {}
    expected = outputs[PLAIN]
    return {
        way: relative_difference(found, expected)
        for way, found in outputs.items()
        if way in EXPORTS
    }


def cases(
    models: Sequence[str],
    ways: Sequence[str],
    count: int,
    seconds: float,
    batch_sizes: Sequence[int],
    threads: int,
    image_size: int | None = None,
) -> Iterator[dict]:
    """Measures each model with each size of batch, in `count` rounds."""
    for model in models:
        size = image_size or rounds.usual_size(model)
        image_shape = (named(model).in_channels, size, size)
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            kinds = dict.fromkeys(EXPORTS[way] for way in ways if way in EXPORTS)
            _, unwritten = rounds.alternate(
                kinds,
                1,
                lambda kind, job=(model, image_shape), to=scratch: in_a_fresh_process(
                    write, kind, *job, to / kind
                ),
            )
            failed = {way: unwritten[EXPORTS[way]] for way in ways if EXPORTS.get(way) in unwritten}
            for batch_size in batch_sizes:
                job = model, scratch, threads, (batch_size, *image_shape), seconds
                found, left_out = rounds.alternate(
                    [way for way in ways if way not in failed],
                    count,
                    lambda way, job=job: in_a_fresh_process(measure, way, *job),
                )
                speeds = {way: [speed for speed, _ in values] for way, values in found.items()}
                outputs = {way: values[0][1] for way, values in found.items()}
                yield rounds.case(
                    f"{model}, inference, {size}x{size}, batch {batch_size}",
                    "images/s",
                    speeds,
                    (*BASES, *LIMITS),
                    {**failed, **left_out},
                    differences(outputs),
                )


def main() -> None:
    parser = rounds.parser(__doc__, WAYS, models=("preact20", "preact110", "preact164"))
    parser.add_argument("--batch-sizes", nargs="+", type=rounds.at_least_1, default=[64, 1])
    parser.add_argument("--image-size", type=rounds.at_least_1, help="default: 32 or 224")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    args = parser.parse_args()
    sizes = args.batch_sizes, args.threads, args.image_size
    rounds.compare(__doc__, args, cases(args.models, args.ways, args.rounds, args.seconds, *sizes))


if __name__ == "__main__":
    cli.run(main)
