"""The Open Inference Protocol: what is decoded, what is refused and why, what is answered."""

from __future__ import annotations

import base64
import io
import json
import struct
import time

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.serving.protocol import Interface, Output, Refused, Request, decode, encode
from gluon_resnetv2.serving.protocol import decode_image as decode_image_body
from gluon_resnetv2.untrusted import Fault, parse_json

MODEL = Interface("net", ["cat", "dog", "Füchsin"], (3, 2, 4), "logits", max_batch=8)
VALUES = np.random.RandomState(0).normal(size=(2, 3, 2, 4)).astype("float32")


def picture(kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 2)).save(file, kind)
    return file.getvalue()


def tensor(**changes):
    """An input of VALUES as JSON; what is changed to None is left out."""
    fields = {"name": "data", "datatype": "FP32", "shape": [2, 3, 2, 4]}
    fields["data"] = VALUES.ravel().tolist()
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def asking(*inputs, **changes):
    return json.dumps({"inputs": list(inputs), **changes}).encode()


def in_binary(raw, **changes):
    """A request whose input follows as `raw`; and the size of its JSON."""
    size = {"binary_data_size": len(raw)}
    text = asking(tensor(data=None, **{"parameters": size, **changes}))
    return text + raw, len(text)


# -- Requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [VALUES.ravel().tolist(), VALUES.tolist()], ids=["flat", "nested"])
def test_numbers_in_json(data):
    request = decode(asking(tensor(data=data), id="42"), None, MODEL)
    assert request.input == "data"
    assert request.id == "42"
    assert request.values.dtype == np.float32
    np.testing.assert_array_equal(request.values, VALUES)


def test_numbers_in_binary():
    request = decode(*in_binary(VALUES.tobytes()), MODEL)
    np.testing.assert_array_equal(request.values, VALUES)


def test_whole_numbers_are_floats_too():
    data = list(range(48))
    np.testing.assert_array_equal(
        decode(asking(tensor(data=data)), None, MODEL).values.ravel(), data
    )


def test_pixels():
    pixels = np.arange(48, dtype="uint8").reshape(2, 3, 2, 4)
    changes = {"name": "pixels", "datatype": "UINT8"}
    for request in (
        decode(asking(tensor(data=pixels.ravel().tolist(), **changes)), None, MODEL),
        decode(*in_binary(pixels.tobytes(), **changes), MODEL),
    ):
        assert request.input == "pixels"
        np.testing.assert_array_equal(request.values, pixels)


def test_image_files():
    files = [picture("PNG"), picture("JPEG")]
    fields = {"name": "image", "datatype": "BYTES", "shape": [2]}
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    coded = [base64.b64encode(file).decode() for file in files]
    assert decode(*in_binary(raw, **fields), MODEL).values == files
    assert decode(asking(tensor(data=coded, **fields)), None, MODEL).values == files
    assert decode_image_body(files[1], "image/jpeg", MODEL).values == files[1:]


def test_which_outputs_are_asked_for():
    everything = ("logits", "probabilities", "label")
    assert decode(asking(tensor()), None, MODEL).outputs == tuple(map(Output, everything))
    of_probabilities = Interface("net", ["a"], (3, 2, 4), "probabilities", 8)
    assert decode(asking(tensor()), None, of_probabilities).outputs == (
        Output("probabilities"),
        Output("label"),
    )
    asked = [
        {"name": "label"},
        {"name": "logits", "parameters": {"binary_data": False}},
        {"name": "probabilities", "parameters": {"classification": 9, "other": "server's"}},
    ]
    body = asking(tensor(), outputs=asked, parameters={"binary_data_output": True, "priority": 1})
    assert decode(body, None, MODEL).outputs == (
        Output("label", True),
        Output("logits", False),
        Output("probabilities", True, classification=3),
    )


