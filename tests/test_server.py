"""The server, asked by clients that are not ours, by our own malformed requests, and under load."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import gzip
import http.client
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import cli
from gluon_resnetv2.commands import serve as server
from gluon_resnetv2.engines import choice, runners
from gluon_resnetv2.engines import predictor as predictor_module
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.serving import http_server
from gluon_resnetv2.serving import service as service_module
from gluon_resnetv2.serving.hosts import Hosts
from gluon_resnetv2.spec import named
from tests import common, fuzzed, malformed
from tests.common import randomise, resident
from tests.hostile_images import encoded, parts, scans
from tests.malformed import answer_of, request

triton = pytest.importorskip("tritonclient.http", exc_type=ImportError)

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (3, 16, 16)
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
CLASSES = [f"class {i}" for i in range(10)]
TOLERANCE = 1e-5  # relative to the largest
PATIENCE = 60  # seconds
LIMITS = {"body": 8 * 2**20, "memory": 64 * 2**20, "queue": 1024, "seconds": PATIENCE}


@pytest.fixture(scope="module")
def net():
    net = ResNetV2(named("preact8", unit="basic"))
    randomise(net)
    return net


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "export"
    export(net, folder, SHAPE, classes=CLASSES, mean=MEAN, std=STD)
    return folder


class InThread(http_server.Uvicorn):
    """Told to stop by another thread: signals are the main one's."""

    @contextlib.contextmanager
    def capture_signals(self):
        self.loop = asyncio.get_running_loop()
        yield

    def stop_soon(self):
        self.loop.call_soon_threadsafe(self.stop)


@contextlib.contextmanager
def serving(predictors, page=False, batching=True, loop="auto", hosts=None, **limits):
    """A server in a thread; gives its port, its service and itself."""
    limits = service_module.Limits(**{**LIMITS, **limits})
    metrics = service_module.Metrics()
    models = {
        name: service_module.Model(name, predictor, metrics, limits.queue, batching)
        for name, predictor in predictors.items()
    }
    service = service_module.Service(models, limits, metrics, page, hosts)
    listener = server._listener("127.0.0.1", 0)
    listener.listen()
    uvicorn = InThread(service)
    uvicorn.config.loop = loop
    thread = threading.Thread(target=uvicorn.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1], service, uvicorn
    finally:
        uvicorn.should_exit = True
        thread.join(PATIENCE)
        service.close()


@pytest.fixture(scope="module")
def port(folder):
    with serving({"net": Predictor(load(folder))}) as (port, *_):
        yield port


class Gated:
    """In a predictor's place: its logits are the first numbers of each image, once it may go on."""

    name, classes, shape, output, max_batch = "gated", CLASSES, SHAPE, "logits", 4
    form, prepares = "none", True

    def __init__(self, free=False):
        self.started, self.go = threading.Semaphore(0), threading.Event()
        if free:
            self.go.set()

    def run(self, inputs):
        self.started.release()
        assert self.go.wait(PATIENCE)
        return inputs.reshape(len(inputs), -1)[:, : len(CLASSES)].copy()

    def prepare(self, pixels):
        return np.float32(pixels)

    def read(self, file):
        raise UserError("no images here")


def one(fill=0.0):
    """An infer request for one image, in JSON."""
    data = [fill] * int(np.prod(SHAPE))
    tensor = {"name": "data", "datatype": "FP32", "shape": [1, *SHAPE], "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def png(pixels):
    """A file of (C, H, W) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def until(condition):
    """Waits until it holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def ask(port, path, body=None, headers=None, method=None):
    method = method or ("GET" if body is None else "POST")
    raw = request(path, {"Connection": "close", **(headers or {})}, body or b"", method)
    status, headers, body = answer_of(port, raw)
    return status, headers, json.loads(body)


def infer(port, body, model="net", **headers):
    return ask(port, f"/v2/models/{model}/infer", body, headers)


@contextlib.contextmanager
def triton_client(port):
    client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=PATIENCE)
    try:
        yield client
    finally:
        client.close()


# -- A client that is not ours ---------------------------------------------------------------------


def logits_of(net, images):
    return net(mx.nd.array(images)).asnumpy()


def triton_infer(client, images, binary_in=True, binary_out=True, output="logits"):
    tensor = triton.InferInput("data", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary_in)
    asked = [triton.InferRequestedOutput(output, binary_data=binary_out)]
    return client.infer("net", [tensor], outputs=asked).as_numpy(output)


def difference(found, expected):
    assert found.dtype == np.float32
    return common.difference(found, expected)


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "JSON out"])
def test_tritonclient_gets_what_the_training_graph_gives(port, net, binary_in, binary_out):
    with triton_client(port) as client:
        for count in (1, 3, 64):
            images = np.random.RandomState(count).normal(size=(count, *SHAPE)).astype("float32")
            found = triton_infer(client, images, binary_in, binary_out)
            assert difference(found, logits_of(net, images)) <= TOLERANCE


def concurrent_clients(port, net, requests, clients=16, seed=0):
    """How many answers `clients` of tritonclient's got to so many requests; largest difference."""
    images = np.random.RandomState(seed).normal(size=(256, *SHAPE)).astype("float32")
    expected = logits_of(net, images)

    def client(number):
        rng, worst, answers = np.random.RandomState(seed + number), 0.0, 0
        with triton_client(port) as one_client:
            for _ in range(number, requests, clients):
                count = int(rng.choice([1, 1, 1, 2, 3, 5, 8, 17, 64]))
                start = rng.randint(len(images) - count + 1)
                part = slice(start, start + count)
                modes = rng.randint(2, size=2) if count < 8 else (1, 1)
                found = triton_infer(one_client, images[part], bool(modes[0]), bool(modes[1]))
                worst = max(worst, difference(found, expected[part]))
                answers += 1
        return answers, worst

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers, worst = zip(*pool.map(client, range(clients)))
    return sum(answers), max(worst)


def test_concurrent_clients_with_mixed_sizes_each_get_their_own(port, net):
    answers, worst = concurrent_clients(port, net, 320)
    assert answers == 320
    assert worst <= TOLERANCE


@pytest.mark.slow  # two minutes
def test_of_ten_thousand_requests_none_is_wrong_and_none_lost(port, net):
    answers, worst = concurrent_clients(port, net, 10_000, seed=1)
    assert answers == 10_000
    assert worst <= TOLERANCE


def test_tritonclient_finds_the_server_and_its_models(port):
    with triton_client(port) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("net")
        assert client.is_model_ready("net", "1")
        assert not client.is_model_ready("other")
        assert not client.is_model_ready("net", "2")
        assert client.get_server_metadata()["name"] == "gluon_resnetv2"
        metadata = client.get_model_metadata("net", "1")
        assert metadata["inputs"] == [{"name": "data", "datatype": "FP32", "shape": [-1, *SHAPE]}]
        (model,) = client.get_model_repository_index()
        assert (model["name"], model["state"]) == ("net", "READY")


