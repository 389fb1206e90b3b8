"""The MLServer runtime, in a real MLServer: clients that we did not write get what was trained."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.exports.export import export
from gluon_resnetv2.exports.mlserver_settings import settings_for
from gluon_resnetv2.net import get_model
from tests.common import difference, randomise
from tests.pictures import write_pictures

grpc = pytest.importorskip("grpc")
grpcclient = pytest.importorskip("tritonclient.grpc")
httpclient = pytest.importorskip("tritonclient.http")
service_pb2 = grpcclient.service_pb2
# MLServer and tritonclient define the same messages, so that no process can import both.
if not find_spec("mlserver"):
    pytest.skip("MLServer is not installed", allow_module_level=True)

TOLERANCE = 1e-5  # largest difference over largest logit
PATIENCE = 120  # seconds until the server has loaded the models
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
CLASSES = [f"class {index}" for index in range(10)]
RNG = np.random.RandomState(0)
PIXELS = RNG.randint(0, 256, (96, 3, 32, 32)).astype("uint8")
IMAGES = ((PIXELS - np.reshape(MEAN, (-1, 1, 1))) / np.reshape(STD, (-1, 1, 1))).astype("float32")


# What settings of exports up to 0.2 say.
EARLIER = {"name": "earlier", "implementation": "gluon_resnetv2.deploy.mlserver.Runtime"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, grey):
    """An export with MLServer's settings, and the logits that the network gives for `IMAGES`."""
    net = get_model("preact20")
    randomise(net)
    folder = tmp_path_factory.mktemp("mlserver") / "export"
    artifact = export(net, folder, (3, 32, 32), classes=CLASSES, mean=MEAN, std=STD)
    found = settings_for(artifact)
    for name, settings in found.items():
        (folder / name).write_text(json.dumps(settings))
    earlier = {**found["model-settings.json"], **EARLIER, "parameters": {"uri": str(folder)}}
    served = {**found["model-settings.json"], "name": "grey"}
    served["parameters"] = {"uri": str(grey.folder)}
    for settings in (earlier, served):
        (folder / settings["name"]).mkdir()
        (folder / settings["name"] / "model-settings.json").write_text(json.dumps(settings))
    return artifact, net(mx.nd.array(IMAGES)).asnumpy()


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """An export for images of one channel, which the same server has."""
    net = get_model("preact8", unit="basic", in_channels=1)
    randomise(net)
    about = {"classes": CLASSES, "mean": MEAN[:1], "std": STD[:1]}
    return export(net, tmp_path_factory.mktemp("grey") / "export", (1, 28, 28), **about)


@pytest.fixture(scope="module")
def logits(exported):
    return exported[1]


@pytest.fixture(scope="module")
def addresses(exported):
    """Where a server of the export listens, by protocol."""
    ports = {name: str(port) for name, port in zip(("HTTP", "GRPC", "METRICS"), free_ports(3))}
    environment = {
        **os.environ,
        **{f"MLSERVER_{name}_PORT": port for name, port in ports.items()},
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    folder = exported[0].folder
    with open(folder.parent / "log", "wb") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("mlserver")), "start", str(folder)],
            cwd=folder.parent,
            env=environment,
            stdout=log,
            stderr=log,
        )
    found = {name.lower(): f"127.0.0.1:{port}" for name, port in ports.items()}
    try:
        wait_until_ready(found["grpc"], server)
        yield found
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.wait()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_ready(address, server):
    deadline = time.monotonic() + PATIENCE
    with grpcclient.InferenceServerClient(address) as client:
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if all(map(client.is_model_ready, ("preact20", "earlier", "grey"))):
                    return
            except grpcclient.InferenceServerException:
                pass  # it does not listen yet
            time.sleep(0.2)
    raise AssertionError(f"MLServer is not ready; its status is {server.poll()}")


@pytest.fixture
def clients(addresses):
    """The two protocols' clients."""
    with Clients(addresses) as found:
        yield found


