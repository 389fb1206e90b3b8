"""`python -m gluon_resnetv2 profile MODEL`: where the time of a step goes, as text."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence

from gluon_resnetv2 import machine
from gluon_resnetv2.cli import aligned, answers, run_module
from gluon_resnetv2.engines import choice
from gluon_resnetv2.engines.native import library
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.profiling import child
from gluon_resnetv2.profiling.layers import layers_of
from gluon_resnetv2.profiling.verbose import Primitive, parse
from gluon_resnetv2.spec import IMAGE_SIZE_MAX, IMAGE_SIZES, named

LAYERS, OPERATORS = 12, 10  # that are shown: the slowest


def main(options: argparse.Namespace) -> int:
    """Profiles in a process of its own, and prints the report.

    Raises:
        UserError: an option makes no sense, or MXNet was built without oneDNN.
    """
    switches = {
        name: getattr(options, name)
        for name in ("order", "shortcut", "unit", "widening")
        if getattr(options, name) is not None
    }
    spec = named(options.model, in_channels=options.in_channels, **switches)
    for name in ("batch_size", "steps", "image_size"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= IMAGE_SIZE_MAX:
            raise UserError(
                f"--{name.replace('_', '-')} must be 1 to {IMAGE_SIZE_MAX}, not {value}"
            )
    size = options.image_size or IMAGE_SIZES[spec.stem]
    engine = options.engine
    if engine == "native":
        library.load()  # here, where what it lacks can be told
    elif engine == "auto":
        fault = _native_fault(spec, size, options)
        engine = "mxnet" if fault else "native"
        print(f"engine {engine}{f' (not native: {fault})' if fault else ''}", file=sys.stderr)
    job = {
        "model": options.model,
        "switches": switches,
        "batch_size": options.batch_size,
        "image_size": size,
        "in_channels": options.in_channels,
        "steps": options.steps,
        "dtype": options.dtype,
        "inference": options.inference,
        "engine": engine,
    }
    steps, answer = run(job)
    print(report(job, steps, answer))
    return 0


def _native_fault(spec, size, options) -> str:
    net = ResNetV2(spec, dtype=options.dtype)
    net.initialize()
    shape = (options.in_channels, size, size)
    return choice.native_fault(net, shape, options.dtype, not options.inference)


def run(job: dict) -> tuple[list[list[Primitive]], dict]:
    """The primitives of each step, and what the child says.

    Raises:
        UserError: it fails, or executes nothing by oneDNN.
    """
    # At its exit MXNet removes the file that its profiler was given, whatever it is, and writes a
    # trace that nobody asked for.
    with tempfile.TemporaryDirectory() as scratch:
        job = {**job, "trace": os.path.join(scratch, "trace.json")}
        printed = run_module(child.__name__, job, "the profiled process failed", DNNL_VERBOSE="1")
    counted, _, _ = printed.partition(child.END)
    steps = [parse(part) for part in counted.split(child.MARK)[1:]]
    if not any(steps):
        raise UserError("nothing was computed by oneDNN; is this the CPU wheel, on x86?")
    (answer,) = answers(printed)
    return steps, answer


def report(job: dict, steps: Sequence[Sequence[Primitive]], answer: dict) -> str:
    """The whole text."""
    total = 1000 * statistics.median(answer["seconds"])
    inside = sum(p.milliseconds for step in steps for p in step) / len(steps)
    what = "inference" if job["inference"] else "a training step"
    spread = f"{1000 * min(answer['seconds']):.1f} to {1000 * max(answer['seconds']):.1f}"
    switches = "".join(f" {value}" for value in job["switches"].values())
    size, kind = job["image_size"], "grey " if job["in_channels"] == 1 else ""
    ceilings = answer["ceilings"]
    head = (
        f"{job['model']}{switches}, {what}: {job['batch_size']} {kind}images of {size}x{size}, "
        f"{job['dtype']}, {job['engine']} engine, {machine.cpus()} CPUs\n"
        f"{total:.1f} ms, the median of {len(steps)} ({spread}): "
        f"{1000 * job['batch_size'] / total:.4g} images/s; {inside:.1f} ms of it in oneDNN\n"
        f"this machine: {ceilings['gflops']:.0f} GFLOP/s in a {job['dtype']} matrix product, "
        f"{ceilings['gbytes']:.1f} GB/s in copying"
    )
    blocks = [head, "By primitive and kernel\n" + _by_kernel(steps, total, ceilings)]
    layers = [layers_of(step, answer["nodes"]) for step in steps]
    blocks.append("By stage\n" + _by_stage(steps, layers))
    blocks.append(f"The {LAYERS} slowest layers\n" + _by_layer(steps, layers))
    blocks.append(
        f"MXNet's operators, each run alone: the {OPERATORS} slowest\n"
        + _by_operator(answer["operators"])
    )
    blocks.append("\n".join(_verdict(steps, layers, total)))
    return "\n\n".join(blocks)


def _by_kernel(steps, total, ceilings):
    groups = defaultdict(list)
    for step in steps:
        for primitive in step:
            groups[primitive.kind, primitive.direction, primitive.kernel].append(primitive)
    rates = ("GFLOP/s", "of peak", "GB/s", "of copy")
    lines = [("primitive", "", "kernel", "calls", "ms", "share", *rates, "")]
    for (kind, direction, kernel), same in _slowest(groups, len(groups)):
        spent = sum(p.milliseconds for p in same)
        milliseconds = spent / len(steps)
        flag = "REFERENCE" if same[0].slow else "layout" if kind == "reorder" else ""
        lines.append((
            kind, direction, kernel, f"{len(same) / len(steps):.0f}", f"{milliseconds:.2f}",
            f"{milliseconds / total:.1%}",
            *_rate(sum(p.operations for p in same), spent, ceilings["gflops"]),
            *_rate(sum(p.bytes for p in same), spent, ceilings["gbytes"]), flag,
        ))  # fmt: skip
    return aligned(lines, range(3, 10))


def _rate(count, milliseconds, ceiling):
    """10^9 a second, and its share of the ceiling; nothing of what oneDNN's clock takes for 0."""
    if not count or not milliseconds:
        return "", ""
    rate = 1e-6 * count / milliseconds
    return f"{rate:.3g}", f"{rate / ceiling:.0%}"