def test_tritonclient_gets_classes_labels_and_its_id_back(port, net):
    images = np.random.RandomState(0).normal(size=(2, *SHAPE)).astype("float32")
    logits = logits_of(net, images)
    tensor = triton.InferInput("data", [2, *SHAPE], "FP32")
    tensor.set_data_from_numpy(images)
    asked = [
        triton.InferRequestedOutput("logits", class_count=3),
        triton.InferRequestedOutput("label"),
    ]
    with triton_client(port) as client:
        answer = client.infer("net", [tensor], outputs=asked, request_id="seven")
        everything = client.infer("net", [tensor])
        with pytest.raises(triton.InferenceServerException, match="no output"):
            triton_infer(client, images, output="logit")
    assert answer.get_response()["id"] == "seven"
    assert answer.as_numpy("label").tolist() == [CLASSES[i].encode() for i in logits.argmax(1)]
    for row, expected in zip(answer.as_numpy("logits"), logits):
        best = np.argsort(-expected)[:3]
        assert [line.split(b":")[1:] for line in row] == [
            [str(i).encode(), CLASSES[i].encode()] for i in best
        ]
        np.testing.assert_allclose(
            [float(line.split(b":")[0]) for line in row], expected[best], atol=1e-4
        )
    for name in ("logits", "probabilities", "label"):
        assert len(everything.as_numpy(name)) == 2
    np.testing.assert_allclose(everything.as_numpy("probabilities").sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["image/jpeg", "image/jpg", "IMAGE/JPG; q=1"])
def test_a_jpeg_by_any_of_its_names(port, name):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    assert infer(port, file.getvalue(), **{"Content-Type": name})[0] == 200
    status, _, answer = infer(port, png(np.zeros(SHAPE, "uint8")), **{"Content-Type": name})
    assert status == 400
    assert "not image/jpeg" in answer["error"]


MLSERVER_DUMPS = """
import json, sys, warnings
from mlserver.types import InferenceRequest, RequestInput

warnings.simplefilter("ignore")  # MLServer's documentation has the deprecated `dict`
shape = json.loads(sys.argv[1])
data = [0.0] * (shape[1] * shape[2] * shape[3])
tensor = RequestInput(name="data", shape=shape, datatype="FP32", data=data)
request = InferenceRequest(inputs=[tensor])
print(json.dumps([request.model_dump_json(), json.dumps(request.dict())]))
"""


def test_mlserver_types_are_taken_as_they_are_dumped(port):
    if not importlib.util.find_spec("mlserver"):
        pytest.skip("MLServer is not installed")
    # In a process of its own: one process can't hold both MLServer and tritonclient.grpc.
    command = [sys.executable, "-W", "ignore", "-c", MLSERVER_DUMPS, json.dumps([1, *SHAPE])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    plain, with_null = json.loads(done.stdout.splitlines()[-1])
    assert '"parameters": null' in with_null
    for body in (plain, with_null):
        assert infer(port, body.encode())[0] == 200


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_tritonclient_packs_what_it_sends(port, net, packed):
    images = np.random.RandomState(0).normal(size=(32, *SHAPE)).astype("float32")
    for binary in (True, False):
        tensor = triton.InferInput("data", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images, binary_data=binary)
        with triton_client(port) as client:
            answer = client.infer(
                "net",
                [tensor],
                request_compression_algorithm=packed,
                response_compression_algorithm=packed,
            )
        assert difference(answer.as_numpy("logits"), logits_of(net, images)) <= TOLERANCE


def test_tritonclient_asks_for_configuration_and_statistics():
    with serving({"net": Gated(free=True)}) as (port, *_), triton_client(port) as client:
        config = client.get_model_config("net")
        assert config["max_batch_size"] == 4
        assert config["input"] == [{"name": "data", "data_type": "TYPE_FP32", "dims": [*SHAPE]}]
        assert [(each["name"], each["dims"]) for each in config["output"]] == [
            ("logits", [len(CLASSES)]),
            ("probabilities", [len(CLASSES)]),
            ("label", [1]),
        ]
        triton_infer(client, np.zeros((3, *SHAPE), "float32"))
        triton_infer(client, np.zeros((1, *SHAPE), "float32"))
        assert infer(port, b"{}")[0] == 400
        (stats,) = client.get_inference_statistics("net")["model_stats"]
        assert client.get_inference_statistics() == {"model_stats": [stats]}
    assert (stats["inference_count"], stats["execution_count"]) == (4, 2)
    assert stats["inference_stats"]["success"]["count"] == 2
    assert stats["inference_stats"]["fail"]["count"] == 1
    assert stats["inference_stats"]["success"]["ns"] > 0


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(one()), 200),
        ("X-GZip", gzip.compress(one()), 200),
        ("deflate", zlib.compress(one()), 200),
        ("identity", one(), 200),
        ("br", one(), 415),
        ("gzip, gzip", gzip.compress(one()), 415),
        ("gzip", one(), 400),
        ("gzip", gzip.compress(one())[:-1], 400),
        ("gzip", gzip.compress(one()) + b"x", 400),
        ("gzip", b"", 400),
        ("deflate", gzip.compress(one()), 400),
        ("gzip", gzip.compress(one() + b" " * (10**6 - len(one()))), 200),
        ("gzip", gzip.compress(one() + b" " * (10**6 + 1 - len(one()))), 413),
        ("gzip", gzip.compress(bytes(10**8)), 413),
    ],
    # gzip's header holds the time, and every worker has to collect the same names.
    ids=lambda value: len(value) if isinstance(value, bytes) else str(value),
)
def test_packed_bodies_are_counted_while_they_are_unpacked(encoding, body, status):
    with serving({"net": Gated(free=True)}, body=10**6, memory=2 * 10**6) as (port, service, _):
        found, _, answer = infer(port, body, **{"Content-Encoding": encoding})
        assert found == status, answer
        assert service.infer._memory == 0


def test_pixels_and_image_files_are_normalised_as_in_training(port, net):
    pixels = np.random.RandomState(0).randint(0, 256, (2, *SHAPE), dtype="uint8")
    mean, std = (np.reshape(each, (3, 1, 1)) for each in (MEAN, STD))
    expected = logits_of(net, ((pixels - mean) / std).astype("float32"))
    pngs = [png(each) for each in pixels]
    with triton_client(port) as client:
        for name, datatype, value in (
            ("pixels", "UINT8", pixels),
            ("pixels", "FP32", np.float32(pixels)),
            ("image", "BYTES", np.array(pngs, "object")),
        ):
            tensor = triton.InferInput(name, list(value.shape), datatype)
            tensor.set_data_from_numpy(value)
            found = client.infer("net", [tensor]).as_numpy("logits")
            assert difference(found, expected) <= TOLERANCE
    coded = [base64.b64encode(file).decode() for file in pngs]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": coded}
    for body, headers, rows in (
        (json.dumps({"inputs": [tensor]}).encode(), {}, expected),
        (pngs[1], {"Content-Type": "image/png"}, expected[1:]),
    ):
        status, _, answer = infer(port, body, **headers)
        assert status == 200
        logits = next(each for each in answer["outputs"] if each["name"] == "logits")
        assert difference(np.float32(logits["data"]).reshape(rows.shape), rows) <= TOLERANCE


