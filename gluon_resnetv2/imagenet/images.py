"""Encoded images to pixels, and the parts of them that are evaluated."""

from __future__ import annotations

import io

from PIL import Image, ImageFile, ImageOps

from gluon_resnetv2.errors import UserError

FORMATS = ("JPEG", "PNG", "BMP")  # which MXNet reads too


class NoImage(ValueError):
    """Data that are no image; the message is what follows the image's name."""


def decode(data: bytes) -> Image.Image:
    """An encoded image of any colour mode as RGB, upright.

    Pillow rather than MXNet's OpenCV: on ordinary files both give the same pixels (within one level
    on CMYK), but Pillow is several times faster, refuses what is cut short where OpenCV invents the
    rest, and raises here rather than where the result is used. Like MXNet's iterator it turns an
    image as its EXIF data says, and drops an alpha channel.

    Raises:
        NoImage: the data are cut short, of none of `FORMATS`, or not of 8 bits a channel.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # as it is until GluonCV is imported
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels are not of 8 bits (mode {file.mode})")
            return ImageOps.exif_transpose(file).convert("RGB")
    except Image.UnidentifiedImageError:  # Pillow's message would name a memory address
        raise NoImage(f"is no image of a kind that is read: {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise NoImage(f"can't be read as an image: {error}") from None


def read(source, row: int) -> tuple[Image.Image, int]:
    """Image `row` of a `Folder` or `Records`, decoded, and its label there.

    Raises:
        UserError: it can't be decoded; the message names it.
    """
    data, label = source.read(row)
    try:
        return decode(data), label
    except NoImage as error:
        raise UserError(f"{source.name(row)} {error}") from None


def resize_shorter(image: Image.Image, side: int) -> Image.Image:
    """The image scaled so that its shorter side has `side` pixels."""
    ratio = side / min(image.size)
    size = tuple(round(length * ratio) for length in image.size)
    return image.resize(size, Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image, size: int, crop: float) -> list[Image.Image]:
    """The centre, `size` x `size` pixels, of the image scaled to `size / crop` on its shorter side.

    Args:
        crop: the part of the shorter side that is kept; 224 / 256 is the field's habit.
    """
    image = resize_shorter(image, round(size / crop))
    return [_cut(image, (image.width - size) // 2, (image.height - size) // 2, size)]


def ten_crops(image: Image.Image, size: int, crop: float) -> list[Image.Image]:
    """The centre as in `centre_crop` and the four corners around it, and their mirror images."""
    image = resize_shorter(image, round(size / crop))
    right, bottom = image.width - size, image.height - size
    corners = [(right // 2, bottom // 2), (0, 0), (right, 0), (0, bottom), (right, bottom)]
    crops = [_cut(image, left, top, size) for left, top in corners]
    return crops + [ImageOps.mirror(crop) for crop in crops]


def whole(image: Image.Image, sides: tuple[int, ...]) -> list[Image.Image]:
    """The whole image once for each shorter side in `sides`."""
    return [resize_shorter(image, side) for side in sides]


def _cut(image, left, top, size):
    return image.crop((left, top, left + size, top + size))
