"""Recomputed training passes: equal to plain ones, in less memory."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.memory import Recomputed, best_starts, even_starts, peak, unit_sizes
from gluon_resnetv2.net import get_model
from gluon_resnetv2.spec import ORDER, named
from tests.common import SHORTCUTS, randomise, relative

ROOT = Path(__file__).resolve().parents[1]
ONE = (mx.cpu(0),)
TWO = (mx.cpu(0), mx.cpu(1))


def batch(devices=ONE, dtype="float64", size=8, count=4):
    """Random images and labels, a list entry for each device, not all of one length."""
    rng = np.random.RandomState(0)
    images, labels = [], []
    for i, device in enumerate(devices):
        shape = (count + i, 3, size, size)
        images.append(mx.nd.array(rng.normal(size=shape), ctx=device, dtype=dtype))
        labels.append(mx.nd.array(rng.randint(0, 10, count + i), ctx=device, dtype=dtype))
    return images, labels


def losses_of(labels, outputs):
    return [-mx.nd.log_softmax(out).pick(label) for out, label in zip(outputs, labels)]


def plain_pass(net, images, losses_of):
    with autograd.record():
        outputs = [net(part) for part in images]
        losses = losses_of(outputs)
    autograd.backward(losses)
    return losses, outputs


def results(net, forward_backward, images, labels, passes=1) -> dict[str, np.ndarray]:
    """Losses, outputs, gradients and moving statistics after `passes` passes, by name."""
    for _ in range(passes):
        losses, outputs = forward_backward(images, partial(losses_of, labels))
    mx.nd.waitall()
    found = {f"loss {i}": loss for i, loss in enumerate(losses)}
    found.update({f"output {i}": output for i, output in enumerate(outputs)})
    for name, parameter in net.collect_params().items():
        learned = parameter.grad_req != "null"
        arrays = parameter.list_grad() if learned else parameter.list_data()
        found.update({f"{name} {i}": array for i, array in enumerate(arrays)})
    return {name: array.asnumpy() for name, array in found.items()}


def both(build, images, labels, segments=None, passes=1):
    """`results` of a plain pass, and of a recomputed one in an equal network."""
    net = build()
    net.hybridize(static_alloc=True, static_shape=True)
    expected = results(net, lambda *args: plain_pass(net, *args), images, labels, passes)
    net = build()
    recomputed = Recomputed(net, segments)
    return expected, results(net, recomputed.forward_backward, images, labels, passes)


def build(model="preact8", dtype="float64", devices=ONE, grad_req="write", **switches):
    net = get_model(model, **switches)
    randomise(net, dtype=dtype)
    net.collect_params().reset_ctx(list(devices))
    for parameter in net.collect_params().values():
        if parameter.grad_req != "null":
            parameter.grad_req = grad_req
    return net


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("order", ORDER)
def test_every_order_and_shortcut_gives_the_same_bits(order, shortcut):
    images, labels = batch()
    for segments in (1, 2, 3):
        expected, found = both(
            lambda: build(order=order, shortcut=shortcut), images, labels, segments
        )
        assert_equal(found, expected)


@pytest.mark.parametrize(
    "switches",
    [
        {"input_bn": "shift"},
        {"model": "preact11", "unit": "bottleneck", "stride_on": "3x3"},
        {"model": "preact18", "classes": 10, "first_activation": "unit"},
    ],
    ids=str,
)
def test_other_stems_and_units(switches):
    images, labels = batch(size=16 if switches.get("model") == "preact18" else 8)
    expected, found = both(lambda: build(**switches), images, labels)
    assert_equal(found, expected)


@pytest.mark.parametrize("order", ["full_preact", "original"])
def test_single_precision_and_its_layouts(order):
    images, labels = batch(dtype="float32")
    expected, found = both(
        lambda: build("preact29", "float32", unit="bottleneck", order=order), images, labels
    )
    scale = max(np.linalg.norm(array) for array in expected.values())
    for name in expected:
        assert relative(found[name], expected[name], 1e-3 * scale) < 1e-5, name


def test_several_devices_and_passes():
    images, labels = batch(TWO)
    expected, found = both(lambda: build(devices=TWO), images, labels, 2, passes=3)
    assert not np.array_equal(expected["conv0_weight 0"], expected["conv0_weight 1"])
    assert_equal(found, expected)


def test_gradients_that_add_up():
    images, labels = batch()
    once, _ = both(build, images, labels)
    expected, found = both(lambda: build(grad_req="add"), images, labels, 2, passes=2)
    assert_equal(found, expected)
    assert relative(found["conv0_weight 0"], 2 * once["conv0_weight 0"]) < 1e-12


def test_statistics_move_in_the_second_run_only():
    # On this device neither forward pass moves them, with cuDNN both would: only what the graphs
    # say holds for all.
    net = build()
    recomputed = Recomputed(net, 3)
    images, labels = batch()
    results(net, recomputed.forward_backward, images, labels)

    def momenta(segments):
        graphs = [segment._cached_graph[1].attr_dict() for segment in segments]
        nodes = [node for graph in graphs for node in graph.values()]
        return [float(node["momentum"]) for node in nodes if "momentum" in node]

    count = sum(name.endswith("moving_mean") for name in net.collect_params())
    assert momenta(recomputed._segments) == [0.9] * count
    assert set(momenta(recomputed._first_runs)) == {1.0}
    assert net(mx.sym.var("data")).attr_dict()["bn1_fwd"]["momentum"] == "0.9"


# -- Dropout ---------------------------------------------------------------------------------------


def loss_of_a_pass(recomputed, seed, devices=ONE):
    """The sum of the losses of a recomputed pass over `batch`."""
    images, labels = batch(devices)
    losses, _ = recomputed.forward_backward(images, partial(losses_of, labels), seed)
    return sum(float(loss.sum().asscalar()) for loss in losses)


@pytest.mark.parametrize("order", ["full_preact", "original"])
def test_gradients_are_the_slope_of_the_loss_with_the_same_masks(order):
    net = build("preact14", order=order, shortcut="dropout:0.5")
    recomputed = Recomputed(net, 4)
    loss_of_a_pass(recomputed, seed=7)
    learned = [p for p in net.collect_params().values() if p.grad_req != "null"]
    gradients = [p.grad().copy() for p in learned]
    slope = math.sqrt(sum(float((g * g).sum().asscalar()) for g in gradients))

    def loss_at(distance):
        for p, g in zip(learned, gradients):
            p.data()[:] += distance / slope * g
        loss = loss_of_a_pass(recomputed, seed=7)
        for p, g in zip(learned, gradients):
            p.data()[:] -= distance / slope * g
        return loss

    assert (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_masks_follow_the_seed_alone():
    recomputed = Recomputed(build(shortcut="dropout:0.5"), 2)
    mx.random.seed(1)
    first = loss_of_a_pass(recomputed, seed=3)
    mx.random.seed(2)
    assert loss_of_a_pass(recomputed, seed=3) == first
    assert loss_of_a_pass(recomputed, seed=4) != first


def test_masks_differ_between_devices():
    recomputed = Recomputed(build(shortcut="dropout:0.5", devices=TWO), 2)
    images = [mx.nd.ones((1, 3, 8, 8), ctx=device, dtype="float64") for device in TWO]
    _, outputs = recomputed.forward_backward(images, lambda outputs: outputs, seed=3)
    assert not np.array_equal(*(output.asnumpy() for output in outputs))


def test_a_network_without_dropout_leaves_the_generator_alone():
    recomputed = Recomputed(build(), 2)
    mx.random.seed(0)
    expected = mx.nd.random.normal(shape=5).asnumpy()
    mx.random.seed(0)
    loss_of_a_pass(recomputed, seed=7)
    assert np.array_equal(mx.nd.random.normal(shape=5).asnumpy(), expected)


# -- Where to cut ----------------------------------------------------------------------------------


def test_what_a_unit_costs():
    (plain, needed), *_, last = unit_sizes(named("preact20"))
    assert (plain, needed) == (16, 4 * 16)  # two convolutions, each with its input and its output
    assert last == (64 / 16, 4 * 64 / 16)  # on a sixteenth of the area
    second = unit_sizes(named("preact1001"))[1]
    assert second == (64, (64 + 16) + (16 + 16) + (16 + 64))


def test_the_cost_of_a_whole_network():
    # Measured with MXNet 1.9.1: preact1001 takes 4.8 GB more for a batch of 32 than without one.
    elements = sum(needed for _, needed in unit_sizes(named("preact1001")))
    assert elements * 32**2 * 4 * 32 == pytest.approx(4.8e9, rel=0.05)


@pytest.mark.parametrize("model", ["preact8", "preact50", "preact110", "preact1001"])
def test_any_number_of_segments_fits(model):
    sizes = unit_sizes(named(model))
    for segments in range(1, len(sizes) + 1):
        starts = even_starts(sizes, segments)
        assert len(starts) == segments
        assert starts[0] == 0
        assert starts == sorted({*starts})
        assert starts[-1] < len(sizes)


def test_the_peak_of_a_cut_by_hand():
    sizes = [(5, 10), (4, 10), (3, 10), (2, 10)]
    assert peak(sizes, [0]) == 40
    assert peak(sizes, [0, 2]) == 3 + 20
    assert peak(sizes, [0, 1, 2, 3]) == 4 + 3 + 2 + 10


@pytest.mark.parametrize("model", ["preact50", "preact164", "preact1001"])
def test_the_automatic_choice_keeps_a_part_and_cuts_the_rest_alike(model):
    sizes = unit_sizes(named(model))
    starts = best_starts(sizes)
    needs = [sum(n for _, n in sizes[a:b]) for a, b in zip(starts, [*starts[1:], None])]
    assert 0.08 <= needs[-1] / sum(needs) < 0.3
    assert max(needs) / sum(needs) < 0.3
    assert peak(sizes, starts) < (0.2 if len(sizes) > 50 else 0.4) * peak(sizes, [0])


@pytest.mark.parametrize("segments", [0, -1, 4])
def test_impossible_numbers_of_segments(segments):
    with pytest.raises(UserError, match=rf"--recompute {segments} .* preact8 has 3 .* 1 to 3"):
        Recomputed(get_model("preact8"), segments)


# -- Memory ----------------------------------------------------------------------------------------


def peak_memory() -> int:
    """The most that this process has held so far, in kB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def print_growth(recompute: bool) -> None:
    """Prints what two passes over 32 images add to this process's peak memory, in kB."""
    net = build("preact164", "float32")
    net.hybridize(static_alloc=True, static_shape=True)
    images, labels = batch(dtype="float32", size=32, count=32)
    forward_backward = Recomputed(net).forward_backward if recompute else partial(plain_pass, net)
    mx.nd.waitall()
    before = peak_memory()
    results(net, forward_backward, images, labels, passes=2)
    print(peak_memory() - before)


@pytest.mark.slow
def test_a_pass_adds_half_of_the_memory():
    def growth(recompute):
        code = f"import gluon_resnetv2, tests.test_memory as t; t.print_growth({recompute})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert growth(True) < 0.55 * growth(False)


def test_each_segment_waits_for_the_one_behind_it(monkeypatch):
    """Else MXNet may hold the activations of all of them at once."""
    waited = []
    wait = mx.nd.NDArray.wait_to_read

    def noted(array):
        waited.append(array.shape)
        wait(array)

    recomputed = Recomputed(build(devices=TWO), 3)
    images, labels = batch(TWO)
    monkeypatch.setattr(mx.nd.NDArray, "wait_to_read", noted)
    recomputed.forward_backward(images, partial(losses_of, labels))
    assert len(waited) == 2 * len(TWO)  # behind each segment but the first, on each device
