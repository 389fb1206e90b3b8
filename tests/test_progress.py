"""What a run says while it trains."""

from __future__ import annotations

import io
import re

import pytest

from gluon_resnetv2.training.progress import Progress, duration

RECORD = {
    "step": 40,
    "lr": 0.1,
    "train_loss": 0.41214,
    "train_error": 13.219,
    "test_loss": 12.5012,
    "test_error": 9.5,
    "images_per_second": 1234.4,
    "seconds": 30.0,
}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def shows(self):
        """What is left on each line after its last carriage return overwrote it."""
        lines = []
        for raw in self.getvalue().split("\n"):
            line = ""
            for text in raw.split("\r"):
                line = text + line[len(text) :]
            lines.append(line.rstrip())
        return lines


def train(progress, clock, steps, seconds, *, lag=2, images=8):
    """So many steps of an epoch; losses become known `lag` steps late, as the loop reads them."""
    for number in range(steps):
        if number >= lag:
            clock.now += seconds
        progress.step(images, 0.1, 0.5 if number >= lag else None)
    clock.now += lag * seconds


def test_time_left_is_the_whole_runs_with_its_tests():
    clock = Clock()
    progress = Progress(5, 40, file=io.StringIO(), clock=clock)
    assert progress.seconds_left is None
    clock.now += 500  # the first step prepares kernels
    train(progress, clock, 40, 2)
    assert progress.images_per_second == pytest.approx(4)
    assert progress.seconds_left == pytest.approx(160 * 2)  # how long tests take is unknown yet
    clock.now += 30  # a test
    progress.epoch({**RECORD, "epoch": 1})
    assert progress.seconds_left == pytest.approx(4 * (40 * 2 + 30), rel=0.05)
    train(progress, clock, 40, 2)
    clock.now += 30
    assert progress.seconds_left == pytest.approx(3 * (40 * 2 + 30))


def test_time_left_follows_the_speed():
    clock = Clock()
    progress = Progress(1, 1000, file=io.StringIO(), clock=clock)
    train(progress, clock, 400, 1)
    assert progress.seconds_left == pytest.approx(600)
    for _ in range(300):
        clock.now += 3
        progress.step(8, 0.1, 0.5)
    assert progress.seconds_left == pytest.approx(300 * 3, rel=0.01)
    assert progress.images_per_second == pytest.approx(8 / 3, rel=0.01)


def test_a_run_that_goes_on_counts_what_is_left():
    clock = Clock()
    progress = Progress(4, 10, 25, total=38, file=io.StringIO(), clock=clock)
    train(progress, clock, 5, 2)
    assert progress.seconds_left == pytest.approx(8 * 2)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_epoch_counts_to_where_the_run_ends(terminal):
    clock, shown = Clock(), Terminal() if terminal else io.StringIO()
    with Progress(2, 391, 391, total=511, file=shown, clock=clock) as progress:
        train(progress, clock, 120, 30)
        assert "epoch 2/2" in shown.getvalue()
        assert not terminal or progress._bar.total == 120
    assert set(re.findall(r"step +\d+/(\d+)", shown.getvalue())) == {"120"}


def test_log_file_gets_a_line_now_and_then():
    clock, log = Clock(), io.StringIO()
    progress = Progress(10, 100, file=log, clock=clock)
    train(progress, clock, 100, 2)
    lines = log.getvalue().splitlines()
    # 198 seconds: after 10, and then once a minute.
    assert [re.search(r"step +(\d+)/100", line)[1] for line in lines] == ["7", "37", "67", "97"]
    assert lines[1] == (
        "epoch  1/10  lr 0.1     step  37/100  loss 0.5000   4.00 images/s  32 min 06 s left"
    )
    assert "\r" not in log.getvalue()


def test_quick_epochs_need_no_lines_between(capsys):
    clock, log = Clock(), io.StringIO()
    progress = Progress(20, 4, file=log, clock=clock)
    for epoch in range(20):
        train(progress, clock, 4, 2)
        progress.epoch({**RECORD, "epoch": epoch + 1})
    assert log.getvalue() == ""
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_lines_of_epochs_stand_in_columns(capsys):
    clock = Clock()
    progress = Progress(164, 40, file=io.StringIO(), clock=clock)
    train(progress, clock, 40, 2, lag=0)
    progress.epoch({**RECORD, "epoch": 1})
    progress.epoch({**RECORD, "epoch": 82, "lr": 1e-5, "test_loss": 2.3, "images_per_second": 9.87})
    progress.epoch({**RECORD, "epoch": 164, "train_error": 0.01})
    first, middle, last = capsys.readouterr().out.splitlines()
    assert first == (
        "epoch   1/164  lr 0.1     train loss 0.4121 error 13.22 %  test loss   12.5 error  9.50 %"
        "   1234 images/s  3 h 37 min left"
    )
    for mark in ("lr", "train", "test", "images/s"):
        assert len({line.index(mark) for line in (first, middle)}) == 1
    assert "0.01 %" in last
    assert "left" not in last


def test_terminal_has_one_live_bar_and_whole_lines(monkeypatch):
    clock, terminal = Clock(), Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(2, 40, clock=clock) as progress:
        train(progress, clock, 40, 2)
        progress.line("a line")
        progress.epoch({**RECORD, "epoch": 1})
        train(progress, clock, 40, 2)
        last = terminal.shows()[-1]
    line, epoch, *rest = terminal.shows()
    assert line == "a line"
    assert re.fullmatch(r"epoch 1/2  lr 0.1     train loss .* left", epoch)
    assert rest == [""]  # the bar has gone
    assert re.match(
        r"epoch 2/2  lr 0.1     step +\d+/40  loss 0.5000   4.00 images/s  .* left \|", last
    )


def test_quiet_worker_says_nothing(capsys):
    clock = Clock()
    with Progress(2, 40, quiet=True, clock=clock) as progress:
        train(progress, clock, 40, 20)
        progress.epoch({**RECORD, "epoch": 1})
    assert capsys.readouterr() == ("", "")
    assert progress.images_per_second == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (86400 * 12 + 3600 * 3.9, "12 d 03 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
