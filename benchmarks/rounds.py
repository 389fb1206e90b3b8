"""What comparisons have in common: ways that take turns, figures by round, tables and pictures.

A case is one network in one situation, as the dictionary that `case` makes and JSON holds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from gluon_resnetv2 import cli
from gluon_resnetv2.errors import UserError, last_line
from gluon_resnetv2.files import write_json
from gluon_resnetv2.machine import cpus
from gluon_resnetv2.spec import named

MORE_IS_BETTER = ("images/s",)  # units; of all others, less is
QUIET = 0.5  # load average above which something else computes here
PACKAGES = ("mxnet", "torch", "gluoncv", "onnxruntime", "openvino", "nncf", "onednn-cpu-gomp")


def at_least_1(text: str) -> int:
    """The number of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {number}")
    return number


def known(model: str) -> str:
    """The model of an option."""
    try:
        return named(model).name
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def usual_size(model: str) -> int:
    """Height and width of the images that a model is for."""
    return 32 if named(model).stem == "cifar" else 224


def parser(doc: str, ways: Sequence[str], models: Sequence[str] = ()) -> cli.Parser:
    """The options of every comparison.

    Args:
        doc: the module's docstring.
        models: those to compare by default; none where there is no choice.
    """
    made = cli.Parser(description=doc.splitlines()[0])
    if models:
        made.add_argument(
            "--models", nargs="+", type=known, default=list(models), help="as in train/"
        )
    made.add_argument("--ways", nargs="+", choices=ways, default=list(ways), metavar="WAY")
    made.add_argument("--rounds", type=at_least_1, default=5, help="processes of each way")
    made.add_argument("--threads", type=at_least_1, default=cpus(), help="that each way may use")
    made.add_argument("--output", metavar="NAME", help="writes NAME.json and NAME.png")
    return made


def compare(
    doc: str, options: argparse.Namespace, cases: Iterable[dict], load: float | None = None
) -> None:
    """Prints the cases as they are measured, and writes them where the options say so.

    Args:
        doc: the docstring of the module that measures: its first line and its last paragraph go
            with the figures.
        options: of `parser`.
        load: of the machine before all this began, if that is not now.
    """
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the processes inherit it
    document = {
        "title": doc.splitlines()[0],
        "method": " ".join(doc.strip().split("\n\n")[-1].split()),
        "machine": machine(),
        "threads": options.threads,
        "rounds": options.rounds,
        "load": load_before() if load is None else load,
        "cases": [],
    }
    print(f"{document['machine']}\n{conditions(document)}\n", flush=True)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    for one in _marked(cases, document["load"]):
        print(f"{one['title']}\n{text(one)}\n", flush=True)
        document["cases"].append(one)
        if options.output:  # after each case: the next one may take an hour
            write_json(f"{options.output}.json", document)
    if options.output:
        draw(document["cases"], f"{options.output}.png")


def conditions(document: dict) -> str:
    """Under what its cases were measured."""
    threads, count, load = document["threads"], document["rounds"], document["load"]
    text = f"Threads: {threads}; n = {count}; load {load:.1f} before it began."
    return f"{text} Something else ran, so ratios are marked *." if load > QUIET else text


def load_before() -> float:
    """The machine's load average now, before we add to it; warns where something else runs."""
    load = os.getloadavg()[0]
    if load > QUIET:
        print(
            f"warning: load {load:.1f} before we begin: something else runs, and ratios may be off",
            file=sys.stderr,
            flush=True,
        )
    return load


def _marked(cases: Iterable[dict], load: float) -> Iterator[dict]:
    return ({**one, "loaded": load > QUIET} for one in cases)


