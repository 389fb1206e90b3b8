"""How signals and gradients pass through units: against finite differences and formulae."""

from __future__ import annotations

import io
import json
import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnetv2.layers import chain
from gluon_resnetv2.net import ResNetV2, get_model
from gluon_resnetv2.spec import ORDER, Spec, named
from gluon_resnetv2.study.expectation import VARIANCE, expected_gradients
from gluon_resnetv2.study.propagation import _forward, measure, products, records
from gluon_resnetv2.study.propagation_report import section
from gluon_resnetv2.study.section import Picture, Table
from tests.common import randomise, relative

SHORTCUTS = (
    *("identity", "plain", "scale:0.5,0.7", "gate:-1", "exclusive-gate:-1", "conv1x1"),
    "dropout:0",
)


def batch(count=4, size=8, seed=0):
    rng = np.random.RandomState(seed)
    return rng.normal(size=(count, 3, size, size)), rng.randint(0, 10, count)


def tiny(order="full_preact", shortcut="identity", stages=(2, 1), dtype="float64", **switches):
    """Every parameter of it random."""
    channels = tuple(range(2, 2 + len(stages)))
    switches = {"widening": "A", **switches}
    spec = Spec("tiny", "cifar", stages, channels, order=order, shortcut=shortcut, **switches)
    net = ResNetV2(spec)
    randomise(net, seed=1, dtype=dtype)
    return net


def initialised(name, **switches):
    mx.random.seed(0)
    net = get_model(name, **switches)
    net.initialize()
    return net


def everything(net):
    """Parameters, statistics and gradients of `net`, and what gradients are asked of it."""
    found = {}
    for name, parameter in net.collect_params().items():
        found[name] = parameter.data().asnumpy()
        if parameter.grad_req != "null":
            found[f"{name} gradient, {parameter.grad_req}"] = parameter.grad().asnumpy()
    return found


# -- measure ---------------------------------------------------------------------------------------


def gradients(net, images, labels):
    """dE/dx_l in float64, by central differences, and each x_l."""
    blocks = [*net.features, net.output]

    def energy(x, start):
        with autograd.train_mode():
            logits = chain(blocks[start:])(mx.nd.array(x, dtype="float64")).asnumpy()
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -logs[np.arange(len(labels)), labels].mean()

    entering, found = [], []
    for start, block in enumerate(blocks):
        if block in net.units or (start and blocks[start - 1] in net.units):
            with autograd.train_mode():
                x = chain(blocks[:start])(mx.nd.array(images, dtype="float64")).asnumpy()
            gradient = np.zeros_like(x)
            for place in np.ndindex(x.shape):
                step = np.zeros_like(x)
                step[place] = 1e-6
                gradient[place] = (energy(x + step, start) - energy(x - step, start)) / 2e-6
            entering.append(x)
            found.append(gradient)
    return entering, found


def over_shortcut(unit, x, leaving, gradient):
    """The shortcut's part of the gradient at `x`, of that at `leaving`, by the book."""
    if unit.unit.after:  # ReLU
        gradient = gradient * (leaving > 0)
    if hasattr(unit, "gate"):
        weight, bias = unit.gate.weight.data().asnumpy(), unit.gate.bias.data().asnumpy()
        stride = unit.unit.stride
        read = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], x[:, :, ::stride, ::stride])
        gradient = gradient / (1 + np.exp(read + bias[:, None, None]))  # 1 - g
    else:
        gradient = gradient * getattr(unit.shortcut, "on_shortcut", 1)
    whole = np.zeros_like(x)
    whole[:, :, :: unit.unit.stride, :: unit.unit.stride] = gradient[:, : x.shape[1]]
    return whole


