"""Weights of other implementations, held against these themselves."""

from __future__ import annotations

import json
import runpy
import shutil
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon.model_zoo import vision
from PIL import Image

from gluon_resnetv2.engines.images import read_image
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.engines.runtimes import symbol_block
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export
from gluon_resnetv2.formats import torch_file, weights
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.interop import LAYOUTS, convert
from gluon_resnetv2.interop import layout as layout_module
from gluon_resnetv2.interop import source as sources
from gluon_resnetv2.interop.layout import Facts, shapes
from gluon_resnetv2.interop.mxnet import GLUONCV_CIFAR, MODEL_ZOO, SYMBOLIC
from gluon_resnetv2.interop.torch import TORCH_PRERESNET
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from tests import layout_oracles
from tests.common import difference

TOLERANCE = 1e-4  # relative to the largest logit

CIFAR = {
    **dict.fromkeys(("gluoncv-cifar", "torch-fb-cifar", "torch-preresnet"), "basic"),
    "torch-kaiming": "bottleneck",
}

slow = pytest.mark.slow


def logits_of(spec, ours, images):
    net = ResNetV2(spec)
    net.initialize()
    for name, parameter in net.collect_params().items():
        parameter.set_data(mx.nd.array(ours[name]))
    return net(mx.nd.array(images)).asnumpy()


def headless(path, arrays):
    """Writes parameters of the model zoo without those of the classifier."""
    kept = {name: mx.nd.array(a) for name, a in arrays.items() if not name.startswith("output")}
    mx.nd.save(str(path), kept)


def images_of(size, seed=1):
    return np.random.RandomState(seed).normal(size=(2, 3, size, size)).astype("float32")


def check(layout, theirs, sizes, theirs_logits):
    """Same logits at each size, and the same arrays back; returns the network."""
    spec, ours = layout.to_ours(theirs)
    for size in sizes:
        images = images_of(size)
        assert difference(logits_of(spec, ours, images), theirs_logits(images)) <= TOLERANCE
    back = layout.from_ours(spec, ours)
    assert set(back) == set(theirs)
    for name, array in theirs.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    return spec


# -- Gluon's and GluonCV's -------------------------------------------------------------------------


def gluon_arrays(net, seed=0):
    """Random parameters of a Gluon network of theirs, statistics and gammas too."""
    net.initialize(mx.init.Zero())
    net(mx.nd.zeros((1, 3, 64, 64)))
    arrays = {
        name: np.empty(parameter.shape, "float32")
        for name, parameter in net._collect_params_with_prefix().items()
    }
    arrays = layout_oracles.randomise(arrays, seed)
    for name, parameter in net._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(arrays[name]))
    return arrays


def check_gluon(layout, net, sizes):
    return check(
        layout, gluon_arrays(net), sizes, lambda images: net(mx.nd.array(images)).asnumpy()
    )


@pytest.mark.parametrize(
    "depth", [18, 50, *(pytest.param(depth, marks=slow) for depth in (34, 101, 152))]
)
def test_the_model_zoos_networks_convert_and_back(depth):
    spec = check_gluon(MODEL_ZOO, vision.get_resnet(2, depth, classes=7), (64, 75))
    assert (spec.depth, spec.classes, spec.stem) == (depth, 7, "imagenet")


@pytest.mark.parametrize("depth", [20, *(pytest.param(depth, marks=slow) for depth in (56, 110))])
def test_gluoncvs_cifar_networks_convert_and_back(depth):
    gluoncv = pytest.importorskip("gluoncv", exc_type=ImportError)
    net = gluoncv.model_zoo.get_model(f"cifar_resnet{depth}_v2", classes=100)
    spec = check_gluon(GLUONCV_CIFAR, net, (32, 27))
    assert (spec.depth, spec.classes, spec.stem) == (depth, 100, "cifar")


