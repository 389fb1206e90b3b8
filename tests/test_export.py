"""The forms of an export: what the manifest says is what the pair takes, gives and computes in."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.engines import forms
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.engines.reference import compare, reference_images
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports import verify as verification
from gluon_resnetv2.exports.export import Form, export
from gluon_resnetv2.exports.verify import report, verify
from gluon_resnetv2.formats.artifact import CALIBRATION, load
from gluon_resnetv2.formats.graph_file import seal
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from gluon_resnetv2.training.precision import cpu_has_bfloat16
from tests.common import difference, randomise, with_new_sums

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
PIXELS = np.random.RandomState(3).randint(0, 256, (200, 3, 16, 16)).astype("uint8")


@pytest.fixture(scope="module")
def net():
    net = ResNetV2(named("preact8", unit="basic"))
    randomise(net)
    return net


def write(net, folder, form, **options):
    classes = [f"class {index}" for index in range(10)]
    about = {"classes": classes, "mean": MEAN, "std": STD}
    return export(
        net, folder, (3, 16, 16), form=form, calibration=lambda: PIXELS, **about, **options
    )


def expected(net):
    """The network's logits for the first pixels, normalised by hand."""
    mean, std = (np.reshape(value, (3, 1, 1)) for value in (MEAN, STD))
    return net(mx.nd.array((PIXELS - mean) / std)).asnumpy()


bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16")
FORMS = [
    Form(values="pixels"),
    Form(output="probabilities"),
    Form(fused=True),
    Form("pixels", "probabilities", "float32", True),
    pytest.param(Form(precision="bfloat16"), marks=bfloat16),
    pytest.param(Form("pixels", "probabilities", "bfloat16", True), marks=bfloat16),
    Form(precision="int8"),
    Form("pixels", "probabilities", "int8"),
]
NEAR = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.1}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_form_takes_gives_and_computes_what_it_says(net, tmp_path, form):
    artifact = write(net, tmp_path / "export", form)
    for name in ("output", "precision"):
        assert getattr(artifact.manifest, name) == getattr(form, name)
    assert artifact.manifest.input.values == form.values
    assert artifact.manifest.fused == (form.fused or form.precision == "int8")
    logits = expected(net)
    if form.output == "probabilities":
        powers = np.exp(np.float64(logits))
        logits = powers / powers.sum(1, keepdims=True)
    predictor = Predictor(artifact)
    assert predictor.form.startswith(form.precision)
    found = predictor.run(predictor.prepare(PIXELS))
    assert difference(found, logits) <= NEAR[form.precision]
    assert (found.argmax(1) == logits.argmax(1)).mean() >= 0.99


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=bfloat16), "int8"])
def test_each_precision_is_verified_by_its_own_measure(net, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(verification, "RUNTIMES", [("SymbolBlock", None)])
    artifact = write(net, tmp_path / "export", Form("pixels", precision=precision))
    assert report(artifact)
    entry = load(artifact.folder).manifest.verification[-1]
    least = {"float32": {"difference": 1e-5}}.get(precision, {"agreement": 0.995})
    assert entry["tolerance"] == ({"agreement": 0.99} if precision == "int8" else least)
    assert entry["passed"]
    assert entry["agreement"] >= 0.99
    # Held against what the network says of the images, not against what the pair says itself.
    assert 0 < entry["difference"] <= NEAR[precision]


def test_an_export_that_has_lost_its_classes_is_not_verified(net, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "RUNTIMES", [("SymbolBlock", None)])
    artifact = write(net, tmp_path / "export", Form(precision="int8"))
    shuffled = dict(mx.nd.load(str(artifact.folder / CALIBRATION)))
    shuffled["arg:logits"] = shuffled["arg:logits"][:, ::-1]
    mx.nd.save(str(artifact.folder / CALIBRATION), shuffled)
    artifact = with_new_sums(artifact)
    (checks,) = verify([artifact])
    assert not any(check.passed for check in checks)
    with pytest.raises(UserError, match="does not compute here what was exported"):
        Predictor(artifact)


def test_every_file_of_an_export_is_checked(net, tmp_path):
    artifact = write(net, tmp_path / "export", Form(precision="int8"), server="mlserver")
    assert set(artifact.manifest.sha256) == {
        "preact8-0000.params",
        "preact8-symbol.json",
        "manifest.json",
        CALIBRATION,
    }
    settings = json.loads((artifact.folder / "model-settings.json").read_text())
    assert settings["max_batch_size"] == 0
    path = artifact.folder / CALIBRATION
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=CALIBRATION):
        load(artifact.folder)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        load(artifact.folder)


