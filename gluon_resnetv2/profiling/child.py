"""The process that is profiled: `python -m gluon_resnetv2.profiling.child JSON`.

It prints a mark before each step that counts, among oneDNN's lines, and at its end a line of JSON
with what it knows itself.
"""

from __future__ import annotations

import json
import sys
import time

import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_resnetv2 import cli
from gluon_resnetv2.engines.native.block import native_block
from gluon_resnetv2.engines.native.program import Program
from gluon_resnetv2.layers import DTYPES
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from gluon_resnetv2.training.optimizer import TENSORS_AT_ONCE
from gluon_resnetv2.training.step import cross_entropy, forward_backward

MARK, END = "profile: step", "profile: end"
WARM_UP = 2  # steps that prepare kernels and buffers


def main() -> None:
    job = json.loads(sys.argv[1])
    spec = named(job["model"], in_channels=job["in_channels"], **job["switches"])
    shape = (job["batch_size"], spec.in_channels, job["image_size"], job["image_size"])
    images = mx.nd.array(np.random.RandomState(0).normal(size=shape))
    labels = mx.nd.arange(shape[0]) % spec.classes
    step = _step(spec, job, images, labels)
    seconds = []
    for number in range(WARM_UP + job["steps"]):
        if number >= WARM_UP:
            print(MARK, flush=True)
        began = time.perf_counter()
        step()
        mx.nd.waitall()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    print(END, flush=True)
    symbol = ResNetV2(spec)(mx.sym.var("data"))
    left_out = []
    if job["engine"] == "native":
        left_out = Program(symbol, spec.in_channels, not job["inference"]).folded
    graph = json.loads(symbol.tojson())
    nodes = [
        (node["op"], node["name"])
        for node in graph["nodes"]
        if node["op"] != "null" and node["name"] not in left_out
    ]
    answer = {
        "seconds": seconds,
        "nodes": nodes,
        "operators": _operators(spec, job, images, labels),
    }
    answer["ceilings"] = ceilings(job["dtype"])
    cli.answer(answer)


def _step(spec, job, images, labels, **hybridize):
    """One step as `training` makes it, or one inference."""
    mx.random.seed(0)
    net = ResNetV2(spec, dtype=job["dtype"])
    net.initialize()
    if job["engine"] == "native":
        training = not job["inference"]
        block = native_block(net, job["dtype"], training=training, images_gradient=False)
    else:
        block = net
        net.hybridize(static_alloc=True, static_shape=True, **hybridize)
    optimizer = mx.optimizer.create("sgd", learning_rate=0.01, momentum=0.9, wd=1e-4)
    optimizer.aggregate_num = TENSORS_AT_ONCE
    trainer = gluon.Trainer(net.collect_params(), optimizer)

    def train():
        forward_backward(block, [images], lambda outputs: [cross_entropy(outputs[0], labels)])
        trainer.step(len(images))

    return (lambda: block(images)) if job["inference"] else train


def _operators(spec, job, images, labels):
    """{operator: [calls, milliseconds] of one step} by MXNet's profiler, each operator alone."""
    step = _step(spec, job, images, labels, forward_bulk_size=1, backward_bulk_size=1)
    for _ in range(WARM_UP):
        step()
    mx.nd.waitall()
    mx.profiler.set_config(
        profile_symbolic=True,
        profile_imperative=True,
        aggregate_stats=True,
        filename=job["trace"],
    )
    mx.profiler.set_state("run")
    for _ in range(job["steps"]):
        step()
        mx.nd.waitall()
    mx.profiler.set_state("stop")
    found = json.loads(mx.profiler.dumps(format="json"))["Time"].get("operator", {})
    return {
        name: [values["Count"] / job["steps"], values["Total"] / job["steps"]]
        for name, values in found.items()
    }


def ceilings(dtype: str) -> dict[str, float]:
    """What the machine reaches: GFLOP/s of a matrix product by oneDNN in `dtype`, GB/s of copying.

    The larger ones of several tries. What fits a cache may be faster than copying is.
    """
    size = 2048
    a, b = (
        mx.nd.amp_cast(mx.nd.random.normal(shape=(size, size)), dtype=DTYPES[dtype])
        for _ in range(2)
    )
    big = mx.nd.zeros((64 << 20,))  # 256 MB: more than a cache holds

    def product():
        return mx.nd.FullyConnected(a, b, num_hidden=size, no_bias=True)

    seconds = [min(map(_seconds, [work] * 5)) for work in (product, big.copy)]
    return {"gflops": 2e-9 * size**3 / seconds[0], "gbytes": 2e-9 * 4 * big.size / seconds[1]}


def _seconds(work):
    began = time.perf_counter()
    work().wait_to_read()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