def test_gluoncvs_cifar_networks_are_served_right_where_mxnet_fuses_them_wrongly(tmp_path):
    gluoncv = pytest.importorskip("gluoncv", exc_type=ImportError)
    net = gluoncv.model_zoo.get_model("cifar_resnet20_v2")
    gluon_arrays(net)
    net.save_parameters(str(tmp_path / "their.params"))
    source = sources.read(tmp_path / "their.params")
    assert source.layout is GLUONCV_CIFAR
    artifact = convert.to_export(source, tmp_path / "export")
    images = images_of(32)
    expected = net(mx.nd.array(images)).asnumpy()
    assert difference(Predictor(artifact).run(images), expected) <= 1e-5
    module = mx.mod.Module(mx.sym.load(str(artifact.symbol)), ["data"], None)
    module.bind([("data", images.shape)], for_training=False)
    module.load_params(str(artifact.params))
    module.forward(mx.io.DataBatch([mx.nd.array(images)]))
    fused = module.get_outputs()[0].asnumpy()
    assert difference(fused, expected) > 1e-2  # or there is no need for the predictor's care


def test_what_gluoncv_exports_with_preprocessing_is_served_and_converted(tmp_path):
    """`export_block` by default: pixels 0..255, height, width, channels."""
    gluoncv = pytest.importorskip("gluoncv", exc_type=ImportError)
    block = gluoncv.model_zoo.cifarresnet.CIFARBasicBlockV2
    net = gluoncv.model_zoo.cifarresnet.CIFARResNetV2(block, [1, 1, 1], [16, 16, 32, 64])
    gluon_arrays(net)
    gluoncv.utils.export_block(str(tmp_path / "net"), net, data_shape=(32, 32, 3))
    artifact = load(tmp_path)
    pixels = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype("float32")
    expected = symbol_block(str(artifact.symbol), str(artifact.params), pixels)
    predictor = Predictor(artifact)
    assert predictor.shape == (32, 32, 3)
    assert difference(predictor.run(pixels), expected) <= 1e-5
    told = []
    convert.to_export(sources.read(artifact.params), tmp_path / "export", report=told.append)
    assert "mean 123.675,116.28,103.53, std 58.395,57.12,57.375" in told[0]
    predictor = Predictor(load(tmp_path / "export"))
    images = predictor.prepare(pixels.transpose(0, 3, 1, 2))
    assert difference(predictor.run(images), expected) <= 1e-5
    values = dict(mx.nd.load(str(artifact.params)))
    name = next(name for name in values if name.endswith("init_scale"))
    mx.nd.save(str(artifact.params), {**values, name: mx.nd.zeros((1, 1, 1, 3))})
    with pytest.raises(UserError, match="std 0,0,0"):
        convert.to_export(sources.read(artifact.params), tmp_path / "other")


@pytest.mark.parametrize("depth", [34, 50])
def test_a_pair_of_the_model_zoo_is_read_by_its_counted_names(depth, tmp_path):
    net = vision.get_resnet(2, depth)
    arrays = gluon_arrays(net)
    net.features[0].gamma.set_data(mx.nd.ones(3))  # as MXNet has it, sooner or later, where fixed
    arrays["features.0.gamma"][:] = 1
    net.hybridize()
    net(mx.nd.zeros((1, 3, 64, 64))).wait_to_read()  # as in `v1`
    net.export(str(tmp_path / "net"))
    saved = mx.nd.load(str(tmp_path / "net-0000.params"))
    pair = {name.partition(":")[2]: array.asnumpy() for name, array in saved.items()}
    found = MODEL_ZOO.canonical(pair)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


