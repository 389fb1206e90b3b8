"""Training batches of ImageNet: order, randomness and augmentation, from both containers."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.data import imagenet, num_batches, prefetch
from gluon_resnetv2.data.imagenet.augment import _aspect_box
from tests.imagenet_tree import write_rec

WIDTH, HEIGHT = 160, 120
COUNT = 26


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root, container, images, labels):
    """One class per image; `images` are encoded."""
    root.mkdir()
    for part in ("train", "val"):
        if container == "rec":
            write_rec(root / f"{part}.rec", list(zip(labels, images)))
            names = "".join(f"{i}\t{y}\tc{y:03}/{i:03}.png\n" for i, y in enumerate(labels))
            (root / f"{part}.lst").write_text(names)
        else:
            for i, (label, image) in enumerate(zip(labels, images)):
                folder = root / part / f"c{label:03}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{i:03}.png").write_bytes(image)
    return root


@pytest.fixture(scope="module", params=["folder", "rec"])
def numbered(request, tmp_path_factory):
    """COUNT small images of noise, each of a class of its own."""
    rng = np.random.default_rng(0)
    images = [png(rng.integers(0, 256, (20, 24, 3))) for _ in range(COUNT)]
    root = tmp_path_factory.mktemp(request.param) / "data"
    return write(root, request.param, images, range(COUNT))


def run(root, batch_size=8, threads=2, **options):
    dataset = imagenet.load(root, image_size=16, threads=threads)
    return list(dataset.batches(batch_size, train=True, **options))


def same(left, right):
    return len(left) == len(right) and all(
        np.array_equal(a, b) for pair in zip(left, right) for a, b in zip(*pair)
    )


def numbers(batches):
    return np.concatenate([labels for _, labels in batches]).tolist()


def test_every_image_once_and_reproducibly(numbered):
    batches = run(numbered)
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 2]
    assert all(images.shape == (len(labels), 3, 16, 16) for images, labels in batches)
    assert {(images.dtype, labels.dtype) for images, labels in batches} == {
        (np.dtype("float32"), np.dtype("int32"))
    }
    assert sorted(numbers(batches)) == list(range(COUNT)) != numbers(batches)
    assert same(batches, run(numbered, threads=1))
    for start in range(5):
        assert same(batches[start:], run(numbered, start=start))
    assert same(batches, list(prefetch(run(numbered))))
    # The last batch takes what would not be enough for three devices.
    assert [len(labels) for _, labels in run(numbered, devices=3)] == [8, 8, 10]


def test_a_record_gives_the_bits_of_its_file(tmp_path):
    """Transparent pixels too, which MXNet's own iterator shows as what lies below."""
    rng = np.random.default_rng(0)
    images = [png(rng.integers(0, 256, (20, 24, 4))) for _ in range(COUNT)]
    folder, rec = (write(tmp_path / kind, kind, images, range(COUNT)) for kind in ("folder", "rec"))
    assert same(run(folder), run(rec))


def test_workers_share_each_batch(numbered):
    whole, parts = run(numbered), [run(numbered, worker=worker, workers=3) for worker in range(3)]
    # The last batch would leave a worker without an image, and so goes with the one before.
    assert ([len(batches) for batches in parts], len(whole)) == ([3, 3, 3], 4)
    for step in range(2):
        for whole_array, *arrays in zip(whole[step], *(batches[step] for batches in parts)):
            np.testing.assert_array_equal(whole_array, np.concatenate(arrays))


def test_epochs_and_seeds_differ_in_order_and_pixels(numbered):
    runs = [run(numbered, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(numbers(batches)) for batches in runs}) == 3
    first = [
        next(images[labels == 3] for images, labels in batches if 3 in labels) for batches in runs
    ]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


@pytest.mark.parametrize(("workers", "devices"), [(2, 1), (2, 2), (3, 1), (4, 1)])
def test_workers_share_every_epoch(numbered, workers, devices):
    parts = [
        run(numbered, devices=devices, worker=worker, workers=workers) for worker in range(workers)
    ]
    steps = num_batches(COUNT, 8, devices * workers)
    assert [len(part) for part in parts] == [steps] * workers
    assert all(len(labels) >= devices for part in parts for _, labels in part)
    assert sorted(itertools.chain(*map(numbers, parts))) == list(range(COUNT))


@pytest.fixture(scope="module", params=["folder", "rec"])
def ramps(request, tmp_path_factory):
    """256 images whose red says how far right a pixel is, and whose green how far down."""
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    pixels[..., 0] = np.linspace(20, 230, WIDTH)
    pixels[..., 1] = np.linspace(20, 230, HEIGHT)[:, None]
    root = tmp_path_factory.mktemp(request.param) / "ramps"
    return write(root, request.param, [png(pixels)] * 256, [0] * 256)


