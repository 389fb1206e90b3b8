"""What a network is, as data. Nothing here imports a framework.

The paper varies two things: the order of operations in a residual unit (`ORDER`, Table 2) and what
sits on its shortcut (Table 1). A `Spec` names one choice of each, the depth, and the switches in
which published implementations differ; `Spec.units` spells the choice out unit by unit, which is
all that building or counting a network needs.

[v1] is He et al., *Deep Residual Learning for Image Recognition* (arXiv:1512.03385), [v2] is
*Identity Mappings in Deep Residual Networks* (arXiv:1603.05027).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gluon_resnetv2.errors import UserError

IMAGE_SIZE_MAX = 4096  # pixels of height or width that we train or serve networks for

# One weight layer's operations ([v2] Table 2, Fig. 4). `+` marks where the shortcut rejoins, in the
# unit's last layer only.
ORDER = {
    "original": "conv bn + relu",
    "bn_after_add": "conv + bn relu",
    "relu_before_add": "conv bn relu +",
    "relu_preact": "relu conv bn +",
    "full_preact": "bn relu conv +",
}

# A unit's weight layers as (kernel, multiple of the stage's channels).
UNIT = {
    "single": ((3, 1),),  # the 1-layer skip of [v2] Table 3
    "basic": ((3, 1), (3, 1)),
    "bottleneck": ((1, 1), (3, 1), (1, 4)),
}

# Where a unit changes shape: "A" subsamples and pads with zero channels, "B" projects; "C" projects
# in every unit ([v1] section 3.3, 4.1). The same as B with the shortcut Conv1x1.
WIDENING = ("A", "B", "C")
STRIDE_ON = ("first", "3x3")  # a bottleneck's stride on its first 1x1 convolution, or on its 3x3
# Batch normalisation of the input: "off"; "shift" learns beta alone; "plain" learns nothing.
INPUT_BN = ("off", "shift", "plain")


# -- Shortcuts: h(x) and what weighs F(x) in Eq. (1), [v2] Table 1 and Fig. 2 ----------------------


class Shortcut:
    """What sits on the shortcut. `str` gives its text, which `parse_shortcut` reads.

    Attributes:
        random: whether the shortcut is random, drawn anew in each training step.
        projects: whether the shortcut is a 1x1 convolution in every unit.
    """

    random = projects = False

    @property
    def factor(self) -> float | None:
        """By which h(x) is a multiple of x, where it is nothing else."""
        return None

    @property
    def gate_bias(self) -> float | None:
        """Where the bias of its gate, another 1x1 convolution, starts; None without a gate."""
        return None


@dataclass(frozen=True)
class Identity(Shortcut):
    """h(x) = x (Fig. 2a)."""

    factor = 1.0

    def __str__(self) -> str:
        return "identity"


@dataclass(frozen=True)
class Scale(Shortcut):
    """`on_shortcut` * x + `on_residual` * F(x) (Fig. 2b). (0, 1) is a plain net."""

    on_shortcut: float
    on_residual: float = 1.0

    def __post_init__(self) -> None:
        _check_finite(self.on_shortcut, self.on_residual)

    @property
    def factor(self) -> float:
        return self.on_shortcut

    def __str__(self) -> str:
        return f"scale:{self.on_shortcut:g},{self.on_residual:g}"


@dataclass(frozen=True)
class Gate(Shortcut):
    """(1 - g(x)) * x + F(x), or g(x) * F(x) where `exclusive` (Fig. 2c, 2d).

    g is the sigmoid of a 1x1 convolution of what the shortcut reads, with as many outputs as the
    unit and a bias that starts at `bias`; where the unit strides, the gate strides too.
    """

    bias: float
    exclusive: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_finite(self.bias)

    @property
    def gate_bias(self) -> float:
        return self.bias

    def __str__(self) -> str:
        return f"{'exclusive-gate' if self.exclusive else 'gate'}:{self.bias:g}"


@dataclass(frozen=True)
class Conv1x1(Shortcut):
    """A 1x1 convolution on every shortcut (Fig. 2e; option C of [v1])."""

    projects = True

    def __str__(self) -> str:
        return "conv1x1"


@dataclass(frozen=True)
class Dropout(Shortcut):
    """Dropout of ratio `p` on the shortcut (Fig. 2f), rescaled by 1 / (1 - p) while training."""

    p: float = 0.5
    random = True

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise UserError(f"dropout ratio {self.p:g} is not in [0, 1)")

    def __str__(self) -> str:
        return f"dropout:{self.p:g}"


def _check_finite(*numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        raise UserError("a shortcut needs finite numbers")


# What a shortcut's text begins with: what makes it of the numbers that follow, and its whole form.
SHORTCUTS: dict[str, tuple[Callable[..., Shortcut], str]] = {
    "identity": (Identity, "identity"),
    "plain": (partial(Scale, 0.0, 1.0), "plain"),
    "scale": (Scale, "scale:A,B (A on the shortcut, B on F)"),
    "gate": (Gate, "gate:BIAS"),
    "exclusive-gate": (partial(Gate, exclusive=True), "exclusive-gate:BIAS"),
    "conv1x1": (Conv1x1, "conv1x1"),
    "dropout": (Dropout, "dropout:P"),
}
SHORTCUT_HELP = ", ".join(form for _, form in SHORTCUTS.values())


def parse_shortcut(text: str) -> Shortcut:
    """The shortcut that `str` writes as `text`; "plain" is short for "scale:0,1".

    Raises:
        UserError: `text` is none of `SHORTCUTS`.
    """
    kind, _, tail = text.strip().partition(":")
    try:
        make, _ = SHORTCUTS[kind]
        return make(*map(float, tail.split(",") if tail else ()))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError):
        raise UserError(f"unknown shortcut '{text}'; choose {SHORTCUT_HELP}") from None


# -- One unit, spelled out -------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """A square convolution, padded to keep the map's size but for its stride.

    Attributes:
        bias: where its bias starts; None without one.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    bias: float | None = None