# -- MXNet's symbolic example ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "sizes"),
    [
        (18, (64, 75)),
        (50, (64, 75)),
        (20, (32,)),
        (164, (32,)),
        *(pytest.param(depth, (64, 75), marks=slow) for depth in (34, 101, 152, 200, 269)),
        *(pytest.param(depth, (32,), marks=slow) for depth in (110, 1001)),
    ],
)
def test_symbolic_networks_convert_and_back(depth, sizes):
    symbol = layout_oracles.symbolic(depth, (3, sizes[0], sizes[0]), 10)
    arrays = layout_oracles.symbolic_arrays(symbol, (3, sizes[0], sizes[0]), seed=0)

    def logits(images):
        return layout_oracles.symbolic_logits(symbol, arrays, images)

    spec = check(SYMBOLIC, arrays, sizes, logits)
    assert (spec.depth, spec.stem) == (depth, "cifar" if sizes[0] == 32 else "imagenet")


# -- What is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo():
    """resnet18_v2 and its parameters."""
    net = vision.resnet18_v2(classes=10)
    return net, gluon_arrays(net)


def v1():
    net = vision.resnet18_v1(classes=10)
    net.initialize()
    net(mx.nd.zeros((1, 3, 64, 64)))
    mx.nd.waitall()  # while it runs, oneDNN has the weights in a layout that can't be read
    found = net._collect_params_with_prefix().items()
    return {name: parameter.data().asnumpy() for name, parameter in found}


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


def with_value(arrays, name, value):
    changed = arrays[name].copy()
    changed.flat[0] = value
    return {**arrays, name: changed}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda a: without(a, "features.6.1.bn2.running_var"),
            "there is no features.6.1.bn2.running_var, which a preact18 of layout model-zoo has",
        ),
        (
            lambda a: with_value(a, "features.8.0.conv1.weight", np.nan),
            "features.8.0.conv1.weight has values that are not finite",
        ),
        (
            lambda a: with_value(a, "features.9.running_var", -1),
            "features.9.running_var has negative variances",
        ),
        (
            lambda a: {**a, "features.7.1.conv2.weight": np.zeros((256, 256, 1, 1), "float32")},
            r"conv2.weight has shape \(256, 256, 1, 1\), but .* has \(256, 256, 3, 3\)",
        ),
        (
            lambda a: {**a, "features.7.1.conv2.bias": np.zeros(256, "float32")},
            "there is features.7.1.conv2.bias, which a preact18 of layout model-zoo has not",
        ),
        (
            lambda a: {**a, "output.bias": a["output.bias"].astype("int64")},
            "output.bias is int64",
        ),
        (
            lambda a: {**a, "output.bias": np.full(10, 1e300)},
            "output.bias has values that are not finite",
        ),
        (lambda a: without(a, "features.1.weight"), "there is no features.1.weight"),
        (
            lambda a: {**a, "features.1.weight": np.zeros((64, 3, 5, 5), "float32")},
            "features.1.weight is 5x5; stems are 3x3 or 7x7",
        ),
        (lambda a: v1(), "there is no features.1.weight"),
    ],
)
def test_what_is_not_of_the_layout_is_told_by_the_first_difference(zoo, change, told):
    with pytest.raises(UserError, match=told):
        MODEL_ZOO.to_ours(change(zoo[1]))


def test_more_units_than_any_network_has_are_not_built(zoo, monkeypatch):
    monkeypatch.setattr(layout_module, "ResNetV2", None)  # of so many it would take minutes
    unit = zoo[1]["features.5.0.conv1.weight"]
    many = {
        f"features.{stage}.{number}.conv1.weight": unit
        for stage in range(5, 9)
        for number in range(300)
    }
    with pytest.raises(UserError, match="there are 1200 units; 1000 are the most"):
        MODEL_ZOO.to_ours({**zoo[1], **many})


def test_float64_becomes_float32(zoo):
    doubles = {name: array.astype("float64") + 1e-12 for name, array in zoo[1].items()}
    _, ours = MODEL_ZOO.to_ours(doubles)
    np.testing.assert_array_equal(ours["fc1_weight"], doubles["output.weight"].astype("float32"))
    assert {array.dtype for array in ours.values()} == {np.dtype("float32")}


