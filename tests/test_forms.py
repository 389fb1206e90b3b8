"""Every form of a graph computes what the network does, in every runtime, to what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from gluon_resnetv2 import data
from gluon_resnetv2.checkpoint import load_run
from gluon_resnetv2.engines import forms
from gluon_resnetv2.engines.runtimes import c_predict, module, simple_bind, symbol_block
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.layers import DTYPES
from gluon_resnetv2.net import ResNetV2, get_model
from gluon_resnetv2.spec import ORDER, named
from gluon_resnetv2.training.precision import cpu_has_bfloat16
from tests.common import difference, graph_of, randomise
from tests.test_net import VARIANTS, variant

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
SHORTCUTS = ("identity", "scale:0.5,0.5", "exclusive-gate:-6", "conv1x1", "dropout:0.5")
NETWORKS = {
    **{f"{o}, {s}": variant(o, s, "basic") for o in ORDER for s in SHORTCUTS},
    **{f"{o}, bottleneck": variant(o, "identity", "bottleneck") for o in ORDER},
    **{f"widening {w}": named("preact8", unit="basic", widening=w) for w in "AC"},
    "input BN": named("preact8", unit="basic", input_bn="shift"),
    "grey": named("preact8", unit="basic", in_channels=1),
    "ImageNet's stem": replace(named("preact18"), stages=(1, 1), channels=(16, 32)),
    # Its first convolution is read by a batch normalisation and by an addition, as GluonCV's.
    "raw stem": named("preact8", unit="basic", first_activation="unit", split_after_pre="none"),
}

bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="needs a CPU with AVX-512")


def run(graph, images):
    """What Gluon gives for a graph."""
    symbol, arguments, statistics = graph
    given = {**arguments, **statistics, "data": mx.nd.array(images)}
    flags = [("static_alloc", True), ("static_shape", True)]
    return mx.nd.CachedOp(symbol, flags)(*[given[n] for n in symbol.list_inputs()]).asnumpy()


def normalised(pixels, mean=MEAN, std=STD):
    mean, std = (np.reshape(of[: pixels.shape[1]], (-1, 1, 1)) for of in (mean, std))
    return ((pixels - mean) / std).astype("float32")


def statistics_of(pixels):
    return [numbers[: pixels.shape[1]] for numbers in (MEAN, STD)]


def same_class(found, expected):
    return (found.argmax(1) == expected.argmax(1)).sum()


def random_pixels(count, size, channels=3):
    shape = (count, channels, size, size)
    return np.random.RandomState(0).randint(0, 256, shape).astype("float32")


def randomised(spec):
    """A network with random values everywhere, pixels for it and what it makes of them."""
    net = ResNetV2(spec)
    randomise(net)
    pixels = random_pixels(48, 16 if spec.stem == "cifar" else 32, spec.in_channels)
    return graph_of(net), pixels, net(mx.nd.array(normalised(pixels))).asnumpy()


def check_float32(graph, pixels, expected):
    images = normalised(pixels)
    prepared = forms.with_preprocessing(*graph, *statistics_of(pixels))
    assert difference(run(forms.fused(*graph), images), expected) <= 1e-5
    assert difference(run(prepared, pixels), expected) <= 1e-5
    assert difference(run(forms.fused(*prepared), pixels), expected) <= 1e-5
    # Half of bfloat16's form, and the one that every processor computes.
    assert difference(run(forms._folded(*graph), images), expected) <= 1e-5


def check_bfloat16(graph, pixels, expected):
    for form in (forms.bfloat16(*graph), forms.fused(*forms.bfloat16(*graph))):
        # Half an ulp is 2**-9; ten layers or so may add up to several. float32 would give 1e-7.
        assert 1e-4 < difference(run(form, normalised(pixels)), expected) < 0.015


def check_int8(graph, pixels, expected):
    form = forms.int8(*graph, normalised(pixels[:32]))
    # Sums that MXNet gets wrong change logits by a tenth and more.
    assert difference(run(form, normalised(pixels)), expected) < 0.05
    prepared = forms.int8(*forms.with_preprocessing(*graph, *statistics_of(pixels)), pixels[:32])
    assert difference(run(prepared, pixels), expected) < 0.05


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_forms_compute_the_same(name):
    check_float32(*randomised(NETWORKS[name]))


@bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_near(name):
    check_bfloat16(*randomised(NETWORKS[name]))


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_is_near(name):
    check_int8(*randomised(NETWORKS[name]))


@pytest.mark.slow  # 40 seconds
@pytest.mark.parametrize(("order", "shortcut", "unit"), VARIANTS)
def test_every_variant_has_every_form(order, shortcut, unit):
    network = randomised(variant(order, shortcut, unit))
    check_float32(*network)
    check_int8(*network)
    if cpu_has_bfloat16():
        check_bfloat16(*network)


def test_fusing_goes_wrong_where_it_is_not_kept_from_it():
    """If this fails, MXNet has been mended, and `forms._apart` can go."""
    (symbol, *arrays), pixels, expected = randomised(NETWORKS["raw stem"])
    wrong = symbol.get_backend_symbol("MKLDNN"), *arrays
    assert difference(run(wrong, normalised(pixels)), expected) > 0.1


@pytest.mark.parametrize("name", ["full_preact, identity", "relu_before_add, conv1x1"])
def test_int8_goes_wrong_where_every_sum_is_quantised(name, monkeypatch):
    """If this fails, MXNet has been mended, and `forms._mixed_sums` can go."""
    monkeypatch.setattr(forms, "_mixed_sums", lambda nodes, ranges: [])
    graph, pixels, expected = randomised(NETWORKS[name])
    form = forms.int8(*graph, normalised(pixels[:32]))
    assert difference(run(form, normalised(pixels)), expected) > 0.08


def test_int8_computes_all_but_the_stem_the_mixed_sum_and_the_classifier_in_8_bits():
    graph, pixels, _ = randomised(named("preact14"))
    symbol, _, _ = forms.int8(*graph, normalised(pixels))
    convolutions = [n for n in json.loads(symbol.tojson())["nodes"] if n["op"] == "_sg_mkldnn_conv"]
    inner = {n["subgraphs"][0]["nodes"][-1]["name"]: n["attrs"] for n in convolutions}
    kept = [name for name, attrs in inner.items() if attrs.get("quantized") != "true"]
    assert len(inner) == 13
    assert kept == ["relu0_fwd", "stage1_unit1__plus0"]
    assert "_sg_mkldnn_fully_connected" in symbol.tojson()


def test_ranges_are_those_of_all_images():
    images = np.zeros((3 * forms.CALIBRATED, 1, 1, 1), "float32")
    images[1], images[forms.CALIBRATED + 1] = -7, 5
    twice = mx.sym.elemwise_add(mx.sym.var("data"), mx.sym.var("data"), name="twice")
    found = forms._ranges(mx.sym.relu(twice, name="relu"), {}, images)
    assert found == {"twice_output": (-14, 10), "relu_output": (0, 10)}


def test_int8_needs_images():
    graph, pixels, _ = randomised(named("preact8", unit="basic"))
    with pytest.raises(UserError, match="images"):
        forms.int8(*graph, pixels[:0])


def test_forms_are_made_in_silence(capfd):
    graph, pixels, _ = randomised(named("preact8", unit="basic"))
    run(forms.fused(*graph), pixels)
    run(forms.int8(*graph, pixels), pixels)
    assert capfd.readouterr() == ("", "")


def test_softmax_gives_probabilities():
    graph, pixels, logits = randomised(named("preact8", unit="basic"))
    powers = np.exp(np.float64(logits))
    found = run(forms.with_softmax(*graph), normalised(pixels))
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), atol=1e-5)


@bfloat16
def test_bfloat16_survives_the_files(tmp_path):
    graph, _, _ = randomised(named("preact8", unit="basic"))
    symbol, arguments, _ = forms.bfloat16(*graph)
    assert forms.to_json(symbol).count('"amp_cast"') == 2  # images and pooled features
    mx.nd.save(str(tmp_path / "params"), arguments)
    loaded = mx.nd.load(str(tmp_path / "params"))
    reduced = {name for name, array in loaded.items() if array.dtype == DTYPES["bfloat16"]}
    assert {name for name in loaded if "conv" in name} < reduced
    assert "fc1_weight" not in reduced
    for name in reduced:  # compared as the bits that they are
        written, read = (
            array.asnumpy().view("uint16") for array in (arguments[name], loaded[name])
        )
        assert (written == read).all()


# -- In every runtime, and on real images ----------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Training and held-out pixels (N, 3, 32, 32), their mean and deviation."""
    train, test = (
        getattr(data.load("digits"), part).images.transpose(0, 3, 1, 2).astype("float32")
        for part in ("train", "test")
    )
    return train, test, train.mean((0, 2, 3)), train.std((0, 2, 3))


