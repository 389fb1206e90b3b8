"""GluonCV's `get_model` gives our networks by name.

python examples/gluoncv/model_zoo.py --models preact110 resnet20 preact29

After one call of `register` every name of ours is known; the switches of `Spec` are keywords. The
networks are not trained: nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    import mxnet as mx
    from gluoncv.model_zoo import get_model, get_model_list

    from gluon_resnetv2.interop.gluoncv import register


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["preact20", "resnet20", "preact29"])
    parser.add_argument("--classes", type=int, default=100, help="of each")
    parser.add_argument("--image-size", type=int, default=32, help="in pixels")
    options = parser.parse_args()

    theirs = set(get_model_list())
    register()
    ours = [name for name in get_model_list() if name not in theirs]
    print(f"GluonCV lists {len(theirs)} models of its own, and now {', '.join(ours)}")
    images = mx.nd.random.normal(shape=(2, 3, options.image_size, options.image_size))
    for name in options.models:
        net = get_model(name, classes=options.classes)
        net.initialize()
        million = net.spec.parameter_count() / 1e6
        print(f"{name}: {million:.3f} M parameters, {images.shape} -> {net(images).shape}")


if __name__ == "__main__":
    cli.run(main)
