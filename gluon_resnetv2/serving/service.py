"""What is served: models, as an ASGI application that speaks the Open Inference Protocol v2.

One event loop reads requests and answers them. What a request asks is checked (`protocol`) before
it waits with others (`batching`); a few threads beside decode image files and large bodies. All
that waits is bounded: bytes of bodies, images in the queue, seconds.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import io
import logging
import re
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gluon_resnetv2 import __version__, machine
from gluon_resnetv2.engines.images import SENT_FORMATS
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.pixels import work
from gluon_resnetv2.serving import protocol
from gluon_resnetv2.serving.batching import Batcher, Closed, Full
from gluon_resnetv2.serving.hosts import Hosts
from gluon_resnetv2.serving.protocol import VERSION, Interface, Refused

if TYPE_CHECKING:
    from gluon_resnetv2.engines.predictor import Predictor

PAGE = Path(__file__).with_name("page.html")
DRAIN_SECONDS = 6  # from `Infer.drain` to refusing what is not computed yet
LINGER_SECONDS = 2  # for which the rest of a refused body is read, so that the client reads why
LARGE = 2**20  # bytes of a body: more would hold up the event loop
# Pixels of `pixels.work`, which take about 20 ms, 150 ms and 1 s; more may take 10 s.
LANES = (2**19, 2**22, 2**24)
INFER = re.compile("/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
FAILED = "internal error"  # which the log tells of
DRAINING = "the server is shutting down"
IMAGES = {b"image/jpeg": "image/jpeg", b"image/jpg": "image/jpeg", b"image/png": "image/png"}
ENCODINGS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # zlib's wbits
PIECE = 2**18  # bytes that are unpacked at once: more would hold up the event loop
JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")
JSON_SIZE = b"inference-header-content-length"
RETRY = (b"retry-after", b"1")  # seconds
CLOSE = (b"connection", b"close")
# Beside what the page says itself: a frame's policy counts only here.
PAGE_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

log = logging.getLogger(__name__)
# Or the log would tell what anyone may send: a line for each size, and each damaged tag, of images.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Limits:
    """What requests may take."""

    body: int  # bytes of one body
    memory: int  # bytes of all bodies at hand
    queue: int  # images that wait for one model
    seconds: float  # from a request's head to its answer


class Metrics:
    """What GET /metrics tells."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        by_model: dict[str, Any] = {"labelnames": ["model"], "registry": registry}
        self.requests = Counter(
            "resnetv2_requests", "Infer requests answered", ["model", "status"], registry=registry
        )
        self.images = Counter("resnetv2_images", "Images answered with status 200", **by_model)
        self.seconds = Histogram("resnetv2_request_seconds", "From head to answer", **by_model)
        self.batch = Histogram(
            "resnetv2_batch_images",
            "Images computed at once",
            buckets=[2**n for n in range(11)],
            **by_model,
        )
        self.queue = Gauge("resnetv2_queue_images", "Images that wait", **by_model)


