"""The same networks by others: in GluonCV, in MXNet's Module, in PyTorch.

Their widening differs as their authors have it: GluonCV projects where we pad. The rest, and so
nearly all of the work, is the same.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from gluon_resnetv2.spec import Spec

# The ways that both train and infer.
PEERS = (
    "GluonCV",
    "MXNet Module",
    "PyTorch eager",
    "PyTorch channels_last",
    "PyTorch compiled",
    "PyTorch bf16 channels_last",
    "PyTorch bf16 compiled",
)

# What bounds all ways: the machine's largest matrix product, in a type of PyTorch's.
LIMITS = {"matrix product float32": "float32", "matrix product bfloat16": "bfloat16"}
SIDES, PRODUCTS = (1024, 2048, 4096), 8  # of square matrices, and how often each is tried


def multiply_adds(way: str) -> float:
    """Those of one of `LIMITS` in a second, by oneDNN in PyTorch: the most of several sizes."""
    import torch

    most = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side).to(getattr(torch, LIMITS[way])) for _ in range(2))
        for _ in range(PRODUCTS):
            began = time.perf_counter()
            a @ b
            most = max(most, side**3 / (time.perf_counter() - began))
    return most


def gluoncv_network(spec: Spec):
    """GluonCV's CIFAR or ImageNet network of the same depth; bottlenecks on CIFAR in its style."""
    from gluoncv.model_zoo import get_model
    from gluoncv.model_zoo.cifarresnet import CIFARBasicBlockV2, CIFARResNetV2
    from gluoncv.model_zoo.resnet import BottleneckV2

    if spec.stem == "imagenet":
        net = get_model(f"resnet{spec.depth}_v2", classes=spec.classes)
    else:
        basic = spec.unit == "basic"
        widths = [width * (1 if basic else 4) for width in spec.channels]
        block = CIFARBasicBlockV2 if basic else BottleneckV2
        net = CIFARResNetV2(block, spec.stages, [spec.channels[0], *widths], classes=spec.classes)
    net.initialize()
    return net


def _module(spec: Spec, shape: tuple[int, ...], **binding):
    """`mx.mod.Module`, which MXNet's symbolic example uses, on our symbol."""
    import mxnet as mx

    from symbols.resnetv2 import get_symbol

    symbol = get_symbol(
        num_classes=spec.classes,
        num_layers=spec.depth,
        image_shape=",".join(map(str, shape[1:])),
    )
    module = mx.mod.Module(symbol, context=mx.cpu())
    module.bind([("data", shape)], [("softmax_label", shape[:1])], **binding)
    module.init_params(mx.init.Xavier())
    return module


def module_step(spec: Spec, images: np.ndarray, labels: np.ndarray):
    """A training step of `mx.mod.Module`."""
    import mxnet as mx

    module = _module(spec, images.shape)
    settings = {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-4}
    module.init_optimizer(optimizer="sgd", optimizer_params=settings)
    batch = mx.io.DataBatch([mx.nd.array(images)], [mx.nd.array(labels)])

    def step():
        module.forward_backward(batch)
        module.update()
        mx.nd.waitall()

    return step


def module_inference(spec: Spec, shape: tuple[int, ...]):
    """`mx.mod.Module` as a function from images to probabilities."""
    import mxnet as mx

    module = _module(spec, shape, for_training=False)

    def run(images):
        module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
        return module.get_outputs()[0].asnumpy()

    return run


def gluoncv_inference(spec: Spec):
    """GluonCV's network, hybridized, as a function from images to logits."""
    import mxnet as mx

    net = gluoncv_network(spec)
    net.hybridize(static_alloc=True, static_shape=True)
    return lambda images: net(mx.nd.array(images)).asnumpy()


def torch_network(spec: Spec):
    """A pre-activation network of the same units in PyTorch, as its users write it."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    conv = partial(nn.Conv2d, bias=False)

    class Unit(nn.Module):
        def __init__(self, unit):
            super().__init__()
            ops = [
                conv(c.in_channels, c.out_channels, c.kernel, c.stride, c.kernel // 2)
                for c in unit.convs
            ]
            self.convs = nn.ModuleList(ops)
            norms = [nn.BatchNorm2d(c.in_channels) for c in unit.convs]
            self.first = not unit.pre
            self.norms = nn.ModuleList(norms[1:] if self.first else norms)
            self.stride, self.more = unit.stride, unit.out_channels - unit.in_channels
            self.projection = None
            if unit.projection:
                self.projection = conv(unit.in_channels, unit.out_channels, 1, unit.stride)

        def forward(self, x):
            y = x if self.first else F.relu(self.norms[0](x))
            if self.projection is not None:
                x = self.projection(y)
            elif self.more or self.stride > 1:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            y = self.convs[0](y)
            for norm, layer in zip(self.norms[1 - len(self.convs) :], self.convs[1:]):
                y = layer(F.relu(norm(y)))
            return x + y

    stem, out = spec.stem_conv, spec.out_channels
    head = [nn.BatchNorm2d(out), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers = [
        conv(stem.in_channels, stem.out_channels, stem.kernel, stem.stride, stem.kernel // 2),
        *(nn.BatchNorm2d(stem.out_channels), nn.ReLU()),
        *([nn.MaxPool2d(3, 2, 1)] if spec.stem_pool else []),
        *map(Unit, spec.units()),
        *head,
        nn.Linear(out, spec.classes),
    ]
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def torch_step(spec: Spec, way: str, images: np.ndarray, labels: np.ndarray):
    """A training step of PyTorch; `way` says "channels_last", "compiled" and "bf16"."""
    import torch
    from torch.nn import functional as F

    net, prepared, autocast = torch_prepared(spec, way)
    net.train()
    images, labels = prepared(images), torch.from_numpy(labels).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()

    return step


def torch_inference(spec: Spec, way: str):
    """PyTorch as a function from images to logits; `way` as for `torch_step`."""
    import torch

    net, prepared, autocast = torch_prepared(spec, way)
    net.eval()

    def run(images):
        with torch.inference_mode(), autocast():
            return net(prepared(images)).float().numpy()

    return run


def torch_prepared(spec: Spec, way: str):
    """The network of a way, what makes its input of NumPy images, and its context."""
    import torch

    net, layout = torch_network(spec), torch.contiguous_format
    if "channels_last" in way or "compiled" in way:
        layout = torch.channels_last
        net = net.to(memory_format=layout)
    if "compiled" in way:
        net = torch.compile(net)

    def prepared(images):
        return torch.from_numpy(images).to(memory_format=layout)

    return (
        net,
        prepared,
        partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled="bf16" in way),
    )
