"""Shattered gradients: how soon, with depth, the gradients at neighbouring inputs differ.

After D. Balduzzi et al., *The Shattered Gradients Problem* (arXiv:1702.08591).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mxnet as mx
import numpy as np
from matplotlib.figure import Figure
from mxnet import autograd

from gluon_resnetv2 import data
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec, parse_shortcut
from gluon_resnetv2.study.section import Part, Picture, Section, Table
from gluon_resnetv2.training.plots import STYLES

# Name: order and shortcut. Units of one weight layer, as in the theorems of Balduzzi et al.
NETWORKS = {
    "plain": ("original", "plain"),
    "original": ("original", "identity"),
    "full pre-activation": ("full_preact", "identity"),
}
DEPTHS = (*range(1, 11), 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)

FLOORS = 3  # of the noise: what a correlation has to exceed to take part in a fit

# -- Measuring -------------------------------------------------------------------------------------


def measure(
    networks: dict[str, tuple[str, str]] = NETWORKS,
    depths: Sequence[int] = DEPTHS,
    seeds: int = 16,
    pairs: int = 32,
    distance: float = 0.5,
    channels: int = 16,
    image_size: int = 16,
) -> list[dict]:
    """The correlation of input gradients at neighbouring inputs, at initialisation.

    Neighbours are a digit and the point that lies `distance` of the way to another digit. The
    gradient is that of u . x_k, where x_k leaves unit k and u is random normal, the same for both
    inputs. The correlation is the cosine between the two gradients, in the mean over the pairs, two
    u and the seeds, each with its own network and digits. Batch normalisation has the statistics
    of the batch, all pairs at once, as in training and in Balduzzi et al.; the gradient goes
    through them.

    Args:
        networks: {name: (order, shortcut)}, of one stage and one weight layer in a unit.
        depths: the k, ascending: how many units.
        channels: of the network.
        image_size: of the digits, in pixels.

    Returns:
        A JSON line for each network: "kind" ("shattering"), "network" (its name), "order",
        "shortcut", the arguments, and for each depth "correlation", "error" (its standard error
        over the seeds); and "floor", the root mean square of what comes out instead where the two
        gradients belong to independent u. About 1 / sqrt(numbers in an image * pairs * seeds) if
        those were independent, it is more since neighbouring pixels are alike.
    """
    digits = data.load("digits", image_size=image_size)
    found = []
    for name, (order, shortcut) in networks.items():
        spec = Spec(
            name, "cifar", (max(depths),), (channels,), "single", order, parse_shortcut(shortcut)
        )
        runs = [_run(spec, digits, depths, pairs, distance, seed) for seed in range(seeds)]
        same, other = np.array(runs).transpose(1, 0, 2)  # (seeds, depths) each
        found.append(
            {
                **{"kind": "shattering", "network": name, "order": order},
                **{"shortcut": str(spec.shortcut), "seeds": seeds, "pairs": pairs},
                **{"distance": distance, "channels": channels, "image_size": image_size},
                "depths": list(depths),
                "correlation": same.mean(axis=0).tolist(),
                "error": (same.std(axis=0, ddof=1) / math.sqrt(seeds)).tolist(),
                "floor": float(np.sqrt(np.mean(other**2) / seeds)),
            }
        )
    return found


def _run(spec, digits, depths, pairs, distance, seed):
    """The correlations of one network at `depths`: for the same u, and for two different."""
    rng = np.random.RandomState(seed)
    chosen = rng.permutation(len(digits.train.images))[: 2 * pairs]
    start, end = np.split(data.normalise(digits.train.images[chosen], digits.mean, digits.std), 2)
    mx.random.seed(seed)
    net = ResNetV2(spec)
    net.initialize()
    net.collect_params().setattr("grad_req", "null")
    x = mx.nd.array(np.concatenate([start, start + distance * (end - start)]))
    same, other = [], []
    for leaving in _leaving(net, x, depths):
        gradients = []
        for _ in range(2):
            functional = mx.nd.array(rng.normal(size=(1, *leaving.shape[1:])))
            leaving.backward(functional.broadcast_like(leaving), retain_graph=True)
            gradients.append(np.split(x.grad.asnumpy().astype(np.float64), 2))
        (a, near_a), (b, near_b) = gradients
        same.append((cosine(a, near_a) + cosine(b, near_b)) / 2)
        other.append((cosine(a, near_b) + cosine(b, near_a)) / 2)
    return same, other


def _leaving(net, x, depths):
    """What leaves unit k, for each k in `depths`, as a function of `x`."""
    x.attach_grad()
    leaving, count = [], 0
    with autograd.record():
        for block in net.features:
            if count == max(depths):
                break
            x = block(x)
            if block in net.units:
                count += 1
                if count in depths:
                    leaving.append(x)
    return leaving


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine between a[i] and b[i], arrays of any one shape, in the mean over i."""
    a, b = (array.reshape(len(array), -1) for array in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / lengths))


