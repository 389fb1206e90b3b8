"""Reading image files as the network wants them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from gluon_resnetv2.errors import UserError


def read_image(file: str | Path | BinaryIO, shape: tuple, crop: float = 1.0) -> np.ndarray:
    """The centre of an image file of any size and mode, as (channels, height, width) in 0..255.

    Args:
        file: its path, or what holds its bytes.
        shape: (channels, height, width) of the result; 3 channels are RGB, 1 is grey.
        crop: the part of the shorter side that the centre keeps.

    Raises:
        UserError: the file is missing or no image that can be read; or another number of channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}")
    name = file if isinstance(file, (str, Path)) else "the image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
                    raise ValueError("it has values that are not finite")
                if image.mode.startswith("I"):  # 16 bits, which convert() would clip
                    image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype("uint8"))
                if "A" in image.mode or "transparency" in image.info:
                    image = image.convert("RGBA")
                    background = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(background, image)
                image = image.convert("RGB" if channels == 3 else "L")
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name} has more pixels than an image should") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise UserError(f"{name} can't be read as an image: {error}") from None
    enlarged = (round(width / crop), round(height / crop))
    image = ImageOps.fit(image, enlarged, Image.Resampling.BILINEAR)
    left, top = (enlarged[0] - width) // 2, (enlarged[1] - height) // 2
    image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, "float32").reshape(height, width, channels).transpose(2, 0, 1)
