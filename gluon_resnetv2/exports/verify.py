"""Is what is served what was trained? Runs a pair in every way MXNet has, and compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import ChainMap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from gluon_resnetv2.cli import answers, printable
from gluon_resnetv2.engines import choice
from gluon_resnetv2.engines.forms import misfolded
from gluon_resnetv2.engines.native.program import Program
from gluon_resnetv2.engines.reference import (
    TOLERANCE,
    Check,
    compare,
    logits,
    recorded,
    reference_images,
    training_graph,
)
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.artifact import Artifact, load
from gluon_resnetv2.formats.manifest import MANIFEST, write_manifest
from gluon_resnetv2.formats.old_graph import modern
from gluon_resnetv2.formats.pair import Pair

PLAIN = "NONE"  # MXNET_SUBGRAPH_BACKEND without fusion
C_API = "C predict API"
# Module, simple_bind and the C API fuse by MXNET_SUBGRAPH_BACKEND, which is MKLDNN by default.
# Gluon does not fuse unless asked to, by optimize_for.
RUNTIMES = [
    ("SymbolBlock", None),
    ("Module", None),
    ("Module", PLAIN),
    ("simple_bind", None),
    ("simple_bind", PLAIN),
    (C_API, None),
    (C_API, PLAIN),
    ("Predictor", None),  # chooses between the graph and its fused form
]
NATIVE = ("native engine", None)  # where it can be had
ONNX = ("ONNX Runtime", None)  # where there is a NAME.onnx
FUSING = {"Module", "simple_bind", C_API}
AT_EXPORT = "logits recorded at export"  # compared beside the runtimes
PATIENCE = 900  # seconds for the runtimes of one process


def verify(
    artifacts: Sequence[Artifact], shape: tuple | None = None, engine: str = "auto"
) -> list[list[Check]]:
    """Holds what each artifact computes in every runtime against what was trained.

    float32 is held against the training graph: the network that the manifest's spec describes, run
    operator by operator with the exported parameters. Other precisions are held against the logits
    that the network gave in float32, at export, for the calibration images; a pair without a
    manifest against itself, run by simple_bind without fusion. Each runtime has a process of its
    own, which all artifacts share.

    Args:
        shape: of an image, for artifacts without a manifest, as for `Artifact.read`.
        engine: "native" has the native operator checked as well; so has "auto", where it can be had
            and takes the graph.

    Returns:
        A list of checks for each artifact.

    Raises:
        UserError: a pair can't be read, or takes no image.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs, known, jobs = [], [], []
        for index, artifact in enumerate(artifacts):
            if shape and artifact.manifest:
                raise UserError(f"{artifact.folder} says its own shape; leave --shape out")
            pair = artifact.read(shape)
            pairs.append(pair)
            images = Path(folder) / f"images{index}.npy"
            known.append(recorded(artifact) if artifact.manifest else None)
            np.save(images, known[-1][0] if known[-1] else reference_images(pair.shape))
            paths = {"symbol": artifact.symbol, "params": artifact.params, "images": images}
            jobs.append({name: str(path) for name, path in paths.items()})
        natively = [engine == "native" or not without_native(pair, engine) for pair in pairs]
        native = [NATIVE] if any(natively) else []
        onnx = [ONNX] if any(a.onnx for a in artifacts) else []
        # Starting up takes most of the time, and is done once for each setting of MXNet's.
        together = [[one for one in RUNTIMES if one[1] == backend] for backend in (None, PLAIN)]
        with ThreadPoolExecutor(max_workers=2) as pool:
            processes: list[subprocess.Popen] = []
            stop = threading.Event()
            try:
                run = partial(_run, folder=Path(folder), jobs=jobs, processes=processes, stop=stop)
                found = ChainMap(*pool.map(run, filter(None, (*together, native, onnx))))
                answers = {runtime: found[runtime] for runtime in (*RUNTIMES, *native, *onnx)}
            except BaseException:  # such as Ctrl-C: the pool would wait for all of them
                pool.shutdown(wait=False, cancel_futures=True)
                stop.set()
                for process in processes:
                    process.kill()
                raise
    return [
        _checks(
            *about,
            {
                runtime: answer[index]
                for runtime, answer in answers.items()
                if natively[index] or runtime != NATIVE
            },
        )
        for index, about in enumerate(zip(artifacts, pairs, known))
    ]


def without_native(pair: Pair, engine: str) -> str:
    """Why the native operator is not among the runtimes, or ""."""
    if engine == "mxnet":
        return "--engine mxnet"
    _, fault = choice.native_library()
    if not fault:
        try:
            Program(pair.symbol(), pair.shape[0], training=False)
        except UserError as error:
            fault = choice.without_advice(error)
    return fault


def _checks(artifact, pair, known, answers):
    """The checks of one artifact, from what is `recorded` and its answers in each runtime."""
    checks, manifest = [], artifact.manifest
    output, tolerance = "logits", {"difference": TOLERANCE}
    if manifest:
        output, (_, expected, tolerance) = manifest.output, known
        if manifest.precision == "float32":
            net = training_graph(manifest.spec, pair, artifact.params)
            trained = logits(net, reference_images(manifest.input.shape))
            checks.append(compare(AT_EXPORT, expected, trained, tolerance))
            expected, tolerance = trained, manifest.tolerance
    else:
        expected, failure = answers["simple_bind", PLAIN]
        if expected is None:
            raise artifact.does_not_run(failure)
    for runtime, (outputs, failure) in answers.items():
        way, backend = runtime
        if (runtime == ONNX and not artifact.onnx) or (way == C_API and not pair.kinds):
            continue
        name = f"{way}, no fusion" if backend else way
        if outputs is None:
            checks.append(Check(name, None, None, tolerance, failure))
        else:
            checks.append(compare(name, outputs, expected, tolerance, output))
    return checks