def test_a_pair_without_manifest_takes_what_its_graph_takes(folder, net, tmp_path):
    shutil.copytree(folder, tmp_path / "pair")
    (tmp_path / "pair" / "manifest.json").unlink()
    bare = Predictor(load(tmp_path / "pair"), shape=SHAPE)
    pixels = np.zeros((1, *SHAPE), "uint8")
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, *SHAPE]}
    tensor["data"] = pixels.ravel().tolist()
    with serving({"net": bare, "whole": Predictor(load(folder))}) as (port, *_):
        with triton_client(port) as client:
            images = np.random.RandomState(0).normal(size=(2, *SHAPE)).astype("float32")
            assert difference(triton_infer(client, images), logits_of(net, images)) <= TOLERANCE
        for body, headers in (
            (json.dumps({"inputs": [tensor]}).encode(), {}),
            (png(pixels[0]), {"Content-Type": "image/png"}),
        ):
            status, _, answer = infer(port, body, **headers)
            assert status == 400
            assert "no manifest.json" in answer["error"]
            assert infer(port, body, "whole", **headers)[0] == 200
        inputs = {
            name: ask(port, f"/v2/models/{name}")[2]["parameters"]["inputs"]
            for name in ("net", "whole")
        }
    assert inputs == {"net": ["data"], "whole": ["data", "pixels", "image"]}


# -- What is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """The port and the process of `serve`, as it is started by its users; `log` is what it says."""
    limit, log = malformed.BODY_LIMIT / 2**20, tmp_path_factory.mktemp("served") / "log"
    options = ("--body-limit", str(limit), "--page", f"net={folder}")
    with open(log, "wb") as errors, process(*options, errors=errors) as (port, started):
        started.log = log
        yield port, started


@contextlib.contextmanager
def process(*options, errors=None):
    command = [sys.executable, "-m", "gluon_resnetv2", "serve", "--port", "0", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as started:
        try:
            line = started.stdout.readline()
            yield int(re.search(r"http://127.0.0.1:(\d+)", line)[1]), started
        finally:
            started.kill()


def refuse_malformed(served, net, seed, count):
    """Sends malformed requests four at a time, with good ones between."""
    port, started = served
    images = np.random.RandomState(seed).normal(size=(3, *SHAPE)).astype("float32")
    expected = logits_of(net, images)
    stop, wrong = threading.Event(), []

    def good():
        with triton_client(port) as client:
            while not stop.is_set():
                wrong.append(difference(triton_infer(client, images), expected) > TOLERANCE)

    def bad(case):
        return malformed.fault_of(port, *case)

    neighbour = threading.Thread(target=good)
    neighbour.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            faults = [fault for fault in pool.map(bad, malformed.malformed(seed, count)) if fault]
    finally:
        stop.set()
        neighbour.join(PATIENCE)
    assert not faults, "\n".join(faults[:20])
    assert wrong
    assert not any(wrong)
    assert started.poll() is None


def test_malformed_requests_are_told_what_is_wrong_and_harm_nobody(served, net):
    refuse_malformed(served, net, 0, 8 * len(malformed.KINDS))


@pytest.mark.slow  # two minutes
def test_ten_thousand_malformed_requests_leave_no_trace(served, net):
    refuse_malformed(served, net, 1, 500)
    before = resident(served[1].pid)
    refuse_malformed(served, net, 2, 10_000)
    after = resident(served[1].pid)
    print(f"{before:.0f} MB before, {after:.0f} MB after 10 000 malformed requests")
    assert after < 1.1 * before


def take_fuzzed(served, net, seed, count, batch=200):
    """Sends what `fuzzed` makes, two at a time, and after each batch what has to be answered."""
    port, started = served
    image = np.random.RandomState(seed).normal(size=(1, *SHAPE)).astype("float32")
    raw = request(*malformed.in_binary(np.random, image.tobytes(), shape=[1, *SHAPE]))
    answer = answer_of(port, raw)[2]
    logits = np.float32([json.loads(answer)["outputs"][0]["data"]])
    assert difference(logits, logits_of(net, image)) <= TOLERANCE
    sent = fuzzed.fuzzed(seed, count)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        while some := list(itertools.islice(sent, batch)):
            faults = pool.map(lambda raw: fuzzed.fault_of(port, raw), some)
            assert not (found := list(filter(None, faults))), "\n".join(found)
            status, _, body = answer_of(port, raw, timeout=10)
            assert (status, body) == (200, answer)
    assert started.poll() is None
    assert started.log.read_text() == ""
    assert resident(started.pid) < 1000


def test_whatever_comes_is_answered_and_harms_nobody(served, net):
    take_fuzzed(served, net, 0, 600)


@pytest.mark.slow  # minutes
def test_whatever_comes_twenty_thousand_times(served, net):
    take_fuzzed(served, net, 1, 20_000)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/", 200),
        ("GET", "/v2/models/other/config", 404),
        ("GET", "/v2/models/net/versions/1/stats", 200),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/net/versions/2", 404),
        ("GET", "/v2/models/net/versions/2/ready", 404),
        ("GET", "/v2/models/net/infer", 405),
        ("POST", "/v2/models/net", 405),
        ("DELETE", "/v2/models/net", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/models/net/versions/1", 200),
        ("GET", "/v2/models/net/versions/1/ready", 200),
        ("POST", "/v2/models/net/versions/2/infer", 404),
        ("POST", "/v2/models/net/versions/1/infer", 400),
    ],
)
def test_paths_and_methods(port, method, path, status):
    found, headers, answer = ask(port, path, b"", method=method)
    assert found == status
    assert headers["content-type"] == "application/json"
    assert ("error" in answer) == (status != 200)


PROXIED = ("Cats.example", "fd00::7")


@pytest.mark.parametrize(
    ("names", "address", "host", "origin", "status"),
    [
        ((), "127.0.0.1", "localhost:80", None, 200),
        ((), "127.0.0.1", "LocalHost.", None, 200),
        ((), "127.0.0.1", "127.0.0.1:PORT", None, 200),
        ((), "::1", "[::1]:PORT", None, 200),
        ((), "127.0.0.1", "evil.example", None, 403),
        ((), "127.0.0.1", "localhost.evil.example", None, 403),
        ((), "127.0.0.1", "evil@localhost", None, 403),
        ((), "127.0.0.1", "", None, 403),
        ((), "127.0.0.1", "[", None, 403),
        ((), "0.0.0.0", "evil.example", None, 200),
        (PROXIED, "0.0.0.0", "evil.example", None, 403),
        (PROXIED, "0.0.0.0", "cats.example:8080", None, 200),
        (PROXIED, "::", "[FD00::7]", None, 200),
        (PROXIED, "10.0.0.1", "127.0.0.1", None, 200),  # here, as a health check is sent
        ((), "127.0.0.1", "localhost:PORT", "http://localhost:PORT", 200),
        ((), "127.0.0.1", "localhost:PORT", "http://localhost:1", 403),
        ((), "127.0.0.1", "localhost:PORT", "http://127.0.0.1:PORT", 403),
        ((), "127.0.0.1", "localhost:PORT", "null", 403),
        ((), "127.0.0.1", "localhost:PORT", "", 403),
        ((), "0.0.0.0", "cats.example", "https://cats.example", 200),
        ((), "0.0.0.0", "cats.example:443", "https://cats.example", 200),
        ((), "0.0.0.0", "cats.example:80", "https://cats.example", 403),
        ((), "0.0.0.0", "cats.example", "https://evil.example", 403),
        (PROXIED, "127.0.0.1", "localhost:PORT", "https://cats.example", 200),
    ],
)
def test_what_a_browser_was_not_told_by_its_user_is_refused(names, address, host, origin, status):
    hosts = Hosts(names, address)
    with serving({"net": Gated(free=True)}, page=True, hosts=hosts) as (port, *_):
        headers = {"Host": host, **({} if origin is None else {"Origin": origin})}
        headers = {name: value.replace("PORT", str(port)) for name, value in headers.items()}
        found, _, answer = infer(port, one(), **headers)
        assert found == status
        if status != 200:
            assert re.search("^(Host|Origin) .*--allow-host", answer["error"])
        assert answer_of(port, request("/", headers, b"", "GET"))[0] == status


