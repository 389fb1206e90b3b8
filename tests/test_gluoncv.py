"""Our networks inside GluonCV: by name, as backbones, in its evaluation and in its training."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import data
from gluon_resnetv2.checkpoint import load_parameters
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import Form, export
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.interop.gluoncv import (
    feature_layers,
    initialize_rest,
    network,
    register,
    transform_options,
)
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.paper import RESULTS
from gluon_resnetv2.spec import ORDER, Spec, named
from tests.common import randomise, relative

pytest.importorskip("gluoncv", exc_type=ImportError)

from gluoncv.data.transforms.presets.imagenet import transform_eval
from gluoncv.model_zoo import get_model, get_model_list, model_zoo
from gluoncv.model_zoo.ssd import SSD
from gluoncv.nn.feature import FeatureExtractor, FPNFeatureExpander
from gluoncv.utils import export_block

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "gluoncv"
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 70.0)


def exported(spec: Spec, folder: Path, size: int = 32, **options):
    net = ResNetV2(spec)
    randomise(net)
    classes = [str(index) for index in range(spec.classes)]
    channels = spec.in_channels
    statistics = {"mean": MEAN[:channels], "std": STD[:channels]}
    return export(net, folder, (channels, size, size), classes=classes, **statistics, **options)


def images(size: int = 32, count: int = 2) -> mx.nd.NDArray:
    return mx.nd.array(np.random.RandomState(1).normal(size=(count, 3, size, size)))


# Names


@pytest.fixture
def theirs(monkeypatch):
    """GluonCV's table as it is without us, until the test ends."""
    ours = {name for name in model_zoo._models if re.fullmatch(r"(preact|resnet|plain)\d+", name)}
    table = {name: made for name, made in model_zoo._models.items() if name not in ours}
    monkeypatch.setattr(model_zoo, "_models", table)
    return table


def test_registering_adds_the_paper_s_names_and_changes_none_of_gluoncv_s(theirs):
    before = dict(theirs)
    register()
    after = model_zoo._models
    register()
    assert model_zoo._models is after
    assert {name: after[name] for name in before} == before
    assert set(get_model_list()) - set(before) == {result.model for result in RESULTS}


def test_a_name_that_gluoncv_has_itself_is_not_taken(theirs):
    theirs["resnet18"] = theirs["resnet18_v1"]
    with pytest.raises(UserError, match="a model 'resnet18' of its own"):
        register()
    assert model_zoo._models is theirs


def test_a_gluoncv_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gluoncv.model_zoo", None)
    with pytest.raises(UserError, match=r"GluonCV can't be imported .* pip install"):
        register()


def test_libraries_that_gluoncv_misses_are_named(monkeypatch):
    def find_spec(name, *_):
        if name == "gluoncv.model_zoo":
            raise ImportError("libxcb.so.1: cannot open shared object file: No such file")

    monkeypatch.delitem(sys.modules, "gluoncv.model_zoo")
    monkeypatch.setattr(sys, "meta_path", [types.SimpleNamespace(find_spec=find_spec)])
    with pytest.raises(UserError, match=r"libxcb.* apt install libgl1 libglib2.0-0, or dnf"):
        register()


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("preact110", {"classes": 100}),
        ("preact29", {}),  # in no table of the paper
        ("PreAct20", {}),  # GluonCV does not mind
        ("plain14", {"unit": "single"}),
        ("resnet20", {"order": "bn_after_add", "shortcut": "gate:-6", "in_channels": 1}),
    ],
)
def test_gluoncv_gives_the_network_of_that_name(theirs, name, switches):
    register()
    ours = ResNetV2(named(name.lower(), **switches))
    found = get_model(name, **switches)
    assert type(found) is ResNetV2
    assert found.spec == ours.spec
    x = images(8)[:, : ours.spec.in_channels]
    values = randomise(ours)
    assert randomise(found).keys() == values.keys()
    assert np.array_equal(found(x).asnumpy(), ours(x).asnumpy())


def test_what_is_no_network_is_refused(theirs):
    register()
    with pytest.raises(UserError, match="depth 21 is impossible"):
        get_model("preact21")
    with pytest.raises(UserError, match="unknown model 'preact0'"):
        get_model("preact0")
    with pytest.raises(UserError, match="no weights of preact20 are published"):
        get_model("preact20", pretrained=True)
    with pytest.raises(TypeError, match="preact20 takes no argument 'use_se'"):
        get_model("preact20", use_se=True)
    with pytest.raises(ValueError, match='"preact" is not among') as raised:
        get_model("preact")
    assert raised.type is ValueError  # GluonCV's own


