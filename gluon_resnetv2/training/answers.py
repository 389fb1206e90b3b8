"""What a network answers to each test image, and what can be counted of it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


class Answers:
    """The likeliest class of each image, its probability, and the rank of the right class.

    Args:
        classes: how many classes the data set has.
        pictures: so many of the most confident mistakes are kept as the network saw them.
    """

    def __init__(self, classes: int, pictures: int = 0):
        self._classes, self._most, self._count = classes, pictures, 0
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._kept: list[tuple[float, int, np.ndarray]] = []

    def add(
        self, scores: np.ndarray, labels: np.ndarray, images: Sequence[np.ndarray] | np.ndarray = ()
    ) -> None:
        """Adds the next images.

        Args:
            scores: probabilities (n, classes).
            labels: (n,).
            images: n images (C, H, W), where pictures are to be kept.
        """
        order = np.argsort(-scores, axis=1, kind="stable")  # of equal ones the first
        ranks = np.argmax(order == labels[:, None], axis=1)
        predicted = order[:, 0].copy()  # the rest can go
        surest = scores[np.arange(len(labels)), predicted]
        if self._most:
            wrong = np.flatnonzero(ranks)
            new = [(-float(surest[row]), self._count + int(row), images[row]) for row in wrong]
            kept = heapq.nsmallest(self._most, self._kept + new, key=lambda one: one[:2])
            self._kept = [(*one, np.array(image)) for *one, image in kept]  # the batch can go
        self._parts.append((labels, predicted, surest, ranks))
        self._count += len(labels)

    @property
    def pictures(self) -> list[tuple[int, np.ndarray]]:
        """(number, image (C, H, W)) of the mistakes that are kept, the most confident first."""
        return [(number, image) for _, number, image in self._kept]

    @property
    def labels(self) -> np.ndarray:
        """The class of each image."""
        return self._column(0)

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each image."""
        return self._column(1)

    @property
    def scores(self) -> np.ndarray:
        """The probability of the likeliest class, of each image."""
        return self._column(2)

    @property
    def ranks(self) -> np.ndarray:
        """How many classes are likelier than the right one, of each image."""
        return self._column(3)

    def _column(self, number: int) -> np.ndarray:
        return np.concatenate([part[number] for part in self._parts])

    def errors(self) -> dict[str, float]:
        """The percentages of images whose class is not the likeliest, "error", or not among five,
        "error5"; with five classes or fewer it always is, and there is no "error5".
        """
        ranks = self.ranks
        found = {"error": 100 * float(np.mean(ranks > 0))}
        return {**found, "error5": 100 * float(np.mean(ranks >= 5))} if self._classes > 5 else found

    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """How many images each class has, and how many of them are right: (classes,) each."""
        labels = self.labels
        images = np.bincount(labels, minlength=self._classes)
        return images, np.bincount(labels[self.ranks == 0], minlength=self._classes)

    def balanced_accuracy(self) -> float:
        """The mean of the accuracies of the classes that have images, in percent."""
        images, right = self.per_class()
        return 100 * float(np.mean(right[images > 0] / images[images > 0]))

    def confusion(self) -> list[tuple[int, int, int]]:
        """(class, predicted class, images) of each pair that occurs, in the order of classes."""
        pairs = self.labels.astype(np.int64) * self._classes + self.predicted
        found, counts = np.unique(pairs, return_counts=True)
        classes, predicted = np.divmod(found, self._classes)
        return list(zip(classes.tolist(), predicted.tolist(), counts.tolist()))

    def mistakes(self) -> np.ndarray:
        """The numbers of the images that the network gets wrong, the most confident first."""
        wrong = np.flatnonzero(self.ranks)
        return wrong[np.argsort(-self.scores[wrong], kind="stable")]
