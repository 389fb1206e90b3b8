"""What a network does well and badly on its test images, to look at: a page, and its tables as CSV.

per_class.csv   class, images, right, accuracy (0 to 1; empty where a class has no images)
confusion.csv   class, predicted, images: each pair that occurs
mistakes.csv    image (its file, or its number among the test images, from 0), class, predicted,
                score (0 to 1); the most confident first
report.html     all of it in one file, which loads nothing
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from gluon_resnetv2.data.dataset import Dataset
from gluon_resnetv2.engines.images import denormalise
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file
from gluon_resnetv2.training.answers import Answers

PICTURES = 24  # mistakes that are shown
LARGEST_PICTURE = 256  # pixels of its longer side
MOST_IN_TABLE = 100  # classes of a confusion matrix in numbers; more are a picture
MOST_IN_PICTURE = 1000  # its height and width in pixels; of more classes several share one
MOST_PAIRS = 50  # commonest confusions
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's blue and vermilion
FAINTEST = 0.15  # part of the colour that the rarest confusion has

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 80em;
  padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin: 2em 0 .6em; }
h1, figcaption { overflow-wrap: anywhere; }
p { max-width: 50em; } .quiet { color: #666; }
dl { display: flex; flex-wrap: wrap; gap: 1em 2.5em; } dt { color: #666; font-size: .85em; }
dd { margin: 0; font-size: 1.5em; }
table { border-collapse: collapse; } th { text-align: left; font-weight: normal; }
td { text-align: right; font-variant-numeric: tabular-nums; }
.list th, .list td { padding: .15em 1em .15em 0; border-bottom: 1px solid #eee; }
.list thead th { color: #666; position: sticky; top: 0; background: #fff; }
.list td:not(.bar) + td { padding-left: 1em; } .name { max-width: 24em; overflow-wrap: anywhere; }
.bar { width: 12em; } .bar div { background: rgb(0, 114, 178); height: .8em; }
.box { max-height: 34em; overflow: auto; width: fit-content; max-width: 100%; }
.matrix { max-height: 52em; }
.matrix td { min-width: 1.9em; height: 1.9em; padding: 0 .25em; text-align: center;
  border: 1px solid #eee; font-size: .85em; }
.matrix th { background: #fff; position: sticky; left: 0; padding: 0 .6em 0 0; max-width: 14em;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; z-index: 1; }
.matrix thead th { top: 0; left: auto; padding: .6em 0 .3em; vertical-align: bottom; z-index: 2; }
.matrix thead th:first-child { left: 0; z-index: 3; }
.matrix span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 12em;
  overflow: hidden; text-overflow: ellipsis; display: inline-block; }
.heat { image-rendering: pixelated; border: 1px solid #ccc; max-width: 100%; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1em; }
figure { margin: 0; } figcaption { font-size: .85em; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #f4f4f4; }
figure .small { image-rendering: pixelated; }
"""


def check_folder(folder: Path) -> None:
    """Has a folder to write a report to be new or empty.

    Raises:
        UserError: it is not.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name another for --report")


def write_report(
    folder: Path,
    answers: Answers,
    dataset: Dataset,
    title: str,
    loss: float,
) -> None:
    """Writes the four files into `folder`.

    Args:
        answers: with pictures.
        dataset: what the test images are of; the pictures are normalised as it says.
        title: what was evaluated on which data set.

    Raises:
        OSError: they can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = dataset.classes
    images, right = answers.per_class()
    accuracy = right / np.where(images, images, np.nan)
    confusion, predicted, scores = answers.confusion(), answers.predicted, answers.scores
    _write_csv(
        folder / "per_class.csv",
        ("class", "images", "right", "accuracy"),
        (
            (name, count, told, f"{part:.6g}" if count else "")
            for name, count, told, part in zip(classes, images, right, accuracy)
        ),
    )
    _write_csv(
        folder / "confusion.csv",
        ("class", "predicted", "images"),
        ((classes[own], classes[taken], count) for own, taken, count in confusion),
    )
    labels, name = answers.labels, dataset.test_name
    _write_csv(
        folder / "mistakes.csv",
        ("image", "class", "predicted", "score"),
        (
            (
                dataset.test_name(row),
                classes[labels[row]],
                classes[predicted[row]],
                f"{scores[row]:.6g}",
            )
            for row in answers.mistakes()
        ),
    )
    shown = [
        _figure(
            name(row),
            denormalise(image[None], dataset.mean, dataset.std)[0],
            classes[labels[row]],
            classes[predicted[row]],
            scores[row],
        )
        for row, image in answers.pictures
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        _summary(answers, loss),
        f"<h2>Most confident mistakes</h2>{_mistakes(shown, len(answers.mistakes()), len(labels))}",
        f"<h2>Classes</h2>{_per_class(classes, images, accuracy)}",
        f"<h2>Confusion</h2>{_confusion(classes, images, confusion)}",
    ]
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    with whole_file(folder / "report.html") as path:
        path.write_text(head + "\n".join(parts) + "\n</body>\n</html>\n", encoding="utf-8")


def _write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence]) -> None:
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)


def _summary(answers: Answers, loss: float) -> str:
    errors = answers.errors()
    said = {"images": f"{len(answers.labels)}", "accuracy (top-1)": _percent(100 - errors["error"])}
    if "error5" in errors:
        said["top-5 accuracy"] = _percent(100 - errors["error5"])
    said["balanced accuracy"] = _percent(answers.balanced_accuracy())
    said["loss"] = f"{loss:.4f}"
    entries = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in said.items())
    return f'<dl>{entries}</dl>\n<p class="quiet">Balanced: the mean of the classes.</p>'


