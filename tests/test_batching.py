"""Batches: who computes with whom, in which order, and who is refused."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from gluon_resnetv2.serving import batching
from gluon_resnetv2.serving.batching import Batcher, Closed, Full

PATIENCE = 30  # seconds


class Network:
    """Doubles its inputs; each call waits for `go`, where that is asked for."""

    def __init__(self, waits=False):
        self.sizes, self.started, self.go = [], threading.Semaphore(0), threading.Semaphore(0)
        self._waits = waits

    def __call__(self, images):
        self.sizes.append(len(images))
        self.started.release()
        if self._waits:
            assert self.go.acquire(timeout=PATIENCE)
        if (images < 0).any():
            raise ValueError("negative")
        return 2 * images[:, :, 0, 0]


def images(*numbers):
    return np.float32(numbers).reshape(-1, 1, 1, 1)


LOOP = asyncio.new_event_loop()


def in_loop(coroutine):
    """Has a loop of another thread run it; what it returns, as a future of this thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, LOOP)


@pytest.fixture(autouse=True, scope="module")
def loop():
    thread = threading.Thread(target=LOOP.run_forever)
    thread.start()
    yield
    LOOP.call_soon_threadsafe(LOOP.stop)
    thread.join(PATIENCE)
    LOOP.close()


def submit(batcher, rows):
    """The outputs that `rows` will have; they are in the queue when this returns."""

    async def taken():
        return batcher.submit_async(rows)

    future = in_loop(taken()).result(PATIENCE)

    async def answered():
        return await future

    return in_loop(answered())


@pytest.fixture
def network():
    return Network(waits=True)


@pytest.fixture
def start(network):
    """Starts a batcher whose network computes an image of 0 until it may go on."""
    batchers = []

    def start(**options):
        batchers.append(Batcher(network, **options))
        first = submit(batchers[-1], images(0))
        assert network.started.acquire(timeout=PATIENCE)
        return batchers[-1], first

    yield start
    for _ in range(100):
        network.go.release()
    for batcher in batchers:
        batcher.close()


def test_what_waits_makes_up_the_next_batch(start, network):
    batcher, first = start()
    futures = [submit(batcher, images(*row)) for row in ([1], [2, 3], [4])]
    assert batcher.waiting == 4
    for _ in range(2):
        network.go.release()
    assert first.result(PATIENCE).tolist() == [[0]]
    assert [f.result(PATIENCE).ravel().tolist() for f in futures] == [[2], [4, 6], [8]]
    assert network.sizes == [1, 4]
    assert batcher.waiting == 0


def test_batches_keep_the_order_and_the_largest_size(start, network):
    batcher, _ = start(max_batch=4)
    rows = [[1, 2], [3], [4, 5], [6, 7, 8, 9, 10], [11]]
    futures = [submit(batcher, images(*row)) for row in rows]
    for _ in range(5):
        network.go.release()
    found = [future.result(PATIENCE).ravel().tolist() for future in futures]
    assert found == [[2 * number for number in row] for row in rows]
    assert network.sizes == [1, 3, 2, 5, 1]


@pytest.mark.parametrize(
    ("waiting", "sizes"),
    [
        (3, [3]),
        (5, [4, 1]),
        (6, [6]),
        (9, [8, 1]),
        (12, [12]),
        (18, [16, 2]),
    ],
)
def test_no_batch_is_padded_by_more_than_a_third(start, network, waiting, sizes):
    """To the next power of two, that is."""
    batcher, _ = start()
    futures = [submit(batcher, images(number)) for number in range(waiting)]
    for _ in range(1 + len(sizes)):
        network.go.release()
    assert [future.result(PATIENCE).item() for future in futures] == list(range(0, 2 * waiting, 2))
    assert network.sizes == [1, *sizes]


def test_a_thread_waits_for_as_many_as_were_under_way(start, network, monkeypatch):
    monkeypatch.setattr(batching, "FILLING", 10**6)  # as long as it takes
    batcher, first = start()
    futures = [submit(batcher, images(number)) for number in range(3)]
    network.go.release()
    first.result(PATIENCE)
    time.sleep(0.05)
    assert network.sizes == [1]  # 1 and 3 were under way, and 3 wait
    futures.append(submit(batcher, images(3)))
    network.go.release()
    assert [future.result(PATIENCE).item() for future in futures] == [0, 2, 4, 6]
    assert network.sizes == [1, 4]


def test_a_thread_does_not_wait_for_ever_for_what_does_not_come(start, network):
    batcher, _ = start()
    before = [submit(batcher, images(number)) for number in range(4)]
    for _ in range(5):
        network.go.release()
    assert [future.result(PATIENCE).item() for future in before] == [0, 2, 4, 6]
    assert submit(batcher, images(1)).result(PATIENCE).item() == 2


def test_without_batching_each_request_computes_alone(start, network):
    batcher, _ = start(batching=False)
    futures = [submit(batcher, images(1)) for _ in range(3)]
    for _ in range(4):
        network.go.release()
    assert [future.result(PATIENCE).item() for future in futures] == [2, 2, 2]
    assert network.sizes == [1, 1, 1, 1]