def test_a_request_has_one_host():
    with serving({"net": Gated(free=True)}) as (port, *_):
        assert statuses_of(port, LAST.replace(b"Host:", b"Host: x\r\nHost:")) == [400]
        assert statuses_of(port, b"GET /v2 HTTP/1.0\r\n\r\n") == [200]


def test_on_loopback_other_hosts_are_refused(served):
    for host, status in (("localhost", 200), ("evil.example", 403)):
        assert ask(served[0], "/v2", headers={"Host": host})[0] == status


BOMB = """
from gluon_resnetv2.engines import images
from gluon_resnetv2.serving import service
from gluon_resnetv2.errors import UserError
from tests.malformed import png
import io
try:
    images.read_image(io.BytesIO(png(10_000, 10_000, b"")), (3, 8, 8))
except UserError as error:
    print(error)
"""


def test_bombs_do_not_fill_the_log():
    done = subprocess.run([sys.executable, "-c", BOMB], cwd=ROOT, capture_output=True, text=True)
    assert "more pixels" in done.stdout
    assert done.stderr == ""


def test_a_body_over_the_limit_is_not_read_on():
    with serving({"net": Gated(free=True)}, body=10_000) as (port, *_):
        declared = (
            b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
        )
        status, headers, _ = answer_of(port, declared)
        assert (status, headers["connection"]) == (413, "close")
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(
                declared.replace(b"Content-Length: 999999", b"Transfer-Encoding: chunked")
            )
            with contextlib.suppress(OSError):  # the server ends what never would
                for _ in range(10_000):
                    connection.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")
            answer = b""
            with contextlib.suppress(OSError):
                answer = connection.recv(4096)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
        assert infer(port, b"{}")[0] == 400


def test_a_body_that_dribbles_in_is_given_up():
    with serving({"net": Gated(free=True)}, seconds=0.5) as (port, *_):
        unfinished = request("/v2/models/net/infer", {"Content-Length": "100"}, b"{")
        status, headers, body = answer_of(port, unfinished)
        assert (status, headers["connection"]) == (408, "close")
        assert "0.5 seconds" in json.loads(body)["error"]


def test_a_head_that_is_slow_or_large_is_given_up(monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.5)
    with serving({"net": Gated(free=True)}) as (port, *_):
        for head, status in (
            (b"", 408),
            (b"POST /v2/models/net/infer HTTP/1.1\r\nHost:", 408),
            (b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
            (b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
            (b"nonsense\r\n\r\n", 400),
        ):
            found, _, body = answer_of(port, head)
            assert found == status
            assert "error" in json.loads(body)
        assert infer(port, one())[0] == 200


@pytest.mark.parametrize(
    "second",
    [
        b"GET /v2 HTTP/1.1\r\nHost:",
        b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 70_000,
        b"nonsense\r\n\r\n",
    ],
    ids=["slow", "large", "nonsense"],
)
def test_a_head_that_is_given_up_leaves_the_answer_before_it_alone(monkeypatch, second):
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.5)
    gated = Gated()
    with serving({"net": gated}) as (port, *_):
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        connection.sendall(request("/v2/models/net/infer", {}, one(5)))
        assert gated.started.acquire(timeout=PATIENCE)
        connection.sendall(second)
        time.sleep(1)  # in which it is given up
        gated.go.set()
        received = b""
        while part := connection.recv(65536):
            received += part
        connection.close()
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(body)["outputs"][0]["data"] == [5.0] * len(CLASSES)


def test_a_body_that_breaks_off_its_chunks_is_given_up_at_once():
    with serving({"net": Gated(free=True)}) as (port, *_):
        raw = request("/v2/models/net/infer", {"Transfer-Encoding": "chunked"}, b"5\r\nhello!!!")
        assert answer_of(port, raw)[0] == 400


def statuses_of(port, *packets, half_close=False):
    """Sends packets over one connection, and gives the status of each answer until it ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in packets:
            connection.sendall(packet)
            time.sleep(0.05)  # for it to arrive alone
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)]


UPGRADE = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAA"}
LAST = request("/v2", {"Connection": "close"}, b"", "GET")


@pytest.mark.parametrize("place", [None, b"rade: h2c", b"\n{", b'"inputs'])
def test_a_body_is_read_whatever_protocol_its_sender_would_rather_speak(place):
    raw = request("/v2/models/net/infer", UPGRADE, one(3))
    split = raw.index(place) if place else 0
    with serving({"net": Gated(free=True)}) as (port, *_):
        assert statuses_of(port, raw[:split], raw[split:] + LAST) == [200, 200]
        body = answer_of(port, raw)[2]
    assert json.loads(body)["outputs"][0]["data"] == [3.0] * len(CLASSES)


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_no_body_is_run_as_a_request(chunked):
    hidden = request("/v2/hidden", {}, b"", "GET")
    body, headers = hidden, UPGRADE
    if chunked:
        trailers = b"Upgrade: h2c\r\nConnection: upgrade\r\nX: y\r\n"
        body = b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(hidden), hidden, trailers)
        headers = {**UPGRADE, "Transfer-Encoding": "chunked"}
    raw = request("/v2/models/net/infer", headers, body)
    with serving({"net": Gated(free=True)}) as (port, *_):
        assert statuses_of(port, raw + raw + LAST) == [400, 400, 200]
        assert statuses_of(port, raw, raw, LAST) == [400, 400, 200]


def test_an_upgrade_that_trails_its_body_is_not_looked_at():
    trailers = b"Upgrade: h2c\r\nX: y\r\n"
    headers = {"Connection": "upgrade", "Transfer-Encoding": "chunked"}
    raw = request("/v2/models/net/infer", headers, b"2\r\n{}\r\n0\r\n%s\r\n" % trailers)
    with serving({"net": Gated(free=True)}) as (port, *_):
        assert statuses_of(port, raw + LAST) == [400, 200]


def test_many_requests_at_once_that_would_upgrade():
    raw = b"GET /v2 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    with serving({"net": Gated(free=True)}) as (port, *_):
        assert statuses_of(port, raw * 1500 + LAST) == [200] * 1501


@pytest.mark.parametrize("target", ["localhost:80", "/v2"])
def test_a_tunnel_is_not_built(target):
    raw = request(target, {}, b"", "CONNECT")
    with serving({"net": Gated(free=True)}) as (port, *_):
        assert statuses_of(port, raw + LAST) == [400]


def test_a_client_that_has_said_all_is_answered():
    gated = Gated()
    raw = request("/v2/models/net/infer", {}, one())
    with serving({"net": gated}, seconds=5) as (port, _, uvicorn):
        threading.Timer(0.5, gated.go.set).start()
        assert statuses_of(port, raw, half_close=True) == [200]
        assert statuses_of(port, raw + raw, half_close=True) == [200, 200]
        assert statuses_of(port, raw[:-1], half_close=True) == []
        assert statuses_of(port, raw + raw[:-1], half_close=True) == [200]
        assert statuses_of(port, raw + raw[:20], half_close=True) == [200]
        assert statuses_of(port, half_close=True) == []
        until(lambda: not uvicorn.server_state.connections)


def test_a_request_that_breaks_off_leaves_the_answer_before_it_alone():
    gated, raw = Gated(), request("/v2/models/net/infer", {}, one())
    with serving({"net": gated}) as (port, _, uvicorn):
        threading.Timer(0.5, gated.go.set).start()
        head = raw[: raw.index(b"\r\n\r\n") + 4]
        assert statuses_of(port, raw + head, half_close=True) == [200]
        until(lambda: not uvicorn.server_state.connections)


def connected(port, raw):
    """A connection over which bytes have been sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(raw)
    return connection


def test_where_connections_are_too_many_the_one_that_waits_longest_goes(monkeypatch):
    monkeypatch.setattr(http_server, "CONNECTIONS", 3)
    gated = Gated()
    whole = request("/v2", {}, b"", "GET")
    promised = request("/v2/models/net/infer", {"Content-Length": "100"}, b"{")
    with serving({"net": gated}) as (port, *_), contextlib.ExitStack() as stack:

        def opened(raw):
            return stack.enter_context(connected(port, raw))

        working = opened(request("/v2/models/net/infer", {}, one()))
        assert gated.started.acquire(timeout=PATIENCE)
        idle = opened(whole)
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        uploading = opened(promised)
        assert statuses_of(port, LAST) == [200]
        assert idle.recv(4096) == b""
        last = opened(whole)
        assert last.recv(4096).startswith(b"HTTP/1.1 200")
        assert statuses_of(port, LAST) == [200]
        assert uploading.recv(4096).startswith(b"HTTP/1.1 503")
        gated.go.set()
        assert working.recv(4096).startswith(b"HTTP/1.1 200")


def test_connections_are_no_more_than_the_system_has_files_for(monkeypatch):
    monkeypatch.setattr(http_server.resource, "getrlimit", lambda _: (64, 64))
    with serving({"net": Gated()}) as (port, _, uvicorn), contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connected(port, b"GET "))
        assert ask(port, "/v2/health/ready")[0] == 200
        assert 30 < len(uvicorn.server_state.connections) < 50


