"""ONNX: the exported model computes in ONNX Runtime what the network itself does in MXNet."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.engines.runtimes import run_onnx
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports import onnx as module
from gluon_resnetv2.exports.export import export
from gluon_resnetv2.exports.onnx import export_onnx
from gluon_resnetv2.formats.manifest import Input, Manifest
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import ORDER, named
from tests.common import difference, randomise, with_new_sums

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5  # largest difference over largest logit
SHORTCUTS = (
    "identity",
    "plain",
    "scale:0.5,0.5",
    "gate:-6",
    "exclusive-gate:-6",
    "conv1x1",
    "dropout:0.5",
)


def network(name, **switches):
    net = ResNetV2(named(name, **switches))
    randomise(net)
    return net


def manifest(classes=10, size=32, output="logits", channels=3, **more):
    return Manifest(
        name="net",
        output=output,
        classes=tuple(f"class {index}" for index in range(classes)),
        input=Input(
            shape=(channels, size, size),
            mean=(1.5, 2.5, 3.5)[:channels],
            std=(1.0, 1.0, 1.0)[:channels],
        ),
        spec=named("preact8", unit="basic"),
        **{"precision": "float32", "fused": False, **more},
    )


def parameters(net):
    return {name: parameter.data() for name, parameter in net.collect_params().items()}


def images(count, size=32, channels=3):
    shape = (count, channels, size, size)
    return np.random.RandomState(count).normal(size=shape).astype("float32")


def differences(net, path, size=32):
    """Of the logits at batch 1 and 7 between ONNX Runtime and the network itself."""
    classes, channels = net.spec.classes, net.spec.in_channels
    described = manifest(classes, size, channels=channels)
    export_onnx(net(mx.sym.var("data")), parameters(net), described, path)
    return [
        difference(run_onnx(path, batch), net(mx.nd.array(batch)).asnumpy())
        for batch in (images(1, size, channels), images(7, size, channels))
    ]


VARIANTS = {
    **{f"shortcut {kind}": {"shortcut": kind} for kind in SHORTCUTS},
    **{f"{kind}, bottleneck": {"shortcut": kind, "unit": "bottleneck"} for kind in SHORTCUTS},
    **{f"order {order}": {"order": order} for order in ORDER},
    **{f"widening {option}": {"widening": option} for option in "ABC"},
    **{f"input BN {option}": {"input_bn": option} for option in ("shift", "plain")},
    "grey": {"in_channels": 1},
}


@pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_agrees_with_the_network(switches, tmp_path):
    depth = 11 if switches.get("unit") == "bottleneck" else 8
    net = network(f"preact{depth}", **{"unit": "basic", **switches})
    assert max(differences(net, tmp_path / "net.onnx")) <= TOLERANCE


@pytest.mark.parametrize(("name", "size"), [("preact20", 32), ("preact18", 64)])
def test_networks_agree(name, size, tmp_path):
    assert max(differences(network(name), tmp_path / "net.onnx", size)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("preact110", 32), ("preact164", 32), ("resnet110", 32), ("preact50", 64)]
)
def test_deep_networks_agree(name, size, tmp_path):
    assert max(differences(network(name), tmp_path / "net.onnx", size)) <= TOLERANCE


def test_preprocessing_and_softmax_in_the_graph_are_translated(tmp_path):
    net, path = network("preact8", unit="basic"), tmp_path / "net.onnx"
    constants = {
        "mean": mx.nd.array([[[[78]], [[88]], [[98]]]]),
        "std": mx.nd.array([[[[50]], [[60]], [[70]]]]),
    }
    normalised = mx.sym.broadcast_div(
        mx.sym.broadcast_sub(mx.sym.var("data"), mx.sym.var("mean")), mx.sym.var("std")
    )
    symbol = mx.sym.softmax(net(normalised))
    export_onnx(symbol, {**parameters(net), **constants}, manifest(output="probabilities"), path)
    pixels = np.random.RandomState(0).randint(0, 256, (5, 3, 32, 32)).astype("float32")
    prepared = (mx.nd.array(pixels) - constants["mean"]) / constants["std"]
    expected = mx.nd.softmax(net(prepared)).asnumpy()
    assert difference(run_onnx(path, pixels), expected) <= TOLERANCE
    (output,) = onnx.load(path).graph.output
    assert output.name == "probabilities"


def test_the_model_says_what_it_takes_and_gives(tmp_path):
    net, path = network("preact8", unit="basic", classes=7), tmp_path / "net.onnx"
    described = manifest(classes=7)
    export_onnx(net(mx.sym.var("data")), parameters(net), described, path)
    assert [tensor.name for tensor in onnx.load(path).graph.input] == ["data"]
    session = onnxruntime.InferenceSession(path)
    (data,), (output,) = session.get_inputs(), session.get_outputs()
    assert (data.name, data.type, data.shape) == ("data", "tensor(float)", ["N", 3, 32, 32])
    assert (output.name, output.shape) == ("logits", ["N", 7])
    metadata = session.get_modelmeta()
    assert metadata.producer_name == "gluon_resnetv2"
    assert metadata.graph_name == "net"
    assert json.loads(metadata.custom_metadata_map["classes"]) == list(described.classes)
    assert json.loads(metadata.custom_metadata_map["input"])["mean"] == [1.5, 2.5, 3.5]


def test_the_opset_is_the_translations_and_not_the_newest(tmp_path):
    net, path = network("preact8", unit="basic"), tmp_path / "net.onnx"
    export_onnx(net(mx.sym.var("data")), parameters(net), manifest(), path)
    (opset,) = onnx.load(path).opset_import
    assert opset.version == 13


def test_an_export_is_the_same_bytes_each_time_and_quiet(tmp_path, capfd):
    net = network("preact8", unit="basic")
    for name in ("first", "second"):
        export_onnx(net(mx.sym.var("data")), parameters(net), manifest(), tmp_path / name)
        run_onnx(tmp_path / name, images(1))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "form", [{"precision": "bfloat16"}, {"precision": "int8"}, {"fused": True}], ids=str
)
def test_other_forms_than_plain_float32_are_refused(form, tmp_path):
    net = network("preact8", unit="basic")
    with pytest.raises(UserError, match="plain float32 graph") as caught:
        export_onnx(net(mx.sym.var("data")), {}, manifest(**form), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_operator_without_translation_is_named(tmp_path):
    symbol = mx.sym.gamma(mx.sym.var("data"))
    with pytest.raises(UserError, match="gamma"):
        export_onnx(symbol, {}, manifest(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without(monkeypatch):
    """Has an import fail."""
    module._exporter.cache_clear()

    def forget(name):
        monkeypatch.setitem(sys.modules, name, None)
        parent, _, child = name.partition(".")
        if child:
            monkeypatch.delattr(sys.modules[parent], child)

    return forget


def test_a_network_is_written_without_what_onnx_dropped(without, tmp_path):
    """`onnx.mapping`, which onnx 1.19 and newer lack."""
    if importlib.util.find_spec("onnx.mapping"):
        without("onnx.mapping")
    assert max(differences(network("preact8", unit="basic"), tmp_path / "net.onnx")) <= TOLERANCE


def test_an_onnx_that_is_missing_is_named_with_the_way_out(without, tmp_path):
    without("onnx")
    with pytest.raises(UserError, match=r"needs onnx: .* pip install .*\[onnx\]"):
        export_onnx(mx.sym.var("data"), {}, manifest(), tmp_path / "net.onnx")


def test_a_missing_runtime_is_named_with_the_way_out(without, tmp_path):
    without("onnxruntime")
    with pytest.raises(UserError, match=r" pip install .*\[onnx\]"):
        run_onnx(tmp_path / "net.onnx", images(1))


def endless():
    """A loop without end."""
    kinds = {"i": onnx.TensorProto.INT64, "c": onnx.TensorProto.BOOL, "d": onnx.TensorProto.BOOL}
    tensors = {
        name: onnx.helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()
    }
    again = onnx.helper.make_node("Identity", ["c"], ["d"])
    body = onnx.helper.make_graph([again], "body", [tensors["i"], tensors["c"]], [tensors["d"]])
    values = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 32, 32])
    body.input.append(values)
    body.node.append(onnx.helper.make_node("Identity", ["x"], ["y"]))
    body.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    return [onnx.helper.make_node("Loop", ["most", "true", "data"], ["logits"], body=body)]


def huge():
    """An array of 4 GB."""
    return [
        onnx.helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        onnx.helper.make_node("Add", ["zeros", "data"], ["logits"]),
    ]


BOUNDED = """
import sys
import numpy as np
import onnxruntime
from gluon_resnetv2.engines import runtimes
runtimes.SECONDS = 3
images = np.zeros((2, 3, 32, 32), "float32")
runtimes.onnx_runtime("", sys.argv[1], images)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nodes", "status", "told"),
    [(endless, -signal.SIGXCPU, "more than 3 seconds of a processor"), (huge, 1, "allocat")],
)
def test_a_model_that_anybody_wrote_is_bounded_in_time_and_memory(nodes, status, told, tmp_path):
    net = network("preact8", unit="basic")
    artifact = export(
        net,
        tmp_path / "export",
        (3, 32, 32),
        **{"classes": list("0123456789"), "mean": [0] * 3, "std": [1] * 3},
        onnx=True,
    )
    constants = {"most": np.int64(2**62), "true": np.bool_(True), "size": [350_000, 3, 32, 32]}
    model = onnx.load(artifact.onnx)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes())
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    artifact.onnx.write_bytes(model.SerializeToString())
    with_new_sums(artifact)
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(artifact.params)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == status
    assert told in done.stderr
