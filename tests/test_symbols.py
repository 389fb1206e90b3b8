"""`symbols/` against the names and habits of MXNet's own image-classification example."""

from __future__ import annotations

from importlib import import_module

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import data
from gluon_resnetv2.errors import UserError
from tests.common import relative
from tests.layout_oracles import bn, conv

get_symbol = import_module("symbols.resnetv2").get_symbol


# -- The example's networks, in plain operators and by its own naming ------------------------------

# Units of each stage, and channels of the stem and of each stage's output.
EXAMPLES = {
    20: ((3, 3, 3), (16, 16, 32, 64)),
    164: ((18, 18, 18), (16, 64, 128, 256)),
    50: ((3, 4, 6, 3), (64, 256, 512, 1024, 2048)),
}


def bn_relu(x, name):
    return mx.sym.Activation(bn(x, name), act_type="relu")


def example_unit(x, prefix, channels, stride, bottleneck, project):
    active = bn_relu(x, prefix + "bn1")
    shortcut = conv(active, prefix + "sc", channels, 1, stride) if project else x
    if bottleneck:
        y = conv(active, prefix + "conv1", channels // 4, 1)
        y = conv(bn_relu(y, prefix + "bn2"), prefix + "conv2", channels // 4, 3, stride)
        y = conv(bn_relu(y, prefix + "bn3"), prefix + "conv3", channels, 1)
    else:
        y = conv(active, prefix + "conv1", channels, 3, stride)
        y = conv(bn_relu(y, prefix + "bn2"), prefix + "conv2", channels, 3)
    return y + shortcut


def example_symbol(depth):
    """What the example builds for 10 classes."""
    units, (stem, *channels) = EXAMPLES[depth]
    x = bn(mx.sym.var("data"), "bn_data", fix_gamma=True)
    if depth == 50:
        x = bn_relu(conv(x, "conv0", stem, 7, 2), "bn0")
        x = mx.sym.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")
    else:
        x = conv(x, "conv0", stem, 3)
    for stage, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            stride = 2 if stage > 1 and unit == 1 else 1
            prefix = f"stage{stage}_unit{unit}_"
            x = example_unit(x, prefix, channels[stage - 1], stride, depth != 20, unit == 1)
    x = mx.sym.Pooling(bn_relu(x, "bn1"), global_pool=True, kernel=(1, 1), pool_type="avg")
    x = mx.sym.FullyConnected(mx.sym.Flatten(x), num_hidden=10, name="fc1")
    return mx.sym.SoftmaxOutput(x, name="softmax")


def random_values(symbol, shape):
    """Arguments and statistics at random; variances so small that the value of eps shows."""
    rng = np.random.RandomState(0)
    arguments, _, statistics = symbol.infer_shape(data=shape)
    names = symbol.list_arguments() + symbol.list_auxiliary_states()
    values = {}
    for name, size in zip(names, arguments + statistics):
        if name.endswith("weight"):
            values[name] = rng.normal(0, np.sqrt(2 / np.prod(size[1:])), size)
        elif name.endswith("gamma"):
            values[name] = rng.uniform(0.1, 0.3, size)
        elif name.endswith("var"):
            values[name] = rng.uniform(0.01, 0.1, size)
        elif name == "softmax_label":
            values[name] = rng.randint(10, size=size)
        else:
            values[name] = rng.normal(0, 1 if name == "data" else 0.1, size)
    return values


def bind(symbol, values):
    """An executor of `symbol` that owns a copy of the values."""
    arguments, statistics = (
        {name: mx.nd.array(values[name]) for name in names}
        for names in (symbol.list_arguments(), symbol.list_auxiliary_states())
    )
    gradients = {name: mx.nd.zeros(array.shape) for name, array in arguments.items()}
    return symbol.bind(mx.cpu(), arguments, gradients, aux_states=statistics)


@pytest.fixture
def unfused(monkeypatch):
    """Both networks run operator by operator."""
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", "NONE")


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize(("depth", "size"), [(20, 32), (164, 32), (50, 64)])
def test_it_is_the_examples_network(depth, size):
    symbol = get_symbol(
        num_classes=10, num_layers=depth, image_shape=f"3,{size},{size}", conv_workspace=256
    )
    example = example_symbol(depth)
    assert sorted(symbol.list_arguments()) == sorted(example.list_arguments())
    assert sorted(symbol.list_auxiliary_states()) == sorted(example.list_auxiliary_states())
    assert symbol.list_outputs() == ["softmax_output"]

    values = random_values(example, (2, 3, size, size))
    # The logits too, since a softmax may hide what they differ in.
    found, expected = (
        bind(mx.sym.Group([net.get_children()[0], net]), values).forward(is_train=False)
        for net in (symbol, example)
    )
    for output, expected_output in zip(found, expected):
        assert relative(output.asnumpy(), expected_output.asnumpy()) < 1e-5


@pytest.mark.usefixtures("unfused")
def test_it_learns_as_the_examples_network():
    symbol, example = get_symbol(10, 20, "3,32,32"), example_symbol(20)
    values = random_values(example, (4, 3, 32, 32))
    found, expected = bind(symbol, values), bind(example, values)
    for executor in (found, expected):
        executor.forward(is_train=True)
        executor.backward()
    for name in set(example.list_arguments()) - {"data", "softmax_label", "bn_data_gamma"}:
        gradient = expected.grad_dict[name].asnumpy()
        assert np.linalg.norm(gradient) > 0
        assert relative(found.grad_dict[name].asnumpy(), gradient) < 1e-4, name
    assert not found.grad_dict["bn_data_gamma"].asnumpy().any()
    for name, statistic in expected.aux_dict.items():
        assert relative(found.aux_dict[name].asnumpy(), statistic.asnumpy()) < 1e-5, name


def test_weight_decay_reaches_weights_and_gammas_alone():
    symbol = get_symbol(10, 20, "3,32,32", shortcut="gate:-6")
    names = set(symbol.list_arguments()) - {"data", "softmax_label"}
    sgd = mx.optimizer.SGD(sym=symbol, param_idx2name=dict(enumerate(names)))
    decays = {name: sgd.wd_mult.get(name, 1) for name in names}
    # MXNet's rule for symbols, but for a gamma that is fixed at 1.
    assert decays == {
        name: float(name.endswith(("_weight", "_gamma")) and name != "bn_data_gamma")
        for name in names
    }


# -- Its habits ------------------------------------------------------------------------------------


def test_other_options_of_the_examples_scripts_are_ignored():
    options = {"network": "resnetv2", "gpus": None, "kv_store": "device", "lr": 0.1, "order": None}
    plain = get_symbol(10, 20, "3,32,32")
    assert get_symbol(10, 20, "3,32,32", **options).tojson() == plain.tojson()


def test_switches_of_the_spec_are_honoured():
    symbol = get_symbol(
        10, 20, (1, 28, 28), order="original", shortcut="gate:-6", widening="A", project_first=False
    )
    shapes = symbol.infer_shape(data=(1, 1, 28, 28))[0]
    assert dict(zip(symbol.list_arguments(), shapes))["conv0_weight"] == (16, 1, 3, 3)
    assert "stage1_unit1_gate_bias" in symbol.list_arguments()
    assert "stage2_unit1_sc_weight" not in symbol.list_arguments()


def test_the_height_never_changes_the_network():
    # The example itself picks another network for 28 than for 32 pixels.
    names = {shape: get_symbol(10, 110, shape).list_arguments() for shape in ("3,28,28", "3,32,32")}
    assert names["3,28,28"] == names["3,32,32"]
    assert "stage4_unit1_conv1_weight" in get_symbol(10, 50, "3,32,32").list_arguments()
    assert "stage4_unit1_conv1_weight" not in get_symbol(10, 50, stem="cifar").list_arguments()


def test_half_precision_is_cast_at_both_ends():
    symbol = get_symbol(10, 20, "3,32,32", dtype="float16")
    types, outputs, _ = symbol.infer_type(data="float32")
    types = dict(zip(symbol.list_arguments(), types))
    assert types["conv0_weight"] == np.float16
    assert types["fc1_weight"] == np.float16
    assert types["bn1_gamma"] == np.float32
    assert outputs == [np.float32]


@pytest.mark.parametrize("arguments", [(10, 21, "3,32,32"), (10, 20, "3,32,32", 0, "int8")])
def test_mistakes_are_named(arguments):
    with pytest.raises(UserError, match=r"21|int8"):
        get_symbol(*arguments)


def test_module_trains_it_on_digits():
    digits = data.load("digits", image_size=16)
    images, labels = zip(*digits.batches(1437, train=True))
    tested, test_labels = zip(*digits.batches(360))
    module = mx.mod.Module(get_symbol(10, 8, "3,16,16"))
    mx.random.seed(0)
    np.random.seed(0)
    module.fit(
        mx.io.NDArrayIter(images[0], labels[0].astype("float32"), 64, shuffle=True),
        num_epoch=4,
        initializer=mx.init.MSRAPrelu("in", 0),
        optimizer_params={"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-4},
    )
    score = module.score(mx.io.NDArrayIter(tested[0], test_labels[0].astype("float32"), 36), "acc")
    assert score[0][1] > 0.8
    # fix_gamma: the input's gamma takes no part in training.
    parameters, _ = module.get_params()
    assert (parameters["bn_data_gamma"].asnumpy() == 1).all()
    assert relative(parameters["bn_data_beta"].asnumpy(), np.zeros(3)) > 0
