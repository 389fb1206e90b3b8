"""Weights of timm and of PyTorch's ports, held against these networks themselves."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats import safetensors_file, torch_file
from gluon_resnetv2.interop.timm import TIMM
from gluon_resnetv2.interop.torch import (
    COUNTER,
    TORCH_FB,
    TORCH_FB_CIFAR,
    TORCH_KAIMING,
    TORCH_PRERESNET,
)
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tests import torch_oracles  # noqa: E402
from tests.common import beside_torch, difference  # noqa: E402

TOLERANCE = 1e-4  # relative to the largest logit
SIZES = (64, 75)
NAMES = {"last_bn": "bn"}

slow = pytest.mark.slow


def deep(*depths):
    return [pytest.param(depth, marks=slow) for depth in depths]


@pytest.fixture(scope="module")
def timm():
    return beside_torch("timm")


def images_of(size, channels=3):
    shape = (2, channels, size, size)
    return np.random.RandomState(size).normal(size=shape).astype("float32")


def logits_of(spec, ours, images):
    net = ResNetV2(spec)
    net.initialize(mx.init.Zero())
    for name, parameter in net.collect_params().items():
        parameter.set_data(mx.nd.array(ours[name]))
    return net(mx.nd.array(images)).asnumpy()


def check(layout, net, sizes, seed=0):
    """Random weights of `net` give its logits, and the same arrays back; returns the network."""
    theirs = torch_oracles.torch_arrays(net, seed)
    spec, ours = layout.to_ours(theirs)
    for size in sizes:
        images = images_of(size, spec.in_channels)
        expected = torch_oracles.torch_logits(net, theirs, images)
        assert np.abs(expected).max() > 0.1
        assert difference(logits_of(spec, ours, images), expected) <= TOLERANCE
        if layout.logits:
            assert difference(layout.logits(spec, theirs, images), expected) <= 1e-6
    assert_back(layout.from_ours(spec, ours), theirs)
    return spec


def assert_back(back, theirs):
    """All as it was, but for counters of training batches, for which we have no place."""
    assert set(back) == set(theirs)
    for name, array in theirs.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back[name], 0 if name.endswith(COUNTER) else array)


# -- timm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 50, *deep(34, 101, 152)])
def test_timms_networks_convert_and_back(timm, depth):
    spec = check(TIMM, timm.create_model(f"resnetv2_{depth}", num_classes=7), SIZES)
    assert (spec.depth, spec.classes, spec.stem) == (depth, 7, "imagenet")


def test_other_widths_depths_and_channels_of_timms_convert(timm):
    layers = {"layers": (1, 2), "channels": (64, 96), "stem_chs": 16, "num_classes": 3}
    spec = check(TIMM, timm.create_model("resnetv2_50", in_chans=4, **layers), (40,))
    assert (spec.stages, spec.channels, spec.in_channels) == ((1, 2), (16, 24), 4)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnetv2_18d", "there is no stem.conv.weight"),
        ("resnetv2_50t", "there is no stem.conv.weight"),
        ("resnetv2_50d_gn", "there is no stem.conv.weight"),
        ("resnetv2_50d_evos", "there is no stem.conv.weight"),
        ("resnetv2_50d_frn", "there is no stem.conv.weight"),
        ("resnetv2_50x1_bit", r"there is no \S+norm1.running_mean"),
        ("resnet18", "there is no stem.conv.weight"),
    ],
)
def test_timms_other_networks_are_refused(timm, name, told):
    state = timm.create_model(name).state_dict()
    with pytest.raises(UserError, match=told):
        TIMM.to_ours({name: tensor.numpy() for name, tensor in state.items()})


def test_timms_images_are_prepared_as_it_says(timm):
    configs = [timm.get_pretrained_cfg(f"resnetv2_{depth}") for depth in (18, 34, 50, 101, 152)]
    for config in configs:
        assert TIMM.input["mean"] == [255 * mean for mean in config.mean]
        assert TIMM.input["std"] == [255 * std for std in config.std]
        assert config.interpolation == TIMM.input["interpolation"]


@pytest.mark.parametrize("kind", [torch_file, safetensors_file])
def test_timm_loads_what_is_written(timm, kind, tmp_path):
    net = timm.create_model("resnetv2_18", num_classes=3)
    theirs = torch_oracles.torch_arrays(net, seed=1)
    path = tmp_path / ("w.pth" if kind is torch_file else "w.safetensors")
    kind.write(path, TIMM.from_ours(*TIMM.to_ours(theirs)))
    timm.models.load_checkpoint(net, str(path), strict=True)
    assert_back({name: tensor.numpy() for name, tensor in net.state_dict().items()}, theirs)


# -- Ports of what came in Lua ---------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 50, *deep(34, 101, 152, 200)])
def test_facebooks_imagenet_networks_convert_and_back(depth):
    net = torch_oracles.fb_preresnet(depth, "imagenet", 7, global_pool=True, names=NAMES)
    spec = check(TORCH_FB, net, SIZES)
    assert (spec.depth, spec.classes, spec.stem) == (depth, 7, "imagenet")


@pytest.mark.parametrize("depth", [20, *deep(56, 110)])
def test_facebooks_cifar_networks_convert_and_back(depth):
    net = torch_oracles.fb_preresnet(depth, "cifar", 10, global_pool=True, names=NAMES)
    spec = check(TORCH_FB_CIFAR, net, (32, 27))
    assert (spec.depth, spec.widening, spec.stem) == (depth, "A", "cifar")


@pytest.mark.parametrize("depth", [29, 164, *deep(1001)])
def test_kaimings_networks_convert_and_back(depth):
    net = torch_oracles.kaiming_preresnet(depth, 10, global_pool=True, names=NAMES)
    spec = check(TORCH_KAIMING, net, (32, 27))
    assert (spec.depth, spec.stem) == (depth, "cifar")


class PreResNet(nn.Module):
    """bearpaw/pytorch-classification's models/cifar/preresnet.py, as its source describes it:

    every unit, the first as well, has its own BN and ReLU; the shortcut reads the unit's raw input,
    through a convolution where the shape changes; bottlenecks stride on the 3x3.
    """

    def __init__(self, units, kernels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        width = 16
        for s in (1, 2, 3):
            inner = 8 << s
            outer = inner * 4 if len(kernels) == 3 else inner
            stage = []
            for u in range(units):
                stride = 2 if s > 1 and u == 0 else 1
                stage.append(self._unit(width, inner, outer, kernels, stride))
                width = outer
            setattr(self, f"layer{s}", nn.Sequential(*stage))
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    @staticmethod
    def _unit(width, inner, outer, kernels, stride):
        unit, read = nn.Module(), width
        strided = kernels.index(3)
        for i, kernel in enumerate(kernels):
            out = outer if i == len(kernels) - 1 else inner
            step = stride if i == strided else 1
            setattr(unit, f"bn{i + 1}", nn.BatchNorm2d(read))
            conv = nn.Conv2d(read, out, kernel, step, kernel // 2, bias=False)
            setattr(unit, f"conv{i + 1}", conv)
            read = out
        if stride > 1 or width != outer:
            unit.downsample = nn.Sequential(nn.Conv2d(width, outer, 1, stride, bias=False))
        return unit

    def forward(self, x):
        x = self.conv1(x)
        for unit in (*self.layer1, *self.layer2, *self.layer3):
            y = unit.conv1(unit.bn1(x).relu())
            y = unit.conv2(unit.bn2(y).relu())
            if hasattr(unit, "conv3"):
                y = unit.conv3(unit.bn3(y).relu())
            x = y + (unit.downsample(x) if hasattr(unit, "downsample") else x)
        return self.fc(self.bn(x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("units", "kernels"), [(3, (3, 3)), (3, (1, 3, 1)), *(pytest.param(18, (1, 3, 1), marks=slow),)]
)
def test_preresnets_convert_and_back(units, kernels):
    spec = check(TORCH_PRERESNET, PreResNet(units, kernels, 10), (32, 27))
    assert spec.depth == 3 * units * len(kernels) + 2


def test_what_weights_do_not_show_has_to_be_said():
    """A file fits two layouts that mean different networks."""
    net = torch_oracles.kaiming_preresnet(29, 10, names=NAMES)
    theirs = torch_oracles.torch_arrays(net, seed=0)
    images = images_of(32)
    kaiming, preresnet = (
        logits_of(*layout.to_ours(theirs), images) for layout in (TORCH_KAIMING, TORCH_PRERESNET)
    )
    assert difference(preresnet, kaiming) > 0.1


@pytest.mark.parametrize(
    ("layout", "net", "told"),
    [
        (TORCH_FB, lambda: torch_oracles.kaiming_preresnet(29, 10), "have the imagenet stem"),
        (TORCH_FB_CIFAR, lambda: torch_oracles.kaiming_preresnet(29, 10), "and basic units"),
        (TORCH_KAIMING, lambda: torch_oracles.fb_preresnet(20, "cifar", 10), "bottleneck units"),
        (TORCH_PRERESNET, lambda: torch_oracles.fb_preresnet(18, "imagenet", 7), "have the cifar"),
        (TIMM, lambda: torch_oracles.fb_preresnet(18, "imagenet", 7), "there is no stem.conv"),
        (
            TORCH_PRERESNET,
            lambda: torch_oracles.fb_preresnet(20, "cifar", 10, names=NAMES),
            r"there is no layer2\.0\.downsample\.0\.weight",
        ),
        (
            TORCH_FB_CIFAR,
            lambda: torch_oracles.fb_preresnet(20, "cifar", 10, shortcut="B", names=NAMES),
            r"there is layer\d\.0\.downsample\.0\.weight",
        ),
        (TORCH_FB, lambda: torch_oracles.fb_preresnet(18, "imagenet", 7), r"there is no bn\."),
    ],
)
def test_networks_of_others_are_refused(layout, net, told):
    with pytest.raises(UserError, match=told):
        layout.to_ours(torch_oracles.torch_arrays(net(), seed=0))


def test_the_papers_networks_are_kaimings():
    TORCH_KAIMING.check(named("preact164"))
    TORCH_FB.check(named("preact18", stem="imagenet"))
    TORCH_FB.check(named("preact50", stem="imagenet", stride_on="3x3"))
    with pytest.raises(UserError, match="stride_on is first"):
        TORCH_FB.check(named("preact50", stem="imagenet"))
    with pytest.raises(UserError, match="split_after_pre is projection"):
        TORCH_FB_CIFAR.check(named("preact110"))