def crops(root, augmentation):
    """Left, top, width, height of what 256 crops show, and whether each is mirrored."""
    dataset = imagenet.load(
        root, image_size=56, augmentation=augmentation, colour=False, mean=(0, 0, 0), std=(1, 1, 1)
    )
    ((images, _),) = dataset.batches(256, train=True)

    def shown(along, length):
        """Start and signed length, from the ramp's middle, away from edges where it is bent."""
        slope = (along[:, 45] - along[:, 10]) / 35 * (length - 1) / 210
        middle = (along[:, 20:36].mean(axis=1) - 20) / 210 * (length - 1) + 0.5
        return middle - np.abs(slope) * 28, slope * 56

    left, width = shown(images[:, 0, 28], WIDTH)
    top, height = shown(images[:, 1, :, 28], HEIGHT)
    return left, top, np.abs(width), height, width < 0


def is_uniform(values, low, high, slack):
    """Kolmogorov-Smirnov at a level of about 1e-4, and `slack` beyond the ends."""
    values = np.sort(values)
    expected = np.clip((values - low) / (high - low), 0, 1)
    distance = np.abs(expected - np.arange(1, len(values) + 1) / len(values)).max()
    return values[0] > low - slack and values[-1] < high + slack and distance < 0.14


def test_every_epoch_and_seed_draws_crops_of_its_own(ramps):
    dataset = imagenet.load(ramps, image_size=56)
    drawn = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        ((images, _),) = dataset.batches(256, train=True, seed=seed, epoch=epoch)
        drawn.append({image.tobytes() for image in images})
        assert len(drawn[-1]) > 250, "an epoch's crops differ"
    assert not drawn[0] & drawn[1]
    assert not drawn[0] & drawn[2]


def test_scale_augmentation(ramps):
    left, top, width, height, mirrored = crops(ramps, "scale")
    np.testing.assert_allclose(width, height, rtol=0.06)
    # A crop of 224 from an image whose shorter side is uniform in [256, 480].
    assert is_uniform(224 / (height / HEIGHT), 256, 480, slack=8)
    # Where little is cut off, a pixel's rounding is much of it.
    assert is_uniform(left / (WIDTH - width), 0, 1, slack=0.05)
    assert is_uniform(top / (HEIGHT - height), 0, 1, slack=0.1)
    assert 0.35 < mirrored.mean() < 0.65


def test_boxes_are_as_often_high_as_wide():
    rng = np.random.default_rng(0)
    boxes = np.array([_aspect_box(1000, 1000, rng) for _ in range(4000)])
    ratios = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    # A ratio that is uniform from 3/4 to 4/3 has a mean logarithm of 0.027 (standard error 0.003);
    # one whose sides are swapped in half of the cases has 0.
    assert abs(ratios.mean()) < 0.012


def test_scale_and_aspect_augmentation(ramps):
    left, top, width, height, mirrored = crops(ramps, "scale-aspect")
    area, aspect = width * height / (WIDTH * HEIGHT), width / height
    assert 0.07 < area.min() < 0.15
    assert 0.7 < area.max() < 1.03
    # Large areas of the wrong shape do not fit and are drawn anew.
    assert 0.35 < np.median(area) < 0.54
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.42
    assert 0.3 < (aspect > 1).mean() < 0.75
    assert min(left.min(), top.min()) > -4
    assert (left + width).max() < WIDTH + 4
    assert (top + height).max() < HEIGHT + 4
    assert 0.35 < mirrored.mean() < 0.65


@pytest.mark.parametrize("container", ["folder", "rec"])
def test_colour_augmentation(container, tmp_path):
    images = [png(np.full((8, 8, 3), 128))] * 256
    root = write(tmp_path / "grey", container, images, [0] * 256)
    options = {"image_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}
    ((images, _),) = imagenet.load(root, **options).batches(256, train=True)
    light = images[:, :, 0, 0] - 128
    assert (images == images[:, :, :1, :1]).all(), "the same light everywhere in an image"
    # The eigenvalues of Krizhevsky et al. in 0..255, a tenth of which is the deviation. Almost all
    # of it brightens or darkens the three channels together.
    values, vectors = np.linalg.eigh(np.cov(light.T))
    np.testing.assert_allclose(np.sqrt(values[-1]), 5.55, rtol=0.15)
    np.testing.assert_allclose(np.abs(vectors[:, -1]), [0.5675, 0.5808, 0.5836], atol=0.05)
    assert 0.3 < np.sqrt(values[-2]) < 0.9
    ((plain, _),) = imagenet.load(root, colour=False, **options).batches(256, train=True)
    assert (plain == 128).all()