def test_where_all_connections_are_at_work_others_are_told(monkeypatch):
    monkeypatch.setattr(http_server, "CONNECTIONS", 2)
    monkeypatch.setattr(http_server, "LEAVING", 2)
    gated, clients = Gated(), concurrent.futures.ThreadPoolExecutor(2)
    with serving({"net": gated}) as (port, _, uvicorn), clients:
        answers = [clients.submit(infer, port, one()) for _ in range(2)]
        try:
            until(lambda: len(uvicorn.server_state.tasks) == 2)
            for body in (b"", bytes(10**6)):  # which is more than the system takes for us
                status, headers, answer = ask(port, "/v2", body)
                assert (status, headers["retry-after"]) == (503, "1")
                assert "connections" in answer["error"]
            for _ in range(20):
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
        finally:
            gated.go.set()
        assert [answer.result()[0] for answer in answers] == [200, 200]
        until(lambda: not uvicorn.server_state.connections)


CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize(
    ("headers", "rest"),
    [
        ({}, b"\r\n"),
        ({"Content-Length": "9"}, b"x"),
        (CHUNKED, b"1"),
        (CHUNKED, b"0\r\nX: "),
        ({"Content-Length": "9"}, b"x" * 9),
    ],
)
def test_after_an_answer_nothing_but_a_request_keeps_the_connection(headers, rest, monkeypatch):
    monkeypatch.setattr(http_server, "KEEP_ALIVE_SECONDS", 1)
    raw = request("/v2", headers, b"", "GET")
    with serving({"net": Gated(free=True)}) as (port, *_), connected(port, raw) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(rest)
        assert connection.recv(4096) == b""


def test_a_head_that_is_slow_after_an_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.5)
    raw = request("/v2", {}, b"", "GET")
    with serving({"net": Gated(free=True)}) as (port, *_), connected(port, raw) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(raw[:10])
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("flood", [b"1;" + b"x" * 70_000, b"0\r\nX: " + b"x" * 70_000, None])
@pytest.mark.parametrize("path", ["/v2", "/v2/models/net/infer"])
def test_what_frames_a_body_is_limited_as_heads_are(path, flood):
    flood = flood or b"0\r\n" + b"X: y\r\n" * 20_000
    method, found = ("GET", []) if path == "/v2" else ("POST", [431])
    raw = request(path, CHUNKED, b"", method)
    with serving({"net": Gated(free=True)}) as (port, *_), connected(port, raw) as connection:
        if not found:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(flood)
        answer = connection.recv(4096)
        assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answer)] == found
        assert connection.recv(4096) == b""


def test_trailers_are_no_headers():
    lines = f"Content-Encoding: br\r\nX: {'y' * 3000}\r\n"
    body = b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(one()), one(), lines.encode())
    with serving({"net": Gated(free=True)}) as (port, *_):
        raw = request("/v2/models/net/infer", CHUNKED, body)
        assert statuses_of(port, raw[:150], raw[150:] + LAST) == [200, 200]


def test_requests_that_wait_for_an_answer_before_them_are_not_read():
    gated, wanted = Gated(), 3000
    raw = request("/v2/models/net/infer", {}, one()) + request("/v2", {}, b"", "GET") * wanted
    pool = concurrent.futures.ThreadPoolExecutor(1)
    with serving({"net": gated}) as (port, _, uvicorn), pool:
        statuses = pool.submit(statuses_of, port, raw + LAST, half_close=True)
        assert gated.started.acquire(timeout=PATIENCE)
        time.sleep(0.5)  # in which all could be read
        (connection,) = uvicorn.server_state.connections
        waiting = len(connection.pipeline)
        gated.go.set()
        assert statuses.result(PATIENCE) == [200] * (wanted + 2)
    assert waiting < 100


def test_an_answer_that_is_not_read_is_given_up_and_one_that_is_read_is_not(monkeypatch):
    class Wordy(Gated):
        classes = [""] * 500_000

        def run(self, inputs):
            return np.zeros((len(inputs), len(self.classes)), "float32")

    monkeypatch.setattr(http_server, "READ_SECONDS", 0.5)
    monkeypatch.setattr(http_server, "KEEP_ALIVE_SECONDS", 10 * PATIENCE)
    output = {"name": "logits", "parameters": {"binary_data": True}}
    path, headers, body = malformed.in_binary(np.random, bytes(4 * 4 * 768), shape=[4, *SHAPE])
    size = int(headers["Inference-Header-Content-Length"])
    text = json.dumps({**json.loads(body[:size]), "outputs": [output]}).encode()
    headers = {"Inference-Header-Content-Length": len(text)}
    with serving({"net": Wordy()}) as (port, _, uvicorn):
        reader = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        reader.request("POST", path, text + body[size:], headers)
        assert len(reader.getresponse().read()) > 8_000_000
        time.sleep(1)  # in which one that did not read would be given up
        reader.request("GET", "/v2")
        assert reader.getresponse().status == 200
        reader.close()
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(request(path, headers, text + body[size:]))
            connection.recv(1)
            assert uvicorn.server_state.connections
            until(lambda: not uvicorn.server_state.connections)


def test_small_answers_that_nobody_reads_are_given_up(monkeypatch):
    """Which wait in our buffer for the system's, and fill neither."""
    monkeypatch.setattr(http_server, "KEEP_ALIVE_SECONDS", 1)
    original = http_server.Connection.connection_made

    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        original(self, transport)

    monkeypatch.setattr(http_server.Connection, "connection_made", connection_made)
    raw = request("/v2", {}, b"", "GET") * 100
    with serving({"net": Gated(free=True)}) as (port, _, uvicorn), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(raw)
        until(lambda: uvicorn.server_state.connections)
        (server,) = uvicorn.server_state.connections
        until(lambda: server.cycle and server.cycle.response_complete and not server.pipeline)
        assert server.transport.get_write_buffer_size()
        until(lambda: not uvicorn.server_state.connections)