class Clients:
    """A client of each protocol; threads may not share them."""

    def __init__(self, addresses):
        self.of = {
            "grpc": grpcclient.InferenceServerClient(addresses["grpc"]),
            "http": httpclient.InferenceServerClient(addresses["http"]),
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.of.values():
            client.close()

    def infer(self, protocol, values, name="data", outputs=None, model="preact20"):
        """The answer for an array, by its client."""
        module = grpcclient if protocol == "grpc" else httpclient
        datatype = {"f": "FP32", "u": "UINT8", "O": "BYTES"}[values.dtype.kind]
        tensor = module.InferInput(name, values.shape, datatype)
        # MLServer knows no binary tensors over HTTP.
        tensor.set_data_from_numpy(values, **({} if protocol == "grpc" else {"binary_data": False}))
        return self.of[protocol].infer(model, [tensor], outputs=outputs)


def softmax(logits):
    return mx.nd.softmax(mx.nd.array(logits)).asnumpy()


PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http"])


@PROTOCOLS
@pytest.mark.parametrize("count", [1, 3, 64])
def test_a_client_gets_what_the_network_gives(clients, protocol, count, logits):
    answer = clients.infer(protocol, IMAGES[:count])
    assert difference(answer.as_numpy("logits"), logits[:count]) <= TOLERANCE
    assert difference(answer.as_numpy("probabilities"), softmax(logits[:count])) <= TOLERANCE
    labels = [
        str(label, "utf-8") if protocol == "grpc" else label for label in answer.as_numpy("label")
    ]
    assert labels == [CLASSES[index] for index in logits[:count].argmax(1)]


def test_settings_of_earlier_exports_are_served(clients, logits):
    answer = clients.infer("grpc", IMAGES[:3], model="earlier")
    assert difference(answer.as_numpy("logits"), logits[:3]) <= TOLERANCE


@PROTOCOLS
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixels_are_normalised(clients, protocol, dtype, logits):
    answer = clients.infer(protocol, PIXELS[:3].astype(dtype), "pixels")
    assert difference(answer.as_numpy("logits"), logits[:3]) <= TOLERANCE


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()


@PROTOCOLS
def test_image_files_are_read(clients, protocol, logits):
    files = [png(pixels) for pixels in PIXELS[:3]]
    if protocol == "http":
        files = [base64.b64encode(file) for file in files]
    answer = clients.infer(protocol, np.array(files, dtype=object), "image")
    assert difference(answer.as_numpy("logits"), logits[:3]) <= TOLERANCE


@PROTOCOLS
@pytest.mark.parametrize("model", ["preact20", "grey"])
def test_a_picture_in_any_encoding_has_the_scores_that_predict_gives_it(
    clients, protocol, model, exported, grey, tmp_path
):
    write_pictures(tmp_path)
    paths = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg")]
    assert len(paths) == 4 * 9
    predictor = Predictor(grey if model == "grey" else exported[0], max_batch=len(paths))
    pixels = np.stack([predictor.read(path) for path in paths])
    expected = predictor.run(predictor.prepare(pixels))
    files = [path.read_bytes() for path in paths]
    if protocol == "http":
        files = [base64.b64encode(file) for file in files]
    for values, name in ((np.array(files, dtype=object), "image"), (np.uint8(pixels), "pixels")):
        answer = clients.infer(protocol, values, name, model=model)
        assert difference(answer.as_numpy("logits"), expected) <= 1e-6


def test_outputs_are_chosen_and_classified(clients, logits):
    asked = [grpcclient.InferRequestedOutput("probabilities", class_count=2)]
    answer = clients.infer("grpc", IMAGES[:3], outputs=asked)
    assert answer.as_numpy("logits") is None
    found = [
        [text.decode().split(":", 2) for text in row] for row in answer.as_numpy("probabilities")
    ]
    best = np.argsort(-logits[:3], axis=1)[:, :2]
    assert [[int(index) for _, index, _ in row] for row in found] == best.tolist()
    assert [[label for *_, label in row] for row in found] == [
        [CLASSES[index] for index in row] for row in best
    ]


@PROTOCOLS
def test_the_model_describes_itself(clients, protocol):
    metadata = clients.of[protocol].get_model_metadata("preact20")
    if protocol == "grpc":
        inputs, outputs = (
            {t.name: list(t.shape) for t in ts} for ts in (metadata.inputs, metadata.outputs)
        )
    else:
        inputs, outputs = (
            {t["name"]: t["shape"] for t in metadata[k]} for k in ("inputs", "outputs")
        )
    assert inputs == {"data": [-1, 3, 32, 32]}
    assert outputs == {"logits": [-1, 10], "probabilities": [-1, 10], "label": [-1]}


def ask(addresses, logits, seed, requests):
    """Asks for images of random number and place, over gRPC or HTTP; returns the differences."""
    rng, found = np.random.RandomState(seed), []
    protocol = ("grpc", "http")[seed % 2]
    with Clients(addresses) as clients:
        for _ in range(requests):
            count = rng.choice([1, 1, 1, 2, 3, 5, 8, 17])
            start = rng.randint(len(IMAGES) - count + 1)
            part = slice(start, start + count)
            answer = clients.infer(protocol, IMAGES[part])
            found.append(difference(answer.as_numpy("logits"), logits[part]))
    return found


@pytest.mark.parametrize("requests", [20, pytest.param(625, marks=pytest.mark.slow)])
def test_sixteen_clients_get_their_own_answers(addresses, logits, requests):
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, addresses, logits, seed, requests) for seed in range(16)]
        found = [value for each in asked for value in each.result()]
    assert len(found) == 16 * requests
    assert max(found) <= TOLERANCE


