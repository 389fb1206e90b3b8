"""Speed of every form of an export, beside ONNX Runtime and OpenVINO on the same network.

python benchmarks/inference.py
python benchmarks/inference.py --model preact50 --batch-size 8 --seconds 20

The ways take turns, each time in a fresh process, all with the same number of threads and on the
same images. A call takes a NumPy array and gives one. Times of calls are pooled over the processes;
the spread is from the 10th to the 90th percentile. The weights are random: `difference` is the
largest difference from float32's logits, relative to the largest of them, and shows that each way
computes the same network, not how well a trained one would fare.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process
from gluon_resnetv2 import cli
from gluon_resnetv2.runtime import cpus
from gluon_resnetv2.spec import named

PLAIN = "MXNet float32, plain"
# (precision, fused) of an export, or what OpenVINO is to compute in; ONNX Runtime has no choice.
WAYS = {
    PLAIN: ("float32", False),
    "MXNet float32, fused": ("float32", True),
    "MXNet bfloat16": ("bfloat16", True),
    "MXNet int8": ("int8", True),
    "ONNX Runtime float32": None,
    "OpenVINO float32": "f32",
    "OpenVINO bfloat16": "bf16",
}
CALIBRATION = 32  # images
CHECKED = 4  # images whose logits are compared
LEAST = 3  # calls, however long they take


def folder_of(scratch: Path, way: str) -> Path:
    """Where `write` puts what a way runs."""
    precision, fused = WAYS[way] if way.startswith("MXNet") else ("float32", False)
    return scratch / f"{precision}-{fused}"


def write(model: str, shape: tuple, scratch: Path) -> bool:
    """Exports `model` with random weights for every way; returns whether as ONNX too."""
    import mxnet as mx

    from gluon_resnetv2.deploy.export import Form, export
    from gluon_resnetv2.errors import UserError
    from gluon_resnetv2.net import ResNetV2

    net = ResNetV2(named(model))
    mx.random.seed(0)
    net.initialize()
    pixels = np.random.RandomState(0).randint(0, 256, (CALIBRATION, *shape), dtype="uint8")
    described = {
        "classes": [str(number) for number in range(net.spec.classes)],
        "mean": [127.5] * shape[0],
        "std": [73.9] * shape[0],  # of such pixels
        "calibration": lambda: pixels,
    }
    for way in WAYS:
        if way.startswith("MXNet") and way != PLAIN:
            precision, fused = WAYS[way]
            form = Form(precision=precision, fused=fused)
            export(net, folder_of(scratch, way), shape, form=form, **described)
    plain = folder_of(scratch, PLAIN)
    try:
        export(net, plain, shape, onnx=True, **described)
        return True
    except UserError:  # what ONNX needs is not installed
        export(net, plain, shape, **described)
        return False


def runner(way: str, scratch: Path, threads: int, shape: tuple):
    """A function from images of `shape` to logits, compiled by the way's runtime."""
    if way.startswith("MXNet"):
        return mxnet_runner(folder_of(scratch, way), shape)
    (path,) = folder_of(scratch, way).glob("*.onnx")
    if way.startswith("ONNX"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        return lambda images: session.run(None, {"data": images})[0]
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({"data": list(shape)})
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": WAYS[way],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    return lambda images: compiled(images)[0]


def mxnet_runner(folder: Path, shape: tuple):
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


def measure(way: str, scratch: Path, threads: int, shape: tuple, seconds: float):
    """Seconds of each call, and the first logits; None where the runtime is not installed."""
    import gluon_resnetv2  # noqa: F401  # prepares MXNet

    images = np.random.RandomState(0).normal(size=shape).astype("float32")
    try:
        run = runner(way, scratch, threads, shape)
    except ImportError:
        return None
    for _ in range(2):  # the first call plans its memory and lays out the weights
        logits = run(images)[:CHECKED].copy()
    times, end = [], time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < end:
        started = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - started)
    return times, logits


def row(way: str, batch_size: int, runs: list, plain: list) -> None:
    """Prints a line of the table; the ways' runs are lists of what `measure` returned."""
    if None in runs:
        print(f"{way:<22}  not installed")
        return
    times = np.concatenate([times for times, _ in runs])
    low, median, high = np.percentile(times, [10, 50, 90])
    expected = plain[0][1]
    difference = np.abs(runs[0][1] - expected).max() / np.abs(expected).max()
    ratio = np.median(np.concatenate([times for times, _ in plain])) / median
    print(
        f"{way:<22}{len(times):>6}{1e3 * median:>10.2f}{f'{1e3 * low:.2f}-{1e3 * high:.2f}':>18}"
        f"{batch_size / median:>11.0f}{ratio:>8.2f}{difference:>13.1e}"
    )


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="preact20", help="as in train/cifar.py")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way")
    parser.add_argument("--threads", type=int, default=cpus(), help="that each way may use")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # the processes inherit it
    spec = named(args.model)
    size = 32 if spec.stem == "cifar" else 224
    image_shape = (spec.in_channels, size, size)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with_onnx = in_a_fresh_process(write, args.model, image_shape, scratch)
        for batch_size in (args.batch_size, 1):
            runs = {way: [] for way in WAYS}
            for _ in range(args.rounds):
                for way, found in runs.items():
                    job = way, scratch, args.threads, (batch_size, *image_shape), args.seconds
                    known = with_onnx or way.startswith("MXNet")
                    found.append(in_a_fresh_process(measure, *job) if known else None)
            print(f"{args.model} at {size}x{size}, batch {batch_size}, {args.threads} threads")
            print(
                f"{'':<22}{'n':>6}{'ms':>10}{'spread':>18}{'images/s':>11}{'ratio':>8}"
                f"{'difference':>13}"
            )
            for way, found in runs.items():
                row(way, batch_size, found, runs[PLAIN])
            print(flush=True)


if __name__ == "__main__":
    cli.run(main)
