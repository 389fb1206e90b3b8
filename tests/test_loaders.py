"""Weights through other packages' loaders, which local objects stand for, and those by name."""

from __future__ import annotations

import sys
import types

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon.model_zoo import vision

import gluon_resnetv2
from gluon_resnetv2 import commands, interop
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export
from gluon_resnetv2.formats import pretrained
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.interop import convert, source
from gluon_resnetv2.interop.keras import KERAS
from gluon_resnetv2.interop.layout import shapes
from gluon_resnetv2.interop.timm import TIMM
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from tests.common import randomise, relative
from tests.layout_oracles import randomise as random_arrays

TIMMS = named("preact18", first_activation="unit", stride_on="3x3", classes=6)
KERASS = named(
    "preact50",
    stride_on="3x3",
    stride_in="last",
    first_activation="unit",
    biases=True,
    pool_pad="zero",
    bn_eps=1.001e-5,
)
NAMES = [f"kind {number}" for number in range(6)]


def arrays_of(spec):
    return random_arrays({n: np.empty(shape, "float32") for n, shape in shapes(spec).items()}, 0)


class Tensor:
    """As much of PyTorch's as is asked for."""

    def __init__(self, array):
        self.array = array

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        return self.array


def fake_timm(monkeypatch, fails=None):
    """Gives what the package's own network has, of which only this name's weights are there."""
    ours = arrays_of(TIMMS)

    def create_model(name, pretrained):
        assert pretrained
        if fails:
            raise fails
        state = {n: Tensor(a) for n, a in TIMM.from_ours(TIMMS, ours).items()}
        told = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.5)}
        return types.SimpleNamespace(state_dict=lambda: state, pretrained_cfg=told)

    module = types.ModuleType("timm")
    module.__version__ = "1.0"
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return ours


def fake_keras(monkeypatch):
    ours = arrays_of(KERASS)
    layers = {}
    for name, array in KERAS.from_ours(KERASS, ours).items():
        layer, _, variable = name.partition("/")
        holder = types.SimpleNamespace(name=variable, numpy=lambda array=array: array)
        layers.setdefault(layer, []).append(holder)

    def resnet(weights):
        assert weights == "imagenet"
        made = [types.SimpleNamespace(name=name, weights=held) for name, held in layers.items()]
        return types.SimpleNamespace(layers=made)

    module = types.ModuleType("keras")
    module.applications = types.SimpleNamespace(ResNet50V2=resnet)
    monkeypatch.setitem(sys.modules, "keras", module)
    return ours


def fake_gluoncv(monkeypatch):
    net = vision.get_resnet(2, 18, classes=6)
    net.initialize()
    net(mx.nd.zeros((1, 3, 64, 64)))
    net.classes = NAMES

    def get_model(name, pretrained):
        assert pretrained
        if name != "resnet18_v2":
            raise ValueError(f"Pretrained model for {name} is not available.")
        return net

    module = types.ModuleType("gluoncv")
    module.model_zoo = types.SimpleNamespace(get_model=get_model)
    monkeypatch.setitem(sys.modules, "gluoncv", module)
    return net


def test_timms_loader_gives_weights_and_how_images_are_prepared(monkeypatch):
    ours = fake_timm(monkeypatch)
    found = source.read("timm:resnetv2_18.ra4_e3600_r224_in1k")
    assert found.spec == TIMMS
    assert all(np.array_equal(found.ours[name], ours[name]) for name in ours)
    prepared = found.preparation(224)
    assert prepared["mean"] == pytest.approx([127.5, 102, 76.5])
    assert prepared["std"] == pytest.approx([63.75, 63.75, 127.5])
    assert prepared["interpolation"] == "bicubic"


def test_keras_loader_gives_weights(monkeypatch):
    ours = fake_keras(monkeypatch)
    found = source.read("keras:ResNet50V2")
    assert found.spec == KERASS
    assert all(np.array_equal(found.ours[name], ours[name]) for name in ours)
    with pytest.raises(UserError, match="keras:ResNet50 is no network of ours; choose ResNet50V2"):
        source.read("keras:ResNet50")


def test_gluoncvs_loader_gives_weights_and_names(monkeypatch):
    net = fake_gluoncv(monkeypatch)
    found = source.read("gluoncv:resnet18_v2")
    assert found.layout.name == "model-zoo"
    assert list(found.classes) == NAMES
    weight = net.output.weight.data().asnumpy()
    assert np.array_equal(found.ours["fc1_weight"], weight)