def test_an_export_s_weights_are_what_pretrained_means(theirs, tmp_path):
    register()
    spec = named("preact8", unit="basic", classes=7, stride_on="3x3")
    artifact = exported(spec, tmp_path / "export")
    net = get_model("preact8", pretrained=str(tmp_path / "export"), root="unused", ctx=mx.cpu())
    assert net.spec == spec
    ours = ResNetV2(spec)
    load_parameters(ours, artifact.params)
    assert np.array_equal(net(images()).asnumpy(), ours(images()).asnumpy())
    folder = tmp_path / "export"
    assert get_model("preact8", pretrained=folder, classes=7).spec == spec
    other = get_model("preact8", pretrained=folder, classes=10)
    assert np.array_equal(other.features(images()).asnumpy(), ours.features(images()).asnumpy())
    assert other(images()).shape == (2, 10)
    with pytest.raises(UserError, match="whose name is preact8, not resnet8"):
        get_model("resnet8", pretrained=folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        get_model("preact8", pretrained=folder)


def test_scripts_that_say_pretrained_get_the_weights_of_that_name(theirs, tmp_path):
    """What GluonCV's finetune_minc.py and export_pretrained.py do with a network."""
    artifact = exported(named("preact8", unit="basic", classes=7), tmp_path / "export")
    register()
    register(pretrained={"preact8": tmp_path / "export"})
    ours = ResNetV2(named("preact8", unit="basic", classes=7))
    load_parameters(ours, artifact.params)
    expected = ours(images())

    net = get_model("preact8", pretrained=True)
    assert np.array_equal(net(images()).asnumpy(), expected.asnumpy())
    with net.name_scope():
        net.output = mx.gluon.nn.Dense(3)
    net.output.initialize(mx.init.Xavier(), ctx=mx.cpu())
    net.collect_params().reset_ctx([mx.cpu()])
    net.hybridize()
    assert net(images()).shape == (2, 3)
    features = ours.features(images()).asnumpy()
    assert relative(net.features(images()).asnumpy(), features) < 1e-6

    net = get_model("preact8", pretrained=True)
    export_block(str(tmp_path / "block"), net, data_shape=(32, 32, 3))
    assert (tmp_path / "block-0000.params").exists()
    with pytest.raises(UserError, match="no weights of preact20 are published"):
        get_model("preact20", pretrained=True)


def test_the_model_zoo_works_where_there_is_no_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "model_zoo.py", "--models", "preact20"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    # [v1] Table 6 has 0.27 M for 10 classes; 90 more of 64 weights and a bias.
    assert "preact20: 0.276 M parameters, (2, 3, 32, 32) -> (2, 100)" in done.stdout


# Features

INPUTS = [mx.sym.var("data", dtype="float32")]  # GluonCV's own says no type, of which MXNet warns


@pytest.mark.parametrize(
    ("model", "channels"),
    [("preact18", (64, 128, 256, 512)), ("preact50", (256, 512, 1024, 2048))],
)
def test_an_export_gives_every_level_of_the_pyramid(tmp_path, model, channels):
    artifact = exported(named(model, classes=3), tmp_path / "export")
    layers = feature_layers(artifact)
    assert layers == [*(f"stage{stage}_unit1_relu1_fwd" for stage in (2, 3, 4)), "relu1_fwd"]
    x = mx.nd.zeros((2, 3, 64, 96))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]  # strides 4, 8, 16, 32
    levels = FeatureExtractor(network(artifact), layers, INPUTS)(x)
    assert [level.shape for level in levels] == [(2, c, *s) for c, s in zip(channels, sizes)]
    pyramid = FPNFeatureExpander(network(artifact), layers, [32] * 4, inputs=INPUTS)
    initialize_rest(pyramid)
    assert [level.shape for level in pyramid(x)] == [(2, 32, *size) for size in sizes]


def test_where_a_stage_s_last_unit_halves_the_map_the_features_come_before_it():
    """As in Keras: its `conv2_block3_preact_relu`, `conv3_block4_preact_relu` and so on."""
    spec = named("preact50", stride_in="last")
    layers = feature_layers(spec)
    assert layers[:3] == [f"stage{s}_unit{u}_relu1_fwd" for s, u in ((1, 3), (2, 4), (3, 6))]
    internals = ResNetV2(spec)(mx.sym.var("data")).get_internals()
    shapes = [
        internals[f"{layer}_output"].infer_shape(data=(1, 3, 224, 224))[1][0] for layer in layers
    ]
    sizes = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert shapes == [(1, channels, size, size) for channels, size in sizes]


