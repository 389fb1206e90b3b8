"""Image files are scaled and cut for each layout's networks as the packages themselves do it."""

from __future__ import annotations

import io

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon.data.vision import transforms
from PIL import Image

from gluon_resnetv2.engines.images import read_image
from gluon_resnetv2.interop.convert import LAYOUTS
from gluon_resnetv2.spec import named
from tests.common import beside_torch

# Odd and even sides, longer and shorter than what is kept; with 229 and 201 the window's middle
# lies between two pixels.
SIZES = [(333, 217), (218, 333), (500, 375), (600, 401), (229, 231), (451, 200), (201, 587)]
TOLERANCE = 1e-5  # of normalised pixels, where a level is a hundredth at least, or 1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FB_MEAN, FB_STD = [[v / 255 for v in row] for row in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))]


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.RandomState(0)
    return [
        Image.fromarray(rng.randint(0, 256, (height, width, 3), "uint8")) for width, height in SIZES
    ]


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return io.BytesIO(file.getvalue())


def check(pictures, name, theirs, size=224, depth=18, arrays=None):
    """Ours are what `theirs` makes of images: (3, size, size), normalised."""
    layout = LAYOUTS[name]
    described = layout.input
    if layout.prepare:
        described, _ = layout.prepare(named(f"preact{depth}"), arrays or {}, size)
    mean, std = (np.reshape(described[key], (3, 1, 1)) for key in ("mean", "std"))
    for image in pictures:
        pixels = read_image(png(image), (3, size, size), **scaling(described))
        np.testing.assert_allclose((pixels - mean) / std, theirs(image), rtol=0, atol=TOLERANCE)


def scaling(described):
    return {key: described[key] for key in described if key not in ("mean", "std")}


def array(image):
    return mx.nd.array(np.asarray(image), dtype="uint8")


# -- MXNet -----------------------------------------------------------------------------------------


def test_gluons_and_gluoncvs(pictures):
    presets = pytest.importorskip("gluoncv.data.transforms.presets.imagenet", exc_type=ImportError)
    check(pictures, "model-zoo", lambda image: presets.transform_eval(array(image))[0].asnumpy())


def test_gluoncvs_for_cifar(pictures):
    """As its demonstration on images of any size says: what scales to 32x32 leaves no crop."""
    transform = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR_MEAN, CIFAR_STD),
        ]
    )
    check(pictures, "gluoncv-cifar", lambda image: transform(array(image)).asnumpy(), size=32)


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0), (123.68, 116.779, 103.939)])
def test_mxnets_symbolic(pictures, tmp_path, mean):
    """A record whose shorter side im2rec scaled to 256, through the example's iterator."""

    def theirs(image):
        small = Image.fromarray(mx.image.resize_short(array(image), 256, interp=1).asnumpy())
        record = mx.recordio.MXRecordIO(str(tmp_path / "val.rec"), "w")
        header = mx.recordio.IRHeader(0, 0, 0, 0)
        record.write(mx.recordio.pack(header, png(small).getvalue()))
        record.close()
        images = mx.io.ImageRecordIter(
            path_imgrec=str(tmp_path / "val.rec"),
            data_shape=(3, 224, 224),
            batch_size=1,
            preprocess_threads=1,
            rand_crop=False,
            **dict(zip(("mean_r", "mean_g", "mean_b"), mean)),
        )
        return next(images).data[0].asnumpy()[0]

    left = np.subtract((123.7, 116.8, 104.0), mean).astype("float32")
    check(pictures, "symbolic", theirs, arrays={"bn_data_moving_mean": left})


# -- PyTorch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_timms(pictures, depth):
    timm = beside_torch("timm")
    config = timm.get_pretrained_cfg(f"resnetv2_{depth}")
    transform = timm.data.create_transform(
        config.input_size,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
    )
    check(pictures, "timm", lambda image: transform(image).numpy(), depth=depth)


@pytest.mark.parametrize(
    ("name", "scaled", "size", "mean", "std"),
    [
        ("torch-fb", 256, 224, MEAN, STD),
        ("torch-fb-cifar", 32, 32, FB_MEAN, FB_STD),
        ("torch-kaiming", 32, 32, FB_MEAN, FB_STD),
        ("torch-preresnet", 32, 32, CIFAR_MEAN, CIFAR_STD),
    ],
)
def test_the_ports_by_torchvision(pictures, name, scaled, size, mean, std):
    """Those for CIFAR scale nothing; what torchvision is usually told is taken."""
    tv = beside_torch("torchvision.transforms")
    transform = tv.Compose(
        [tv.Resize(scaled), tv.CenterCrop(size), tv.ToTensor(), tv.Normalize(mean, std)]
    )
    check(pictures, name, lambda image: transform(image).numpy(), size=size)


# -- Keras -----------------------------------------------------------------------------------------


def test_keras(pictures, monkeypatch):
    """As its documentation of `keras.applications` reads an image, by the defaults."""
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", minversion="3")

    def theirs(image):
        read = keras.utils.load_img(png(image), target_size=(224, 224))
        pixels = keras.utils.img_to_array(read, data_format="channels_last")
        prepared = keras.applications.resnet_v2.preprocess_input(
            pixels, data_format="channels_last"
        )
        return prepared.transpose(2, 0, 1)

    check(pictures, "keras", theirs, depth=50)
