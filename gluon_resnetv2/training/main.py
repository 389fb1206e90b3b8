"""What the scripts in train/ do, once they know the recipe: train, export, verify."""

from __future__ import annotations

import sys
from collections.abc import Callable

import mxnet as mx

from gluon_resnetv2.deploy.artifact import export_run
from gluon_resnetv2.deploy.verify import report
from gluon_resnetv2.net import ResNetV2, he_normal
from gluon_resnetv2.training.devices import contexts
from gluon_resnetv2.training.loop import fit
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.run import Run, check_folder


def train(recipe: Recipe, load: Callable, resume: bool = False) -> int:
    """Trains, exports and verifies; returns the exit status.

    Args:
        load: makes the recipe's data set.
        resume: go on with the run in `recipe.output`, if there is one.

    Raises:
        UserError, OSError: as `fit`, `Run` and `export_run`.
    """
    devices = contexts(recipe.gpus, recipe.cpus)
    if not resume:
        check_folder(recipe)
    recipe.spec(classes=1)  # an impossible network is refused before anything is downloaded
    dataset = load(recipe)
    spec = recipe.spec(len(dataset.classes))
    run = Run(recipe, resume=resume)
    print(f"{spec.name}, {spec.parameter_count():,} parameters, on {devices}: {run.folder}")

    mx.random.seed(recipe.seed)
    net = ResNetV2(spec)
    net.initialize(he_normal(recipe.init), ctx=devices)
    net.cast(recipe.dtype)
    net.hybridize(static_alloc=True, static_shape=True)
    last = fit(net, dataset, recipe, devices, run)
    if last is None:
        print(f"stopped; go on with: python {sys.argv[0]} --resume {run.folder}")
        return 0
    run.close()
    verified = report(export_run(run.folder))
    print(
        f"test accuracy {100 - last['test_error']:.2f} %; learning curves: {run.folder}/curves.png"
    )
    print(f"try: python -m gluon_resnetv2 predict {run.folder} IMAGE")
    return 0 if verified else 1