def _slowest(groups, count):
    def milliseconds(item):
        return -sum(p.milliseconds for p in item[1])

    return sorted(groups.items(), key=milliseconds)[:count]


def _by_stage(steps, layers):
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for step, names in zip(steps, layers):
        back = False
        for primitive, layer in zip(step, names):
            back = back or primitive.direction.startswith("backward")
            found = re.match(r"stage\d+", layer)
            stage = found[0] if found else "stem and head"
            sums[stage][back] += primitive.milliseconds / len(steps)
    lines: list[tuple[str, ...]] = [("", "forward ms", "backward ms")]
    lines += [(stage, *(f"{ms:.2f}" for ms in pair)) for stage, pair in sorted(sums.items())]
    return aligned(lines, (1, 2))


def _by_layer(steps, layers):
    groups = defaultdict(list)
    for step, names in zip(steps, layers):
        for primitive, layer in zip(step, names):
            groups[_layer_of(layer)].append(primitive)
    lines = [("layer", "ms", "of which", "kernels")]
    for layer, same in _slowest(groups, LAYERS):
        parts: dict[str, float] = defaultdict(float)
        for primitive in same:
            parts[primitive.what] += primitive.milliseconds / len(steps)
        largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
        lines.append((
            layer or "(unknown)",
            f"{sum(parts.values()):.2f}",
            ", ".join(f"{name} {ms:.2f}" for name, ms in largest),
            ", ".join(sorted({p.kernel for p in same if p.kind != "reorder"})),
        ))  # fmt: skip
    return aligned(lines, (1,))


def _layer_of(node):
    """A node's name without what MXNet appends: "stage1_unit1_conv1" of "..._fwd"."""
    return re.sub(r"_fwd$|_?_plus\d+$", "", node)


def _by_operator(operators):
    slowest = sorted(operators.items(), key=lambda item: -item[1][1])[:OPERATORS]
    lines = [("operator", "calls", "ms")]
    lines += [(name, f"{calls:.0f}", f"{ms:.2f}") for name, (calls, ms) in slowest]
    return aligned(lines, (1, 2))


def _verdict(steps, layers, total):
    slow: dict[str, float] = defaultdict(float)
    reorders = 0.0
    where = defaultdict(set)
    for step, names in zip(steps, layers):
        for primitive, layer in zip(step, names):
            if primitive.kind == "reorder" and not primitive.slow:
                reorders += primitive.milliseconds / len(steps)
            if primitive.slow:
                key = f"{primitive.what} by {primitive.kernel}"
                slow[key] += primitive.milliseconds / len(steps)
                where[key].add(_layer_of(layer) or "(unknown)")
    if not slow:
        yield "no reference kernel"
    for key, milliseconds in sorted(slow.items(), key=lambda item: -item[1]):
        places = sorted(where[key])
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        yield (
            f"REFERENCE kernel: {key}, {milliseconds:.2f} ms ({milliseconds / total:.1%}), in "
            f"{', '.join(places[:3])}{more}"
        )
    yield f"copies between layouts: {reorders:.2f} ms ({reorders / total:.1%})"
