"""A small image tree like ImageNet's, and what Pillow and NumPy alone make of its images."""

from __future__ import annotations

import io
from pathlib import Path

import mxnet as mx
import numpy as np
from PIL import Image

CLASSES = ("ape", "bee", "cat", "dog", "eel", "fox")  # more than five, so that top-5 can be wrong
ORIENTATION = 0x0112  # the EXIF tag; 6: the camera was turned, so rotate by 270 degrees


def make_tree(root: Path, train: int = 5, val: int = 4, seed: int = 0) -> Path:
    """ROOT/{train,val}/CLASS/N.JPEG: odd sizes, one greyscale, one CMYK, one PNG, one turned."""
    rng = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                photo(rng).save(root / part / name / f"{i}.JPEG", quality=95)
        photo(rng).convert("L").save(root / part / "ape" / "0.JPEG")
        photo(rng).convert("CMYK").save(root / part / "bee" / "0.JPEG")
        photo(rng).save(root / part / "cat" / "9.PNG")
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        photo(rng).save(root / part / "dog" / "0.JPEG", exif=exif)
    return root


def photo(rng: np.random.Generator) -> Image.Image:
    """Blurred noise of a random odd size."""
    width, height = 2 * rng.integers(30, 60, 2) + 1
    noise = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def corrupt(path: Path) -> Path:
    """Cuts the file short."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def write_rec(path: Path, items: list[tuple[int, bytes]]) -> Path:
    """A .rec and .idx of (label, encoded image) pairs, without a .lst."""
    file = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for key, (label, data) in enumerate(items):
        header = mx.recordio.IRHeader(0, label, key, 0)
        file.write_idx(key, mx.recordio.pack(header, data))
    file.close()
    return path


def files(part: Path) -> list[tuple[int, Path]]:
    """(label, path) of every image, in the order of class and name."""
    return [
        (CLASSES.index(folder.name), path)
        for folder in sorted(part.glob("[!.]*"))
        for path in sorted(folder.iterdir())
    ]


def rgb(path: Path) -> Image.Image:
    """An image, upright."""
    with Image.open(path) as image:
        if image.getexif().get(ORIENTATION) == 6:
            return image.transpose(Image.Transpose.ROTATE_270).convert("RGB")
        return image.convert("RGB")


def scaled(image: Image.Image, shorter: int) -> Image.Image:
    """The image scaled so that the shorter side has so many pixels."""
    width, height = image.size
    if width < height:
        size = shorter, int(height * shorter / width)
    else:
        size = int(width * shorter / height), shorter
    return image.resize(size, Image.Resampling.BILINEAR)


def normalised(image: Image.Image) -> np.ndarray:
    """(1, 3, H, W), by ImageNet's mean and deviation as torchvision has them, in 0..1."""
    pixels = np.asarray(image, np.float64) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return pixels.transpose(2, 0, 1)[None]


def lines(count):
    """Of a list of images of the classes c and d in turn."""
    return [f"{key}\t{key % 2}\t{'cd'[key % 2]}/{key}.png\n" for key in range(count)]


def write_six(folder):
    """A train.rec and val.rec of six images of two classes, c and d, with their lists."""
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (9, 99, 199)).save(file, "PNG")
    for part in ("train", "val"):
        write_rec(folder / f"{part}.rec", [(key % 2, file.getvalue()) for key in range(6)])
        (folder / f"{part}.lst").write_text("".join(lines(6)))
