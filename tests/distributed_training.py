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
    from gluon_resnetv2.training.optimizer import set_learning_rate
    from gluon_resnetv2.training.recipe import Recipe
    from gluon_resnetv2.training.schedule import Steps

MOMENTUM, DECAY = 0.9, 0.01
cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
schedule = Steps(0.1, (5,), 0.5)
RECIPE = Recipe(momentum_correction=True)


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


def train(workers, steps=10, pause=0.0):
    """Trains on this worker's part of each batch; returns the parameters."""
    net = network()
    trainer = gluon.Trainer(
        net.collect_params(),
        mx.optimizer.SGD(momentum=MOMENTUM, wd=DECAY),
        kvstore=workers.store,
        update_on_kvstore=False,
    )
    for step, (images, labels) in enumerate(batches(steps)):
        count = len(labels)
        images, labels = (np.array_split(a, workers.count)[workers.rank] for a in (images, labels))
        with autograd.record():
            loss = cross_entropy(net(mx.nd.array(images)), mx.nd.array(labels))
        loss.backward()
        set_learning_rate(trainer, RECIPE, schedule, step)
        trainer.step(count)
        if pause:
            mx.nd.waitall()
            if step == 1:
                workers.up()
                print("up", flush=True)
            time.sleep(pause)
    mx.nd.waitall()
    return [p.data().asnumpy() for p in net.collect_params().values()]


def train_on_servers(workers):
    """Ten steps of dist_async with a gradient of 3 whatever the weights are; returns these.

    In whatever order the servers get the gradients, the result is the same.
    """
    net = gluon.nn.Dense(1, in_units=2, use_bias=False)
    net.initialize(mx.init.One())
    optimizer = ServerOptimizer(
        mx.optimizer.SGD(momentum=MOMENTUM, wd=DECAY), schedule, workers.count
    )
    trainer = gluon.Trainer(net.collect_params(), optimizer, kvstore=workers.store)
    for _ in range(10):
        with autograd.record():
            output = net(mx.nd.ones((3, 2)))
        output.backward()
        trainer.step(8)
    mx.nd.waitall()
    workers.barrier()
    workers.store.pull(0, out=net.weight.data())  # the other one's last steps
    return [net.weight.data().asnumpy()]


def main() -> None:
    kv_store, folder, *steps = sys.argv[1:]
    with connect(kv_store) as workers:
        if steps:
            train(workers, int(*steps), pause=0.1)
            return
        ones = np.full((2, 3), workers.rank + 1, "float32")
        sums = workers.sum([ones, np.array(2**40 + workers.rank), np.array([1e-9, 1e9])])
        found = {f"sum{i}": array for i, array in enumerate(sums)}
        (found["mean"],) = workers.mean([ones])
        found["any"] = [workers.any(False), workers.any(workers.rank == 1)]
        parameters = (train_on_servers if kv_store == "dist_async" else train)(workers)
        found.update({f"parameter{i}": array for i, array in enumerate(parameters)})
        found["count"] = workers.count
        np.savez(Path(folder, f"{workers.rank}.npz"), **found)


if __name__ == "__main__":
    cli.run(main)
