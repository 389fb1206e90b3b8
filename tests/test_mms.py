"""The archive for multi-model-server: what its handler answers, called as that server calls it."""

from __future__ import annotations

import importlib
import io
import json
import zipfile

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.deploy.export import export
from gluon_resnetv2.deploy.mms import archive
from gluon_resnetv2.net import get_model
from tests.common import randomise

CLASSES = [f"class {index}" for index in range(10)]
PIXELS = np.random.RandomState(0).randint(0, 256, (3, 16, 16, 3)).astype("uint8")


class Context:
    """The part of the server's context that a handler may use."""

    def __init__(self, folder):
        self.system_properties = {"model_dir": str(folder)}
        self.statuses = {}

    def set_response_status(self, code=200, phrase="", idx=0):
        self.statuses[idx] = code


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The handler that the archive names, the unpacked archive's context, and the probabilities."""
    folder = tmp_path_factory.mktemp("mms")
    net = get_model("preact8", unit="basic")
    randomise(net)
    artifact = export(
        net, folder / "export", (3, 16, 16), classes=CLASSES, mean=(0, 0, 0), std=(255, 255, 255)
    )
    archive(artifact, folder / "net.mar")
    with zipfile.ZipFile(folder / "net.mar") as file:
        assert file.testzip() is None
        file.extractall(folder / "unpacked")
    described = json.loads((folder / "unpacked/MAR-INF/MANIFEST.json").read_text())
    assert described["model"]["modelName"] == "preact8"
    module, function = described["model"]["handler"].split(":")
    images = mx.nd.array(PIXELS.transpose(0, 3, 1, 2) / 255)
    handle, context = (
        getattr(importlib.import_module(module), function),
        Context(folder / "unpacked"),
    )
    handle(None, context)  # the server's way to have the model loaded
    return handle, context, mx.nd.softmax(net(images)).asnumpy()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_a_batch_of_requests_is_answered(served):
    handle, context, expected = served
    answers = handle([{"body": png(PIXELS[0])}, {"data": bytearray(png(PIXELS[1]))}], context)
    for answer, row in zip(answers, expected):
        best = np.argsort(-row)[:5]
        assert list(answer) == [CLASSES[index] for index in best]
        assert list(answer.values()) == pytest.approx(row[best], abs=1e-5)
    json.dumps(answers)
    assert context.statuses == {}


@pytest.mark.parametrize(
    "body", [{"body": b"no image"}, {"body": b""}, {}, {"body": {"parsed": "JSON"}}], ids=str
)
def test_a_wrong_request_leaves_its_neighbours_alone(served, body):
    handle, _, expected = served
    context = Context(".")
    answers = handle([body, {"body": png(PIXELS[2])}], context)
    assert context.statuses == {0: 400}
    assert "error" in answers[0]
    assert next(iter(answers[1])) == CLASSES[expected[2].argmax()]
