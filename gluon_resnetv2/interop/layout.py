"""How other implementations name and shape the weights of pre-activation ResNets.

A `Layout` is data: names for our modules and fields, and the switches of `Spec` in which its
network differs. All else, here, is the same for every layout: what names and shapes tell of the
network, whether a file holds that network and nothing else, and the way back.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gluon_resnetv2.data.imagenet.dataset import MEAN, STD
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import STEM, UNIT, Spec

Arrays = Mapping[str, np.ndarray]

MODULES = (
    *("bn_data", "conv0", "bn0", "bn1", "fc1"),
    *("stage{s}_unit{u}_bn{i}", "stage{s}_unit{u}_conv{i}", "stage{s}_unit{u}_sc"),
)
UNIT_MODULE = re.compile(r"stage(\d+)_unit(\d+)_([a-z_]+?)(\d*)")
FIELDS = ("weight", "bias", "gamma", "beta", "moving_mean", "moving_var")
# How images are prepared: as most implementations do it for ImageNet, and GluonCV's for CIFAR-10.
IMAGENET_INPUT = {"mean": MEAN, "std": STD, "crop": 0.875}
CIFAR_INPUT = {
    "mean": (125.307, 122.961, 113.8575),
    "std": (51.5865, 50.847, 51.255),
    "crop": 1.0,
}
MOST = 1000  # units: more are no network


@dataclass(frozen=True)
class Facts:
    """What names and shapes tell of a network."""

    stem: str
    stages: tuple[int, ...]
    channels: tuple[int, ...]
    unit: str
    classes: int
    in_channels: int

    def spec(self, **switches: Any) -> Spec:
        """The network, with what names and shapes can't tell."""
        facts = dataclasses.asdict(self)
        depth = sum(self.stages) * len(UNIT[self.unit]) + 2
        return Spec(**{"name": f"preact{depth}", "order": "full_preact", **facts, **switches})


def facts_of(spec: Spec) -> Facts:
    """What names and shapes would tell of a network."""
    return Facts(**{f.name: getattr(spec, f.name) for f in dataclasses.fields(Facts)})


def _same(_name, array):
    return array


