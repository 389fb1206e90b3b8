"""What the pixels of an image file are: for training, evaluation, packing and serving alike."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import time

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

# Of data sets' files: the formats that are read, by Pillow's names, and what each may end in.
ENDINGS = {
    "JPEG": (".jpeg", ".jpg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tiff", ".tif"),
    "WEBP": (".webp",),
}
FORMATS, SUFFIXES = tuple(ENDINGS), sum(ENDINGS.values(), ())
# How images are scaled, by Pillow's filters; or as MXNet does.
OPENCV = "opencv bilinear"
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    OPENCV: None,
}
PIXELS = 2**30 // 12  # Pillow's own limit
ORIENTATION = 0x0112  # the tag in EXIF
JPEG, SCAN, EXIF = b"\xff\xd8", b"\xff\xda", b"Exif\0\0"  # how a JPEG and what is in it begin
PNG, TEXTS = b"\x89PNG\r\n\x1a\n", (b"iCCP", b"iTXt", b"zTXt")
ARITHMETIC = rb"\xff[\xc9-\xcb\xcd-\xcf]..\x08"  # before its height and width: no browser reads it
# What else bounds the work that a file asks for, whatever its pixels are.
SECONDS = 10  # of one processor, looked at whenever more of the file is asked for
READS = 1 << 17  # of the file: a part of its own takes three
SCANS = 32  # over the most pixels; over fewer there may be more. Colour has 10, CMYK 18
# How many pixels are read in the time of a read of the file, of unpacking a text of 1 MiB.
READ, TEXT = 1 << 8, 1 << 17
EXIFS = 100  # pieces of EXIF data, which are copied anew with each
LONG = 16  # times what is kept; of a longer image no more is scaled, or it would fill the memory


class NoImage(ValueError):
    """Data that are no image; the message is what follows the image's name."""


class _File(io.BytesIO):
    """An image's data, as far as what reads them stays within `READS` and `SECONDS`."""

    def __init__(self, data: bytes, most: int = READS):
        super().__init__(data)
        self.reads, self._most = 0, most
        self._until, self._end = time.monotonic() + SECONDS, time.thread_time() + SECONDS

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > self._most:
            raise ValueError(f"it has more parts than {READS} reads give")
        # A thread's time is no more than what the clock says, and takes seven times as long to ask
        # for.
        if time.monotonic() > self._until and time.thread_time() > self._end:
            raise ValueError(f"it takes more than {SECONDS} seconds")
        return super().read(size)