@dataclass(frozen=True)
class Unit:
    """A residual unit: x -> after(h(s) + F(pre(x))), with s = pre(x) or x.

    Operations are named by kind and weight layer, as in ("bn1", "relu1", "conv1", ...). `pre` comes
    before the split into two paths or not (`split_after_pre`), `body` is the rest of F, `after`
    acts on the sum.
    """

    name: str
    pre: tuple[str, ...]
    body: tuple[str, ...]
    after: tuple[str, ...]
    convs: tuple[Conv, ...]
    split_after_pre: bool
    projection: Conv | None  # the 1x1 convolution that widens the shortcut, where there is one
    projection_bn: bool
    gate: Conv | None

    @property
    def in_channels(self) -> int:
        return self.convs[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.convs[-1].out_channels

    @property
    def stride(self) -> int:
        return max(conv.stride for conv in self.convs)

    def bn_channels(self, op: str) -> int:
        """Channels of the map that the batch normalisation `op` of this unit reads."""
        ops = self.pre + self.body
        if op not in ops:
            return self.out_channels
        convs_before = sum(name.startswith("conv") for name in ops[: ops.index(op)])
        return self.convs[convs_before - 1].out_channels if convs_before else self.in_channels


def unit_ops(order: str, layers: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(pre, body, after) of a unit with `layers` weight layers in `order`.

    >>> unit_ops("full_preact", 2)
    (('bn1', 'relu1'), ('conv1', 'bn2', 'relu2', 'conv2'), ())
    """
    cycle = ORDER[order].split()
    ops = [f"{op}{i}" for i in range(1, layers + 1) for op in cycle if op != "+" or i == layers]
    first, join = ops.index("conv1"), ops.index(f"+{layers}")
    return tuple(ops[:first]), tuple(ops[first:join]), tuple(ops[join + 1 :])


# -- The network -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A residual network. Defaults of the switches are the paper's.

    Raises:
        UserError: a value outside its choices.
    """

    name: str
    stem: str  # "cifar": 3x3 convolution; "imagenet": 7x7/2 convolution, 3x3/2 max pooling
    stages: tuple[int, ...]  # residual units in each stage
    channels: tuple[int, ...]  # of the stem and of each stage's 3x3 convolutions
    unit: str = "basic"
    order: str = "full_preact"
    shortcut: Shortcut = Identity()  # or its text, as `parse_shortcut` reads it
    widening: str = "B"  # one of `WIDENING`
    classes: int = 10
    in_channels: int = 3

    # Switches in which published implementations differ.
    stride_on: str = "first"  # one of `STRIDE_ON`
    # The first unit's pre-activation: in the "stem", before the split and the max pooling (the
    # paper's appendix); in the "unit" like all others; in "both" (MXNet's ImageNet example).
    first_activation: str = "stem"
    # Which unit of a stage halves the map: the "first", of all stages but the first, or the "last",
    # of all stages but the last, whose shortcut is subsampled where its channels stay (Keras).
    stride_in: str = "first"
    # Which units split into two paths after their pre-activation: those with a "projection" (the
    # paper's appendix), all that change shape ("widening"), or "none" (GluonCV's CIFAR nets).
    split_after_pre: str = "projection"
    project_first: bool = False  # project in every stage's first unit, even of equal shape
    # Biases of the convolutions whose output is summed, not normalised: the stem's, each unit's
    # last one and the projections (Keras).
    biases: bool = False
    # The padding of the stem's max pooling: "ignored", or a "zero" that counts, which it does where
    # the map is negative (Keras).
    pool_pad: str = "ignored"
    input_bn: str = "off"  # one of `INPUT_BN`
    bn_eps: float = 1e-5
    bn_momentum: float = 0.9

    def __post_init__(self) -> None:
        choices: dict[str, Collection[object]] = {
            "stem": STEM,
            "unit": UNIT,
            "order": ORDER,
            "widening": WIDENING,
            "stride_on": STRIDE_ON,
            "first_activation": ("stem", "unit", "both"),
            "stride_in": ("first", "last"),
            "split_after_pre": ("projection", "widening", "none"),
            "biases": (False, True),
            "pool_pad": ("ignored", "zero"),
            "input_bn": INPUT_BN,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name} '{getattr(self, name)}' is unknown; choose "
                    + ", ".join(map(str, allowed))
                )
        if isinstance(self.shortcut, str):
            object.__setattr__(self, "shortcut", parse_shortcut(self.shortcut))
        if not isinstance(self.shortcut, Shortcut):
            raise UserError(f"shortcut {self.shortcut!r} is unknown; choose {SHORTCUT_HELP}")
        if len(self.stages) != len(self.channels) or min(self.stages + self.channels) < 1:
            raise UserError("stages and channels need one positive number for each stage")
        if self.classes < 1 or self.in_channels < 1:
            raise UserError("classes and in_channels must be at least 1")

    @property
    def depth(self) -> int:
        """Weight layers on the longest path, of which the stem and the classifier are two."""
        return sum(self.stages) * len(UNIT[self.unit]) + 2

    @property
    def out_channels(self) -> int:
        """Channels of the last unit, which the classifier reads."""
        return self.units()[-1].out_channels

    @property
    def stem_conv(self) -> Conv:
        kernel, stride, _ = STEM[self.stem]
        return Conv("conv0", self.in_channels, self.channels[0], kernel, stride, self._bias)

    @property
    def stem_pool(self) -> bool:
        """Whether a 3x3 max pooling of stride 2 follows the stem."""
        return STEM[self.stem][2]

    @property
    def stem_ops(self) -> tuple[str, ...]:
        """The order's cycle from its convolution on, then the first unit's pre-activation."""
        cycle = ORDER[self.order].split()
        conv = cycle.index("conv")
        pre = cycle[:conv] if self.first_activation in ("stem", "both") else []
        return tuple(f"{op}0" for op in cycle[conv:] + pre if op != "+")

    @property
    def head_ops(self) -> tuple[str, ...]:
        """The pre-activation once more, after the last unit's addition ([v2] appendix)."""
        return unit_ops(self.order, 1)[0]

    def units(self) -> list[Unit]:
        """Every residual unit, first to last."""
        units, in_channels = [], self.channels[0]
        for s, (count, width) in enumerate(zip(self.stages, self.channels), 1):
            for u in range(1, count + 1):
                if self.stride_in == "first":
                    strides = s > 1 and u == 1
                else:
                    strides = s < len(self.stages) and u == count
                units.append(self._unit(s, u, in_channels, width, 2 if strides else 1))
                in_channels = units[-1].out_channels
        return units

    def _unit(self, stage: int, index: int, in_channels: int, width: int, stride: int) -> Unit:
        layers = UNIT[self.unit]
        outs = [width * multiple for _, multiple in layers]
        strided = 0
        if self.stride_on == "3x3":
            strided = [kernel for kernel, _ in layers].index(3)
        biases = [None] * (len(layers) - 1) + [self._bias]
        convs = tuple(
            Conv(f"conv{i + 1}", before, after, kernel, stride if i == strided else 1, bias)
            for i, ((kernel, _), before, after, bias) in enumerate(
                zip(layers, [in_channels, *outs], outs, biases)
            )
        )
        pre, body, after = unit_ops(self.order, len(layers))
        widens = in_channels != outs[-1]
        changes_shape = stride > 1 or widens
        projects = self.has_shortcut and (
            self.shortcut.projects
            or self.widening == "C"
            or (self.widening == "B" and (widens or (changes_shape and self.stride_in == "first")))
            or (self.project_first and index == 1)
        )
        first = stage == index == 1
        if first and self.first_activation == "stem":
            pre = ()
        return Unit(
            name=f"stage{stage}_unit{index}",
            pre=pre,
            body=body,
            after=after,
            convs=convs,
            split_after_pre=(self.split_after_pre == "projection" and projects)
            or (self.split_after_pre == "widening" and changes_shape),
            projection=Conv("sc", in_channels, outs[-1], 1, stride, self._bias)
            if projects
            else None,
            # Both summands are normalised or neither is: "BN layers are adopted right after the
            # weight layers" (caption of [v2] Fig. 2).
            projection_bn=any(op.startswith("bn") for op in body[body.index(convs[-1].name) :]),
            gate=Conv("gate", in_channels, outs[-1], 1, stride, self.shortcut.gate_bias)
            if self.shortcut.gate_bias is not None
            else None,
        )

    @property
    def _bias(self) -> float | None:
        """As of a `Conv`: that of convolutions which have one with `biases` alone."""
        return 0.0 if self.biases else None

    @property
    def has_shortcut(self) -> bool:
        """False for a plain net, whose units are F alone."""
        return self.shortcut.factor != 0

    # -- Counting ----------------------------------------------------------------------------------

    def parameter_count(self) -> int:
        """Learned numbers: weights, biases, gammas and betas; not the moving statistics."""
        bn = 2 * self.channels[0] * ("bn0" in self.stem_ops)
        bn += 2 * self.out_channels * ("bn1" in self.head_ops)
        bn += self.in_channels * (self.input_bn == "shift")
        for unit in self.units():
            ops = unit.pre + unit.body + unit.after
            bn += sum(2 * unit.bn_channels(op) for op in ops if op.startswith("bn"))
            bn += 2 * unit.out_channels * (unit.projection is not None and unit.projection_bn)
        weights = sum(
            conv.out_channels * (conv.in_channels * conv.kernel**2 + (conv.bias is not None))
            for conv, _ in self._convs(image_size=1)
        )
        return bn + weights + (self.out_channels + 1) * self.classes

    def multiply_adds(self, image_size: int) -> int:
        """Multiply-adds of one square image's forward pass, convolutions and classifier alone
        ([v1] counts "FLOPs" so).

        Args:
            image_size: height and width of the image, in pixels.
        """
        convs = sum(
            conv.in_channels * conv.out_channels * conv.kernel**2 * size**2
            for conv, size in self._convs(image_size)
        )
        return convs + self.out_channels * self.classes

    def _convs(self, image_size: int) -> Iterator[tuple[Conv, int]]:
        """Every convolution with the height of the map that it writes."""
        size = -(-image_size // self.stem_conv.stride)
        yield self.stem_conv, size
        if self.stem_pool:
            size = -(-size // 2)
        for unit in self.units():
            for conv in unit.convs:
                size = -(-size // conv.stride)
                yield conv, size
            for beside in (unit.projection, unit.gate):
                if beside is not None:
                    yield beside, size

    # -- JSON --------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds; `from_dict` reads them back."""
        return {**dataclasses.asdict(self), "shortcut": str(self.shortcut)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        """The Spec that `to_dict` wrote, in any version of this package.

        Raises:
            UserError: a field is missing, unknown or out of range.
        """
        try:
            if missing := FIELDS - LATER - set(values):
                raise KeyError(min(missing))
            sizes = {name: tuple(map(int, values[name])) for name in ("stages", "channels")}
            return cls(**{**values, **sizes})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"not the description of a network: {error}") from None


FIELDS = frozenset(field.name for field in dataclasses.fields(Spec))
# Switches that older descriptions lack, as their networks have the defaults.
LATER = frozenset({"stride_in", "biases", "pool_pad"})


# -- Named networks --------------------------------------------------------------------------------

# (kernel, stride, max pooling) of the first convolution.
STEM = {"cifar": (3, 1, False), "imagenet": (7, 2, True)}
IMAGE_SIZES = {"cifar": 32, "imagenet": 224}  # height and width of the images it is for, in pixels
IMAGE_SIZES_HELP = " or ".join(map(str, IMAGE_SIZES.values()))

# [v1] Table 1, [v2] section 5; 269 is later work by others. Unit, then units in each stage.
IMAGENET: dict[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
    269: ("bottleneck", (3, 30, 48, 8)),
}

# What a name's first word says: the order, and the shortcut.
FAMILIES = {
    "preact": ("full_preact", Identity()),
    "resnet": ("original", Identity()),
    "plain": ("original", Scale(0.0, 1.0)),
}
MODEL_HELP = f"{', '.join(f'{family}N' for family in FAMILIES)}, N the depth"


def cifar(depth: int, unit: str | None = None, **switches: Any) -> Spec:
    """A three-stage network for small images, of the given depth ([v1] section 4.2).

    Args:
        depth: 6n+2 of basic units, 9n+2 of bottlenecks, 3n+2 of single layers.
        unit: "basic", "bottleneck" or "single". By default bottlenecks where 164 layers or more
            allow it, else basic units, else bottlenecks.
        switches: other fields of `Spec`.

    Raises:
        UserError: no whole number of units gives that depth.
    """
    if unit is None:
        basic, bottleneck = (depth - 2) % 6 == 0, (depth - 2) % 9 == 0
        unit = "bottleneck" if bottleneck and (depth >= 164 or not basic) else "basic"
    if unit not in UNIT:
        raise UserError(f"unit '{unit}' is unknown; choose {', '.join(UNIT)}")
    units, rest = divmod(depth - 2, 3 * len(UNIT[unit]))
    if rest or units < 1:
        raise UserError(
            f"depth {depth} is impossible: CIFAR networks have 6n+2 layers of basic units (20, 32, "
            "110), 9n+2 of bottlenecks (164, 1001) or 3n+2 of single layers; ImageNet's have "
            + ", ".join(map(str, IMAGENET))
        )
    defaults = {
        "name": f"depth{depth}",
        # [v1]: identity shortcuts in all cases; [v2] appendix: bottlenecks project.
        "widening": "B" if unit == "bottleneck" else "A",
    }
    return Spec(
        stem="cifar",
        stages=(units,) * 3,
        channels=(16, 32, 64),
        unit=unit,
        **{**defaults, **switches},
    )


def imagenet(depth: int, **switches: Any) -> Spec:
    """A four-stage network of the depths in `IMAGENET` ([v1] Table 1).

    Raises:
        UserError: another depth, or another unit than belongs to it.
    """
    if depth not in IMAGENET:
        raise UserError(
            f"depth {depth} is impossible: ImageNet networks have {', '.join(map(str, IMAGENET))}"
        )
    unit, stages = IMAGENET[depth]
    if switches.get("unit", unit) != unit:
        raise UserError(f"depth {depth} of ImageNet networks has {unit} units only")
    defaults = {"name": f"depth{depth}", "classes": 1000, "unit": unit}
    return Spec(
        stem="imagenet",
        stages=stages,
        channels=(64, 128, 256, 512),
        **{**defaults, **switches},
    )


def named(name: str, stem: str | None = None, **switches: Any) -> Spec:
    """The network called preactN, resnetN (the original order) or plainN (no shortcuts).

    Args:
        name: family and depth, as in "preact110". A depth of `IMAGENET` means that network, any
            other a CIFAR network.
        stem: "cifar" or "imagenet", where the depth alone says something else.
        switches: other fields of `Spec` but those that the depth says. None means the default.

    Raises:
        UserError: the name or its depth means no network.
    """
    match = re.fullmatch(r"([a-z]+)([1-9][0-9]{0,3})", name)
    if not match or match[1] not in FAMILIES:
        raise UserError(
            f"unknown model '{name}'; names are preactN, resnetN and plainN, N the depth, to 9999: "
            "preact20, resnet110, plain56, preact1001, preact50"
        )
    depth = int(match[2])
    order, shortcut = FAMILIES[match[1]]
    switches = {key: value for key, value in switches.items() if value is not None}
    unknown = set(switches) - FIELDS | set(switches) & {"stages", "channels"}
    if unknown:
        raise UserError(f"networks have no switch '{min(unknown)}'")
    if stem not in (None, *STEM):
        raise UserError(f"stem '{stem}' is unknown; choose {', '.join(STEM)}")
    build = imagenet if stem == "imagenet" or (stem is None and depth in IMAGENET) else cifar
    return build(depth, **{"name": name, "order": order, "shortcut": shortcut, **switches})
