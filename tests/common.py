"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.engines.native import library
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import sha256
from gluon_resnetv2.formats.artifact import Artifact, load
from gluon_resnetv2.formats.manifest import MANIFEST, write_manifest
from gluon_resnetv2.layers import BatchNorm, is_statistic
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.scores import relative_difference
from gluon_resnetv2.training.precision import cpu_has_bfloat16

# One of each kind, dropout as one that drops nothing, so that it can be compared.
SHORTCUTS = (
    *("identity", "plain", "scale:0.5,0.5", "gate:-2", "exclusive-gate:-2", "conv1x1"),
    "dropout:0",
)


def randomise(net: ResNetV2, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Gives every parameter of `net` random values, statistics and gammas too; returns them."""
    rng = np.random.RandomState(seed)
    net.initialize()
    net.cast(dtype)
    values = {}
    for name, parameter in sorted(net.collect_params().items()):
        shape = parameter.shape
        if name.endswith("weight"):
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith(("gamma", "moving_var")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.2, shape)
        values[name] = value.astype(dtype)
        parameter.set_data(mx.nd.array(values[name], dtype=dtype))
    return values


def skip_unless_installed() -> None:
    """Skips where the native engine's oneDNN, for Linux on x86-64, or a compiler is missing."""
    try:
        library.load()
    except UserError as error:
        if library.RUNTIME in str(error) or "compiler" in str(error):
            pytest.skip(str(error))
        raise


def skip_without(dtype: str) -> None:
    """Skips where this processor can't compute in the type."""
    if dtype == "bfloat16" and not cpu_has_bfloat16():
        pytest.skip("this CPU has no bfloat16")


def resident(pid: int) -> float:
    """Memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def use_moving_statistics(block) -> None:
    """Has a batch normalisation use its moving statistics while training too; for `Block.apply`."""
    if isinstance(block, BatchNorm):
        block._kwargs["use_global_stats"] = True


def relative(found, expected, floor: float = 1e-12) -> float:
    """The norm of the difference over the norm of what is expected, or `floor` if that is more."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), floor))


def difference(found, expected) -> float:
    """`relative_difference`, of arrays that are sure to have one shape."""
    assert found.shape == expected.shape
    return relative_difference(found, expected)


def with_new_sums(artifact: Artifact) -> Artifact:
    """The export with a manifest that has the sums of what its files are now."""
    sums = {
        name: sha256(artifact.folder / name)
        for name in artifact.manifest.sha256
        if name != MANIFEST
    }
    write_manifest(artifact.folder, {**artifact.manifest.to_dict(), "sha256": sums})
    return load(artifact.folder)


def beside_torch(name: str):
    """A module that builds on PyTorch; skips where one of both is not installed."""
    torch = pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        # The usual torchvision is made for PyTorch with CUDA. Beside another it lacks operators,
        # which timm does not need, and fails to describe them.
        patch.setattr(torch.library, "register_fake", lambda *_, **__: lambda function: function)
        return pytest.importorskip(name)


def graph_of(net):
    """The symbol of a network, what it has learned, and its statistics, by name."""
    symbol, arguments, statistics = net(mx.sym.var("data")), {}, {}
    for name, parameter in net.collect_params().items():
        (statistics if is_statistic(name) else arguments)[name] = parameter.data()
    return symbol, arguments, statistics
