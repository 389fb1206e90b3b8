"""Training images from RecordIO through MXNet's C++ iterator, every one exactly once.

What `mx.io.ImageRecordIter` of MXNet 1.9.1 does, and what follows:

- With `round_batch` the last batch is filled up with images of the start; without it the rest of
  that batch is memory that nobody wrote, and `pad` is 0 all the same. So we count.
- `part_index` deals out contiguous parts of ceil(N / parts) records, so the file has to be in
  random order (as `pack` leaves it), and parts differ in size. So we cut batches ourselves.
- Without `seed_aug` the random numbers of an image depend on the thread that it falls to. With it
  they depend on the image's place in the iterator's batch, and on no more. So the order is drawn
  anew for each epoch, and `seed_aug` too, and the iterator's batches have a size of their own:
  within one epoch, images CHUNK apart are cropped, mirrored and lit alike.
- Up to 16 batches are made ahead. So they are made in uint8, and normalised here.
- A record that is no image ends the process (with `resize` by a division by zero), and one cut
  short is made up. So only files are read whose images were all decoded once: `Records.check`.
"""

from __future__ import annotations

from collections.abc import Iterator

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.imagenet.augment import Augmentation
from gluon_resnetv2.imagenet.records import Records

CHUNK = 256  # images; 39 MB at 224 x 224, of which MXNet keeps up to 20


def batch_ends(
    count: int, batch_size: int, steps: int, devices: int, worker: int, workers: int
) -> np.ndarray:
    """Where in a worker's part of `count` records its `steps` batches end, (steps,).

    All are `batch_size / workers` long but the last, which takes what is left, and those before it
    where it would otherwise be left without an image for each device.

    Raises:
        UserError: `workers` does not divide `batch_size`, or a part is too small.
    """
    if batch_size % workers:
        raise UserError(
            f"--batch-size {batch_size} can't be divided among {workers} workers; RecordIO needs "
            "a multiple"
        )
    part = -(-count // workers)
    mine = min(part, count - worker * part)
    # Asked of the smallest part, the last, so that all workers refuse together.
    if count - (workers - 1) * part < steps * devices:
        raise UserError(
            f"{count} images are too few for {workers} workers of {devices} device(s) each"
        )
    done = np.arange(1, steps + 1)
    ends = np.minimum(done * (batch_size // workers), mine - (steps - done) * devices)
    ends[-1] = mine
    return ends


def training_chunks(
    records: Records,
    augmentation: Augmentation,
    seeds: tuple[int, int],
    threads: int,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One pass over a worker's part of `records`, shuffled and augmented, up to CHUNK at a time.

    Args:
        records: of which `check` was called.
        seeds: of the order and of the augmentation, below 2^30. The same ones give the same images
            whatever `threads` is.
        threads: that decode; MXNet takes half as many as there are CPUs at most.

    Yields:
        images: uint8 (n, 3, size, size).
        labels: float32 (n,), as in the file.
    """
    part = -(-len(records) // workers)
    left = min(part, len(records) - worker * part)
    size = min(CHUNK, left)
    iterator = mx.io.ImageRecordIter(
        path_imgrec=str(records.path),
        path_imgidx=str(records.index),
        batch_size=size,
        round_batch=False,
        shuffle=True,
        seed=seeds[0],
        seed_aug=seeds[1],
        part_index=worker,
        num_parts=workers,
        preprocess_threads=threads,
        dtype="uint8",
        device_id=-1,  # plain memory, where GPUs have pinned memory as well
        verbose=False,
        **augmentation.iterator_options(),
    )
    while left:
        batch = iterator.next()
        take = min(size, left)
        yield batch.data[0].asnumpy()[:take], batch.label[0].asnumpy()[:take]
        left -= take


def rebatch(chunks: Iterator[tuple], ends: np.ndarray, start: int) -> Iterator[tuple]:
    """Batches that end at `ends`, without the first `start`, of what `chunks` have in a row."""
    images, labels = next(chunks)
    first = 0  # where the chunk at hand begins
    for begin, end in zip(np.concatenate([[0], ends])[start:], ends[start:]):
        pieces = []
        while begin < end:
            while begin >= first + len(labels):
                first += len(labels)
                images, labels = next(chunks)
            here = slice(begin - first, end - first)
            pieces.append((images[here], labels[here]))
            begin += len(pieces[-1][1])
        yield tuple(np.concatenate(parts) for parts in zip(*pieces))