def test_another_network_has_no_place_in_a_layout():
    spec = named("preact18")
    with pytest.raises(UserError, match=r"model-zoo has no such network: .* is .*, and there"):
        MODEL_ZOO.from_ours(spec, {})


# -- The command -----------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gluon_resnetv2", *map(str, words)])
        with pytest.raises(SystemExit) as exited:
            runpy.run_module("gluon_resnetv2", run_name="__main__")
        return exited.value.code, *capsys.readouterr()

    return run


def test_the_command_knows_every_layout_by_its_name():
    assert {name: layout.name for name, layout in sources.LAYOUTS.items()} == {
        name: name for name in LAYOUTS
    }


def test_weights_become_an_export_and_weights_again(zoo, command, tmp_path):
    net, arrays = zoo
    net.save_parameters(str(tmp_path / "zoo.params"))
    names = "".join(f"class {i}\n" for i in range(10))
    (tmp_path / "names").write_text(names, encoding="utf-8-sig")
    converting = ("convert", tmp_path / "zoo.params", "-o", tmp_path / "export")
    status, out, err = command(*converting, "--image-size", 64, "--classes", tmp_path / "names")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("zoo.params: preact18 of Gluon's and GluonCV's resnet*_v2, 10 classes")
    assert lines[1] == f"exported preact18 to {tmp_path / 'export'}"
    assert lines[2].startswith("mxnet 1.9.1's own network has its logits, to ")
    manifest = json.loads((tmp_path / "export" / "manifest.json").read_text())
    assert manifest["classes"][3] == "class 3"
    assert manifest["input"]["mean"] == [123.675, 116.28, 103.53]
    assert manifest["source"]["layout"] == "model-zoo"
    assert manifest["source"]["difference"] < 1e-5
    predictor = Predictor(load(tmp_path / "export"))
    images = images_of(64)
    expected = net(mx.nd.array(images)).asnumpy()
    assert difference(predictor.run(images), expected) <= 1e-5

    for file in ("back.params", "back.safetensors"):
        out = tmp_path / file
        status, _, err = command("convert", tmp_path / "export", "--to", "model-zoo", "-o", out)
        assert (status, err) == (0, "")
        found = weights.read(out)
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    net.load_parameters(str(tmp_path / "back.params"))


def softmax_of(symbol, values, images):
    given = {name: mx.nd.array(array) for name, array in values.items()}
    given.update(data=mx.nd.array(images), softmax_label=mx.nd.zeros(len(images)))
    executor = symbol.bind(
        mx.cpu(),
        {name: given[name] for name in symbol.list_arguments()},
        aux_states={name: given[name] for name in symbol.list_auxiliary_states()},
        grad_req="null",
    )
    return executor.forward(is_train=False)[0].asnumpy()


def test_a_symbolic_pair_comes_with_its_symbol(command, tmp_path):
    symbol = layout_oracles.symbolic(20, (3, 32, 32), 10)
    arrays = layout_oracles.symbolic_arrays(symbol, (3, 32, 32), seed=0)
    weights.write_pair_params(tmp_path / "their-0000.params", arrays)
    assert command("convert", tmp_path / "their-0000.params", "-o", tmp_path / "export")[0] == 0
    asked = ("convert", tmp_path / "export", "--to", "symbolic", "-o")
    assert command(*asked, tmp_path / "ours-0003.params")[0] == 0
    found, arguments, statistics = mx.model.load_checkpoint(str(tmp_path / "ours"), 3)
    values = {name: array.asnumpy() for name, array in {**arguments, **statistics}.items()}
    assert set(found.list_arguments()) == set(symbol.list_arguments())
    images = images_of(32)
    probabilities = [softmax_of(graph, values, images) for graph in (found, symbol)]
    assert difference(*probabilities) <= TOLERANCE
    status, _, err = command(*asked, tmp_path / "ours.params")
    assert (status, err.count("\n")) == (2, 1)
    assert "is no NAME-0000.params" in err


