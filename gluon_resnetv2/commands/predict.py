"""What image files show."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from gluon_resnetv2 import cli, machine
from gluon_resnetv2.engines.images import images_below
from gluon_resnetv2.engines.native import add_engine
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file
from gluon_resnetv2.formats.npy_file import Rows
from gluon_resnetv2.formats.pretrained import FOLDERS_HELP
from gluon_resnetv2.prefetch import prefetch

if TYPE_CHECKING:
    from gluon_resnetv2.engines.predictor import Predictor

# Paths, images (n, C, H, W) in 0..255, and what is wrong with other paths.
Batch = tuple[list[str], np.ndarray, list[UserError]]
Take = Callable[[Sequence[str], np.ndarray], None]  # what is done with paths and their images
TOP = 5  # classes that are said of an image
FORMATS = ("text", "csv", "json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `predict`."""
    add = parser.add_argument
    add("export", help=f"folder of an export or run, or {FOLDERS_HELP}")
    add(
        "images",
        nargs="+",
        metavar="image",
        help="PNG, JPEG or other image file, or a folder: all images in it and below",
    )
    add(
        "--format",
        default="text",
        choices=FORMATS,
        help="how to print the classes: as text, or with file names and scores as csv or json (a "
        "line for each image)",
    )
    add(
        "--features",
        metavar="FILE.npy",
        help="instead of printing classes, write the features that the classifier reads to this "
        "file, float32 (images, channels), and the images' names to FILE.csv",
    )
    add("--max-batch", type=int, default=64, help="images computed at once, at most")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the likeliest classes of each image, or writes their features.

    Returns:
        0, or `cli.MISTAKE` where a file is no image; the others are answered all the same.

    Raises:
        UserError: as `artifact.load` and `Predictor`, or an option makes no sense.
    """
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.formats.artifact import load

    if options.features and not options.features.endswith(".npy"):
        raise UserError(f"--features writes a NumPy array; have {options.features} end in .npy")
    if options.features and options.format != "text":
        raise UserError("--features prints no classes; leave --format out")
    artifact = load(options.export)
    files, faults = _files(options.images)
    if not files:
        return cli.MISTAKE
    predictor = Predictor(
        artifact,
        max_batch=min(options.max_batch, len(files)),
        engine=options.engine,
        features=bool(options.features),
    )
    predictor.preparation()  # without which each image would complain
    print(predictor.about, file=sys.stderr)
    sink: contextlib.AbstractContextManager[Take]
    if options.features:
        sink = _write_features(predictor, Path(options.features))
    else:
        sink = contextlib.nullcontext(_printer(predictor, options.format))
    bar = tqdm(
        total=len(files), unit="image", leave=False, disable=None if options.features else True
    )
    with sink as take, ThreadPoolExecutor(machine.cpus()) as pool, bar:
        for paths, images, wrong in prefetch(_batches(predictor, files, pool)):
            for error in wrong:  # the others are not to blame
                cli.complain(error)
            faults += len(wrong)
            if paths:
                take(paths, images)
            bar.update(len(paths) + len(wrong))
    return cli.MISTAKE if faults else 0


def _files(named: Sequence[str]) -> tuple[list[str], int]:
    """The files that are named and those in folders; how many folders have none, which is told."""
    files: list[str] = []
    faults = 0
    for path in named:
        try:
            files += images_below(path) if os.path.isdir(path) else [path]
        except UserError as error:
            cli.complain(error)
            faults += 1
    return files, faults


def _batches(predictor: Predictor, files: Sequence[str], pool: Executor) -> Iterator[Batch]:
    """The files, as many at once as the predictor computes."""

    def read(path: str) -> np.ndarray | UserError:
        try:
            return predictor.read(path)
        except UserError as error:
            return error

    for start in range(0, len(files), predictor.max_batch):
        paths = files[start : start + predictor.max_batch]
        found = dict(enumerate(pool.map(read, paths)))
        images = {at: one for at, one in found.items() if isinstance(one, np.ndarray)}
        wrong = [one for one in found.values() if isinstance(one, UserError)]
        yield [paths[at] for at in images], np.array(list(images.values())), wrong


def _printer(predictor: Predictor, form: str) -> Take:
    """What prints the likeliest classes of images, given their paths."""
    writer = csv.writer(sys.stdout or io.StringIO(), lineterminator="\n")
    if form == "csv":
        numbers = range(1, min(TOP, len(predictor.classes)) + 1)
        names = (f"{what}{number}" for number in numbers for what in ("class", "score"))
        writer.writerow(["file", *names])

    def take(paths, images):
        for path, classes in zip(paths, predictor.top(images, TOP)):
            if form == "text":
                print(cli.printable(path))
                for name, score in classes:
                    print(f"  {100 * score:6.2f} %  {cli.printable(name)}")
                continue
            rounded = [(name, float(f"{score:.7g}")) for name, score in classes]
            if form == "csv":
                writer.writerow([path, *itertools.chain(*rounded)])
            else:
                said = [{"class": name, "score": score} for name, score in rounded]
                print(json.dumps({"file": path, "classes": said}))

    return take


@contextlib.contextmanager
def _write_features(predictor: Predictor, path: Path) -> Iterator[Take]:
    """What writes the features of images to `path`, and their paths to a CSV file beside it."""
    with (
        whole_file(path) as array,
        whole_file(path.with_suffix(".csv")) as table,
        open(array, "wb") as data,
        open(table, "w", encoding="utf-8", errors="surrogateescape", newline="") as names,
    ):
        rows, writer = Rows(data), csv.writer(names, lineterminator="\n")
        writer.writerow(["file"])

        def take(paths, images):
            rows.add(predictor.run(predictor.prepare(images)))
            writer.writerows([path] for path in paths)

        yield take
        if not rows.count:
            raise UserError(f"none of the images can be read, so {path} is not written")
        rows.end()