def message(name="data", datatype="FP32", shape=(1, 3, 32, 32), outputs=(), raw=None, **contents):
    """A request over gRPC, that need not be right."""
    request = service_pb2.ModelInferRequest(model_name="preact20")
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    for output in outputs:
        request.outputs.add(name=output)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def floats(value=0.0, place=1234):
    values = np.zeros(3072, "float32")
    values[place] = value
    return values


TWO_INPUTS = message(fp32_contents=floats())
TWO_INPUTS.inputs.add().CopyFrom(TWO_INPUTS.inputs[0])
WRONG_MESSAGES = {
    "another input": (message("input", fp32_contents=floats()), "input"),
    "two inputs": (TWO_INPUTS, "one tensor"),
    "another datatype": (message(datatype="FP64", fp64_contents=floats()), "FP64"),
    "no datatype at all": (message(datatype="float", fp32_contents=floats()), "float"),
    "integers for floats": (message("data", "UINT8", uint_contents=[0] * 3072), "UINT8"),
    "floats for integers": (message("pixels", "UINT8", fp32_contents=floats(0.5)), "UINT8"),
    "strings for floats": (message(bytes_contents=[b"a"] * 3072), "FP32"),
    "pixels too large": (message("pixels", fp32_contents=floats(256)), "255"),
    "integers too large": (message("pixels", "UINT8", uint_contents=[256] * 3072), "UINT8"),
    "not a number": (message(fp32_contents=floats(np.nan)), "finite"),
    "infinity": (message(raw=floats(np.inf).tobytes()), "finite"),
    "too few values": (message(fp32_contents=floats()[1:]), "bytes"),
    "no values": (message(), "bytes"),
    "another shape": (message(shape=(1, 3, 32, 31), fp32_contents=floats()), "shape"),
    "no shape": (message(shape=(), fp32_contents=floats()), "shape"),
    "no images": (message(shape=(0, 3, 32, 32), fp32_contents=[]), "batch"),
    "negative images": (message(shape=(-1, 3, 32, 32), fp32_contents=floats()), "batch"),
    "images beyond measure": (message(shape=(2**62, 3, 32, 32), fp32_contents=floats()), "batch"),
    "an unknown output": (message(fp32_contents=floats(), outputs=["nope"]), "nope"),
    "no image file": (message("image", "BYTES", (1,), bytes_contents=[b"text"]), "image"),
    "a broken image": (message("image", "BYTES", (1,), bytes_contents=[png(PIXELS[0])[:500]]), ""),
    "two files for one": (message("image", "BYTES", (1,), bytes_contents=[png(PIXELS[0])] * 2), ""),
}
# MLServer's own conversion meets these, before the runtime is asked.
UNREADABLE = {
    "bytes too few": message(raw=floats().tobytes()[:-1]),
    "bytes beyond measure": message(shape=(2**40, 3, 32, 32), raw=floats().tobytes()),
    "bytes of no datatype": message(datatype="float", raw=floats().tobytes()),
    "strings cut off": message("image", "BYTES", (1,), raw=b"\xff\xff\xff\x7fabc"),
}


