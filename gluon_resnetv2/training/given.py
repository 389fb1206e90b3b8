"""Weights that a run begins with, and what of the run follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gluon_resnetv2.checkpoint import State, valid_checkpoints
from gluon_resnetv2.data import Dataset
from gluon_resnetv2.data.imagenet.dataset import ImageFiles
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.manifest import NORMALISING, PREPARING
from gluon_resnetv2.interop import beginning, source
from gluon_resnetv2.interop.source import Source, for_channels
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import IMAGE_SIZES
from gluon_resnetv2.training import datasets
from gluon_resnetv2.training.fields import words
from gluon_resnetv2.training.network import FIELDS, fields_of
from gluon_resnetv2.training.recipe import Recipe


def with_network(recipe: Recipe, told: Mapping[str, Any]) -> Recipe:
    """A recipe whose network is that of the weights that it begins with.

    Args:
        told: options of the network that were given, by field; they have to mean the same one.

    Raises:
        UserError: they mean another, or there are no such weights.
    """
    found, _ = _read(recipe.init_from)
    try:
        fields = fields_of(found.spec)
    except UserError as error:
        raise UserError(f"--init-from {recipe.init_from}: {error}") from None
    taken = dataclasses.replace(recipe, **{**dict.fromkeys(FIELDS[1:]), **fields, **told})
    if apart := beginning.difference(found.spec, taken.spec(found.spec.classes)):
        raise UserError(
            f"--init-from {recipe.init_from} holds {found.spec.name}, {apart}; "
            f"leave out {words(told.items())}"
        )
    return taken


class Given:
    """What a run begins with: the weights that its recipe names, or none.

    A run that goes on has all in its checkpoint; the weights need not be there any more.

    Args:
        resume: whether it goes on in the recipe's folder, if there is a run.

    Raises:
        UserError: there are no such weights.
    """

    def __init__(self, recipe: Recipe, resume: bool = False):
        self.recipe = recipe
        self.source: Source | None = None
        self.state: State | None = None
        self.lines: list[str] = []
        if not recipe.init_from:
            return
        if resume and recipe.output:
            begun = valid_checkpoints(recipe.output, warn=lambda line: None)
            self.state = next((state for _, state in begun), None)
        if self.state is None:
            self.source, remarks = _read(recipe.init_from)
            self.lines += remarks
            _read.cache_clear()  # to be read once; then it is memory

    @property
    def described(self) -> Mapping[str, Any]:
        """How the weights have seen images, as far as the data set is to follow."""
        if self.state:
            return vars(self.state.input)
        if self.source and self.recipe.normalise_by == "source":
            return self.source.preparation(IMAGE_SIZES["imagenet"])
        return {}

    def prepare(self, dataset: Dataset) -> Dataset:
        """The data set, with its images prepared as those were that the weights have seen."""
        if self.state:
            return prepared(dataset, vars(self.state.input))
        if self.source is None or self.recipe.normalise_by == "data":
            return dataset
        described = self.source.preparation(dataset.image_shape[1])
        ready = prepared(dataset, described)
        usual = datasets.scaling({})
        before = {name: getattr(dataset, name) for name in (*NORMALISING, "crop")} | usual
        now = {name: getattr(ready, name) for name in PREPARING}
        if now != before:
            shown = [(name, value) for name, value in now.items() if value != usual.get(name)]
            told = ", ".join(f"{name} {_said(value)}" for name, value in shown)
            self.lines.append(f"images are prepared as for these weights: {told}")
        return ready

    def begin(self, net: ResNetV2, dataset: Dataset) -> None:
        """Gives a network, initialised, the weights.

        Raises:
            UserError: as `beginning.begin`.
        """
        if self.source:
            beginning.begin(net, self.source, dataset.classes, self.lines.append)


def prepared(dataset: Dataset, described: Mapping[str, Any]) -> Dataset:
    """A data set that normalises its images by other numbers and, of images in files, cuts them so.

    Args:
        described: "mean" and "std" of each channel, 0 to 255, and "crop".
    """
    channels = dataset.image_shape[0]
    ready = dataset.normalised_by(
        *(tuple(for_channels(described[key], channels)) for key in NORMALISING)
    )
    if isinstance(ready, ImageFiles):
        ready.crop = described["crop"]
    return ready


@lru_cache(maxsize=1)
def _read(name: str) -> tuple[Source, list[str]]:
    """The weights, and what is to be told of them."""
    lines: list[str] = []
    found = source.read(name, report=lines.append, classes=1)
    return found, [f"--init-from {found}", *lines]


def _said(value) -> str:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return ",".join(f"{one:.6g}" if isinstance(one, float) else str(one) for one in values)