def test_large_bodies_are_read_beside_the_event_loop(monkeypatch):
    threads, decode = [], service_module._decode

    def watched(*args):
        threads.append(threading.current_thread().name)
        return decode(*args)

    monkeypatch.setattr(service_module, "_decode", watched)
    monkeypatch.setattr(service_module, "LARGE", len(one()), raising=False)
    with serving({"net": Gated(free=True)}) as (port, *_):
        for body in (one(), one() + b" "):
            assert infer(port, body)[0] == 200
        assert infer(port, b"{" * 10_000)[0] == 400
    assert [name.startswith("net") for name in threads] == [False, True, True]


def test_an_answer_that_takes_too_long_is_given_up_and_not_computed():
    gated = Gated()
    with serving({"net": gated}, seconds=1) as (port, *_):
        try:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(lambda _: infer(port, one()), range(2)))
            assert [status for status, _, _ in answers] == [504, 504]
        finally:
            gated.go.set()
        assert infer(port, one(2))[0] == 200
        calls = 0
        while gated.started.acquire(blocking=False):
            calls += 1
        assert calls <= 2  # both that were given up at most in one, and the last


def test_of_a_request_that_is_given_up_no_more_images_are_read():
    class Slow(Gated):
        read_images = 0

        def read(self, file):
            self.read_images += 1
            assert self.go.wait(PATIENCE)
            return np.zeros(SHAPE, "float32")

    slow, image = Slow(), base64.b64encode(png(np.zeros(SHAPE, "uint8"))).decode()
    asked = {"name": "image", "datatype": "BYTES", "shape": [4], "data": [image] * 4}
    with serving({"net": slow}, seconds=1) as (port, service, _):
        try:
            assert infer(port, json.dumps({"inputs": [asked]}).encode())[0] == 504
        finally:
            slow.go.set()
        until(lambda: service.models["net"].batcher.reserved == 0)
    assert slow.read_images == 1


@pytest.mark.parametrize(
    "heavy",
    [
        scans(2048, 1024, 20),
        encoded("PNG", (5000, 4000)),
        encoded("JPEG", (5000, 4000)),
        encoded("PNG", (2000, 1000)),
        parts("PNG", 10_000),
        parts("PNG", 10_000, before=False),
        parts("PNG", 10, b"iCCP", b"x\0\0" + zlib.compress(bytes(2**20))),
        parts("JPEG", 10_000),
    ],
    ids=["scans", "PNG", "JPEG", "middling", "before", "behind", "texts", "segments"],
)
def test_images_that_take_long_have_only_their_like_wait(heavy):
    class Slow(Gated):
        def read(self, file):
            if file.getvalue() == heavy:
                self.started.release()
                assert self.go.wait(PATIENCE)
            return np.zeros(SHAPE, "float32")

        def run(self, inputs):
            return np.zeros((len(inputs), len(CLASSES)), "float32")

    slow, light = Slow(), png(np.zeros(SHAPE, "uint8"))
    kind = {"Content-Type": f"image/{'png' if heavy.startswith(light[:4]) else 'jpeg'}"}
    clients = concurrent.futures.ThreadPoolExecutor(8)
    with serving({"net": slow}) as (port, *_), clients:
        late = [clients.submit(infer, port, heavy, **kind) for _ in range(8)]
        try:
            assert slow.started.acquire(timeout=PATIENCE)
            assert infer(port, light, **{"Content-Type": "image/png"})[0] == 200
            assert not any(answer.done() for answer in late)
        finally:
            slow.go.set()
        assert [answer.result(PATIENCE)[0] for answer in late] == [200] * 8


@contextlib.contextmanager
def busy(gated, queue):
    """A server that computes one request and has `queue` more waiting; their answers to be."""
    clients = concurrent.futures.ThreadPoolExecutor(32)
    with serving({"net": gated}, queue=queue) as (port, service, uvicorn), clients:
        answers = [clients.submit(infer, port, one(7))]
        assert gated.started.acquire(timeout=PATIENCE)
        answers += [clients.submit(infer, port, one(index)) for index in range(queue)]
        until(lambda: service.models["net"].batcher.waiting == queue)
        try:
            yield port, uvicorn, answers
        finally:
            gated.go.set()


def test_beyond_the_queue_requests_are_told_to_try_again():
    gated = Gated()
    with busy(gated, 5) as (port, _, answers):
        status, headers, answer = infer(port, one())
        assert (status, headers["retry-after"]) == (503, "1")
        assert "queue" in answer["error"]
        assert infer(port, b"{")[0] == 400  # it still says what is wrong
        assert ask(port, "/v2/health/ready")[0] == 200
        gated.go.set()
        assert [answer.result(PATIENCE)[0] for answer in answers] == [200] * 6
        for index, answer in enumerate(answers[1:]):
            assert answer.result()[2]["outputs"][0]["data"][0] == index
        assert infer(port, one())[0] == 200


def test_beyond_the_queue_image_files_wait_for_no_decoder():
    class Slow(Gated):
        def read(self, file):
            assert self.go.wait(PATIENCE)
            return np.zeros(SHAPE, "float32")

    slow, image = Slow(), png(np.zeros(SHAPE, "uint8"))
    clients = concurrent.futures.ThreadPoolExecutor(16)
    with serving({"net": slow}, queue=5) as (port, *_), clients:
        answers = [
            clients.submit(infer, port, image, **{"Content-Type": "image/png"}) for _ in range(16)
        ]
        try:
            early = concurrent.futures.as_completed(answers, timeout=PATIENCE / 6)
            statuses = [next(early).result()[0] for _ in range(11)]
        finally:
            slow.go.set()
        assert statuses == [503] * 11
        assert sorted(answer.result(PATIENCE)[0] for answer in answers) == [200] * 5 + [503] * 11
        assert infer(port, image, **{"Content-Type": "image/png"})[0] == 200


def test_bodies_in_memory_are_limited_together():
    with serving({"net": Gated(free=True)}, memory=50_000, seconds=3) as (port, *_):
        slow = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(4)]
        for connection in slow:
            raw = request("/v2/models/net/infer", {"Content-Length": "20000"}, bytes(15_000))
            connection.sendall(raw)
        statuses = sorted(connection.recv(4096).split()[1] for connection in slow)
        for connection in slow:
            connection.close()
        assert statuses == [b"408"] * 3 + [b"503"]
        assert infer(port, one())[0] == 200


def test_a_failure_inside_is_told_as_such_and_logged(caplog):
    class Failing(Gated):
        def run(self, inputs):
            raise RuntimeError("out of luck")

    with serving({"net": Failing()}) as (port, *_):
        status, _, answer = infer(port, one())
        assert status == 500
        assert "luck" not in answer["error"]
        assert "out of luck" in caplog.text