@pytest.mark.parametrize(
    ("order", "shortcut"),
    [
        ("full_preact", "identity"),
        ("original", "scale:0.5,0.7"),
        ("full_preact", "exclusive-gate:-1"),
        ("original", "gate:-1"),
        ("original", "plain"),
    ],
)
def test_both_parts_of_the_gradient_against_finite_differences(order, shortcut):
    net = tiny(order, shortcut)
    images, labels = batch(count=2, size=4)
    entering, expected = gradients(net, images, labels)
    rows = measure(net, images, labels)
    assert [row["unit"] for row in rows] == ["stage1_unit1", "stage1_unit2", "stage2_unit1"]
    for row, unit, x, leaving, at_x, after in zip(
        rows, net.units, entering, entering[1:], expected, expected[1:]
    ):
        part = over_shortcut(unit, x, leaving, after)
        assert row["forward"] == pytest.approx(math.sqrt((x**2).mean()))
        assert row["backward"] == pytest.approx(np.linalg.norm(at_x), rel=1e-5)
        assert row["shortcut"] == pytest.approx(np.linalg.norm(part), rel=1e-5)
        assert row["residual"] == pytest.approx(np.linalg.norm(at_x - part), rel=1e-5)
        share = (part * at_x).sum() / (at_x**2).sum()
        assert row["share"] == pytest.approx(share, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("order", ORDER)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_the_parts_make_up_the_unit(order, shortcut):
    net = tiny(order, shortcut, unit="bottleneck", widening="B" if shortcut == "identity" else "A")
    passes, _ = _forward(net, batch()[0])
    for unit, block in zip(passes, net.units):
        x = unit.shortcut.copy()
        x.attach_grad()
        with autograd.record():
            leaving = block(x)
        gradient = np.random.RandomState(0).normal(size=leaving.shape)
        leaving.backward(mx.nd.array(gradient, dtype="float64"))
        assert relative(unit.leaving.asnumpy(), leaving.asnumpy()) < 1e-12
        assert relative(sum(unit.backward(gradient)), x.grad.asnumpy()) < 1e-9


@pytest.mark.parametrize("grad_req", ["write", "add"])
@pytest.mark.parametrize("shortcut", ["gate:-1", "dropout:0.5"])
def test_the_network_stays_as_it_is(shortcut, grad_req):
    net = tiny(shortcut=shortcut, dtype="float32")
    images, labels = batch()
    for parameter in net.collect_params().values():
        if parameter.grad_req != "null":
            parameter.grad_req = grad_req
    net.hybridize(static_alloc=True, static_shape=True)
    with autograd.record():
        net(mx.nd.array(images)).sum().backward()
    mx.nd.waitall()
    before = everything(net)
    records(net, images, labels)
    mx.nd.waitall()
    after = everything(net)
    assert list(after) == list(before)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_measuring_draws_no_random_numbers():
    net = tiny(dtype="float32")
    draws = []
    for look in (False, True):
        mx.random.seed(3)
        if look:
            records(net, *batch())
        draws.append(mx.nd.random.normal(shape=(8,)).asnumpy())
    assert np.array_equal(*draws)


@pytest.mark.slow  # half a minute
def test_gradients_may_leave_the_range_of_float32():
    # 1.2^(2 * 399) is about 1e63, in wide channels.
    net = ResNetV2(Spec("deep", "cifar", (400,), (4,), order="original", shortcut="plain"))
    mx.random.seed(0)
    net.initialize()
    rows = measure(net, *batch(count=4, size=4))
    growth = rows[0]["backward"] / rows[-1]["backward"]
    assert 1e39 < growth < 1e63


# -- products --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 0.9])
def test_scaled_shortcuts_multiply(factor):
    net = initialised("preact110", shortcut=f"scale:{factor}")
    rows = products(net, batch(count=2)[0])
    assert [row["between"] for row in rows] == list(range(1, 55))
    assert (rows[0]["unit"], rows[-1]["unit"]) == ("stage3_unit18", "stage1_unit1")
    for row in rows:
        assert row["predicted"] == pytest.approx(factor ** row["between"], rel=1e-12)
        tolerance = 1e-5 if factor == 0.9 else 1e-14  # of which float32 has only a neighbour
        assert row["product"] == pytest.approx(row["predicted"], rel=tolerance)


@pytest.mark.parametrize("order", ["relu_before_add", "relu_preact", "full_preact"])
def test_identity_shortcuts_leave_a_gradient_as_it_is(order):
    rows = products(tiny(order, stages=(2, 2, 2)), batch()[0])
    assert [row["product"] for row in rows] == pytest.approx([1.0] * 6, rel=1e-14)
    assert [row["predicted"] for row in rows] == [1.0] * 6


def test_the_original_order_drops_some_of_it():
    products_ = [row["product"] for row in products(tiny("original"), batch()[0])]
    assert 1 > products_[0] > products_[1] > products_[2] > 0


@pytest.mark.parametrize("shortcut", ["gate:-1", "exclusive-gate:-1"])
def test_gates_that_read_nothing_multiply_by_their_bias(shortcut):
    net = tiny(shortcut=shortcut, stages=(3, 2))
    for unit in net.units:
        unit.gate.weight.set_data(mx.nd.zeros(unit.gate.weight.shape, dtype="float64"))
        unit.gate.bias.set_data(-mx.nd.ones(unit.gate.bias.shape, dtype="float64"))
    rows = products(net, batch()[0])
    kept = 1 / (1 + math.exp(-1))  # 1 - sigmoid(-1)
    assert [row["product"] for row in rows] == pytest.approx([kept**n for n in range(1, 6)])
    assert {row["predicted"] for row in rows} == {None}


def test_a_projection_ends_what_is_predicted():
    rows = products(tiny(widening="B", stages=(2, 2)), batch()[0])
    assert [row["predicted"] for row in rows] == [1.0, None, None, None]
    assert rows[0]["product"] == pytest.approx(1)
    assert {row["product"] for row in products(tiny(shortcut="plain"), batch()[0])} == {0.0}


# -- What to expect --------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "layers"), [("single", 1), ("basic", 2)])
def test_one_stage_has_a_closed_form(unit, layers):
    spec = Spec("deep", "cifar", (40,), (16,), unit=unit)
    expected = expected_gradients(spec)
    a = math.pi / (math.pi - 1)
    b = a**layers
    # The product of (l - 1/2 + b) / (l - 1/2), and the first unit, which has no BN of its own.
    square = math.gamma(39.5 + b) * math.gamma(1.5) / math.gamma(1.5 + b) / math.gamma(39.5)
    square *= 1 + 2 * a ** (layers - 1)
    assert expected[0] == pytest.approx(math.sqrt(square))
    assert expected[-1] == 1


def test_what_is_expected_of_other_networks():
    growth = VARIANCE**-0.5
    assert growth == pytest.approx(1.2112, abs=1e-4)  # Yang et al. (arXiv:1902.08129)
    assert expected_gradients(named("plain20"))[0] == pytest.approx(growth**16)
    within = expected_gradients(named("preact20", shortcut="plain"))[1:]
    assert within[0] == pytest.approx(growth**14)
    halves = expected_gradients(named("preact20", shortcut="scale:0,1"))[1:]
    assert halves == within
    assert expected_gradients(named("resnet20")) is None
    assert expected_gradients(named("preact20", shortcut="gate:-6")) is None


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("preact20", {}),
        ("preact56", {}),
        ("preact29", {}),  # bottlenecks, with projections
        ("preact20", {"shortcut": "scale:0.5"}),
        ("preact20", {"shortcut": "plain"}),
        ("plain20", {}),
    ],
)
def test_noise_meets_what_is_expected(name, switches):
    net = initialised(name, **switches)
    rows = measure(net, *batch(count=32, size=16))
    expected = expected_gradients(net.spec)
    ratios = [row["backward"] / rows[-1]["backward"] / one for row, one in zip(rows, expected)]
    assert 0.5 < min(ratios) <= max(ratios) < 1.3