def test_an_export_with_all_that_belongs_to_it_is_replaced(net, tmp_path):
    write(net, tmp_path / "export", Form(precision="int8"), server="mlserver")
    (tmp_path / "export/preact8.mar").touch()  # as 0.1 wrote it for multi-model-server
    again = write(net, tmp_path / "export", Form())
    assert len(list(again.folder.iterdir())) == 3  # the pair and its manifest


def test_another_server_than_mlserver_is_refused(net, tmp_path):
    with pytest.raises(UserError, match="for mlserver, not for mms"):
        write(net, tmp_path / "export", Form(), server="mms")
    assert not (tmp_path / "export").exists()


def test_other_precisions_need_images(net, tmp_path):
    with pytest.raises(UserError, match="int8 needs 1 to"):
        export(
            net,
            tmp_path / "export",
            (3, 16, 16),
            classes=["a"] * 10,
            mean=MEAN,
            std=STD,
            form=Form(precision="int8"),
        )
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("least", "images", "differing"),
    [(0.995, 1, 0), (0.995, 31, 1), (0.995, 200, 1), (0.995, 399, 2), (0.99, 360, 4)],
)
def test_a_class_that_differs_counts_as_a_whole_image(least, images, differing):
    """99.5 % of 31 images are 30.8: 30 suffice. So one always may differ, but not of one."""
    logits = np.eye(images, 10, dtype="float32") + 1e-3
    logits[10:, 0] += 1
    for wrong, passes in ((differing, True), (differing + 1, False)):
        found = logits.copy()
        found[:wrong] = found[:wrong, ::-1]
        assert compare("", found, logits, {"agreement": least}).passed == passes


def test_what_a_precision_costs_too_much_replaces_nothing(net, tmp_path, monkeypatch):
    def careless(symbol, arguments, statistics):
        (bias,) = (name for name in arguments if name.endswith("fc1_bias"))
        return symbol, {**arguments, bias: 1000 * mx.nd.arange(10)}, statistics

    before = write(net, tmp_path / "export", Form())
    monkeypatch.setattr(forms, "bfloat16", careless)
    with pytest.raises(UserError, match=r"costs this network too much.* % of 200 images"):
        write(net, tmp_path / "export", Form(precision="bfloat16"))
    assert load(before.folder).manifest == before.manifest


@pytest.mark.parametrize("images", [(), np.zeros((3, 3, 8, 8), "uint8")], ids=["none", "others"])
def test_images_that_cannot_calibrate_are_refused(net, tmp_path, images):
    about = {"classes": ["a"] * 10, "mean": MEAN, "std": STD, "calibration": lambda: images}
    with pytest.raises(UserError, match="images"):
        export(net, tmp_path / "e", (3, 16, 16), form=Form(precision="bfloat16"), **about)


@pytest.mark.parametrize("form", [Form(fused=True), Form(precision="int8")], ids=str)
def test_onnx_is_of_the_plain_float32_graph(net, tmp_path, form):
    with pytest.raises(UserError, match="plain float32"):
        write(net, tmp_path / "export", form, onnx=True)


def test_an_onnx_model_is_verified_beside_the_pair(net, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(verification, "RUNTIMES", [("simple_bind", None)])
    monkeypatch.setattr(verification, "without_native", lambda *_: "not here")
    artifact = write(net, tmp_path / "export", Form("pixels", "probabilities"), onnx=True)
    other = write(net, tmp_path / "other", Form())
    with_onnx, without = verify([artifact, other])
    assert [check.runtime for check in with_onnx if check.passed][1:] == [
        "simple_bind",
        "ONNX Runtime",
    ]
    assert [check.runtime for check in without][1:] == ["simple_bind"]


def test_what_probabilities_hide_is_seen(net, tmp_path, monkeypatch):
    """Next to a probability of all but 1, logits that are wrong look right."""
    monkeypatch.setattr(verification, "RUNTIMES", [("simple_bind", None)])
    sure = ResNetV2(net.spec)
    randomise(sure)
    sure.output.weight.set_data(sure.output.weight.data() * 4)
    artifact = write(sure, tmp_path / "export", Form(output="probabilities"))
    before = Predictor(artifact).run(reference_images((3, 16, 16)))
    assert before.max(axis=1).min() > 0.9999
    values = dict(mx.nd.load(str(artifact.params)))
    (bias,) = (name for name in values if name.endswith("fc1_bias"))
    values[bias] += mx.nd.array(np.arange(10) * 0.05)
    mx.nd.save(str(artifact.params), values)
    artifact.symbol.write_text(seal(artifact.symbol.read_text(), artifact.params))
    artifact = with_new_sums(artifact)
    with pytest.raises(UserError, match="does not compute here"):
        Predictor(artifact)
