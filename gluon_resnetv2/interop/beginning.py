"""Networks that begin with weights that were given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.interop.layout import Arrays
from gluon_resnetv2.interop.source import Source, check_fits
from gluon_resnetv2.net import CLASSIFIER, ResNetV2
from gluon_resnetv2.spec import Spec

# What a network may have else than the one whose weights it begins with.
FREE = {"name", "classes", "in_channels"}


def begin(
    net: ResNetV2,
    source: Source,
    classes: Sequence[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Gives a network the weights of a source.

    The classifier stays as it was initialised where the source has none or one of other classes.
    Where the source takes images of several channels and the network of one, the first layer
    computes as if each channel were that one; where it is the other way round, as if the one were
    the mean of the channels.

    Args:
        net: the network, initialised as if it were to be trained from scratch.
        classes: the names of the network's classes; None: they are not known.
        report: is told, in a line each, what becomes of the classifier and the first layer.

    Raises:
        UserError: the weights are another network's; `net` is as it was then.
    """
    spec = net.spec
    if found := difference(source.spec, spec):
        raise UserError(f"{source.path} holds {source.spec.name}, {found}")
    values, lines = dict(source.ours), []
    kept, why = same_classes(source, spec.classes, classes)
    if not kept:
        values = {name: array for name, array in values.items() if name not in CLASSIFIER}
    if why:
        lines.append(f"{source.path}: the classifier is {'kept' if kept else 'new'}, as {why}")
    if source.spec.in_channels != spec.in_channels:
        values, told = _other_channels(values, source.spec.in_channels, spec.in_channels)
        lines.append(f"{source.path}: {told}")
    # Built within another block's scope, as by SSD, a network has that one's prefix.
    own = {name.removeprefix(net.prefix): p for name, p in net.collect_params().items()}
    new = {name: np.empty(own[name].shape) for name in CLASSIFIER if name not in values}
    check_fits({**values, **new}, spec, source.path)
    for name, array in values.items():
        own[name].set_data(mx.nd.array(array, dtype=own[name].dtype))
    for line in lines:
        report(line)


def difference(held: Spec, wanted: Spec) -> str:
    """In words, the first switch in which networks differ that should have the same weights."""
    for field in dataclasses.fields(Spec):
        ours, theirs = getattr(wanted, field.name), getattr(held, field.name)
        if field.name not in FREE and ours != theirs:
            return f"whose {field.name} is {theirs}, not {ours} as in {wanted.name}"
    return ""


def same_classes(source: Source, count: int, classes: Sequence[str] | None) -> tuple[bool, str]:
    """Whether a source's classifier is for these classes, and why, if that is not known already."""
    if source.headless:
        return False, ""
    if source.spec.classes != count:
        return False, f"it had {source.spec.classes} classes, and there are {count} now"
    if source.classes is None or classes is None:
        return True, f"there are {count} classes as before; what they were called is not known"
    for number, (before, now) in enumerate(zip(source.classes, classes)):
        if before != now:
            return False, f"class {number} was {before!r} and is {now!r} now"
    return True, f"the {count} classes are the same"


def _other_channels(values: Arrays, before: int, now: int) -> tuple[dict[str, np.ndarray], str]:
    """The parameters for images of another number of channels, and what was done, in words.

    The sum over what was several channels answers to one image as they did to it in each of them.
    """
    if 1 not in (before, now):
        raise UserError(f"weights for {before} channels can't be those for {now}; one of them is 1")
    told = "weights are summed for 1 channel" if now == 1 else f"weight is shared by {now} channels"
    changed = {"conv0_weight": values["conv0_weight"].sum(axis=1, keepdims=True) / now}
    changed["conv0_weight"] = np.repeat(changed["conv0_weight"], now, axis=1)
    statistics = [name for name in values if name.startswith("bn_data_")]
    for name in statistics:
        changed[name] = np.full(now, values[name].mean(), np.float32)
    if statistics:
        told += ", and bn_data has their mean"
    return {**values, **changed}, f"the first layer's {told}"
