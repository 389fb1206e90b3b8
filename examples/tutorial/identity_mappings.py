# %% [markdown]
# # Identity mappings: from Eq. (1) to a trained network
#
# K. He, X. Zhang, S. Ren and J. Sun, *Identity Mappings in Deep Residual Networks*
# ([arXiv:1603.05027](https://arxiv.org/abs/1603.05027)), with code beside the equations. Each
# `assert` checks one of them in float64. All of it takes less than a minute on one core of a CPU.

# %%
import gluon_resnetv2  # first, so that MXNet loads on today's Python and NumPy

# isort: split
import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn

from gluon_resnetv2 import data, paper
from gluon_resnetv2.spec import ORDER, Spec, unit_ops
from gluon_resnetv2.study.propagation import measure, products
from gluon_resnetv2.training.plots import STYLES

DEPTH = 56  # weight layers of the networks in sections 4 and 5, 6n + 2
EPOCHS = 5  # for which each of them is trained

colors, markers = zip(*STYLES)
plt.rc("axes", prop_cycle=plt.cycler(color=colors, marker=markers), grid=True)
plt.rc("lines", markersize=5)
plt.rc("grid", color="0.9")
plt.rc("figure", figsize=(10, 3.4))
mx.random.seed(0)

# %% [markdown]
# ## 1. A residual unit
#
# A residual unit adds a function $F$ of its input to a shortcut $h$, and $f$ acts on the sum:
#
# $$y_l = h(x_l) + F(x_l, W_l) \tag{1}$$
# $$x_{l+1} = f(y_l) \tag{2}$$
#
# In the original ResNet $h$ is the identity and $f$ is ReLU. Here is a unit for any $h$ and $f$,
# with two weight layers in $F$:

# %%
CHANNELS = 16


class Unit(gluon.Block):
    """A residual unit; h and f are the identity where nothing else is given."""

    def __init__(self, h=lambda x: x, f=lambda y: y):
        super().__init__()
        self.h, self.f = h, f
        self.F = nn.Sequential()
        for _ in range(2):
            self.F.add(
                nn.BatchNorm(in_channels=CHANNELS),
                nn.Activation("relu"),
                nn.Conv2D(CHANNELS, 3, padding=1, use_bias=False, in_channels=CHANNELS),
            )

    def forward(self, x):
        y = self.h(x) + self.F(x)  # Eq. (1)
        return self.f(y)  # Eq. (2)


def units_in_a_row(count, **h_and_f):
    """`count` units, with the paper's initial weights."""
    units = nn.Sequential()
    units.add(*[Unit(**h_and_f) for _ in range(count)])
    units.initialize(gluon_resnetv2.he_normal())
    units.cast("float64")
    return units


# %% [markdown]
# With $f$ the identity as well, the two equations become one,
#
# $$x_{l+1} = x_l + F(x_l, W_l), \tag{3}$$
#
# and by recursion $x_{l+2} = x_l + F(x_l, W_l) + F(x_{l+1}, W_{l+1})$, and so on: any deeper $x_L$
# is any shallower $x_l$ plus the residuals in between.
#
# $$x_L = x_l + \sum_{i=l}^{L-1} F(x_i, W_i) \tag{4}$$
#
# Eight units show it, and that it does not hold with $f$ = ReLU:


# %%
def follow(units, x):
    """x_l, ..., x_L, and F(x_l), ..., F(x_{L-1})."""
    xs, residuals = [x], []
    with autograd.train_mode():  # batch normalisation takes the batch's own statistics
        for unit in units:
            residuals.append(unit.F(xs[-1]))
            xs.append(unit(xs[-1]))
    return xs, residuals