@pytest.fixture(scope="module")
def symbolic_arrays():
    symbol = layout_oracles.symbolic(20, (3, 32, 32), 10)
    return layout_oracles.symbolic_arrays(symbol, (3, 32, 32), seed=0)


@pytest.mark.parametrize(
    ("seen", "words", "mean", "crop"),
    [
        ((125.3, 123.0, 113.9), (), [0, 0, 0], 1.0),  # tornadomeet feeds 0 to 255
        ((1.6, 6.2, 10.0), (), [123.68, 116.779, 103.939], 1.0),  # MXNet 1.9.1's example
        ((125.3, 123.0, 113.9), ("--image-size", 28), [0, 0, 0], 28 / 32),
        ((125.3, 123.0, 113.9), ("--mean", "9,8,7"), [9, 8, 7], 1.0),
    ],
)
def test_images_of_symbolic_networks_are_prepared_as_in_their_training(
    symbolic_arrays, command, tmp_path, seen, words, mean, crop
):
    arrays = {**symbolic_arrays, "bn_data_moving_mean": np.array(seen, "float32")}
    weights.write_pair_params(tmp_path / "their-0000.params", arrays)
    asked = ("convert", tmp_path / "their-0000.params", "-o", tmp_path / "export", *words)
    status, out, _ = command(*asked)
    prepared = json.loads((tmp_path / "export" / "manifest.json").read_text())["input"]
    assert (status, prepared["mean"], prepared["std"]) == (0, mean, [1, 1, 1])
    assert prepared["crop"] == crop
    told = f"bn_data's moving mean is {np.mean(seen):.1f}, so images are taken to be "
    assert (told in out) == ("--mean" not in words)
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "image.png")
    size = prepared["shape"][-1]
    cut = (32 - size) // 2
    expected = pixels[cut : cut + size, cut : cut + size].transpose(2, 0, 1)
    found = read_image(tmp_path / "image.png", prepared["shape"], prepared["crop"])
    np.testing.assert_array_equal(found, expected)


def preresnet_arrays():
    facts = Facts("cifar", (3, 3, 3), (16, 32, 64), "basic", 10, 3)
    spec = TORCH_PRERESNET.spec(facts)
    names = {name: np.empty(shape, "float32") for name, shape in shapes(spec).items()}
    return TORCH_PRERESNET.from_ours(spec, layout_oracles.randomise(names, 0))


def test_counts_of_batches_are_left_out_where_mxnet_has_no_place_for_them(command, tmp_path):
    arrays = preresnet_arrays()
    torch_file.write(tmp_path / "their.pth", {f"module.{name}": a for name, a in arrays.items()})
    asked = ("--from", "torch-preresnet", "-o", tmp_path / "export")
    status, out, _ = command("convert", tmp_path / "their.pth", *asked)
    assert status == 0
    assert "took 'module.' off every name" in out
    manifest = json.loads((tmp_path / "export" / "manifest.json").read_text())
    assert manifest["source"]["remarks"] == ["took 'module.' off every name"]
    to = ("--to", "torch-preresnet", "-o", tmp_path / "back.params")
    assert command("convert", tmp_path / "export", *to)[0] == 0
    found = weights.read(tmp_path / "back.params")
    assert set(found) == {name for name in arrays if not name.endswith("num_batches_tracked")}


def test_weights_without_a_classifier_get_one_to_be_trained(zoo, command, tmp_path):
    headless(tmp_path / "features.params", zoo[1])
    (tmp_path / "names").write_text("ape\nbee\ncat\n")
    converting = ("convert", tmp_path / "features.params", "-o", tmp_path / "export")
    status, out, _ = command(*converting, "--image-size", 32, "--classes", tmp_path / "names")
    assert status == 0
    assert "has no classifier; a new one, still to be trained, is drawn" in out
    assert "preact18 of Gluon's and GluonCV's resnet*_v2, 3 classes" in out
    source = load(tmp_path / "export").manifest.details["source"]
    assert source["remarks"] == ["has no classifier; a new one, still to be trained, is drawn"]
    assert source["difference"] < 1e-5  # with the same classifier in MXNet's own network
    whole = MODEL_ZOO.to_ours(zoo[1])[1]
    ours = sources.read(tmp_path / "export").ours
    assert set(ours) == set(whole)
    for name in whole:
        if not name.startswith("fc1"):
            np.testing.assert_array_equal(ours[name], whole[name])
    assert ours["fc1_weight"].shape == (3, 512)
    assert np.std(ours["fc1_weight"]) == pytest.approx(0.01, rel=0.1)
    assert not ours["fc1_bias"].any()