def stages_and_units(net: ResNetV2, x: mx.nd.NDArray):
    """What each stage's last unit gives, and the block that comes next."""
    blocks = list(net.features)
    units = net.units
    for index, block in enumerate(blocks):
        x = block(x)
        if block in units:
            following = blocks[index + 1]
            last = following not in units
            if last or following.unit.name.endswith("unit1"):
                yield x.asnumpy(), following


def rectified(x, normalisation=None):
    """ReLU(BN(x)) by the formula, with the moving statistics."""
    if normalisation is not None:
        gamma, beta, mean, var = (
            getattr(normalisation, name).data().asnumpy().reshape(-1, 1, 1)
            for name in ("gamma", "beta", "moving_mean", "moving_var")
        )
        x = gamma * (x - mean) / np.sqrt(var + 1e-5) + beta
    return np.maximum(x, 0)


@pytest.mark.parametrize("shortcut", ["identity", "scale:0.5,0.5", "gate:-6", "plain", "dropout"])
@pytest.mark.parametrize("order", ORDER)
def test_features_are_the_rectified_sums(order, shortcut):
    spec = Spec(
        "small",
        "imagenet",
        (2, 1, 2),
        (4, 6, 8),
        order=order,
        shortcut=shortcut,
        unit="bottleneck" if shortcut == "plain" else "basic",
    )
    net = ResNetV2(spec)
    values = randomise(net)
    symbol, data = net(mx.sym.var("data")), mx.sym.var("data", dtype="float32")
    block = mx.gluon.SymbolBlock(symbol, data)
    block.collect_params().load_dict({name: mx.nd.array(v) for name, v in values.items()})
    found = FeatureExtractor(block, feature_layers(spec), INPUTS)(images())
    expected = []
    for x, following in stages_and_units(net, images()):
        if order == "full_preact":
            last = following not in net.units
            x = rectified(x, following if last else following.pre[0])
        elif order == "relu_preact":
            x = rectified(x)
        expected.append(x)  # in the other orders the sum is rectified, or its residual
    assert len(found) == len(expected) == 3
    for level, values in zip(found, expected):
        assert relative(level.asnumpy(), values) < 1e-5
        assert level.asnumpy().min() >= 0 or shortcut == "gate:-6" or order == "relu_before_add"


def test_what_has_no_named_layers_is_refused(tmp_path):
    spec = named("preact8", unit="basic")
    artifact = exported(spec, tmp_path / "export", form=Form(fused=True))
    with pytest.raises(UserError, match="is fused or not float32: export it plain"):
        feature_layers(artifact)
    (artifact.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        feature_layers(load(artifact.folder))


# Evaluation


@pytest.mark.parametrize("values", ["normalised", "pixels"])
def test_gluoncv_prepares_images_as_the_export_wants_them(tmp_path, values):
    spec = named("preact8", unit="basic")
    artifact = exported(spec, tmp_path / "export", 28, crop=0.875, form=Form(values=values))
    options = transform_options(artifact)
    assert (options["resize_short"], options["crop_size"]) == (32, 28)
    pixels = np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3), "uint8")
    prepared = transform_eval([mx.nd.array(image, dtype="uint8") for image in pixels], **options)
    centre = pixels[:, 2:30, 2:30].transpose(0, 3, 1, 2)
    expected = Predictor(artifact).prepare(centre)
    assert relative(mx.nd.concat(*prepared, dim=0).asnumpy(), expected) < 1e-6


def test_images_that_gluoncv_does_not_prepare_are_refused(tmp_path):
    artifact = exported(named("preact8", unit="basic", in_channels=1), tmp_path / "export")
    with pytest.raises(UserError, match="is for images of 1x32x32"):
        transform_options(artifact)
    artifact = exported(named("preact8", unit="basic"), tmp_path / "stretched", stretch=True)
    with pytest.raises(UserError, match="is for stretched images"):
        transform_options(artifact)


# The scripts


def example(name: str) -> dict:
    """The functions of a script, which is not run."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script as its command would; gives what it prints."""

    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert not ended.value.code
        return capsys.readouterr().out

    return run


def test_features_shows_the_levels(run):
    lines = run("features", "--image-size", 64).splitlines()
    shown = [(8, 16), (16, 8), (32, 4)]
    assert lines[0].endswith("stride 4, (1, 64, 16, 16), in the feature pyramid (1, 256, 16, 16)")
    assert [f"stride {s}, " in line for (s, _), line in zip(shown, lines[1:])] == [True] * 3