@dataclass(frozen=True)
class Layout:
    """The weights of one implementation.

    Attributes:
        name: as the command line takes it.
        about: whose they are, in a few words.
        modules: our modules and theirs. {s}, {u} and {i} stand for numbers of stage, unit and layer
            that count from 1, and {s-1} or {s+4} for others. "..._bn1" goes before "..._bn{i}".
        fields: our fields and what follows a module's name there.
        spec: the network that facts mean here.
        input: how its images are prepared, as `export_parameters` takes it.
        prepare: `input` where weights of ours and the size of images decide, and why, in words
            to be told, if any.
        inside: how the names of the arrays end by which a file's own graph prepares images: "mean"
            and "std", as in `input`.
        decode, encode: an array of theirs as ours and back, given our name for it.
        extra: what a file may hold that no network of ours has, by how its name ends; and the
            array that stands for it on the way back.
        canonical: renames what another way of saving has named otherwise.
        logits: what the implementation itself gives for images (N, C, H, W), from the network and
            its own arrays. It raises ImportError where its package is not installed.
        package: that package's name.
        namesake: another network that has these names and shapes, and computes otherwise.
    """

    name: str
    about: str
    modules: Mapping[str, str]
    fields: Mapping[str, str]
    spec: Callable[[Facts], Spec]
    input: Mapping
    prepare: Callable[[Spec, Arrays, int], tuple[Mapping, str]] | None = None
    inside: Mapping[str, str] = field(default_factory=dict)
    decode: Callable[[str, np.ndarray], np.ndarray] = _same
    encode: Callable[[str, np.ndarray], np.ndarray] = _same
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    canonical: Callable[[Arrays], Arrays] = lambda arrays: arrays
    logits: Callable[[Spec, Arrays, np.ndarray], np.ndarray] | None = None
    package: str = ""
    namesake: str = ""

    def theirs(self, name: str) -> str:
        """Their name for a parameter of ours.

        Raises:
            UserError: they have no such module.
        """
        ending = next(f for f in FIELDS if name.endswith(f"_{f}"))
        module = name[: -len(ending) - 1]
        numbers: dict[str, int] = {}
        template = self.modules.get(module)
        if found := UNIT_MODULE.fullmatch(module):
            stage, unit, op, layer = found.groups()
            numbers = {"s": int(stage), "u": int(unit), "i": int(layer or 0)}
            module = f"stage{{s}}_unit{{u}}_{op}"
            template = self.modules.get(module + layer) or self.modules.get(module + "{i}")
        if template is None:
            raise UserError(f"layout {self.name} has no {module}")
        return template.format_map(_Numbers(numbers)) + self.fields[ending]

    def network(self, arrays: Arrays, classes: int = 0) -> Spec:
        """The network that these arrays, named as they are there, are of.

        Args:
            classes: of a classifier to come, where they have none.

        Raises:
            UserError: they are of none; the message names the first that is missing.
        """

        def shape(name):
            theirs = self.theirs(name)
            if theirs not in arrays:
                new = "; --classes FILE adds a new classifier" if name == "fc1_weight" else ""
                raise UserError(f"there is no {theirs}, as {self.about} have{new}")
            found = self.decode(name, arrays[theirs]).shape
            if len(found) != (2 if name == "fc1_weight" else 4):
                raise UserError(f"{theirs} has shape {found}, which is no such layer's")
            return found

        def count(name):
            numbers = range(1, MOST)
            missing = (n for n in numbers if self.theirs(name.format(n=n)) not in arrays)
            return next(missing, MOST) - 1

        _, in_channels, kernel, _ = shape("conv0_weight")
        stems = {size: stem for stem, (size, *_) in STEM.items()}
        if kernel not in stems:
            raise UserError(
                f"{self.theirs('conv0_weight')} is {kernel}x{kernel}; stems are 3x3 or 7x7"
            )
        shape("stage1_unit1_conv1_weight")
        layers = count("stage1_unit1_conv{n}_weight")
        units = {len(kernels): unit for unit, kernels in UNIT.items()}
        stages = tuple(
            count(f"stage{s + 1}_unit{{n}}_conv1_weight")
            for s in range(count("stage{n}_unit1_conv1_weight"))
        )
        if sum(stages) > MOST:
            raise UserError(f"there are {sum(stages)} units; {MOST} are the most")
        return self.spec(
            Facts(
                stem=stems[kernel],
                stages=stages,
                channels=tuple(
                    shape(f"stage{s + 1}_unit1_conv1_weight")[0] for s in range(len(stages))
                ),
                unit=units.get(layers, "bottleneck"),
                classes=classes or shape("fc1_weight")[0],
                in_channels=in_channels,
            )
        )

    def with_classifier(self, arrays: Arrays, classes: int) -> Arrays:
        """These arrays, named as they are there, and where they have no classifier a new one.

        Its weights are normal, of standard deviation 0.01, and its biases 0.

        Raises:
            UserError: as `network`.
        """
        names = {ours: self.theirs(ours) for ours in ("fc1_weight", "fc1_bias")}
        if not set(names.values()).isdisjoint(arrays):
            return arrays
        shape = shapes(self.network(arrays, classes))["fc1_weight"]
        weight = np.random.RandomState(0).normal(0, 0.01, shape).astype(np.float32)
        new = {"fc1_weight": weight, "fc1_bias": np.zeros(classes, np.float32)}
        return {**arrays, **{names[ours]: self.encode(ours, a) for ours, a in new.items()}}

    def to_ours(self, arrays: Arrays) -> tuple[Spec, dict[str, np.ndarray]]:
        """The network, and its parameters under our names, in float32.

        Raises:
            UserError: something is missing, left over, of another shape or not finite; the message
                names the first.
        """
        arrays = self.canonical(arrays)
        spec, ours = self.network(arrays), {}
        left = dict(arrays)
        for name, shape in shapes(spec).items():
            theirs = self.theirs(name)
            if theirs not in left:
                raise UserError(f"there is no {theirs}, which {self._a(spec)} has")
            array = left.pop(theirs)
            if array.dtype == np.float64:
                with np.errstate(over="ignore"):  # infinity is told below
                    array = array.astype(np.float32)
            if array.dtype != np.float32:
                raise UserError(f"{theirs} is {array.dtype}, and weights are floating-point")
            array = self.decode(name, array)
            if array.shape != shape:
                raise UserError(
                    f"{theirs} has shape {array.shape}, but {self._a(spec)} has {shape} there"
                )
            if not np.isfinite(array).all():
                raise UserError(f"{theirs} has values that are not finite")
            if name.endswith("_var") and array.min() < 0:
                raise UserError(f"{theirs} has negative variances")
            ours[name] = array
        for theirs in left:
            if not theirs.endswith((*self.extra, *self.inside.values())):
                raise UserError(f"there is {theirs}, which {self._a(spec)} has not")
        return spec, ours

    def prepared_inside(self, theirs: Arrays) -> dict[str, list[float]]:
        """What of `input` a file's own graph says, by its arrays."""
        return {
            key: theirs[name].ravel().tolist()
            for key, ending in self.inside.items()
            for name in theirs
            if name.endswith(ending)
        }

    def from_ours(self, spec: Spec, ours: Arrays) -> dict[str, np.ndarray]:
        """The parameters as that implementation names and shapes them.

        Raises:
            UserError: it has no such network.
        """
        self.check(spec)
        theirs = {self.theirs(name): self.encode(name, array) for name, array in ours.items()}
        modules = {self._module(name) for name in ours if name.endswith("_gamma")}
        for ending, value in self.extra.items():
            theirs.update({module + ending: value.copy() for module in modules})
        return theirs

    def check(self, spec: Spec) -> None:
        """Tells a network that this implementation does not have.

        Raises:
            UserError: it is one; the message names the first difference.
        """
        closest = self.spec(facts_of(spec))
        same = {"name", "bn_momentum"}  # to inference, whatever they are
        if spec.unit != "bottleneck":
            same.add("stride_on")
        for switch in dataclasses.fields(Spec):
            if switch.name in same:
                continue
            wanted, found = getattr(closest, switch.name), getattr(spec, switch.name)
            if wanted != found:
                raise UserError(
                    f"layout {self.name} has no such network: {switch.name} is {found}, and there "
                    f"always {wanted}"
                )

    def count_known(self, names: Iterable[str]) -> int:
        """How many of these names parameters of theirs have, in whatever network."""
        number = r"\d+"
        patterns = "|".join(
            "".join(
                number if part.startswith("{") else re.escape(part)
                for part in re.split(r"({.*?})", template)
            )
            for template in self.modules.values()
        )
        fields = "|".join(map(re.escape, (*self.fields.values(), *self.extra)))
        known = re.compile(f"(?:{patterns})(?:{fields})")
        return sum(known.fullmatch(name) is not None for name in names)

    def _module(self, name):
        return self.theirs(name)[: -len(self.fields["gamma"])]

    def _a(self, spec):
        return f"a {spec.name} of layout {self.name}"


class _Numbers(dict):
    """Numbers for templates, which may add to them or take away: {s+4}, {u-1}."""

    def __missing__(self, key):
        return self[key[0]] + int(key[1:])


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a network, by our name for it."""
    net = ResNetV2(spec)
    # Built within another block's scope it has that one's prefix.
    return {n.removeprefix(net.prefix): p.shape for n, p in net.collect_params().items()}
