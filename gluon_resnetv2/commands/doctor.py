"""What this machine offers MXNet, and how each known hazard of MXNet 1.9.1 stands here.

MXNet is asked in a process of its own: a library that does not load, or ends the process that
loads it, is something to report.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from gluon_resnetv2 import cli, fixes, machine
from gluon_resnetv2.errors import UserError

WIDTH = 100  # columns
PATIENCE = 120  # seconds

HANDLED, ACTIVE, ABSENT, BROKEN = "handled", "active", "n/a", "broken"


class Row(NamedTuple):
    """One line of the report.

    The state of a hazard is HANDLED (by us), ACTIVE (yours to mind) or ABSENT (does not apply
    here); that of MXNet BROKEN if it cannot be used; that of anything else empty.
    """

    section: str
    name: str
    text: str
    state: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> int:
    """Prints the report. Returns 0 if MXNet can be used here, 1 if not."""
    rows = report()
    print(render(rows))
    return int(any(row.state == BROKEN for row in rows))


def report() -> list[Row]:
    """Everything known, section by section. Takes some seconds, most of them MXNet's import."""
    found = _ask_mxnet()
    hazards = sorted(_hazards(found), key=lambda row: [ACTIVE, HANDLED, ABSENT].index(row.state))
    return [*_versions(found), *_processor(found), *_gpus(), *hazards]


def render(rows: list[Row]) -> str:
    """`rows` as text of at most 100 columns."""
    sections = []
    for section in dict.fromkeys(row.section for row in rows):
        chosen = [row for row in rows if row.section == section]
        names = max(len(row.name) for row in chosen)
        states = max(len(row.state) for row in chosen)
        lines = [section]
        for row in chosen:
            state = f"{row.state:<{states}}  " if states else ""
            head = f"  {row.name:<{names}}  {state}"
            lines.append(textwrap.fill(head + row.text, WIDTH, subsequent_indent=" " * len(head)))
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


# Asking MXNet


def _ask_mxnet() -> dict:
    """What `answer` found, with what oneDNN says of itself; or an `error`, why MXNet fails."""
    path = f"import sys; sys.path[:] = {sys.path!r}"
    try:
        child = subprocess.run(
            [
                sys.executable,
                "-c",
                f"{path}; from gluon_resnetv2.commands import doctor; doctor.answer()",
            ],
            env={**os.environ, "DNNL_VERBOSE": "1"},
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"its import does not end within {PATIENCE} seconds"}
    if child.returncode < 0:
        return {"error": f"its import ends the process, by signal {-child.returncode}"}
    if child.returncode:
        return {"error": child.stderr.strip().rpartition("\n")[2]}
    (found,) = cli.answers(child.stdout) or [{}]
    for line in child.stdout.splitlines():
        if line.startswith("dnnl_verbose,info,oneDNN v"):
            found["onednn"] = line.split()[1][1:]
        elif line.startswith("dnnl_verbose,info,cpu,isa:"):
            found["isa"] = line.split(":", 1)[1]
    return found


def answer() -> None:
    """Prints what MXNet tells of itself as a line of JSON; or why it cannot be imported."""
    try:
        found = _ask_here()
    except machine.CannotLoad as error:
        found = {"error": str(error)}
    cli.answer(found)


def _ask_here() -> dict:
    import mxnet as mx
    import numpy as np

    from gluon_resnetv2.engines.native import library

    one = mx.nd.ones((1, 1, 1, 1))
    one = mx.nd.Convolution(one, one, kernel=(1, 1), num_filter=1, no_bias=True)
    found = {
        "version": mx.__version__,
        "features": [feature.name for feature in mx.runtime.feature_list() if feature.enabled],
        "amx": fixes.amx,
        "native": library.fault(),
        "converts": np.array_equal(np.asarray(one), np.ones((1, 1, 1, 1))),
    }
    if fixes.threads:
        found["threads"] = str(fixes.threads)
    return found


# The sections


def _versions(found: dict) -> Iterator[Row]:
    def row(name, text, state=""):
        return Row("Versions", name, text, state)

    yield row("Python", f"{platform.python_version()} on {platform.platform()}")
    if "error" in found:
        yield row("MXNet", found["error"], BROKEN)
    else:
        wheel = " and ".join(machine.wheels()) or "none, built from source"
        yield row("MXNet", f"{found['version']}, wheel: {wheel}")
        yield row("  built with", ", ".join(found["features"]))
        yield row("  oneDNN", found.get("onednn", "not in use"))
    for package in ("numpy", "scipy", "gluoncv", "onnx", "torch"):
        yield row(package, _version(package) or "not installed")


def _processor(found: dict) -> Iterator[Row]:
    def row(name, text):
        return Row("Processor", name, text)

    yield row("CPUs", f"{machine.cpus()} usable of {os.cpu_count()}")
    if "threads" in found:
        yield row("OpenMP threads", found["threads"])
    if "isa" in found:
        yield row("oneDNN uses", found["isa"])
    if "native" in found:
        mxnet = f"mxnet: {found['native']}"
        native = (
            f"native where it can compute a network, with oneDNN of {_version('onednn-cpu-gomp')}"
        )
        yield row("--engine auto", mxnet if found["native"] else native)