def test_a_failure_anywhere_is_told_as_such_and_logged(caplog):
    class Unwritable(Gated):
        classes = ["\ud800"] * 10

    in_binary = {**json.loads(one()), "parameters": {"binary_data_output": True}}
    infer_body = json.dumps(in_binary).encode()
    with serving({"net": Unwritable(free=True)}) as (port, *_):
        for path, body in (("/v2/models/net", None), ("/v2/models/net/infer", infer_body)):
            caplog.clear()
            status, headers, answer = ask(port, path, body)
            assert (status, answer) == (500, {"error": "internal error"})
            assert headers["content-type"] == "application/json"
            until(lambda: "surrogates not allowed" in caplog.text)  # logged after the answer


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_whose_thread_ended_is_not_ready():
    class Leaving(Gated):
        def run(self, inputs):
            raise SystemExit

    with serving({"net": Leaving(), "other": Gated(free=True)}, seconds=1) as (port, *_):
        assert ask(port, "/v2/health/ready")[0] == 200
        assert infer(port, one())[0] == 504
        assert ask(port, "/v2/health/ready")[0] == 503
        assert ask(port, "/v2/models/net/ready")[0] == 503
        assert ask(port, "/v2/models/other/ready")[0] == 200
        states = [model["state"] for model in ask(port, "/v2/repository/index", b"{}")[2]]
        assert states == ["UNAVAILABLE", "READY"]


# -- Beside inference ------------------------------------------------------------------------------


def test_metrics_count_what_was_answered():
    with serving({"net": Gated(free=True), "other": Gated(free=True)}) as (port, *_):
        for body in (one(), one(), b"{"):
            infer(port, body)
        infer(port, one(), model="unknown")
        raw = request("/metrics", {}, b"", "GET")
        text = answer_of(port, raw)[2].decode()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert found['resnetv2_requests_total{model="net",status="200"}'] == "2.0"
    assert found['resnetv2_requests_total{model="net",status="400"}'] == "1.0"
    assert found['resnetv2_requests_total{model="",status="404"}'] == "1.0"
    assert found['resnetv2_images_total{model="net"}'] == "2.0"
    assert found['resnetv2_batch_images_sum{model="net"}'] == "2.0"
    assert found['resnetv2_request_seconds_count{model="net"}'] == "3.0"
    assert found['resnetv2_queue_images{model="other"}'] == "0.0"
    assert "unknown" not in text


def test_several_models_answer_each_for_itself(folder):
    with serving({"net": Predictor(load(folder)), "gated": Gated(free=True)}) as (port, *_):
        first, second = (infer(port, one(3), model=name)[2] for name in ("net", "gated"))
        assert (first["model_name"], second["model_name"]) == ("net", "gated")
        assert second["outputs"][0]["data"] == [3.0] * 10
        assert first["outputs"][0]["data"] != [3.0] * 10
        names = [model["name"] for model in ask(port, "/v2/repository/index", b"{}")[2]]
        assert names == ["net", "gated"]


def test_the_page_is_served_where_it_is_asked_for():
    with serving({"net": Gated(free=True)}, page=True) as (port, *_):
        status, headers, body = answer_of(port, request("/", {}, b"", "GET"))
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert body == service_module.PAGE.read_bytes()


@pytest.mark.parametrize(
    "ranges", ["1" * 30_000, "9" * 5000 + "-", ",".join(f"{i}-{i}" for i in range(0, 10_000, 2))]
)
def test_the_page_is_served_whole_and_at_once(ranges):
    with serving({"net": Gated(free=True)}, page=True) as (port, *_):
        raw = request("/", {"Range": f"bytes={ranges}"}, b"", "GET")
        status, _, body = answer_of(port, raw, timeout=10)
    assert (status, body) == (200, service_module.PAGE.read_bytes())


# -- The end ---------------------------------------------------------------------------------------


def test_while_it_drains_it_answers_what_it_accepted_and_refuses_the_rest(monkeypatch):
    monkeypatch.setattr(http_server, "NOTICE_SECONDS", 3)
    gated = Gated()
    with busy(gated, 3) as (port, uvicorn, answers):
        uvicorn.stop_soon()
        until(lambda: ask(port, "/v2/health/ready")[0] == 503)
        assert ask(port, "/v2/health/live")[0] == 200
        assert ask(port, "/v2/models/net/ready")[0] == 503
        assert ask(port, "/v2/repository/index", b"{}")[2][0]["state"] == "UNAVAILABLE"
        status, headers, _ = infer(port, one())
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        gated.go.set()
        assert [answer.result(PATIENCE)[0] for answer in answers] == [200] * 4


def test_what_can_not_be_computed_before_the_end_is_told_so(monkeypatch):
    monkeypatch.setattr(service_module, "DRAIN_SECONDS", 0.5)
    gated = Gated()
    with busy(gated, 3) as (_, uvicorn, answers):
        uvicorn.stop_soon()
        found = [answer.result(PATIENCE) for answer in answers]
        assert [status for status, _, _ in found] == [503] * 4
        assert "shutting down" in found[0][2]["error"]


def test_a_signal_right_after_the_line_loses_no_request(folder):
    with process(f"net={folder}") as (port, started):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(LAST)
            started.send_signal(signal.SIGTERM)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert started.wait(15) == 0


def test_closed_standard_files_do_no_harm(folder):
    listener = server._listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    words = [sys.executable, "-m", "gluon_resnetv2", "serve", f"net={folder}", "--port", str(port)]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    with subprocess.Popen(shell, cwd=ROOT) as started:
        try:
            until(lambda: answers(port))
            started.send_signal(signal.SIGTERM)
            assert started.wait(15) == 0
        finally:
            started.kill()


def answers(port):
    with contextlib.suppress(OSError):
        return ask(port, "/v2/health/ready")[0] == 200


class Load:
    """Clients that ask for one image each, again as soon as they are answered."""

    def __init__(self, port, net, clients, shape=SHAPE):
        self.images = np.random.RandomState(0).normal(size=(clients, *shape)).astype("float32")
        self.expected = logits_of(net, self.images)
        self.statuses = []  # (when it was sent, status; 0 where none came)
        self.wrong, self.stop = 0, threading.Event()
        self._port = port
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, index):
        path, headers, body = malformed.in_binary(
            np.random, self.images[index].tobytes(), shape=[1, *self.images.shape[1:]]
        )
        raw = request(path, {"Connection": "close", **headers}, body)
        while not self.stop.is_set():
            sent = time.monotonic()
            try:
                status, _, body = answer_of(self._port, raw)
            except ConnectionRefusedError:  # nobody listens any more
                return
            except OSError:
                status = 0
            self.statuses.append((sent, status))
            if status == 200:
                logits = np.float32(json.loads(body)["outputs"][0]["data"])
                expected = self.expected[index]
                self.wrong += np.abs(logits - expected).max() > TOLERANCE * np.abs(expected).max()
            elif status == 503:
                time.sleep(0.02)  # sooner than it was told

    def join(self):
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def overload(export, net, options, seconds, shape=SHAPE, clients=64):
    """64 clients, then SIGTERM: all that came before it is answered. Statuses; growth in MB."""
    with process(*options, f"net={export}") as (port, started):
        before = resident(started.pid)
        load = Load(port, net, clients, shape)
        time.sleep(seconds)
        after = resident(started.pid)
        told = time.monotonic()
        started.send_signal(signal.SIGTERM)
        status = started.wait(15)
        load.stop.set()
        load.join()
    assert status == 0
    assert load.wrong == 0
    early = [status for sent, status in load.statuses if sent < told]
    assert set(early) == {200, 503}
    assert {status for _, status in load.statuses} <= {200, 503, 0}
    return early, after - before


