"""Image files: what the network gets to see of them, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from gluon_resnetv2.engines.images import read_image
from gluon_resnetv2.errors import UserError
from tests.malformed import png

ROOT = Path(__file__).resolve().parents[1]


def picture(path, size=(16, 16)):
    pixels = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype="uint8")
    Image.fromarray(pixels).save(path)
    return path


def blank(path, side, mode):
    Image.new(mode, (side, side)).save(path)
    return path


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path):
    path = picture(tmp_path / "image.png")
    expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
    assert (read_image(path, (3, 16, 16)) == expected).all()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGBA"),
        ("a.png", "P"),
        ("a.png", "L"),
        ("a.png", "LA"),
        ("a.png", "1"),
        ("a.png", "I;16"),
        ("a.jpg", "CMYK"),
        ("a.jpg", "L"),
        ("a.tiff", "F"),
    ],
)
def test_any_mode_and_size_is_read(tmp_path, name, mode):
    grey = Image.new("L", (37, 50), 200)
    image = {
        "1": lambda: grey.convert("1", dither=Image.Dither.NONE),
        "I;16": lambda: Image.fromarray(np.full((50, 37), 200 * 257, "uint16")),
        "P": lambda: grey.convert("P", palette=Image.Palette.ADAPTIVE),
    }.get(mode, lambda: grey.convert(mode if mode == "L" else "RGB").convert(mode))()
    image.save(tmp_path / name)
    pixels = read_image(tmp_path / name, (3, 16, 24))
    assert pixels.shape == (3, 16, 24)
    expected = 255 if mode == "1" else 200
    assert np.abs(pixels - expected).max() <= 3  # what JPEG may change


def test_sixteen_bits_are_scaled_alike_whatever_they_show(tmp_path):
    for value, expected in ((100, 0), (300, 1), (512, 1), (514, 2), (65535, 255)):
        Image.fromarray(np.full((8, 8), value, "uint16")).save(tmp_path / "deep.png")
        assert (read_image(tmp_path / "deep.png", (1, 8, 8)) == expected).all()


def test_other_channels_than_grey_and_colour_are_refused(tmp_path):
    with pytest.raises(UserError, match="1 or 3 channels"):
        read_image(picture(tmp_path / "image.png"), (4, 16, 16))


def test_transparency_shows_white(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", (3, 8, 8)) == 255).all()


def test_transparent_edges_are_scaled_as_they_look(tmp_path):
    pixels = np.zeros((64, 64, 4), "uint8")
    pixels[..., 0], pixels[20:45, 10:50, 3] = 250, 255  # red, and clear red around it
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    part = pixels[..., 3:] / 255
    seen = Image.fromarray((pixels[..., :3] * part + 255 * (1 - part)).round().astype("uint8"))
    seen.save(tmp_path / "seen.png")
    found, expected = (read_image(tmp_path / name, (3, 9, 9)) for name in ("clear.png", "seen.png"))
    assert np.abs(found - expected).max() <= 2


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path):
    path = picture(tmp_path / "image.png", size=(50, 40))
    expected = read_image(path, (3, 16, 16))
    Image.open(path).convert("RGBA").save(path)
    assert (read_image(path, (3, 16, 16)) == expected).all()


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype("uint8")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the left
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png", (3, 30, 20))
    assert (found == np.rot90(pixels, -1).transpose(2, 0, 1)).all()


def test_the_centre_is_kept(tmp_path):
    pixels = np.zeros((64, 128, 3), "uint8")
    pixels[16:48, 48:80] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", (1, 32, 32), crop=0.5) > 250).all()
    assert read_image(tmp_path / "wide.png", (1, 32, 32)).mean() < 100


def test_files_that_are_no_images_are_named(tmp_path, monkeypatch):
    # GluonCV, which other tests import, has Pillow tolerate truncated files.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    path = picture(tmp_path / "cut.png", size=(64, 64))
    path.write_bytes(path.read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder").mkdir()
    for name in ("cut.png", "text.jpg", "missing.png", "folder"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name, (3, 8, 8))


def test_what_was_sent_is_a_jpeg_or_a_png(tmp_path):
    for name in ("a.jpg", "a.png", "a.tiff", "a.gif"):
        path = picture(tmp_path / name)
        assert read_image(path, (3, 8, 8)).shape == (3, 8, 8)
        sent = io.BytesIO(path.read_bytes())
        if name in ("a.jpg", "a.png"):
            assert (read_image(sent, (3, 8, 8)) == read_image(path, (3, 8, 8))).all()
            continue
        with pytest.raises(UserError, match="is no image of a kind that is read: JPEG, PNG"):
            read_image(sent, (3, 8, 8))


def test_a_decompression_bomb_is_refused(tmp_path):
    for side in (6000, 10_000, 60_000):
        with pytest.raises(UserError, match="more pixels"):
            read_image(io.BytesIO(png(side, side, b"")), (3, 8, 8))
    (tmp_path / "bomb.png").write_bytes(png(10_000, 10_000, b""))
    with pytest.raises(UserError, match=r"bomb\.png has more pixels"):
        read_image(tmp_path / "bomb.png", (3, 8, 8))
    assert (read_image(blank(tmp_path / "large.png", 6000, "L"), (3, 8, 8)) == 0).all()


MEMORY = """
import sys
from pathlib import Path
from gluon_resnetv2.engines.images import read_image

def megabytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # begins to look for the peak anew
    before = megabytes()
    read_image(open(path, "rb"), (3, 8, 8))
    print(megabytes() - before)
"""


def test_an_image_takes_three_times_its_pixels_at_most(tmp_path):
    paths = [blank(tmp_path / f"{mode}.png", 3000, mode) for mode in ("RGB", "RGBA", "LA")]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    whole = 4 * 3000 * 3000 / 2**20
    taken = [float(line) / whole for line in done.stdout.split()]
    assert len(taken) == 3
    assert max(taken) < 3.3