@pytest.fixture(scope="module")
def trained(digits):
    """A small network that has seen the digits for four epochs."""
    train, _, mean, std = digits
    labels = data.load("digits").train.labels
    net = get_model("preact8", unit="basic")
    mx.random.seed(0)
    net.initialize()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"momentum": 0.9})
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
    images, rng = normalised(train, mean, std), np.random.RandomState(0)
    for rate in (0.1, 0.1, 0.1, 0.01):
        trainer.set_learning_rate(rate)
        for batch in np.array_split(rng.permutation(len(images)), len(images) // 32):
            with autograd.record():
                loss = cross_entropy(net(mx.nd.array(images[batch])), mx.nd.array(labels[batch]))
            loss.backward()
            trainer.step(len(batch))
    mx.nd.waitall()
    return net


def made(net, digits):
    """Each form by name, with what it takes of held-out pixels and whether it gives logits."""
    train, test, mean, std = digits
    graph, images = graph_of(net), normalised(test, mean, std)
    prepared = forms.with_preprocessing(*graph, mean, std)
    calibration = train[:128]
    made = {
        "fused": (forms.fused(*graph), images),
        "pixels": (prepared, test),
        "int8": (forms.int8(*graph, normalised(calibration, mean, std)), images),
        "int8, pixels": (forms.with_softmax(*forms.int8(*prepared, calibration)), test),
        "probabilities": (forms.fused(*forms.with_softmax(*prepared)), test),
    }
    if cpu_has_bfloat16():
        made["bfloat16"] = forms.bfloat16(*graph), images
        made["bfloat16, pixels"] = (
            forms.fused(*forms.with_softmax(*forms.bfloat16(*prepared))),
            test,
        )
    return made


LEAST = {"bfloat16": 359, "int8": 357}  # of 360: 99.5 % and 99 %


def check_classes(net, digits):
    _, test, mean, std = digits
    logits = net(mx.nd.array(normalised(test, mean, std))).asnumpy()
    for name, (graph, images) in made(net, digits).items():
        assert same_class(run(graph, images), logits) >= LEAST.get(name.split(",")[0], 360), name


def test_forms_give_the_classes_of_float32(trained, digits):
    _, test, mean, std = digits
    logits = trained(mx.nd.array(normalised(test, mean, std))).asnumpy()
    assert np.mean(logits.argmax(1) == data.load("digits").test.labels) > 0.9  # it has learned
    check_classes(trained, digits)


@pytest.mark.slow  # two minutes each
@pytest.mark.parametrize("seed", [0, 1])
def test_the_digits_recipe_keeps_its_classes(seed, digits, tmp_path):
    command = [sys.executable, "train/cifar.py", "--recipe", "digits", "--seed", str(seed)]
    subprocess.run([*command, "--output", str(tmp_path / "run")], cwd=ROOT, check=True)
    net, state = load_run(tmp_path / "run")
    train, test, _, _ = digits
    check_classes(net, (train, test, state.input.mean, state.input.std))


@pytest.mark.parametrize("backend", ["MKLDNN", "NONE"])
@pytest.mark.parametrize("way", [symbol_block, module, simple_bind, c_predict])
def test_every_runtime_runs_every_form(way, backend, trained, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", backend)
    symbol_path, params_path = str(tmp_path / "net-symbol.json"), str(tmp_path / "net-0000.params")
    for name, ((symbol, arguments, statistics), images) in made(trained, digits).items():
        Path(symbol_path).write_text(forms.to_json(symbol), encoding="utf-8")
        arrays = {f"arg:{name}": array for name, array in arguments.items()}
        arrays |= {f"aux:{name}": array for name, array in statistics.items()}
        mx.nd.save(params_path, arrays)
        expected = run((symbol, arguments, statistics), images[:8])
        found = way(symbol_path, params_path, images[:8])
        assert found.dtype == np.float32
        # The backend may fuse what is not yet, which rounds elsewhere.
        tolerance = 0.01 if name == "bfloat16" else 1e-5
        assert difference(found, expected) <= tolerance, name
