"""An export gives GluonCV's feature extractors a map of each stage.

python examples/gluoncv/features.py --export runs/imagenet/export

Without --export, a network that is not trained is exported first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    import mxnet as mx
    from gluoncv.nn.feature import FeatureExtractor, FPNFeatureExpander

    from gluon_resnetv2 import get_model
    from gluon_resnetv2.exports.export import export
    from gluon_resnetv2.formats.artifact import Artifact, load
    from gluon_resnetv2.interop.gluoncv import feature_layers, initialize_rest, network


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", help="folder of an export or of a run")
    parser.add_argument("--model", default="preact18", help="what is exported without --export")
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        show(
            load(options.export) if options.export else untrained(options.model, folder),
            options.image_size,
        )


def untrained(model: str, folder: str) -> Artifact:
    net = get_model(model)
    net.initialize()
    classes = [str(index) for index in range(net.spec.classes)]
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's
    return export(net, f"{folder}/export", (3, 32, 32), classes=classes, mean=mean, std=std)


def show(artifact: Artifact, size: int) -> None:
    images = mx.nd.random.normal(shape=(1, artifact.manifest.input.shape[0], size, size))
    layers = feature_layers(artifact)
    inputs = [mx.sym.var("data", dtype="float32")]  # with "data" alone MXNet warns of its type
    extractor = FeatureExtractor(network(artifact), layers, inputs=inputs)
    pyramid = FPNFeatureExpander(network(artifact), layers, [256] * len(layers), inputs=inputs)
    initialize_rest(pyramid)
    for layer, level, merged in zip(layers, extractor(images), pyramid(images)):
        stride = size // level.shape[2]
        print(f"{layer}: stride {stride}, {level.shape}, in the feature pyramid {merged.shape}")


if __name__ == "__main__":
    cli.run(main)