def fit(depths: Sequence[float], correlations: Sequence[float]) -> dict[str, float]:
    """The exponential C r^L and the power law C L^-p that are nearest, by squares of logarithms.

    Args:
        depths: the L, two different ones at least.
        correlations: positive, one for each.

    Returns:
        "exponential_scale" (C), "rate" (r), "exponential_error"; "power_scale" (C), "power" (p),
        "power_error". Errors are root mean squares of natural logarithms' differences.
    """
    logs = np.log(correlations)
    found = {}
    for name, at in (("exponential", np.asarray(depths, float)), ("power", np.log(depths))):
        slope, start = np.polyfit(at, logs, 1)
        found[f"{name}_scale"] = math.exp(start)
        found["rate" if name == "exponential" else "power"] = (
            math.exp(slope) if name == "exponential" else -float(slope)
        )
        found[f"{name}_error"] = float(np.sqrt(np.mean((start + slope * at - logs) ** 2)))
    return found


def fitted(record: dict) -> tuple[list[int], dict[str, float] | None]:
    """The depths before the correlation first comes near the noise, and `fit` of those.

    None where fewer than three are left, which any law of two numbers fits.
    """
    depths, values = record["depths"], record["correlation"]
    count = next(
        (i for i, value in enumerate(values) if value < FLOORS * record["floor"]), len(values)
    )
    return depths[:count], fit(depths[:count], values[:count]) if count > 2 else None


# -- The section -----------------------------------------------------------------------------------

CLAIM = (
    "Balduzzi et al. (arXiv:1702.08591): at initialisation the correlation between the gradients "
    "at neighbouring inputs decays like 2^-L in plain nets of L layers, and like 1 / sqrt(L) in "
    "residual nets with batch normalisation, whose gradients therefore do not shatter."
)


def section(records: list[dict]) -> Section:
    """A picture, a table and words of what `measure` gave; other records are passed over."""
    records = [record for record in records if record.get("kind") == "shattering"]
    rows, words, notes = [], [], []
    for record in records:
        depths, law = fitted(record)
        row = [record["network"], f"{record['floor']:.1g}"]
        if law is None:
            rows.append((*row, *"-" * 5))
            continue
        better = "exponential" if law["exponential_error"] < law["power_error"] else "power law"
        row += [f"{depths[0]} to {depths[-1]}"]
        row += [f"{law['rate']:.3f}^L", f"{law['exponential_error']:.3f}"]
        rows.append((*row, f"L^-{law['power']:.2f}", f"{law['power_error']:.3f}"))
        words.append(f"{record['network']}: {better}")
        if better == "exponential":
            (before, last), values = depths[-2:], record["correlation"]
            rate = (values[len(depths) - 1] / values[len(depths) - 2]) ** (1 / (last - before))
            notes.append(f"{rate:.2f} for {record['network']}")
    head = ("network", "noise", "L", "exponential", "error", "power law", "error")
    parts: list[Part] = [
        Picture("shattering", _draw(records), CAPTION),
        Table(head, rows),
        f"What fits better: {'; '.join(words) or 'nothing'}. Errors are root mean squares of "
        f"natural logarithms' differences. Fitted is what exceeds {FLOORS} times the noise.",
    ]
    if notes:
        parts.append(
            "2^-L supposes ReLUs that are open or shut at one input whatever they are at the "
            "other. Neighbours start alike, so the rate starts nearer to 1; between the last two "
            f"depths fitted it is {' and '.join(notes)}."
        )
    return Section("shattering", "Shattered gradients", CLAIM, parts)


CAPTION = (
    "The correlation of the gradients at two neighbouring inputs against depth, with logarithmic "
    "depth on the right. Left, an exponential is straight; right, a power law. Thin: the fit of "
    "the two that is better. Pale: not fitted, for the noise, whose lowest level is grey. Bars: "
    "two standard errors."
)


def _draw(records):
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    deepest = max(max(record["depths"]) for record in records)
    smooth = np.geomspace(1, deepest, 200)
    for axes in (left, right):
        for record, (color, marker) in zip(records, STYLES):
            at, values = (np.array(record[name]) for name in ("depths", "correlation"))
            depths, law = fitted(record)
            count = len(depths)
            bars = {"fmt": marker, "color": color, "markersize": 4, "linewidth": 1}
            error = 2 * np.array(record["error"])
            axes.errorbar(
                at[:count], values[:count], error[:count], **bars, label=record["network"]
            )
            axes.errorbar(at[count:], values[count:], error[count:], **bars, alpha=0.25)
            if law:
                line = law["exponential_scale"] * law["rate"] ** smooth
                if law["power_error"] < law["exponential_error"]:
                    line = law["power_scale"] * smooth ** -law["power"]
                axes.plot(smooth, line, color=color, linewidth=0.9)
        axes.plot(smooth, 0.5**smooth, ":", color="black", linewidth=1, label="$2^{-L}$")
        axes.plot(smooth, smooth**-0.5, "--", color="black", linewidth=1, label="$L^{-1/2}$")
        axes.set_xlabel("units of one weight layer, L")
        noise = FLOORS * min(record["floor"] for record in records)
        axes.axhspan(noise / 20, noise, color="0.9", linewidth=0)
    left.set_yscale("log")
    left.set_ylim(noise / 10, 1.2)
    left.set_ylabel("correlation")
    right.set_xscale("log")
    right.xaxis.set_major_formatter("{x:g}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
