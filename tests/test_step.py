"""A training step: its losses against NumPy, its parts against the whole, its optimiser."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.net import get_model
from gluon_resnetv2.training.devices import contexts
from gluon_resnetv2.training.meter import Meter
from gluon_resnetv2.training.optimizer import (
    make_trainer,
    optimizer_state,
    restore_optimizer,
    set_learning_rate,
)
from gluon_resnetv2.training.recipe import OPTIMIZERS, Recipe
from gluon_resnetv2.training.step import Step, cross_entropy, cut_box
from tests.common import randomise, relative, skip_unless_installed, use_moving_statistics

RECIPE = Recipe(dataset="synthetic", model="preact8", unit="basic", batch_size=12)


def variant(**changes) -> Recipe:
    return dataclasses.replace(RECIPE, **changes)


# -- Losses ----------------------------------------------------------------------------------------


def by_hand(logits, label, other=None, smoothing=0.0, weight=1.0) -> np.ndarray:
    """-sum(target * log(softmax(logits))), with the target as a distribution over the classes."""
    logits = np.asarray(logits, "float64")
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    count, classes = logits.shape
    target = np.zeros((count, classes))
    for row in range(count):
        target[row, label[row]] += weight
        if other is not None:
            target[row, other[row]] += 1 - weight
    target = (1 - smoothing) * target + smoothing / classes
    return -(target * log_softmax).sum(axis=1)


@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weight", [1.0, 0.7, 0.5])
def test_cross_entropy(scale, smoothing, weight):
    rng = np.random.RandomState(0)
    logits = scale * rng.normal(size=(6, 5)).astype("float32")
    label, other = np.array([0, 1, 2, 3, 4, 0], "int32"), np.array([4, 1, 0, 2, 3, 0], "int32")
    if weight == 1:
        found = cross_entropy(mx.nd.array(logits), mx.nd.array(label), smoothing=smoothing)
        other = None
    else:
        found = cross_entropy(
            mx.nd.array(logits), mx.nd.array(label), mx.nd.array(other), smoothing, weight
        )
    expected = by_hand(logits, label, other, smoothing, weight)
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_certain_answer_costs_nothing_but_smoothing():
    logits, label = mx.nd.array([[1000.0, 0.0], [0.0, 1000.0]]), mx.nd.array([0, 0])
    found = cross_entropy(logits, label).asnumpy()
    assert list(found) == pytest.approx([0, 1000], abs=1e-4)
    found = cross_entropy(logits, label, smoothing=0.5).asnumpy()
    assert list(found) == pytest.approx([250, 750], abs=1e-4)


# -- What a step hands to the network --------------------------------------------------------------


class Seen:
    """Stands for network and trainer: notes what a step gives them."""

    def __init__(self, recipe, cpus=1, worker=0, classes=4):
        self.images, self.losses, self.draws, self.counts, self.waited = [], [], [], [], []
        self.classes = classes
        net = SimpleNamespace(
            spec=get_model("preact8", unit="basic", shortcut=recipe.shortcut).spec,
            collect_params=dict,
        )
        trainer = SimpleNamespace(step=self.counts.append)
        self.step = Step(net, trainer, recipe, contexts(None, cpus), worker)
        self.step.forward_backward = self._forward_backward

    def logits(self, part):
        """Any function of the images will do."""
        flat = part.reshape((len(part), -1)).asnumpy()
        return mx.nd.array(np.cos(np.arange(self.classes) * (1 + flat.sum(axis=1))[:, None]))

    def _forward_backward(self, images, losses_of, seed=0):
        self.draws.append(mx.nd.random.uniform(shape=3).asnumpy().tolist())
        logits = [self.logits(part) for part in images]
        losses = losses_of(logits)
        self.images += [part.asnumpy() for part in images]
        self.losses += [loss.asnumpy() for loss in losses]
        return losses, logits


BASIS = np.eye(12, dtype="float32").reshape(12, 3, 2, 2)  # image i is one at place i
LABELS = np.arange(12, dtype="int32") % 4


@pytest.mark.parametrize(("cpus", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_every_part_has_its_images_and_labels(cpus, accumulate):
    seen = Seen(variant(accumulate=accumulate, cpus=cpus), cpus)
    losses, outputs, answers = seen.step(BASIS[:11], LABELS[:11], 0, 11)
    parts = cpus * accumulate
    assert [len(entries) for entries in (losses, outputs, answers)] == [parts] * 3
    sizes = [len(part) for part in seen.images]
    assert max(sizes) - min(sizes) <= 1
    assert np.array_equal(np.concatenate(seen.images), BASIS[:11])
    assert np.array_equal(np.concatenate([part.asnumpy() for part in answers]), LABELS[:11])
    assert seen.counts == [11]
    logits = np.concatenate([seen.logits(mx.nd.array(part)).asnumpy() for part in seen.images])
    np.testing.assert_allclose(np.concatenate(seen.losses), by_hand(logits, LABELS), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("cpus", "accumulate"), [(1, 1), (2, 3)])
def test_mixup_mixes_images_and_their_labels_alike(cpus, accumulate, smoothing):
    recipe = variant(mixup=1.0, cpus=cpus, accumulate=accumulate, label_smoothing=smoothing)
    weights = []
    for step in range(4):
        seen = Seen(recipe, cpus)
        _, _, answers = seen.step(BASIS, LABELS, step, 12)
        mixed = np.concatenate(seen.images).reshape(12, 12)
        np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-6)
        own = np.diagonal(mixed)
        others = (mixed - np.diag(own)).argmax(axis=1)  # whose image was mixed in
        alone = own == pytest.approx(1)
        others[np.isclose(own, 1)] = np.arange(12)[np.isclose(own, 1)]
        assert not alone
        assert sorted(others) == list(range(12))
        weight = own[~np.isclose(own, 1)][0]
        assert 0.5 <= weight <= 1
        logits = np.concatenate([seen.logits(mx.nd.array(p)).asnumpy() for p in seen.images])
        expected = by_hand(logits, LABELS, LABELS[others], smoothing, weight)
        np.testing.assert_allclose(np.concatenate(seen.losses), expected, rtol=1e-4)
        assert np.array_equal(np.concatenate([part.asnumpy() for part in answers]), LABELS)
        weights.append(weight)
    assert len(set(weights)) == 4


@pytest.mark.parametrize(
    ("alpha", "mean", "deviation"),
    [
        # Of max(w, 1 - w), where Beta(1, 1) is uniform and Beta(1/2, 1/2) the arcsine law.
        (1.0, 0.75, 0.1443),
        (0.5, 0.5 + 1 / np.pi, 0.1545),
    ],
)
def test_weights_of_mixup_are_a_beta_distributions(alpha, mean, deviation):
    seen = Seen(variant(mixup=alpha))
    images, labels = BASIS[:2], LABELS[:2]
    weights = [seen.step._mix(images, labels, step)[2] for step in range(4000)]
    assert np.mean(weights) == pytest.approx(mean, abs=4 * deviation / np.sqrt(4000))
    assert np.std(weights) == pytest.approx(deviation, rel=0.05)


# Image i has value i everywhere: where a pixel has another one, it is from that image.
NUMBERED = np.ones((12, 3, 9, 7), "float32") * np.arange(12, dtype="float32")[:, None, None, None]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("cpus", "accumulate"), [(1, 1), (2, 3)])
def test_cutmix_takes_a_box_from_another_image_and_its_share_of_the_label(
    cpus, accumulate, smoothing
):
    recipe = variant(cutmix=1.0, cpus=cpus, accumulate=accumulate, label_smoothing=smoothing)
    shares = set()
    for step in range(6):
        seen = Seen(recipe, cpus)
        _, _, answers = seen.step(NUMBERED, LABELS, step, 12)
        mixed = np.concatenate(seen.images)
        own = np.arange(12)[:, None, None, None]
        foreign = (mixed != own).any(axis=0)  # where the box is: the same in all images
        assert (foreign == foreign[0]).all()
        rows, columns = foreign[0].any(axis=1).nonzero()[0], foreign[0].any(axis=0).nonzero()[0]
        assert foreign[0].sum() == len(rows) * len(columns), "it is a rectangle"
        share = 1 - len(rows) * len(columns) / 63
        others = mixed[:, 0, rows[:1], columns[:1]].astype(int).ravel() if len(rows) else range(12)
        assert sorted(others) == list(range(12))
        expected = np.where(foreign, np.reshape(others, (12, 1, 1, 1)), own)
        np.testing.assert_array_equal(mixed, expected)
        logits = np.concatenate([seen.logits(mx.nd.array(p)).asnumpy() for p in seen.images])
        loss = by_hand(logits, LABELS, LABELS[np.array(others)], smoothing, share)
        np.testing.assert_allclose(np.concatenate(seen.losses), loss, rtol=1e-4)
        assert np.array_equal(np.concatenate([part.asnumpy() for part in answers]), LABELS)
        shares.add(share)
    assert len(shares) > 3
    assert (np.arange(12)[:, None, None, None] == NUMBERED).all(), "it changes its own copy"


@pytest.mark.parametrize(
    ("sizes", "weight", "middle", "expected"),
    [
        ((8, 8), 0.75, (3, 4), (1, 5, 2, 6)),  # half of either side
        ((8, 8), 0.75, (0, 7), (0, 2, 5, 8)),  # cut off
        ((9, 7), 0.75, (4, 3), (2, 6, 2, 4)),  # sides are rounded down to even numbers
        ((8, 8), 1.0, (3, 4), (3, 3, 4, 4)),
        ((8, 6), 0.0, (4, 3), (0, 8, 0, 6)),
        ((8, 6), 0.0, (0, 5), (0, 4, 2, 6)),
    ],
)
def test_the_box_of_cutmix(sizes, weight, middle, expected):
    middles = iter(middle)
    rows, columns = cut_box(sizes, weight, SimpleNamespace(integers=lambda size: next(middles)))
    assert (rows.start, rows.stop, columns.start, columns.stop) == expected


def test_with_both_each_batch_has_mixup_or_cutmix_by_chance():
    """Mixup makes values that no image has. Alone, each does in every batch what it does."""
    cut = {}
    for name, change in (
        *(("mixup", {"mixup": 1.0}), ("cutmix", {"cutmix": 1.0})),
        ("both", {"mixup": 1.0, "cutmix": 1.0}),
    ):
        step = Seen(variant(**change)).step
        mixed = [step._mix(NUMBERED, LABELS, number)[0] for number in range(400)]
        cut[name] = sum(np.array_equal(images, images.round()) for images in mixed)
    assert (cut["mixup"], cut["cutmix"]) == (0, 400)
    assert 160 < cut["both"] < 240  # standard deviation 10


@pytest.mark.parametrize(
    "change", [{"shortcut": "dropout:0.5"}, {"mixup": 0.4}, {"mixup": 1.0, "cutmix": 1.0}]
)
def test_what_is_random_depends_on_seed_step_and_worker_alone(change):
    recipe = variant(accumulate=2, **change)

    def passes(step, worker=0, **more):
        seen = Seen(dataclasses.replace(recipe, **more), worker=worker)
        mx.nd.random.uniform(shape=int(passes.drawn)).wait_to_read()  # drawn by something else
        passes.drawn += 1
        seen.step(BASIS, LABELS, step, 12)
        return [*seen.draws, np.concatenate(seen.images).tolist()]

    passes.drawn = 1
    first = passes(3)
    parts = slice(0, 2) if "shortcut" in change else slice(2, 3)  # what is drawn, what is mixed
    assert passes(3)[parts] == first[parts]
    for other in (passes(4), passes(3, worker=1), passes(3, seed=1)):
        assert all(a != b for a, b in zip(other[parts], first[parts]))
    if "shortcut" in change:
        assert first[0] != first[1]  # the two rounds drop out differently


def test_the_loss_is_scaled_and_what_is_reported_is_not():
    seen = Seen(variant())
    updated = []
    finite = iter([True, False])
    seen.step.trainer = SimpleNamespace(
        allreduce_grads=lambda: updated.append("sum"), update=updated.append, _params=[]
    )
    seen.step.scaler = SimpleNamespace(scale=8.0, passed=lambda parameters: next(finite))
    losses, _, _ = seen.step(BASIS, LABELS, 0, 12)
    np.testing.assert_allclose(np.concatenate(seen.losses), 8 * losses[0].asnumpy(), rtol=1e-6)
    assert updated == ["sum", 96]
    seen.step(BASIS, LABELS, 1, 12)  # overflows
    assert updated == ["sum", 96, "sum"]


# -- Updates ---------------------------------------------------------------------------------------


def prepared(recipe, cpus, values=None):
    """A network with these values, whose normalisation is by moving statistics, and its step."""
    devices = contexts(None, cpus)
    net = get_model("preact8", unit="basic")
    if values is None:
        values = randomise(net, dtype=recipe.array_dtype)
    net.initialize(ctx=devices, force_reinit=True)
    net.cast(recipe.array_dtype)
    for name, parameter in net.collect_params().items():
        parameter.set_data(mx.nd.array(values[name], dtype=recipe.array_dtype))
    net.apply(use_moving_statistics)
    return net, Step(net, make_trainer(net, recipe), recipe, devices), values


@pytest.mark.parametrize(("cpus", "accumulate"), [(1, 2), (1, 7), (2, 3), (3, 2)])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"mixup": 0.5, "label_smoothing": 0.1},
        {"cutmix": 1.0, "label_smoothing": 0.1},
        {"momentum_correction": True, "lr_step_epochs": (1.0, 2.0)},
    ],
    ids=["plain", "mixup", "cutmix", "corrected momenta"],
)
def test_parts_of_a_batch_make_the_update_of_the_whole(cpus, accumulate, extra):
    """Three updates, with seven images: no two numbers of parts divide them alike."""
    recipe = variant(dtype="float64", lr=0.05, **extra)
    whole, update, values = prepared(recipe, 1)
    recipe = dataclasses.replace(recipe, cpus=cpus, accumulate=accumulate)
    split, update_split, _ = prepared(recipe, cpus, values)
    images = np.random.RandomState(0).normal(size=(7, 3, 8, 8)).astype("float32")
    labels = (np.arange(7) % 3).astype("int32")
    schedule = recipe.schedule(steps_per_epoch=1)
    for step in range(3):
        for one in (update, update_split):
            set_learning_rate(one.trainer, recipe, schedule, step)
            one(images, labels, step, 7)
    moved = 0
    for name, parameter in whole.collect_params().items():
        expected = parameter.data().asnumpy()
        moved = max(moved, relative(expected, values[name]))
        for copy in split.collect_params()[name].list_data():
            assert relative(copy.asnumpy(), expected) < 1e-9, name
    assert moved > 0.01


def test_gradients_that_add_up_are_zero_after_a_step():
    net, update, _ = prepared(variant(accumulate=2, cpus=2), 2)
    images = np.random.RandomState(0).normal(size=(8, 3, 8, 8)).astype("float32")
    gradients = [
        g for p in net.collect_params().values() if p.grad_req == "add" for g in p.list_grad()
    ]
    assert len(gradients) == 2 * 23
    update(images, np.zeros(8, "int32"), 0, 8)
    assert not any(gradient.asnumpy().any() for gradient in gradients)
    gradients[0][:] = np.inf
    update.forget_gradients()
    assert not gradients[0].asnumpy().any()


@pytest.mark.parametrize(
    "way", [{}, {"recompute": 2}, {"engine": "native"}, {"accumulate": 2}], ids=str
)
def test_an_input_normalisation_that_learns_nothing_follows_the_images(way):
    """Its moving mean comes from 0, by 1 - momentum of the way in each forward pass."""
    if "engine" in way:
        skip_unless_installed()
    net = get_model("preact8", unit="basic", input_bn="plain")
    net.initialize()
    recipe = variant(batch_size=4, **way)
    update = Step(net, make_trainer(net, recipe), recipe, contexts(None, 1))
    images = np.random.RandomState(0).normal(3, 2, size=(4, 3, 8, 8)).astype("float32")
    update(images, np.zeros(4, "int32"), 0, 4)
    mean = 0
    for part in np.array_split(images, recipe.accumulate):
        mean = 0.9 * mean + 0.1 * part.mean(axis=(0, 2, 3))
    found = net.collect_params()["bn_data_moving_mean"].data().asnumpy()
    np.testing.assert_allclose(found, mean, rtol=1e-4)


def set_gradients(net, values):
    """Has the gradients be these: of {name: array} on the first device, and zero on the others."""
    with mx.autograd.record():
        losses = []
        for name, parameter in net.collect_params().items():
            if parameter.grad_req != "null":
                first, *others = parameter.list_data()
                losses.append((first * mx.nd.array(values[name], dtype=first.dtype)).sum())
                losses += [(other * 0).sum() for other in others]
    mx.autograd.backward(losses)


def test_decay_of_weights_only():
    """A step with no gradient shrinks what decays by lr * wd, and nothing else."""
    for wd_on in ("all", "weights"):
        recipe = variant(lr=0.5, wd=0.1, mom=0.0, wd_on=wd_on)
        net, update, values = prepared(recipe, 1)
        set_gradients(net, {name: 0 * value for name, value in values.items()})
        update.trainer.step(1)
        for name, parameter in net.collect_params().items():
            decays = parameter.grad_req != "null" and (wd_on == "all" or name.endswith("weight"))
            np.testing.assert_allclose(
                parameter.data().asnumpy(), values[name] * (0.95 if decays else 1), rtol=1e-6
            )


# -- The optimiser's arrays ------------------------------------------------------------------------


def dense(recipe, cpus, seed):
    net = mx.gluon.nn.Dense(3, in_units=4, prefix="fc_")
    mx.random.seed(seed)
    net.initialize(mx.init.Normal(1), ctx=contexts(None, cpus))
    return net, make_trainer(net, recipe)


def make_update(net, trainer, number, images=1):
    """An update that is the same on any number of devices."""
    trainer.set_learning_rate(0.1 if number < 2 else 0.05)
    rng = np.random.RandomState(number)
    set_gradients(net, {n: rng.normal(size=p.shape) for n, p in net.collect_params().items()})
    mx.random.seed(number)
    trainer.step(images)


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 1), (2, 1), (1, 3), (3, 2)],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_with_its_arrays(name, before, after):
    recipe = variant(optimizer=name)
    net, trainer = dense(recipe, before, seed=0)
    for number in range(2):
        make_update(net, trainer, number)
    arrays, updates = optimizer_state(trainer)
    assert updates == 2
    saved = {key: array.asnumpy() for key, array in arrays.items()}
    other, restored = dense(recipe, after, seed=1)
    for key, parameter in other.collect_params().items():
        parameter.set_data(net.collect_params()[key].list_data()[0])
    restore_optimizer(restored, arrays, updates)
    again, updates = optimizer_state(restored)
    assert updates == 2
    assert {key: array.asnumpy().tolist() for key, array in again.items()} == {
        key: array.tolist() for key, array in saved.items()
    }
    for number in range(2, 4):
        make_update(net, trainer, number)
        make_update(other, restored, number)
    for key, parameter in other.collect_params().items():
        expected = net.collect_params()[key].list_data()[0].asnumpy()
        for copy in parameter.list_data():
            assert np.array_equal(copy.asnumpy(), expected), key


def everything(net, trainer):
    """Parameters on every device, and what the optimiser keeps of them."""
    parameters = {name: one.list_data() for name, one in net.collect_params().items()}
    kept = {f"of {name}": [one] for name, one in optimizer_state(trainer)[0].items()}
    return {
        name: [array.asnumpy() for array in arrays]
        for name, arrays in {**parameters, **kept}.items()
    }


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("engine", ["mxnet", "native"])
def test_updates_are_those_of_gluons_trainer_to_the_bit(cpus, engine):
    """Of parameters that learn at two rates, and decay or not; some learn nothing."""
    if engine == "native":
        skip_unless_installed()
    recipe = variant(wd_on="weights", wd=0.01, lr=0.1, lr_scale_features=0.3)
    trainers, nets = [], []
    for ours in (True, False):
        net, update, _ = prepared(recipe, cpus)
        trainer = update.trainer
        if ours and engine == "native":
            trainer = make_trainer(net, dataclasses.replace(recipe, engine=engine))
        if not ours:
            settings = {"learning_rate": 0.1, "wd": 0.01, "momentum": recipe.mom}
            params = net.collect_params()
            trainer = mx.gluon.Trainer(params, "sgd", settings, update_on_kvstore=False)
        trainers.append(trainer)
        nets.append(net)
    assert type(trainers[0]) is not type(trainers[1])
    for number in range(4):
        if number == 2 and cpus == 1:
            restore_optimizer(trainers[0], *optimizer_state(trainers[0]))
        for net, trainer in zip(nets, trainers):
            make_update(net, trainer, number, images=3)
        assert trainers[0].optimizer.num_update == trainers[1].optimizer.num_update == number + 1
        mine, theirs = (everything(*one) for one in zip(nets, trainers))
        assert list(mine) == list(theirs)
        for key, array in mine.items():
            np.testing.assert_array_equal(array, theirs[key], err_msg=key)


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("warmup", ["constant", "linear"])
@pytest.mark.parametrize("name", ["sgd", "nag"])
def test_corrected_momenta_are_torchs(name, warmup, cpus):
    """Over a warm-up and two drops; at the first drop a step is left out, as float16's may be."""
    torch = pytest.importorskip("torch")
    wd = 0.01 if name == "sgd" else 0.0  # MXNet's NAG decays by the updated weight
    recipe = variant(
        **{"optimizer": name, "momentum_correction": True, "wd": wd, "lr": 0.2, "cpus": cpus},
        **{"num_epochs": 20, "lr_step_epochs": (10.0, 15.0)},
        **{"warmup": warmup, "warmup_steps": 5, "warmup_lr": 0.01},
    )
    schedule = recipe.schedule(steps_per_epoch=1)
    net, trainer = dense(recipe, cpus, seed=0)
    ours = net.collect_params()
    theirs = {
        key: torch.tensor(p.list_data()[0].asnumpy().astype("float64")) for key, p in ours.items()
    }
    sgd = torch.optim.SGD(
        theirs.values(), lr=1, momentum=0.9, weight_decay=wd, nesterov=name == "nag"
    )
    for step in range(20):
        sgd.param_groups[0]["lr"] = set_learning_rate(trainer, recipe, schedule, step)
        if step == 10:
            continue
        rng = np.random.RandomState(step)
        gradients = {key: rng.normal(size=p.shape) for key, p in ours.items()}
        set_gradients(net, gradients)
        trainer.step(1)
        for key, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[key])
        sgd.step()
        for key, parameter in ours.items():
            for copy in parameter.list_data():
                assert relative(copy.asnumpy(), theirs[key].numpy()) < 1e-6, (step, key)


# -- What it counts --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 2), (3, 2)])
def test_a_meter_goes_on_from_its_sums(before, after, dtype):
    rng = np.random.RandomState(0)

    def batch(devices, count=5):
        parts = []
        for device in devices:
            loss = mx.nd.array(rng.uniform(size=count), ctx=device, dtype=dtype)
            output = mx.nd.array(rng.normal(size=(count, 3)), ctx=device, dtype=dtype)
            parts.append((loss, output, mx.nd.array(rng.randint(0, 3, count), ctx=device)))
        return list(zip(*parts))

    batches = [batch(contexts(None, n)) for n in (before, before, after, after)]
    meter = Meter()
    for parts in batches[:2]:
        meter.add(*parts)
    meter = Meter(meter.sums(), contexts(None, after), dtype)
    for parts in batches[2:]:
        meter.add(*parts)
    losses, outputs, labels = (
        np.concatenate([array.asnumpy() for parts in batches for array in parts[kind]])
        for kind in range(3)
    )
    found = meter.read()
    assert meter.count == len(losses) == 10 * (before + after)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert found["error"] == pytest.approx(100 * np.mean(outputs.argmax(axis=1) != labels))