# -- Records and the section -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    networks = [("preact20", {}), ("preact20", {"shortcut": "scale:0.5"}), ("plain20", {})]
    networks += [("resnet20", {})]
    found = []
    for name, switches in networks:
        found += records(initialised(name, **switches), *batch())
    net = initialised("preact20")
    return found + records(net, *batch(), step=100) + records(net, *batch(), step=200)


def test_records_are_json_lines_that_describe_themselves(measured):
    assert json.loads(json.dumps(measured)) == measured
    flow, chain_ = measured[2:4]
    about = {"step": 0, "model": "preact20", "order": "full_preact", "shortcut": "scale:0.5,1"}
    for record, kind in ((flow, "propagation"), (chain_, "products")):
        assert {key: record[key] for key in about} == about
        assert (record["kind"], record["layers"], record["images"]) == (kind, 2, 4)
        assert {len(column) for column in record["units"].values()} == {9}
    assert flow["expected"] == expected_gradients(named("preact20", shortcut="scale:0.5"))
    assert " ".join(flow["units"]) == "unit forward backward shortcut residual share"
    assert " ".join(chain_["units"]) == "unit between product predicted"
    assert measured[-2]["expected"] is None  # not at initialisation


def test_the_section_shows_each_claim(measured):
    found = section([*measured, {"epoch": 1, "step": 3}])
    pictures = {part.name: part for part in found.parts if isinstance(part, Picture)}
    assert list(pictures) == [
        *("products-full_preact", "products-original"),
        *("gradients-full_preact", "shares-full_preact", "gradients-original", "shares-original"),
        *("propagation-orders", "propagation-training-full_preact"),
    ]
    for picture in pictures.values():
        assert picture.figure.get_figwidth() == 7
        picture.figure.savefig(io.BytesIO())
    chains, flows, training = (part for part in found.parts if isinstance(part, Table))
    first, last = (record["units"]["backward"] for record in (measured[0], measured[-2]))
    assert training.rows[0][:3] == (
        *("preact20, full_preact, identity", "200"),
        f"{first[0] / first[-1]:.3g} → {last[0] / last[-1]:.3g}",
    )
    assert chains.rows[1][:4] == ("preact20, full_preact, scale:0.5,1", "9", "0.002", "0.002")
    assert float(chains.rows[1][4]) < 0.01
    units = measured[0]["units"]
    assert flows.rows[0][1] == f"{units['backward'][0] / units['backward'][-1]:.3g}"
    assert flows.rows[2][-1] == "0.00"  # plain
    (text,) = (part for part in found.parts if "not the whole gradient" in str(part))
    assert "at x_1 for preact20, full_preact, scale:0.5,1; but" in text


@pytest.mark.parametrize(("factor", "word"), [(2.0, "grows"), (0.5, "decays")])
def test_the_words_follow_the_numbers(measured, factor, word):
    plain = json.loads(json.dumps(measured[4]))
    plain["units"]["backward"] = [factor ** (2 * after) for after in reversed(range(9))]
    text = " ".join(part for part in section([plain]).parts if isinstance(part, str))
    assert f"plain20, original, plain: without shortcuts the gradient {word} on its way" in text
    assert f"or {factor:.3f} in each weight layer" in text