@pytest.mark.parametrize("layout", sources.LAYOUTS.values(), ids=sources.LAYOUTS)
def test_each_layout_takes_a_new_classifier(layout):
    facts = Facts("imagenet", (3, 4, 6, 3), (64, 128, 256, 512), "bottleneck", 7, 3)
    if layout.name in CIFAR:
        facts = Facts("cifar", (3, 3, 3), (16, 32, 64), CIFAR[layout.name], 7, 3)
    spec = layout.spec(facts)
    whole = layout.from_ours(
        spec, {name: np.zeros(shape, "float32") for name, shape in shapes(spec).items()}
    )
    assert layout.with_classifier(whole, 3) is whole
    classifier = {layout.theirs("fc1_weight"), layout.theirs("fc1_bias")}
    features = {name: array for name, array in whole.items() if name not in classifier}
    added = layout.with_classifier(features, 7)
    assert set(added) == set(whole)
    assert {name: added[name].shape for name in classifier} == {
        name: whole[name].shape for name in classifier
    }
    assert layout.to_ours(added)[0] == spec


def test_a_network_whose_logits_are_zero_is_no_other_network(zoo, tmp_path):
    arrays = {name: mx.nd.array(0 * a if "output" in name else a) for name, a in zoo[1].items()}
    mx.nd.save(str(tmp_path / "zero.params"), arrays)
    source = sources.read(tmp_path / "zero.params")
    artifact = convert.to_export(source, tmp_path / "export", image_size=32)
    assert artifact.manifest.details["source"]["difference"] == 0


