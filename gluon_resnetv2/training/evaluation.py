"""What the verb `evaluate` does: the test error of a run or of an exported pair."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mxnet as mx
from tqdm import tqdm

from gluon_resnetv2 import data
from gluon_resnetv2.checkpoint import checkpoints, load_run
from gluon_resnetv2.data.imagenet.dataset import ImageFiles
from gluon_resnetv2.engines import choice
from gluon_resnetv2.engines.native.block import native_arrays, native_block, native_symbol
from gluon_resnetv2.engines.runtimes import as_block
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.artifact import Artifact, load
from gluon_resnetv2.formats.manifest import Input
from gluon_resnetv2.spec import IMAGE_SIZE_MAX
from gluon_resnetv2.training import statistics
from gluon_resnetv2.training.answers import Answers
from gluon_resnetv2.training.datasets import load_data
from gluon_resnetv2.training.devices import split
from gluon_resnetv2.training.given import prepared
from gluon_resnetv2.training.meter import evaluate
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.report import PICTURES, check_folder, write_report
from gluon_resnetv2.training.step import forward_backward
from gluon_resnetv2.training.views import evaluate_views


def evaluate_source(
    source: str | Path,
    devices: Sequence[mx.Context],
    *,
    checkpoint: str = "last",
    engine: str = "auto",
    dataset: str | None = None,
    data_dir: str | None = None,
    batch_size: int = 64,
    size: int | None = None,
    crops: int = 1,
    scales: Sequence[int] = (),
    recalibrate: int = 0,
    threads: int | None = None,
    leave_out: bool = False,
    report: str | Path | None = None,
) -> dict[str, Any]:
    """The error of a run's checkpoint or of an export on its test images, each counted once.

    Args:
        source: a run's folder, or an export's.
        checkpoint: of a run: "last", "best" or the number of a step.
        engine: what computes: "mxnet", "native", or "auto" for native where it can and is right.
        dataset, data_dir: what to test on; by default the run's. With "folder" the test images are
            the held-out part of `data_dir`, or all of it, and classes are matched by name.
        threads, leave_out: for images in files, as `folders.load` takes them; `leave_out` by
            default as the run.
        size, crops, scales: for images that are cut out, as `views.evaluate_views` takes them.
        recalibrate: over how many training batches a run's moving statistics are measured anew.
        report: a new or empty folder for a report, as `report.write_report` writes it.

    Returns:
        A dictionary with "error" and "error5" as of `Answers.errors`, "loss" and "images"; and
        "engine", the one taken, and why not native where "auto" did not.

    Raises:
        UserError: the source or the data can't be read, or an option does not fit them.
    """
    if report is not None:
        check_folder(Path(report))
    if batch_size < len(devices):
        raise UserError(f"--batch-size {batch_size} is smaller than the number of devices")
    for option, value, least in (("--size", size, 1), ("--recalibrate", recalibrate, 0)):
        if value is not None and value < least:
            raise UserError(f"{option} must be at least {least}, not {value}")
    for side in scales:
        if not 1 <= side <= IMAGE_SIZE_MAX:
            raise UserError(f"--scales must be 1 to {IMAGE_SIZE_MAX}, as in 224,256: {side}")
    trained = _read(source, checkpoint, devices, recalibrate)
    images = _images(trained, dataset, data_dir, threads, leave_out)
    net = trained.net
    fault = _native_fault(trained, engine, images.image_shape, devices, scales)
    if fault and engine == "native":
        raise UserError(f"--engine native: {fault}")
    if recalibrate:
        batches = images.batches(batch_size, train=True, devices=len(devices))
        few = itertools.islice(data.prefetch(batches), recalibrate)
        rounds = (split(pixels, devices) for pixels, _ in few)
        statistics.recalibrate(net, rounds, partial(forward_backward, net))
    if not fault:
        net = trained.native()
    answers = Answers(len(trained.classes), pictures=PICTURES if report is not None else 0)
    if isinstance(images, ImageFiles):
        with tqdm(total=images.test_count, unit="image", disable=None, leave=False) as bar:
            found = evaluate_views(
                *(net, images, devices, batch_size),
                size=size,
                crops=crops,
                scales=scales,
                progress=bar.update,
                answers=answers,
            )
    elif size or crops != 1 or scales:
        raise UserError(f"--size, --crops and --scales are for cut-out images, not {images.name}")
    else:
        batches = data.prefetch(images.batches(batch_size))
        found = evaluate(net, batches, devices, answers=answers)
        found = {**answers.errors(), **found}
    if report is not None:
        title = f"{source} on {images.name}"
        write_report(Path(report), answers, images, title, found["loss"])
    taken = (
        "native" if not fault else f"mxnet (not native: {fault})" if engine == "auto" else engine
    )
    return {**found, "engine": taken}


@dataclass(frozen=True)
class _Trained:
    """A network that takes normalised images, and what is known of how it was trained.

    Attributes:
        native: makes what computes the same by the native engine.
        native_fault: of images of a shape, as `choice.native_fault`.
    """

    net: Any
    native: Callable[[], Callable]
    native_fault: Callable[[tuple[int, ...]], str]
    recipe: Recipe
    classes: Sequence[str]
    input: Input


def _read(
    source: str | Path, checkpoint: str, devices: Sequence[mx.Context], recalibrate: int
) -> _Trained:
    """A run's checkpoint, or an export, which has no other and can't be recalibrated."""
    if checkpoints(source):
        net, state = load_run(source, checkpoint, devices)
        net.hybridize(static_alloc=True)
        return _Trained(
            net,
            partial(native_block, net, training=False),
            partial(choice.native_fault, net),
            *(Recipe.from_dict(state.recipe), state.classes, state.input),
        )
    artifact = load(source)
    if artifact.manifest is None:
        raise UserError(f"{source} has no manifest.json; evaluate needs a run or an export")
    if recalibrate or checkpoint != "last":
        raise UserError("--recalibrate and --checkpoint need a run's folder, not an export")
    if not artifact.manifest.details.get("recipe"):
        raise UserError(f"{source} does not say what it was trained on")
    return _Trained(
        _exported(artifact, devices),
        partial(_exported, artifact, devices, native=True),
        lambda shape: choice.export_fault(artifact),
        Recipe.from_dict(artifact.manifest.details["recipe"]),
        artifact.manifest.classes,
        artifact.own_manifest().input,
    )


def _images(
    trained: _Trained,
    dataset: str | None,
    data_dir: str | None,
    threads: int | None,
    leave_out: bool,
) -> data.Dataset:
    """The images to evaluate on, prepared as the network has seen them, of the same classes."""
    recipe, described = trained.recipe, trained.input
    others: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "threads": threads}
    given = {name: value for name, value in others.items() if value is not None}
    if leave_out:
        given["leave_out"] = True
    options: dict[str, Any] = {"in_channels": described.shape[0]}
    if dataset not in (None, recipe.dataset):  # what was said of the run's does not hold for it
        size = described.shape[1] if dataset in data.DECODED else None
        gone = {"data_dir": None, "image_size": size, "coarse": False, "augmentation": None}
        given = {**gone, **given}
    if dataset == "folder":  # another one than the run's
        options["classes"] = trained.classes
    recipe = dataclasses.replace(recipe, **given)
    name, taken = recipe.dataset, data.options(recipe.dataset)
    if (threads and "threads" not in taken) or (leave_out and "leave_out" not in taken):
        raise UserError(f"--threads and --leave-out are for images in files, not {name}")
    images = load_data(recipe, vars(described), **options)
    if list(images.classes) != list(trained.classes):
        raise UserError(f"the network has other classes than the data set {name}")
    return prepared(images, vars(described))


def _native_fault(trained, engine, shape, devices, scales) -> str:
    """Why an evaluation does not take the native engine, or ""."""
    if engine == "mxnet":
        return "--engine mxnet"
    if any(device.device_type != "cpu" for device in devices):
        return "--gpus is for MXNet's graph alone"
    if scales:  # it plans anew for each shape
        return "--scales is for MXNet's graph alone"
    return trained.native_fault(shape)


def _exported(artifact: Artifact, devices: Sequence[mx.Context], native: bool = False) -> Callable:
    """What an export computes, from normalised images to logits, whatever its graph takes."""
    pair, manifest = artifact.read(), artifact.own_manifest()
    arguments, statistics = pair.arrays()
    symbol, values = pair.symbol(), {**arguments, **statistics}
    if native:
        symbol = native_symbol(symbol, pair.shape[0], manifest.precision)
        values = native_arrays(values)
    block = as_block(symbol, values, [pair.data], devices)
    block.hybridize(static_alloc=True)
    described = manifest.input
    mean, std = (
        mx.nd.array(numbers).reshape((1, -1, 1, 1)) for numbers in (described.mean, described.std)
    )

    def net(images):
        if described.values == "pixels":
            images = images * std.as_in_context(images.ctx) + mean.as_in_context(images.ctx)
        outputs = block(images)
        return outputs.log() if manifest.output == "probabilities" else outputs

    return net
