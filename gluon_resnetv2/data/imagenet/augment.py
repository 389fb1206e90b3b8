"""The training augmentations of [v1] and [v2], for one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.pixels import INTERPOLATIONS

# [v1]: the shorter side is drawn from 256 to 480 pixels for crops of 224. For other crops the range
# keeps its proportion.
SHORTER = 256 / 224, 480 / 224

# [v2]'s scale + aspect ratio is that of Szegedy et al., "Going deeper with convolutions".
AREA = 0.08, 1.0
ASPECT = 3 / 4, 4 / 3
Box = tuple[float, float, float, float]  # left, top, right, bottom; in pixels
TRIES = 10  # boxes drawn before the centre is taken, as in fb.resnet.torch and MXNet

# Krizhevsky et al., "ImageNet classification with deep convolutional neural networks": principal
# components of the pixels' colours, here in 0..255, and the share of each that is added.
COLOUR_STD = 0.1
EIGENVALUES = np.array([55.46, 4.794, 1.148])
EIGENVECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)

LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue in grey, as Pillow has it


@dataclass(frozen=True)
class Augmentation:
    """A random crop, with random light if `colour` is set, half of them mirrored if `flip` is.

    Attributes:
        name: "scale" ([v1]) or "scale-aspect" (the last row of [v2], Table 5).
        size: height and width of the crop in pixels.
        colour: whether to add noise along the principal components of the colours.
        flip: whether to mirror at all.
        interpolation: by which what is cut out is scaled, one of `pixels.INTERPOLATIONS`; Pillow's
            bilinear one stands for OpenCV's.

    Raises:
        UserError: another name.
    """

    name: str
    size: int
    colour: bool
    flip: bool = True
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.name not in ("scale", "scale-aspect"):
            raise UserError(f"unknown augmentation '{self.name}'; choose scale or scale-aspect")

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """A random view of `image`.

        Returns:
            pixels: uint8 (size, size, C).
            light: (C,), to be added to every pixel.
        """
        box = (_scale_box if self.name == "scale" else _aspect_box)(*image.size, rng)
        # Cutting and scaling in one go reads only what is shown.
        way = INTERPOLATIONS[self.interpolation] or Image.Resampling.BILINEAR
        view = image.resize((self.size, self.size), way, box)
        pixels = np.atleast_3d(np.asarray(view))
        if rng.random() < 0.5 and self.flip:
            pixels = pixels[:, ::-1]
        light = EIGENVECTORS @ (EIGENVALUES * rng.normal(0, COLOUR_STD, 3))
        if pixels.shape[-1] == 1:
            light = np.array([LUMA @ light])
        return pixels, light if self.colour else np.zeros_like(light)


def _scale_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """What a crop shows of an image whose shorter side was scaled at random."""
    side = min(width, height) / rng.uniform(*SHORTER)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return left, top, left + side, top + side


def _aspect_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A box of random area and aspect ratio somewhere in the image."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = rng.uniform(*ASPECT)
        box = [round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))]
        if rng.random() < 0.5:
            box.reverse()
        if 1 <= box[0] <= width and 1 <= box[1] <= height:
            left = int(rng.integers(0, width - box[0], endpoint=True))
            top = int(rng.integers(0, height - box[1], endpoint=True))
            return left, top, left + box[0], top + box[1]
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