def test_what_clients_add_and_leave_null_is_let_pass():
    """As KServe's InferRequest and MLServer's `model_dump` write it."""
    input_ = {**tensor(), "parameters": None, "comment": 1}
    null = {"id": None, "parameters": None}
    for outputs in (None, [{"name": "label", "parameters": None, "shape": None}]):
        body = asking(input_, outputs=outputs, model_name="net", model_version=None, **null)
        request = decode(body, None, MODEL)
        np.testing.assert_array_equal(request.values, VALUES)
        assert len(request.outputs) == (1 if outputs else 3)
    raw = VALUES.tobytes()
    text = asking({**tensor(parameters={"binary_data_size": len(raw)}), "data": None})
    np.testing.assert_array_equal(decode(text + raw, len(text), MODEL).values, VALUES)


def test_image_files_in_a_column():
    files = [picture("PNG"), picture("JPEG")]
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    coded = [base64.b64encode(file).decode() for file in files]
    fields = {"name": "image", "datatype": "BYTES", "shape": [2, 1]}
    assert decode(*in_binary(raw, **fields), MODEL).values == files
    for data in (coded, [[each] for each in coded]):
        assert decode(asking(tensor(data=data, **fields)), None, MODEL).values == files


HUGE = "9" * 4000
SHARED = {"shared_memory_region": "mine", "shared_memory_byte_size": 96}
NOT_FINITE = np.where(np.arange(48).reshape(VALUES.shape) == 7, np.float32("nan"), VALUES)
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff{}", "UTF-8"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"a":' * 10_000, "nested"),
        (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested|list of one"),
        (b"[" * 100_000, "more values"),
        (b'{"inputs": [' + b"1," * 100_000 + b"1]}", "more values"),
        (b'{"inputs": [], "inputs": []}', "twice"),
        (b"{}", "lacks inputs"),
        (asking(), "one tensor"),
        (asking(tensor(), tensor()), "one tensor"),
        (asking("data"), "JSON object"),
        (asking(tensor(), id=1), "id must be a string"),
        (asking(tensor(), parameters=[]), "parameters"),
        (asking(tensor(), parameters={"binary_data_output": 1}), "binary_data_output"),
        (asking(tensor(), outputs={}), "outputs must be a list"),
        (asking(tensor(), outputs=["logits"]), "an output must be"),
        (asking(tensor(), outputs=[{"name": "logit"}]), "no output"),
        (asking(tensor(), outputs=[{"name": []}]), "no output"),
        (asking(tensor(), outputs=[{"name": "label"}] * 2), "twice"),
        (
            asking(tensor(), outputs=[{"name": "label", "parameters": {"classification": 1}}]),
            "classification",
        ),
        (
            asking(tensor(), outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
            "classification",
        ),
        (
            asking(tensor(), outputs=[{"name": "label", "parameters": SHARED}]),
            "output label.*shared_memory_region",
        ),
        (asking(tensor(data=None, parameters=SHARED)), "input data.*shared_memory_region"),
        (asking(tensor(name="images")), "no input"),
        (asking(tensor(name={})), "no input"),
        (asking(tensor(name=None)), "lacks name"),
        (asking(tensor(datatype="FP64")), "FP32, not"),
        (asking(tensor(datatype=["FP32"])), "FP32, not"),
        (asking(tensor(shape=[3, 2, 4])), "shape"),
        (asking(tensor(shape=[2, 3, 4, 2])), "shape"),
        (asking(tensor(shape=[2, 3, 2, 4, 1])), "shape"),
        (asking(tensor(shape=[])), "shape"),
        (asking(tensor(shape="2,3,2,4")), "whole numbers"),
        (asking(tensor(shape=[2, 3, 2, 4.0])), "whole numbers"),
        (asking(tensor(shape=[True, 3, 2, 4])), "whole numbers"),
        (asking(tensor(shape=[0, 3, 2, 4])), "batch of 0"),
        (asking(tensor(shape=[-1, 3, 2, 4])), "batch of -1"),
        (asking(tensor(shape=[9, 3, 2, 4])), "batch of 9"),
        (asking(tensor(shape=[2**63, 3, 2, 4])), "batch of 9223372036854775808"),
        (asking(tensor(shape=[1, 3, 2, 4])), "takes 24 values, but data has 48"),
        (asking(tensor(data=VALUES[0].tolist())), "nested"),
        (asking(tensor(data=VALUES.reshape(2, 3, 4, 2).tolist())), "nested"),
        (asking(tensor(data=VALUES[:, :, 0].tolist())), "nested|not FP32"),
        (asking(tensor(data=[[1, 2], 3])), "nested"),
        (asking(tensor(data=7)), "must be a list"),
        (asking(tensor(data=None)), "either data or"),
        (asking(tensor(parameters={"binary_data_size": 192})), "either data or"),
        (asking(tensor(data=None, parameters={"binary_data_size": 192})), "is missing"),
        (asking(tensor(data=["1"] * 48)), "not FP32"),
        (asking(tensor(data=[True] * 48)), "not FP32"),
        (asking(tensor(data=[*[0.5] * 47, None])), "not FP32"),
        (asking(tensor(data=[*[0.5] * 47, [1]])), "not FP32"),
        (asking(tensor(data=[0.5] * 48)).replace(b"0.5", b"NaN", 1), "NaN"),
        (asking(tensor(data=[0.5] * 48)).replace(b"0.5", b"-Infinity", 1), "Infinity"),
        (asking(tensor(data=[0.5] * 48)).replace(b"0.5", b"1e400", 1), "outside"),
        (asking(tensor(data=[0.5] * 48)).replace(b"0.5", b"-3.5e38", 1), "outside"),
        (asking(tensor(data=[0.5] * 48)).replace(b"0.5", HUGE.encode(), 1), "100 digits"),
        (asking(tensor(data=[10**39] * 48)), "outside"),
        (asking(tensor(name="pixels", datatype="UINT8", data=[256] * 48)), "outside"),
        (asking(tensor(name="pixels", datatype="UINT8", data=[1.5] * 48)), "not UINT8"),
        (asking(tensor(name="pixels", data=[255.5] * 48)), "outside of 0 to 255"),
        (asking(tensor(name="data", datatype="UINT8", data=[1] * 48)), "FP32, not"),
        (asking(tensor(**IMAGE, data=["!"])), "base64"),
        (asking(tensor(**IMAGE, data=["é"])), "base64"),
        (asking(tensor(**IMAGE, data=[7])), "base64"),
        (asking(tensor(**IMAGE, data=["R0lGODlh"])), "neither a JPEG nor a PNG"),
        (asking(tensor(**IMAGE, data=[])), "takes 1 values"),
    ],
)
def test_what_is_wrong_in_json_is_named(body, fault):
    with pytest.raises(Refused, match=fault) as refused:
        decode(body, None, MODEL)
    assert refused.value.status == 400
    assert len(str(refused.value)) < 250


