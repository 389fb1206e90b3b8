"""MXNet's symbolic ResNet v2, written again from its published description, to convert from.

Its own source cannot be installed. Nothing here imports, or was derived from, the code of this
package.
"""

from __future__ import annotations

import re
import zlib

import mxnet as mx
import numpy as np
from mxnet.test_utils import environment

IMAGENET_UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}


def imagenet_units(depth):
    if depth not in IMAGENET_UNITS:
        raise ValueError(f"no ImageNet network of depth {depth}")
    return IMAGENET_UNITS[depth]


def cifar_units(depth, layers):
    per_stage, rest = divmod(depth - 2, layers)
    if rest or per_stage < 1:
        raise ValueError(f"no CIFAR network of depth {depth}: {layers}n + 2")
    return (per_stage,) * 3


# -- MXNet's symbolic network ----------------------------------------------------------------------


def symbolic(depth: int, image_shape: tuple[int, int, int], classes: int) -> mx.sym.Symbol:
    """The network of apache/mxnet 1.9.1 example/image-classification/symbols/resnet.py.

    As there, `image_shape` (channels, height, width) decides. Height up to 28: the CIFAR networks.
    Above 32: the ImageNet networks. From 29 to 32 that source gives an ImageNet depth its four
    stages on the 3x3 stem without bn0, and fails for any other depth; here such a depth is a CIFAR
    network, as in tornadomeet/ResNet with its data type cifar10. CIFAR depths below 164 are 6n + 2
    of basic units, others 9n + 2 of bottlenecks.

    Inputs "data" (N, *image_shape) and "softmax_label" (N,); output "softmax" (N, classes).
    """
    height = image_shape[1]
    if height <= 28 or (height <= 32 and depth not in IMAGENET_UNITS):
        bottleneck = depth >= 164
        units = cifar_units(depth, 9 if bottleneck else 6)
        stem_channels, *channels = (16, 64, 128, 256) if bottleneck else (16, 16, 32, 64)
    else:
        bottleneck = depth >= 50
        units = imagenet_units(depth)
        stem_channels = 64
        channels = (256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512)

    x = mx.sym.identity(mx.sym.Variable("data"), name="id")
    x = bn(x, "bn_data", fix_gamma=True)
    if height <= 32:
        x = conv(x, "conv0", stem_channels, kernel=3)
    else:
        x = conv(x, "conv0", stem_channels, kernel=7, stride=2)
        x = relu(bn(x, "bn0"), "relu0")
        x = mx.sym.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")
    for s, (count, width) in enumerate(zip(units, channels), start=1):
        for u in range(1, count + 1):
            stride = 2 if u == 1 and s > 1 else 1
            x = _symbolic_unit(x, f"stage{s}_unit{u}_", width, stride, bottleneck, project=u == 1)
    x = relu(bn(x, "bn1"), "relu1")
    x = mx.sym.Pooling(x, global_pool=True, kernel=(7, 7), pool_type="avg", name="pool1")
    x = mx.sym.FullyConnected(mx.sym.Flatten(x), num_hidden=classes, name="fc1")
    return mx.sym.SoftmaxOutput(x, name="softmax")