def difference(found, expected):
    """The norm of the difference, relative to the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).asscalar()


x = mx.nd.random.normal(shape=(2, CHANNELS, 8, 8), dtype="float64")  # x_l
units = units_in_a_row(8)
xs, residuals = follow(units, x)
print("Eq. (4), f = identity:", difference(xs[-1], x + sum(residuals)))
assert difference(xs[-1], x + sum(residuals)) < 1e-12

xs, residuals = follow(units_in_a_row(8, f=mx.nd.relu), x)
print("Eq. (4), f = ReLU:    ", difference(xs[-1], x + sum(residuals)))
assert difference(xs[-1], x + sum(residuals)) > 0.1

# %% [markdown]
# The chain rule makes of Eq. (4) what the gradient of an error $E$ is at $x_l$:
#
# $$\frac{\partial E}{\partial x_l} = \frac{\partial E}{\partial x_L}
# \left(1 + \frac{\partial}{\partial x_l} \sum_{i=l}^{L-1} F(x_i, W_i)\right) \tag{5}$$
#
# The gradient at $x_L$ reaches $x_l$ as it is, through no weight layer, and what comes through the
# weight layers is added. For $E = \sum w \cdot x_L$, with random numbers $w$, the gradient at $x_L$
# is $w$:

# %%
w = mx.nd.random.normal(shape=x.shape, dtype="float64")


def gradient(function, x):
    """The gradient of w . function(x) at x."""
    x.attach_grad()
    with autograd.record():
        error = (w * function(x)).sum()
    error.backward()
    return x.grad.copy()


at_x_l = gradient(lambda x: follow(units, x)[0][-1], x)
through_F = gradient(lambda x: sum(follow(units, x)[1]), x)
print("Eq. (5):", difference(at_x_l, w + through_F))
assert difference(at_x_l, w + through_F) < 1e-12

# %% [markdown]
# ## 2. A scaled shortcut
#
# Let $h$ be a scaling by $\lambda$, the same in each unit:
#
# $$x_{l+1} = \lambda x_l + F(x_l, W_l) \tag{6}$$
#
# The recursion now multiplies $x_l$ by $\lambda$ at each unit. With $n = L - l$ units, and
# $\hat F$ for $F$ with the factors that it has got, $\hat F(x_i) = \lambda^{L-1-i} F(x_i)$:
#
# $$x_L = \lambda^n x_l + \sum_{i=l}^{L-1} \hat F(x_i, W_i) \tag{7}$$
# $$\frac{\partial E}{\partial x_l} = \frac{\partial E}{\partial x_L}
# \left(\lambda^n + \frac{\partial}{\partial x_l} \sum_{i=l}^{L-1} \hat F(x_i, W_i)\right) \tag{8}$$

# %%
LAMBDA, N = 0.5, 8
scaled = units_in_a_row(N, h=lambda x: LAMBDA * x)


def F_hat(x):
    """The sum in Eq. (7)."""
    residuals = follow(scaled, x)[1]
    return sum(LAMBDA ** (N - 1 - i) * residual for i, residual in enumerate(residuals))


x_L = follow(scaled, x)[0][-1]
print("Eq. (7):", difference(x_L, LAMBDA**N * x + F_hat(x)))
assert difference(x_L, LAMBDA**N * x + F_hat(x)) < 1e-12

at_x_l, through_F = gradient(lambda x: follow(scaled, x)[0][-1], x), gradient(F_hat, x)
print("Eq. (8):", difference(at_x_l, LAMBDA**N * w + through_F))
assert difference(at_x_l, LAMBDA**N * w + through_F) < 1e-12

# %% [markdown]
# So what comes over the shortcuts alone vanishes or explodes exponentially with the number of
# units, unless $\lambda = 1$. To measure it, stop the gradient in front of each $F$. A
# ResNet-110 has 54 units:


# %%
def over_shortcuts(units, x):
    """x_L, through whose residuals no gradient comes back."""
    with autograd.train_mode():
        for unit in units:
            x = unit.h(x) + unit.F(x.detach())
    return x


figure, axes = plt.subplots(layout="constrained")
for factor in (1.1, 1.0, 0.9, 0.5):
    units = list(units_in_a_row(54, h=lambda x, factor=factor: factor * x))
    counts = np.arange(0, 55, 9)
    measured = []
    for n in counts:
        passed = gradient(lambda x, units=units[:n]: over_shortcuts(units, x), x)
        assert difference(passed, factor**n * w) < 1e-12
        measured.append((passed.norm() / w.norm()).asscalar())
    (line,) = axes.plot(counts, measured, linestyle="none", label=f"λ = {factor}")
    axes.plot(counts, factor**counts, color=line.get_color(), marker="", linewidth=1)
axes.set(yscale="log", xlabel="units $n$", ylabel="gradient at $x_l$ / at $x_L$")
axes.set_title("over the shortcuts alone: measured (markers) and $λ^n$ (lines)")
axes.legend()
plt.show()

# %% [markdown]
# Where the factor vanishes, the paper concludes, nothing comes back over the shortcuts any more,
# and the gradient has to go through the weight layers. Section 5 measures both in whole networks.
#
# ## 3. Where the activations go
#
# In the original unit $h$ is the identity already. To make $f$ the identity, too, ReLU has to go
# elsewhere, and the paper tries several places for it and for batch normalisation (BN). The five
# orders of its Table 2 are data here; `+` is where the shortcut joins, in a unit's last layer:

# %%
for order, cycle in ORDER.items():
    print(f"{order:16} {cycle}")

# %% [markdown]
# `unit_ops` spells them out for a unit of two layers: what comes first (`pre`), the rest of $F$
# (`body`), and what follows the addition (`after`), which is $f$. The library's unit is built of
# these. Eq. (4), checked as above, holds where nothing follows the addition. Beside it stands the
# paper's test error (%) of 110 layers on CIFAR-10:

# %%
reported = {
    result.spec.order: result.error
    for result in paper.RESULTS
    if result.source == "[v2] Table 2" and result.spec.depth == 110
}
layout = "{:16} {:10} {:40} {:10} {:>8} {:>6}"
print(layout.format("order", "pre", "body", "after", "Eq. (4)", "paper"))
for order in ORDER:
    net = gluon_resnetv2.ResNetV2(Spec("eight units", "cifar", (8,), (CHANNELS,), order=order))
    net.initialize()
    net.cast("float64")
    x_i, residuals = x, []
    with autograd.train_mode():
        for unit in net.units:
            residuals.append(unit.body(unit.pre(x_i)))
            x_i = unit(x_i)
    off = difference(x_i, x + sum(residuals))
    pre, body, after = unit_ops(order, layers=2)
    assert (off < 1e-12) == (not after)
    columns = (order, *(" ".join(ops) or "-" for ops in (pre, body, after)))
    print(layout.format(*columns, f"{off:.0e}", f"{reported[order]:.2f}"))

# %% [markdown]
# An identity $f$ alone does not make a better network. In `relu_before_add`, says the paper, $F$
# ends in ReLU and so is never negative, as a residual should be free to be.
#
# `relu_preact` and `full_preact` are the *pre-activation* units. Their activation $\hat f$ acts on
# what $F$ reads, and the shortcut passes it by:
#
# $$x_{l+1} = x_l + F(\hat f(x_l), W_l) \tag{9}$$
#
# The unit of section 1 was one of them: with the same weights the library's computes the same.

# %%
ours = units_in_a_row(1)[0]
theirs = net.units[-1]  # of the order full_preact, the last one above
for layer, other in zip(ours.F, [*theirs.pre, *theirs.body]):
    for parameter, value in zip(other.params.values(), layer.params.values()):
        parameter.set_data(value.data())
print("our unit and the library's:", difference(theirs(x), ours(x)))
assert difference(theirs(x), ours(x)) < 1e-12

# %% [markdown]
# ## 4. Train a pre-activation network
#
# `preact56` has 27 such units between its first convolution and its classifier. The 1797
# handwritten digits of scikit-learn, in their own 8x8 pixels, are quickly learned. Momentum, weight
# decay and the learning rate of 0.1 are the paper's; here the rate rises to it over a tenth of the
# steps, then falls as a cosine.

# %%
digits = data.load("digits", image_size=8)
BATCH = 64


def train(net):
    """The mean training loss and the test error (%) of each epoch."""
    steps = EPOCHS * data.num_batches(digits.train_count, BATCH)
    rate = mx.lr_scheduler.CosineScheduler(steps, base_lr=0.1, warmup_steps=steps // 10)
    settings = {"momentum": 0.9, "wd": 1e-4, "lr_scheduler": rate}
    trainer = gluon.Trainer(net.collect_params(), "sgd", settings)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    losses, errors = [], []
    for epoch in range(EPOCHS):
        total = 0.0
        for images, labels in digits.batches(BATCH, train=True, epoch=epoch):
            with autograd.record():
                loss = loss_of(net(mx.nd.array(images)), mx.nd.array(labels))
            loss.backward()
            trainer.step(len(labels))
            total += loss.sum().asscalar()
        wrong = sum(
            (net(mx.nd.array(images)).asnumpy().argmax(axis=1) != labels).sum()
            for images, labels in digits.batches(BATCH)
        )
        losses.append(total / digits.train_count)
        errors.append(100 * wrong / len(digits.test.labels))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}, test error {errors[-1]:.1f} %")
    return losses, errors


def network(shortcut):
    """A pre-activation network, not yet trained."""
    mx.random.seed(0)
    net = gluon_resnetv2.get_model(f"preact{DEPTH}", shortcut=shortcut)
    net.initialize()  # as `he_normal`
    net.hybridize()
    return net


nets = {"identity": network("identity")}
curves = {"identity": train(nets["identity"])}


# %%
def plot_curves():
    """Loss and error against epochs, a line for each network trained so far."""
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    epochs = range(1, EPOCHS + 1)
    for shortcut, (losses, errors) in curves.items():
        left.plot(epochs, losses, label=shortcut)
        right.plot(epochs, errors)
    left.set(yscale="log", xlabel="epoch", xticks=epochs, ylabel="training loss")
    right.set(xlabel="epoch", xticks=epochs, ylabel="test error (%)", ylim=(0, None))
    figure.legend(loc="outside right upper", title="shortcut")
    plt.show()


plot_curves()

# %% [markdown]
# ## 5. How the gradient arrives
#
# Three networks as they are initialised: with identity shortcuts, with shortcuts scaled by 0.5, and
# without any (*plain*). `products` sends a gradient back over the shortcuts alone, as in section 2.
#
# A network has three stages. Eq. (4) to (8) are about units of one size; where the second and the
# third stage begin, the shortcut subsamples and appends channels of zeros, whose gradient is
# dropped. `products` leaves that out of its account.

# %%
SHORTCUTS = ("identity", "scale:0.5", "plain")
images, labels = next(digits.batches(BATCH, train=True))
for shortcut in SHORTCUTS:
    rows = products(network(shortcut), images)
    for row in rows:
        assert np.isclose(row["product"], row["predicted"], rtol=1e-6, atol=0)
    print(f"{shortcut:10} over {len(rows)} units: {rows[-1]['product']:.2e}")

# %% [markdown]
# That is the first term of Eq. (8). `measure` has both: the whole gradient at each unit,
# $\partial E / \partial x_l$ of the loss $E$, and the share of it that came over that unit's
# shortcut and not through its $F$.


# %%
def plot_propagation(nets):
    """The norm of the gradient at each unit, and the shortcut's share of it."""
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    for shortcut, net in nets.items():
        rows = measure(net, images, labels)
        at = range(1, len(rows) + 1)
        norms = np.array([row["backward"] for row in rows]) / rows[-1]["backward"]
        shares = [row["share"] for row in rows]
        left.plot(at, norms, label=shortcut)
        right.plot(at, shares)
        print(f"{shortcut:10} first unit / last {norms[0]:<8.3g} mean share {np.mean(shares):.2f}")
    left.set(
        yscale="log", xlabel="unit $l$", ylabel=r"$|\partial E/\partial x_l|$ / at the last unit"
    )
    right.set(xlabel="unit $l$", ylabel="share over the shortcut", ylim=(-0.03, 1.03))
    figure.legend(loc="outside right upper", title="shortcut")
    plt.show()


