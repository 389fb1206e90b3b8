"""GluonCV's transforms and metrics on an export, against this package's own predictor.

python examples/gluoncv/evaluate.py --export runs/digits-preact20/export

The images are the test part of the handwritten digits. Without --export, a network that is not
trained is exported first; it knows one digit in ten.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    import mxnet as mx
    import numpy as np
    from gluoncv.data.transforms.presets.imagenet import transform_eval
    from gluoncv.utils.metrics.accuracy import Accuracy
    from mxnet.gluon.data import ArrayDataset, DataLoader

    from gluon_resnetv2 import data, get_model
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.exports.export import export
    from gluon_resnetv2.formats.artifact import Artifact, load
    from gluon_resnetv2.interop.gluoncv import network, transform_options


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", help="folder of an export or of a run, of 10 classes")
    parser.add_argument("--model", default="preact20", help="what is exported without --export")
    parser.add_argument("--images", type=int, default=360, help="how many of the 360 digits")
    parser.add_argument("--batch-size", type=int, default=60)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        artifact = load(options.export) if options.export else untrained(options.model, folder)
        digits = data.load("digits", image_size=artifact.manifest.input.shape[1]).test
        images, labels = digits.images[: options.images], digits.labels[: options.images]
        probabilities = evaluate(artifact, images, labels, options.batch_size)
        ours = Predictor(artifact).probabilities(images.transpose(0, 3, 1, 2))
    same = (probabilities.argmax(1) == ours.argmax(1)).sum()
    difference = np.abs(probabilities - ours).max()
    print(f"Predictor: {100 * (ours.argmax(1) == labels).mean():.2f} % right")
    print(f"the same class for {same} of {len(ours)} images, probabilities to {difference:.1e}")


def untrained(model: str, folder: str) -> Artifact:
    net = get_model(model)
    net.initialize()
    digits = data.load("digits")
    return export(
        net,
        f"{folder}/export",
        (3, 32, 32),
        classes=digits.classes,
        mean=digits.mean,
        std=digits.std,
    )


def evaluate(artifact: Artifact, images, labels, batch_size: int) -> np.ndarray:
    """Prints accuracies in GluonCV's way; the probabilities (N, classes)."""
    preparing = transform_options(artifact)
    dataset = ArrayDataset(mx.nd.array(images, dtype="uint8"), labels)
    dataset = dataset.transform_first(lambda image: transform_eval(image, **preparing)[0])
    net = network(artifact)
    net.hybridize()
    metrics = mx.metric.CompositeEvalMetric([Accuracy(), mx.metric.TopKAccuracy(5)])
    probabilities = []
    for batch, answers in DataLoader(dataset, batch_size):
        outputs = mx.nd.softmax(net(batch))
        metrics.update([answers], [outputs])
        probabilities.append(outputs.asnumpy())
    for name, value in zip(*metrics.get()):
        print(f"GluonCV: {name} {100 * value:.2f} %")
    return np.concatenate(probabilities)


if __name__ == "__main__":
    cli.run(main)
