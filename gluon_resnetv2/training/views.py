"""Top-1 and top-5 error, from one view of each image or several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import mxnet as mx
import numpy as np
from PIL import Image

from gluon_resnetv2.data import prefetch
from gluon_resnetv2.data.imagenet.dataset import ImageFiles
from gluon_resnetv2.data.imagenet.images import centre_crop, ten_crops, whole
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.scores import softmax
from gluon_resnetv2.training.answers import Answers


def evaluate_views(
    net: Callable[[mx.nd.NDArray], mx.nd.NDArray],
    dataset: ImageFiles,
    devices: Sequence[mx.Context],
    batch_size: int,
    *,
    size: int | None = None,
    crops: int = 1,
    scales: Sequence[int] = (),
    dtype: str = "float32",
    progress: Callable[[int], None] = lambda images: None,
    answers: Answers | None = None,
) -> dict[str, float]:
    """Error of `net` on the test images, each counted once on any number of devices.

    An image's score is the mean of the softmax probabilities over its views, as Krizhevsky et al.
    average ten crops. At several scales the network, which pools globally, sees the whole image
    ([v1]'s "fully convolutional form"), not mirrored.

    Args:
        net: logits (n, classes) from normalised images (n, C, H, W) of any size, on each of
            `devices`.
        batch_size: views computed at once, over all devices.
        size: height and width of the crops; the data set's test_size by default.
        crops: 1 for the centre, 10 for `images.ten_crops`.
        scales: shorter sides of the whole image instead, such as 224, 256, 384, 480 and 640, as
            in [v1], section 3.4.
        dtype: of the images that `net` takes.
        progress: told of each few images that are done, how many they were.
        answers: is given each image's score, label and first view.

    Returns:
        A dictionary with "error" and "error5" as of `Answers.errors`; "loss", the mean of -log of
        the right class's score; and "images", how many.

    Raises:
        UserError: a number of crops that there is not, or crops and scales; an image that can't be
            decoded.
    """
    if crops not in (1, 10) or (scales and crops != 1):
        raise UserError(
            f"choose 1 crop, 10 crops or some scales, not {crops} crops"
            + " and scales" * bool(scales)
        )
    make: Callable[..., list[Image.Image]]
    if scales:
        make = partial(whole, sides=tuple(scales))
    else:
        cut = ten_crops if crops == 10 else partial(centre_crop, stretch=dataset.stretch)
        make = partial(cut, size=size or dataset.test_size, crop=dataset.crop)
    make = partial(make, interpolation=dataset.interpolation)
    at_once = max(1, batch_size // (len(scales) or crops))
    answers = Answers(len(dataset.classes)) if answers is None else answers
    images, loss = 0, 0.0
    for views, labels in prefetch(dataset.views(at_once, make)):
        scores = _scores(net, views, devices, batch_size, dtype)
        answers.add(scores, labels, [first for first, *_ in views])
        with np.errstate(divide="ignore"):  # a probability may underflow to 0, the loss to infinity
            loss -= np.log(scores[np.arange(len(labels)), labels]).sum()
        images += len(labels)
        progress(len(labels))
    return {**answers.errors(), "loss": float(loss / images), "images": images}


def _scores(net, views, devices, batch_size, dtype) -> np.ndarray:
    """Mean probabilities (images, classes) of each image's views; those of a shape go together."""
    by_shape = defaultdict(list)
    for image, its_views in enumerate(views):
        for view in its_views:
            by_shape[view.shape].append((image, view))
    groups = [
        pairs[first : first + batch_size]
        for pairs in by_shape.values()
        for first in range(0, len(pairs), batch_size)
    ]
    outputs = []  # which images, their logits: nothing here waits for the devices
    for turn, pairs in enumerate(groups):
        images, arrays = zip(*pairs)
        start = turn % len(devices)  # where groups are small, every device has its share of them
        used = [*devices[start:], *devices[:start]][: len(arrays)]
        parts = zip(np.array_split(np.stack(arrays), len(used)), used)
        logits = [net(mx.nd.array(part, device, dtype)) for part, device in parts]
        outputs.append((images, logits))
    scores = np.zeros(())
    for images, logits in outputs:
        joined = np.concatenate([part.astype("float64").asnumpy() for part in logits])
        probabilities = softmax(joined, "float64")
        share = np.zeros((len(views), len(probabilities)))
        share[images, np.arange(len(images))] = 1 / len(views[0])
        scores = scores + share @ probabilities
    return scores