def test_overload_is_answered_and_so_is_what_waits_at_the_end(folder, net):
    options = ("--queue", "4", "--max-batch", "2", "--no-batching")
    early, growth = overload(folder, net, options, seconds=2)
    assert early.count(200) > 10
    assert early.count(503) > 10
    assert growth < 100


@pytest.mark.slow  # a minute
def test_a_deep_network_is_overloaded_without_harm(tmp_path):
    net, shape = ResNetV2(named("preact110")), (3, 32, 32)
    randomise(net)
    export(net, tmp_path / "export", shape, classes=CLASSES, mean=MEAN, std=STD)
    options = ("--queue", "16", "--max-batch", "16")
    early, growth = overload(tmp_path / "export", net, options, 20, shape)
    print(f"{early.count(200)} answered, {early.count(503)} refused, {growth:.0f} MB more")
    assert early.count(503) > 100
    assert growth < 100


# -- The command -----------------------------------------------------------------------------------


def options_of(*words):
    parser = cli.Parser()
    server.add_options(parser)
    return parser.parse_args(words)


def test_no_answer_waits_for_an_acknowledgement(monkeypatch):
    """40 ms that is, on each connection: asyncio sets TCP_NODELAY where it knows that it is TCP."""
    set_on = []
    original = http_server.Connection.connection_made

    def connection_made(self, transport):
        connection = transport.get_extra_info("socket")
        set_on.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        original(self, transport)

    monkeypatch.setattr(http_server.Connection, "connection_made", connection_made)
    with serving({"net": Gated(free=True)}, loop="asyncio") as (port, *_):
        assert infer(port, one())[0] == 200
    assert set_on == [1]


def test_a_port_in_use_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"127.0.0.1:{number}: Address .* another --port"):
            server.run(options_of("nowhere", "--port", number))


def test_of_two_servers_that_start_at_once_on_one_port_one_is_told(folder, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(http_server.Uvicorn, "run", lambda self, listeners: self.announce())
    with server._listener("127.0.0.1", 0) as first:
        port = str(first.getsockname()[1])

        def loaded(*args, **kwargs):
            first.listen()
            return Predictor(*args, **kwargs)

        monkeypatch.setattr(predictor_module, "Predictor", loaded)
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: Address .* another --port"):
            server.run(options_of(f"net={folder}", "--port", port))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "nowhere does not exist"),
        (("=nowhere",), "NAME=EXPORT"),
        (("a/b=nowhere",), "NAME=EXPORT"),
        (("nowhere", "--queue", "0"), "--queue must be at least 1"),
        (("nowhere", "--max-batch", "0"), "--max-batch must be at least 1"),
        (("nowhere", "--threads", "0"), "--threads must be at least 1"),
        (("nowhere", "--timeout", "0"), "--timeout must be above 0"),
        (("nowhere", "--body-limit", "nan"), "--body-limit must be at least 0.001"),
        (("nowhere", "--memory", "1"), "--memory must be at least --body-limit"),
        (("nowhere", "--port", "70000"), "--port must be within"),
        (("nowhere", "--host", "no.such.host.invalid"), "no.such.host.invalid:.*another --host"),
        (("nowhere", "--host", "192.0.2.1"), "192.0.2.1:.*another --host"),
        (("nowhere", "--host", ".."), "another --host"),
        (("nowhere", "--allow-host", "https://cats.example"), "--allow-host takes a name"),
        (("nowhere", "--allow-host", "cats.example:80"), "without port, not 'cats.example:80'"),
        (("..=nowhere",), "NAME=EXPORT"),
        ((".=nowhere",), "NAME=EXPORT"),
        (("a\nb=nowhere",), "NAME=EXPORT"),
        (("nowhere", "--threads", "100000"), r"--threads must be at most \d+"),
        (("nowhere", "--max-batch", "300000"), "--max-batch must be at most 4096"),
        (("nowhere", "--body-limit", "1e-9"), "--body-limit must be at least 0.001"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, told, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))  # which main changes
    with pytest.raises(UserError, match=told):
        server.run(options_of(*words, *([] if "--port" in words else ["--port", "0"])))


def test_two_exports_of_one_name_are_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match=r"two exports have the name preact8; name one: NAME="):
        server.run(options_of(str(folder), str(folder), "--port", "0"))


def test_forms_that_are_wrong_here_are_told(folder, monkeypatch, capsys):
    class Wrong(runners.Fused):
        def run(self, inputs):
            return super().run(inputs) + 1

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(runners.ENGINES, "auto", (runners.Plain, Wrong))
    monkeypatch.setattr(choice, "precision_hint", lambda *_: "")
    monkeypatch.setattr(http_server.Uvicorn, "run", lambda self, listeners: self.announce())
    monkeypatch.setattr(server.gc, "freeze", lambda: None)
    server.run(options_of(f"net={folder}", "--port", "0"))
    printed = capsys.readouterr()
    assert re.fullmatch(r"net: a form that is wrong here .*FAILED fused .*\n", printed.err)
    assert "net (float32, plain)" in printed.out


@pytest.fixture
def bare(folder, tmp_path):
    """A pair without manifest."""
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "manifest.json").unlink()
    return tmp_path / "bare"


@pytest.mark.parametrize(
    ("words", "told", "shape"),
    [
        ((), "bare (float32, FORM, 3x32x32 assumed: --shape), net (float32, FORM)", [3, 32, 32]),
        (("--shape", "3,16,16"), "bare (float32, FORM), net (float32, FORM)", [3, 16, 16]),
    ],
)
def test_the_shape_of_a_pair_without_manifest_is_given_or_assumed(
    folder, bare, words, told, shape, monkeypatch, capsys
):
    shapes = []

    def run(uvicorn, listeners):
        uvicorn.announce()
        shapes.extend(model.interface.shape for model in uvicorn._infer._models.values())

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(http_server.Uvicorn, "run", run)
    monkeypatch.setattr(server.gc, "freeze", lambda: None)
    server.run(options_of(f"bare={bare}", f"net={folder}", "--port", "0", *words))
    line = re.sub("plain|fused|native", "FORM", capsys.readouterr().out)
    assert line.startswith(f"serving {told} at http://")
    assert shapes == [tuple(shape), SHAPE]


def test_a_shape_that_no_export_asks_for_is_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match="net says its own shape; leave --shape out"):
        server.run(options_of(f"net={folder}", "--port", "0", "--shape", "3,16,16"))


@pytest.mark.parametrize("text", ["3,16", "3,16,16,1", "3,16,x", "0,16,16", "3,-1,16", "3x16x16"])
def test_a_shape_is_three_numbers(text, capsys):
    with pytest.raises(SystemExit):
        options_of("nowhere", "--shape", text)
    assert f"argument --shape: {text} is no C,H,W, as in 3,224,224" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_told(folder, monkeypatch):
    def full(*args, **kwargs):
        raise mx.MXNetError("Failed to allocate CPU Memory")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(predictor_module, "Predictor", full)
    with pytest.raises(UserError, match="net does not fit into memory; name a smaller --max-batch"):
        server.run(options_of(f"net={folder}", "--port", "0"))


def test_a_pair_whose_file_has_no_name_to_serve_by_is_refused(bare, monkeypatch):
    for path in list(bare.glob("preact8-*")):
        path.rename(path.with_name(path.name.replace("preact8", "a\nb")))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match="NAME="):
        server.run(options_of(str(bare), "--port", "0"))