def test_convert_takes_them(monkeypatch, tmp_path, capsys):
    fake_gluoncv(monkeypatch)
    out = str(tmp_path / "export")
    words = ["convert", "gluoncv:resnet18_v2", "-o", out, "--image-size", "32"]
    options = commands.parser(words).parse_args(words)
    assert not options.action(options)
    assert "gluoncv:resnet18_v2: preact18 of Gluon's and GluonCV's" in capsys.readouterr().out
    manifest = load(out).manifest
    assert list(manifest.classes) == NAMES
    assert manifest.details["source"]["name"] == "gluoncv:resnet18_v2"
    assert source.read(out).classes == tuple(NAMES)


def test_a_conversion_without_names_has_numbers_that_are_none(monkeypatch, tmp_path):
    fake_timm(monkeypatch)
    convert.to_export(source.read("timm:resnetv2_18"), tmp_path / "export", image_size=32)
    assert load(tmp_path / "export").manifest.classes == tuple("012345")
    assert source.read(tmp_path / "export").classes is None


@pytest.mark.parametrize(
    "error",
    [OSError("[Errno -3] Temporary failure in name resolution"), RuntimeError("Unknown model")],
)
def test_what_a_loader_can_not_get_is_told_in_one_line(monkeypatch, error):
    fake_timm(monkeypatch, fails=error)
    with pytest.raises(UserError, match="timm can't get resnetv2_1: ") as raised:
        source.read("timm:resnetv2_1")
    text = str(raised.value)
    assert str(error) in text
    assert "fetch model.safetensors of huggingface.co/timm elsewhere, and name that file" in text
    assert "\n" not in text


@pytest.mark.parametrize("package", interop.PACKAGES)
def test_a_package_that_is_missing_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package}:a needs {package}, .* -m pip install") as told:
        source.read(f"{package}:a")
    assert "\n" not in str(told.value)


def test_a_path_of_such_a_name_comes_first(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm:a").write_bytes(b"nothing")
    with pytest.raises(UserError, match="timm:a is no file of weights that is known"):
        source.read("timm:a")


# From Python


@pytest.fixture
def small(tmp_path):
    """An export, and the network in it."""
    net = ResNetV2(named("preact8", unit="basic"))
    randomise(net)
    names = [str(number) for number in range(10)]
    export(net, tmp_path / "there", (3, 32, 32), classes=names, mean=(0,) * 3, std=(1,) * 3)
    return tmp_path / "there", net


def images(channels=3):
    return mx.nd.array(np.random.RandomState(0).normal(size=(2, channels, 32, 32)))


def test_a_model_may_have_weights(small):
    folder, theirs = small
    untouched = gluon_resnetv2.get_model("preact8", unit="basic")
    with pytest.raises(RuntimeError):
        untouched(images())  # as ever, it is not initialised
    net = gluon_resnetv2.get_model("preact8", pretrained=folder, ctx=[mx.cpu(0), mx.cpu(1)])
    assert relative(net(images()).asnumpy(), theirs(images()).asnumpy()) < 1e-5
    assert net.output.weight.list_ctx() == [mx.cpu(0), mx.cpu(1)]


def test_a_model_with_weights_may_have_other_classes_and_channels(small):
    folder, theirs = small
    told = []
    net = gluon_resnetv2.get_model(
        "preact8", pretrained=str(folder), classes=3, in_channels=1, report=told.append
    )
    assert net(images(1)).shape == (2, 3)
    grey = images(1)
    found, expected = net.features(grey), theirs.features(grey.repeat(3, axis=1))
    assert relative(found.asnumpy(), expected.asnumpy()) < 1e-5
    assert "the classifier is new, as it had 10 classes, and there are 3 now" in told[0]
    assert "the first layer's weights are summed for 1 channel" in told[1]


def test_weights_of_another_model_are_refused(small):
    with pytest.raises(UserError, match="whose name is preact8, not preact20"):
        gluon_resnetv2.get_model("preact20", pretrained=small[0])
    with pytest.raises(UserError, match="whose order is full_preact, not original"):
        gluon_resnetv2.get_model("preact8", pretrained=small[0], order="original")
    with pytest.raises(UserError, match="no weights of preact8 are published"):
        gluon_resnetv2.get_model("preact8", pretrained=True)


def test_weights_that_come_along_have_a_name_and_a_path_of_it_comes_first(
    small, tmp_path, monkeypatch, capsys
):
    folder, theirs = small
    monkeypatch.setitem(pretrained.FOLDERS, "tiny", folder)
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    monkeypatch.chdir(empty)
    net = gluon_resnetv2.get_model("preact8", pretrained="tiny")
    assert relative(net(images()).asnumpy(), theirs(images()).asnumpy()) < 1e-5
    assert capsys.readouterr().err == "tiny: the weights that come with this package\n"
    (empty / "tiny").mkdir()
    with pytest.raises(UserError, match="tiny is no export"):
        gluon_resnetv2.get_model("preact8", pretrained="tiny")
    assert "tiny is the one here, not the weights that come" in capsys.readouterr().err
