"""The processes that train together, and what they do together besides exchanging gradients."""

from __future__ import annotations

import os
from collections.abc import Sequence

import mxnet as mx
import numpy as np

from gluon_resnetv2.distributed import PARAMETER_SERVER, watch
from gluon_resnetv2.distributed.server_optimizer import FIRST_KEY, ServerOptimizer
from gluon_resnetv2.errors import UserError, python

SET_MULTI_PRECISION = 1  # a command to servers, kSetMultiPrecision of kvstore_dist_server.h
PARTS = 3  # float32 numbers that hold a float64 one


class Workers:
    """This process among those that train together; here, alone.

    `rank`, 0 to `count` - 1, says which one this is: only 0 writes files. `store` is what
    gluon.Trainer takes as its kvstore. As a context it ends with `close` where it ends well.

    All methods but `up` are collective: every worker calls them, in the same order. A worker that
    doesn't lets the others wait until `launch` ends them.
    """

    rank, count = 0, 1
    _is_up = False

    def __init__(self, store):
        self.store = store

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()

    def sum(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The sums over all workers, in the shapes and dtypes given.

        They are added up in float64 and in the order of the ranks, so every worker gets the same
        bits each time. Integers are exact up to 2^53; the range is that of float32.
        """
        return _unpack(self._gather(_pack(arrays)).sum(axis=0), arrays)

    def mean(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The means over all workers, as `sum`."""
        return _unpack(self._gather(_pack(arrays)).mean(axis=0), arrays)

    def any(self, flag: bool) -> bool:
        """Whether some worker's flag is true."""
        return bool(self._gather(np.array([float(flag)])).any())

    def barrier(self) -> None:
        """Waits for all workers."""
        self.any(False)

    def up(self) -> None:
        """Tells `launch`, once, that training is under way: a failure is no failed start then."""
        if not self._is_up:
            watch.tell(up=True)
        self._is_up = True

    def close(self) -> None:
        """Says that the training is done, and leaves the others when all have said so.

        The store, and a Trainer on it, can't be used afterwards.
        """

    def _gather(self, flat: np.ndarray) -> np.ndarray:
        """Every worker's numbers (n,), float64, as (count, n) in the order of the ranks."""
        return flat[None]


def _pack(arrays):
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])


def _unpack(flat, arrays):
    arrays = [np.asarray(array) for array in arrays]
    parts = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
    return [part.reshape(array.shape).astype(array.dtype) for part, array in zip(parts, arrays)]


class ParameterServer(Workers):
    """Workers of MXNet's parameter server, on a store of its types dist_sync or dist_device_sync.

    `rank` is the number that `launch` gave; ps-lite's own, `store.rank`, may be another. So the
    Trainer's initial values, which it takes from the store's rank 0, have to be equal beforehand.
    """

    def __init__(self, store):
        super().__init__(store)
        # Started by something else than `launch`, ps-lite's number is all there is.
        self.rank = int(watch.role.split()[1]) if watch.role else store.rank
        self.count = store.num_workers
        self._keys: dict[int, list[int]] = {}  # for so many numbers
        self._next_key = FIRST_KEY
        # Servers leave it to chance whether they add up in an array's own type or in float32.
        store._send_command_to_servers(SET_MULTI_PRECISION, "")

    def close(self) -> None:
        mx.nd.waitall()
        self.barrier()
        watch.tell(done=True)
        # ps-lite ends with a barrier of all processes. Here: in the interpreter's shutdown no
        # thread would be left to end this process where the others never come.
        handle, self.store.handle = self.store.handle, mx.base.KVStoreHandle()
        mx.base.check_call(mx.base._LIB.MXKVStoreFree(handle))

    def _gather(self, flat):
        # A sum in which all but one worker give zeros hands on what that one gave.
        rows = np.zeros((self.count, PARTS * flat.size), np.float32)
        rows[self.rank] = _split(flat)
        (key,) = self._keys_for(rows.size, 1)
        rows = mx.nd.array(rows.ravel(), dtype="float32")
        # Without an optimiser the servers keep the sum of one push of every worker.
        self.store.pushpull(key, rows, out=rows)
        return _join(rows.asnumpy().reshape(self.count, -1))

    def _keys_for(self, size: int, count: int) -> list[int]:
        """So many keys for arrays of so many numbers; all workers come here together."""
        if size not in self._keys:
            self._keys[size] = list(range(self._next_key, self._next_key + count))
            self._next_key += count
            for key in self._keys[size]:
                self.store.init(key, mx.nd.zeros(size))
        return self._keys[size]


def _split(flat):
    """float64 (n,) as PARTS times as many float32, which servers can be relied on to keep."""
    parts = []
    with np.errstate(over="ignore", invalid="ignore"):  # of what is not finite
        for _ in range(PARTS):
            part = flat.astype(np.float32)
            parts.append(part)
            flat = np.where(np.isfinite(part), flat - part, 0)
    return np.concatenate(parts)


def _join(rows):
    return sum(np.split(rows.astype(np.float64), PARTS, axis=1))


class _Store(mx.kv.KVStore):
    """A store whose `broadcast` is over when it returns.

    MXNet's scheduler may run the pull in it after the first gradients of the same key have been
    summed up, and a worker then trains with those sums in place of its initial values. It did so in
    five of eight runs of a tiny network.
    """

    def broadcast(self, key, value, out, priority=0):
        super().broadcast(key, value, out, priority)
        for array in out if isinstance(out, (list, tuple)) else [out]:
            array.wait_to_read()


class AsyncParameterServer(ParameterServer):
    """Workers of dist_async, whose servers wait for nobody and so have nothing to sum up.

    The Trainer's optimizer has to be a `ServerOptimizer`.
    """

    def __init__(self, store):
        super().__init__(store)
        store.set_optimizer(ServerOptimizer(mx.optimizer.SGD(), float, 1))  # so that `sum` works

    def _gather(self, flat):
        own = mx.nd.array(_split(flat), dtype="float32")
        keys = self._keys_for(own.size, self.count)  # one that each worker overwrites
        self.store.pushpull(keys[self.rank], own, out=own)
        own.wait_to_read()
        self.store._barrier()
        rows = [mx.nd.zeros(own.size) for _ in keys]
        for key, row in zip(keys, rows):
            self.store.pull(key, out=row)
        gathered = np.stack([row.asnumpy() for row in rows])
        self.store._barrier()  # nobody overwrites what another one has yet to read
        return _join(gathered)


def connect(kv_store: str) -> Workers:
    """Finds the other workers, by what their launcher left in the environment.

    `kv_store` is one of PARAMETER_SERVER, or a store of one process, as "device".

    Raises:
        UserError: it doesn't fit how this process was started, or something is missing.
    """
    launched = "DMLC_ROLE" in os.environ
    if kv_store in PARAMETER_SERVER:
        if not launched:
            raise UserError(
                f"--kv-store {kv_store} is for several processes: put "
                f"`{python('-m', 'gluon_resnetv2', 'launch', '--workers', 'N', '--')}` before the "
                "command"
            )
        watch.start()
        store = mx.kv.create(kv_store)
        store.__class__ = _Store
        watch.tell(connected=True)
        return (AsyncParameterServer if kv_store == "dist_async" else ParameterServer)(store)
    if launched:
        raise UserError(
            f"--kv-store {kv_store} is for one process, and this one is of several: use dist_sync"
        )
    return Workers(kv_store)
