"""One picture in the encodings and shapes that people have."""

from __future__ import annotations

import numpy as np
from PIL import Image

SHAPES = {"wide": (40, 20), "tall": (20, 40), "odd": (33, 32), "long": (200, 21)}
RED, WHITE = (250, 20, 30), (255, 255, 255)


def picture(size):
    noise = np.random.RandomState(0).randint(0, 256, (9, 11, 3), dtype="uint8")
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def half(size, clear, solid):
    """The left half is clear, or what stands for it, and the right is solid."""
    image = Image.new("RGBA" if len(solid) == 4 else "RGB", size, clear)
    image.paste(solid, (size[0] // 2, 0, *size))
    return image


def encodings(size):
    """Of pictures: a file's name, the image, and what `save` takes."""
    image, turned = picture(size), Image.Exif()
    turned[0x0112], fine = 6, {"quality": 95, "subsampling": 0}
    deep = np.asarray(image.convert("L"), "uint16") * 257
    palette = Image.new("P", size, 0)
    palette.putpalette([0, 0, 0, *RED])
    palette.paste(1, (size[0] // 2, 0, *size))
    yield "grey.png", image.convert("L"), {}
    yield "rgb.png", image, {}
    yield "alpha.png", half(size, (0, 0, 0, 0), (*RED, 255)), {}
    yield "palette.png", palette, {"transparency": 0}
    yield "colour.png", half(size, (0, 0, 0), RED), {"transparency": (0, 0, 0)}
    yield "deep.png", Image.fromarray(deep), {}
    yield "rgb.jpg", image, fine
    yield "cmyk.jpg", image.convert("CMYK"), fine
    yield "turned.jpg", image, {"exif": turned, **fine}
    yield "plain.bmp", image, {}
    yield (
        "plain.gif",
        image.quantize(64),
        {"save_all": True, "append_images": [half(size, RED, RED)]},
    )
    yield "plain.tif", image, {"save_all": True, "append_images": [half(size, RED, RED)]}
    yield "turned.tif", image, {"exif": turned}
    yield "alpha.webp", half(size, (0, 0, 0, 0), (*RED, 255)), {"lossless": True}


def write_pictures(folder):
    """Each of `encodings` in each of `SHAPES`, as "SHAPE-NAME"."""
    for shape, size in SHAPES.items():
        for name, image, options in encodings(size):
            image.save(folder / f"{shape}-{name}", **options)
