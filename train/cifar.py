"""Trains a residual network on CIFAR, or on the handwritten digits that come with the package.

python train/cifar.py --model preact1001 --gpus 0,1,2,3
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    import mxnet as mx

    from gluon_resnetv2.deploy.artifact import export_run
    from gluon_resnetv2.deploy.verify import report
    from gluon_resnetv2.net import ResNetV2, he_normal
    from gluon_resnetv2.training.devices import contexts
    from gluon_resnetv2.training.loop import fit
    from gluon_resnetv2.training.recipe import Recipe, add_options
    from gluon_resnetv2.training.run import Run, check_folder


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add_options(parser)
    recipe = Recipe(**vars(parser.parse_args()))

    devices = contexts(recipe.gpus, recipe.cpus)
    check_folder(recipe)
    recipe.spec(classes=1)  # an impossible network is refused before anything is downloaded
    dataset = recipe.load_data()

    spec = recipe.spec(len(dataset.classes))
    run = Run(recipe)
    print(f"{spec.name}, {spec.parameter_count():,} parameters, on {devices}: {run.folder}")
    mx.random.seed(recipe.seed)
    net = ResNetV2(spec)
    net.initialize(he_normal(recipe.init), ctx=devices)
    net.cast(recipe.dtype)
    net.hybridize(static_alloc=True, static_shape=True)

    last = fit(net, dataset, recipe, devices, run)
    verified = report(export_run(run.folder))
    print(
        f"test accuracy {100 - last['test_error']:.2f} %; learning curves: {run.folder}/curves.png"
    )
    print(f"try: python -m gluon_resnetv2 predict {run.folder} IMAGE")
    return 0 if verified else 1


if __name__ == "__main__":
    cli.run(main)
