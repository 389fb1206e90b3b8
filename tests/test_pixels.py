"""One picture in many encodings has the same pixels wherever it is read."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.data import imagenet
from gluon_resnetv2.engines.images import read_image
from gluon_resnetv2.pixels import FORMATS, NoImage, centre, decode
from tests.hostile_images import encoded, hostile, scans
from tests.imagenet_tree import write_rec
from tests.pictures import RED, SHAPES, WHITE, half, picture, write_pictures

SIZE, CROP = 16, 0.875


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "val" / "all"
    folder.mkdir(parents=True)
    write_pictures(folder)
    (folder.parents[1] / "train").symlink_to(folder.parent)
    return sorted(folder.iterdir())


def evaluated(data_dir, channels):
    """The pixels of all test images as `evaluate` gives them to the network."""
    options = {"test_size": SIZE, "crop": CROP, "in_channels": channels}
    options.update(mean=(0,) * channels, std=(1,) * channels)
    batches = imagenet.load(data_dir, image_size=SIZE, **options).batches(64)
    return np.concatenate([images for images, _ in batches])


@pytest.mark.parametrize("channels", [3, 1])
def test_evaluation_and_prediction_see_the_same(paths, channels, tmp_path):
    for part in ("train", "val"):
        write_rec(tmp_path / f"{part}.rec", [(0, path.read_bytes()) for path in paths])
    shape = (channels, SIZE, SIZE)
    predicted = np.stack([read_image(path, shape, CROP) for path in paths])
    for path, pixels in zip(paths, predicted):
        if path.suffix in (".jpg", ".png"):  # which nobody may send
            sent = read_image(io.BytesIO(path.read_bytes()), shape, CROP)
            np.testing.assert_array_equal(sent, pixels, err_msg=path.name)
    np.testing.assert_array_equal(evaluated(paths[0].parents[2], channels), predicted)
    np.testing.assert_array_equal(evaluated(tmp_path, channels), predicted)


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


def test_grey_is_the_light_of_what_is_seen_and_a_grey_files_own(paths):
    for path in paths:
        shape, name = path.name.split("-")
        size = SHAPES[shape]
        seen = Image.fromarray(np.asarray(decode(path.read_bytes())))
        expected = picture(size) if name in ("grey.png", "deep.png") else seen
        (found,) = read_image(path, (1, seen.height, seen.width))
        np.testing.assert_array_equal(found, expected.convert("L"), err_msg=path.name)


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
    """As torchvision cuts it: the shorter side is scaled first."""
    image = picture(size)
    ratio = round(SIZE / CROP) / min(size)
    whole = image.resize([int(side * ratio) for side in size], Image.Resampling.BILINEAR)
    left, top = (round((side - SIZE) / 2) for side in whole.size)
    expected = whole.crop((left, top, left + SIZE, top + SIZE))
    np.testing.assert_array_equal(centre(image, SIZE, SIZE, CROP), expected)


def test_of_a_very_long_image_only_the_middle_is_scaled():
    image = Image.new("RGB", (2**22, 1), RED)
    assert centre(image, SIZE, SIZE, CROP).getcolors() == [(SIZE * SIZE, RED)]


@pytest.mark.parametrize(
    ("data", "told"), [pytest.param(*case, id=name) for name, *case in hostile()]
)
def test_more_work_than_the_pixels_are_worth_is_refused(data, told):
    began = time.thread_time()
    with pytest.raises(NoImage, match=told):
        decode(data, ("JPEG", "PNG"), 2**25)
    assert time.thread_time() - began < 10  # "EXIF" took 26 seconds, "scans" 60


def test_a_small_image_may_have_many_scans():
    assert decode(scans(64, 64, 1000)).size == (64, 64)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_progressive_photograph_is_read_at_any_size(mode):
    file = io.BytesIO()
    picture((400, 300)).convert(mode).save(file, "JPEG", progressive=True, exif=b"Exif\0\0MM\0*")
    assert decode(file.getvalue(), most=400 * 300).size == (400, 300)


def test_what_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr("gluon_resnetv2.pixels.SECONDS", -1)
    with pytest.raises(NoImage, match="seconds"):
        decode(encoded("PNG"))
