"""Our networks inside GluonCV 0.10.5: by name, and as what its pipelines build on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import mxnet as mx
from mxnet.gluon import Block, SymbolBlock

from gluon_resnetv2.engines.runtimes import as_block
from gluon_resnetv2.errors import UserError, install
from gluon_resnetv2.formats.artifact import Artifact
from gluon_resnetv2.interop.zoo import get_model
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.paper import RESULTS
from gluon_resnetv2.spec import FAMILIES, FIELDS, Spec, Unit

# By name


def register(pretrained: Mapping[str, str | Path] | None = None) -> None:
    """Has `gluoncv.model_zoo.get_model` give our networks. Calling it again adds to `pretrained`.

    Every name that `spec.named` reads is known from then on, as "preact29"; the list of GluonCV's
    names grows by those of the paper's tables. GluonCV's own names are left alone. Beside the
    switches of `Spec`, as `classes`, a name of ours takes what GluonCV hands to every model:

    - `pretrained`: weights of this network, as `zoo.get_model` takes them. True means those that
      the argument `pretrained` here has for the name, and is an error where it has none.
    - `ctx`: the device or devices that take those weights; the CPU by default.
    - `root`: the folder for downloads; not used, as nothing is downloaded.

    Args:
        pretrained: by name, the weights of scripts that say `pretrained=True`, as
            {"preact50": "runs/imagenet"}.

    Raises:
        UserError: GluonCV is not installed, or has a model of its own by a name of ours.
    """
    try:
        from gluoncv.model_zoo import model_zoo
    except ImportError as error:
        way_out = install("gluoncv")
        if "shared object" in str(error):  # its OpenCV, on a machine without a screen
            way_out = "apt install libgl1 libglib2.0-0, or dnf install mesa-libGL glib2"
        raise UserError(f"GluonCV can't be imported ({error}): {way_out}") from None
    if not isinstance(model_zoo._models, _Models):
        if taken := sorted(filter(_is_ours, model_zoo._models)):
            raise UserError(f"this GluonCV has a model '{taken[0]}' of its own; use version 0.10.5")
        model_zoo._models = _Models(model_zoo._models)
    model_zoo._models.pretrained.update(pretrained or {})


class _Models(dict):
    """GluonCV's table of what builds a model, with every name of ours in it, listed or not."""

    def __init__(self, models: dict):
        super().__init__(models)
        self.pretrained: dict[str, str | Path] = {}
        self.update((result.model, self[result.model]) for result in RESULTS)

    def __contains__(self, name):
        return super().__contains__(name) or _is_ours(name)

    def __missing__(self, name):
        if not _is_ours(name):
            raise KeyError(name)
        return partial(_build, name, self.pretrained)


def _is_ours(name: str) -> bool:
    """Whether a name has our form; `named` has yet to say whether there is such a network."""
    return re.fullmatch(rf"({'|'.join(FAMILIES)})[0-9]+", name) is not None


def _build(name, registered, pretrained=False, ctx=None, root=None, **switches) -> ResNetV2:
    if unknown := set(switches) - FIELDS:
        # SSD leaves out its norm_layer when it sees that error.
        raise TypeError(f"{name} takes no argument '{min(unknown)}'")
    if pretrained is True:
        pretrained = registered.get(name, True)
    return get_model(name, pretrained or False, ctx, **switches)


# What GluonCV's pipelines build on


def network(artifact: Artifact, ctx: mx.Context | list[mx.Context] | None = None) -> SymbolBlock:
    """An export with its weights, as GluonCV takes a network.

    It maps images (N, C, H, W) to (N, classes), to be evaluated or trained further. It is the
    `network` of `FeatureExtractor`, `FPNFeatureExpander` and `SSD`, which share its parameters,
    and take the names that `feature_layers` gives.

    Args:
        ctx: the device or devices of the parameters; the CPU by default.

    Raises:
        UserError: the pair is damaged or can't be read.
    """
    pair = artifact.read()
    arguments, statistics = pair.arrays()
    return as_block(pair.symbol(), {**arguments, **statistics}, [pair.data], ctx)


