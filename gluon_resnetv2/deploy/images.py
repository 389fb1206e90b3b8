"""Reading image files as the network wants them."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gluon_resnetv2.errors import UserError

# Anyone may have sent an image that is no file here. Pillow holds each pixel in 4 bytes, and three
# times at most: 400 MB. Some of its decoders of other formats start programs.
SENT_PIXELS = 2**25
SENT_FORMATS = ("JPEG", "PNG")
FILE_PIXELS = 2**30 // 12  # Pillow's own limit
ORIENTATION = 0x0112  # the tag in EXIF


def read_image(file: str | Path | BinaryIO, shape: tuple, crop: float = 1.0) -> np.ndarray:
    """The centre of an image of any size and mode, as (channels, height, width) in 0..255.

    Args:
        file: a path, of any format that Pillow knows; or what holds the bytes of a JPEG or PNG.
        shape: (channels, height, width) of the result; 3 channels are RGB, 1 is grey.
        crop: the part of the shorter side that the centre keeps.

    Raises:
        UserError: the file is missing, too large, or no image that can be read; or another number
            of channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}")
    named = isinstance(file, (str, Path))
    name = file if named else "the image"
    most, formats = (FILE_PIXELS, None) if named else (SENT_PIXELS, SENT_FORMATS)
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > most:
                raise Image.DecompressionBombError
            centre = _centre(image, "RGB" if channels == 3 else "L", (width, height), crop)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name} has more pixels than the {most} that are read") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} can't be read as an image: its format is not known") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise UserError(f"{name} can't be read as an image: {error}") from None
    return np.asarray(centre, "float32").reshape(height, width, channels).transpose(2, 0, 1)


def _centre(image, mode, size, crop):
    """The centre of an image, in another mode and size. What is transparent shows white."""
    if image.getexif().get(ORIENTATION, 1) != 1:  # or it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ValueError("it has values that are not finite")
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype("uint8"))
    clear = image.mode.endswith("A") or "transparency" in image.info
    scaled_as = "RGBA" if clear else mode
    if image.mode != scaled_as:
        image = image.convert(scaled_as)
    width, height = size
    enlarged = (round(width / crop), round(height / crop))
    image = ImageOps.fit(image, enlarged, Image.Resampling.BILINEAR)
    left, top = (enlarged[0] - width) // 2, (enlarged[1] - height) // 2
    image = image.crop((left, top, left + width, top + height))
    if clear:  # Pillow scales colours by how opaque they are, so that this can come last
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)
    return image