@pytest.fixture(scope="module")
def given(zoo, tmp_path_factory):
    """A folder of files to be converted, with their faults; nothing is to write there."""
    folder = tmp_path_factory.mktemp("given")
    zoo[0].save_parameters(str(folder / "ZOO"))
    (folder / "ONE").write_text("one\n")
    (folder / "NONE").write_text("")
    (folder / "GAP").write_text("one\n\nthree\n\n")
    (folder / "ZOO.params").write_text("mine")
    arrays = preresnet_arrays()
    torch_file.write(folder / "PRERESNET", arrays)
    torch_file.write(folder / "NO-VAR", without(arrays, "layer2.1.bn2.running_var"))
    (folder / "README").write_text("No weights here.\n")
    first = {name: a[:1] if name.startswith("output.") else a for name, a in zoo[1].items()}
    mx.nd.save(
        str(folder / "ONE-LOGIT"), {name: mx.nd.array(array) for name, array in first.items()}
    )
    headless(folder / "HEADLESS", zoo[1])
    mx.nd.save(str(folder / "V1"), {name: mx.nd.array(array) for name, array in v1().items()})
    net = ResNetV2(named("preact8", unit="basic"))
    net.initialize()
    classes = list("0123456789")
    export(net, folder / "EXPORT", (3, 16, 16), classes=classes, mean=[0.0] * 3, std=[1.0] * 3)
    without_manifest = shutil.ignore_patterns("manifest.json")
    shutil.copytree(folder / "EXPORT", folder / "PAIR", ignore=without_manifest)
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere.params", "-o", "out"), "nowhere.params: No such file or directory"),
        (("/dev/zero", "-o", "out"), "/dev/zero is no file of weights"),
        (("EXPORT", "-o", "out"), "is an export of ours already; name a layout: --to"),
        (("EXPORT", "--to", "timm", "-o", "out.safetensors"), "timm's resnetv2 have a 7x7 stem"),
        (("EXPORT", "--to", "symbolic", "-o", "out-0000.params"), "symbolic has no such network: "),
        (("EXPORT", "--from", "timm", "-o", "out"), "leave out --from"),
        (("ZOO", "--from", "gluoncv-cifar", "-o", "out"), "is not of layout gluoncv-cifar: "),
        (("ZOO", "--to", "model-zoo", "-o", "out.bin"), "ends in none of .params, "),
        (("ZOO", "-o", "out", "--image-size", "0"), "--image-size must be 1 to 4096"),
        (("ZOO", "-o", "out", "--classes", "nowhere"), "nowhere: No such file"),
        (("ZOO", "-o", "out", "--classes", "ONE"), "1 names do not fit 10 classes"),
        (("README", "-o", "out"), "README is no file of weights that is known"),
        (("ZOO", "--to", "model-zoo", "-o", "ZOO.params"), "ZOO.params exists; name a new file"),
        (("ZOO", "--to", "model-zoo", "-o", "no/a.params"), "no is no folder; make it first"),
        (("ZOO", "--to", "model-zoo", "-o", "EXPORT/a.params"), "EXPORT is an export; name a"),
        (("ZOO", "--to", "model-zoo", "-o", "a.params", "--image-size", "9"), "with --to"),
        (("ZOO", "-o", "out", "--mean", "1,2"), "a mean of 2 values does not fit 3 channels"),
        (("ZOO", "-o", "out", "--weights", "ema"), "has no 'ema'; leave out --weights"),
        (("ZOO", "-o", "out", "--classes", "NONE"), "NONE has no name in line 1; it needs one"),
        (("ZOO", "-o", "out", "--classes", "GAP"), "GAP has no name in line 2; it needs one"),
        (("ZOO", "-o", "out", "--mean", "nan,1,1"), "--mean: invalid R,G,B of 0 to 255 value"),
        (
            ("PAIR", "-o", "out"),
            "PAIR has no manifest.json, so is no export of ours; convert PAIR/",
        ),
        (("PRERESNET", "-o", "out"), "if you know that it is not: --from torch-preresnet"),
        (("NO-VAR", "-o", "out"), "there is no layer2.1.bn2.running_var, which a preact20"),
        (("V1", "-o", "out"), "is of no layout that is known. For model-zoo, the nearest: "),
        (
            ("HEADLESS", "-o", "out"),
            "there is no output.weight, as Gluon's and GluonCV's resnet*_v2 "
            "have; --classes FILE adds a new classifier",
        ),
        (("ONE-LOGIT", "-o", "out"), "ONE-LOGIT gives one number, as for a sigmoid, and exports"),
    ],
)
def test_mistakes_are_told_in_one_line(given, command, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in given.iterdir():
        (tmp_path / path.name).symlink_to(path)
    status, _, err = command("convert", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert told in err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "ZOO.params").read_text() == "mine"


@pytest.mark.parametrize(
    ("layout", "mean", "std", "crop"),
    [
        ("torch-fb", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 0.875),
        ("torch-fb-cifar", [125.3, 123.0, 113.9], [63.0, 62.1, 66.7], 1.0),
        ("torch-kaiming", [125.3, 123.0, 113.9], [63.0, 62.1, 66.7], 1.0),
        ("torch-preresnet", [125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255], 1.0),
        ("timm", [127.5] * 3, [127.5] * 3, 0.95),
    ],
)
def test_images_are_prepared_as_the_source_does(layout, mean, std, crop):
    """Numbers of the sources' own transforms, 0 to 255."""
    prepared = sources.LAYOUTS[layout].input
    assert list(prepared["mean"]) == pytest.approx(mean)
    assert list(prepared["std"]) == pytest.approx(std)
    assert prepared["crop"] == crop
