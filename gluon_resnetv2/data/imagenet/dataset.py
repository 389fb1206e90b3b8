"""ImageNet as training and evaluation see it, whatever holds the files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from gluon_resnetv2 import machine
from gluon_resnetv2.data import normalise, num_batches, random_numbers
from gluon_resnetv2.data.batching import Batch
from gluon_resnetv2.data.dataset import Colour
from gluon_resnetv2.data.imagenet.augment import Augmentation
from gluon_resnetv2.data.imagenet.damage import check
from gluon_resnetv2.data.imagenet.folder import Folder
from gluon_resnetv2.data.imagenet.images import Source, centre_crop, read
from gluon_resnetv2.data.imagenet.records import Records
from gluon_resnetv2.errors import UserError

# Of each channel over the training images of ILSVRC 2012, in 0..255: the numbers that
# fb.resnet.torch, torchvision and GluonCV share.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

Views = Callable[[Image.Image], list[Image.Image]]
Viewed = tuple[list[list[NDArray[np.float32]]], NDArray[np.int32]]  # and labels


def load(
    data_dir: str | os.PathLike[str],
    *,
    image_size: int = 224,
    test_size: int | None = None,
    crop: float = 0.875,
    augmentation: str = "scale",
    colour: bool = True,
    mean: Colour = MEAN,
    std: Colour = STD,
    threads: int | None = None,
    leave_out: bool = False,
) -> ImageNet:
    """The data set in `data_dir`, for training and evaluation.

    Either part is a RecordIO file, train.rec and val.rec with .idx and .lst as `pack` writes them,
    or else a folder, `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`. Classes are numbered in the order
    of their names in the training part; those of the other part are a subset.

    Args:
        image_size: height and width of the training crops in pixels.
        test_size: of the evaluation crops; `image_size` by default. [v2], Table 5 uses 320 as well.
        crop: the part of the shorter side that an evaluation crop keeps: the shorter side is scaled
            to test_size / crop, 256 for 224 and 366 for 320.
        augmentation: "scale" or "scale-aspect", as in `Augmentation`.
        colour: whether training adds random light.
        mean, std: of each channel, 0..255; ImageNet's by default.
        threads: that decode; one per CPU by default.
        leave_out: whether images that can't be decoded are left out; else they are an error where
            the part that holds them is first used.

    Raises:
        UserError: nothing that can be read there, or an option out of range.
    """
    root, test_size = Path(data_dir), test_size or image_size
    if min(image_size, test_size) < 1 or not 0 < crop <= 1:
        raise UserError("image_size and test_size must be at least 1, and crop above 0 up to 1")
    return ImageNet(
        train=_part(root, "train"),
        test=_part(root, "val"),
        augmentation=Augmentation(augmentation, image_size, colour),
        test_size=test_size,
        crop=crop,
        mean=mean,
        std=std,
        threads=threads or machine.cpus(),
        leave_out=leave_out,
    )


def _part(root: Path, name: str) -> Source:
    if (root / f"{name}.rec").exists():
        records = Records(root / f"{name}.rec")
        records.check_list()
        return records
    if (root / name).is_dir():
        return Folder(root / name)
    raise UserError(f"{root} has neither {name}.rec nor a folder {name}; name another --data-dir")


class ImageNet:
    """Training and test images, decoded as they are needed.

    A part's images are checked before anything is made of it, once for ever (`damage.check`); with
    the training images the test images are, too.

    Attributes:
        name: "imagenet".
        classes: the classes' names.
        mean: of each channel, 0 to 255; images are normalised by it.
        std: the same of the standard deviation.
        image_shape: (3, height, width) of an evaluated image.
        train_count: how many training images there are.
        test_count: how many test images.
        test_size: as `load` takes it.
        crop: as `load` takes it.

    Raises:
        UserError: the test images have a class that the training images lack; later, images that
            can't be decoded.
    """

    name = "imagenet"

    def __init__(
        self,
        train: Source,
        test: Source,
        augmentation: Augmentation,
        test_size: int,
        crop: float,
        mean: Colour,
        std: Colour,
        threads: int,
        leave_out: bool,
    ):
        self._parts, self._augmentation, self._leave_out = (train, test), augmentation, leave_out
        self.classes = train.classes
        self._train_numbers = dict(zip(train.class_labels, range(len(train.classes))))
        self._test_numbers = _numbers(train, test)
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_shape = (3, test_size, test_size)
        self._train_shape = (3, augmentation.size, augmentation.size)
        self.test_size, self.crop = test_size, crop
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._checked: set[Source] = set()  # of the parts, those that were

    @property
    def train_count(self) -> int:
        return len(self._train)

    @property
    def test_count(self) -> int:
        return len(self._test)

    @property
    def _train(self) -> Source:
        return self._usable(0)

    @property
    def _test(self) -> Source:
        return self._usable(1)

    def _usable(self, number: int) -> Source:
        """The training or the test images, whose damaged ones are known and not among them."""
        new = [part for part in self._parts[number:] if part not in self._checked]
        check(new, self._pool, self._leave_out)
        self._checked.update(new)
        return self._parts[number]

    def batches(
        self,
        batch_size: int,
        *,
        train: bool = False,
        images: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        devices: int = 1,
        start: int = 0,
        worker: int = 0,
        workers: int = 1,
    ) -> Iterator[Batch]:
        """One pass over the training images, shuffled and augmented, or over the test images.

        What a training step gets depends on (seed, epoch, step) alone, whatever the number of
        threads, and from RecordIO on what stands under which key: each image has random numbers of
        its own in each epoch, and steps left out cost nothing.

        Args:
            batch_size: images per batch, over all devices and workers.
            train: the training images rather than the test images, which come in order, each once.
            images: so many of them, drawn anew each epoch, rather than all.
            devices: among how many a worker's batch will be split.
            start: steps to leave out.
            worker, workers: which part of every batch to read. All workers get equally many
                training batches.

        Yields:
            Images, float32 (n, 3, size, size), normalised by mean and std; and labels, int32 (n,).

        Raises:
            UserError: batches too small for the devices, or images that can't be decoded.
        """
        if not train:
            return self._test_batches(batch_size, start, worker, workers)
        images = images or self.train_count
        steps = num_batches(images, batch_size, devices * workers)
        order = random_numbers(seed, epoch).permutation(self.train_count)[:images]
        batches = np.split(order, np.arange(1, steps) * batch_size)[start:]
        return (
            self._training_batch(np.array_split(rows, workers)[worker], seed, epoch)
            for rows in batches
        )

    def views(self, count: int, make: Views) -> Iterator[Viewed]:
        """The test images in order, `count` at a time, each in several views.

        Args:
            make: what the views of an image are, such as `images.ten_crops`.

        Yields:
            For each image its views, float32 (3, H, W), normalised by mean and std; and labels,
            int32 (count,), fewer at the end.

        Raises:
            UserError: an image can't be decoded.
        """
        for first in range(0, self.test_count, count):
            yield self._views(range(first, min(first + count, self.test_count)), make)

    def _views(self, rows: Iterable[int], make: Views) -> Viewed:
        source = self._test

        def one(row: int) -> tuple[list[NDArray[np.float32]], int]:
            image, label = read(source, row)
            views = [self._normalise(np.asarray(view), self.mean) for view in make(image)]
            return views, _number(self._test_numbers, label, source)

        views, labels = zip(*self._pool.map(one, rows))
        return list(views), np.array(labels, np.int32)

    def _test_batches(
        self, batch_size: int, start: int, worker: int, workers: int
    ) -> Iterator[Batch]:
        make = partial(centre_crop, size=self.test_size, crop=self.crop)
        for first in range(start * batch_size, self.test_count, batch_size):
            batch = range(first, min(first + batch_size, self.test_count))
            rows = np.array_split(batch, workers)[worker]
            if len(rows):
                views, labels = self._views(rows, make)
                yield np.stack([view for (view,) in views]), labels

    def _training_batch(self, rows: NDArray[np.intp], seed: int, epoch: int) -> Batch:
        images = np.empty((len(rows), *self._train_shape), np.float32)
        labels = np.empty(len(rows), np.int32)
        source = self._train

        def fill(place: int) -> None:
            row = rows[place]
            image, label = read(source, row)
            pixels, light = self._augmentation(image, random_numbers(seed, epoch, row))
            images[place] = self._normalise(pixels, self.mean - light)
            labels[place] = _number(self._train_numbers, label, source)

        for _ in self._pool.map(fill, range(len(rows))):
            pass  # raises what a thread raised
        return images, labels

    def _normalise(self, pixels: NDArray[np.uint8], mean: ArrayLike) -> NDArray[np.float32]:
        return normalise(pixels[None], mean, self.std).squeeze(0)


def _numbers(train: Source, test: Source) -> dict[int, int]:
    """The class of each label that test images may bear; by name, where both have names."""
    if not (train.named and test.named):
        return dict(zip(train.class_labels, range(len(train.classes))))
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise UserError(f"the test images have class {unknown[0]}, which no training image has")
    return {
        label: train.classes.index(name) for label, name in zip(test.class_labels, test.classes)
    }


def _number(numbers: dict[int, int], label: int, source: Source) -> int:
    if label not in numbers:
        raise UserError(f"{source.path} has an image of label {label:g}, which no class has")
    return numbers[label]