def read(path: Path) -> dict:
    """The document that `compare` wrote; those from before they had marks get them here."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return {**document, "cases": list(_marked(document["cases"], document["load"]))}


def machine() -> str:
    """The processor, and the versions of what is compared and installed."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if "model name" in key), model)
    found = [f"{model}, {cpus()} CPUs", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(found)


def alternate(
    ways: Iterable[str], count: int, measure: Callable[[str], object]
) -> tuple[dict[str, list], dict[str, str]]:
    """{way: what `measure(way)` gave in each round}, and {way: why it could not}; ways take turns.

    A way that fails once is left out of all rounds.
    """
    found, left_out = {way: [] for way in ways}, {}
    for _ in range(count):
        for way in list(found):
            try:
                value = measure(way)
            except Exception as error:  # of whatever the way is made of; the others go on
                left_out[way] = f"{type(error).__name__}: {last_line(error)}"
                del found[way]
            else:
                found[way].append(value)
    return found, left_out


def median_seconds(
    call: Callable[[], object],
    seconds: float,
    warm_up: int,
    before: Callable[[], object] = lambda: None,
) -> float:
    """The median of what calls take, at least 3 of them, for so many seconds.

    Args:
        warm_up: calls that don't count: the first ones compile, and lay out weights.
        before: is called before each, and does not count either.
    """
    for _ in range(warm_up):
        before()
        call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        before()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def case(
    title: str,
    unit: str,
    rounds: dict[str, list[float]],
    bases: Sequence[str],
    left_out: dict[str, str],
    differences: dict[str, float] | None = None,
) -> dict:
    """The figures of each way: by round, their median and range, and the ratios to `bases`.

    A ratio above 1 is better than the base. It is computed within each round, of neighbours in
    time, before the median is taken.

    Args:
        left_out: {way: why it has no figures}.
        differences: what a way's outputs differ by, where that can be said.
    """
    ways = {}
    for way, values in rounds.items():
        ways[way] = {"rounds": values, **_middle(values), "ratios": {}}
        for base in bases:
            if base in rounds:
                pairs = zip(values, rounds[base])
                ratios = [v / b if unit in MORE_IS_BETTER else b / v for v, b in pairs]
                ways[way]["ratios"][base] = _middle(ratios)
        if differences and way in differences:
            ways[way]["difference"] = differences[way]
    return {"title": title, "unit": unit, "ways": ways, "left_out": left_out}


def _middle(values):
    return {"median": statistics.median(values), "range": [min(values), max(values)]}


def cells(one: dict) -> list[list[str]]:
    """The table of a case, its header first."""
    ways = one["ways"]
    bases = next(iter(ways.values()))["ratios"] if ways else {}
    differ = any("difference" in values for values in ways.values())
    header = ["", one["unit"], "range", *(f"ratio to {base}" for base in bases)]
    lines = [header + ["difference"] * differ]
    for way, values in ways.items():
        line = [way, _figure(values["median"]), _range(values, _figure)]
        line += [
            f"{ratio(one, r)} ({_range(r, '{:.2f}'.format)})" for r in values["ratios"].values()
        ]
        if differ:
            line.append(f"{values['difference']:.1e}" if "difference" in values else "")
        lines.append(line)
    return lines


def ratio(one: dict, values: dict) -> str:
    """A ratio of a case, marked where the machine was loaded."""
    return f"{values['median']:.2f}{'*' * one.get('loaded', False)}"


def _figure(value):
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _range(values, form):
    return "-".join(map(form, values["range"]))


def _reasons(one: dict) -> list[str]:
    """A line for each way that has no figures."""
    return [f"left out: {way} ({why})" for way, why in one["left_out"].items()]


def text(one: dict) -> str:
    """A case for the terminal."""
    lines = cells(one)
    return "\n".join([cli.aligned(lines, range(1, len(lines[0]))), *_reasons(one)])


def markdown(one: dict) -> str:
    """A case for a page."""
    header, *lines = cells(one)
    ruler = ["---", *["---:"] * (len(header) - 1)]
    rows = [f"| {' | '.join(line)} |" for line in (header, ruler, *lines)]
    return "\n\n".join(["\n".join(rows), *_reasons(one)])


def draw(cases: Sequence[dict], path: str | Path) -> None:
    """The figures of every case, a panel for each, ours in a colour of their own."""
    from matplotlib.figure import Figure  # here, so that processes start from a small one

    from gluon_resnetv2.training.plots import GREY, VERMILION

    heights = [0.9 + 0.22 * len(one["ways"]) for one in cases]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    grid = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)
    for axes, one in zip(grid[:, 0], cases):
        ways = dict(reversed(one["ways"].items()))  # the first one on top
        medians = [values["median"] for values in ways.values()]
        spread = [abs(v["median"] - end) for v in ways.values() for end in v["range"]]
        bars = axes.barh(
            list(ways),
            medians,
            color=[VERMILION if way.startswith("ours") else GREY for way in ways],
            xerr=[spread[::2], spread[1::2]],
            error_kw={"linewidth": 1},
        )
        axes.bar_label(bars, [f" {_figure(median)}" for median in medians], fontsize=8)
        axes.margins(x=0.12)
        axes.tick_params(labelsize=8)
        better = "more" if one["unit"] in MORE_IS_BETTER else "less"
        axes.set_title(f"{one['title']}: {one['unit']}, {better} is better", fontsize=9, loc="left")
    figure.savefig(path, dpi=120)
