"""Order, sizes and repeatability of batches, and their preparation in the background."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from gluon_resnetv2.data import ArrayDataset, Split, batch_images, normalise, num_batches, prefetch
from gluon_resnetv2.errors import UserError


def numbered(count: int, size: int = 8) -> ArrayDataset:
    """Gradients that differ; training image i has label i, test image i has label 1000 + i."""
    base = np.arange(size * size * 3, dtype=np.uint8).reshape(size, size, 3)
    images = base + np.arange(count, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(count, dtype=np.int32)
    return ArrayDataset(
        name="numbered",
        train=Split(images, labels),
        test=Split(images[::-1].copy(), 1000 + labels),
        classes=(),
        mean=(10.0, 20.0, 30.0),
        std=(2.0, 4.0, 8.0),
        pad=2,
        flip=True,
        fill=(10.0, 20.0, 30.0),
    )


def sizes(dataset, *args, **kwargs) -> list[int]:
    return [len(labels) for _, labels in dataset.batches(*args, **kwargs)]


SIZES = [
    # images, batch size, devices: sizes of the batches
    (10, 4, 1, [4, 4, 2]),
    (10, 4, 2, [4, 4, 2]),
    (10, 4, 3, [4, 6]),
    (9, 4, 1, [4, 4, 1]),
    (9, 4, 2, [4, 5]),
    (8, 4, 4, [4, 4]),
    (3, 8, 2, [3]),
    (8, 8, 8, [8]),
    (15, 8, 8, [15]),
    (1, 1, 1, [1]),
]


@pytest.mark.parametrize(("count", "batch_size", "devices", "expected"), SIZES)
@pytest.mark.parametrize("train", [True, False])
def test_sizes(count, batch_size, devices, expected, train):
    dataset = numbered(count)
    assert sizes(dataset, batch_size, train=train, devices=devices) == expected
    assert num_batches(count, batch_size, devices) == len(expected)


@pytest.mark.parametrize("count", range(1, 26))
def test_every_image_is_in_exactly_one_batch(count):
    dataset = numbered(count)
    for batch_size, devices in itertools.product(range(1, count + 2), range(1, 4)):
        if devices > min(batch_size, count):
            continue
        pairs = list(dataset.batches(batch_size, train=True, devices=devices))
        labels = np.concatenate([labels for _, labels in pairs])
        assert sorted(labels) == list(range(count))
        assert all(len(labels) >= devices for _, labels in pairs)


def test_an_image_for_every_device_or_an_error_at_once():
    with pytest.raises(UserError, match="a batch of 3 images is too small: 4 device"):
        numbered(10).batches(3, devices=4)
    with pytest.raises(UserError, match="the data set of 3 images is too small: 4 device"):
        num_batches(3, 8, 4)


def test_test_images_come_as_stored():
    dataset = numbered(10)
    images, labels = (np.concatenate(parts) for parts in zip(*dataset.batches(4, seed=3)))
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert list(labels) == list(range(1000, 1010))
    stored = np.moveaxis(dataset.test.images, 3, 1)
    for channel, (mean, std) in enumerate(zip(dataset.mean, dataset.std)):
        np.testing.assert_array_equal(images[:, channel], (stored[:, channel] - mean) / std)


def test_images_that_an_epoch_leaves_out_are_others_each_time():
    epochs = [
        np.concatenate([labels for _, labels in numbered(50).batches(20, train=True, **options)])
        for options in ({"images": 47, "epoch": 0}, {"images": 47, "epoch": 1})
    ]
    assert [len(np.unique(labels)) for labels in epochs] == [47, 47]
    assert set(epochs[0]) != set(epochs[1])


@pytest.mark.parametrize("flip", [False, True])
def test_training_images_keep_their_labels_and_are_mirrored_where_that_is_wanted(flip):
    dataset = dataclasses.replace(numbered(100), pad=0, flip=flip)
    stored = normalise(dataset.train.images, dataset.mean, dataset.std)
    mirrored = 0
    for images, labels in dataset.batches(16, train=True):
        assert images.flags.c_contiguous
        for image, label in zip(images, labels):
            if not np.array_equal(image, stored[label]):
                np.testing.assert_array_equal(image, stored[label][:, :, ::-1])
                mirrored += 1
    assert 30 < mirrored < 70 if flip else mirrored == 0


def test_training_images_are_moved_by_pad_and_padded_with_the_fill_colour():
    dataset = dataclasses.replace(numbered(100), flip=False, fill=(2.0, 4.0, 6.0))
    dataset.train.images[:] = 255
    colours = normalise(np.array([[[[255] * 3, dataset.fill]]]), dataset.mean, dataset.std)
    white, fill = colours[0, :, 0].T
    rows = []
    for images, _ in dataset.batches(16, train=True):
        is_fill = (images == fill[:, None, None]).all(axis=1)
        is_white = (images == white[:, None, None]).all(axis=1)
        assert (is_fill ^ is_white).all()
        rows.extend(is_fill.all(axis=2).sum(axis=1))
    assert set(rows) == {0, 1, 2}


@pytest.mark.parametrize("start", range(5))
def test_beginning_later_gives_the_rest_of_the_whole_pass(start):
    dataset = numbered(17)
    args = {"train": True, "seed": 7, "epoch": 2, "devices": 2}
    whole = list(dataset.batches(4, **args))
    rest = list(dataset.batches(4, start=start, **args))
    assert len(whole) == 4
    assert len(rest) == len(whole) - start
    for (images, labels), (again, labels_again) in zip(whole[start:], rest):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)


def test_order_depends_on_seed_and_epoch_alone():
    def order(batch_size=8, devices=1, **args):
        pairs = numbered(50).batches(batch_size, train=True, devices=devices, **args)
        return np.concatenate([labels for _, labels in pairs]).tolist()

    first = order(seed=1, epoch=1)
    assert first == order(seed=1, epoch=1, batch_size=20, devices=3)
    others = [order(seed=1, epoch=0), order(seed=0, epoch=1), order(seed=2, epoch=1)]
    assert first not in others
    assert first != list(range(50))


def test_augmentation_differs_between_steps_epochs_and_seeds():
    dataset = numbered(12)
    dataset.train.images[:] = dataset.train.images[0]  # so that order does not show

    def steps(**args):
        return [images.tobytes() for images, _ in dataset.batches(6, train=True, **args)]

    made = steps(seed=0, epoch=0) + steps(seed=0, epoch=1) + steps(seed=1, epoch=0)
    assert len(set(made)) == 6


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_together_get_what_one_alone_would_get(workers):
    dataset = numbered(50)
    alone = list(dataset.batches(8, train=True, devices=2 * workers, epoch=1))
    parts = [
        list(dataset.batches(8, train=True, devices=2, epoch=1, worker=worker, workers=workers))
        for worker in range(workers)
    ]
    assert {len(part) for part in parts} == {len(alone)}
    for together, *apart in zip(alone, *parts):
        assert min(len(labels) for _, labels in apart) >= 2
        for one, several in zip(together, zip(*apart)):
            np.testing.assert_array_equal(one, np.concatenate(several))


def test_workers_share_the_test_images():
    dataset = numbered(10)
    parts = [list(dataset.batches(4, worker=worker, workers=3)) for worker in range(3)]
    labels = np.concatenate([labels for part in parts for _, labels in part])
    assert sorted(labels) == list(range(1000, 1010))
    assert [len(part) for part in parts] == [3, 3, 2]  # the last batch has two images


@pytest.mark.parametrize(("count", "batch_size", "devices", "expected"), SIZES)
def test_sizes_are_known_beforehand(count, batch_size, devices, expected):
    steps = range(len(expected))
    assert [batch_images(count, batch_size, devices, step) for step in steps] == expected


# -- prefetch --------------------------------------------------------------------------------------


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def wait_for(condition, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.fixture(autouse=True)
def _no_thread_is_left_over():
    yield
    gc.collect()
    assert wait_for(lambda: not threads())


def test_prefetch_gives_every_item_in_order():
    for depth in (1, 2, 7):
        assert list(prefetch(range(100), depth)) == list(range(100))
    assert list(prefetch([])) == []
    assert list(prefetch([None, False, StopIteration])) == [None, False, StopIteration]


def test_prefetch_works_ahead_in_another_thread_and_no_further_than_depth():
    made = []

    def source():
        for i in range(100):
            made.append(threading.current_thread())
            yield i

    items = prefetch(source(), depth=3)
    assert next(items) == 0
    assert wait_for(lambda: len(made) == 4)
    time.sleep(0.05)
    assert len(made) == 4
    assert threading.current_thread() not in made
    items.close()


def test_prefetch_raises_the_sources_exception_in_its_turn():
    def source():
        yield 1
        yield 2
        raise UserError("no more")

    items = prefetch(source(), depth=5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(UserError, match="no more"):
        next(items)
    assert list(items) == []


@pytest.mark.parametrize("end", ["close", "forget", "exception"])
def test_prefetch_ends_its_thread_and_lets_go_of_the_source_when_the_consumer_stops(end):
    class Source:
        def __iter__(self):
            return self

        def __next__(self):
            return 1

    source = Source()
    alive = weakref.ref(source)
    items = prefetch(source)
    del source
    next(items)
    assert len(threads()) == 1
    if end == "close":
        items.close()
    elif end == "exception":
        with pytest.raises(ZeroDivisionError):
            sum(1 // 0 for _ in items)
    del items
    gc.collect()
    assert wait_for(lambda: not threads() and alive() is None)


def test_prefetch_makes_nothing_more_once_the_consumer_stopped():
    made, gate = [], threading.Event()

    def source():
        for i in range(100):
            made.append(i)
            if i == 1:
                gate.wait(10)
            yield i

    items = prefetch(source(), depth=3)
    assert next(items) == 0
    assert wait_for(lambda: made == [0, 1])
    items.close()  # returns although 1 is still being made
    gate.set()
    assert wait_for(lambda: not threads())
    assert made == [0, 1]


def test_prefetch_does_not_delay_the_end_of_the_interpreter():
    program = """
import itertools, time
from gluon_resnetv2.prefetch import prefetch
items = prefetch(itertools.repeat(0), depth=3)
print(next(items))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")
