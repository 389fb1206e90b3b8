"""Imports point one way, so that each part can be read, tested and replaced alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gluon_resnetv2"

# Modules, and what none of them may import.
FORBIDDEN = {
    "spec.py": ("mxnet", "numpy", "gluon_resnetv2.net", "gluon_resnetv2.layers"),
    "paper.py": ("mxnet", "numpy"),
    "layers.py": ("gluon_resnetv2.unit", "gluon_resnetv2.net"),
    "unit.py": ("gluon_resnetv2.net",),
    "net.py": ("gluon_resnetv2.training", "gluon_resnetv2.deploy", "gluon_resnetv2.data"),
    "data/*.py": ("mxnet", "gluon_resnetv2.net", "gluon_resnetv2.training"),
    "deploy/*.py": ("gluon_resnetv2.training", "gluon_resnetv2.data"),
}


def imported(path):
    """The modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_imports_point_one_way(pattern):
    paths = list(PACKAGE.glob(pattern))
    assert paths
    for path in paths:
        for name in imported(path):
            for forbidden in FORBIDDEN[pattern]:
                assert f"{name}.".startswith(f"{forbidden}.") is False, f"{path} imports {name}"


def test_the_architecture_is_described_without_a_framework():
    code = "import sys, gluon_resnetv2.paper; print({'mxnet', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
