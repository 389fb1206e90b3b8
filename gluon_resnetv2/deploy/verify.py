"""Is what is served what was trained? Runs a pair in every way MXNet has, and compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.checkpoint import load_parameters
from gluon_resnetv2.deploy.artifact import Artifact, reference_images
from gluon_resnetv2.deploy.runtimes import inputs
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import write_json
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec

TOLERANCE = 1e-5  # largest difference over largest logit, float32
# A network may magnify rounding beyond that (a thousand layers after two steps: 1e-4). It is then
# allowed so many times what float32 changes in its training graph, and never 1e-3.
ROUNDINGS = 3
RECORDED = 10  # times the tolerance: the logits recorded at export may be another machine's
PLAIN = "NONE"  # MXNET_SUBGRAPH_BACKEND without fusion
# Module, simple_bind and the C API fuse by MXNET_SUBGRAPH_BACKEND, which is MKLDNN by default.
# Gluon does not fuse unless asked to, by optimize_for.
RUNTIMES = [
    ("SymbolBlock", None),
    ("Module", None),
    ("Module", PLAIN),
    ("simple_bind", None),
    ("simple_bind", PLAIN),
    ("C predict API", None),
    ("C predict API", PLAIN),
]
FUSED = {"Module", "simple_bind", "C predict API"}
AT_EXPORT = "logits recorded at export"  # compared beside the runtimes
PATIENCE = 900  # seconds for one runtime


@dataclass(frozen=True)
class Check:
    """One comparison: `difference` is relative to the largest reference logit."""

    runtime: str
    difference: float | None  # None: it gave no answer
    tolerance: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        return self.difference is not None and self.difference <= self.tolerance

    def __str__(self):
        if self.difference is None:
            return f"FAILED  {self.runtime:<34} {self.failure}"
        verdict = "ok    " if self.passed else "FAILED"
        return f"{verdict}  {self.runtime:<34} largest relative difference {self.difference:.1e}"


def verify(artifacts: Sequence[Artifact], shape: tuple | None = None) -> list[list[Check]]:
    """Compares each artifact in every runtime with its training graph.

    The training graph is the network that the manifest's spec describes, run operator by operator
    with the exported parameters; for a pair without a manifest, the pair itself, run by simple_bind
    without fusion. Each runtime has a process of its own, which all artifacts share.

    Args:
        shape: (channels, height, width) for artifacts without a manifest; by default the first of
            32, 224 and 299 pixels that fits.

    Returns:
        A list of checks for each artifact.

    Raises:
        UserError: a pair can't be read, or takes no image.
    """
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for index, artifact in enumerate(artifacts):
            if shape and artifact.manifest:
                raise UserError(f"{artifact.folder} says its own shape; leave --shape out")
            images = Path(folder) / f"images{index}.npy"
            image_shape = artifact.input_shape if artifact.manifest else _shape(artifact, shape)
            np.save(images, reference_images(image_shape))
            jobs.append(
                {
                    "symbol": str(artifact.symbol),
                    "params": str(artifact.params),
                    "images": str(images),
                }
            )
        folders = [Path(folder) / str(index) for index in range(len(RUNTIMES))]
        with ThreadPoolExecutor(max_workers=2) as pool:  # starting up takes them most of the time
            answers = dict(
                zip(
                    RUNTIMES,
                    pool.map(lambda runtime, to: _run(runtime, jobs, to), RUNTIMES, folders),
                )
            )
    return [
        _checks(artifact, {runtime: answer[index] for runtime, answer in answers.items()})
        for index, artifact in enumerate(artifacts)
    ]


def _checks(artifact, answers):
    """The checks of one artifact, from its (logits, failure) in each runtime."""
    checks, tolerance = [], TOLERANCE
    if artifact.manifest:
        reference, rounding = _training_graph(artifact)
        tolerance = min(max(TOLERANCE, ROUNDINGS * rounding), 100 * TOLERANCE)
        recorded = np.asarray(artifact.manifest["reference"]["logits"], "float32")
        checks.append(_compare(AT_EXPORT, recorded, reference, RECORDED * tolerance))
    else:
        reference, failure = answers["simple_bind", PLAIN]
        if reference is None:
            raise UserError(f"{artifact.symbol} does not run: {failure}")
    for (way, backend), (logits, failure) in answers.items():
        name = f"{way}, no fusion" if backend else way
        if logits is None:
            checks.append(Check(name, None, tolerance, failure))
        else:
            checks.append(_compare(name, logits, reference, tolerance))
    return checks


def record(artifact: Artifact, checks: Sequence[Check]) -> None:
    """Writes the checks into the artifact's manifest.

    Raises:
        OSError: the manifest can't be written; it is then as it was.
    """
    entries = [
        {
            "runtime": c.runtime,
            "difference": c.difference,
            "tolerance": c.tolerance,
            "passed": c.passed,
        }
        for c in checks
    ]
    write_json(artifact.folder / "manifest.json", {**artifact.manifest, "verification": entries})


def report(artifact: Artifact, shape: tuple | None = None) -> bool:
    """Verifies, prints what came of it, records it in the manifest; returns whether all passed.

    Raises:
        UserError: as `verify`.
    """
    (checks,) = verify([artifact], shape)
    print(
        f"{artifact.symbol} against the training graph:"
        if artifact.manifest
        else f"{artifact.symbol} against itself without fusion:"
    )
    for check in checks:
        print(f"  {check}")
    if artifact.manifest:
        try:
            record(artifact, checks)
        except OSError as error:
            print(f"  not recorded in manifest.json: {error.strerror}")
    if all(check.passed for check in checks):
        print(f"verified: every runtime gives the same logits, to {checks[-1].tolerance:.1e}")
        return True
    failed = {check.runtime for check in checks if not check.passed} - {AT_EXPORT}
    if not failed:
        cause = "the parameters are not those that were exported; export again"
    elif failed <= FUSED:
        cause = explain(artifact) or "only without fusion (MXNET_SUBGRAPH_BACKEND=NONE) is it right"
    else:
        cause = "do not serve it in a runtime that failed"
    print(f"NOT verified: {cause}")
    return False


def explain(artifact: Artifact) -> str:
    """Why MXNet's fusing backend computes this pair wrongly, or "" where no reason is known."""
    graph = json.loads(artifact.symbol.read_text(encoding="utf-8"))
    nodes, readers = graph["nodes"], {}
    for node in nodes:
        for source, *_ in node["inputs"]:
            readers.setdefault(source, []).append(node)
    for index, node in enumerate(nodes):
        reads = readers.get(index, [])
        others = [reader["name"] for reader in reads if reader["op"] != "BatchNorm"]
        norms = [reader["name"] for reader in reads if reader["op"] == "BatchNorm"]
        if node["op"] == "Convolution" and norms and len(reads) > 1:
            return (
                f"MXNet's MKLDNN backend folds {norms[0]} into the convolution {node['name']} "
                f"although {' and '.join(others) or norms[1]} reads its output too; only without "
                "fusion (MXNET_SUBGRAPH_BACKEND=NONE, or SymbolBlock) is this pair computed right"
            )
    return ""


