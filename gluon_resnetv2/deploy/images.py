"""Reading image files as the network wants them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gluon_resnetv2.errors import UserError


def read_image(path: str | Path, shape: tuple, crop: float = 1.0) -> np.ndarray:
    """The centre of an image file of any size and mode, as (channels, height, width) in 0..255.

    Args:
        shape: (channels, height, width) of the result; 3 channels are RGB, 1 is grey.
        crop: the part of the shorter side that the centre keeps.

    Raises:
        UserError: the file is missing, or no image that can be read.
    """
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                if image.mode.startswith(("I", "F")):  # 16 bits or more, which convert() would clip
                    image = _to_8_bits(image)
                if "A" in image.mode or "transparency" in image.info:
                    image = image.convert("RGBA")
                    background = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(background, image)
                image = image.convert("RGB" if channels == 3 else "L")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path} has more pixels than an image should") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise UserError(f"{path} can't be read as an image: {error}") from None
    enlarged = (round(width / crop), round(height / crop))
    image = ImageOps.fit(image, enlarged, Image.Resampling.BILINEAR)
    left, top = (enlarged[0] - width) // 2, (enlarged[1] - height) // 2
    image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, "float32").reshape(height, width, channels).transpose(2, 0, 1)


def _to_8_bits(image):
    values = np.asarray(image, "float64")
    top = 65535 if values.max() > 255 else 255
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype("uint8"))
