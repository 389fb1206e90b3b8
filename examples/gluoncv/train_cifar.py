"""GluonCV's way of training on CIFAR, with a network of ours from its model zoo.

python examples/gluoncv/train_cifar.py --model preact20 --epochs 10 --export runs/gluoncv

Its crops, its learning rates, its history. The images are the handwritten digits that come with
this package, or made up. The network is exported at the end, as `evaluate.py` takes it.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    import mxnet as mx
    import numpy as np
    from gluoncv.data.transforms import RandomCrop
    from gluoncv.model_zoo import get_model
    from gluoncv.utils import LRScheduler, LRSequential, TrainingHistory, split_and_load
    from mxnet import autograd, gluon
    from mxnet.gluon.data.vision import transforms

    from gluon_resnetv2 import data
    from gluon_resnetv2.exports.export import export
    from gluon_resnetv2.interop.gluoncv import register


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="preact20")
    parser.add_argument("--data", choices=("digits", "synthetic"), default="digits")
    parser.add_argument("--image-size", type=int, default=16, help="in pixels")
    parser.add_argument("--epochs", type=int, default=5, help="the first one warms up")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--num-gpus", type=int, default=0, help="0 means the CPU")
    parser.add_argument("--plot", help="file for the learning curves")
    parser.add_argument("--export", help="folder for the trained network")
    options = parser.parse_args()

    for seed in (random.seed, np.random.seed, mx.random.seed):
        seed(0)
    context = [mx.gpu(index) for index in range(options.num_gpus)] or [mx.cpu()]
    images = data.load(options.data, image_size=options.image_size)
    register()
    net = get_model(options.model, classes=len(images.classes))
    net.initialize(ctx=context)
    net.hybridize()
    history = train(net, images, context, options)
    if options.plot:
        history.plot(save_path=options.plot)
    if options.export:
        net.collect_params().reset_ctx(mx.cpu())
        shape = (3, options.image_size, options.image_size)
        details = {"classes": images.classes, "mean": images.mean, "std": images.std}
        print(f"exported to {export(net, options.export, shape, **details).folder}")


def train(net, images: data.Dataset, context: list[mx.Context], options) -> TrainingHistory:
    loaders = load(images, options.batch_size)
    steps = {"iters_per_epoch": len(loaders["train"])}
    warmup = LRScheduler("linear", base_lr=0, target_lr=options.lr, nepochs=1, **steps)
    cosine = LRScheduler("cosine", options.lr, 0, nepochs=max(options.epochs - 1, 1), **steps)
    settings = {"lr_scheduler": LRSequential([warmup, cosine]), "momentum": 0.9, "wd": 1e-4}
    trainer = gluon.Trainer(net.collect_params(), "nag", settings)
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    history = TrainingHistory(["training-error", "test-error"])
    accuracy = mx.metric.Accuracy()
    for epoch in range(options.epochs):
        accuracy.reset()
        for batch in loaders["train"]:
            parts, labels = (split_and_load(part, context, even_split=False) for part in batch)
            with autograd.record():
                outputs = [net(part) for part in parts]
                losses = [loss(*pair) for pair in zip(outputs, labels)]
            autograd.backward(losses)
            trainer.step(len(batch[0]))
            accuracy.update(labels, outputs)
        errors = 1 - accuracy.get()[1], 1 - evaluate(net, loaders["test"], context)
        history.update(errors)
        print("epoch {}: training error {:.3f}, test error {:.3f}".format(epoch + 1, *errors))
    return history


def load(images: data.Dataset, batch_size: int) -> dict[str, gluon.data.DataLoader]:
    """Batches of the training images, cropped and flipped at random, and of the test images."""
    # GluonCV's tensors are in 0..1.
    mean, std = ([value / 255 for value in values] for values in (images.mean, images.std))
    tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    crop = [RandomCrop(images.train.images.shape[1], pad=images.pad)]
    flip = [transforms.RandomFlipLeftRight()] if images.flip else []
    loaders = {}
    for name, part, steps in (
        ("train", images.train, [*crop, *flip, *tensor]),
        ("test", images.test, tensor),
    ):
        dataset = gluon.data.ArrayDataset(mx.nd.array(part.images, dtype="uint8"), part.labels)
        loaders[name] = gluon.data.DataLoader(
            dataset.transform_first(transforms.Compose(steps)),
            batch_size,
            shuffle=name == "train",
            last_batch="discard" if name == "train" else "keep",
        )
    return loaders


def evaluate(net, loader, context) -> float:
    """The part of a loader's images that the network knows."""
    accuracy = mx.metric.Accuracy()
    for batch in loader:
        parts, labels = (split_and_load(part, context, even_split=False) for part in batch)
        accuracy.update(labels, [net(part) for part in parts])
    return accuracy.get()[1]


if __name__ == "__main__":
    cli.run(main)
