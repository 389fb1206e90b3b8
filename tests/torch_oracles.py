"""Two ResNet v2 written in Lua, written again from their published descriptions in PyTorch.

Nothing here imports, or was derived from, the code of this package.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.layout_oracles import cifar_units, imagenet_units, randomise

# What holds which parameters, as dotted paths. Stages s and weight layers i count from 1, units u
# from 0. `bn` of layer i is the batch normalisation right before `conv` of layer i.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "bn": "layer{s}.{u}.bn{i}",
    "conv": "layer{s}.{u}.conv{i}",
    "projection": "layer{s}.{u}.downsample.0",
    "last_bn": "bn_last",
    "classifier": "fc",
}


def fb_preresnet(
    depth: int,
    dataset: str,
    classes: int,
    *,
    shortcut: str | None = None,
    global_pool: bool = False,
    names: dict[str, str] | None = None,
) -> PreResNet:
    """The network of facebook/fb.resnet.torch models/preresnet.lua; bottlenecks stride on the 3x3.

    dataset "imagenet", depths 18, 34, 50, 101, 152, 200: convolution `conv1`, the stem's BN `bn1`,
    ReLU, max pooling. Stage 1's unit 0 ("no_preact") adds no pre-activation of its own: both of
    its paths read the pooled map and `layer1.0.bn1` does not exist, while `layer1.0.bn2` and
    `.bn3` do. `shortcut` is "B" by default: that unit projects in bottleneck networks (64 to 256)
    and not in basic ones.

    dataset "cifar", depth 6n + 2: always basic units (164 is 27 a stage; the source has no CIFAR
    bottleneck), stages of 16, 32, 64. The stem is `conv1` alone, there is no `bn1`. `shortcut` is
    "A" by default: no projection anywhere.

    In both, unit 0 of every other stage, and of CIFAR's stage 1, is "both_preact": ReLU of its
    `bn1` feeds both paths, hence the shortcut too, identity or not. In all other units the shortcut
    reads the raw input. `bn_last` and `fc` end the network.

    The source's average pooling is of 7x7 ("cifar": 8x8), not global: it fits heights and widths of
    193 to 224 (29 to 32), and another size raises ValueError unless `global_pool`.
    """
    if dataset == "imagenet":
        if depth > 200:
            raise ValueError(f"the source has no ImageNet network of depth {depth}")
        units, stem, channels = imagenet_units(depth), 64, (64, 128, 256, 512)
    elif dataset == "cifar":
        units, stem, channels = cifar_units(depth, 6), 16, (16, 32, 64)
    else:
        raise ValueError(f"dataset {dataset!r} is neither imagenet nor cifar")
    imagenet = dataset == "imagenet"
    bottleneck = imagenet and depth >= 50
    return PreResNet(
        units=units,
        channels=channels,
        stem=stem,
        classes=classes,
        bottleneck=bottleneck,
        large=imagenet,
        stride_on=2 if bottleneck else 1,
        split_after_pre="first",
        shortcut=shortcut or ("B" if imagenet else "A"),
        global_pool=global_pool,
        names=names,
    )


def kaiming_preresnet(
    depth: int, classes: int, *, global_pool: bool = False, names: dict[str, str] | None = None
) -> PreResNet:
    """The network of KaimingHe/resnet-1k-layers resnet-pre-act.lua: CIFAR, depth 9n + 2.

    Bottlenecks that stride on the first 1x1; stem of 16 channels, stages of 64, 128, 256. The stem
    is `conv1` alone, there is no `bn1`. Unit 0 of each of the three stages changes channels (stage
    1 from 16 to 64, at stride 1): ReLU of its `bn1` feeds both the projection `downsample.0`, a 1x1
    convolution without BN, and the residual path. In all other units the shortcut is the raw input.
    `bn_last` and `fc` end the network. Pooling: 8x8, see `fb_preresnet`.
    """
    return PreResNet(
        units=cifar_units(depth, 9),
        channels=(16, 32, 64),
        stem=16,
        classes=classes,
        bottleneck=True,
        large=False,
        stride_on=1,
        split_after_pre="widening",
        shortcut="B",
        global_pool=global_pool,
        names=names,
    )


class PreResNet(nn.Module):
    """What both Lua networks are; `fb_preresnet` and `kaiming_preresnet` say how they differ.

    Args:
        channels: of each stage's 3x3 convolutions.
        large: ImageNet's stem with its BN, or the 3x3 convolution alone.
        stride_on: the weight layer, from 1, that strides.
        split_after_pre: units whose shortcut reads relu(bn1(x)): every stage's "first" unit, or
            those "widening" their input. With a large stem the very first unit has no bn1.
        shortcut: where channels change "A" subsamples and appends zero channels, "B" projects;
            "C" projects in every unit.
        names: entries of `TORCH_NAMES` to replace.
    """

    def __init__(
        self,
        *,
        units: tuple[int, ...],
        channels: tuple[int, ...],
        stem: int,
        classes: int,
        bottleneck: bool,
        large: bool,
        stride_on: int,
        split_after_pre: str,
        shortcut: str,
        global_pool: bool,
        names: dict[str, str] | None,
    ):
        super().__init__()
        if shortcut not in ("A", "B", "C"):
            raise ValueError(f"shortcut {shortcut!r} is none of A, B, C")
        unknown = set(names or {}) - set(TORCH_NAMES)
        if unknown:
            raise ValueError(f"names has unknown entries {sorted(unknown)}")
        self.paths = {**TORCH_NAMES, **(names or {})}
        self.large, self.global_pool = large, global_pool
        self.plan = []  # a dict for each unit, in order

        self._add("stem_conv", nn.Conv2d(3, stem, 7, 2, 3, bias=False) if large else _same(3, stem))
        if large:
            self._add("stem_bn", nn.BatchNorm2d(stem))
        width = stem
        for s, (count, inner) in enumerate(zip(units, channels), start=1):
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            outer = inner * 4 if bottleneck else inner
            for u in range(count):
                stride = 2 if s > 1 and u == 0 else 1
                no_preact = large and s == 1 and u == 0
                widens = width != outer
                read, sizes = width, [inner] * (len(kernels) - 1) + [outer]
                for i, (kernel, size) in enumerate(zip(kernels, sizes), start=1):
                    if not (no_preact and i == 1):
                        self._add("bn", nn.BatchNorm2d(read), s=s, u=u, i=i)
                    step = stride if i == stride_on else 1
                    self._add("conv", _same(read, size, kernel, step), s=s, u=u, i=i)
                    read = size
                projects = shortcut == "C" or (shortcut == "B" and widens)
                if projects:
                    self._add("projection", _same(width, outer, 1, stride), s=s, u=u)
                self.plan.append(
                    {
                        "at": {"s": s, "u": u},
                        "layers": len(kernels),
                        "no_preact": no_preact,
                        "split_after_pre": u == 0 if split_after_pre == "first" else widens,
                        "projects": projects,
                        "stride": stride,
                        "zeros": outer - width,
                    }
                )
                width = outer
        self._add("last_bn", nn.BatchNorm2d(width))
        self._add("classifier", nn.Linear(width, classes))

    def forward(self, x):
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self._at("stem_conv")(x)
        if self.large:
            x = F.max_pool2d(F.relu(self._at("stem_bn")(x)), 3, 2, 1)
        for unit in self.plan:
            x = self._unit(x, **unit)
        x = F.relu(self._at("last_bn")(x))
        size = 7 if self.large else 8
        if x.shape[2:] != (size, size) and not self.global_pool:
            raise ValueError(f"the pooling is of {size}x{size}, the map of {tuple(x.shape[2:])}")
        return self._at("classifier")(x.mean(dim=(2, 3)))

    def _unit(self, x, at, layers, no_preact, split_after_pre, projects, stride, zeros):
        residual = x if no_preact else F.relu(self._at("bn", **at, i=1)(x))
        shortcut = residual if split_after_pre else x
        residual = self._at("conv", **at, i=1)(residual)
        for i in range(2, layers + 1):
            residual = F.relu(self._at("bn", **at, i=i)(residual))
            residual = self._at("conv", **at, i=i)(residual)
        if projects:
            shortcut = self._at("projection", **at)(shortcut)
        elif zeros:
            shortcut = F.pad(shortcut[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, zeros))
        return residual + shortcut

    def _add(self, role, module, **place):
        *outer, last = self.paths[role].format(**place).split(".")
        parent = self
        for name in outer:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        parent.add_module(last, module)

    def _at(self, role, **place):
        return self.get_submodule(self.paths[role].format(**place))


def torch_arrays(net: nn.Module, seed: int | None = None) -> dict[str, np.ndarray]:
    """`net`'s state dict in numpy, as it is or `randomise`d by `seed`."""
    arrays = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    return arrays if seed is None else randomise(arrays, seed)


def torch_logits(net: nn.Module, arrays: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Logits (N, classes) of `net` with exactly `arrays` as its state, on `images` (N, C, H, W)."""
    net.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    with torch.no_grad():
        return net.eval()(torch.from_numpy(images)).numpy()


def _same(read, size, kernel=3, stride=1):
    return nn.Conv2d(read, size, kernel, stride, kernel // 2, bias=False)