def _gpus() -> Iterator[Row]:
    def row(name, text):
        return Row("GPUs", name, text)

    installed = machine.wheels()
    if machine.GPU_WHEEL in installed:
        brought, needed = len(machine.cuda_libraries()), len(machine.CUDA_LIBRARIES)
        yield row("CUDA libraries", f"{brought} of {needed} from NVIDIA's wheels")
    elif machine.CPU_WHEEL in installed:
        yield row("wheel", "for CPUs only; the extra cu112 has the one for GPUs")
    try:
        gpus = machine.gpus()
    except UserError as error:
        yield row("driver", str(error))
        return
    if not gpus:
        yield row("driver", "installed, and shows no GPU")
    for index, gpu in enumerate(gpus):
        capability = ".".join(str(number) for number in gpu.capability)
        kernels = "kernels" if gpu.supported else "no kernels"
        text = f"compute capability {capability}, for which {machine.GPU_WHEEL} has {kernels}"
        yield row(f"GPU {index}", f"{gpu.name}, {text}")


def _hazards(found: dict) -> Iterator[Row]:
    def row(name, state, text):
        return Row("Hazards of MXNet 1.9.1", name, text, state)

    for line in fixes.too_late:
        yield row("imported too late", ACTIVE, line)

    # Wrong answers
    yield row(
        "fused convolution",
        HANDLED if os.environ.get("MXNET_SUBGRAPH_BACKEND") == "NONE" else ACTIVE,
        "Module and the C API compute wrongly where a convolution feeds a BatchNorm and something "
        "else: run `verify` on every export; MXNET_SUBGRAPH_BACKEND=NONE avoids it",
    )

    # What the age of MXNet brings
    yield row(
        "numpy.bool, .float, .int",
        HANDLED,
        "used by MXNet and GluonCV, gone since numpy 1.24: given back when MXNet is imported",
    )
    yield row(
        "distutils",
        HANDLED if sys.version_info >= (3, 12) else ABSENT,
        "used by MXNet and GluonCV, gone since Python 3.12: setuptools' or a stand-in is used",
    )
    if "converts" in found:
        yield row(
            "numpy.asarray(NDArray)",
            HANDLED if found["converts"] else ACTIVE,
            "fails in plain MXNet: NDArray is given the method that numpy looks for",
        )
    yield row(
        "mx.nd.array",
        HANDLED if _version("scipy") else ABSENT,
        "uses a name that SciPy 1.8 deprecated and 2.0 removes: MXNet is given the present one",
    )
    gluoncv, torch, onnx = (_version(package) for package in ("gluoncv", "torch", "onnx"))
    yield row(
        "GluonCV beside PyTorch 2",
        HANDLED if gluoncv and torch and _release(torch) >= (2, 0) else ABSENT,
        "refuses to be imported: it is told that there is no PyTorch",
    )
    yield row(
        "gluoncv.auto",
        ACTIVE if gluoncv and sys.version_info >= (3, 10) else ABSENT,
        "cannot be imported on Python 3.10 and newer; the rest of GluonCV can",
    )
    yield row(
        "ONNX export",
        HANDLED if onnx and _release(onnx) >= (1, 19) else ABSENT,
        "reads a module that onnx 1.19 dropped: MXNet is given it",
    )

    # Speed
    if "amx" in found:
        yield row(
            "AMX",
            {"on": HANDLED, "not on this processor": ABSENT}.get(found["amx"], ACTIVE),
            f"is off unless Linux is asked and oneDNN is told; here: {found['amx']}",
        )
    yield row(
        "half of the CPUs",
        ABSENT if machine.hyper_threads() else HANDLED,
        "is left to hyper-threading even where there is none: MXNet is told to use all, unless "
        "OMP_NUM_THREADS is set",
    )

    # What MXNet does unasked
    yield row(
        "exit with pending work",
        HANDLED,
        "of custom operators hangs for ever: it is waited for",
    )
    yield row(
        "backward mirroring",
        ACTIVE if os.environ.get("MXNET_BACKWARD_DO_MIRROR", "0") != "0" else ABSENT,
        "MXNET_BACKWARD_DO_MIRROR saves memory in Module only, none in Gluon",
    )
    yield row(
        "DataLoader threads",
        ACTIVE,
        "thread_pool=True races on RecordIO files and on a transform's first call: use processes",
    )
    yield row(
        "ImageRecordIter",
        ACTIVE,
        "fills its last batch from the start again: leave out the last `pad` samples",
    )
    yield row(
        "Module.get_params",
        ACTIVE,
        "gives old BatchNorm statistics while work is pending: call mx.nd.waitall() first",
    )
    yield row(
        "max pooling",
        ACTIVE,
        "has wrong gradients under autograd.record(train_mode=False) in float32 on CPUs",
    )
    yield row(
        "Trainer.load_states",
        ACTIVE,
        "unpickles, which runs code: only of files that you trust",
    )


# The machine


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
