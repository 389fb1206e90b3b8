"""What the workers of `test_distributed` run: a tiny network, and what it ends with in a file.

distributed_training.py KV_STORE FOLDER [STEPS]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from gluon_resnetv2 import cli

with cli.one_line_errors():  # MXNet after gluon_resnetv2, which prepares it
    import mxnet as mx
    from mxnet import autograd, gluon

    from gluon_resnetv2.distributed.server_optimizer import ServerOptimizer
    from gluon_resnetv2.distributed.workers import connect
    from gluon_resnetv2.training.schedule import Steps

MOMENTUM, DECAY = 0.9, 0.01
cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
schedule = Steps(0.1, (5,), 0.5)


def batches(steps):
    """Ragged batches: every third one is smaller, and none is a multiple of two workers."""
    rng = np.random.RandomState(0)
    for step in range(steps):
        count = 5 if step % 3 == 0 else 7
        yield rng.normal(size=(count, 3, 6, 6)).astype("float32"), rng.randint(0, 4, count)


def network():
    net = gluon.nn.HybridSequential()
    net.add(
        gluon.nn.Conv2D(16, 3, in_channels=3, activation="relu"),
        gluon.nn.Conv2D(16, 3, in_channels=16, activation="relu"),
        gluon.nn.Dense(4, in_units=64),
    )
    mx.random.seed(1)
    net.initialize(mx.init.Xavier())
    return net


def train(workers, kv_store, steps=10, pause=0.0):
    """Trains on this worker's part of each batch; returns the parameters."""
    net = network()
    if kv_store == "dist_async":
        optimizer = mx.optimizer.SGD(momentum=MOMENTUM, wd=DECAY)
        optimizer = ServerOptimizer(optimizer, schedule, workers.count)
    else:
        optimizer = mx.optimizer.SGD(momentum=MOMENTUM, wd=DECAY)
    trainer = gluon.Trainer(
        net.collect_params(),
        optimizer,
        kvstore=workers.store,
        update_on_kvstore=kv_store == "dist_async",
    )
    for step, (images, labels) in enumerate(batches(steps)):
        images, labels = (np.array_split(a, workers.count)[workers.rank] for a in (images, labels))
        with autograd.record():
            loss = cross_entropy(net(mx.nd.array(images)), mx.nd.array(labels))
        loss.backward()
        trainer.set_learning_rate(schedule(step))
        # dist_async has the size of a whole batch fixed.
        trainer.step(7 if kv_store == "dist_async" else 5 if step % 3 == 0 else 7)
        if pause:
            mx.nd.waitall()
            if step == 1:
                workers.up()
                print("up", flush=True)
            time.sleep(pause)
    mx.nd.waitall()
    return [p.data().asnumpy() for p in net.collect_params().values()]


def main() -> None:
    kv_store, folder, *steps = sys.argv[1:]
    with connect(kv_store) as workers:
        if steps:
            train(workers, kv_store, int(*steps), pause=0.1)
            return
        ones = np.full((2, 3), workers.rank + 1, "float32")
        sums = workers.sum([ones, np.array(2**40 + workers.rank), np.array([1e-9, 1e9])])
        found = {f"sum{i}": array for i, array in enumerate(sums)}
        (found["mean"],) = workers.mean([ones])
        (found["broadcast"],) = workers.broadcast([np.arange(3) * (workers.rank + 1)])
        found["any"] = [workers.any(False), workers.any(workers.rank == 1)]
        parameters = train(workers, kv_store)
        found.update({f"parameter{i}": array for i, array in enumerate(parameters)})
        found["count"] = workers.count
        np.savez(Path(folder, f"{workers.rank}.npz"), **found)


if __name__ == "__main__":
    cli.run(main)