plot_propagation({shortcut: network(shortcut) for shortcut in SHORTCUTS})

# %% [markdown]
# Read the left picture from right to left, as the gradient goes. Without shortcuts it is nearly a
# straight line on the logarithmic axis: the gradient changes exponentially with depth; here, it
# grows. Shortcuts scaled by 0.5 do little about that: most of the gradient comes through the weight
# layers, on the right. Identity shortcuts bend the line, and most of the gradient comes over them,
# but at the first two units; it is about half of it where a stage begins, at 10 and 19.
#
# Trained alike, the other two learn more slowly:

# %%
for shortcut in SHORTCUTS[1:]:
    print(shortcut)
    nets[shortcut] = network(shortcut)
    curves[shortcut] = train(nets[shortcut])
plot_curves()

# %% [markdown]
# (In the paper's Table 1 these two fail, in the order `original`, with 110 layers on CIFAR-10.)
#
# The gradient again, in the trained networks:

# %%
plot_propagation(nets)

# %% [markdown]
# ## 6. Where to go next
#
# `study` runs the paper's tables and figures again and writes a report. With `--dry-run` it says
# what that costs on this machine:
#
# ```
# python -m gluon_resnetv2 study propagation     # section 5, of more shortcuts and orders
# python -m gluon_resnetv2 study table1 table2   # trained with them, on the digits
# python -m gluon_resnetv2 study table1 table2 --dataset cifar10 --dry-run
# ```
#
# `train/cifar.py` trains one network by the paper's recipe, and exports it:
#
# ```
# python train/cifar.py --model preact110
# ```