NAMES = b",".join(b'"%d":0' % number for number in range(50_000))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"{%s,%s}" % (NAMES, b'"49999":0'), "'49999' twice"),
        (b'{"inputs":[%s]}' % b",".join([b"9" * 4000] * 10_000), "more than 100 digits"),
    ],
    ids=["names", "digits"],
)
def test_what_is_wrong_in_much_json_is_found_without_delay(body, fault):
    large = Interface("net", MODEL.classes, (3, 1000, 1000), "logits", max_batch=8)
    began = time.process_time()
    with pytest.raises(Refused, match=fault):
        decode(body, None, large)
    assert time.process_time() - began < 2  # seconds


@pytest.mark.parametrize(
    ("body", "json_size", "fault"),
    [
        (b"{}", 3, "has 2 bytes"),
        (*in_binary(VALUES.tobytes()[:-1]), "takes 192 bytes, but there are 191"),
        (*in_binary(VALUES.tobytes() * 2), "takes 192 bytes, but there are 384"),
        (*in_binary(NOT_FINITE.tobytes()), "not finite"),
        (in_binary(VALUES.tobytes())[0][:-1], in_binary(VALUES.tobytes())[1], "191 bytes follow"),
        (asking(tensor()) + b"1234", len(asking(tensor())), "4 bytes follow"),
        (*in_binary(b"1" * 192, parameters={"binary_data_size": -1}), "can't be -1"),
        (*in_binary(b"1" * 192, parameters={"binary_data_size": 192.0}), "can't be 192.0"),
        (*in_binary(b"1" * 192, parameters={"binary_data_size": True}), "can't be true"),
        (*in_binary(b"\1\0", **IMAGE), "end within the size"),
        (*in_binary(b"\5\0\0\0abcd", **IMAGE), "end within element 0"),
        (*in_binary(b"\xff\xff\xff\xff", **IMAGE), "end within element 0"),
        (*in_binary(b"\0\0\0\0" * 2, **IMAGE), "another number of elements"),
        (*in_binary(b"", **IMAGE), "another number of elements"),
        (*in_binary(b"\1\0\0\0x", **IMAGE), "neither a JPEG nor a PNG"),
    ],
)
def test_what_is_wrong_in_binary_is_named(body, json_size, fault):
    with pytest.raises(Refused, match=fault):
        decode(body, json_size, MODEL)