def tensor(data, **changes):
    """A request over HTTP, that need not be right."""
    described = {"name": "data", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": data}
    return json.dumps({"inputs": [{**described, **changes}]}).encode()


DEEP = b"[" * 500 + b"]" * 500
WRONG_BODIES = {
    "no JSON": (b"data", 422),
    "nothing asked": (b"{}", 422),
    "no list": (tensor("zeros"), 400),
    "no values": (tensor(None), 400),
    "an object": (tensor({"a": 1}), 400),
    "strings": (tensor(["0"] * 3072), 400),
    "nulls": (tensor([None] * 3072), 400),
    "truths": (tensor([True] * 3072), 400),
    "beyond float32": (tensor([1e300] * 3072), 400),
    "beyond any integer": (tensor([2**63] * 3072, name="pixels", datatype="UINT8"), 400),
    "nested otherwise": (tensor(np.zeros((3, 32, 32, 1)).tolist()), 400),
    "ragged": (tensor([[0.0] * 3071, [0.0]]), 400),
    "deep": (tensor(0).replace(b'"data": 0', b'"data": ' + DEEP), 400),
    "no base64": (tensor(["?"], name="image", datatype="BYTES", shape=[1]), 400),
    "a fraction of an image": (tensor([0.0] * 3072, shape=[0.5, 3, 32, 32]), 422),
}


def post(address, body):
    """The status and message of what an HTTP request with `body` is answered."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}/v2/models/preact20/infer", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def test_what_is_wrong_is_refused_and_its_neighbours_are_not_hurt(addresses, logits):
    failures = []
    with ThreadPoolExecutor(4) as pool, grpc.insecure_channel(addresses["grpc"]) as channel:
        neighbours = [pool.submit(ask, addresses, logits, seed, 40) for seed in range(4)]
        for name, (request, part) in WRONG_MESSAGES.items():
            code, details = refusal(channel, request)
            if code != "INVALID_ARGUMENT" or part not in details or "\n" in details:
                failures.append((name, code, details))
        for name, request in UNREADABLE.items():
            code, details = refusal(channel, request)
            if code != "INTERNAL":
                failures.append((name, code, details))
        for name, (body, expected) in WRONG_BODIES.items():
            status, answer = post(addresses["http"], body)
            if status != expected:
                failures.append((name, status, answer))
        found = [value for each in neighbours for value in each.result()]
    assert failures == []
    assert len(found) == 160
    assert max(found) <= TOLERANCE


def refusal(channel, request):
    """The status code and details with which a message is refused."""
    try:
        grpcclient.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def test_the_settings_keep_mlservers_batching_off_and_it_to_this_machine(exported):
    settings = settings_for(exported[0])
    assert settings["model-settings.json"]["max_batch_size"] == 0
    assert settings["settings.json"]["host"] == "127.0.0.1"
    assert settings["settings.json"]["grpc_max_message_length"] > IMAGES[:64].nbytes


OVERLOADED = """
import asyncio, sys
from gluon_resnetv2.serving.batching import Full
from gluon_resnetv2.serving.mlserver import Runtime
from mlserver.errors import MLServerError
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest

class Busy:
    def submit_async(self, images):
        raise Full(f"{len(images)} more than can wait")

async def predict():
    runtime = Runtime(ModelSettings.parse_file(sys.argv[1]))
    await runtime.load()
    await runtime.unload()
    runtime._model.batcher = Busy()
    return await runtime.predict(InferenceRequest.model_validate_json(sys.stdin.read()))

try:
    print(asyncio.run(predict()))
except MLServerError as error:
    print(error.status_code, error)
"""


def test_too_many_waiting_images_are_answered_with_503(exported):
    done = subprocess.run(
        [sys.executable, "-c", OVERLOADED, str(exported[0].folder / "model-settings.json")],
        cwd=Path(__file__).parents[1],
        input=tensor([0.0] * 3072),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"503 1 more than can wait\n"