class Model:
    """A predictor, what its clients see of it, the queue before it, and threads that prepare."""

    def __init__(
        self, name: str, predictor: Predictor, metrics: Metrics, queue: int, batching: bool = True
    ):
        self.predictor = predictor
        self.answered = {"success": (0, 0.0), "fail": (0, 0.0)}  # how many, in how many seconds
        self.interface = Interface(
            name, predictor.classes, predictor.shape, predictor.output, predictor.max_batch
        )
        threads = [machine.cpus()] * len(LANES) + [max(1, machine.cpus() // 2)]
        self._lanes = [ThreadPoolExecutor(count, name) for count in threads]
        self.pool = self._lanes[0]
        self.batcher = batcher = Batcher(
            predictor.run,
            max_batch=predictor.max_batch,
            queue=queue,
            batching=batching,
            observe=metrics.batch.labels(name).observe,
        )
        metrics.queue.labels(name).set_function(lambda: batcher.waiting + batcher.reserved)

    async def outputs(self, request: protocol.Request) -> np.ndarray:
        """What the network gives for a request: (n, classes).

        Raises:
            Refused: a file is no image that can be read, or nobody knows how to prepare images.
            Full, Closed: as `Batcher.submit_async`.
        """
        if request.input == "data":
            return await self.batcher.submit_async(np.asarray(request.values))
        if not self.predictor.prepares:
            raise Refused(
                f"{self.interface.name} has no manifest.json, which says how images are prepared; "
                "send input data"
            )
        gone, lane = threading.Event(), 0
        try:
            while lane is not None:  # in each a request waits for its like alone
                lane, prepared = await self._prepare(request, gone, lane)
        finally:
            gone.set()  # where it is late, the thread goes on to others' after the image at hand
        return await self.batcher.submit_async(prepared)

    def metadata(self) -> dict:
        """The answer to GET v2/models/NAME."""
        parameters = {
            "inputs": list(protocol.DATATYPES) if self.predictor.prepares else ["data"],
            "classes": self.interface.classes,
            "image_shape": self.interface.shape,
            "max_batch": self.interface.max_batch,
            "form": self.predictor.form,
        }
        return {**self.interface.metadata(), "parameters": parameters}

    def close(self, patience: float | None = None) -> None:
        """Ends the threads, the batcher's as its `close` says."""
        self.batcher.close(patience)
        for pool in self._lanes:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _prepare(self, request, gone, lane):
        images = len(request)
        self.batcher.reserve(images)
        preparing = self._lanes[lane].submit(self._prepared, request, gone, lane)
        preparing.add_done_callback(lambda _: self.batcher.release(images))
        return await asyncio.wrap_future(preparing)

    def _prepared(self, request, gone, lane):
        """None, and the images as the network takes them; or a later lane that they are for."""
        pixels = request.values
        if request.input == "image":
            if lane < len(LANES) and (other := _lane(pixels, LANES[lane])) > lane:
                return other, None
            pixels = np.stack([self._read(index, file, gone) for index, file in enumerate(pixels)])
        return None, self.predictor.prepare(pixels)

    def _read(self, index, file, gone):
        if gone.is_set():
            raise Closed
        try:
            return self.predictor.read(io.BytesIO(file))
        except UserError as error:
            raise Refused(f"image {index}: {error}") from None


def _lane(files, most):
    """Which of the lanes files are for, as far as the work `most` tells."""
    asked = 0
    for file in files:
        if asked <= most:
            asked += work(file, most - asked, SENT_FORMATS)
    return bisect.bisect_left(LANES, asked)


class Unread(Refused):
    """Refused before the body was read."""


class Gone(Exception):
    """The client is."""


class Infer:
    """POST v2/models/NAME/infer, as an ASGI application."""

    def __init__(self, models: dict[str, Model], limits: Limits, metrics: Metrics):
        self.draining = False
        self._models, self._limits, self._metrics = models, limits, metrics
        self._held: dict[asyncio.Task, int] = {}  # bytes of the body of each request at hand
        self._memory = 0  # their sum

    def drain(self) -> None:
        """Refuses new requests, and after DRAIN_SECONDS those that have no answer yet."""
        self.draining = True
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._give_up)

    def _give_up(self):
        for task in self._held:
            task.cancel()

    async def __call__(self, scope, receive, send):
        began, task = time.perf_counter(), _this_task()
        self._held[task] = 0
        # Only this and `_give_up` cancel the task: it is late.
        timer = asyncio.get_running_loop().call_later(self._limits.seconds, task.cancel)
        model = self._models.get(scope["path_params"]["model"])
        name = model.interface.name if model else ""  # no client can add to the metrics
        status, headers, rest = 200, [JSON], None
        try:
            body, json_size, images = await self._answer(model, scope, receive)
            if json_size is not None:
                headers = [BINARY, (JSON_SIZE, b"%d" % json_size)]
            self._metrics.images.labels(name).inc(images)
        except Gone:
            return
        except Refused as refused:
            status, body = refused.status, protocol.error(str(refused))
            rest = receive if isinstance(refused, Unread) else None
        except Exception:
            log.exception("infer failed")
            status, body = 500, protocol.error(FAILED)
        finally:
            timer.cancel()
            self._memory -= self._held.pop(task)
        self._metrics.requests.labels(name, str(status)).inc()
        seconds = time.perf_counter() - began
        self._metrics.seconds.labels(name).observe(seconds)
        if model:
            outcome = "success" if status == 200 else "fail"
            count, total = model.answered[outcome]
            model.answered[outcome] = count + 1, total + seconds
        if status == 503:
            headers.append(RETRY)
        if rest or self.draining:
            headers.append(CLOSE)
        await _send(send, status, headers, body, rest)

    async def _answer(self, model, scope, receive):
        """The answer's body, the size of its JSON if more follows, and how many images it is for.

        A function of its own, to hold on to no images while the answer is sent.
        """
        headers = dict(scope["headers"])
        body = await self._body(headers, receive)
        if self.draining:
            raise Refused(DRAINING, 503)
        if model is None:
            raise Refused(f"there is no model {protocol.shown(scope['path_params']['model'])}", 404)
        _check_version(scope["path_params"])
        try:
            asked = headers, body, model.interface
            if len(body) > LARGE:
                loop = asyncio.get_running_loop()
                request = await loop.run_in_executor(model.pool, _decode, *asked)
            else:
                request = _decode(*asked)
            rows = await model.outputs(request)
            return *protocol.encode(request, rows, model.interface), len(request)
        except Full as full:
            raise Refused(f"the queue is full: {full}", 503) from None
        except Closed:
            raise Refused(DRAINING, 503) from None
        except asyncio.CancelledError:
            raise self._late(Refused, "no answer could be computed", 504) from None

    async def _body(self, headers, receive):
        """The request's body, counted as it arrives."""
        limit, task = self._limits.body, _this_task()
        size, more = int(headers.get(b"content-length", 0)), True
        if size > limit:
            raise Unread(f"the body has {size} bytes; {limit} are the most", 413)
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        unpacker = _Unpacker(encoding) if encoding != b"identity" else None
        parts, size = [], 0
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                arrived, more = message.get("body", b""), message.get("more_body", False)
                for part in unpacker(arrived) if unpacker else (arrived,):
                    size += len(part)
                    if size > limit:
                        raise Unread(f"the body has more than {limit} bytes", 413)
                    self._held[task] += len(part)
                    self._memory += len(part)
                    if self._memory > self._limits.memory:
                        raise Unread("the server has too many requests at hand", 503)
                    parts.append(part)
                    if len(part) == PIECE:
                        await asyncio.sleep(0)  # others' turn
        except asyncio.CancelledError:
            raise self._late(Unread, "the body did not arrive", 408) from None
        if unpacker and not unpacker.ended:
            raise Refused(f"the body ends within its {encoding.decode()}")
        return b"".join(parts)

    def _late(self, kind, what, status):
        if self.draining:
            return kind(DRAINING, 503)
        return kind(f"{what} within {self._limits.seconds:g} seconds", status)


def _this_task() -> asyncio.Task:
    task = asyncio.current_task()
    assert task, "whatever waits for requests is one"
    return task


class _Unpacker:
    """Unpacks a body as it arrives, in pieces that can be counted before there are too many."""

    def __init__(self, encoding):
        if encoding not in ENCODINGS:
            raise Unread("Content-Encoding can only be gzip, deflate or identity", 415)
        self._name, self._zlib = encoding.decode(), zlib.decompressobj(ENCODINGS[encoding])

    @property
    def ended(self):
        return self._zlib.eof

    def __call__(self, packed):
        while True:
            try:
                piece = self._zlib.decompress(packed, PIECE)
            except zlib.error:
                raise Unread(f"the body is no valid {self._name}") from None
            packed = self._zlib.unconsumed_tail
            yield piece
            if self._zlib.unused_data:
                raise Unread(f"the body goes on after its {self._name}")
            if not packed and len(piece) < PIECE:  # or zlib holds more, though it read all
                return


def _decode(headers, body, interface):
    """The request that a body of any of the content types is."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type in IMAGES:
        return protocol.decode_image(body, IMAGES[media_type], interface)
    if media_type not in (b"", b"application/json", b"application/octet-stream"):
        raise Refused(
            f"Content-Type {protocol.shown(media_type.decode('latin-1'))} is not known; send "
            "application/json, application/octet-stream, image/png or image/jpeg",
            415,
        )
    size = headers.get(JSON_SIZE)
    if size is not None and not (size.isdigit() and len(size) <= 18):
        raise Refused("Inference-Header-Content-Length must be a number of bytes")
    return protocol.decode(body, None if size is None else int(size), interface)


def _check_version(path_params):
    version = path_params.get("version", VERSION)
    if version != VERSION:
        raise Refused(f"there is no version {protocol.shown(version)}, only {VERSION}", 404)


async def _send(send, status, headers, body, rest=None):
    """Sends an answer.

    Where the `rest` of a body would still come, it is received for a while before the connection is
    closed: a client that is still sending would otherwise lose the answer.
    """
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": rest is not None})
    if rest:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_discard(rest), LINGER_SECONDS)
        await send({"type": "http.response.body"})


async def _discard(receive):
    while (await receive()).get("more_body"):
        pass


class Service:
    """All that is served, as an ASGI application."""

    def __init__(
        self,
        models: dict[str, Model],
        limits: Limits,
        metrics: Metrics,
        page: bool,
        hosts: Hosts | None = None,
    ):
        self.models, self._registry = models, metrics.registry
        self._hosts = hosts or Hosts()
        self.infer = Infer(models, limits, metrics)
        one = "/v2/models/{model}"
        version = one + "/versions/{version}"
        routes = [
            Route("/v2", self._server),
            Route("/v2/", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            Route("/metrics", self._metrics),
        ]
        if "stats" not in models:  # or it would be that one's description
            routes.append(Route("/v2/models/stats", self._stats))
        for path in (one, version):
            # Callables that are no functions are ASGI applications to Starlette.
            routes.append(Route(f"{path}/infer", self.infer, methods=["POST"]))
            routes += [Route(path, self._model), Route(f"{path}/ready", self._model_ready)]
            routes.append(Route(f"{path}/config", self._model_config))
            routes.append(Route(f"{path}/stats", self._model_stats))
        if page:
            routes.append(Route("/", self._page))
        errors = {HTTPException: _http_error, Refused: _refused, Exception: _failed}
        self._routed = Starlette(routes=routes, exception_handlers=errors)
        self._routed.router.redirect_slashes = False

    async def __call__(self, scope, receive, send):
        try:
            self._hosts.check(scope)
        except Refused as refused:
            body = protocol.error(str(refused))
            await _send(send, refused.status, [JSON, CLOSE], body, receive)
            return
        asked = INFER.fullmatch(scope["path"])
        if asked and scope["method"] == "POST":  # Starlette would take a tenth of its time
            scope["path_params"] = asked.groupdict(VERSION)
            await self.infer(scope, receive, send)
        else:
            await self._routed(scope, receive, send)

    async def _server(self, request):
        extensions = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
        about = {"name": "gluon_resnetv2", "version": __version__, "extensions": extensions}
        return JSONResponse(about)

    async def _live(self, request):
        return JSONResponse({"live": True})

    async def _ready(self, request):
        return self._readiness({}, self.models.values())

    def _readiness(self, about, models):
        ready = all(map(self._is_ready, models))
        return JSONResponse({**about, "ready": ready}, 200 if ready else 503)

    def _is_ready(self, model):
        return model.batcher.alive and not self.infer.draining

    async def _index(self, request):
        reason = DRAINING if self.infer.draining else ""
        return JSONResponse(
            [
                {
                    "name": name,
                    "version": VERSION,
                    "state": "READY" if self._is_ready(model) else "UNAVAILABLE",
                    "reason": reason,
                }
                for name, model in self.models.items()
            ]
        )

    def _find(self, request):
        name = request.path_params["model"]
        if name not in self.models:
            raise Refused(f"there is no model {protocol.shown(name)}", 404)
        _check_version(request.path_params)
        return self.models[name]

    async def _model(self, request):
        return JSONResponse(self._find(request).metadata())

    async def _model_ready(self, request):
        model = self._find(request)
        return self._readiness({"name": model.interface.name}, [model])

    async def _model_config(self, request):
        return JSONResponse(self._find(request).interface.config())

    async def _stats(self, _request):
        return JSONResponse({"model_stats": [*map(self._statistics, self.models.values())]})

    async def _model_stats(self, request):
        return JSONResponse({"model_stats": [self._statistics(self._find(request))]})

    def _statistics(self, model):
        """Triton's, of which only what is counted here is there."""
        name = model.interface.name
        counted = self._registry.get_sample_value
        return {
            "name": name,
            "version": VERSION,
            "inference_count": int(counted("resnetv2_images_total", {"model": name}) or 0),
            "execution_count": int(counted("resnetv2_batch_images_count", {"model": name}) or 0),
            "inference_stats": {
                outcome: {"count": count, "ns": int(seconds * 1e9)}
                for outcome, (count, seconds) in model.answered.items()
            },
        }

    async def _metrics(self, request):
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _page(self, request):
        # Whole: Starlette before 0.49.1 takes minutes to read some ranges.
        return HTMLResponse(PAGE.read_bytes(), headers=PAGE_HEADERS)

    def close(self) -> None:
        """Ends the threads. Nobody may wait for an answer any more."""
        for model in self.models.values():
            model.close(patience=0)


def _http_error(request, error):
    """What Starlette's router refuses."""
    path = protocol.shown(request.url.path)
    told = {404: f"there is no {path}", 405: f"{path} can't be asked by {request.method}"}
    message = told.get(error.status_code, error.detail)
    return Response(protocol.error(message), error.status_code, error.headers, "application/json")


def _refused(request, refused):
    return Response(protocol.error(str(refused)), refused.status, media_type="application/json")


def _failed(request, error):
    """What is no fault of the client's; Starlette raises it again, and uvicorn logs it."""
    return Response(protocol.error(FAILED), 500, media_type="application/json")
