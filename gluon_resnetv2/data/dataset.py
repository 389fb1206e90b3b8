"""What every data set looks like to the rest of the project."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from gluon_resnetv2.data.batching import Batch
from gluon_resnetv2.data.policies import NO_POLICY, Policy

Colour = tuple[float, ...]  # a number for each channel, 0 to 255: red, green and blue, or grey


class Dataset(Protocol):
    """Training and test images with their labels, however they are held."""

    @property
    def name(self) -> str:
        """The name that `--dataset` takes."""

    @property
    def classes(self) -> Sequence[str]:
        """The classes' names, in the order of the labels."""

    @property
    def mean(self) -> Colour:
        """What is subtracted from each channel of 0 to 255."""

    @property
    def std(self) -> Colour:
        """What each channel is divided by once the mean is subtracted."""

    @property
    def crop(self) -> float:
        """The part of an image's shorter side that evaluation uses."""

    @property
    def interpolation(self) -> str:
        """By which images were scaled, as `pixels.centre` takes it."""

    @property
    def stretch(self) -> bool:
        """Whether images were scaled without regard to their shape, as `pixels.centre` takes it."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an evaluated image."""

    @property
    def train_count(self) -> int:
        """How many training images there are."""

    @property
    def test_count(self) -> int:
        """How many test images there are."""

    def test_name(self, row: int) -> str:
        """What to call a test image: its file, or its number from 0."""

    def normalised_by(self, mean: Colour, std: Colour) -> Dataset:
        """The data set with its images normalised by another mean and deviation.

        Args:
            mean, std: of each channel, 0 to 255.
        """

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
        """One pass over the training images, shuffled and augmented, or over the test images.

        What a training step gets depends on (seed, epoch, step) alone. Hence beginning at step
        `start` gives exactly what the whole pass gives from there on, and the workers together get
        exactly what one alone would get.

        Args:
            batch_size: images per batch, over all workers and devices; `num_batches` says what the
                last one holds.
            train: the training images rather than the test images.
            images: so many of them, drawn anew each epoch, rather than all.
            seed, epoch: not negative; unused for test images, which come as they are stored.
            devices: among how many a worker splits its part of a batch.
            start: steps to leave out.
            worker, workers: which part of every batch is wanted, of how many. Of a training
                batch each has an image for every device; of a test batch some may have none, and
                are left out.
            policy: what else is done to training images.

        Yields:
            Images, float32 (n, C, H, W), normalised by mean and std; and labels, int32 (n,).

        Raises:
            UserError: as `num_batches`, at once rather than with the first batch; or an image that
                can't be read.
        """