def _mistakes(figures: Sequence[str], wrong: int, images: int) -> str:
    if not wrong:
        return "<p>There are none.</p>"
    shown = f'<div class="mistakes">{"".join(figures)}</div>'
    which = f"the {len(figures)} with the highest scores are shown, " if wrong > PICTURES else ""
    return (
        f"<p>{wrong} of {images} images are classified wrongly; {which}mistakes.csv lists all.</p>"
        f"\n{shown}"
    )


def _figure(name: str, pixels: np.ndarray, own: str, predicted: str, score: float) -> str:
    """An image (C, H, W) in 0..255 with what it is and what it was taken for."""
    levels = pixels.round().clip(0, 255).astype("uint8").transpose(1, 2, 0)
    image = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
    small = max(image.size) < LARGEST_PICTURE // 2
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    called = escape(f"image {name}" if name.isdecimal() else name)
    return (
        f"<figure>{_picture(image, 'small' if small else '', called)}<figcaption>"
        f"<b>{escape(own)}</b><br>taken for {escape(predicted)}, {_percent(100 * score)}"
        f'<br><span class="quiet">{called}</span></figcaption></figure>'
    )


def _per_class(classes: Sequence[str], images: np.ndarray, accuracy: np.ndarray) -> str:
    """A table, the worst first; what has no images last."""
    rows = []
    for index in np.argsort(accuracy, kind="stable"):  # NaN last
        count, part = images[index], 100 * accuracy[index]
        bar = f'<div style="width: {part:.1f}%"></div>' if count else ""
        rows.append(
            f'<tr><th class="name">{escape(classes[index])}</th><td>{count}</td>'
            f'<td>{_percent(part) if count else "&ndash;"}</td><td class="bar">{bar}</td></tr>'
        )
    return _table(("class", "images", "accuracy", ""), rows)


def _confusion(
    classes: Sequence[str], images: np.ndarray, confusion: Sequence[tuple[int, int, int]]
) -> str:
    """The matrix in numbers or as a picture, and its commonest pairs."""
    colours = "blue is right, orange wrong, the darker the larger a part of the row"
    if len(classes) <= MOST_IN_TABLE:
        about = f"in numbers of images; {colours}"
        matrix = f'<div class="box matrix">{_matrix(classes, images, confusion)}</div>'
    else:
        size = min(len(classes), MOST_IN_PICTURE)
        shared = f", {len(classes) / size:.3g} to a point" if size < len(classes) else ""
        about = f"in the order of per_class.csv{shared}; {colours}"
        picture = _heat(len(classes), size, confusion)
        matrix = _picture(picture, "heat", "confusion matrix", MOST_IN_PICTURE // size * size)
    wrong = sorted((pair for pair in confusion if pair[0] != pair[1]), key=lambda pair: -pair[2])
    rows = [
        f'<tr><th class="name">{escape(classes[own])}</th><th class="name">'
        f"{escape(classes[taken])}</th><td>{count}</td>"
        f"<td>{_percent(100 * count / images[own])}</td></tr>"
        for own, taken, count in wrong[:MOST_PAIRS]
    ]
    return (
        f'<p class="quiet">Rows are what images show, columns what they are taken for, {about}.</p>'
        f"\n{matrix}\n<h2>Commonest confusions</h2>\n"
        f"{_table(('class', 'taken for', 'images', 'of the class'), rows)}"
    )


def _matrix(
    classes: Sequence[str], images: np.ndarray, confusion: Sequence[tuple[int, int, int]]
) -> str:
    counts = {(own, taken): count for own, taken, count in confusion}
    names = [escape(name) for name in classes]
    heads = "".join(f'<th title="{name}"><span>{name}</span></th>' for name in names)
    rows = [f"<thead><tr><th></th>{heads}</tr></thead>"]
    for own, name in enumerate(names):
        cells = ["<td></td>"] * len(names)
        for taken, other in enumerate(names):
            if count := counts.get((own, taken)):
                strength = float(FAINTEST + (1 - FAINTEST) * count / images[own])
                red, green, blue = RIGHT if own == taken else WRONG
                style = f"background: rgba({red}, {green}, {blue}, {strength:.2f})"
                style += "; color: #fff" if strength > 0.7 else ""
                title = f"{name} → {other}: {count}"
                cells[taken] = f'<td style="{style}" title="{title}">{count}</td>'
        rows.append(f'<tr><th title="{name}">{name}</th>{"".join(cells)}</tr>')
    return f"<table>{''.join(rows)}</table>"


def _heat(classes: int, size: int, confusion: Sequence[tuple[int, int, int]]) -> Image.Image:
    """The matrix as a picture of `size` x `size` points."""
    own, taken, counts = np.array(confusion).T
    rows, columns = own * size // classes, taken * size // classes
    cells = np.bincount(rows * size + columns, counts, size * size).reshape(size, size)
    parts = np.sqrt(cells / np.maximum(cells.sum(axis=1, keepdims=True), 1))
    strength = np.where(cells, 2 * FAINTEST + (1 - 2 * FAINTEST) * parts, 0)[:, :, None]
    colours = np.where(np.eye(size, dtype=bool)[:, :, None], RIGHT, WRONG)
    return Image.fromarray((255 + strength * (colours - 255)).round().astype("uint8"))


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in names)
    table = f'<table class="list"><thead><tr>{heads}</tr></thead>{"".join(rows)}</table>'
    return f'<div class="box">{table}</div>'


def _picture(image: Image.Image, kind: str, alt: str, width: int = 0) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    size = f' width="{width}"' if width else ""
    return f'<img class="{kind}" alt="{alt}"{size} src="data:image/png;base64,{data}">'


def _percent(number: float) -> str:
    return f"{number:.2f}&nbsp;%"
