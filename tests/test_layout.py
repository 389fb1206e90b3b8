"""Imports point one way, so that each part can be read, tested and replaced alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gluon_resnetv2"

# The package's modules and folders, lowest first. Each imports its own level and those below it.
# The package's `__init__` stands apart: it prepares MXNet for all and hands out the public names.
LEVELS = (
    ("errors",),
    ("cli", "files", "machine", "pixels", "prefetch", "scores", "untrusted"),
    ("fixes",),
    ("spec",),
    ("paper",),
    ("data",),
    ("layers",),
    ("formats", "unit"),
    ("net",),
    ("checkpoint", "memory"),
    ("distributed", "engines"),
    ("exports", "serving"),
    ("interop", "training"),
    ("profiling", "study"),
    ("commands", "deploy", "symbols"),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}

# What would be low enough, and is kept out all the same.
KEPT_OUT = {
    "spec": ("mxnet", "numpy"),
    "paper": ("mxnet", "numpy"),
    "data": ("mxnet",),
    "engines": ("gluon_resnetv2.data",),
    "exports": ("gluon_resnetv2.data",),
    "serving": ("gluon_resnetv2.data",),
}

# Runs MXNet's own script, in a process of its own.
IM2REC = PACKAGE / "data" / "imagenet" / "im2rec.py"

MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py", IM2REC})


def part_of(path):
    """The entry of `LEVELS` that a file belongs to: its own name, or its folder's."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """The modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_level():
    assert {part_of(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    for name in imported(path):
        top, module = [*name.split("."), ""][:2]
        assert top not in ("symbols", "train", "tests"), f"{name} stands outside the package"
        for outsider in KEPT_OUT.get(part, ()):
            assert not f"{name}.".startswith(f"{outsider}."), f"{part} does without {outsider}"
        if top == PACKAGE.name and module != "__version__":
            assert module in LEVEL, f"{name} is no module that has a level"
            assert LEVEL[module] <= LEVEL[part], f"{name} is above {part}"


@pytest.mark.parametrize(
    ("module", "frameworks"), [("paper", {"mxnet", "numpy"}), ("data", {"mxnet"})]
)
def test_what_needs_no_framework_loads_none(module, frameworks):
    code = f"import sys, gluon_resnetv2.{module}; print(*{frameworks} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
