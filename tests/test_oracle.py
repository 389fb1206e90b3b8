"""Our networks against tests/oracle.py: PyTorch, written from the papers without sight of ours."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import ORDER, named
from tests.common import randomise, relative, use_moving_statistics

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch (extra 'oracle')")
from tests import oracle  # noqa: E402

NETWORKS = {
    "preact20": named("preact20"),
    "resnet20": named("resnet20"),
    "preact29 bottleneck": named("preact29"),
    "resnet29 bottleneck": named("resnet29"),
    "preact29, stride on the 3x3": named("preact29", stride_on="3x3"),
    "preact20, one layer a unit": named("preact20", unit="single"),
    "resnet20, projected": named("resnet20", widening="B"),
    "preact20, projected": named("preact20", widening="B"),
    "preact20, projected everywhere": named("preact20", widening="C"),
    "preact29, padded": named("preact29", widening="A"),
    **{
        f"{model}14, {shortcut}": named(f"{model}14", shortcut=shortcut)
        for model in ("resnet", "preact")
        for shortcut in (
            "plain",
            "scale:0.5,1",
            "scale:0.5,0.5",
            "gate:-1",
            "exclusive-gate:-1",
            "conv1x1",
        )
    },
    "preact14, projected and gated": named("preact14", widening="B", shortcut="gate:0"),
    **{f"{order}14": named("preact14", order=order) for order in ORDER},
    **{f"{order}11": named("preact11", order=order) for order in ORDER},
    "preact18 at 64x64": named("preact18", classes=20),
    "preact50 at 64x64": named("preact50", classes=20),
    "resnet50 at 64x64": named("resnet50", classes=20, stride_on="3x3"),
}


def as_oracle(spec) -> dict:
    """The oracle's words for a network of ours."""
    kind, _, tail = str(spec.shortcut).partition(":")
    return {
        "family": spec.stem,
        "units": list(spec.stages),
        "unit": spec.unit,
        "order": spec.order,
        "shortcut": [kind, *map(float, filter(None, tail.split(",")))],
        "widening": spec.widening,
        "stride_on": spec.stride_on,
        "classes": spec.classes,
    }


def run_both(spec, images, weights, dtype, training, moving=False):
    """(logits, gradients by name) of ours and of the oracle, for the loss sum(logits * weights).

    With `moving`, batch normalisation uses the moving statistics while training, too.
    """
    net = ResNetV2(spec)
    values = randomise(net, dtype=dtype)
    if moving:
        net.apply(use_moving_statistics)
    x = mx.nd.array(images, dtype=dtype)
    x.attach_grad()
    with autograd.record(train_mode=training):
        ours = net(x)
        loss = (ours * mx.nd.array(weights, dtype=dtype)).sum()
    loss.backward(train_mode=training)
    gradients = {
        name: p.grad().asnumpy() for name, p in net.collect_params().items() if p.grad_req != "null"
    }
    gradients["data"] = x.grad.asnumpy()

    tensors = {name: torch.tensor(value) for name, value in values.items()}
    tensors["data"] = torch.tensor(images.astype(dtype))
    for name in gradients:
        tensors[name].requires_grad_()
    theirs = oracle.logits(as_oracle(spec), tensors, tensors["data"], training and not moving)
    (theirs * torch.tensor(weights.astype(dtype))).sum().backward()
    expected = {name: tensors[name].grad.numpy() for name in gradients}
    return (ours.asnumpy(), gradients), (theirs.detach().numpy(), expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_names_and_shapes(network):
    shapes = {n: p.shape for n, p in ResNetV2(NETWORKS[network]).collect_params().items()}
    assert shapes == oracle.parameter_shapes(as_oracle(NETWORKS[network]))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("network", NETWORKS)
def test_logits_and_gradients_in_float64(network, training):
    """float64 leaves no room for an error to hide in."""
    ours, theirs = run_both(*inputs(NETWORKS[network]), "float64", training)
    assert relative(ours[0], theirs[0]) < 1e-10
    assert not gradients_apart(ours[1], theirs[1], 1e-10)


FEW = {"count": 2, "size": 16}  # the fewer activations, the farther from 0 is the nearest


@pytest.mark.parametrize("network", NETWORKS)
def test_logits_and_gradients_in_float32(network):
    """float32 is what runs in earnest, on oneDNN's kernels."""
    spec = NETWORKS[network]
    ours, theirs = run_both(*inputs(spec), "float32", training=False)
    assert relative(ours[0], theirs[0]) < 1e-4
    # Gradients jump where a ReLU is fed 0, and there rounding would decide: of a few inputs, those
    # that keep farthest from that in the oracle.
    # Fifty layers of batch statistics over two small images magnify rounding a hundredfold, in
    # PyTorch's float32 as in ours: there the moving ones stand in.
    moving = spec.depth == 50
    farthest = inputs(spec, int(np.argmax(margins(spec, moving))), **FEW)
    ours, theirs = run_both(*farthest, "float32", training=True, moving=moving)
    assert relative(ours[0], theirs[0]) < 1e-4
    assert not gradients_apart(ours[1], theirs[1], 1e-4)


def inputs(spec, seed=1, count=4, size=32):
    """The spec, images (count, 3, H, W), and weights (count, classes) of the logits in the loss."""
    rng = np.random.RandomState(seed)
    size = 64 if spec.stem == "imagenet" else size
    return spec, rng.normal(size=(count, 3, size, size)), rng.normal(size=(count, spec.classes))


def margins(spec, moving, seeds=40):
    """The smallest magnitude that any ReLU of the oracle is fed, by seed of `inputs`."""
    tensors = {name: torch.tensor(value) for name, value in randomise(ResNetV2(spec)).items()}
    smallest, relu = [float("inf")] * seeds, torch.Tensor.relu
    for seed in range(seeds):

        def recording(x, seed=seed):
            smallest[seed] = min(smallest[seed], float(x.abs().min()))
            return relu(x)

        images = torch.tensor(inputs(spec, seed, **FEW)[1], dtype=torch.float32)
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(torch.Tensor, "relu", recording)
            oracle.logits(as_oracle(spec), tensors, images, training=not moving)
    return smallest


def gradients_apart(ours, theirs, tolerance):
    """{name: relative difference} of the gradients that differ by more than `tolerance`."""
    # A shift right before a BN has no gradient but rounding: nothing to be relative to.
    floor = 0.1 * np.median([np.linalg.norm(gradient) for gradient in theirs.values()])
    differences = {name: relative(ours[name], theirs[name], floor) for name in theirs}
    return {name: value for name, value in differences.items() if value > tolerance}


def test_dropout_shortcut_in_inference():
    spec = named("resnet14", shortcut="dropout:0.5")
    images = np.random.RandomState(2).normal(size=(3, 3, 32, 32))
    ours, theirs = run_both(spec, images, np.ones((3, 10)), "float64", training=False)
    assert relative(ours[0], theirs[0]) < 1e-10
