"""What fine-tuning gains over starting at random, on three classes of Fashion-MNIST.

Without --init-from it first trains preact20 on the seven other classes, from their images. Then it
learns the three classes from folders of 20 PNG files each: once from random weights, once from the
given ones, and once with these frozen but for the classifier.

    python examples/finetune/finetune.py
    python examples/finetune/finetune.py --init-from timm:resnetv2_50.a1h_in1k --image-size 96
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from gluon_resnetv2 import data
from gluon_resnetv2.training.run import read_metrics

NEW = ("Pullover", "Coat", "Shirt")  # which are the hardest to tell from each other
FEW = 20  # training images of each
TESTED = 300  # of each


def write(split: data.Split, classes: tuple[str, ...], chosen: list[str], folder: Path, most: int):
    """The first images of the chosen classes as FOLDER/CLASS/N.png."""
    for name in chosen:
        target = folder / name.replace("/", " or ")
        target.mkdir(parents=True, exist_ok=True)
        for row in np.flatnonzero(split.labels == classes.index(name))[:most]:
            Image.fromarray(split.images[[row]][0, ..., 0]).save(target / f"{row}.png")


def folders(root: Path, data_dir: str | None, most: int) -> tuple[Path, Path]:
    """Folders of the seven classes, with up to `most` images each, and of the three."""
    images = data.load("fashion-mnist", data_dir)
    old = [name for name in images.classes if name not in NEW]
    for chosen, name, count in ((old, "seven", most), (list(NEW), "three", FEW)):
        write(images.train, images.classes, chosen, root / name / "train", count)
        write(images.test, images.classes, chosen, root / name / "val", min(count * 15, TESTED))
    return root / "seven", root / "three"


def train(output: Path, images: Path, *words: str) -> list[float]:
    """Trains anew, unless that is done; the test errors of its epochs in percent."""
    if not (output / "export").exists():
        command = [sys.executable, "-m", "gluon_resnetv2", "train", "--dataset", "folder"]
        command += ["--data-dir", str(images), "--output", str(output), *words]
        if status := subprocess.run([*command, "--resume", "auto"], check=False).returncode:
            sys.exit(status)  # it has said why
    return [record["test_error"] for record in read_metrics(output) if "epoch" in record]


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Test error by epoch."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, errors in curves.items():
        axes.plot(range(1, len(errors) + 1), errors, label=f"{name}: {errors[-1]:.1f} % at the end")
    axes.set(xlabel="epoch", ylabel="test error in %", ylim=(0, None))
    axes.set_title(f"{', '.join(NEW)}: {FEW} training images each", fontsize=10)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--init-from", help="weights; default: trained here on the other classes")
    parser.add_argument("--image-size", default="28", help="in pixels")
    parser.add_argument("--images", type=int, default=2000, help="of each other class")
    parser.add_argument("--epochs", default="8", help="on the other classes")
    parser.add_argument("--fine-epochs", default="40", help="on the three classes")
    options = parser.parse_args()

    seven, three = folders(options.output / "images", options.data_dir, options.images)
    size = ("--image-size", options.image_size)
    source = options.init_from
    if source is None:
        source = str(options.output / "seven")
        train(Path(source), seven, *size, "--num-epochs", options.epochs)
    few = (*size, "--num-epochs", options.fine_epochs, "--batch-size", "20")
    given = ("--init-from", source, "--lr", "0.01")
    curves = {
        "random weights": train(options.output / "random", three, *few),
        "fine-tuned": train(options.output / "fine-tuned", three, *few, *given),
        "classifier only": train(
            options.output / "classifier", three, *few, *given, "--freeze", "features"
        ),
    }
    draw(curves, options.output / "finetune.png")
    for name, errors in curves.items():
        print(f"{name:16} {errors[-1]:6.2f} % test error")
    print(options.output / "finetune.png")


if __name__ == "__main__":
    main()
