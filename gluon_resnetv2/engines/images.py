"""Reading image files as the network wants them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gluon_resnetv2.cli import tell_left_out
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.pixels import PIXELS, SUFFIXES, NoImage, centre, decode

# Anyone may have sent an image that is no file here: 400 MB at most. Some of Pillow's decoders of
# other formats start programs.
SENT_PIXELS = 2**25
SENT_FORMATS = ("JPEG", "PNG")


def read_image(
    file: str | Path | BinaryIO,
    shape: tuple,
    crop: float = 1.0,
    interpolation: str = "bilinear",
    stretch: bool = False,
) -> np.ndarray:
    """The centre of an image of any size and mode, as (channels, height, width) in 0..255.

    Args:
        file: a path, of any format that Pillow knows; or what holds the bytes of a JPEG or PNG.
        shape: (channels, height, width) of the result; 3 channels are RGB, 1 is grey.
        crop: the part of the shorter side that the centre keeps.
        interpolation, stretch: as `pixels.centre`.

    Raises:
        UserError: the file is missing, too large, or no image that can be read; or another number
            of channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}")
    name = file if isinstance(file, (str, Path)) else "the image"
    try:
        if isinstance(file, (str, Path)):
            image = decode(Path(file).read_bytes(), None, PIXELS)
        else:
            image = decode(file.read(), SENT_FORMATS, SENT_PIXELS)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except OSError as error:
        raise UserError(f"{name} can't be read as an image: {error.strerror}") from None
    except NoImage as error:
        raise UserError(f"{name} {error}") from None
    if channels == 1:
        image = image.convert("L")
    kept = centre(image, width, height, crop, interpolation, stretch)
    return np.asarray(kept, "float32").reshape(height, width, channels).transpose(2, 0, 1)


def images_below(folder: str | Path) -> list[str]:
    """The paths of all image files in a folder and below it, sorted.

    They are known by their endings. A line on standard error counts what is left out, but for names
    that begin with a dot.

    Raises:
        UserError: there are none.
    """
    found: list[str] = []
    kinds: dict[str, list[str]] = {"of other endings": [], "that are no files": []}
    kinds |= {"folders behind links": [], "folders that can't be read": []}
    other, strange, linked, closed = kinds.values()
    for inner, folders, files in os.walk(
        folder, onerror=lambda error: closed.append(error.filename)
    ):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked += filter(os.path.islink, (os.path.join(inner, name) for name in folders))
        for path in (os.path.join(inner, name) for name in files if not name.startswith(".")):
            if not path.lower().endswith(SUFFIXES):
                other.append(path)
            elif not os.path.isfile(path):  # a pipe, which would be waited for
                strange.append(path)
            else:
                found.append(path)
    images = f"images end in {', '.join(SUFFIXES)}"
    tell_left_out(folder, kinds, images)
    if not found:
        raise UserError(f"{folder} has no images; {images}")
    return sorted(found)


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Images (N, C, H, W) in 0..255 as the network takes them, float32 from float64 arithmetic."""
    return ((pixels - _by_channel(mean)) / _by_channel(std)).astype("float32")


def denormalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The images in 0..255, as float32, that `normalise` makes `images` of."""
    return (images * _by_channel(std) + _by_channel(mean)).astype("float32")


def _by_channel(numbers: Sequence[float]) -> np.ndarray:
    return np.reshape(numbers, (-1, 1, 1))