def feature_layers(source: Spec | Artifact) -> list[str]:
    """The layer to read the features of each size from, by its name in the graph.

    ImageNet networks have four sizes, of strides 4, 8, 16 and 32; CIFAR's three, of 1, 2 and 4. At
    224x224 the maps of "preact50" are (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7).

    In the pre-activation orders it is not the last sum of that size, whose scale grows from unit to
    unit, and which no F(x) reads before it is normalised and rectified. It is that sum after the
    pre-activation which comes next, that of the unit which halves the map or the network's last.
    Where nothing comes before the next convolution, it is what the last unit gives: the ReLU after
    the sum in the original order.

    Args:
        source: a network, or an export of one.

    Raises:
        UserError: the export has no manifest, or is not plain float32: other graphs name their
            layers otherwise.
    """
    if isinstance(source, Artifact):
        manifest = source.own_manifest()
        if manifest.fused or manifest.precision != "float32":
            raise UserError(f"{source.folder} is fused or not float32: export it plain")
        source = manifest.spec
    pre: Sequence[str]
    units, layers = source.units(), []
    for unit, following in zip(units, [*units[1:], None]):
        if following is None:
            pre = source.head_ops
        elif following.stride > 1:
            pre = [f"{following.name}_{op}" for op in following.pre]
        else:
            continue
        layers.append(f"{pre[-1]}_fwd" if pre else _last_layer(unit, source))
    return layers


def _last_layer(unit: Unit, spec: Spec) -> str:
    if unit.after:
        return f"{unit.name}_{unit.after[-1]}_fwd"
    # MXNet itself names an addition, after the block that it is written in.
    return f"{unit.name}__plus0" if spec.has_shortcut else f"{unit.name}_{unit.body[-1]}_fwd"


def transform_options(artifact: Artifact) -> dict:
    """What makes GluonCV's `transform_eval` prepare images as an export wants them.

    >>> transform_eval(images, **transform_options(artifact))

    MXNet scales images without smoothing them first. Where the export's interpolation is not
    "opencv bilinear", only images whose shorter side is `resize_short` come out as `Predictor`
    prepares them.

    Raises:
        UserError: the export has no manifest, or is not for square RGB images that keep their
            shape.
    """
    described = artifact.own_manifest().input
    channels, height, width = described.shape
    if channels != 3 or height != width or described.stretch:
        stretched = "stretched " if described.stretch else ""
        raise UserError(
            f"{artifact.folder} is for {stretched}images of {channels}x{height}x{width}; GluonCV "
            "prepares square RGB images that keep their shape"
        )
    mean, std = described.mean, described.std
    if described.values == "pixels":  # the graph itself normalises
        mean, std = (0.0,) * 3, (1.0,) * 3
    return {
        "resize_short": round(width / described.crop),
        "crop_size": width,
        "mean": tuple(value / 255 for value in mean),  # GluonCV's images are in 0..1
        "std": tuple(value / 255 for value in std),
    }


# By the end of a parameter's name; any other is a weight.
_START = {
    "gamma": "ones",
    "beta": "zeros",
    "mean": "zeros",
    "var": "ones",
    "bias": "zeros",
}


def initialize_rest(
    block: Block,
    init: mx.init.Initializer | None = None,
    ctx: mx.Context | list[mx.Context] | None = None,
) -> None:
    """Initialises what has no values yet: all of a detector but the backbone that it was given.

    `Block.initialize` would warn of the backbone, and treat the batch normalisations that GluonCV
    appends as symbols (`FeatureExpander`, `FPNFeatureExpander`) like weights: with random moving
    variances, negative ones among them. Here they start as batch normalisations do.

    Args:
        init: of the weights; Xavier's by default, as in GluonCV's detectors.
        ctx: the device or devices of the parameters; the CPU by default.
    """
    for name, parameter in block.collect_params().items():
        try:
            parameter.list_ctx()
        except RuntimeError:  # it has none yet
            start = _START.get(name.rpartition("_")[2], init or mx.init.Xavier())
            parameter.initialize(ctx=ctx or mx.cpu(), default_init=start)
