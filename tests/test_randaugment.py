"""RandAugment against Pillow and torchvision, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from gluon_resnetv2.data import randaugment
from gluon_resnetv2.data.randaugment import OPERATIONS, rand_augment
from tests.common import beside_torch

HEIGHT, WIDTH = 12, 17
FILL = (10, 200, 90)


def pictures() -> np.ndarray:
    """Noise, something smooth, few colours, one colour alone, and with one other pixel."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([90 + 5 * x, 60 + 7 * y, 30 + 3 * x + 4 * y], axis=-1)
    one = np.full((HEIGHT, WIDTH, 3), (3, 200, 255))
    other = one.copy()
    other[5, 6] = 0, 7, 9
    noise, few = rng.integers(0, 256, (2, *one.shape)), rng.integers(4, 7, one.shape) * 30
    return np.stack([*noise, smooth, few, one, other]).astype(np.uint8)


def affine(image, fill, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=fill)


# By Pillow, of an image, a share of the largest strength and a colour.
PILLOW = {
    "identity": lambda image, share, fill: image,
    "auto_contrast": lambda image, share, fill: ImageOps.autocontrast(image),
    "equalise": lambda image, share, fill: ImageOps.equalize(image),
    "rotate": lambda image, share, fill: image.rotate(30 * share, fillcolor=fill),
    "solarise": lambda image, share, fill: ImageOps.solarize(image, 256 * (1 - abs(share))),
    "colour": lambda image, share, fill: ImageEnhance.Color(image).enhance(1 + 0.9 * share),
    "posterise": lambda image, share, fill: ImageOps.posterize(image, 8 - round(4 * abs(share))),
    "contrast": lambda image, share, fill: ImageEnhance.Contrast(image).enhance(1 + 0.9 * share),
    "brightness": lambda image, share, fill: ImageEnhance.Brightness(image).enhance(
        1 + 0.9 * share
    ),
    "sharpness": lambda image, share, fill: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * share),
    "shear_x": lambda image, share, fill: affine(image, fill, 1, 0.3 * share, 0, 0, 1, 0),
    "shear_y": lambda image, share, fill: affine(image, fill, 1, 0, 0, 0.3 * share, 1, 0),
    "translate_x": lambda image, share, fill: affine(
        image, fill, 1, 0, -int(150 / 331 * WIDTH * share), 0, 1, 0
    ),
    "translate_y": lambda image, share, fill: affine(
        image, fill, 1, 0, 0, 0, 1, -int(150 / 331 * HEIGHT * share)
    ),
}


def test_every_operation_is_held_against_pillows():
    assert [operation.__name__ for operation in OPERATIONS] == list(PILLOW)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_gives_pillows_pixels(name, channels):
    images = pictures()[..., :channels]
    fill = FILL if channels == 3 else FILL[0]
    for share in (-1.0, -0.7, -0.1, 0.0, 0.3, 0.65, 0.9, 1.0):
        shares = np.array([share, -share] * 3)
        colour = np.array(FILL[:channels], np.uint8)
        found = getattr(randaugment, name)(images, shares, colour)
        assert (found.dtype, found.shape) == (np.uint8, images.shape)
        for image, own, result in zip(images, shares, found):
            expected = PILLOW[name](Image.fromarray(image.squeeze()), own, fill)
            np.testing.assert_array_equal(result.squeeze(), np.asarray(expected), f"{name} {own}")


NAMES = {  # torchvision's
    **{"auto_contrast": "AutoContrast", "equalise": "Equalize", "solarise": "Solarize"},
    **{"colour": "Color", "posterise": "Posterize", "shear_x": "ShearX", "shear_y": "ShearY"},
    **{"translate_x": "TranslateX", "translate_y": "TranslateY"},
}


@pytest.mark.parametrize("strength", [1, 5, 9, 10])
def test_a_strength_is_a_third_of_torchvisions_magnitude(strength):
    autoaugment = beside_torch("torchvision.transforms.autoaugment")
    transforms = beside_torch("torchvision.transforms")
    space = transforms.RandAugment()._augmentation_space(31, (HEIGHT, WIDTH))
    assert {NAMES.get(name, name.title()) for name in PILLOW} == set(space)
    for name in PILLOW:
        theirs = NAMES.get(name, name.title())
        magnitudes, signed = space[theirs]
        magnitude = float(magnitudes[3 * strength]) if magnitudes.ndim else 0.0
        for sign in (1, -1) if signed else (1,):
            shares = np.full(6, sign * strength / 10)
            found = getattr(randaugment, name)(pictures(), shares, np.array(FILL, np.uint8))
            for image, result in zip(pictures(), found):
                expected = autoaugment._apply_op(
                    Image.fromarray(image),
                    theirs,
                    sign * magnitude,
                    transforms.InterpolationMode.NEAREST,
                    list(FILL),
                )
                differs = (result != np.asarray(expected)) & (image != 230)  # their 255 is our 256
                assert not differs.any(), name


def test_every_operation_is_as_likely_and_goes_either_way(monkeypatch):
    seen = {number: [] for number in range(14)}

    def noting(number):
        def operation(images, shares, fill):
            seen[number] += list(shares)
            return images + 1

        return operation

    monkeypatch.setattr(randaugment, "OPERATIONS", [noting(number) for number in range(14)])
    images = np.zeros((1400, 2, 2, 3), np.uint8)
    made = rand_augment(images, np.random.default_rng(0), 3, 7.0, FILL)
    assert (made == 3).all()
    assert not images.any()
    for shares in seen.values():  # 300 expected, standard deviation 17
        assert 230 < len(shares) < 370
        assert set(shares) == {-0.7, 0.7}
        assert abs(np.mean(np.sign(shares))) < 0.25


def test_a_part_of_a_batch_comes_out_as_with_all_of_it():
    images = np.random.default_rng(1).integers(0, 256, (11, 6, 7, 3), np.uint8)
    whole = rand_augment(images, np.random.default_rng(5), 2, 9.0, FILL)
    assert (whole != images).any(axis=(1, 2, 3)).sum() > 7
    for part in np.array_split(np.arange(11), 3):
        found = rand_augment(images[part], np.random.default_rng(5), 2, 9.0, FILL, of=11, at=part)
        np.testing.assert_array_equal(found, whole[part])
