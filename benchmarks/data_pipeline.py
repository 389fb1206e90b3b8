"""How many images a second a core prepares, against what the fastest networks train on.

python benchmarks/data_pipeline.py

Images are generated; nothing is downloaded. Pipelines are measured in seconds of CPU time, so per
core; networks in seconds on all cores, which only a machine that is otherwise idle shows rightly.
The ratio is that of the medians: what one core delivers to what the whole machine takes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks.rounds import load_before
from gluon_resnetv2 import cli, data, machine

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded
    import mxnet as mx
    from mxnet import autograd, gluon

    from gluon_resnetv2 import get_model
    from gluon_resnetv2.data import imagenet

# ImageNet's photos: 500 x 375 pixels where half of them are larger, about 110 kB.
WIDTH, HEIGHT, QUALITY = 500, 375, 92


def make_photos(root: Path, count: int) -> None:
    """`count` JPEGs in root/train and as many in root/val, as large as ImageNet's."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(count):
            folder = root / part / f"class{i % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8)
            photo = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            grain = rng.normal(0, 8, (HEIGHT, WIDTH, 3))
            pixels = (np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.JPEG", quality=QUALITY)
    for part in ("train", "val"):
        imagenet.pack(root / part, root / "rec" / f"{part}.rec")


def passes(dataset, batch_size: int) -> Iterator[int]:
    """Goes through the training images again and again; tells the size of each batch."""
    epoch = 0
    while True:
        for images, _ in dataset.batches(batch_size, train=True, epoch=epoch):
            yield len(images)
        epoch += 1


def training(model: str, size: int, batch_size: int) -> Iterator[int]:
    """Trains on the same batch again and again; tells its size after each step."""
    net = get_model(model)
    net.initialize()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1e-3, "momentum": 0.9})
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    images = mx.nd.random.normal(shape=(batch_size, 3, size, size))
    labels = mx.nd.arange(batch_size) % 10
    while True:
        with autograd.record():
            losses = loss(net(images), labels)
        losses.backward()
        trainer.step(batch_size)
        mx.nd.waitall()
        yield batch_size


def rates(
    sizes: Iterator[int], clock: Callable[[], float], repeats: int, seconds: float
) -> list[float]:
    """Images per second of `clock`, `repeats` times; what comes first is not counted."""
    for _ in range(2):
        next(sizes)
    found = []
    for _ in range(repeats):
        count, started = 0, clock()
        while (passed := clock() - started) < seconds:
            count += next(sizes)
        found.append(count / passed)
    return found


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--photos", type=int, default=256, help="how many to generate")
    options = parser.parse_args()

    def measure(what: str, sizes: Iterator[int], clock: Callable[[], float]) -> float:
        found = rates(sizes, clock, options.repeats, options.seconds)
        print(f"{what:52}{median(found):10.1f}{min(found):12.1f} to {max(found):.1f}", flush=True)
        return median(found)

    def compare(network: str, size: int, batch_size: int, delivered: dict[str, float]) -> None:
        what = f"all cores: {network} trains at {size}x{size}, batch {batch_size}"
        taken = measure(what, training(network, size, batch_size), time.perf_counter)
        for pipeline, rate in delivered.items():
            print(f"  {rate / taken:.1f} times that: {pipeline}")

    print(f"{machine.cpus()} CPUs, load {load_before():.1f} before we begin; images/s")
    print(f"{f'n = {options.repeats}':52}{'median':>10}{'min to max':>20}")
    dataset = data.load("synthetic", image_size=32, train_count=20000)
    what = "one core: 32x32 in memory, padded, cut and mirrored"
    small = {what: measure(what, passes(dataset, 128), time.process_time)}
    large = {}
    with tempfile.TemporaryDirectory() as temporary:
        make_photos(Path(temporary), options.photos)
        for name, root in (("folder", temporary), ("RecordIO", f"{temporary}/rec")):
            for augmentation in ("scale", "scale-aspect"):
                dataset = imagenet.load(root, augmentation=augmentation, threads=1)
                what = f"one core: 224 crops, {name}, {augmentation}"
                large[what] = measure(what, passes(dataset, 32), time.process_time)
    compare("preact20", 32, 128, small)
    compare("preact18", 224, 32, large)


if __name__ == "__main__":
    cli.run(main)
