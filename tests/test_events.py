"""Events, read back with TensorBoard's own reader."""

from __future__ import annotations

import resource

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gluon_resnetv2.training.events import Events


def read(folder):
    """{tag: {step: value}}, as TensorBoard shows them; fails where a step shows twice."""
    reader = EventAccumulator(str(folder)).Reload()
    found = {}
    for tag in reader.Tags()["scalars"]:
        points = [(event.step, event.value) for event in reader.Scalars(tag)]
        found[tag] = dict(points)
        assert len(found[tag]) == len(points)
    return found


def test_records_become_scalars(tmp_path):
    events = Events(tmp_path)
    events.add(step=50, lr=0.5, loss=2.25, images_per_second=100.0)
    events.add(epoch=1, step=60, lr=0.5, train_loss=2.0, test_error=12.5)
    assert read(tmp_path) == {  # before it is closed
        "step/lr": {50: 0.5},
        "step/loss": {50: 2.25},
        "step/images_per_second": {50: 100.0},
        "epoch/lr": {60: 0.5},
        "epoch/train_loss": {60: 2.0},
        "epoch/test_error": {60: 12.5},
    }
    events.close()
    events.close()


def test_steps_that_are_done_again_show_once(tmp_path):
    first = Events(tmp_path)
    for step in (10, 20, 30, 40):
        first.add(step=step, loss=1.0)
    first.close()
    second = Events(tmp_path, start_step=20)
    second.add(step=35, loss=0.5)
    second.close()
    assert read(tmp_path) == {"step/loss": {10: 1.0, 20: 1.0, 35: 0.5}}


def test_folder_that_cannot_be_written_to_costs_a_warning(tmp_path, capsys):
    events = Events(tmp_path / "gone")
    events.add(step=1, loss=1.0)
    events.add(step=2, loss=1.0)
    events.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/gone/events.out.tfevents.")
    assert "No such file or directory" in line


LAST = 4000  # steps, of 40 bytes and more; Python 3.14's buffer holds 128 KiB, earlier ones' 8 KiB


def test_full_disk_costs_a_warning_and_what_the_buffer_cannot_hold(tmp_path, capsys):
    events = Events(tmp_path)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # writing beyond it fails
    try:
        for step in range(1, LAST):
            events.add(step=step, loss=float(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    events.add(step=LAST, loss=float(LAST))  # there is room again
    events.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "File too large" in line
    found = read(tmp_path)["step/loss"]
    assert {*range(1, 50), LAST} < set(found) < set(range(1, LAST + 1))
    assert all(value == step for step, value in found.items())