def record(artifact: Artifact, checks: Sequence[Check]) -> None:
    """Writes the checks into the artifact's manifest.

    Raises:
        OSError: the manifest can't be written; it is then as it was.
    """
    entries = [
        {
            "runtime": check.runtime,
            "difference": check.difference,
            "agreement": check.agreement,
            "tolerance": check.tolerance,
            "passed": check.passed,
        }
        for check in checks
    ]
    manifest = replace(artifact.own_manifest(), verification=entries)
    # Of one that is not covered nobody knows that it is as it was written.
    write_manifest(artifact.folder, manifest.to_dict(), cover=manifest.covered)


def report(artifact: Artifact, shape: tuple | None = None, engine: str = "auto") -> bool:
    """Verifies, prints what came of it, records it in the manifest; returns whether all passed.

    Raises:
        UserError: as `verify`.
    """
    (checks,) = verify([artifact], shape, engine)
    if load(artifact.params).manifest != artifact.manifest:
        raise UserError(f"{artifact.folder} was written anew meanwhile; verify it again")
    print(f"{printable(str(artifact.symbol))} against {_against(artifact)}:")
    for check in checks:
        print(f"  {check}")
    if C_API not in {check.runtime for check in checks}:
        print(f"  left out: {C_API}, which takes only names that begin with arg: or aux:")
    if engine == "auto" and NATIVE[0] not in {check.runtime for check in checks}:
        print(f"  left out: {NATIVE[0]}: {without_native(artifact.read(shape), engine)}")
    artifact.warn()
    if artifact.manifest:
        if not artifact.manifest.covered:
            print(
                f"  not covered: {MANIFEST}, of an earlier version, has no SHA-256 of itself; its "
                "class names, mean, std and crop may be damaged; export again"
            )
        try:
            record(artifact, checks)
        except OSError as error:
            print(f"  not recorded in manifest.json: {error.strerror}")
    if all(check.passed for check in checks):
        ((criterion, most),) = checks[-1].tolerance.items()
        alike = f"{criterion} of {most:.1e} at most"
        if criterion == "agreement":
            same = min(round(check.images * (check.agreement or 0)) for check in checks)
            alike = f"float32's class for at least {same} of {checks[-1].images} images"
        what = "what was trained" if artifact.manifest else "the same"
        print(f"verified: every runtime computes {what}, {alike}")
        return True
    failed = {check.runtime for check in checks if not check.passed} - {AT_EXPORT}
    if not failed:
        cause = "the parameters are not those that were exported; export again"
    elif failed <= FUSING:
        cause = explain(artifact) or "only without fusion (MXNET_SUBGRAPH_BACKEND=NONE) is it right"
    else:
        cause = "do not serve it in a runtime that failed"
    print(f"NOT verified: {cause}")
    return False


def _against(artifact):
    if artifact.manifest is None:
        return "itself without fusion"
    if artifact.manifest.precision == "float32":
        return "the training graph"
    return "the network in float32, on the calibration images"


def explain(artifact: Artifact) -> str:
    """Why MXNet's fusing backend computes this pair wrongly, or "" where no reason is known."""
    graph = modern(json.loads(artifact.symbol.read_text(encoding="utf-8")))
    for index, readers in misfolded(graph):
        norm, *norms = (node["name"] for node in readers if node["op"] == "BatchNorm")
        others = [node["name"] for node in readers if node["op"] != "BatchNorm"]
        return (
            f"MXNet's MKLDNN backend folds {norm} into the convolution "
            f"{graph['nodes'][index]['name']} although {' and '.join(others + norms)} reads its "
            "output too; of MXNet's own ways only those without fusion "
            "(MXNET_SUBGRAPH_BACKEND=NONE, or SymbolBlock) compute this pair right"
        )
    return ""


def _run(runtimes, folder, jobs, processes, stop):
    """{runtime: [(outputs, None) or (None, failure) of each job]}, from a new one of `processes`.

    Where that ends in a runtime, those after it get another, unless they are to `stop`.
    """
    ways, backend = [way for way, _ in runtimes], runtimes[0][1]
    environment = {k: v for k, v in os.environ.items() if k != "MXNET_SUBGRAPH_BACKEND"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # this package, installed or not
    if backend:
        environment["MXNET_SUBGRAPH_BACKEND"] = backend
    outputs = Path(tempfile.mkdtemp(dir=folder))
    with subprocess.Popen(
        [sys.executable, "-m", "gluon_resnetv2.engines.runtimes", outputs, *ways],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        env=environment,
    ) as process:
        processes.append(process)
        try:
            printed, complaints = process.communicate(json.dumps(jobs), PATIENCE)
        except subprocess.TimeoutExpired as error:
            process.kill()
            printed, complaints = (error.stdout or b"").decode(), None
    found = {
        runtime: [
            (None, failure) if failure else (np.load(outputs / f"{way} {index}.npy"), None)
            for index, failure in enumerate(failures)
        ]
        for way, runtime, failures in zip(ways, runtimes, answers(printed))
    }
    if len(found) < len(runtimes):  # it ended before it could say
        failure = f"no answer within {PATIENCE} seconds"
        if complaints is not None:
            last = (complaints.strip().splitlines() or ["no message"])[-1]
            failure = f"the process ended with status {process.returncode}: {last}"
        ended, *others = runtimes[len(found) :]
        found[ended] = [(None, failure)] * len(jobs)
        if others and not stop.is_set():
            found.update(_run(others, folder, jobs, processes, stop))
    return found