def test_a_body_is_the_image_that_its_type_says():
    for body, kind, fault in (
        (picture("PNG"), "image/jpeg", "is image/png"),
        (b"GIF89a", "image/png", "neither"),
        (b"", "image/png", "neither"),
    ):
        with pytest.raises(Refused, match=fault):
            decode_image_body(body, kind, MODEL)


# -- Answers ---------------------------------------------------------------------------------------

LOGITS = np.log(np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]], "float32"))


def answer_of(*outputs, logits=LOGITS, name=None):
    return encode(Request("data", VALUES, outputs, name), logits, MODEL)


def test_an_answer_in_json():
    outputs = map(Output, ("logits", "probabilities", "label"))
    body, json_size = answer_of(*outputs, name="né")
    assert json_size is None
    answer = json.loads(body)
    assert {key: answer[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "net",
        "model_version": "1",
        "id": "né",
    }
    logits, probabilities, label = answer["outputs"]
    assert (logits["shape"], logits["datatype"]) == ([2, 3], "FP32")
    assert (np.float32(logits["data"]) == LOGITS.ravel()).all()
    np.testing.assert_allclose(probabilities["data"], [0.2, 0.5, 0.3, 0.1, 0.2, 0.7], rtol=1e-6)
    assert label == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [2],
        "data": ["dog", "Füchsin"],
    }


def test_an_answer_in_binary():
    body, json_size = answer_of(
        Output("label", True), Output("probabilities"), Output("logits", True)
    )
    label, probabilities, logits = json.loads(body[:json_size])["outputs"]
    fox = "Füchsin".encode()
    strings = b"\3\0\0\0dog" + bytes([len(fox)]) + b"\0\0\0" + fox
    assert body[json_size:] == strings + LOGITS.tobytes()
    assert label["parameters"] == {"binary_data_size": len(strings)}
    assert logits["parameters"] == {"binary_data_size": 24}
    assert "data" in probabilities
    assert not {"data", "parameters"} <= set(logits)


def test_classification_is_written_as_triton_does():
    body, _ = answer_of(Output("probabilities", classification=2))
    (output,) = json.loads(body)["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == [
        "0.500000:1:dog",
        "0.300000:2:Füchsin",
        "0.700000:2:Füchsin",
        "0.200000:1:dog",
    ]


def test_large_logits_have_probabilities():
    body, _ = answer_of(Output("probabilities"), logits=LOGITS + np.float32(1e4))
    data = json.loads(body)["outputs"][0]["data"]
    np.testing.assert_allclose(data, [0.2, 0.5, 0.3, 0.1, 0.2, 0.7], rtol=1e-2)


def test_outputs_that_are_not_finite_are_no_answer():
    with pytest.raises(Refused, match="not finite"):
        answer_of(Output("label"), logits=np.float32([[np.nan, 1, 2]]))


def test_the_metadata_names_what_decode_and_encode_know():
    metadata = MODEL.metadata()
    assert metadata["inputs"] == [{"name": "data", "datatype": "FP32", "shape": [-1, 3, 2, 4]}]
    assert [output["name"] for output in metadata["outputs"]] == [
        "logits",
        "probabilities",
        "label",
    ]


@pytest.mark.parametrize(("opens", "closes"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["[]", "{}"])
def test_json_has_at_most_500_brackets_within_each_other(opens, closes):
    inner = b"[]" if opens == b"[" else b"{}"
    parse_json(499 * opens + inner + 499 * closes)
    with pytest.raises(Fault, match="nested too deeply"):
        parse_json(500 * opens + inner + 500 * closes)
