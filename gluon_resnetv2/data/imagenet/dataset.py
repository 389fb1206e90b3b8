"""ImageNet as training and evaluation see it, whatever holds the files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from gluon_resnetv2 import machine
from gluon_resnetv2.data.augment import normalise
from gluon_resnetv2.data.batching import Batch, num_batches, random_numbers
from gluon_resnetv2.data.dataset import Colour
from gluon_resnetv2.data.imagenet.augment import LUMA, Augmentation
from gluon_resnetv2.data.imagenet.damage import check
from gluon_resnetv2.data.imagenet.folder import Folder
from gluon_resnetv2.data.imagenet.images import Source, centre_crop, read
from gluon_resnetv2.data.imagenet.records import Records
from gluon_resnetv2.data.policies import NO_POLICY, Policy
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
    flip: bool | None = None,
    in_channels: int | None = None,
    mean: Colour = MEAN,
    std: Colour = STD,
    threads: int | None = None,
    leave_out: bool = False,
    interpolation: str = "bilinear",
    stretch: bool = False,
) -> ImageFiles:
    """The data set in `data_dir`, for training and evaluation.

    Either part is a RecordIO file, train.rec and val.rec with .idx and .lst as `pack` writes them,
    or else a folder, `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`. Classes are numbered in the order
    of their names in the training part; the test part's classes are among them.

    Args:
        image_size: height and width of the training crops in pixels.
        test_size: the same of the evaluation crops; `image_size` by default. [v2], Table 5 uses 320
            as well.
        crop: the part of the shorter side that an evaluation crop keeps: the shorter side is scaled
            to test_size / crop, 256 for 224 and 366 for 320.
        augmentation: "scale" or "scale-aspect", as in `Augmentation`.
        colour: whether training adds random light.
        flip: whether training mirrors half of the images; it does by default.
        in_channels: 3 for red, green and blue, the default, or 1 for grey.
        mean, std: of red, green and blue, 0..255; ImageNet's by default.
        threads: how many threads decode images; one per CPU by default.
        leave_out: whether images that can't be decoded are left out; else they are an error where
            the part that holds them is first used.
        interpolation, stretch: how images are scaled, as `pixels.centre` takes it; boxes that are
            cut out at random are never stretched more than their augmentation says.

    Raises:
        UserError: the folder holds nothing that can be read, or an option is out of range.
    """
    root, test_size = Path(data_dir), test_size or image_size
    if min(image_size, test_size) < 1 or not 0 < crop <= 1:
        raise UserError("image_size and test_size must be at least 1, and crop above 0 up to 1")
    return ImageFiles(
        "imagenet",
        train=part(root, "train"),
        test=part(root, "val"),
        augmentation=Augmentation(
            augmentation, image_size, colour, flip is not False, interpolation
        ),
        test_size=test_size,
        crop=crop,
        mean=mean,
        std=std,
        channels=in_channels or 3,
        threads=threads or machine.cpus(),
        leave_out=leave_out,
        stretch=stretch,
    )


def part(root: Path, *names: str) -> Source:
    """The part of a data set that has one of these names: NAME.rec, or a folder.

    Raises:
        UserError: there is none, or it can't be read.
    """
    for name in names:
        if (root / f"{name}.rec").exists():
            records = Records(root / f"{name}.rec")
            records.check_list()
            return records
        if (root / name).is_dir():
            return Folder(root / name)
    name = names[0]
    raise UserError(f"{root} has neither {name}.rec nor a folder {name}; name another --data-dir")


class ImageFiles:
    """A `Dataset` of images of any sizes, decoded as they are needed and cut out at random.

    A part's images are checked before anything is made of it, once for ever (`damage.check`); with
    the training images the test images are, too.

    Attributes:
        name: as `data.load` knows it.
        classes: the classes' names.
        mean: of each channel, 0 to 255, which is subtracted from images.
        std: of each channel, 0 to 255, which images are divided by then.
        image_shape: (channels, height, width) of an evaluated image.
        train_count: how many training images there are.
        test_count: how many test images.
        test_size: as `load` takes it.
        crop: as `load` takes it.
        interpolation: as `load` takes it.
        stretch: as `load` takes it.

    Raises:
        UserError: the test images have a class that the training images lack; later, images that
            can't be decoded.
    """

    def __init__(
        self,
        name: str,
        train: Source,
        test: Source,
        augmentation: Augmentation,
        test_size: int,
        crop: float,
        mean: Colour,
        std: Colour,
        channels: int,
        threads: int,
        leave_out: bool,
        classes: Sequence[str] | None = None,
        stretch: bool = False,
    ):
        self.name, self._channels = name, channels
        self._parts, self._augmentation, self._leave_out = (train, test), augmentation, leave_out
        self.classes = train.classes if classes is None else tuple(classes)
        self._train_numbers = class_numbers(self.classes, train, train)
        self._test_numbers = class_numbers(self.classes, test, train)
        if channels == 1 < len(mean):
            mean, std = (float(LUMA @ mean),), (float(LUMA @ std),)
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_shape = (channels, test_size, test_size)
        self._train_shape = (channels, augmentation.size, augmentation.size)
        self.test_size, self.crop = test_size, crop
        self.interpolation, self.stretch = augmentation.interpolation, stretch
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")

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
        check(self._parts[number:], self._pool, self._leave_out)
        return self._parts[number]

    def test_name(self, row: int) -> str:
        """As `Dataset.test_name`."""
        return self._test.name(row)

    def normalised_by(self, mean: Colour, std: Colour) -> ImageFiles:
        """As `Dataset.normalised_by`."""
        other = copy.copy(self)
        other.mean, other.std = tuple(mean), tuple(std)
        return other

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
        policy: Policy = NO_POLICY,
    ) -> Iterator[Batch]:
        """As `Dataset.batches`; what each image looks like depends on its row and the epoch."""
        if not train:
            return self._test_batches(batch_size, start, worker, workers)
        images = images or self.train_count
        steps = num_batches(images, batch_size, devices * workers)
        order = random_numbers(seed, epoch).permutation(self.train_count)[:images]
        batches = np.split(order, np.arange(1, steps) * batch_size)[start:]
        return (
            self._training_batch(np.array_split(rows, workers)[worker], seed, epoch, policy)
            for rows in batches
        )

    def views(self, count: int, make: Views) -> Iterator[Viewed]:
        """The test images in order, `count` at a time, each in several views.

        Args:
            make: what the views of an image are, such as `images.ten_crops`.

        Yields:
            For each image its views, float32 (C, H, W), normalised by mean and std; and labels,
            int32 (count,), fewer at the end.

        Raises:
            UserError: an image can't be decoded.
        """
        for first in range(0, self.test_count, count):
            yield self._views(range(first, min(first + count, self.test_count)), make)

    def _views(self, rows: Iterable[int], make: Views) -> Viewed:
        source = self._test

        def one(row: int) -> tuple[list[NDArray[np.float32]], int]:
            image, label = read(source, row, self._channels)
            views = [self._normalise(np.asarray(view), self.mean) for view in make(image)]
            return views, class_number(self._test_numbers, label, source)

        views, labels = zip(*self._pool.map(one, rows))
        return list(views), np.array(labels, np.int32)

    def _test_batches(
        self, batch_size: int, start: int, worker: int, workers: int
    ) -> Iterator[Batch]:
        make = partial(
            centre_crop,
            size=self.test_size,
            crop=self.crop,
            interpolation=self.interpolation,
            stretch=self.stretch,
        )
        for first in range(start * batch_size, self.test_count, batch_size):
            batch = range(first, min(first + batch_size, self.test_count))
            rows = np.array_split(batch, workers)[worker]
            if len(rows):
                views, labels = self._views(rows, make)
                yield np.stack([view for (view,) in views]), labels

    def _training_batch(
        self, rows: NDArray[np.intp], seed: int, epoch: int, policy: Policy
    ) -> Batch:
        images = np.empty((len(rows), *self._train_shape), np.float32)
        labels = np.empty(len(rows), np.int32)
        source = self._train

        def fill(place: int) -> None:
            row = rows[place]
            image, label = read(source, row, self._channels)
            path = seed, epoch, int(row)
            pixels, light = self._augmentation(image, random_numbers(*path))
            pixels = policy.on_pixels(np.atleast_3d(pixels)[None], path, self.mean)[0]
            images[place] = self._normalise(pixels, self.mean - light)
            policy.on_normalised(images[place : place + 1], path)
            labels[place] = class_number(self._train_numbers, label, source)

        for _ in self._pool.map(fill, range(len(rows))):
            pass  # raises what a thread raised
        return images, labels

    def _normalise(self, pixels: NDArray[np.uint8], mean: ArrayLike) -> NDArray[np.float32]:
        return normalise(np.atleast_3d(pixels)[None], mean, self.std).squeeze(0)


def class_numbers(classes: Sequence[str], source: Source, train: Source) -> dict[int, int]:
    """The number of each label that a source's images may bear: by name, where there are names.

    Args:
        classes: the names, in the order of the numbers.
        train: what they are the classes of.

    Raises:
        UserError: the source has a class of another name.
    """
    if not (train.named and source.named):
        return dict(zip(train.class_labels, range(len(classes))))
    unknown = sorted(set(source.classes) - set(classes))
    if unknown:
        raise UserError(f"{source.path} has a class {unknown[0]}, which no training image has")
    numbers = {name: number for number, name in enumerate(classes)}
    return {label: numbers[name] for label, name in zip(source.class_labels, source.classes)}


def class_number(numbers: dict[int, int], label: int, source: Source) -> int:
    """The number of a label.

    Raises:
        UserError: there is none.
    """
    if label not in numbers:
        raise UserError(f"{source.path} has an image of label {label:g}, which no class has")
    return numbers[label]
