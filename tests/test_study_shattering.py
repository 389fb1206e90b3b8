"""Shattered gradients: the fits, and what small networks show at initialisation."""

from __future__ import annotations

import io
import json
import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec
from gluon_resnetv2.study.section import Picture, Table
from gluon_resnetv2.study.shattering import _leaving, cosine, fit, fitted, measure, section
from tests.common import relative

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16)


@pytest.fixture(scope="module")
def records():
    return measure(depths=DEPTHS, seeds=4, pairs=16, image_size=8)


def law(function, floor=0.0, network="made up"):
    """A record of correlations that follow `function` of the depth."""
    return {
        **{"kind": "shattering", "network": network, "floor": floor, "depths": list(DEPTHS)},
        "correlation": [function(depth) for depth in DEPTHS],
        "error": [0.01 * function(depth) for depth in DEPTHS],
    }


def test_fits_find_an_exponential():
    found = fit(DEPTHS, [0.9 * 0.5**depth for depth in DEPTHS])
    assert found["exponential_scale"] == pytest.approx(0.9)
    assert found["rate"] == pytest.approx(0.5)
    assert found["exponential_error"] < 1e-12 < 0.5 < found["power_error"]


def test_fits_find_a_power_law():
    found = fit(DEPTHS, [0.8 / math.sqrt(depth) for depth in DEPTHS])
    assert found["power_scale"] == pytest.approx(0.8)
    assert found["power"] == pytest.approx(0.5)
    assert found["power_error"] < 1e-12 < 0.1 < found["exponential_error"]


def test_the_error_of_a_fit_is_that_of_logarithms():
    # Off the line by +d, -2 d, +d at equal steps: least squares leave the line where it is.
    values = np.exp([-1 + 0.3, -2 - 0.6, -3 + 0.3])
    found = fit([1, 2, 3], values)
    assert found["rate"] == pytest.approx(math.exp(-1))
    assert found["exponential_error"] == pytest.approx(math.sqrt((0.3**2 * 2 + 0.6**2) / 3))


def test_noise_is_left_out():
    record = law(lambda depth: 0.5**depth if depth < 7 else 1e-3, floor=1e-3)
    depths, found = fitted(record)
    assert depths == [1, 2, 3, 4, 6]  # 0.5 ** 8 is above three floors, but not in the record
    assert found["rate"] == pytest.approx(0.5)
    record["correlation"][-1] = 0.9  # nothing counts behind the first that is noise
    assert fitted(record)[0] == [1, 2, 3, 4, 6]
    assert fitted(law(lambda depth: 0.1**depth, floor=1e-3)) == ([1, 2], None)


def test_cosines():
    a = np.array([[[1.0, 0.0]], [[1.0, 1.0]]])
    b = np.array([[[2.0, 0.0]], [[0.0, 3.0]]])
    assert cosine(a, b) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize(
    ("order", "shortcut"), [("original", "plain"), ("full_preact", "identity")]
)
def test_gradients_against_finite_differences(order, shortcut):
    spec = Spec("tiny", "cifar", (3,), (2,), "single", order, shortcut, in_channels=1)
    mx.random.seed(0)
    net = ResNetV2(spec)
    net.cast("float64")
    net.initialize()
    rng = np.random.RandomState(0)
    images, functional = rng.normal(size=(3, 1, 3, 3)), rng.normal(size=(1, 2, 3, 3))

    def value(images):
        with autograd.train_mode():
            x = mx.nd.array(images, dtype="float64")
            for block in net.features[:5]:  # three of the stem, two units
                x = block(x)
        return float((x.asnumpy() * functional).sum())

    x = mx.nd.array(images, dtype="float64")
    (leaving,) = _leaving(net, x, (2,))
    head = mx.nd.array(functional, dtype="float64").broadcast_like(leaving)
    leaving.backward(head)
    expected = np.zeros_like(images)
    for place in np.ndindex(images.shape):
        step = np.zeros_like(images)
        step[place] = 1e-6
        expected[place] = (value(images + step) - value(images - step)) / 2e-6
    assert relative(x.grad.asnumpy(), expected) < 1e-6


def test_equal_inputs_have_equal_gradients():
    (record,) = measure(
        {"one": ("original", "plain")}, depths=(1, 5), seeds=2, pairs=8, distance=0, image_size=8
    )
    assert record["correlation"] == pytest.approx([1, 1], abs=1e-4)
    assert record["floor"] < 0.1


def test_plain_gradients_shatter_exponentially_and_residual_ones_do_not(records):
    assert [record["network"] for record in records] == ["plain", "original", "full pre-activation"]
    laws = [fitted(record)[1] for record in records]
    better = [law["exponential_error"] < law["power_error"] for law in laws]
    assert better == [True, False, False]
    assert 0.5 < laws[0]["rate"] < 0.8
    plain, original, preact = (record["correlation"][-1] for record in records)
    assert plain < 0.1 < original
    assert plain < 0.1 < preact


def test_records_are_json_and_repeat(records):
    assert json.loads(json.dumps(records)) == records
    networks = {"plain": ("original", "plain")}
    again = measure(networks, depths=DEPTHS, seeds=4, pairs=16, image_size=8)
    assert again == records[:1]


def test_the_section_says_which_law_fits():
    made_up = [
        law(lambda depth: 0.6**depth, 1e-4, "first"),
        law(lambda depth: depth**-0.4, 1e-4, "second"),
        law(lambda depth: 1e-5, 1e-4, "third"),
    ]
    found = section([*made_up, {"kind": "other"}])
    (picture,) = (part for part in found.parts if isinstance(part, Picture))
    picture.figure.savefig(io.BytesIO())
    (table,) = (part for part in found.parts if isinstance(part, Table))
    assert [row[3] for row in table.rows] == ["0.600^L", table.rows[1][3], "-"]
    assert table.rows[1][5] == "L^-0.40"
    text = " ".join(part for part in found.parts if isinstance(part, str))
    assert "first: exponential; second: power law." in text
    assert "it is 0.60 for first." in text
