"""Images of a data set, and the parts of them that are evaluated."""

from __future__ import annotations

from PIL import Image, ImageOps

from gluon_resnetv2.data.imagenet.folder import Folder
from gluon_resnetv2.data.imagenet.records import Records
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.pixels import NoImage, centre, cover, decode, middle, scaled

Source = Folder | Records


def read(source: Source, row: int, channels: int = 3) -> tuple[Image.Image, int]:
    """Image `row`, decoded, and its label there.

    Args:
        channels: 1 for grey, 3 for red, green and blue.

    Raises:
        UserError: it can't be read or decoded; the message names it.
    """
    try:
        data, label = source.read(row)
        image = decode(data)
        return image if channels == 3 else image.convert("L"), label
    except NoImage as error:
        raise UserError(f"{source.name(row)} {error}") from None
    except OSError as error:
        raise UserError(f"{source.name(row)} can't be read: {error.strerror}") from None


def resize_shorter(image: Image.Image, side: int, interpolation: str = "bilinear") -> Image.Image:
    """The image scaled so that its shorter side has `side` pixels."""
    return scaled(image, cover(image.size, side, side), interpolation)


def centre_crop(
    image: Image.Image,
    size: int,
    crop: float,
    interpolation: str = "bilinear",
    stretch: bool = False,
) -> list[Image.Image]:
    """The centre, `size` x `size` pixels, of the image scaled to `size / crop` on its shorter side.

    Args:
        crop: the part of the shorter side that is kept; 224 / 256 is the field's habit.
        interpolation, stretch: as `pixels.centre` takes it.
    """
    return [centre(image, size, size, crop, interpolation, stretch)]


def ten_crops(
    image: Image.Image, size: int, crop: float, interpolation: str = "bilinear"
) -> list[Image.Image]:
    """The centre as in `centre_crop` and the four corners around it, and their mirror images."""
    image = resize_shorter(image, round(size / crop), interpolation)
    right, bottom = image.width - size, image.height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    crops = [middle(image, size, size)]
    crops += [image.crop((left, top, left + size, top + size)) for left, top in corners]
    return crops + [ImageOps.mirror(crop) for crop in crops]


def whole(
    image: Image.Image, sides: tuple[int, ...], interpolation: str = "bilinear"
) -> list[Image.Image]:
    """The whole image once for each shorter side in `sides`."""
    return [resize_shorter(image, side, interpolation) for side in sides]