def decode(
    data: bytes, formats: tuple[str, ...] | None = FORMATS, most: int = PIXELS
) -> Image.Image:
    """An encoded image of any colour mode as RGB, 8 bits a channel, upright.

    What is transparent, by an alpha channel, a palette or a colour, shows white. Grey of 16 bits is
    divided by 257. An image is turned as its EXIF data says. Of several frames or pages
    the first is the image.

    Pillow rather than MXNet's OpenCV: on ordinary files both give the same pixels (within one level
    on CMYK), but Pillow is several times faster, refuses what is cut short where OpenCV invents the
    rest, and raises here rather than where the result is used.

    Args:
        formats: that are read, by Pillow's names; None for all that it knows.
        most: pixels that an image may have. It takes 12 bytes for each at most.

    Raises:
        NoImage: the data are cut short, of no such format, too large, too much work, or have values
            that are not finite.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # as it is until GluonCV is imported
    try:
        if data.startswith(JPEG) and data.count(EXIF) > EXIFS:
            raise ValueError(f"it has more than {EXIFS} pieces of EXIF data")
        with Image.open(_File(data), formats=formats) as file:
            if file.width * file.height > most:
                raise Image.DecompressionBombError
            if data.startswith(JPEG):
                _check_scans(data, file.width, file.height, most)
            return _rgb(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise NoImage(f"has more pixels than the {most} that are read") from None
    except UnidentifiedImageError:  # Pillow's message would name a memory address
        kinds = f": {', '.join(formats)}" if formats else ""
        raise NoImage(f"is no image of a kind that is read{kinds}") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise NoImage(f"can't be read as an image: {error}") from None


def work(data: bytes, most: int, formats: tuple[str, ...] | None = FORMATS) -> int:
    """What decoding a file asks for, in pixels: those it has, times how often they are passed over,
    and what else is in it. What is beyond `most` is not counted to its end.

    Too little where the file is no image: `decode` says why.
    """
    asked = len(data) // 4
    if data.startswith(PNG):
        asked += _parts(data, most)
    if asked > most:
        return asked
    file = _File(data, most // READ)
    # Pillow raises whatever its decoders do.
    with contextlib.suppress(Exception), Image.open(file, formats=formats) as image:
        passes = data.count(SCAN) if data.startswith(JPEG) else 1
        asked += image.width * image.height * passes
    return asked + file.reads * READ


def centre(
    image: Image.Image,
    width: int,
    height: int,
    crop: float,
    interpolation: str = "bilinear",
    stretch: bool = False,
) -> Image.Image:
    """The centre of an image, scaled so that it just covers a box of which the part `crop` is kept.

    For a square it is the shorter side that is scaled to `width / crop`.

    Args:
        width, height: of the result in pixels.
        crop: above 0, up to 1; 224 / 256 is the field's habit.
        interpolation: one of `INTERPOLATIONS`. "bilinear" and "bicubic" weigh all the pixels that
            one of the result covers, as torchvision does; "opencv bilinear" four, as MXNet does.
        stretch: whether the image is scaled to just that box, whatever its shape.
    """
    box = round(width / crop), round(height / crop)
    if not stretch:
        ratio = max(box[0] / image.width, box[1] / image.height)
        most = min(image.width, LONG * width / ratio), min(image.height, LONG * height / ratio)
        image = middle(image, math.ceil(most[0]), math.ceil(most[1]))
        box = cover(image.size, *box)
    return middle(scaled(image, box, interpolation), width, height, interpolation)


def cover(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """What (width, height) an image of `size` is scaled to so that it just covers a box.

    The side that is left over is rounded down, as torchvision and MXNet do.
    """
    if width * size[1] > height * size[0]:
        return width, width * size[1] // size[0]
    return height * size[0] // size[1], height


def middle(
    image: Image.Image, width: int, height: int, interpolation: str = "bilinear"
) -> Image.Image:
    """The middle of an image. Between two pixels it is where torchvision or MXNet puts it,
    whichever scales by that interpolation.
    """
    if image.size == (width, height):
        return image
    half = math.floor if interpolation == OPENCV else round
    left, top = half((image.width - width) / 2), half((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def scaled(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """An image of `size`, (width, height), by one of `INTERPOLATIONS`."""
    if interpolation != OPENCV:
        return image.resize(size, INTERPOLATIONS[interpolation])
    import mxnet as mx  # which few of this module's users need

    pixels = mx.nd.array(np.atleast_3d(np.asarray(image)), dtype="uint8")
    values = mx.image.imresize(pixels, *size, interp=1).asnumpy()
    return Image.fromarray(values[:, :, 0] if image.mode == "L" else values)


def _parts(data, most):
    """The work of a PNG's parts, counted until it is more than `most`."""
    at, asked = len(PNG), 0
    while at < len(data) and asked <= most:
        asked += TEXT if data[at + 4 : at + 8] in TEXTS else 3 * READ
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return asked


def _check_scans(data, width, height, most):
    """Has a JPEG not pass over its pixels more often than they are worth."""
    size = struct.pack(">HH", height, width)
    if re.search(ARITHMETIC + re.escape(size), data, re.DOTALL):
        raise ValueError("its coding is arithmetic")
    scans = data.count(SCAN)
    if scans * width * height > SCANS * most:
        raise ValueError(f"it has {scans} scans")


def _rgb(image):
    if image.getexif().get(ORIENTATION, 1) != 1:  # or it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ValueError("it has values that are not finite")
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip
        return _eight_bits(image).convert("RGB")
    if not image.mode.endswith(("A", "a")) and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    seen = Image.new("RGB", image.size, "white")
    seen.paste(image, mask=image)
    return seen


def _eight_bits(image):
    values = np.asarray(image)
    levels = (values // 257).clip(0, 255).astype("uint8")
    if "transparency" in image.info:  # the grey that is clear
        levels[values == image.info["transparency"]] = 255
    return Image.fromarray(levels)
