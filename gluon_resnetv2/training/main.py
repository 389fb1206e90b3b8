"""From a recipe to a trained network."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import mxnet as mx

from gluon_resnetv2.cli import printable
from gluon_resnetv2.distributed.workers import Workers, connect
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.net import ResNetV2, he_normal
from gluon_resnetv2.training.checks import check_batch, check_shares
from gluon_resnetv2.training.datasets import load_data
from gluon_resnetv2.training.devices import contexts
from gluon_resnetv2.training.frozen import freeze
from gluon_resnetv2.training.given import Given
from gluon_resnetv2.training.loop import fit
from gluon_resnetv2.training.precision import SPACES, SPACES_VARIABLE, check_dtype, check_sync
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.recipes import RECIPES
from gluon_resnetv2.training.run import Run, check_folder


def train_network(
    recipe: Recipe, resume: bool = False, name: str | None = None
) -> tuple[Path, dict | None, Workers]:
    """Trains the network of a recipe.

    Args:
        resume: go on with the run in `recipe.output`, if there is one.
        name: of the recipe, if it has one: the error to expect is printed first.

    Returns:
        The run's folder; the record of its last epoch, None where a signal ended the run before
        that; and the workers that trained.

    Raises:
        UserError, OSError: as `fit` and `Run`.
    """
    if recipe.sync_bn:  # MXNet reads it at its first operation
        os.environ.setdefault(SPACES_VARIABLE, str(SPACES))
    devices = contexts(recipe.gpus, recipe.cpus)
    check_dtype(recipe.dtype, recipe.gpus)
    spec = recipe.spec(classes=1)  # an impossible network is refused before anything is downloaded
    given = Given(recipe, resume)
    if recipe.sync_bn:
        check_sync(devices, dropout=spec.shortcut.random)
    with connect(recipe.kv_store) as workers:
        check_batch(recipe, workers.count)
        check_shares(recipe, workers.count)
        if workers.count > 1 and not recipe.output:
            raise UserError("several workers need --output, a folder that all of them see")
        if workers.rank == 0 and not resume:
            check_folder(recipe)
        if workers.rank == 0 and name in RECIPES:
            print(RECIPES[name].about(name))
        dataset = given.prepare(load_data(recipe, given.described))
        with Run(recipe, resume=resume, writes=workers.rank == 0) as run:
            workers.barrier()  # only now has the folder what the others read
            channels = dataset.image_shape[0]
            net = initial_network(recipe, len(dataset.classes), devices, channels)
            given.begin(net, dataset)
            if run.writes:
                size = f"{net.spec.name}, {net.spec.parameter_count():,} parameters"
                print(f"{size}, on {devices}: {run.folder}", flush=True)
                for line in given.lines:
                    print(printable(line), flush=True)
                if recipe.freeze is not None:
                    learned = [p for p in net.collect_params().values() if p.grad_req != "null"]
                    count = sum(math.prod(parameter.shape) for parameter in learned)
                    print(f"--freeze {recipe.freeze}: {count:,} parameters learn", flush=True)
                whole = dataset.train_count
                if rest := whole - recipe.epoch_images(whole, workers.count):
                    print(f"--sync-bn: each epoch leaves out {rest} of {whole} images, drawn anew")
            last = fit(net, dataset, recipe, devices, run, workers)
    return run.folder, last, workers


def initial_network(
    recipe: Recipe, classes: int, devices: Sequence[mx.Context], in_channels: int | None = None
) -> ResNetV2:
    """The recipe's network with the weights that its training starts from, unless some are given.

    Where a part of it is not to learn, it does not.

    Args:
        classes, in_channels: as `Recipe.spec` takes them.
    """
    mx.random.seed(recipe.seed)  # the same weights for every worker
    sync_devices = len(devices) if recipe.sync_bn else 1
    dtype = "float32" if recipe.dtype == "float64" else recipe.dtype
    net = ResNetV2(recipe.spec(classes, in_channels), dtype=dtype, sync_devices=sync_devices)
    net.initialize(he_normal(recipe.init), ctx=devices, zero_last=recipe.zero_init)
    if recipe.array_dtype != "float32":
        net.cast(recipe.array_dtype)
    if recipe.freeze is not None:
        freeze(net, recipe.freeze)
    net.hybridize(static_alloc=True, static_shape=True)
    return net