def test_gluoncv_s_training_loop_learns_and_its_evaluation_agrees_with_ours(run, tmp_path):
    folder, plot = tmp_path / "export", tmp_path / "curves.png"
    small = ("--model", "preact8", "--data", "digits", "--image-size", 8, "--batch-size", 64)
    printed = run("train_cifar", *small, "--epochs", 3, "--export", folder, "--plot", plot)
    errors = [float(error) for error in re.findall(r"test error (\S+)", printed)]
    assert len(errors) == 3
    assert errors[-1] < 0.3  # of ten classes
    assert plot.stat().st_size > 0

    printed = run("evaluate", "--export", folder)
    assert "the same class for 360 of 360 images" in printed
    assert float(re.search(r"probabilities to (\S+)", printed)[1]) < 1e-5
    digits = data.load("digits", image_size=8).test
    predictor = Predictor(load(folder))
    right = predictor.probabilities(digits.images.transpose(0, 3, 1, 2)).argmax(1) == digits.labels
    assert f"GluonCV: accuracy {100 * right.mean():.2f} %" in printed
    assert abs(1 - errors[-1] - right.mean()) < 1e-3


def test_made_up_images_are_trained_on_too(run):
    small = ("--model", "preact8", "--data", "synthetic", "--image-size", 8)
    assert "epoch 1: training error" in run("train_cifar", *small, "--epochs", 1)


def test_ssd_detects_on_our_features(tmp_path):
    artifact = exported(named("preact18", classes=3), tmp_path / "export")
    script = example("ssd")
    net = script["detector"](artifact)
    x = images(script["SIZE"])
    with mx.autograd.train_mode():
        classes, boxes, anchors = net(x)
    # Strides 8 to 64 of 128 pixels, four boxes each; two classes and the background.
    assert 4 * (16**2 + 8**2 + 4**2 + 2**2) == 1360
    assert [y.shape for y in (classes, boxes, anchors)] == [
        (2, 1360, 3),
        (2, 1360, 4),
        (1, 1360, 4),
    ]
    features = FeatureExtractor(network(artifact), feature_layers(artifact)[1:], INPUTS)
    for found, expected in zip(net.features(x), features(x)):
        assert np.array_equal(found.asnumpy(), expected.asnumpy())
    ids, scores, corners = net(x)
    assert [y.shape for y in (ids, scores, corners)] == [(2, 100, 1), (2, 100, 1), (2, 100, 4)]
    variances = [p for name, p in net.collect_params().items() if name.endswith("var")]
    assert any("expand" in p.name for p in variances)
    assert all(p.data().min() > 0 for p in variances)


@pytest.mark.slow  # half a minute
def test_an_epoch_of_ssd_trains_the_backbone(tmp_path):
    mx.random.seed(0)
    np.random.seed(0)
    artifact = exported(named("preact18", classes=3), tmp_path / "export")
    script = example("ssd")
    net = script["detector"](artifact)
    weights = [p for name, p in net.collect_params().items() if name.startswith("stage")]
    before = [p.data().asnumpy() for p in weights]
    losses = script["train"](net, 48, 8, 0.003)
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    assert np.mean(losses[3:]) < np.mean(losses[:3])
    assert all((p.data().asnumpy() != was).any() for p, was in zip(weights, before))


@pytest.mark.slow  # ten seconds
def test_ssd_is_a_script(run):
    printed = run("ssd", "--images", 4, "--batch-size", 4)
    assert re.search(r"step 1: loss \d+\.\d+, of classes", printed)
    assert "mAP on 4 other images: " in printed


def test_ssd_finds_our_networks_by_name(theirs, tmp_path):
    register()
    folder = tmp_path / "export"
    artifact = exported(named("preact18", classes=3), folder)
    layers = feature_layers(artifact)[2:]
    options = {"sizes": [16, 32, 64], "ratios": [[1, 2]] * 2, "steps": [16, 32], "classes": ["a"]}
    with pytest.warns(UserWarning, match="Cannot decide type"):
        net = SSD("preact18", 64, layers, [], pretrained=folder, anchor_alloc_size=16, **options)
    initialize_rest(net)
    expected = FeatureExtractor(network(artifact), layers, INPUTS)(images(64))
    for level, values in zip(net.features(images(64)), expected):
        assert np.array_equal(level.asnumpy(), values.asnumpy())