def symbolic_logits(symbol, arrays: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """What `symbol`'s softmax reads, (N, classes), for `images` (N, C, H, W).

    `arrays` holds every argument but the data, and every auxiliary state, by name, without the
    "arg:" and "aux:" of a file. A missing one raises KeyError, one of another shape MXNetError.
    """
    logits = symbol.get_internals()["fc1_output"]

    def pick(names):
        return {n: mx.nd.array(images if n == "data" else arrays[n], mx.cpu()) for n in names}

    # The default backend rewrites the graph; the reference is the graph as it is written.
    with environment("MXNET_SUBGRAPH_BACKEND", "NONE"):
        executor = logits.bind(
            mx.cpu(),
            pick(logits.list_arguments()),
            grad_req="null",
            aux_states=pick(logits.list_auxiliary_states()),
        )
        return executor.forward(is_train=False)[0].asnumpy()


def symbolic_arrays(
    symbol, image_shape: tuple[int, int, int], seed: int | None = None
) -> dict[str, np.ndarray]:
    """Arguments and auxiliary states of `symbol` by name: zeros, or `randomise`d by `seed`."""
    argument_shapes, _, auxiliary_shapes = symbol.infer_shape(data=(1, *image_shape))
    names = symbol.list_arguments() + symbol.list_auxiliary_states()
    arrays = {
        name: np.zeros(shape, np.float32)
        for name, shape in zip(names, argument_shapes + auxiliary_shapes)
        if name not in ("data", "softmax_label")
    }
    return arrays if seed is None else randomise(arrays, seed)


def _symbolic_unit(x, name, channels, stride, bottleneck, project):
    branches = relu(bn(x, name + "bn1"), name + "relu1")
    if bottleneck:
        layers = [(channels // 4, 1, 1), (channels // 4, 3, stride), (channels, 1, 1)]
    else:
        layers = [(channels, 3, stride), (channels, 3, 1)]
    residual = branches
    for i, (width, kernel, step) in enumerate(layers, start=1):
        if i > 1:
            residual = relu(bn(residual, f"{name}bn{i}"), f"{name}relu{i}")
        residual = conv(residual, f"{name}conv{i}", width, kernel, step)
    shortcut = conv(branches, name + "sc", channels, 1, stride) if project else x
    return residual + shortcut


def bn(x, name, fix_gamma=False):
    return mx.sym.BatchNorm(x, fix_gamma=fix_gamma, eps=2e-5, momentum=0.9, name=name)


def relu(x, name):
    return mx.sym.Activation(x, act_type="relu", name=name)


def conv(x, name, channels, kernel, stride=1):
    return mx.sym.Convolution(
        x,
        num_filter=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(kernel // 2, kernel // 2),
        no_bias=True,
        name=name,
    )


# -- Weights ---------------------------------------------------------------------------------------

QUIET = 0.03


def randomise(arrays: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Arrays of the same names, shapes and dtypes under which each array matters to the logits.

    Meant for images of about unit scale. Names end in MXNet's or PyTorch's way (_gamma, .weight,
    running_var, ...), convolutions are OIHW. Convolutions are He-scaled, and the last one of each
    unit smaller by the square root of the number of units, which keeps a thousand layers finite.
    Gammas are 0.5 to 1.5 in size, a tenth of them negative; variances 0.5 to 2; means, betas and
    biases normal of deviation 0.2. Every tenth channel is quiet, its gamma scaled by `QUIET` and
    its variance by the square: there 1e-5 more of eps moves the outcome by about 0.5%.
    bn_data_gamma is drawn like any gamma, although fix_gamma makes it act as 1: weight decay leaves
    such values in files. Integers (num_batches_tracked) become positive counts. The values of a
    name depend on it, its shape and `seed`, and for convolutions on the number of units.

    Raises:
        ValueError: a name whose role cannot be told.
    """
    lasts = _last_convolutions(arrays)

    def draw(name, array):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        shape, ends = array.shape, name.endswith
        if not np.issubdtype(array.dtype, np.floating):
            return rng.integers(1, 1000, shape)
        if ends("var"):
            return rng.uniform(0.5, 2, shape) * _quiet(shape) ** 2
        if ends(("mean", "beta", "bias")):
            return rng.normal(0, 0.2, shape)
        if ends("gamma") or (ends("weight") and array.ndim == 1):
            sign = np.where(rng.random(shape) < 0.1, -1, 1)
            return sign * rng.uniform(0.5, 1.5, shape) * _quiet(shape)
        if ends("weight") and array.ndim in (2, 4):
            scale = np.sqrt(2 / np.prod(shape[1:]))
            return rng.normal(0, scale / (np.sqrt(len(lasts)) if name in lasts else 1), shape)
        raise ValueError(f"cannot tell what {name} {shape} is")

    return {name: np.asarray(draw(name, array), array.dtype) for name, array in arrays.items()}


def _quiet(shape):
    return np.where(np.arange(*shape) % 10 == 9, QUIET, 1)


def _last_convolutions(names):
    """The last of each run of convolutions named alike but for their number: each unit's."""
    units = {}
    for name in names:
        match = re.fullmatch(r"(.+[._])conv(\d+)[._]weight", name)
        if match:
            units.setdefault(match[1], []).append((int(match[2]), name))
    return {max(convs)[1] for convs in units.values()}