def _training_graph(artifact):
    """The network's own logits, and the relative change that float32 makes to them."""
    net = ResNetV2(Spec.from_dict(artifact.manifest["spec"]))
    load_parameters(net, artifact.params)
    images = reference_images(artifact.input_shape)
    logits = net(mx.nd.array(images)).asnumpy()
    net.cast("float64")
    exact = net(mx.nd.array(images, dtype="float64")).asnumpy()
    return logits, _difference(logits, exact)


def _difference(logits, reference):
    return float(np.abs(logits - reference).max() / max(np.abs(reference).max(), 1e-30))


def _compare(name, logits, reference, tolerance):
    if logits.shape != reference.shape:
        return Check(name, None, tolerance, f"gave {logits.shape}, not {reference.shape}")
    if not (np.isfinite(logits).all() and np.isfinite(reference).all()):
        return Check(name, None, tolerance, "gave a logit that is not finite")
    return Check(name, _difference(logits, reference), tolerance)


def _run(runtime, jobs, folder):
    """[(logits, None) or (None, failure)] of each job, from a process of its own."""
    way, backend = runtime
    environment = {k: v for k, v in os.environ.items() if k != "MXNET_SUBGRAPH_BACKEND"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # this package, installed or not
    if backend:
        environment["MXNET_SUBGRAPH_BACKEND"] = backend
    folder.mkdir()
    paths = [folder / f"{index}.npy" for index in range(len(jobs))]
    jobs = [{**job, "logits": str(path)} for job, path in zip(jobs, paths)]
    try:
        process = subprocess.run(
            [sys.executable, "-m", "gluon_resnetv2.deploy.runtimes", way],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            env=environment,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [(None, f"no answer within {PATIENCE} seconds")] * len(jobs)
    try:
        failures = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # it ended before it could say
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        failures = [f"the process ended with status {process.returncode}: {last}"] * len(jobs)
    return [
        (None, failure) if failure else (np.load(path), None)
        for failure, path in zip(failures, paths)
    ]


def _shape(artifact, shape):
    """`shape`, or the first usual one that the symbol takes."""
    try:
        symbol = mx.sym.load(str(artifact.symbol))
        images, _ = inputs(symbol, mx.nd.load(str(artifact.params)))
    except (mx.MXNetError, ValueError, AttributeError) as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(f"{artifact.symbol} and its parameters can't be read: {last}") from None
    for candidate in [shape] if shape else [(3, size, size) for size in (32, 224, 299)]:
        try:
            symbol.infer_shape(**{images: (1, *candidate)})
            return candidate
        except mx.MXNetError:
            continue
    raise UserError(
        f"{artifact.symbol} takes no image of shape {shape or '3,N,N'}; name it: --shape"
    )
