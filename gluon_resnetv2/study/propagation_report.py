"""What the records of `propagation` say: tables, pictures and words."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from gluon_resnetv2.spec import ORDER, Scale, unit_ops
from gluon_resnetv2.study.expectation import MARGIN, VARIANCE
from gluon_resnetv2.study.section import Picture, Section, Table
from gluon_resnetv2.training.plots import STYLES, log_scale

PLAIN = str(Scale(0.0, 1.0))
TITLE = "Signals and gradients through the units"
CLAIM = (
    "Eq. (5): over identity shortcuts the gradient at x_L reaches every x_l as it is, whatever F "
    "adds. Eq. (8): a shortcut scaled by lambda multiplies it by lambda at each unit, so it is "
    "lost, or explodes, exponentially with depth; gates and 1x1 convolutions do alike (section 3)."
)
NOTHING_AFTER = [order for order in ORDER if not unit_ops(order, 1)[2]]  # so f is the identity


def section(records: list[dict]) -> Section:
    """Tables, pictures and words of what `records` gave for any networks, at any steps.

    "At initialisation" is step 0. A network's records at several steps show its training. Lines of
    another kind are passed over.
    """
    kinds = ("products", "propagation")
    chains, flows = ([r for r in records if r.get("kind") == kind] for kind in kinds)
    training = list(_training(flows, chains))
    chains, flows = ([r for r in found if r["step"] == 0] for found in (chains, flows))
    parts = [*_products(chains), *_flows(flows, chains)]
    identity = [record for record in flows if record["shortcut"] == "identity"]
    deepest = {r["order"]: r for r in sorted(identity, key=lambda r: len(r["units"]["unit"]))}
    if len(deepest) > 1:
        orders = list(deepest.values())
        figure = _figure(orders, {"forward": "rms of x_l", "backward": "|dE/dx_l|"})
        caption = (
            "Identity shortcuts in different orders, at initialisation: the signal (above) and the "
            "gradient (below) of each unit. "
        ) + "; ".join(f"{_name(r)}: signal x {_times(r, 'forward', -1, 0)}" for r in orders)
        parts.append(Picture("propagation-orders", figure, caption + ", first unit to last."))
    return Section("propagation", TITLE, CLAIM, parts + training)


def _products(records):
    if not records:
        return
    rows = []
    for record in records:
        units = record["units"]
        known = [pair for pair in zip(units["product"], units["predicted"]) if pair[1]]
        off = max((abs(product / exact - 1) for product, exact in known), default=None)
        found = (units["product"][-1], units["predicted"][-1], off)
        numbers = ["-" if number is None else f"{number:.2g}" for number in found]
        rows.append((_name(record), str(units["between"][-1]), *numbers))
    head = ("network", "shortcuts", "product at x_1", "lambda^n", "largest deviation")
    yield Table(head, rows)
    yield (
        "The product is of shortcuts alone, the gradient through F stopped. Eq. (8) takes f, what "
        f"follows the addition, for the identity, as it is in {', '.join(NOTHING_AFTER)}; in the "
        "other orders the ReLU (or BN and ReLU) after the addition takes part in what is measured."
    )
    for order, group in _by_order(records):
        figure = _figure(group, {"product": "gradient at x_l / at x_L"})
        caption = (
            f"What shortcuts alone leave of a gradient, order {order}, against the number of units "
            "that it has come back through. Dashed: lambda^n of Eq. (8). A straight line decays "
            "exponentially; a line that ends has come to zero."
        )
        yield Picture(f"products-{order}", figure, caption)


def _flows(records, chains):
    if not records:
        return
    rows: list[tuple[str, ...]] = []
    for record in records:
        expected = f"{record['expected'][0]:.3g}" if record["expected"] else "-"
        ratio = _times(record, "backward")
        share = f"{np.mean(record['units']['share']):.2f}"
        rows.append((_name(record), ratio, f"{_by_layer(record):.3f}", expected, share))
    head = ("network", "|dE/dx_1| / |dE/dx_N|", "per layer", "expected", "share over shortcuts")
    yield Table(head, rows)
    for record in records:
        if record["shortcut"] == PLAIN:
            layer = _by_layer(record)
            yield (
                f"{_name(record)}: without shortcuts the gradient "
                f"{'grows' if layer > 1 else 'decays'} on its way from the last unit to the "
                f"first, times {_times(record, 'backward')}, or {layer:.3f} in each weight layer. "
                "Wide layers of convolution, BN and ReLU, with He's weights, multiply it by "
                f"sqrt(pi / (pi - 1)) = {VARIANCE**-0.5:.3f}."
            )
    for record in records:
        if record["expected"] and record["shortcut"] == "identity":
            ratio, expected = _ratio(record["units"]["backward"]), record["expected"][0]
            within = "within" if ratio <= MARGIN * expected else "beyond"
            yield (
                f"{_name(record)}: with identity shortcuts the gradient at the first unit is "
                f"{ratio:.3g} times that at the last, where {expected:.3g} is expected of wide "
                f"layers; {within} the bound of {MARGIN:g} times that."
            )
    lost = {_name(record) for record in chains if 0 < record["units"]["product"][-1] < 0.01}
    grown = [_name(r) for r in records if _name(r) in lost and _by_layer(r) > 1]
    if grown:
        yield (
            "The product is not the whole gradient. It is below 0.01 at x_1 for "
            f"{'; '.join(grown)}; but there the gradient grows on its way back through F, "
            "as in a plain net, and is larger at the first unit than at the last."
        )
    for order, group in _by_order(records):
        figure = _figure(group, {"backward": "|dE/dx_l|"}, compared=True)
        caption = (
            f"The gradient at each unit at initialisation, order {order}. Dashed: as expected of "
            "wide channels, from the value measured at the last unit on. A straight line grows or "
            "decays exponentially; identity shortcuts bend it."
        )
        yield Picture(f"gradients-{order}", figure, caption)
        if any(any(record["units"]["share"]) for record in group):
            caption = (
                f"The part of the gradient that comes over the shortcut, order {order}; the rest "
                "comes through F. Dips are units that widen: they drop the added channels' part."
            )
            yield Picture(f"shares-{order}", _figure(group, {"share": "share"}), caption)


def _training(flows, chains):
    """What becomes of it while the networks train: a picture for each order, by step."""
    networks: dict[str, list[tuple]] = {}
    for flow, chain in zip(_by_step(flows), _by_step(chains)):
        networks.setdefault(_name(flow), []).append((flow, chain))
    followed = [pairs for pairs in networks.values() if len(pairs) > 1]
    for order, group in _by_order([pairs[-1][0] for pairs in followed]):
        names = [_name(record) for record in group]
        lines = {name: [_summary(*pair) for pair in networks[name]] for name in names}
        rows = []
        for name, (before, *_, after) in lines.items():
            pairs = (f"{x:.3g} → {y:.3g}" for x, y in zip(before[1:], after[1:]))
            rows.append((name, str(after[0]), *pairs))
        yield Table(("network", "steps", *BY_STEP), rows)
        fading = [name for name, (before, *_, after) in lines.items() if before[1] > 1 > after[1]]
        if fading:
            yield (
                "The gradient is larger at the first unit than at the last before training, and "
                f"smaller after it, for {'; '.join(fading)}."
            )
        caption = (
            f"Along training, order {order}: how much larger the gradient is at the first unit "
            "than at the last; what shortcuts alone would leave of it there; and the part of it "
            "that comes over them, in the mean over the units."
        )
        yield Picture(f"propagation-training-{order}", _by_steps(lines), caption)


BY_STEP = ("|dE/dx_1| / |dE/dx_N|", "product of shortcuts", "share of shortcuts")


def _by_step(records):
    return sorted(records, key=lambda record: record["step"])


def _summary(flow, chain):
    """(step, gradient at the first unit over that at the last, product, share)."""
    norms = flow["units"]["backward"]
    share = float(np.mean(flow["units"]["share"]))
    return flow["step"], _ratio(norms), chain["units"]["product"][-1], share


def _by_steps(lines):
    figure = Figure(figsize=(7, 7 + 0.16 * math.ceil(len(lines) / 2)), layout="constrained")
    grid = figure.subplots(3, 1, sharex=True)
    for number, axes in enumerate(grid):
        for i, (name, points) in enumerate(lines.items()):
            color, marker = STYLES[i % len(STYLES)]
            values = [point[number + 1] for point in points]
            axes.plot(
                [point[0] for point in points],
                values if number == 2 else _positive(values),
                color=color,
                marker=marker,
                markerfacecolor=color if i < len(STYLES) else "white",
                markersize=5,
                label=name,
            )
        axes.set_ylabel(BY_STEP[number])
    for axes in grid[:2]:
        log_scale(axes)
    grid[2].set_ylim(0, 1.02)
    grid[2].set_xlabel("step")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _figure(records, panels, compared=False):
    """A panel for each column that `panels` names the axis of, a line for each record.

    Dashed is what is predicted of products and, if `compared`, expected of gradients.
    """
    height = 3.2 if len(panels) == 1 else 2.2 * len(panels)
    height += 0.5 + 0.16 * math.ceil(len(records) / 2)  # of the legend
    figure = Figure(figsize=(7, height), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, title) in zip(grid, panels.items()):
        for number, record in enumerate(records):
            color, marker = STYLES[number % len(STYLES)]
            units = record["units"]
            at = units.get("between") or range(1, len(units["unit"]) + 1)
            if column == "backward" and compared and record["expected"]:
                expected = [value * units[column][-1] for value in record["expected"]]
                axes.plot(at, _positive(expected), "--", color=color, linewidth=0.9)
            elif column == "product":
                axes.plot(at, _positive(units["predicted"]), "--", color=color, linewidth=0.9)
            apart = math.ceil(len(at) / 8)  # between markers
            axes.plot(
                at,
                units[column] if column == "share" else _positive(units[column]),
                color=color,
                marker=marker,
                markerfacecolor=color if number < len(STYLES) else "white",
                markersize=5,
                markevery=(number * apart // len(records), apart),
                label=_label(record, records),
            )
        if column == "share":
            axes.set_ylim(0, 1.02)
        else:
            log_scale(axes)
        axes.set_ylabel(title)
    grid[-1].set_xlabel("units between x_l and x_L" if "product" in panels else "unit l")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _positive(values):
    """Numbers that a logarithmic axis can show; the others become gaps."""
    return [value or math.nan for value in values]


def _by_order(records):
    """(order, records), but for orders of which there is only a network with identity shortcuts
    while others have more to compare.
    """
    orders: dict[str, list[dict]] = {}
    for record in records:
        orders.setdefault(record["order"], []).append(record)
    several = [
        (order, group)
        for order, group in orders.items()
        if len(group) > 1 or group[0]["shortcut"] != "identity"
    ]
    return several or orders.items()


def _name(record):
    return f"{record['model']}, {record['order']}, {_shortcut(record)}"


def _shortcut(record):
    return "plain" if record["shortcut"] == PLAIN else record["shortcut"]


def _label(record, records):
    """What tells a network from the others of its picture."""
    several = len({(one["model"], one["order"]) for one in records}) > 1
    return _name(record) if several else _shortcut(record)


def _times(record, column, of=0, over=-1):
    return f"{_ratio(record['units'][column], of, over):.3g}"


def _ratio(values, of=0, over=-1):
    return values[of] / values[over] if values[over] else math.nan


def _by_layer(record):
    """By what the gradient's norm is multiplied in a weight layer, in the geometric mean."""
    norms = record["units"]["backward"]
    return _ratio(norms) ** (1 / (record["layers"] * max(len(norms) - 1, 1)))
