"""One picture in many encodings has the same pixels wherever it is read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import imagenet
from gluon_resnetv2.deploy.images import read_image
from gluon_resnetv2.pixels import FORMATS, NoImage, centre, decode
from tests.imagenet_tree import write_rec

SIZE, CROP = 16, 0.875
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


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "val" / "all"
    folder.mkdir(parents=True)
    for shape, size in SHAPES.items():
        for name, image, options in encodings(size):
            image.save(folder / f"{shape}-{name}", **options)
    (folder.parents[1] / "train").symlink_to(folder.parent)
    return sorted(folder.iterdir())


def evaluated(data_dir):
    """The pixels of all test images as `evaluate` gives them to the network."""
    options = {"test_size": SIZE, "crop": CROP, "mean": (0, 0, 0), "std": (1, 1, 1)}
    batches = imagenet.load(data_dir, image_size=SIZE, **options).batches(64)
    return np.concatenate([images for images, _ in batches])


def test_evaluation_and_prediction_see_the_same(paths, tmp_path):
    for part in ("train", "val"):
        write_rec(tmp_path / f"{part}.rec", [(0, path.read_bytes()) for path in paths])
    predicted = np.stack([read_image(path, (3, SIZE, SIZE), CROP) for path in paths])
    for path, pixels in zip(paths, predicted):
        if path.suffix in (".jpg", ".png"):  # which nobody may send
            sent = read_image(io.BytesIO(path.read_bytes()), (3, SIZE, SIZE), CROP)
            np.testing.assert_array_equal(sent, pixels, err_msg=path.name)
    np.testing.assert_array_equal(evaluated(paths[0].parents[2]), predicted)
    np.testing.assert_array_equal(evaluated(tmp_path), predicted)


def test_the_pixels_of_each_encoding(paths):
    for path in paths:
        shape, name = path.name.split("-")
        size, found = SHAPES[shape], np.asarray(decode(path.read_bytes()), int)
        expected = np.asarray(picture(size), int)
        if name in ("alpha.png", "palette.png", "colour.png", "alpha.webp"):
            expected = np.asarray(half(size, WHITE, RED), int)
        elif name in ("grey.png", "deep.png"):
            expected = np.repeat(np.asarray(picture(size).convert("L"), int)[..., None], 3, 2)
        elif name.startswith("turned"):
            expected = np.rot90(expected, -1)
        elif name == "plain.gif":
            expected = np.asarray(picture(size).quantize(64).convert("RGB"), int)
        if path.suffix == ".jpg":  # is lossy
            assert np.abs(found - expected).mean() < 6, path.name
        else:
            np.testing.assert_array_equal(found, expected, err_msg=path.name)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_cut_short_is_refused(kind):
    file = io.BytesIO()
    picture((40, 30)).save(file, kind)
    for part in (0, 10, len(file.getvalue()) // 2):
        with pytest.raises(NoImage):
            decode(file.getvalue()[:part])


def test_what_is_half_transparent_shows_half_white():
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (10, 20, 31, 51)).save(file, "PNG")  # 51 / 255 is a fifth
    assert decode(file.getvalue()).getpixel((0, 0)) == (206, 208, 210)


def test_a_clear_grey_of_sixteen_bits_shows_white():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 257], [514, 65535]], "uint16")).save(
        file, "PNG", transparency=514
    )
    assert np.asarray(decode(file.getvalue()))[..., 0].tolist() == [[0, 1], [255, 255]]


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_the_centre_is_that_of_the_whole_image_scaled(size):
    """As torchvision and GluonCV cut it: the shorter side is scaled first."""
    image = picture(size)
    ratio = round(SIZE / CROP) / min(size)
    whole = image.resize([round(side * ratio) for side in size], Image.Resampling.BILINEAR)
    left, top = ((side - SIZE) // 2 for side in whole.size)
    expected = whole.crop((left, top, left + SIZE, top + SIZE))
    np.testing.assert_array_equal(centre(image, SIZE, SIZE, CROP), expected)


def test_of_a_very_long_image_only_the_middle_is_scaled():
    image = Image.new("RGB", (2**22, 1), RED)
    assert centre(image, SIZE, SIZE, CROP).getcolors() == [(SIZE * SIZE, RED)]
