"""Pictures and the table of runs, from metrics that are made up."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training.compare import compare
from gluon_resnetv2.training.curves import draw_curves, steps_per_epoch
from gluon_resnetv2.training.plots import scale_errors

BLUE, RED, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def write_run(
    folder, errors, *, steps=20, every=10, losses=None, speed=100.0, seconds=36.0, **recipe
):
    """A run's folder with so many epochs; with a record of a step's loss `every` few steps."""
    folder.mkdir(parents=True)
    recipe = {"model": "preact20", "num_epochs": len(errors), "lr": 0.1, **recipe}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    records = []
    for epoch, error in enumerate(errors, 1):
        lr, value = 0.1 / epoch, losses[epoch - 1] if losses else error / 20
        for step in range((epoch - 1) * steps + every, epoch * steps + 1, every):
            records.append({"step": step, "lr": lr, "loss": value, "images_per_second": speed})
        record = {"epoch": epoch, "step": epoch * steps, "lr": lr}
        record |= {"train_loss": value, "test_loss": value}
        record |= {"train_error": 100 - error, "test_error": error}  # best in different epochs
        records.append({**record, "images_per_second": speed, "seconds": seconds})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def pixels(path, colour):
    """Where a picture has a colour: [(row, column)], as parts of its height and width."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    return np.argwhere((rgb == colour).all(axis=2)) / rgb.shape[:2]


@pytest.mark.parametrize("epochs", [1, 200])
def test_curves_show_loss_and_error(tmp_path, epochs):
    errors = [4 + 80 * math.exp(-epoch / 9) for epoch in range(epochs)]
    path = draw_curves(write_run(tmp_path / "run", errors))
    assert path == tmp_path / "run" / "curves.png"
    legend, plot = 0.12, 0.75  # above them the title and the legend; below, the learning rate
    for colour in (BLUE, RED):
        rows = pixels(path, colour)[:, 0]
        assert rows.min() < legend < rows.max() < plot
    assert pixels(path, GREEN)[:, 0].min() > plot


def test_an_epoch_is_as_long_as_the_first():
    """The last one may have been cut short."""
    assert steps_per_epoch([{"epoch": 1, "step": 20}, {"epoch": 2, "step": 25}]) == 20


@pytest.mark.parametrize(("error", "top"), [(1, 5), (6, 20), (24.5, 60), (90, 100)])
def test_errors_have_a_scale_that_shows_them(error, top):
    axes = Figure().subplots()
    scale_errors(axes, error)
    assert axes.get_ylim() == (0, top)


def test_every_name_can_be_drawn(tmp_path):
    odd = "_$\\frac{$ %^ 运行-🙂" + b"\xff".decode("utf-8", "surrogateescape") + 40 * "a"
    run = write_run(tmp_path / odd, [50, 6])
    assert draw_curves(run).is_file()
    compare([run, write_run(tmp_path / "other", [50, 9])], tmp_path / "both.png").encode()
    assert len(pixels(tmp_path / "both.png", RED)) > 100


def test_a_failed_run_is_drawn(tmp_path):
    run = write_run(tmp_path / "run", [90] * 4, losses=[2.3, math.nan, math.inf, 1e30])
    assert len(pixels(draw_curves(run), RED)) > 100


def test_nothing_is_drawn_before_an_epoch_has_ended(tmp_path):
    run = write_run(tmp_path / "run", [])
    (run / "metrics.jsonl").write_text('{"step": 10, "lr": 0.1, "loss": 2.0}\n')
    assert draw_curves(run) is None
    assert not (run / "curves.png").exists()


def test_comparison_tells_what_differs(tmp_path):
    first = write_run(tmp_path / "a", [50, 7, 8.5], seed=0, lr_step_epochs=[9.0, 13.5])
    second = write_run(
        tmp_path / "b", [60, 9], num_epochs=None, num_steps=90, seed=0, output="b",
        lr_step_epochs=[9.0, 13.5], shortcut="gate:-6", lr=0.01, speed=2500.4, seconds=3600,
    )  # fmt: skip
    text = compare([first, second], tmp_path / "both.png")
    head, a, b, empty, place = text.splitlines()
    assert re.split("  +", head) == [
        *("run", "model", "shortcut", "num_epochs", "num_steps", "lr", "warmup_lr", "epochs"),
        *("test error", "best", "in epoch", "images/s", "hours"),
    ]
    assert re.split("  +", a) == [
        *("a", "preact20", "-", "3", "-", "0.1", "0.01", "3/3", "8.50 %", "7.00 %", "2"),
        *("100", "0.03"),
    ]
    assert re.split("  +", b) == [
        *("b", "preact20", "gate:-6", "-", "90", "0.01", "0.001", "2/5", "9.00 %", "9.00 %", "2"),
        *("2500", "2.00"),
    ]
    assert (empty, place) == ("", f"curves: {tmp_path}/both.png")
    for colour in (BLUE, RED):  # of the runs, each with its loss, its error and its legend
        assert len(pixels(tmp_path / "both.png", colour)) > 100


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / part / "run", [50, 7]) for part in "ab"]
    lines = compare(folders, tmp_path / "both.pdf").splitlines()
    assert [line.split()[0][-5:] for line in lines[1:3]] == ["a/run", "b/run"]
    assert re.split("  +", lines[0])[:3] == ["run", "model", "epochs"]  # no recipe differs
    assert (tmp_path / "both.pdf").read_bytes().startswith(b"%PDF")


def test_one_run_is_enough_and_ten_are_not_too_many(tmp_path):
    folders = [write_run(tmp_path / str(number), [50, 7 + number]) for number in range(10)]
    assert len(compare(folders[:1], tmp_path / "one.png").splitlines()) == 4
    assert len(compare(folders, tmp_path / "ten.png").splitlines()) == 13


def test_mistakes_are_told_in_one_line(tmp_path):
    run = write_run(tmp_path / "run", [50, 7])
    young = write_run(tmp_path / "young", [])
    bare = write_run(tmp_path / "bare", [50])
    (bare / "recipe.json").unlink()
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "empty", "is .*empty a run's folder"),
        (tmp_path / "nowhere", "is .*nowhere a run's folder"),
        (young, "no epoch of .*young has ended yet"),
        (bare, "bare/recipe.json is missing"),
    ):
        with pytest.raises(UserError, match=message):
            compare([run, folder], tmp_path / "both.png")
    with pytest.raises(UserError, match="is no picture"):
        compare([run], tmp_path / "both.docx")
    assert not list(tmp_path.glob("*both*"))
