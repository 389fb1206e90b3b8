"""GluonCV's detector SSD on an export, trained for an epoch on boxes that are made up.

python examples/gluoncv/ssd.py --export runs/imagenet/export --images 512

Squares and discs on noise; GluonCV's augmentation, targets, loss and metric. Without --export, the
backbone is a network that is not trained. A dozen steps show the loss fall; 960 images are enough
for boxes that fit.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    import mxnet as mx
    import numpy as np
    from gluoncv.data.batchify import Stack, Tuple
    from gluoncv.data.transforms.presets.ssd import SSDDefaultTrainTransform, SSDDefaultValTransform
    from gluoncv.loss import SSDMultiBoxLoss
    from gluoncv.model_zoo.ssd import SSD
    from gluoncv.utils import split_and_load
    from gluoncv.utils.metrics import VOC07MApMetric
    from mxnet import autograd, gluon

    from gluon_resnetv2 import get_model
    from gluon_resnetv2.exports.export import export
    from gluon_resnetv2.formats.artifact import Artifact, load
    from gluon_resnetv2.interop.gluoncv import feature_layers, initialize_rest, network

CLASSES = ("square", "disc")
SIZE = 128  # of the images, in pixels
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, as GluonCV's


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", help="folder of an export or of a run, of an ImageNet network")
    parser.add_argument("--model", default="preact18", help="the backbone without --export")
    parser.add_argument("--images", type=int, default=96, help="of the epoch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.003)
    options = parser.parse_args()

    for seed in (random.seed, np.random.seed, mx.random.seed):
        seed(0)
    with tempfile.TemporaryDirectory() as folder:
        artifact = load(options.export) if options.export else untrained(options.model, folder)
        net = detector(artifact)
    train(net, options.images, options.batch_size, options.lr)
    name, precision = evaluate(net, options.batch_size)
    print(f"{name[-1]} on {options.batch_size} other images: {precision[-1]:.3f}")


def untrained(model: str, folder: str) -> Artifact:
    net = get_model(model)
    net.initialize()
    classes = [str(index) for index in range(net.spec.classes)]
    return export(net, f"{folder}/export", (3, 64, 64), classes=classes, mean=MEAN, std=STD)


def detector(artifact: Artifact) -> SSD:
    """Boxes at strides 8, 16 and 32, read from the last three stages, and at 64."""
    with warnings.catch_warnings():
        # GluonCV does not tell MXNet the type of its input.
        warnings.filterwarnings("ignore", "Cannot decide type", UserWarning)
        net = SSD(
            network(artifact),
            base_size=SIZE,
            features=feature_layers(artifact)[1:],
            num_filters=[128],
            sizes=[16, 32, 56, 80, 104],
            ratios=[[1, 2, 0.5]] * 4,
            steps=[8, 16, 32, 64],
            classes=CLASSES,
            anchor_alloc_size=SIZE // 8,
        )
    initialize_rest(net)
    return net


def train(net: SSD, images: int, batch_size: int, lr: float) -> list[float]:
    """One epoch; prints and returns the loss of each step."""
    with autograd.train_mode():
        anchors = net(mx.nd.zeros((1, 3, SIZE, SIZE)))[2]
    batches = gluon.data.DataLoader(
        shapes(images, seed=0).transform(SSDDefaultTrainTransform(SIZE, SIZE, anchors)),
        batch_size,
        batchify_fn=Tuple(Stack(), Stack(), Stack()),
        last_batch="discard",
    )
    net.hybridize()
    settings = {"learning_rate": lr, "momentum": 0.9, "wd": 5e-4}
    trainer = gluon.Trainer(net.collect_params(), "sgd", settings)
    multi_box, losses = SSDMultiBoxLoss(), []
    for batch in batches:
        (pixels,), (classes,), (boxes,) = (split_and_load(part, [mx.cpu()]) for part in batch)
        with autograd.record():
            found_classes, found_boxes, _ = net(pixels)
            (loss,), of_classes, of_boxes = multi_box(found_classes, found_boxes, classes, boxes)
        loss.backward()
        trainer.step(1)  # the loss is per box already
        losses.append(loss.sum().asscalar())
        parts = of_classes[0].sum().asscalar(), of_boxes[0].sum().asscalar()
        print(
            "step {}: loss {:.3f}, of classes {:.3f}, of boxes {:.3f}".format(
                len(losses), losses[-1], *parts
            )
        )
    return losses


def evaluate(net: SSD, images: int) -> tuple:
    metric = VOC07MApMetric(iou_thresh=0.5, class_names=CLASSES)
    net.hybridize()  # forgets the graph for training, which gives no boxes
    prepared = shapes(images, seed=1).transform(SSDDefaultValTransform(SIZE, SIZE))
    for image, boxes in prepared:
        ids, scores, found = net(image.expand_dims(0))
        metric.update(found.clip(0, SIZE), ids, scores, boxes[None, :, :4], boxes[None, :, 4:5])
    return metric.get()


def shapes(count: int, seed: int) -> gluon.data.SimpleDataset:
    """Images (SIZE, SIZE, 3), each with (left, top, right, bottom, class) of one or two shapes."""
    return gluon.data.SimpleDataset(
        [draw(np.random.RandomState((seed, index))) for index in range(count)]
    )


def draw(rng: np.random.RandomState) -> tuple[mx.nd.NDArray, np.ndarray]:
    image, rows = rng.randint(0, 96, (SIZE, SIZE, 3)), []
    for half in range(rng.randint(1, 3)):  # the left, then the right, so that none overlap
        size = rng.randint(SIZE // 5, SIZE // 2 - 4)
        left, top = half * SIZE // 2 + rng.randint(SIZE // 2 - size), rng.randint(SIZE - size)
        kind = rng.randint(len(CLASSES))
        y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * 2 / size
        inside = (x**2 + y**2 <= 1) if CLASSES[kind] == "disc" else np.ones((size, size), bool)
        image[top : top + size, left : left + size][inside] = rng.randint(128, 256, 3)
        rows.append([left, top, left + size, top + size, kind])
    return mx.nd.array(image, dtype="uint8"), np.array(rows, "float32")


if __name__ == "__main__":
    cli.run(main)