def test_a_full_queue_refuses_until_there_is_room(start, network):
    batcher, _ = start(queue=3)
    last = submit(batcher, images(1, 2))
    with pytest.raises(Full, match="2 images"):
        submit(batcher, images(3, 4))
    for _ in range(3):
        network.go.release()
    last.result(PATIENCE)
    assert submit(batcher, images(1, 2, 3, 4)).result(PATIENCE).size == 4  # nobody else waits


def test_images_that_are_not_ready_take_their_place_in_the_queue(start, network):
    batcher, _ = start(queue=3)
    batcher.reserve(2)
    with pytest.raises(Full, match="2 images"):
        submit(batcher, images(1, 2))
    with pytest.raises(Full):
        batcher.reserve(2)
    submit(batcher, images(1))
    batcher.release(2)
    submit(batcher, images(2, 3))
    with pytest.raises(Full, match="3 images"):
        batcher.reserve(1)


def test_an_error_is_told_to_those_it_concerns_and_the_thread_goes_on():
    batcher = Batcher(Network(), batching=False)
    with pytest.raises(ValueError, match="negative"):
        submit(batcher, images(-1)).result(PATIENCE)
    assert submit(batcher, images(1)).result(PATIENCE).item() == 2
    batcher.close()


def test_requests_that_do_not_go_together_are_told_and_the_thread_goes_on(start, network):
    batcher, _ = start()
    futures = [submit(batcher, images(1)), submit(batcher, np.zeros((1, 1, 2, 2), "float32"))]
    for _ in range(3):
        network.go.release()
    for future in futures:
        with pytest.raises(ValueError, match="dimension"):
            future.result(PATIENCE)
    assert submit(batcher, images(2)).result(PATIENCE).item() == 4


def test_an_observer_that_fails_does_not_end_the_thread():
    batcher = Batcher(Network(), observe=lambda images: 1 // (images - 2))
    with pytest.raises(ZeroDivisionError):
        submit(batcher, images(1, 2)).result(PATIENCE)
    assert submit(batcher, images(1)).result(PATIENCE).item() == 2
    batcher.close()


def test_rows_that_are_not_as_many_as_the_images_are_nobodys():
    batcher = Batcher(lambda images: images[1:, :, 0, 0])
    with pytest.raises(ValueError, match="2 rows were computed for 3 images"):
        submit(batcher, images(1, 2, 3)).result(PATIENCE)
    batcher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_known_to_have():
    def leave(images):
        raise SystemExit

    batcher = Batcher(leave)
    assert batcher.alive
    submit(batcher, images(1))
    batcher.close()
    assert not batcher.alive


def test_what_was_cancelled_is_not_computed(start, network):
    batcher, _ = start()
    cancelled, other = submit(batcher, images(1, 2, 3)), submit(batcher, images(4))
    assert cancelled.cancel()
    in_loop(asyncio.sleep(0)).result(PATIENCE)  # the loop has been told
    network.go.release()
    network.go.release()
    assert other.result(PATIENCE).item() == 8
    assert network.sizes == [1, 1]


def test_the_sizes_of_batches_are_told(start, network):
    sizes = []
    batcher, _ = start(observe=sizes.append)
    last = submit(batcher, images(1, 2))
    network.go.release()
    network.go.release()
    last.result(PATIENCE)
    assert sizes == [1, 2]


def test_closing_answers_what_was_taken_and_takes_no_more(start, network):
    batcher, first = start()
    last = submit(batcher, images(1))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    refused = []
    while not refused:  # until the thread is there
        try:
            batcher.reserve(1)
        except Closed as closed:
            refused.append(closed)
    with pytest.raises(Closed):
        submit(batcher, images(2))
    network.go.release()
    network.go.release()
    closing.join(PATIENCE)
    assert (first.result(PATIENCE).item(), last.result(PATIENCE).item()) == (0, 2)


def test_closing_in_a_hurry_answers_what_computes_and_tells_the_rest(start, network):
    batcher, first = start()
    last = submit(batcher, images(1))
    closing = threading.Thread(target=batcher.close, kwargs={"patience": 0})
    closing.start()
    with pytest.raises(Closed):
        last.result(PATIENCE)
    network.go.release()
    closing.join(PATIENCE)
    assert first.result(PATIENCE).item() == 0


def test_event_loops_share_batches_and_each_get_their_own():
    batcher = Batcher(Network())
    wrong = []

    async def client(number):
        for step in range(20):
            row = [number, step]
            found = await batcher.submit_async(images(*row))
            wrong.append(found.ravel().tolist() != [2 * number, 2 * step])

    async def clients():
        await asyncio.gather(*(client(number) for number in range(8)))

    other = threading.Thread(target=lambda: asyncio.run(clients()))
    other.start()
    asyncio.run(clients())
    other.join(PATIENCE)
    assert len(wrong) == 2 * 8 * 20
    assert not any(wrong)
    batcher.close()


def test_an_event_loop_that_ended_disturbs_nobody(start, network):
    batcher, _ = start()

    async def leave():
        batcher.submit_async(images(1))

    asyncio.run(leave())
    network.go.release()
    network.go.release()
    network.go.release()
    assert submit(batcher, images(2)).result(PATIENCE).item() == 4
